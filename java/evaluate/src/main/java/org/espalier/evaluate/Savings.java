package org.espalier.evaluate;

import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.function.IntConsumer;
import java.util.function.Supplier;
import java.util.function.ToDoubleFunction;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;

/**
 * What a candidate saves against its reference.
 *
 * @param sizeRatio candidate's bytes divided by the reference's
 * @param speedup reference's time divided by the candidate's, one thread, one example a run
 * @param referenceMillis mean over the examples that were timed of the reference's median time for one
 * @param millis the candidate's
 */
public record Savings(double sizeRatio, double speedup, double referenceMillis, double millis) {
  /** At most so many are timed. */
  static final int CASES = 64;

  private static final int CASE_ROUNDS = 9;

  private static final int MOST_ROUNDS = 64;
  private static final int LEAST_ROUNDS = 3;

  /** What is enough is a setting for tests of commands, which ask what becomes of a model and not how fast it is. */
  private static final long ENOUGH_NANOS =
      TimeUnit.MILLISECONDS.toNanos(Integer.getInteger("espalier.timing.millis", 2000));

  /**
   * Measures two models that take turns, so that a change of the machine's speed meets both: nine rounds over the
   * cases, or as many, but at least three, as begin within two seconds.
   *
   * @param cases how many there are; at most 64 of them, evenly spread, are timed
   * @param prepare has what the case of a number needs beside the models made, which is not timed
   * @param runReference runs the case of a number
   * @param progress hears how many of the least runs are done
   */
  static Savings measure(
      MeasuredModel reference,
      MeasuredModel candidate,
      int cases,
      IntConsumer prepare,
      IntConsumer runReference,
      IntConsumer runCandidate,
      Progress progress) {
    int n = Math.min(CASES, cases);
    double[][] referenceTimes = new double[n][CASE_ROUNDS];
    double[][] candidateTimes = new double[n][CASE_ROUNDS];
    int rounds = 0;
    long begin = System.nanoTime();
    for (; rounds < CASE_ROUNDS && isWorthARound(rounds, begin); rounds++) {
      for (int i = 0; i < n; i++) {
        progress.at(Phase.TIME, (long) rounds * n + i, (long) LEAST_ROUNDS * n);
        int which = (int) ((long) i * cases / n);
        prepare.accept(which);
        long start = System.nanoTime();
        runReference.accept(which);
        long middle = System.nanoTime();
        runCandidate.accept(which);
        referenceTimes[i][rounds] = middle - start;
        candidateTimes[i][rounds] = System.nanoTime() - middle;
      }
    }
    double referenceSum = 0;
    double candidateSum = 0;
    for (int i = 0; i < n; i++) {
      referenceSum += Statistics.median(Arrays.copyOf(referenceTimes[i], rounds));
      candidateSum += Statistics.median(Arrays.copyOf(candidateTimes[i], rounds));
    }
    return new Savings(
        (double) candidate.bytes() / reference.bytes(),
        referenceSum / candidateSum,
        referenceSum * 1e-6 / n,
        candidateSum * 1e-6 / n);
  }

  /**
   * How many times as fast as a model its compressed form runs on the first example, on one thread.
   *
   * @return NaN where ONNX Runtime does not load the model itself, as of bfloat16
   * @throws InputException where a model has other inputs or cannot be run
   */
  public static double speedup(OnnxModel reference, OnnxModel candidate, ExampleTensors examples) {
    return ofLoaded(
        () -> new RuntimeModel(MeasuredModel.of(reference)),
        loaded -> {
          try (FedModel first = new FedModel(loaded, examples);
              FedModel second =
                  new FedModel(new RuntimeModel(MeasuredModel.of(candidate)), examples)) {
            return speedup(() -> first.run(0).close(), () -> second.run(0).close());
          }
        });
  }

  /** What is measured with the original; NaN where that is not loaded. */
  private static <M> double ofLoaded(Supplier<M> original, ToDoubleFunction<M> measure) {
    M loaded;
    try {
      loaded = original.get();
    } catch (InputException e) {
      return Double.NaN;
    }
    return measure.applyAsDouble(loaded);
  }

  /**
   * The same for a text model and the text that has the middle length of some.
   */
  static double speedup(OnnxModel reference, OnnxModel candidate, List<Tokens> texts) {
    Tokens middle =
        texts.stream()
            .sorted(Comparator.comparingInt(Tokens::length))
            .skip(texts.size() / 2)
            .findFirst()
            .orElseThrow();
    return ofLoaded(
        () -> new OnnxTextModel(reference, 1),
        loaded -> {
          try (OnnxTextModel first = loaded;
              OnnxTextModel second = new OnnxTextModel(candidate, 1)) {
            return speedup(() -> run(first, middle), () -> run(second, middle));
          }
        });
  }

  private static void run(OnnxTextModel model, Tokens text) {
    model.run(List.of(text), Set.of(model.firstOutput()), (name, shape, values) -> {});
  }

  /**
   * Turn by turn, the ratio of the shortest times that were seen within about two seconds, which other programs on
   * the machine move least.
   */
  private static double speedup(Runnable reference, Runnable candidate) {
    double shortest = Double.MAX_VALUE;
    double candidateShortest = Double.MAX_VALUE;
    long begin = System.nanoTime();
    for (int round = 0; round < MOST_ROUNDS && isWorthARound(round, begin); round++) {
      long start = System.nanoTime();
      reference.run();
      long middle = System.nanoTime();
      candidate.run();
      candidateShortest = Math.min(candidateShortest, System.nanoTime() - middle);
      shortest = Math.min(shortest, middle - start);
    }
    return shortest / candidateShortest;
  }

  private static boolean isWorthARound(int rounds, long begin) {
    return rounds < LEAST_ROUNDS || System.nanoTime() - begin < ENOUGH_NANOS;
  }

  /** The values under their JSON keys, in a fixed order. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("size_ratio", sizeRatio);
    map.put("speedup", speedup);
    map.put("reference_ms", referenceMillis);
    map.put("ms", millis);
    return map;
  }
}
