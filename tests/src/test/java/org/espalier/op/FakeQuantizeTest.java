package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.InputException;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize.Job;
import org.espalier.op.FakeQuantize.NonFinite;
import org.espalier.op.FakeQuantizeReference.Grid;
import org.espalier.op.FakeQuantizeReference.Shape;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

@Tag("loops")
class FakeQuantizeTest {
  /**
   * What each shape is for. Every axis of each is tested, and one scale for the whole tensor.
   *
   * <ul>
   *   <li>{n}: around the 16 lanes of a vector, above the parallel threshold, above a piece of 32768;
   *       on its axis, a scale an element
   *   <li>empty tensors, with and without channels
   *   <li>rows: whole vectors, tails, rows that end inside a byte of bits, rows of one element
   *   <li>columns: narrow matrices whose period is and is not a whole vector, a rest of rows, wide
   *       ones with tails, several blocks of rows, short inner sizes
   *   <li>channels in the middle, with whole bytes of bits and without, and longer than a piece
   * </ul>
   */
  private static final long[][] SHAPES = {
    {1},
    {15},
    {16},
    {17},
    {131_101},
    {0},
    {0, 4},
    {4, 0},
    {4, 0, 3},
    {3, 5},
    {8, 64},
    {33, 130},
    {64, 1, 9},
    {1, 1},
    {9, 1},
    {1000, 3},
    {37, 48},
    {70, 257},
    {600, 300},
    {500, 4, 5},
    {3, 2, 3, 3},
    {24, 7, 45},
    {4, 6, 64},
    {2, 3, 40_000},
  };

  private static final FakeQuantize[] GRIDS = {
    FakeQuantize.symmetric(8),
    FakeQuantize.affine(8).rounding(FakeQuantize.Rounding.DIVIDE),
    FakeQuantize.affine(-8, 7),
  };

  private static Grid grid(FakeQuantize operation) {
    return new Grid(
        operation.min(),
        operation.max(),
        operation.isSymmetric(),
        operation.divisor(),
        operation.rounding() == FakeQuantize.Rounding.DIVIDE);
  }

  /** Values with a channel of zeros among them, and magnitudes that keep every scale usable. */
  private static float[] values(Shape shape, DType dtype, long seed) {
    float[] x = Numbers.floats(shape.elements(), seed);
    for (int i = 0; i < x.length; i++) {
      int c = shape.channelOf(i);
      // Alone in its channel, a denormal has no usable scale.
      boolean denormal = Math.abs(x[i]) < 1e-30f;
      x[i] =
          c % 7 == 3 || (denormal && shape.outer() * shape.inner() < 8) ? 0f : x[i] * (1 + c % 5);
      x[i] = Math.max(-60_000f, Math.min(60_000f, x[i])); // F16 ends at 65504
    }
    return Numbers.rounded(dtype, x);
  }

  @TestFactory
  Stream<DynamicTest> agreesWithTheReferenceOnEveryVariant() {
    return Arrays.stream(SHAPES)
        .flatMap(
            shape ->
                Arrays.stream(DType.values())
                    .map(
                        dtype ->
                            DynamicTest.dynamicTest(
                                dtype + Arrays.toString(shape),
                                () -> {
                                  checkForward(shape, null, dtype);
                                  for (int axis = 0; axis < shape.length; axis++) {
                                    checkForward(shape, axis, dtype);
                                  }
                                })));
  }

  private static void checkForward(long[] dimensions, Integer axis, DType dtype) {
    Shape shape = Shape.of(dimensions, axis);
    float[] x = values(shape, dtype, 7);
    for (FakeQuantize base : GRIDS) {
      FakeQuantize operation = axis == null ? base : base.perChannel(axis);
      Expected expected = Expected.observed(grid(operation), x, shape);
      for (FakeQuantize rule : List.of(operation, operation.given())) {
        Variants.each(
            new int[] {1, 3},
            (isa, threads) -> {
              String what =
                  rule + " of " + dtype + Arrays.toString(dimensions) + " " + isa + " " + threads;
              check(what, rule, dtype, dtype, dimensions, x, expected);
              if (dtype != DType.F32 && threads == 3) {
                check(what + " to F32", rule, dtype, DType.F32, dimensions, x, expected);
              }
            });
      }
    }
  }

