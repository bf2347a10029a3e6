package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.backend.Isa;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

@Tag("loops")
class KdSoftmaxLossTest {
  /** What one call gave. */
  private record Outcome(KdSoftmaxLoss.Result result, float[] gradient) {}

  /** One problem; teacher, labels, bound and mask may be null. Rows are {@code padding} longer. */
  private static final class Problem {
    final int n;
    final int classes;
    int padding;
    DType dtype = DType.F32;
    float[] student;
    float[] teacher;
    long[] labels;
    float[] bound;
    boolean[] mask;
    KdSoftmaxLoss.Settings settings = KdSoftmaxLoss.Settings.of(0.5, 2);

    /** Normal logits, each row with a label. */
    Problem(int n, int classes, long seed) {
      this.n = n;
      this.classes = classes;
      Random random = new Random(seed);
      student = normal(random, n * classes, 3);
      teacher = normal(random, n * classes, 4);
      labels = random.longs(n, 0, classes).toArray();
    }

    Outcome run(Isa isa, int threads) {
      Outcome[] outcome = new Outcome[1];
      Variants.with(isa, threads, () -> outcome[0] = run());
      return outcome[0];
    }

    private Outcome run() {
      try (OwnedTensor s = padded(student);
          OwnedTensor t = padded(teacher);
          OwnedTensor b = padded(bound);
          OwnedTensor g = padded(new float[n * classes]);
          LongPointer y = labels == null ? null : new LongPointer(labels);
          BytePointer bits = mask == null ? null : Numbers.bits(mask);
          KdSoftmaxLoss loss =
              new KdSoftmaxLoss(
                  settings,
                  new KdSoftmaxLoss.Batch(logits(s), logits(t), y, logits(b), bits, logits(g)))) {
        KdSoftmaxLoss.Result result = loss.compute();
        float[] all = Numbers.read(g);
        float[] gradient = new float[n * classes];
        for (int i = 0; i < n; i++) {
          System.arraycopy(all, i * (classes + padding), gradient, i * classes, classes);
          for (int c = classes; c < classes + padding; c++) {
            assertEquals(7, all[i * (classes + padding) + c], "between rows");
          }
        }
        return new Outcome(result, gradient);
      }
    }

    private OwnedTensor padded(float[] values) {
      if (values == null) {
        return null;
      }
      float[] all = new float[n * (classes + padding)];
      Arrays.fill(all, 7);
      for (int i = 0; i < n; i++) {
        System.arraycopy(values, i * classes, all, i * (classes + padding), classes);
      }
      return Numbers.tensor(dtype, all);
    }

    private KdSoftmaxLoss.Logits logits(OwnedTensor tensor) {
      return tensor == null
          ? null
          : new KdSoftmaxLoss.Logits(tensor, n, classes, classes + padding);
    }

    KdSoftmaxLossReference reference() {
      long[] shape = {n, classes};
      return new KdSoftmaxLossReference(
          rows(Numbers.rounded(dtype, student), shape),
          teacher == null ? null : rows(Numbers.rounded(dtype, teacher), shape),
          labels,
          bound == null ? null : rows(Numbers.rounded(dtype, bound), shape),
          mask,
          settings);
    }

    /** Every instruction set, one to three threads: the same bits, near the reference. */
    void check() {
      KdSoftmaxLossReference expected = reference();
      // Rounding to the gradient's type: half a place, of denormals too.
      double relative = dtype == DType.F32 ? 0 : dtype == DType.BF16 ? 0x1p-8 : 0x1p-11;
      double absolute =
          dtype == DType.F16 ? 0x1p-25 : dtype == DType.BF16 ? 0x1p-134 : Float.MIN_VALUE;
      Outcome first = null;
      for (Isa isa : Variants.isas().toList()) {
        for (int threads : new int[] {1, 2, 3}) {
          Outcome actual = run(isa, threads);
          String where = n + " x " + classes + " " + settings + " " + dtype + " " + isa;
          if (first == null) {
            first = actual;
            near(expected.loss, actual.result.loss(), where + " loss");
            near(expected.ce, actual.result.ce(), where + " ce");
            near(expected.kl, actual.result.kl(), where + " kl");
            near(expected.bound, actual.result.bound(), where + " bound");
            for (int i = 0; i < n * classes; i++) {
              double g = expected.gradient[i / classes][i % classes];
              double tolerance = expected.tolerance[i / classes][i % classes];
              assertEquals(
                  g,
                  actual.gradient[i],
                  tolerance + relative * Math.abs(g) + absolute,
                  where + " entry " + i);
            }
          }
          assertEquals(first.result, actual.result, where);
          assertArrayEquals(bits(first.gradient), bits(actual.gradient), where);
        }
      }
    }
  }

  private static void near(double expected, double actual, String what) {
    // Float exponentials, each within 2^-23; absolute below 1 because terms of both signs cancel.
    assertEquals(expected, actual, 2e-6 * Math.max(1, Math.abs(expected)), what);
  }

