package org.espalier.evaluate;

import java.util.Arrays;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;

/** Embeds texts: a model's first output, pooled and scaled to length 1. Thread-safe as its model is. */
public final class TextEmbedder {
  private final OnnxTextModel model;
  private final Pooling pooling;
  private final Set<String> output;

  public TextEmbedder(OnnxTextModel model, Pooling pooling) {
    this.model = model;
    this.pooling = pooling;
    this.output = Set.of(model.firstOutput());
  }

  /** Embeds one text alone, without padding. */
  public float[] embed(Tokens text) {
    return embed(List.of(text))[0];
  }

  /**
   * Embeds texts as one padded batch.
   *
   * @return one unit vector a text
   * @throws InputException when the model's first output is not [batch, tokens, width]
   */
  public float[][] embed(List<Tokens> batch) {
    float[][] result = new float[batch.size()][];
    model.run(
        batch,
        output,
        (name, shape, values) -> {
          if (shape.length != 3 || shape[0] != batch.size()) {
            throw new InputException(
                "output "
                    + name
                    + " must be hidden states [batch, tokens, width] but has shape "
                    + Arrays.toString(shape));
          }
          int longest = (int) shape[1];
          int width = (int) shape[2];
          float[] hidden = new float[values.remaining()];
          values.get(hidden);
          for (int r = 0; r < result.length; r++) {
            result[r] = new float[width];
            pooling.pool(hidden, r * longest * width, batch.get(r).mask(), width, result[r]);
            normalize(result[r]);
          }
        });
    return result;
  }

  private static void normalize(float[] v) {
    double squares = 0;
    for (float x : v) {
      squares += (double) x * x;
    }
    double inverse = squares > 0 ? 1 / Math.sqrt(squares) : 0;
    for (int i = 0; i < v.length; i++) {
      v[i] = (float) (v[i] * inverse);
    }
  }
}
