package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Set;
import java.util.function.ToDoubleFunction;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.device.Tensor;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.KdSoftmaxLoss.Logits;

/**
 * Compares two models that give logits of words or tags for each token, on texts, each text alone and unpadded, in ONNX
 * Runtime on one thread. The first output of such a model is [texts, tokens, vocabulary]: of a causal language model the
 * logits of the token that follows each, of others, as those that fill in words, of the token itself.
 */
public final class LanguageModelEvaluator {
  /** Tokens of the text that shows whether a model is causal; the second half of them is changed. */
  private static final int TRIAL = 32;

  /** How far logits of a causal model may move where later tokens change, as a share of their norm. */
  private static final double ROUNDING = 1e-3;

  /** The same of one that finds ranges for its activations as it runs, from all tokens. */
  private static final double ROUNDING_BY_ALL = 0.1;

  private LanguageModelEvaluator() {}

  /**
   * Whether a model gives logits for each token: whether its first output is called {@code logits}, as exporters
   * do, and has three dimensions.
   */
  public static boolean isOne(OnnxModel model) {
    List<ValueInfoProto> outputs = model.outputs();
    return !outputs.isEmpty()
        && outputs.get(0).getName().equals("logits")
        && outputs.get(0).getType().getTensorType().getShape().getDimCount() == 3;
  }

  /**
   * Whether a model is a causal one: whether the logits of the first tokens of a text stay as they are where those behind
   * them change. One that takes keys and values of what was read before is, for it does not compute these anew.
   *
   * @param tokenizer its tokenizer; not closed here
   * @return true also where the texts do not tell, as those of one token
   * @throws InputException when it cannot be loaded or run, or does not give logits for each token
   */
  public static boolean isCausal(TextTokenizer tokenizer, MeasuredModel model, List<String> texts) {
    if (goesOn(model)) {
      return true;
    }
    try (OnnxTextModel loaded = new OnnxTextModel(model)) {
      return new Judged(model, loaded).isCausal(encoded(tokenizer, texts));
    }
  }

  private static boolean goesOn(MeasuredModel model) {
    return model.graph().inputs().stream().anyMatch(input -> PastInput.isOne(input.getName()));
  }

  /** The same without texts, on the first words of its vocabulary. */
  public static boolean isCausal(MeasuredModel model) {
    if (goesOn(model)) {
      return true;
    }
    long last =
        model.graph().outputs().get(0).getType().getTensorType().getShape().getDim(2).getDimValue();
    long words = last > 1 ? last : 2;
    long[] ids = LongStream.range(0, TRIAL).map(i -> i % words).toArray();
    long[] ones = new long[TRIAL];
    Arrays.fill(ones, 1);
    try (OnnxTextModel loaded = new OnnxTextModel(model)) {
      return new Judged(model, loaded)
          .isCausal(List.of(new Tokens(ids, ones, new long[TRIAL], null)));
    }
  }

  /**
   * Compares {@code candidate} with {@code reference}, two causal language models.
   *
   * @param tokenizer the tokenizer both models were trained with; not closed here
   * @param texts at least one of two tokens or more
   * @param progress receives the progress
   * @throws InputException when a model cannot be loaded or run, is no language model of this vocabulary, the reference is not
   *     causal, the two differ in their vocabulary, or no text has a second token
   */
  public static LanguageModelFidelity evaluate(
      TextTokenizer tokenizer,
      MeasuredModel reference,
      MeasuredModel candidate,
      List<String> texts,
      Progress progress) {
    List<Tokens> tokens = predicted(tokenizer, texts);
    try (OnnxTextModel referenceModel = new OnnxTextModel(reference);
        OnnxTextModel candidateModel = new OnnxTextModel(candidate)) {
      Judged first = new Judged(reference, referenceModel);
      Judged second = new Judged(candidate, candidateModel);
      first.requireCausal(tokens);
      TokenFidelity all =
          compare(
              tokens,
              first,
              second,
              text -> {
                first.predict(text, null);
                return second.predict(text, first);
              },
              progress);
      long predicted = all.tokens() - all.texts();
      return new LanguageModelFidelity(
          all.texts(),
          predicted,
          Math.exp(second.loss / predicted),
          Math.exp(first.loss / predicted),
          (double) second.right / predicted,
          (double) first.right / predicted,
          all.agreement(),
          all.divergence(),
          all.savings());
    }
  }