  private static int[] bits(float[] values) {
    int[] bits = new int[values.length];
    for (int i = 0; i < bits.length; i++) {
      bits[i] = Float.floatToRawIntBits(values[i]);
    }
    return bits;
  }

  private static float[] normal(Random random, int n, float scale) {
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      x[i] = scale * (float) random.nextGaussian();
    }
    return x;
  }

  static double[][] rows(float[] values, long[] shape) {
    double[][] rows = new double[(int) shape[0]][(int) shape[1]];
    for (int i = 0; i < values.length; i++) {
      rows[i / (int) shape[1]][i % (int) shape[1]] = values[i];
    }
    return rows;
  }

  /**
   * One class; around a vector; the last transposed size and the first that is not; around a block of
   * sums; a group of rows and one more; around a segment, several of them, a vocabulary; enough
   * bytes for several threads, and a gradient that goes past the cache.
   */
  @ParameterizedTest
  @CsvSource({
    "5,1",
    "3,2",
    "33,10",
    "17,15",
    "16,16",
    "1,17",
    "40,31",
    "16,32",
    "17,33",
    "40,48",
    "33,63",
    "18,64",
    "5,65",
    "2,255",
    "2,257",
    "33,1000",
    "2,2047",
    "2,2048",
    "2,2049",
    "9,4100",
    "3,30522",
    "40,30522",
    "4096,32"
  })
  void agreesWithTheReferenceForEverySize(int n, int classes) {
    Problem problem = new Problem(n, classes, 31L * n + classes);
    problem.check();
  }

  @ParameterizedTest
  @CsvSource({"21,10", "20,50", "19,77", "3,2500"})
  void everyTemperatureAlphaAndType(int n, int classes) {
    for (double temperature : new double[] {1, 2, 4, 3, 0.5, 0.05, 20}) {
      for (double alpha : new double[] {0, 0.5, 1}) {
        for (DType dtype : DType.values()) {
          Problem problem = new Problem(n, classes, classes);
          problem.settings = KdSoftmaxLoss.Settings.of(alpha, temperature);
          problem.dtype = dtype;
          problem.padding = 3;
          problem.check();
        }
      }
    }
  }

  @ParameterizedTest
  @CsvSource({"21,10", "19,77", "9,2500"})
  void boundMaskAndIgnoredLabels(int n, int classes) {
    for (DType dtype : DType.values()) {
      Problem problem = new Problem(n, classes, classes + 1);
      problem.dtype = dtype;
      problem.settings = new KdSoftmaxLoss.Settings(0.4, 2, 0.25, -100);
      problem.check(); // the teacher bounds
      problem.bound = normal(new Random(5), n * classes, 3);
      problem.bound[1] = Float.NEGATIVE_INFINITY;
      problem.check();
      problem.mask = Numbers.randomBits(n, 0.6, 3);
      for (int i = 0; i < n; i += 3) {
        problem.labels[i] = -100;
      }
      problem.check();
      problem.teacher = null;
      problem.check();
      Arrays.fill(problem.labels, -100);
      problem.check();
      assertEquals(0, problem.run(Isa.current(), 1).result.ce());
    }
  }

  @ParameterizedTest
  @CsvSource({"5,10", "5,77", "3,2500"})
  void everyPartIsOptional(int n, int classes) {
    Problem problem = new Problem(n, classes, 9);
    problem.labels = null;
    problem.settings = KdSoftmaxLoss.Settings.of(0.3, 2.5);
    problem.check();
    problem.teacher = null;
    problem.check(); // nothing at all: zeros
    assertEquals(new KdSoftmaxLoss.Result(0, 0, 0, 0), problem.run(Isa.current(), 1).result);
  }

  /** Up to 1e4 and far beyond, spread between and within segments. */
  @ParameterizedTest
  @CsvSource({
    "17,10,1e4",
    "5,77,1e4",
    "3,4500,1e4",
    "17,10,1e9",
    "5,77,1e9",
    "3,4500,1e9",
    "3,77,60"
  })
  void largeLogits(int n, int classes, float scale) {
    for (double temperature : new double[] {1, 2, 4, 3, 0.01}) {
      Problem problem = new Problem(n, classes, 77);
      for (int i = 0; i < n * classes; i++) {
        problem.student[i] *= scale / 3;
        problem.teacher[i] *= scale / 4;
      }
      problem.settings = KdSoftmaxLoss.Settings.of(0.5, temperature);
      problem.check();
    }
  }

  @ParameterizedTest
  @CsvSource({"10", "77", "2500"})
  void whatIsNotFinite(int classes) {
    Problem problem = new Problem(6, classes, 8);
    float infinity = Float.POSITIVE_INFINITY;
    Arrays.fill(problem.labels, 0);
    problem.teacher[3] = -infinity; // row 0: contributes 0
    problem.student[3] = -infinity;
    problem.check();

    Problem bad = new Problem(6, classes, 8);
    bad.student[classes + 2] = Float.NaN; // row 1
    bad.student[2 * classes + 1] = infinity;
    Arrays.fill(bad.student, 3 * classes, 4 * classes, -infinity);
    Arrays.fill(bad.teacher, 4 * classes, 5 * classes, -infinity);
    Isa scalar = Variants.isas().toList().get(0);
    Outcome first = bad.run(scalar, 1);
    assertTrue(Double.isNaN(first.result.loss()));
    for (int i = 0; i < 6 * classes; i++) {
      int row = i / classes;
      assertEquals(row >= 1 && row <= 4, Float.isNaN(first.gradient[i]), "row " + row);
    }
    for (Isa isa : Variants.isas().toList()) {
      assertArrayEquals(bits(first.gradient), bits(bad.run(isa, 2).gradient));
    }

    Problem impossible = new Problem(1, classes, 8);
    impossible.student[2] = -infinity; // the teacher holds it for possible
    impossible.labels[0] = 2;
    Outcome outcome = impossible.run(scalar, 1);
    assertEquals(infinity, outcome.result.kl());
    assertEquals(infinity, outcome.result.ce());
    for (float g : outcome.gradient) {
      assertTrue(Float.isFinite(g));
    }
  }

  /** The gradient may replace the student. */
  @ParameterizedTest
  @CsvSource({"21,10", "21,77", "3,2500"})
  void inPlace(int n, int classes) {
    Problem problem = new Problem(n, classes, 6);
    problem.settings = new KdSoftmaxLoss.Settings(0.4, 2, 0.25, -100);
    float[] expected = problem.run().gradient;
    try (OwnedTensor s = Numbers.tensor(DType.F32, problem.student, n, classes);
        OwnedTensor t = Numbers.tensor(DType.F32, problem.teacher, n, classes);
        LongPointer y = new LongPointer(problem.labels)) {
      KdSoftmaxLoss.Logits student = KdSoftmaxLoss.Logits.of(s);
      KdSoftmaxLoss.Logits teacher = KdSoftmaxLoss.Logits.of(t);
      try (KdSoftmaxLoss loss =
          new KdSoftmaxLoss(
              problem.settings,
              new KdSoftmaxLoss.Batch(student, teacher, y, null, null, student))) {
        loss.compute();
        assertArrayEquals(expected, Numbers.read(s));
      }
    }
  }

  /** The gradient is the derivative of the loss that the same call returns. */
  @Test
  void finiteDifferences() {
    Problem problem = new Problem(3, 7, 4);
    problem.settings = new KdSoftmaxLoss.Settings(0.4, 2, 0.05, -100);
    float[] gradient = problem.run().gradient;
    float step = 0x1p-6f;
    for (int i = 0; i < 21; i++) {
      float before = problem.student[i];
      problem.student[i] = before + step;
      double above = problem.run().result.loss();
      problem.student[i] = before - step;
      double below = problem.run().result.loss();
      problem.student[i] = before;
      assertEquals((above - below) / (2 * step), gradient[i], 1e-3);
    }
  }

  @Test
  void noRows() {
    Problem problem = new Problem(0, 5, 1);
    assertEquals(new KdSoftmaxLoss.Result(0, 0, 0, 0), problem.run().result);
  }

  @Test
  void refusesALabelOutsideItsRangeAndWritesNothing() {
    try (OwnedTensor s = OwnedTensor.allocate(DType.F32, 3, 10);
        OwnedTensor g = Numbers.tensor(DType.F32, new float[] {1, 2, 3}, 3, 1);
        OwnedTensor gradient = Numbers.tensor(DType.F32, new float[30], 3, 10);
        LongPointer y = new LongPointer(4, 10, -100)) {
      Numbers.write(gradient, new float[] {5});
      KdSoftmaxLoss.Logits student = KdSoftmaxLoss.Logits.of(s);
      try (KdSoftmaxLoss loss =
          new KdSoftmaxLoss(
              KdSoftmaxLoss.Settings.of(1, 1),
              new KdSoftmaxLoss.Batch(
                  student, null, y, null, null, KdSoftmaxLoss.Logits.of(gradient)))) {
        IllegalArgumentException e = assertThrows(IllegalArgumentException.class, loss::compute);
        assertEquals(
            "kd_softmax_loss: label 10 in row 1 is outside [0, 10) and not ignore_index -100",
            e.getMessage());
        assertEquals(5, Numbers.read(gradient)[0]);
      }
      assertThrows(
          IllegalArgumentException.class,
          () -> new KdSoftmaxLoss.Batch(student, KdSoftmaxLoss.Logits.of(g), y, null, null, null));
      try (KdSoftmaxLoss loss =
          new KdSoftmaxLoss(
              new KdSoftmaxLoss.Settings(1, 1, 0.5, -100),
              new KdSoftmaxLoss.Batch(student, null, null, null, null, null))) {
        assertThrows(IllegalArgumentException.class, loss::compute);
      }
    }
    assertThrows(IllegalArgumentException.class, () -> KdSoftmaxLoss.Settings.of(1.5, 1));
    assertThrows(IllegalArgumentException.class, () -> KdSoftmaxLoss.Settings.of(0.5, 0));
  }
}
