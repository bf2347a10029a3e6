package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.ArrayList;
import java.util.List;
import java.util.function.DoubleUnaryOperator;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.TestDevice;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

class StepNoiseTest {
  // One element, less and more than the 16 and the 32 of a turn, an odd number before another
  // tensor,
  // several pieces.
  private static final int[] SIZES = {1, 15, 31, 32, 33, 0, 64, 1003, 131_101};
  private static final long KEY = 0x1122334455667788L;
  // Its lower half overflows on the way.
  private static final StepNoise NOISE = new StepNoise(3, 7, KEY, (1L << 32) - 5);

  /** Weights, gradients and moments of a list; every third weight is pruned, every fifth clipped. */
  private static final class Lists implements AutoCloseable {
    final float[][] gradients = new float[SIZES.length][];
    final List<OwnedTensor> weights = new ArrayList<>();
    final List<OwnedTensor> given = new ArrayList<>();
    final List<OwnedTensor> moments = new ArrayList<>();
    final List<BytePointer> fields = new ArrayList<>();
    final boolean bits;

    Lists(boolean bits) {
      this.bits = bits;
      for (int t = 0; t < SIZES.length; t++) {
        int n = SIZES[t];
        gradients[t] = Numbers.floats(n, 10 + t);
        given.add(Numbers.tensor(DType.F32, gradients[t]));
        weights.add(Numbers.tensor(DType.F32, new float[n]));
        moments.add(Numbers.tensor(DType.F32, new float[n]));
        boolean[] kept = new boolean[n];
        boolean[] passes = new boolean[n];
        for (int i = 0; i < n; i++) {
          kept[i] = i % 3 != 0;
          passes[i] = i % 5 != 0;
        }
        fields.add(Numbers.bits(kept));
        fields.add(Numbers.bits(passes));
      }
    }

    /** Whether an element gets a gradient. */
    boolean passes(int i) {
      return !bits || i % 3 != 0 && i % 5 != 0;
    }

    FusedSgd sgd(FusedSgd.Options options) {
      List<FusedSgd.Parameter> list = new ArrayList<>();
      for (int t = 0; t < SIZES.length; t++) {
        FusedSgd.Parameter p = FusedSgd.Parameter.of(weights.get(t), given.get(t), null);
        list.add(bits ? p.withMask(fields.get(2 * t)).withGate(fields.get(2 * t + 1)) : p);
      }
      return new FusedSgd(list, options);
    }

    void reset() {
      weights.forEach(w -> Numbers.write(w, new float[(int) w.elements()]));
    }

    float[][] read() {
      return weights.stream().map(Numbers::read).toArray(float[][]::new);
    }

    @Override
    public void close() {
      weights.forEach(OwnedTensor::close);
      given.forEach(OwnedTensor::close);
      moments.forEach(OwnedTensor::close);
      fields.forEach(BytePointer::close);
    }
  }

  /** One step of plain descent with rate 1 from zero: what was added is −d. */
  private static void check(boolean bits, FusedSgd.Options options, DoubleUnaryOperator clipped) {
    try (Lists lists = new Lists(bits)) {
      float[][] first = null;
      for (var isa : Variants.isas().toList()) {
        for (int threads : new int[] {1, 3}) {
          lists.reset();
          try (FusedSgd sgd = lists.sgd(options)) {
            sgd.noise(NOISE);
            Variants.with(isa, threads, sgd::step);
            float[][] after = lists.read();
            if (first == null) {
              first = after;
              long end = isReference(lists, after, clipped, options.maximize() ? -1 : 1);
              assertEquals(end, sgd.noise().counter());
            }
            for (int t = 0; t < after.length; t++) {
              assertArrayEquals(first[t], after[t], isa + " " + threads);
            }
          }
        }
      }
    }
  }

  /** Returns the block behind the last one. */
  private static long isReference(
      Lists lists, float[][] weights, DoubleUnaryOperator clipped, int sign) {
    long at = NOISE.counter();
    for (int t = 0; t < SIZES.length; t++) {
      double[] z = StepNoiseReference.normal(SIZES[t], KEY, at);
      for (int i = 0; i < SIZES[t]; i++) {
        double sum = clipped.applyAsDouble(lists.gradients[t][i]);
        double expected = lists.passes(i) ? -sign * (sum + 3 * z[i]) / 7 : 0;
        // Gradient, noise, sum and quotient are rounded once each.
        double error = 0x1p-22 * (Math.abs(sum) + Math.abs(3 * z[i]));
        assertEquals(expected, weights[t][i], error);
      }
      at += (SIZES[t] + 1) / 2;
    }
    return at;
  }

  @Test
  void isAddedToTheSumBeforeItIsDivided() {
    check(false, FusedSgd.Options.of(1), g -> g);
    check(false, FusedSgd.Options.of(1).withMaximize(true), g -> g);
  }

  @Test
  void leavesPrunedAndClippedWeightsAlone() {
    check(true, FusedSgd.Options.of(1), g -> g);
  }

  /** The sum is clipped by its own norm, the noise is not. */
  @Test
  void isNotClipped() {
    double squares = 0;
    for (int t = 0; t < SIZES.length; t++) {
      for (float g : Numbers.floats(SIZES[t], 10 + t)) {
        squares += (double) g * g;
      }
    }
    double factor = 2 / (Math.sqrt(squares) + 1e-6);
    check(false, FusedSgd.Options.of(1).withMaxNorm(2), g -> factor * g);
  }