  /**
   * Compares what two models say of each token, which are not causal.
   *
   * @param tokenizer the tokenizer both models were trained with; not closed here
   * @param texts at least one with a token
   * @param progress receives the progress
   * @throws InputException when a model cannot be loaded or run, does not give logits for each token, the two differ in
   *     how many there are, or no text has a token
   */
  public static TokenFidelity compareTokens(
      TextTokenizer tokenizer,
      MeasuredModel reference,
      MeasuredModel candidate,
      List<String> texts,
      Progress progress) {
    List<Tokens> tokens = encoded(tokenizer, texts);
    try (OnnxTextModel referenceModel = new OnnxTextModel(reference);
        OnnxTextModel candidateModel = new OnnxTextModel(candidate)) {
      Judged first = new Judged(reference, referenceModel);
      Judged second = new Judged(candidate, candidateModel);
      return compare(
          tokens,
          first,
          second,
          text -> {
            if (!Double.isFinite(first.divergence(first))) {
              throw first.noSoftmax("it holds NaN or infinity");
            }
            return second.divergence(first);
          },
          progress);
    }
  }

  /**
   * Goes through the texts.
   *
   * @param divergence says of a text that both have read the mean KL(first ‖ second) over its tokens
   */
  private static TokenFidelity compare(
      List<Tokens> texts,
      Judged first,
      Judged second,
      ToDoubleFunction<Tokens> divergence,
      Progress progress) {
    long places = 0;
    long agreed = 0;
    double sum = 0;
    int done = 0;
    for (Tokens text : texts) {
      progress.at(Phase.EVALUATE, done++, texts.size());
      first.read(text);
      second.read(text);
      requireOneVocabulary(first, second);
      sum += divergence.applyAsDouble(text) * text.length();
      for (int t = 0; t < text.length(); t++) {
        int likeliest = first.likeliest(t);
        agreed += likeliest >= 0 && likeliest == second.likeliest(t) ? 1 : 0;
      }
      places += text.length();
    }
    Savings savings =
        Savings.measure(
            first.given,
            second.given,
            texts.size(),
            i -> {},
            i -> first.run(texts.get(i)),
            i -> second.run(texts.get(i)),
            progress);
    return new TokenFidelity(texts.size(), places, (double) agreed / places, sum / places, savings);
  }

  private static void requireOneVocabulary(Judged first, Judged second) {
    if (first.vocabulary != second.vocabulary) {
      throw new InputException(
          "the models differ in their vocabulary: "
              + first.given.name()
              + " has logits of "
              + first.vocabulary
              + " tokens, "
              + second.given.name()
              + " of "
              + second.vocabulary);
    }
  }

  /**
   * Runs a model as {@link #evaluate} does, on the texts that ask most of it.
   *
   * @throws InputException where {@link #evaluate} would throw one because of them
   */
  public static void check(TextTokenizer tokenizer, MeasuredModel model, List<String> texts) {
    List<Tokens> tokens = predicted(tokenizer, texts);
    try (OnnxTextModel loaded = new OnnxTextModel(model)) {
      Judged judged = new Judged(model, loaded);
      judged.requireCausal(tokens);
      for (Tokens text : Tokens.mostAsking(tokens)) {
        judged.read(text);
        judged.predict(text, null);
      }
    }
  }

  /** The texts with a token to predict. */
  private static List<Tokens> predicted(TextTokenizer tokenizer, List<String> texts) {
    List<Tokens> tokens =
        texts.stream().map(tokenizer::encode).filter(text -> text.length() > 1).toList();
    if (tokens.isEmpty()) {
      throw new InputException(
          "none of the texts has a second token, which a language model could predict");
    }
    return tokens;
  }

  /** The texts with a token. */
  private static List<Tokens> encoded(TextTokenizer tokenizer, List<String> texts) {
    List<Tokens> tokens =
        texts.stream().map(tokenizer::encode).filter(text -> text.length() > 0).toList();
    if (tokens.isEmpty()) {
      throw new InputException("none of the texts has a token");
    }
    return tokens;
  }

  /** One of the models and what it says of the text at hand. */
  private static final class Judged {
    private final MeasuredModel given;
    private final OnnxTextModel model;
    private final Set<String> output;
    private FloatBuffer memory = FloatBuffer.allocate(0);
    private int vocabulary;
    private Logits logits;

    /** Over all texts so far. */
    private double loss;

    private long right;

    Judged(MeasuredModel given, OnnxTextModel model) {
      this.given = given;
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
                  given.name()
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
      logits = Logits.of(Tensor.of(memory, text.length(), vocabulary));
    }

