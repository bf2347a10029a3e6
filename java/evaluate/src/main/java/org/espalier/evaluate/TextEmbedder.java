package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.TextInput;

/**
 * Embeds texts: a model's first output, pooled where it is of tokens and scaled to length 1. Thread-safe as its model
 * is.
 */
public final class TextEmbedder {
  private final OnnxTextModel model;
  private final Pooling pooling;
  private final Set<String> output;

  /** Of the last output. */
  private volatile boolean ofTokens;

  public TextEmbedder(OnnxTextModel model, Pooling pooling) {
    this.model = model;
    this.pooling = pooling;
    this.output = Set.of(model.firstOutput());
  }

  /**
   * Whether a model gives no embedding but a number for each token, as those do that answer questions: whether its first output
   * is [batch, tokens], with the name that {@code input_ids} has for its tokens, and all it takes is texts.
   */
  public static boolean marksTokens(OnnxModel model) {
    if (model.outputs().isEmpty()) {
      return false;
    }
    String tokens = second(model.outputs().get(0));
    return !tokens.isEmpty()
        && model.inputs().stream().allMatch(input -> TextInput.of(input.getName()) != null)
        && model.inputs().stream()
            .anyMatch(
                input ->
                    input.getName().equals(TextInput.INPUT_IDS.inputName())
                        && second(input).equals(tokens));
  }

  /** What a tensor of two dimensions calls the second; empty where that has a size or no name. */
  private static String second(ValueInfoProto tensor) {
    TensorShapeProto shape = tensor.getType().getTensorType().getShape();
    return shape.getDimCount() == 2 ? shape.getDim(1).getDimParam() : "";
  }

  /** Embeds one text alone, without padding. */
  public float[] embed(Tokens text) {
    return embed(List.of(text))[0];
  }

  /**
   * Embeds texts as one padded batch.
   *
   * @return one unit vector a text
   * @throws InputException when the model's first output is neither [batch, tokens, width] nor [batch, width]
   */
  public float[][] embed(List<Tokens> batch) {
    float[][] result = new float[batch.size()][];
    model.run(
        batch,
        output,
        (name, shape, values) -> {
          if (shape.length < 2 || shape.length > 3 || shape[0] != batch.size()) {
            throw new InputException(
                "output "
                    + name
                    + " must be hidden states [batch, tokens, width] or embeddings [batch, width]"
                    + " but has shape "
                    + Arrays.toString(shape));
          }
          boolean pooled = shape.length == 2;
          ofTokens = !pooled;
          int longest = pooled ? 1 : (int) shape[1];
          int width = (int) shape[shape.length - 1];
          float[] hidden = new float[values.remaining()];
          values.get(hidden);
          for (int r = 0; r < result.length; r++) {
            int from = r * longest * width;
            if (pooled) {
              result[r] = Arrays.copyOfRange(hidden, from, from + width);
            } else {
              result[r] = new float[width];
              pooling.pool(hidden, from, batch.get(r).mask(), width, result[r]);
            }
            EncoderFeatures.normalized(result[r]);
          }
        });
    return result;
  }

  /** Whether the output is of tokens, as the last one was, which are pooled. */
  boolean isOfTokens() {
    return ofTokens;
  }
}