  /** What the reference makes of a tensor. */
  private record Expected(
      float[] scale, int[] zeroPoint, float[] y, byte[] quantized, boolean[] gate) {
    static Expected observed(Grid grid, float[] x, Shape shape) {
      float[][] ranges = FakeQuantizeReference.ranges(x, shape);
      float[] scale = new float[shape.channels()];
      int[] zeroPoint = new int[shape.channels()];
      for (int c = 0; c < scale.length; c++) {
        scale[c] = FakeQuantizeReference.scale(grid, ranges[0][c], ranges[1][c]);
        zeroPoint[c] = FakeQuantizeReference.zeroPoint(grid, ranges[0][c], scale[c]);
      }
      return given(grid, x, shape, scale, zeroPoint);
    }

    static Expected given(Grid grid, float[] x, Shape shape, float[] scale, int[] zeroPoint) {
      int n = x.length;
      Expected expected = new Expected(scale, zeroPoint, new float[n], new byte[n], new boolean[n]);
      for (int i = 0; i < n; i++) {
        int c = shape.channelOf(i);
        int q = FakeQuantizeReference.quantized(grid, x[i], scale[c], zeroPoint[c]);
        expected.quantized[i] = (byte) q;
        expected.gate[i] = FakeQuantizeReference.passes(grid, x[i], scale[c], zeroPoint[c]);
        expected.y[i] = FakeQuantizeReference.value(q, scale[c], zeroPoint[c]);
      }
      return expected;
    }
  }

  private static void check(
      String what,
      FakeQuantize operation,
      DType dtype,
      DType yType,
      long[] dimensions,
      float[] values,
      Expected expected) {
    boolean given = operation.observer() == FakeQuantize.Observer.GIVEN;
    int channels = expected.scale.length;
    int n = values.length;
    try (OwnedTensor x = Numbers.tensor(dtype, values, dimensions);
        OwnedTensor y = OwnedTensor.allocate(yType, dimensions);
        BytePointer quantized = filled(n);
        BytePointer gate = filled((int) Bits.bytes(n));
        FloatPointer scale = new FloatPointer(Math.max(1, channels));
        IntPointer zeroPoint = new IntPointer(Math.max(1, channels))) {
      if (given) {
        scale.put(expected.scale, 0, channels);
        zeroPoint.put(expected.zeroPoint, 0, channels);
      }
      NonFinite nonFinite = operation.run(new Job(x, y, quantized, gate, scale, zeroPoint, null));
      assertEquals(new NonFinite(0, 0), nonFinite, what);
      float[] scales = new float[channels];
      int[] zeroPoints = new int[channels];
      scale.get(scales, 0, channels);
      zeroPoint.get(zeroPoints, 0, channels);
      assertArrayEquals(expected.scale, scales, what + " scale");
      assertArrayEquals(expected.zeroPoint, zeroPoints, what + " zero point");
      assertArrayEquals(Numbers.rounded(yType, expected.y), Numbers.read(y), what + " y");
      byte[] bytes = new byte[n];
      quantized.get(bytes, 0, n);
      assertArrayEquals(expected.quantized, bytes, what + " quantized");
      assertGate(what, expected.gate, gate);
      assertEquals(GUARD, quantized.get(n), what + " wrote past quantized");
    }
  }

  private static final byte GUARD = (byte) 0xa5;

  /** n bytes of rubbish and a guard after them. */
  private static BytePointer filled(int n) {
    byte[] bytes = new byte[n + 1];
    Arrays.fill(bytes, GUARD);
    return new BytePointer(bytes);
  }

  private static void assertGate(String what, boolean[] expected, BytePointer gate) {
    byte[] bits = new byte[(int) Bits.bytes(expected.length)];
    for (int i = 0; i < expected.length; i++) {
      if (expected[i]) {
        bits[i >> 3] |= (byte) (1 << (i & 7));
      }
    }
    byte[] actual = new byte[bits.length];
    gate.get(actual, 0, actual.length);
    assertArrayEquals(bits, actual, what + " gate");
    assertEquals(GUARD, gate.get(bits.length), what + " wrote past the gate");
  }