  @Test
  void stepsHaveNoiseOfTheirOwn() {
    try (Lists lists = new Lists(false);
        FusedSgd sgd = lists.sgd(FusedSgd.Options.of(1))) {
      sgd.noise(NOISE);
      sgd.step();
      float[] first = lists.read()[8];
      StepNoise second = sgd.noise();
      lists.reset();
      sgd.step();
      float[] next = lists.read()[8];
      assertNotEquals(first[500], next[500]);
      // From a counter that was noted.
      sgd.noise(second);
      lists.reset();
      sgd.step();
      assertArrayEquals(next, lists.read()[8]);
      // Without.
      sgd.noise(null);
      assertNull(sgd.noise());
      lists.reset();
      sgd.step();
      assertEquals(-lists.gradients[8][500], lists.read()[8][500]);
    }
  }

  /** A gradient that is not finite skips the step whatever the noise, and the noise is not used again. */
  @Test
  void aSkippedStepTakesItsNumbers() {
    try (Lists lists = new Lists(false);
        FusedSgd sgd = lists.sgd(FusedSgd.Options.of(1).withSkipNonFinite(true))) {
      sgd.noise(NOISE);
      float[] bad = lists.gradients[8].clone();
      bad[77] = Float.NaN;
      Numbers.write(lists.given.get(8), bad);
      assertEquals(1, sgd.step().nonFinite());
      assertEquals(0, lists.read()[8][3]);
      assertNotEquals(NOISE.counter(), sgd.noise().counter());
    }
  }

  /** The first moment after one step is a tenth of d; the decay of weights comes after the noise. */
  @Test
  void isInTheMomentsOfAdamW() {
    try (Lists lists = new Lists(false)) {
      List<FusedAdamW.Parameter> list = new ArrayList<>();
      List<OwnedTensor> firstMoments = new ArrayList<>();
      for (int t = 0; t < SIZES.length; t++) {
        firstMoments.add(OwnedTensor.allocate(DType.F32, SIZES[t]));
        list.add(
            new FusedAdamW.Parameter(
                lists.weights.get(t),
                lists.given.get(t),
                firstMoments.get(t),
                lists.moments.get(t),
                null,
                null,
                null,
                null));
      }
      try (FusedAdamW adam = new FusedAdamW(list, FusedAdamW.Options.of(0.01))) {
        adam.noise(NOISE);
        adam.step();
        float[][] d = firstMoments.stream().map(Numbers::read).toArray(float[][]::new);
        for (float[] values : d) {
          for (int i = 0; i < values.length; i++) {
            values[i] = -values[i] / (float) (1 - 0.9);
          }
        }
        isReference(lists, d, g -> g, 1);
      } finally {
        firstMoments.forEach(OwnedTensor::close);
      }
    }
  }

  @Test
  void isNormal() {
    int n = 200_001;
    try (OwnedTensor weight = Numbers.tensor(DType.F32, new float[n]);
        OwnedTensor gradient = Numbers.tensor(DType.F32, new float[n]);
        FusedSgd sgd =
            new FusedSgd(
                List.of(FusedSgd.Parameter.of(weight, gradient, null)), FusedSgd.Options.of(1))) {
      sgd.noise(new StepNoise(3, 1, 5, 0));
      sgd.step();
      double total = 0;
      double squares = 0;
      double fourth = 0;
      int beyond = 0;
      for (float v : Numbers.read(weight)) {
        double z = -v / 3;
        total += z;
        squares += z * z;
        fourth += z * z * z * z;
        beyond += Math.abs(z) > 1.959964 ? 1 : 0;
      }
      assertEquals(0, total / n, 4 / Math.sqrt(n));
      assertEquals(1, squares / n, 4 * Math.sqrt(2.0 / n));
      assertEquals(3, fourth / n, 4 * Math.sqrt(96.0 / n));
      assertEquals(0.05, (double) beyond / n, 4 * Math.sqrt(0.0475 / n));
    }
  }

  @Test
  void refusesWhatIsNoNoise() {
    for (double bad : new double[] {0, -1, Double.NaN, 1e300}) {
      assertThrows(IllegalArgumentException.class, () -> new StepNoise(bad, 1, 5, 0));
      assertThrows(IllegalArgumentException.class, () -> new StepNoise(1, bad, 5, 0));
    }
  }

  @Test
  @Tag("device")
  void hasTheSameBitsOnADevice() {
    int n = 3001;
    try (TestDevice there = new TestDevice();
        OwnedTensor weight = Numbers.tensor(DType.F32, new float[n]);
        OwnedTensor copy = Numbers.tensor(DType.F32, new float[n]);
        OwnedTensor gradient = Numbers.tensor(DType.F32, Numbers.floats(n, 3));
        FusedSgd here =
            new FusedSgd(
                List.of(FusedSgd.Parameter.of(weight, gradient, null)), FusedSgd.Options.of(1));
        FusedSgd sgd =
            new FusedSgd(
                List.of(FusedSgd.Parameter.of(there.of(copy), there.of(gradient), null)),
                FusedSgd.Options.of(1))) {
      here.noise(NOISE);
      sgd.noise(NOISE);
      there.push();
      for (int step = 0; step < 2; step++) {
        here.step();
        sgd.step();
      }
      there.pull();
      assertArrayEquals(Numbers.read(weight), Numbers.read(copy));
      assertEquals(here.noise(), sgd.noise());
    }
  }

  /** The known answers of Random123, which the reference of the others must give. */
  @Test
  void theReferenceIsPhilox() {
    assertArrayEquals(
        new int[] {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
        StepNoiseReference.philox(0x299f31d0a4093822L, 0x85a308d3243f6a88L, 0x0370734413198a2eL));
  }
}
