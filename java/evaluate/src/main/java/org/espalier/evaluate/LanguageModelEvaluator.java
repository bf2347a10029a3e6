package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.device.Tensor;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.KdSoftmaxLoss.Logits;

/**
 * Compares two causal language models on texts, each text alone and unpadded, in ONNX Runtime on one thread. The
 * first output of such a model is [texts, tokens, vocabulary], the logits of the token that follows each.
 */
public final class LanguageModelEvaluator {
  private LanguageModelEvaluator() {}

  /**
   * Whether a model looks like a language model: whether its first output is called {@code logits}, as exporters
   * do, and has three dimensions.
   */
  public static boolean isOne(OnnxModel model) {
    List<ValueInfoProto> outputs = model.outputs();
    return !outputs.isEmpty()
        && outputs.get(0).getName().equals("logits")
        && outputs.get(0).getType().getTensorType().getShape().getDimCount() == 3;
  }

  /**
   * Compares {@code candidate} with {@code reference}.
   *
   * @param tokenizer the tokenizer both models were trained with; not closed here
   * @param texts at least one of two tokens or more
   * @param progress receives the progress
   * @throws InputException when a model cannot be loaded or run, is no language model of this vocabulary, the
   *     two differ in it, or no text has a second token
   */
  public static LanguageModelFidelity evaluate(
      TextTokenizer tokenizer,
      Path reference,
      Path candidate,
      List<String> texts,
      Progress progress) {
    List<Tokens> tokens = tokens(tokenizer, texts);
    try (OnnxTextModel referenceModel = new OnnxTextModel(reference, 1);
        OnnxTextModel candidateModel = new OnnxTextModel(candidate, 1)) {
      Judged first = new Judged(reference, referenceModel);
      Judged second = new Judged(candidate, candidateModel);
      long predicted = 0;
      long places = 0;
      long agreed = 0;
      double divergence = 0;
      int done = 0;
      for (Tokens text : tokens) {
        progress.at(Phase.EVALUATE, done++, tokens.size());
        first.read(text);
        second.read(text);
        requireOneVocabulary(first, second);
        first.judge(text, null);
        divergence += second.judge(text, first) * text.length();
        for (int t = 0; t < text.length(); t++) {
          agreed += first.likeliest[t] >= 0 && first.likeliest[t] == second.likeliest[t] ? 1 : 0;
        }
        places += text.length();
        predicted += text.length() - 1;
      }
      Savings savings =
          Savings.measure(
              reference,
              candidate,
              tokens.size(),
              i -> {},
              i -> first.run(tokens.get(i)),
              i -> second.run(tokens.get(i)),
              progress);
      return new LanguageModelFidelity(
          tokens.size(),
          predicted,
          Math.exp(second.loss / predicted),
          Math.exp(first.loss / predicted),
          (double) second.right / predicted,
          (double) first.right / predicted,
          (double) agreed / places,
          divergence / places,
          savings);
    }
  }

  private static void requireOneVocabulary(Judged first, Judged second) {
    if (first.vocabulary != second.vocabulary) {
      throw new InputException(
          "the models differ in their vocabulary: "
              + first.file
              + " has logits of "
              + first.vocabulary
              + " tokens, "
              + second.file
              + " of "
              + second.vocabulary);
    }
  }

  /**
   * Runs a model as {@link #evaluate} does, on the texts that ask most of it.
   *
   * @throws InputException where {@link #evaluate} would throw one because of them
   */
  public static void check(TextTokenizer tokenizer, Path file, List<String> texts) {
    List<Tokens> some = Tokens.mostAsking(tokens(tokenizer, texts));
    try (OnnxTextModel model = new OnnxTextModel(file, 1)) {
      Judged judged = new Judged(file, model);
      for (Tokens text : some) {
        judged.read(text);
        judged.judge(text, null);
      }
    }
  }

  /** The texts with a token to predict. */
  private static List<Tokens> tokens(TextTokenizer tokenizer, List<String> texts) {
    List<Tokens> tokens =
        texts.stream().map(tokenizer::encode).filter(text -> text.length() > 1).toList();
    if (tokens.isEmpty()) {
      throw new InputException(
          "none of the texts has a second token, which a language model could predict");
    }
    return tokens;
  }

  /** One of the models and what it says of the text at hand. */
  private static final class Judged {
    private final Path file;
    private final OnnxTextModel model;
    private final Set<String> output;
    private FloatBuffer memory = FloatBuffer.allocate(0);
    private int vocabulary;
    private Logits logits;
    private int[] likeliest;

    /** Over all texts so far. */
    private double loss;

    private long right;

    Judged(Path file, OnnxTextModel model) {
      this.file = file;
      this.model = model;
      this.output = Set.of(model.firstOutput());
    }

    void run(Tokens text) {
      model.run(List.of(text), output, (name, shape, values) -> {});
    }

    /** Takes the logits of a text. */
    void read(Tokens text) {
      model.run(
          List.of(text),
          output,
          (name, shape, values) -> {
            if (shape.length != 3 || shape[0] != 1 || shape[1] != text.length()) {
              throw new InputException(
                  file
                      + ": the output "
                      + name
                      + " must be logits [texts, tokens, vocabulary] but has the shape "
                      + Arrays.toString(shape)
                      + " for a text of "
                      + text.length()
                      + " tokens");
            }
            vocabulary = (int) shape[2];
            if (memory.capacity() < values.remaining()) {
              memory =
                  ByteBuffer.allocateDirect(Math.multiplyExact(4, values.remaining()))
                      .order(ByteOrder.nativeOrder())
                      .asFloatBuffer();
            }
            memory.clear().put(values).flip();
          });
      for (long id : text.ids()) {
        if (id >= vocabulary) {
          throw new InputException(
              file
                  + ": a text has the token "
                  + id
                  + ", and the model has logits of "
                  + vocabulary
                  + "; the tokenizer is of another model, or this is no language model");
        }
      }
      logits = Logits.of(Tensor.of(memory, text.length(), vocabulary));
    }

    /**
     * Adds up what it says of a text's tokens.
     *
     * @param teacher null for none
     * @return mean KL(teacher ‖ this) over the text's places
     */
    double judge(Tokens text, Judged teacher) {
      long[] next = Arrays.copyOfRange(text.ids(), 1, text.length() + 1);
      next[text.length() - 1] = KdSoftmaxLoss.NO_LABEL;
      KdSoftmaxLoss.Result result;
      try (LongPointer labels = new LongPointer(next);
          KdSoftmaxLoss both =
              new KdSoftmaxLoss(
                  KdSoftmaxLoss.Settings.of(0.5, 1),
                  new KdSoftmaxLoss.Batch(
                      logits, teacher == null ? null : teacher.logits, labels, null, null, null))) {
        result = both.compute();
      }
      if (teacher == null && !Double.isFinite(result.ce())) {
        throw new InputException(
            file
                + ": the output is no softmax of logits for one of the texts: "
                + (Double.isNaN(result.ce()) ? "it holds NaN" : "it rules out a token of it"));
      }
      loss += result.ce() * (text.length() - 1);
      likeliest = new int[text.length()];
      for (int t = 0; t < text.length(); t++) {
        likeliest[t] = Statistics.largest(memory, t * vocabulary, vocabulary);
        right += likeliest[t] == next[t] ? 1 : 0;
      }
      return result.kl();
    }
  }
}