  /** Beyond the cache, where stores go past it, at any alignment, in place and not. */
  @ParameterizedTest
  @ValueSource(ints = {0, 1, 5, 16})
  void largeTensorsAtAnyAlignmentAndInPlace(int offset) {
    long[][] shapes = {{1201, 1003}, {300, 4096}};
    for (long[] dimensions : shapes) {
      int n = (int) (dimensions[0] * dimensions[1]);
      for (Integer axis : new Integer[] {null, 0, 1}) {
        FakeQuantize operation =
            axis == null ? FakeQuantize.symmetric(4) : FakeQuantize.symmetric(4).perChannel(axis);
        Shape shape = Shape.of(dimensions, axis);
        float[] values = values(shape, DType.F32, 3);
        Expected expected = Expected.observed(grid(operation), values, shape);
        Variants.each(
            new int[] {2},
            (isa, threads) -> {
              String what = operation + " at " + offset + " " + isa;
              try (OwnedTensor in = OwnedTensor.allocate(DType.F32, n + offset);
                  OwnedTensor out = OwnedTensor.allocate(DType.F32, n + offset + 1);
                  BytePointer gate = filled((int) Bits.bytes(n));
                  FloatPointer scale = new FloatPointer(shape.channels())) {
                Tensor x = Tensor.of(in.slice(offset, n).pointer(), DType.F32, dimensions);
                Tensor y = Tensor.of(out.slice(offset, n).pointer(), DType.F32, dimensions);
                Numbers.write(x, values);
                Numbers.write(out.slice(n + offset, 1), new float[] {42f});
                operation.run(Job.fake(x, y, gate, scale, null));
                assertArrayEquals(expected.y, Numbers.read(y), what);
                assertGate(what, expected.gate, gate);
                assertEquals(42f, Numbers.read(out.slice(n + offset, 1))[0], what);
                operation.run(Job.fake(x, x, gate, scale, null));
                assertArrayEquals(expected.y, Numbers.read(x), what + " in place");
              }
            });
      }
    }
  }

  /** Halves, saturation, infinities, NaN, denormals and places beyond 2^31. */
  @Test
  void specialValues() {
    float[] special = {
      0f,
      -0f,
      0.5f,
      1.5f,
      2.5f,
      -0.5f,
      -1.5f,
      -2.5f,
      127.5f,
      126.5f,
      -127.5f,
      -128.5f,
      1e9f,
      -1e9f,
      3e9f,
      -3e9f,
      1e20f,
      -1e20f,
      Float.MAX_VALUE,
      -Float.MAX_VALUE,
      Float.POSITIVE_INFINITY,
      Float.NEGATIVE_INFINITY,
      Float.NaN,
      Float.MIN_VALUE,
      8388609f,
      -8388609f,
      0.49999997f,
      127f,
      -127f,
      255f,
      254.5f,
      100f,
      3f
    };
    for (FakeQuantize operation :
        List.of(
            FakeQuantize.symmetric(8).given(),
            FakeQuantize.symmetricFull(8).given(),
            FakeQuantize.affine(8).given(),
            FakeQuantize.affine(8).rounding(FakeQuantize.Rounding.DIVIDE).given(),
            FakeQuantize.symmetric(2).given())) {
      for (int zero : new int[] {0, 1}) {
        Shape shape = new Shape(1, 1, special.length);
        Expected expected =
            Expected.given(grid(operation), special, shape, new float[] {1f}, new int[] {zero});
        assertEquals((byte) operation.min(), expected.quantized[22]);
        assertFalse(expected.gate[22]);
        assertEquals((byte) operation.max(), expected.quantized[20]);
        assertEquals((byte) operation.min(), expected.quantized[21]);
        assertEquals((byte) operation.max(), expected.quantized[16]);
        Variants.each(
            new int[] {1},
            (isa, threads) -> {
              try (OwnedTensor x = Numbers.tensor(DType.F32, special);
                  OwnedTensor y = OwnedTensor.allocate(DType.F32, special.length);
                  BytePointer quantized = filled(special.length);
                  BytePointer gate = filled((int) Bits.bytes(special.length));
                  FloatPointer scale = new FloatPointer(1f);
                  IntPointer zeroPoint = new IntPointer(new int[] {zero})) {
                NonFinite found =
                    operation.run(new Job(x, y, quantized, gate, scale, zeroPoint, null));
                assertEquals(new NonFinite(1, 2), found);
                assertArrayEquals(expected.y, Numbers.read(y));
                byte[] bytes = new byte[special.length];
                quantized.get(bytes, 0, bytes.length);
                assertArrayEquals(expected.quantized, bytes);
                assertGate(operation + " " + isa, expected.gate, gate);
              }
            });
      }
    }
  }

