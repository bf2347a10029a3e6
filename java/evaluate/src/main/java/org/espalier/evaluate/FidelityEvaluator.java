package org.espalier.evaluate;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.TextTokenizer.Tokens;

/**
 * Compares two ONNX text models on texts. Both run in ONNX Runtime on one thread. Embeddings are compared
 * text by text and as a space (pair similarities, nearest neighbours).
 */
public final class FidelityEvaluator {
  /** Texts of one padded batch for the self-agreement of a candidate. */
  public static final int BATCH = 32;

  /** All pairs are ranked among at most this many texts (two million pairs), evenly spread. */
  private static final int PAIR_TEXTS = 2000;

  private final TextTokenizer tokenizer;
  private final TextTokenizer candidates;
  private final Pooling pooling;

  /**
   * An evaluator.
   *
   * @param tokenizer the tokenizer both models were trained with; not closed here
   */
  public FidelityEvaluator(TextTokenizer tokenizer, Pooling pooling) {
    this(tokenizer, tokenizer, pooling);
  }

  /**
   * One for a candidate of other tokens.
   *
   * @param tokenizer the reference's; not closed here
   * @param candidates the candidate's; not closed here
   */
  public FidelityEvaluator(TextTokenizer tokenizer, TextTokenizer candidates, Pooling pooling) {
    this.tokenizer = tokenizer;
    this.candidates = candidates;
    this.pooling = pooling;
  }

  /**
   * Compares {@code candidate} with {@code reference}.
   *
   * @param texts at least three texts
   * @param progress receives the progress
   * @throws InputException when a model cannot be loaded or run, the two differ in width, or there are
   *     too few texts
   */
  public Fidelity evaluate(
      MeasuredModel reference, MeasuredModel candidate, List<String> texts, Progress progress) {
    if (texts.size() < 3) {
      throw new InputException(
          "evaluation needs at least 3 texts (nearest neighbours among fewer say nothing) but has "
              + texts.size());
    }
    List<Tokens> tokens = texts.stream().map(tokenizer::encode).toList();
    List<Tokens> others =
        candidates == tokenizer ? tokens : texts.stream().map(candidates::encode).toList();
    try (OnnxTextModel referenceModel = new OnnxTextModel(reference);
        OnnxTextModel candidateModel = new OnnxTextModel(candidate)) {
      TextEmbedder first = new TextEmbedder(referenceModel, pooling);
      TextEmbedder second = new TextEmbedder(candidateModel, pooling);
      float[][] a = new float[tokens.size()][];
      float[][] b = new float[tokens.size()][];
      double[] cosines = new double[a.length];
      for (int i = 0; i < a.length; i++) {
        progress.at(Phase.EVALUATE, i, 2L * a.length);
        a[i] = first.embed(tokens.get(i));
        b[i] = second.embed(others.get(i));
        if (a[i].length != b[i].length) {
          throw new InputException(
              "the models differ in width: "
                  + reference.name()
                  + " gives "
                  + a[i].length
                  + ", "
                  + candidate.name()
                  + " gives "
                  + b[i].length);
        }
        if (a[i].length != a[0].length) {
          throw new InputException(
              reference.name()
                  + ": the first output has the width "
                  + a[0].length
                  + " for one text and "
                  + a[i].length
                  + " for another, so it is no embedding");
        }
        cosines[i] = Statistics.cosine(a[i], b[i]);
      }
      int agreed = agreement(a, b);
      double[] interval = Statistics.proportionInterval(agreed, a.length);
      double spearman = Statistics.spearman(similarities(a), similarities(b));
      Savings savings =
          Savings.measure(
              reference,
              candidate,
              tokens.size(),
              i -> {},
              i -> first.embed(tokens.get(i)),
              i -> second.embed(others.get(i)),
              progress);
      return new Fidelity(
          a.length,
          Arrays.stream(cosines).average().orElseThrow(),
          Statistics.quantile(cosines, 0.05),
          Statistics.quantile(cosines, 0),
          spearman,
          (double) agreed / a.length,
          interval[0],
          interval[1],
          savings,
          batchCosine(second, others, b, progress));
    }
  }

  /**
   * Runs a model as {@link #evaluate} does, on the texts that ask most of it, one alone and both as a batch.
   *
   * @param texts at least one
   * @throws InputException when it cannot be loaded or run so, or a text cannot be encoded
   */
  public void check(MeasuredModel judged, List<String> texts) {
    List<Tokens> some = Tokens.mostAsking(texts.stream().map(tokenizer::encode).toList());
    try (OnnxTextModel model = new OnnxTextModel(judged)) {
      TextEmbedder embedder = new TextEmbedder(model, pooling);
      embedder.embed(some.get(0));
      embedder.embed(some);
    }
  }

  /** Of all pairs among some of the texts. */
  private static double[] similarities(float[][] embeddings) {
    List<float[]> some = ActivationSource.spread(List.of(embeddings), PAIR_TEXTS);
    return Statistics.pairSimilarities(some.toArray(float[][]::new));
  }

  private static int agreement(float[][] a, float[][] b) {
    int[] inA = Statistics.nearestNeighbours(a);
    int[] inB = Statistics.nearestNeighbours(b);
    int agreed = 0;
    for (int i = 0; i < inA.length; i++) {
      if (inA[i] == inB[i]) {
        agreed++;
      }
    }
    return agreed;
  }

  /** Mean cosine of each text's own embedding to the one it gets in a padded batch, in text order. */
  private static double batchCosine(
      TextEmbedder model, List<Tokens> tokens, float[][] alone, Progress progress) {
    double sum = 0;
    for (int from = 0; from < alone.length; from += BATCH) {
      progress.at(Phase.EVALUATE, (long) alone.length + from, 2L * alone.length);
      int to = Math.min(from + BATCH, alone.length);
      float[][] together = model.embed(tokens.subList(from, to));
      for (int i = from; i < to; i++) {
        sum += Statistics.cosine(alone[i], together[i - from]);
      }
    }
    return sum / alone.length;
  }

  /**
   * Reads texts, one a line or, in a file of {@linkplain ExampleLine JSON lines}, one an object; blank lines are skipped.
   *
   * @throws InputException when the file cannot be read as UTF-8 or has no end in sight
   */
  public static List<String> readTexts(Path file) {
    if (!ExampleLine.areJson(file.toString())) {
      return ExampleLine.lines(file);
    }
    List<String> texts = ExampleLine.read(file, -1).stream().map(ExampleLine::text).toList();
    int none = texts.indexOf(null);
    if (none >= 0) {
      throw new InputException(file + ": example " + (none + 1) + ": text is missing");
    }
    return texts;
  }
}