    /** Whether the logits of the first tokens of the longest text stay where those behind them are others. */
    boolean isCausal(List<Tokens> texts) {
      Tokens longest = Collections.max(texts, Comparator.comparingInt(Tokens::length));
      int length = Math.min(TRIAL, longest.length());
      int kept = length / 2;
      long[] known =
          texts.stream().flatMapToLong(text -> LongStream.of(text.ids())).distinct().toArray();
      if (goesOn(given) || kept == 0 || known.length < 2) {
        return true;
      }
      long[] ids = Arrays.copyOf(longest.ids(), length);
      float[] before = first(kept, longest, ids);
      for (int t = kept; t < length; t++) {
        long other = known[t % known.length];
        ids[t] = other == ids[t] ? known[(t + 1) % known.length] : other;
      }
      float[] after = first(kept, longest, ids);
      double norm = 0;
      double moved = 0;
      for (int i = 0; i < before.length; i++) {
        norm += (double) before[i] * before[i];
        moved += ((double) after[i] - before[i]) * ((double) after[i] - before[i]);
      }
      boolean byAll =
          given.graph().allNodes().stream().anyMatch(n -> n.getOpType().startsWith("DynamicQuant"));
      double most = byAll ? ROUNDING_BY_ALL : ROUNDING;
      return !(moved > most * most * norm);
    }

    /** The logits of the first tokens less their mean over the vocabulary, which a softmax does not see. */
    private float[] first(int count, Tokens like, long[] ids) {
      long[] mask = Arrays.copyOf(like.mask(), ids.length);
      read(new Tokens(ids, mask, Arrays.copyOf(like.types(), ids.length), null));
      float[] rows = new float[count * vocabulary];
      memory.get(0, rows);
      for (int from = 0; from < rows.length; from += vocabulary) {
        double sum = 0;
        for (int v = from; v < from + vocabulary; v++) {
          sum += rows[v];
        }
        for (int v = from; v < from + vocabulary; v++) {
          rows[v] -= (float) (sum / vocabulary);
        }
      }
      return rows;
    }

    void requireCausal(List<Tokens> texts) {
      if (!isCausal(texts)) {
        throw new InputException(
            given.name()
                + ": the logits of a token change where those behind it do: the model sees the"
                + " whole text, as those do that fill in words or tag them, and is no causal"
                + " language model");
      }
    }

    /**
     * Adds up what it says of the tokens that follow in a text.
     *
     * @param teacher null for none
     * @return mean KL(teacher ‖ this) over the text's places
     */
    double predict(Tokens text, Judged teacher) {
      for (long id : text.ids()) {
        if (id >= vocabulary) {
          throw new InputException(
              given.name()
                  + ": a text has the token "
                  + id
                  + ", and the model has logits of "
                  + vocabulary
                  + "; the tokenizer is of another model, or this is no language model");
        }
      }
      long[] next = Arrays.copyOfRange(text.ids(), 1, text.length() + 1);
      next[text.length() - 1] = KdSoftmaxLoss.NO_LABEL;
      KdSoftmaxLoss.Result result;
      try (LongPointer labels = new LongPointer(next)) {
        result = compared(0.5, teacher, labels);
      }
      if (teacher == null && !Double.isFinite(result.ce())) {
        throw noSoftmax(Double.isNaN(result.ce()) ? "it holds NaN" : "it rules out a token of it");
      }
      loss += result.ce() * (text.length() - 1);
      for (int t = 0; t < text.length(); t++) {
        right += likeliest(t) == next[t] ? 1 : 0;
      }
      return result.kl();
    }

    /** Mean KL(teacher ‖ this) over the text's tokens. */
    double divergence(Judged teacher) {
      return compared(0, teacher, null).kl();
    }

    private KdSoftmaxLoss.Result compared(double share, Judged teacher, LongPointer labels) {
      try (KdSoftmaxLoss both =
          new KdSoftmaxLoss(
              KdSoftmaxLoss.Settings.of(share, 1),
              new KdSoftmaxLoss.Batch(
                  logits, teacher == null ? null : teacher.logits, labels, null, null, null))) {
        return both.compute();
      }
    }

    InputException noSoftmax(String why) {
      return new InputException(
          given.name() + ": the output is no softmax of logits for one of the texts: " + why);
    }

    /** What it holds the most likely at a place; below 0 where that is not defined. */
    int likeliest(int place) {
      return Statistics.largest(memory, place * vocabulary, vocabulary);
    }
  }
}