  /** What is not finite is left out of the range and counted, in every layout. */
  @Test
  void observersCountWhatIsNotFinite() {
    for (long[] dimensions : new long[][] {{5, 40}, {40, 5}, {3, 5, 40}, {2, 70_000}}) {
      for (int axis = -1; axis < dimensions.length; axis++) {
        FakeQuantize symmetric = FakeQuantize.symmetric(8);
        FakeQuantize affine = FakeQuantize.affine(8);
        for (FakeQuantize base : List.of(symmetric, affine)) {
          FakeQuantize operation = axis < 0 ? base : base.perChannel(axis);
          Shape shape = Shape.of(dimensions, axis < 0 ? null : axis);
          float[] x = values(shape, DType.F32, 5);
          x[1] = Float.NaN;
          x[17] = Float.POSITIVE_INFINITY;
          x[x.length - 1] = Float.NEGATIVE_INFINITY;
          x[x.length - 2] = Float.NaN;
          Expected expected = Expected.observed(grid(operation), x, shape);
          Variants.each(
              new int[] {2},
              (isa, threads) -> {
                try (OwnedTensor t = Numbers.tensor(DType.F32, x, dimensions);
                    BytePointer gate = filled((int) Bits.bytes(x.length));
                    FloatPointer scale = new FloatPointer(shape.channels());
                    IntPointer zeroPoint = new IntPointer(shape.channels())) {
                  NonFinite found = operation.run(Job.fake(t, t, gate, scale, zeroPoint));
                  assertEquals(new NonFinite(2, 2), found);
                  assertArrayEquals(expected.y, Numbers.read(t));
                  assertGate(operation + " " + isa, expected.gate, gate);
                }
              });
        }
      }
    }
  }

  @Test
  void aPrunedChannelGetsScaleOne() {
    try (OwnedTensor x = Numbers.tensor(DType.F32, new float[] {0, -0f, 0, 1, -2, 3}, 2, 3);
        OwnedTensor y = OwnedTensor.allocate(DType.F32, 2, 3);
        FloatPointer scale = new FloatPointer(2)) {
      FakeQuantize.symmetric(8).perChannel(0).run(Job.fake(x, y, null, scale, null));
      assertEquals(1f, scale.get(0));
      assertEquals(3f / 127f, scale.get(1));
      assertArrayEquals(new float[] {0, 0, 0}, Arrays.copyOf(Numbers.read(y), 3));
    }
  }

  /** Of observers that look at magnitudes, at ranges and at errors, on symmetric grids and affine ones. */
  @Test
  void noScaleIsBelowTheSmallest() {
    float[] values = {0, -0f, 0, 1e-40f, -1e-41f, 0, 1e-4f, -2e-4f, 3e-4f, 1, -2, 3};
    for (FakeQuantize base : List.of(FakeQuantize.symmetric(4), FakeQuantize.affine(4))) {
      for (FakeQuantize observer :
          List.of(base.minMax(), base.movingAverage(1), base.mse(8, 0.5f))) {
        try (OwnedTensor x = Numbers.tensor(DType.F32, values, 4, 3);
            FloatPointer scale = new FloatPointer(4);
            FloatPointer unbounded = new FloatPointer(1);
            IntPointer zeroPoint = new IntPointer(4);
            FloatPointer running = new FloatPointer(8)) {
          FakeQuantize.startRunning(running, 4);
          FakeQuantize bounded = observer.perChannel(0).smallestScale(0.01f);
          bounded.run(new Job(x, null, null, null, scale, zeroPoint, running));
          for (int c = 0; c < 3; c++) {
            assertEquals(0.01f, scale.get(c), bounded + " channel " + c);
          }
          FakeQuantize.startRunning(running, 1);
          observer.run(new Job(x.slice(9, 3), null, null, null, unbounded, zeroPoint, running));
          assertTrue(unbounded.get(0) > 0.01f);
          assertEquals(unbounded.get(0), scale.get(3));
        }
      }
    }
  }

  /** The full grid divides by 127.5, as the compressed-tensors format has it. */
  @ParameterizedTest
  @ValueSource(ints = {2, 3, 4, 5, 6, 7, 8})
  void everyWidth(int bits) {
    int half = 1 << (bits - 1);
    FakeQuantize symmetric = FakeQuantize.symmetric(bits);
    assertEquals(List.of(1 - half, half - 1), List.of(symmetric.min(), symmetric.max()));
    assertEquals(half - 1, symmetric.divisor());
    FakeQuantize full = FakeQuantize.symmetricFull(bits);
    assertEquals(List.of(-half, half - 1), List.of(full.min(), full.max()));
    assertEquals(half - 0.5f, full.divisor());
    FakeQuantize affine = FakeQuantize.affine(bits);
    assertEquals(List.of(0, 2 * half - 1), List.of(affine.min(), affine.max()));
    long[] dimensions = {6, 50};
    Shape shape = Shape.of(dimensions, 0);
    float[] x = values(shape, DType.F32, bits);
    for (FakeQuantize operation : List.of(symmetric, full, affine)) {
      FakeQuantize perChannel = operation.perChannel(-2);
      Expected expected = Expected.observed(grid(operation), x, shape);
      check(perChannel.toString(), perChannel, DType.F32, DType.F32, dimensions, x, expected);
    }
  }

  @Test
  void aListGivesWhatItsTensorsGive() {
    Random random = new Random(9);
    FakeQuantize operation = FakeQuantize.affine(8).perChannel(0);
    for (FakeQuantize rule : List.of(operation, operation.mse(10, 0.5f))) {
      try (PointerScope scope = new PointerScope()) {
        List<Job> jobs = new ArrayList<>();
        List<OwnedTensor> tensors = new ArrayList<>();
        List<float[]> expected = new ArrayList<>();
        for (int i = 0; i < 40; i++) {
          long[] dimensions = {
            1 + random.nextInt(20), 1 + random.nextInt(i % 9 == 0 ? 50_000 : 300)
          };
          Shape shape = Shape.of(dimensions, 0);
          OwnedTensor x = Numbers.tensor(DType.F32, values(shape, DType.F32, i), dimensions);
          OwnedTensor y = OwnedTensor.allocate(DType.F32, dimensions);
          tensors.add(x);
          tensors.add(y);
          FloatPointer scale = new FloatPointer(shape.channels());
          IntPointer zeroPoint = new IntPointer(shape.channels());
          rule.run(Job.fake(x, y, null, scale, zeroPoint));
          expected.add(Numbers.read(y));
          Numbers.write(y, new float[shape.elements()]);
          jobs.add(Job.fake(x, y, null, scale, zeroPoint));
        }
        try (FakeQuantize.Batch batch = rule.batch(jobs)) {
          assertEquals(40, batch.run().size());
        }
        for (int i = 0; i < jobs.size(); i++) {
          assertArrayEquals(expected.get(i), Numbers.read(jobs.get(i).y()));
        }
        tensors.forEach(OwnedTensor::close);
      }
    }
    try (FakeQuantize.Batch batch = operation.batch(List.of())) {
      assertEquals(List.of(), batch.run());
    }
  }

  @Test
  void movingAverages() {
    for (FakeQuantize base : List.of(FakeQuantize.symmetric(8), FakeQuantize.affine(8))) {
      for (int axis : new int[] {0, 1}) {
        long[] dimensions = {20, 33};
        FakeQuantize operation = base.perChannel(axis).movingAverage(0.25f);
        Shape shape = Shape.of(dimensions, axis);
        int channels = shape.channels();
        try (OwnedTensor x = OwnedTensor.allocate(DType.F32, dimensions);
            FloatPointer scale = new FloatPointer(channels);
            IntPointer zeroPoint = new IntPointer(channels);
            FloatPointer running = new FloatPointer(2 * channels)) {
          FakeQuantize.startRunning(running, channels);
          float[][] state = null;
          for (int step = 0; step < 4; step++) {
            float[] values = Numbers.floats(shape.elements(), 60 + step);
            Numbers.write(x, values);
            float[][] seen = FakeQuantizeReference.ranges(values, shape);
            if (state == null) {
              state = seen;
            } else {
              for (int k = 0; k < 2; k++) {
                for (int c = 0; c < channels; c++) {
                  state[k][c] = state[k][c] + 0.25f * (seen[k][c] - state[k][c]);
                }
              }
            }
            operation.run(new Job(x, null, null, null, scale, zeroPoint, running));
            for (int c = 0; c < channels; c++) {
              assertEquals(state[0][c], running.get(c));
              assertEquals(state[1][c], running.get(channels + c));
              float s = FakeQuantizeReference.scale(grid(operation), state[0][c], state[1][c]);
              assertEquals(s, scale.get(c));
              assertEquals(
                  FakeQuantizeReference.zeroPoint(grid(operation), state[0][c], s),
                  zeroPoint.get(c));
            }
          }
        }
      }
    }
  }

  /** The chosen clip is the best of all candidates, and the same everywhere, in every layout. */
  @ParameterizedTest
  @EnumSource(DType.class)
  void meanSquaredError(DType dtype) {
    int steps = 16;
    float smallest = 0.3f;
    for (long[] dimensions : new long[][] {{7, 130}, {300, 6}, {3, 5, 40}, {1, 70_001}}) {
      for (FakeQuantize base : List.of(FakeQuantize.symmetric(4), FakeQuantize.affine(4))) {
        for (int axis = -1; axis < dimensions.length; axis++) {
          FakeQuantize operation = (axis < 0 ? base : base.perChannel(axis)).mse(steps, smallest);
          Shape shape = Shape.of(dimensions, axis < 0 ? null : axis);
          if (shape.channels() > 1000) {
            continue; // a scale an element has nothing to search
          }
          float[] x = values(shape, dtype, 31);
          Grid grid = grid(operation);
          float[][] ranges = FakeQuantizeReference.ranges(x, shape);
          float[][] first = {null};
          Variants.each(
              new int[] {1, 3},
              (isa, threads) -> {
                try (OwnedTensor t = Numbers.tensor(dtype, x, dimensions);
                    FloatPointer scale = new FloatPointer(shape.channels());
                    IntPointer zeroPoint = new IntPointer(shape.channels())) {
                  operation.run(Job.observe(t, scale, zeroPoint));
                  float[] scales = new float[shape.channels()];
                  scale.get(scales, 0, scales.length);
                  if (first[0] != null) {
                    assertArrayEquals(first[0], scales, operation + " " + isa);
                    return;
                  }
                  first[0] = scales;
                  for (int c = 0; c < scales.length; c++) {
                    double best = Double.POSITIVE_INFINITY;
                    for (int i = 0; i <= steps; i++) {
                      float ratio = 1f - i * (1f - smallest) / steps;
                      float low = ranges[0][c] * ratio;
                      float s = FakeQuantizeReference.scale(grid, low, ranges[1][c] * ratio);
                      int z = FakeQuantizeReference.zeroPoint(grid, low, s);
                      best = Math.min(best, FakeQuantizeReference.error(grid, x, shape, c, s, z));
                    }
                    double chosen =
                        FakeQuantizeReference.error(grid, x, shape, c, scales[c], zeroPoint.get(c));
                    // Only the order of the sums differs.
                    assertEquals(best, chosen, 1e-12 * best, operation + " channel " + c);
                  }
                }
              });
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource(DType.class)
  void backwardLetsGradientPassWhereTheGateIsOne(DType dtype) {
    for (int n : new int[] {0, 1, 15, 16, 17, 1003, 131_101, 1_100_003}) {
      float[] gradY = Numbers.rounded(dtype, Numbers.floats(n, n));
      if (n > 2) {
        gradY[2] = Float.NaN; // hidden where the gate is 0
      }
      boolean[] gate = Numbers.randomBits(n, 0.7, 4);
      if (n > 2) {
        gate[2] = false;
      }
      float[] expected = new float[n];
      for (int i = 0; i < n; i++) {
        expected[i] = gate[i] ? gradY[i] : 0f;
      }
      Variants.each(
          new int[] {2},
          (isa, threads) -> {
            try (OwnedTensor in = Numbers.tensor(dtype, gradY);
                OwnedTensor out = OwnedTensor.allocate(dtype, n);
                BytePointer bits = Numbers.bits(gate)) {
              FakeQuantize.backward(in, bits, out);
              assertArrayEquals(expected, Numbers.read(out));
              FakeQuantize.backward(in, bits, in);
              assertArrayEquals(expected, Numbers.read(in));
            }
          });
    }
  }

  /** Learned scales and zero points: the formulas, in every layout, with the same bits everywhere. */
  @ParameterizedTest
  @EnumSource(DType.class)
  void scaleGradients(DType dtype) {
    long[][] shapes = {
      {1}, {17}, {6, 50}, {40, 7}, {600, 300}, {24, 7, 45}, {2, 3, 40_000}, {0, 3}
    };
    for (long[] dimensions : shapes) {
      for (int axis = -1; axis < dimensions.length; axis++) {
        for (FakeQuantize base : GRIDS) {
          FakeQuantize operation = axis < 0 ? base : base.perChannel(axis);
          Shape shape = Shape.of(dimensions, axis < 0 ? null : axis);
          int channels = shape.channels();
          float[] x = values(shape, dtype, 21);
          float[] gradY = Numbers.rounded(dtype, Numbers.floats(x.length, 22));
          Grid grid = grid(operation);
          float[] scales = new float[channels];
          int[] zeros = new int[channels];
          for (int c = 0; c < channels; c++) {
            scales[c] = 0.01f + 0.003f * (c % 11);
            zeros[c] = grid.symmetric() ? 0 : grid.min() + 3 + c % 5;
          }
          double[][] expected =
              FakeQuantizeReference.scaleGradient(grid, x, gradY, shape, scales, zeros);
          float factor =
              operation.scaleGradientFactor(
                  Tensor.ofAddress(64, 4L * x.length, DType.F32, dimensions));
          int perChannel = Math.max(1, shape.outer() * shape.inner());
          assertEquals(1 / Math.sqrt((double) perChannel * grid.max()), factor, 1e-7);
          float[][] first = {null, null};
          Variants.each(
              new int[] {1, 3},
              (isa, threads) -> {
                try (OwnedTensor tx = Numbers.tensor(dtype, x, dimensions);
                    OwnedTensor tg = Numbers.tensor(dtype, gradY, dimensions);
                    FloatPointer scale = new FloatPointer(Math.max(1, channels));
                    IntPointer zeroPoint = new IntPointer(Math.max(1, channels));
                    FloatPointer gradScale = new FloatPointer(Math.max(1, channels));
                    FloatPointer gradZero = new FloatPointer(Math.max(1, channels))) {
                  scale.put(scales, 0, channels);
                  zeroPoint.put(zeros, 0, channels);
                  operation.scaleGradient(
                      tx, tg, tg, scale, zeroPoint, gradScale, gradZero, factor);
                  float[] byScale = new float[channels];
                  float[] byZero = new float[channels];
                  gradScale.get(byScale, 0, channels);
                  gradZero.get(byZero, 0, channels);
                  String what = operation + Arrays.toString(dimensions) + " " + isa;
                  if (first[0] == null) {
                    first[0] = byScale;
                    first[1] = byZero;
                  }
                  assertArrayEquals(first[0], byScale, what);
                  assertArrayEquals(first[1], byZero, what);
                  float[] gradX = Numbers.read(tg);
                  double[] sizes = new double[channels];
                  for (int i = 0; i < x.length; i++) {
                    int c = shape.channelOf(i);
                    boolean passes = FakeQuantizeReference.passes(grid, x[i], scales[c], zeros[c]);
                    assertEquals(passes ? gradY[i] : 0f, gradX[i], what);
                    sizes[c] += Math.abs(gradY[i]);
                  }
                  for (int c = 0; c < channels; c++) {
                    // v is rounded once or twice to float: 2^-22 of at most 255 each.
                    double slack = sizes[c] * factor * 255 * 0x1p-22;
                    assertEquals(
                        expected[0][c] * factor,
                        byScale[c],
                        slack + Math.abs(expected[0][c] * factor) * 1e-6 + 1e-40,
                        what);
                    assertEquals(
                        expected[1][c] * factor, byZero[c], sizes[c] * factor * 1e-6 + 1e-40, what);
                  }
                }
              });
        }
      }
    }
  }

  @ParameterizedTest
  @EnumSource(DType.class)
  void dequantizeUndoesQuantize(DType dtype) {
    for (long[] dimensions : SHAPES) {
      for (int axis = -1; axis < dimensions.length; axis++) {
        for (FakeQuantize base : GRIDS) {
          FakeQuantize operation = axis < 0 ? base : base.perChannel(axis);
          Shape shape = Shape.of(dimensions, axis < 0 ? null : axis);
          float[] values = values(shape, dtype, 70);
          Expected expected = Expected.observed(grid(operation), values, shape);
          int channels = Math.max(1, shape.channels());
          Variants.each(
              new int[] {2},
              (isa, threads) -> {
                try (OwnedTensor x = Numbers.tensor(dtype, values, dimensions);
                    OwnedTensor y = OwnedTensor.allocate(dtype, dimensions);
                    BytePointer quantized = filled(values.length);
                    FloatPointer scale = new FloatPointer(channels);
                    IntPointer zeroPoint = new IntPointer(channels)) {
                  operation.run(Job.real(x, quantized, scale, zeroPoint));
                  operation.dequantize(quantized, y, scale, zeroPoint);
                  assertArrayEquals(Numbers.rounded(dtype, expected.y), Numbers.read(y), isa + "");
                }
              });
        }
      }
    }
  }

  @Test
  void badScalesNameTheirChannel() {
    FakeQuantize given = FakeQuantize.symmetric(8).perChannel(0).given();
    try (OwnedTensor x = Numbers.tensor(DType.F32, new float[] {1, 2, 3, 4, 5, 6}, 3, 2);
        OwnedTensor y = OwnedTensor.allocate(DType.F32, 3, 2)) {
      float[] bad = {
        0f, -1f, Float.NaN, Float.POSITIVE_INFINITY, Float.MIN_VALUE, 0x1p-128f, -Float.MIN_VALUE
      };
      for (float b : bad) {
        try (FloatPointer scale = new FloatPointer(1f, b, 1f)) {
          IllegalArgumentException e =
              assertThrows(
                  IllegalArgumentException.class,
                  () -> given.run(Job.fake(x, y, null, scale, null)));
          assertTrue(
              e.getMessage().startsWith("fake_quantize: tensor 0, channel 1: a scale of "),
              e.getMessage());
          assertArrayEquals(new float[6], Numbers.read(y));
          assertThrows(
              IllegalArgumentException.class,
              () -> given.scaleGradient(x, x, null, scale, null, scale, null, 1f));
        }
      }
      // The smallest scale whose reciprocal is finite.
      try (FloatPointer scale = new FloatPointer(1f, Math.nextUp(0x1p-128f), 1f)) {
        given.run(Job.fake(x, y, null, scale, null));
      }
      try (FloatPointer scale = new FloatPointer(1f, 1f, 1f);
          IntPointer zeroPoint = new IntPointer(0, 0, 128)) {
        IllegalArgumentException e =
            assertThrows(
                IllegalArgumentException.class,
                () -> given.run(Job.fake(x, y, null, scale, zeroPoint)));
        assertEquals(
            "fake_quantize: tensor 0, channel 2: a zero point of 128, outside -127 .. 127",
            e.getMessage());
      }
    }
  }

  /** The lowest channel is named, whatever the number of threads. */
  @Test
  void valuesTooSmallForAScaleNameTheirChannel() {
    for (long[] dimensions : new long[][] {{900, 400}, {400, 900}}) {
      for (int axis : new int[] {0, 1}) {
        float[] values = new float[360_000];
        Arrays.fill(values, 1f);
        Shape shape = Shape.of(dimensions, axis);
        for (int i = 0; i < values.length; i++) {
          if (shape.channelOf(i) == 123 || shape.channelOf(i) == 321) {
            values[i] = 1e-40f;
          }
        }
        try (OwnedTensor x = Numbers.tensor(DType.F32, values, dimensions);
            FloatPointer scale = new FloatPointer(900)) {
          for (FakeQuantize operation :
              List.of(FakeQuantize.symmetric(8), FakeQuantize.symmetric(8).mse(4, 0.5f))) {
            InputException e =
                assertThrows(
                    InputException.class,
                    () -> operation.perChannel(axis).run(Job.fake(x, x, null, scale, null)));
            assertTrue(
                e.getMessage().startsWith("fake_quantize: tensor 0, channel 123: its values give"),
                e.getMessage());
          }
        }
      }
    }
  }

  @Test
  void refusesWhatDoesNotFit() {
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.symmetric(1));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.affine(9));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.affine(-128, 128));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.affine(5, 5));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.symmetric(1, 9, 9));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.symmetric(-9, 9, 0));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.symmetric(8).mse(0, 0.5f));
    assertThrows(IllegalArgumentException.class, () -> FakeQuantize.symmetric(8).movingAverage(0));
    for (float bad : new float[] {0, -1, 0x1p-128f, Float.NaN, Float.POSITIVE_INFINITY}) {
      assertThrows(
          IllegalArgumentException.class, () -> FakeQuantize.symmetric(8).smallestScale(bad));
    }
    try (OwnedTensor x = OwnedTensor.allocate(DType.BF16, 4, 4);
        OwnedTensor y = OwnedTensor.allocate(DType.F16, 4, 4);
        OwnedTensor small = OwnedTensor.allocate(DType.F32, 3);
        FloatPointer scale = new FloatPointer(3);
        BytePointer bits = new BytePointer(1)) {
      assertThrows(IllegalArgumentException.class, () -> Job.fake(x, y, null, scale, null));
      assertThrows(IllegalArgumentException.class, () -> Job.fake(x, small, null, scale, null));
      assertThrows(IllegalArgumentException.class, () -> Job.fake(x, x, bits, scale, null));
      FakeQuantize operation = FakeQuantize.symmetric(8);
      assertEquals(
          "scale holds 3 elements, 4 are needed",
          assertThrows(
                  IllegalArgumentException.class,
                  () -> operation.perChannel(0).run(Job.observe(x, scale, null)))
              .getMessage());
      assertThrows(
          IllegalArgumentException.class,
          () -> operation.perChannel(2).run(Job.observe(x, scale, null)));
      assertThrows(
          IllegalArgumentException.class,
          () -> operation.movingAverage(0.1f).run(Job.observe(x, scale, null)));
      assertThrows(
          IllegalArgumentException.class,
          () -> FakeQuantize.affine(8).run(Job.observe(x, scale, null)));
      assertThrows(IllegalArgumentException.class, () -> FakeQuantize.backward(x, bits, x));
    }
  }

  /** Of grids below 0 it was NaN, and infinite of those up to 0. */
  @Test
  void theFactorOfLearnedScalesIsANumberOnEveryGrid() {
    Tensor x = Tensor.ofAddress(64, 4L * 50, DType.F32, 50);
    assertEquals(1 / Math.sqrt(50 * 127), FakeQuantize.symmetric(8).scaleGradientFactor(x), 1e-8);
    assertEquals(1 / Math.sqrt(50 * 3), FakeQuantize.affine(-8, 3).scaleGradientFactor(x), 1e-8);
    assertEquals(
        1 / Math.sqrt(50 * 100), FakeQuantize.affine(-100, -50).scaleGradientFactor(x), 1e-8);
    assertEquals(
        1 / Math.sqrt(50 * 128), FakeQuantize.affine(-128, 0).scaleGradientFactor(x), 1e-8);
  }
}
