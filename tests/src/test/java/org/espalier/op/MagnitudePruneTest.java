package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.InputException;
import org.espalier.backend.Isa;
import org.espalier.device.CudaStream;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.device.TestDevice;
import org.espalier.op.MagnitudePrune.Amount;
import org.espalier.op.MagnitudePrune.Count;
import org.espalier.op.MagnitudePrune.Pattern;
import org.espalier.op.MagnitudePrune.Rule;
import org.espalier.op.MagnitudePrune.Scope;
import org.espalier.op.MagnitudePrune.Sparsity;
import org.espalier.op.MagnitudePrune.Threshold;
import org.espalier.op.MagnitudePrune.Weights;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

@Tag("loops")
class MagnitudePruneTest {
  private static final List<Rule> RULES =
      List.of(
          new Threshold(0f),
          new Threshold(0.3f),
          new Threshold(Float.POSITIVE_INFINITY),
          new Amount(0, Scope.GLOBAL),
          new Amount(0.5, Scope.GLOBAL),
          new Amount(0.5, Scope.TENSOR),
          new Amount(0.013, Scope.TENSOR),
          new Amount(1, Scope.GLOBAL),
          new Count(1, Scope.GLOBAL),
          new Count(777, Scope.GLOBAL),
          new Sparsity(0.1, Scope.GLOBAL),
          new Sparsity(0.7, Scope.GLOBAL),
          new Sparsity(0.7, Scope.TENSOR));

  /** Tensors of every size in one list, some with an earlier mask, under every rule and variant. */
  @ParameterizedTest
  @EnumSource(DType.class)
  void agreesWithTheReference(DType dtype) {
    float[][] weights = new float[Numbers.SIZES.length][];
    boolean[][] none = new boolean[weights.length][];
    boolean[][] some = new boolean[weights.length][];
    for (int t = 0; t < weights.length; t++) {
      weights[t] = Numbers.rounded(dtype, Numbers.floats(Numbers.SIZES[t], t));
      some[t] = t % 3 == 0 ? null : Numbers.randomBits(weights[t].length, 0.6, 50 + t);
    }
    for (Rule rule : RULES) {
      checkEverywhere(dtype, weights, none, rule);
      checkEverywhere(dtype, weights, some, rule);
    }
  }

  /** Large enough for the sampled bracket, in one call of 400,000 weights over uneven tensors. */
  @ParameterizedTest
  @EnumSource(DType.class)
  void findsTheKthAmongMany(DType dtype) {
    float[][] weights = new float[5][];
    boolean[][] earlier = new boolean[5][];
    int[] sizes = {100_003, 0, 250_000, 1, 49_996};
    for (int t = 0; t < sizes.length; t++) {
      weights[t] = Numbers.rounded(dtype, Numbers.floats(sizes[t], 300 + t));
    }
    earlier[2] = Numbers.randomBits(sizes[2], 0.1, 7);
    for (double amount : new double[] {1e-5, 0.03, 0.5, 0.97, 0.99999}) {
      checkEverywhere(dtype, weights, new boolean[5][], new Amount(amount, Scope.GLOBAL));
      checkEverywhere(dtype, weights, earlier, new Amount(amount, Scope.GLOBAL));
    }
  }

  @Test
  void tiesGoToTheLowestIndexInListOrder() {
    Random random = new Random(11);
    int n = 200_003;
    float[][] kinds = new float[5][n];
    for (int i = 0; i < n; i++) {
      kinds[0][i] = -0.5f;
      kinds[1][i] = random.nextBoolean() ? (i % 2 == 0 ? 0f : -0f) : (float) random.nextGaussian();
      kinds[2][i] = (random.nextInt(255) - 127) * 0.003f; // an int8 grid
      kinds[3][i] = random.nextInt(100) == 0 ? random.nextFloat() : 1f;
      kinds[4][i] = Float.MIN_VALUE * random.nextInt(5000);
    }
    for (float[] kind : kinds) {
      float[][] list = {Arrays.copyOf(kind, 70_001), Arrays.copyOfRange(kind, 70_001, n)};
      for (double amount : new double[] {0.001, 0.25, 0.5, 0.9}) {
        checkEverywhere(DType.F32, list, new boolean[2][], new Amount(amount, Scope.GLOBAL));
      }
    }
  }

  /** Every rule, with and without masks, in place and beside; then the same batch again. */
  @ParameterizedTest
  @EnumSource(DType.class)
  @Tag("device")
  void aDevicePrunesTheSame(DType dtype) {
    List<Rule> rules = new ArrayList<>(RULES);
    for (int[] pattern : new int[][] {{1, 2}, {2, 4}, {3, 8}, {5, 32}}) {
      rules.add(new Pattern(pattern[0], pattern[1]));
    }
    int[] columns = {32, 320, 0, 1600, 32};
    for (Rule rule : rules) {
      try (TestDevice there = new TestDevice();
          CudaStream stream = CudaStream.create(there.device());
          PointerScope scope = new PointerScope()) {
        List<Weights> host = new ArrayList<>();
        List<Weights> onDevice = new ArrayList<>();
        List<Tensor> expected = new ArrayList<>();
        List<Tensor> actual = new ArrayList<>();
        List<BytePointer[]> masks = new ArrayList<>();
        for (int t = 0; t < columns.length; t++) {
          int n = 3 * columns[t];
          float[] values = Numbers.floats(n, t);
          boolean inPlace = t % 2 == 0;
          Tensor a = tensor(dtype, columns[t], values);
          Tensor b = tensor(dtype, columns[t], values);
          Tensor out = inPlace ? a : tensor(dtype, columns[t], values);
          Tensor outThere = inPlace ? b : tensor(dtype, columns[t], values);
          BytePointer earlier = t == 3 ? null : Numbers.bits(Numbers.randomBits(n, 0.6, 60 + t));
          BytePointer[] mask = {
            new BytePointer(Math.max(1, Bits.bytes(n))), new BytePointer(Math.max(1, Bits.bytes(n)))
          };
          host.add(new Weights("t" + t, a, out, earlier, mask[0], -1));
          Tensor weights = there.of(b);
          onDevice.add(
              new Weights(
                  "t" + t,
                  weights,
                  inPlace ? weights : there.of(outThere),
                  there.of(earlier, Bits.bytes(n)),
                  there.of(mask[1], Bits.bytes(n)),
                  -1));
          expected.add(out);
          actual.add(outThere);
          masks.add(mask);
        }
        there.push();
        try (MagnitudePrune.Batch batch = MagnitudePrune.batch(onDevice, rule)) {
          for (int turn = 0; turn < 2; turn++) {
            MagnitudePrune.Result result = MagnitudePrune.prune(host, rule);
            if (turn == 0) {
              assertEquals(result, batch.run());
            } else {
              batch.queue(stream);
              assertEquals(result, batch.result(stream));
            }
            there.pull();
            for (int t = 0; t < columns.length; t++) {
              String what = rule + ", tensor " + t + ", turn " + turn;
              assertArrayEquals(bytes(expected.get(t)), bytes(actual.get(t)), what);
              BytePointer[] mask = masks.get(t);
              long n = Bits.bytes(3L * columns[t]);
              assertArrayEquals(
                  OptimizerSubject.bytes(mask[0], n), OptimizerSubject.bytes(mask[1], n), what);
            }
          }
        }
      }
    }
  }

  @Test
  @Tag("device")
  void aDeviceSaysWhatIsWrong() {
    try (TestDevice there = new TestDevice();
        OwnedTensor w = Numbers.tensor(DType.F32, Numbers.floats(40, 1))) {
      Weights weights = Weights.of("w", there.of(w)).inPlace();
      there.push();
      try (MagnitudePrune.Batch batch =
          MagnitudePrune.batch(List.of(weights), new Count(41, Scope.GLOBAL))) {
        InputException e = assertThrows(InputException.class, batch::run);
        assertTrue(e.getMessage().contains("more than what remains"), e.getMessage());
        batch.rule(new Count(40, Scope.GLOBAL));
        assertEquals(40, batch.run().pruned());
        assertThrows(IllegalArgumentException.class, () -> batch.rule(new Count(1, Scope.TENSOR)));
        assertThrows(
            IllegalArgumentException.class, () -> batch.rule(new Amount(0.5, Scope.GLOBAL)));
      }
      assertThrows(
          IllegalArgumentException.class,
          () -> MagnitudePrune.select(List.of(weights), new Count(1, Scope.GLOBAL)));
      assertThrows(
          IllegalArgumentException.class,
          () -> MagnitudePrune.prune(List.of(weights, Weights.of("host", w)), RULES.get(0)));
      assertEquals(
          new MagnitudePrune.Result(0, 0, 0, List.of()),
          MagnitudePrune.prune(List.of(), new Amount(0.5, Scope.GLOBAL)));
    }
  }

  private static Tensor tensor(DType dtype, int columns, float[] values) {
    OwnedTensor memory = OwnedTensor.allocate(dtype, 3, columns);
    Numbers.write(memory, Numbers.rounded(dtype, values));
    return memory;
  }

  private static byte[] bytes(Tensor tensor) {
    return OptimizerSubject.bytes(new BytePointer(tensor.pointer()), tensor.bytes());
  }

  /** Neighbours that are all alike mislead a sample of neighbours; some brackets miss. */
  @Test
  void isExactWhereTheSampleMisleads() {
    for (int seed = 0; seed < 6; seed++) {
      Random random = new Random(seed);
      float[] weights = new float[200_000];
      float value = 0;
      for (int i = 0; i < weights.length; i++) {
        if (i % 512 == 0) {
          value = (float) random.nextGaussian();
        }
        weights[i] = value + (float) random.nextGaussian() * 1e-5f;
      }
      float[][] list = {weights};
      checkEverywhere(DType.F32, list, new boolean[1][], new Amount(0.5, Scope.GLOBAL));
      checkEverywhere(DType.F32, list, new boolean[1][], new Amount(0.01, Scope.GLOBAL));
    }
  }

  @Test
  void aNanIsLargerThanEverything() {
    float[] w = Numbers.floats(100_000, 5);
    for (int i = 0; i < w.length; i += 10) {
      // Payloads and signs differ; all are one magnitude.
      w[i] = Float.intBitsToFloat((i % 20 == 0 ? 0x7f800001 : 0xffc12345) + i);
    }
    w[1] = Float.NEGATIVE_INFINITY;
    w[99_999] = Float.POSITIVE_INFINITY;
    float[][] list = {w};
    for (Rule rule :
        List.of(
            new Threshold(Float.POSITIVE_INFINITY),
            new Amount(0.5, Scope.GLOBAL),
            new Count(90_000, Scope.GLOBAL),
            new Count(90_001, Scope.GLOBAL),
            new Amount(1, Scope.GLOBAL))) {
      checkEverywhere(DType.F32, list, new boolean[1][], rule);
    }
    try (OwnedTensor tensor = Numbers.tensor(DType.F32, w)) {
      Weights weights = Weights.of("w", tensor);
      assertTrue(
          Float.isNaN(
              MagnitudePrune.prune(List.of(weights), new Count(90_001, Scope.GLOBAL)).threshold()));
      assertEquals(
          Float.POSITIVE_INFINITY,
          MagnitudePrune.prune(List.of(weights), new Count(90_000, Scope.GLOBAL)).threshold());
    }
  }

  @Test
  void theThresholdIsTheLargestPrunedMagnitude() {
    float[][] list = {Numbers.floats(150_000, 1), Numbers.floats(99, 2)};
    boolean[][] earlier = {Numbers.randomBits(150_000, 0.7, 3), null};
    try (PointerScope scope = new PointerScope();
        OwnedTensor a = Numbers.tensor(DType.F32, list[0]);
        OwnedTensor b = Numbers.tensor(DType.F32, list[1])) {
      List<Weights> weights =
          List.of(Weights.of("a", a).maskIn(Numbers.bits(earlier[0])), Weights.of("b", b));
      for (long k : new long[] {1, 5000, 90_000}) {
        MagnitudePrune.Result result = MagnitudePrune.prune(weights, new Count(k, Scope.GLOBAL));
        assertEquals(
            MagnitudePruneReference.kthSmallest(list, earlier, k), result.threshold(), 0.0);
      }
      assertEquals(0f, MagnitudePrune.prune(weights, new Count(0, Scope.GLOBAL)).threshold());
      assertTrue(
          Float.isNaN(MagnitudePrune.prune(weights, new Amount(0.5, Scope.TENSOR)).threshold()));
    }
  }

  @ParameterizedTest
  @EnumSource(DType.class)
  void patternsRunAlongAnyAxis(DType dtype) {
    long[][] shapes = {{8}, {6, 64}, {5, 16, 3, 3}, {768, 40}, {3, 8, 17}, {0, 4}};
    for (long[] shape : shapes) {
      int n = 1;
      for (long size : shape) {
        n *= (int) size;
      }
      float[] w = Numbers.rounded(dtype, Numbers.floats(n, n));
      for (int i = 0; i + 3 < n; i += 7) {
        w[i + 3] = -w[i]; // ties
      }
      for (int axis = 0; axis < shape.length; axis++) {
        int inner = 1;
        for (int a = axis + 1; a < shape.length; a++) {
          inner *= (int) shape[a];
        }
        for (int[] pattern : new int[][] {{2, 4}, {1, 2}, {4, 8}, {3, 16}, {1, 1}, {5, 32}}) {
          if (shape[axis] % pattern[1] != 0) {
            continue;
          }
          for (boolean[] earlier : new boolean[][] {null, Numbers.randomBits(n, 0.7, n)}) {
            boolean[] expected =
                MagnitudePruneReference.pattern(w, earlier, inner, pattern[0], pattern[1]);
            checkEverywhere(
                dtype,
                new float[][] {w},
                new boolean[][] {earlier},
                new Pattern(pattern[0], pattern[1]),
                new boolean[][] {expected},
                shape,
                axis);
          }
        }
      }
    }
  }

  /** A selection, applied out of order to pieces of tensors, gives what one call gives. */
  @ParameterizedTest
  @EnumSource(DType.class)
  void piecesGiveWhatOneCallGives(DType dtype) {
    float[] values = Numbers.rounded(dtype, Numbers.floats(300_000, 9));
    for (int i = 0; i < values.length; i += 3) {
      values[i] = 0.25f; // the cut falls among ties, inside a piece
    }
    boolean[] earlier = Numbers.randomBits(values.length, 0.8, 10);
    for (Rule rule :
        List.of(
            new Amount(0.3, Scope.GLOBAL),
            new Amount(0.3, Scope.TENSOR),
            new Threshold(0.25f),
            new Amount(0.9, Scope.GLOBAL))) {
      try (PointerScope scope = new PointerScope();
          OwnedTensor whole = Numbers.tensor(dtype, values);
          OwnedTensor once = OwnedTensor.allocate(dtype, values.length);
          OwnedTensor pieces = OwnedTensor.allocate(dtype, values.length)) {
        BytePointer maskIn = Numbers.bits(earlier);
        BytePointer maskOnce = Numbers.bits(new boolean[values.length]);
        BytePointer maskPieces = Numbers.bits(new boolean[values.length]);
        Weights first = Weights.of("first", whole.slice(0, 100_000)).maskIn(maskIn);
        BytePointer second = at(maskIn, 100_000);
        List<Weights> list =
            List.of(first, Weights.of("second", whole.slice(100_000, 200_000)).maskIn(second));
        MagnitudePrune.Result result =
            MagnitudePrune.prune(
                List.of(
                    list.get(0).to(once.slice(0, 100_000)).maskOut(maskOnce),
                    list.get(1).to(once.slice(100_000, 200_000)).maskOut(at(maskOnce, 100_000))),
                rule);
        MagnitudePrune.Selection selection = MagnitudePrune.select(list, rule);
        assertEquals(result.threshold(), selection.threshold());
        assertEquals(result.total(), selection.total());
        long pruned = 0;
        int step = 30_000;
        for (int start = values.length - step; start >= 0; start -= step) {
          for (int t = 0; t < 2; t++) {
            int from = Math.max(start, t == 0 ? 0 : 100_000);
            int to = Math.min(start + step, t == 0 ? 100_000 : 300_000);
            if (from < to) {
              pruned +=
                  selection.apply(
                      t,
                      from - (t == 0 ? 0 : 100_000),
                      Weights.of("piece", whole.slice(from, to - from))
                          .to(pieces.slice(from, to - from))
                          .maskIn(at(maskIn, from))
                          .maskOut(at(maskPieces, from)));
            }
          }
        }
        assertEquals(result.pruned(), pruned);
        assertArrayEquals(Numbers.read(once), Numbers.read(pieces));
        assertEquals(bytes(maskOnce), bytes(maskPieces));
        assertEquals(
            result,
            selection.apply(
                List.of(
                    list.get(0).to(once.slice(0, 100_000)),
                    list.get(1).to(once.slice(100_000, 200_000)))));
      }
    }
  }

  /** At every address that a 4-byte element may have, in place and into other memory. */
  @Test
  void addressesNeedNoAlignmentBeyondTheElement() {
    float[] w = Numbers.floats(100_001, 4);
    boolean[][] expected =
        MagnitudePruneReference.masks(
            new float[][] {w}, new boolean[1][], new Amount(0.4, Scope.GLOBAL));
    for (Isa isa : Variants.isas().toList()) {
      Variants.with(
          isa,
          2,
          () -> {
            try (OwnedTensor memory = OwnedTensor.allocate(DType.F32, w.length + 16);
                OwnedTensor other = OwnedTensor.allocate(DType.F32, w.length + 16)) {
              for (int offset : new int[] {1, 3, 8, 15}) {
                Tensor tensor = memory.slice(offset, w.length);
                Tensor out = other.slice(16 - offset, w.length);
                Numbers.write(tensor, w);
                MagnitudePrune.prune(
                    List.of(Weights.of("w", tensor).to(out)), new Amount(0.4, Scope.GLOBAL));
                float[] kept = Numbers.read(out);
                for (int i = 0; i < w.length; i++) {
                  assertEquals(expected[0][i] ? w[i] : 0f, kept[i], 0f);
                }
              }
            }
          });
    }
  }

  @Test
  void anEmptyListIsPruned() {
    assertEquals(
        new MagnitudePrune.Result(0, 0, 0f, List.of()),
        MagnitudePrune.prune(List.of(), new Amount(0.5, Scope.GLOBAL)));
  }

  @Test
  void halvesRoundToEven() {
    float[] w = {5, 4, 3, 2, 1};
    try (OwnedTensor tensor = Numbers.tensor(DType.F32, w)) {
      List<Weights> list = List.of(Weights.of("w", tensor));
      assertEquals(2, MagnitudePrune.prune(list, new Amount(0.5, Scope.GLOBAL)).pruned());
      assertEquals(0, MagnitudePrune.prune(list, new Amount(0.1, Scope.GLOBAL)).pruned());
      assertEquals(2, MagnitudePrune.prune(list, new Amount(0.3, Scope.GLOBAL)).pruned());
      assertEquals(4, MagnitudePrune.prune(list, new Amount(0.7, Scope.GLOBAL)).pruned());
    }
  }

  @Test
  void refusesWhatCannotBe() {
    try (OwnedTensor tensor = OwnedTensor.allocate(DType.F32, 8, 63);
        OwnedTensor small = OwnedTensor.allocate(DType.F32, 8);
        BytePointer bits = new BytePointer(2)) {
      Weights weights = Weights.of("layer.weight", tensor);
      assertMessage(
          "layer.weight: axis 1 of F32[8, 63] is not a multiple of 4, as the pattern 2:4 needs",
          () -> MagnitudePrune.prune(List.of(weights), new Pattern(2, 4)));
      assertMessage(
          "layer.weight: F32[8, 63] has no axis 2 for a pattern",
          () -> MagnitudePrune.prune(List.of(weights.axis(2)), new Pattern(2, 4)));
      assertMessage(
          "magnitude_prune: 505 weights to prune, 504 remain",
          () -> MagnitudePrune.prune(List.of(weights), new Count(505, Scope.GLOBAL)));
      bits.put((byte) 0b11101)
          .put(1, (byte) 0xff); // one bit a weight; the second byte is no weight's
      Weights masked = new Weights("small.weight", small, null, bits, null, -1);
      assertMessage(
          "small.weight: 5 weights to prune of each tensor, 4 remain",
          () -> MagnitudePrune.prune(List.of(weights, masked), new Count(5, Scope.TENSOR)));
      assertMessage(
          "amount 1.5; a fraction from 0 to 1 is needed", () -> new Amount(1.5, Scope.GLOBAL));
      assertMessage(
          "sparsity NaN; a fraction from 0 to 1 is needed",
          () -> new Sparsity(Double.NaN, Scope.GLOBAL));
      assertMessage("count -1; 0 or more is needed", () -> new Count(-1, Scope.GLOBAL));
      assertMessage("threshold -1.0; a number from 0 on is needed", () -> new Threshold(-1f));
      assertMessage("pattern 4:2; n:m with 1 <= n <= m <= 64 is needed", () -> new Pattern(4, 2));
      assertMessage("pattern \"2-4\"; n:m is needed, such as 2:4", () -> Pattern.parse("2-4"));
      assertThrows(IllegalArgumentException.class, () -> weights.to(small));
      assertThrows(IllegalArgumentException.class, () -> weights.maskIn(bits));
      assertThrows(
          IllegalArgumentException.class,
          () -> MagnitudePrune.select(List.of(weights), new Pattern(2, 4)));
      MagnitudePrune.Selection selection =
          MagnitudePrune.select(List.of(weights), new Amount(0.5, Scope.GLOBAL));
      assertThrows(
          IllegalArgumentException.class,
          () -> selection.apply(0, 4, Weights.of("piece", small).maskOut(bits)));
      assertThrows(
          IndexOutOfBoundsException.class,
          () -> selection.apply(0, 500, Weights.of("piece", small)));
      assertThrows(
          IllegalArgumentException.class,
          () -> selection.apply(List.of(Weights.of("layer.weight", small))));
    }
  }

  private static void checkEverywhere(
      DType dtype, float[][] weights, boolean[][] earlier, Rule rule) {
    checkEverywhere(
        dtype,
        weights,
        earlier,
        rule,
        MagnitudePruneReference.masks(weights, earlier, rule),
        null,
        -1);
  }

  /** On every instruction set with one to three threads: in place, elsewhere and mask only. */
  private static void checkEverywhere(
      DType dtype,
      float[][] weights,
      boolean[][] earlier,
      Rule rule,
      boolean[][] expected,
      long[] shape,
      int axis) {
    Variants.each(
        new int[] {1, 2, 3},
        (isa, threads) -> {
          List<OwnedTensor> tensors = new ArrayList<>();
          try (PointerScope scope = new PointerScope()) {
            List<Weights> maskOnly = new ArrayList<>();
            List<Weights> elsewhere = new ArrayList<>();
            List<Weights> inPlace = new ArrayList<>();
            for (int t = 0; t < weights.length; t++) {
              long[] size = shape == null ? new long[] {weights[t].length} : shape;
              OwnedTensor in = Numbers.tensor(dtype, weights[t], size);
              OwnedTensor out = OwnedTensor.allocate(dtype, size);
              tensors.add(in);
              tensors.add(out);
              BytePointer mask =
                  Numbers.bits(earlier[t] == null ? allTrue(weights[t].length) : earlier[t]);
              boolean given = earlier[t] != null;
              Weights w = Weights.of("w" + t, in).maskIn(given ? mask : null).axis(axis);
              maskOnly.add(w.maskOut(Numbers.bits(allTrue(weights[t].length))));
              elsewhere.add(w.to(out));
              inPlace.add(w.inPlace().maskOut(mask));
            }
            String what = dtype + " " + rule + " " + isa + " " + threads;
            check(what, weights, expected, maskOnly, MagnitudePrune.prune(maskOnly, rule));
            check(what, weights, expected, elsewhere, MagnitudePrune.prune(elsewhere, rule));
            check(what, weights, expected, inPlace, MagnitudePrune.prune(inPlace, rule));
          } finally {
            tensors.forEach(OwnedTensor::close);
          }
        });
  }

  private static void check(
      String what,
      float[][] weights,
      boolean[][] expected,
      List<Weights> list,
      MagnitudePrune.Result result) {
    long all = 0;
    long pruned = 0;
    for (int t = 0; t < weights.length; t++) {
      Weights w = list.get(t);
      float[] out = w.out() == null ? null : Numbers.read(w.out());
      byte[] mask =
          w.maskOut() == null
              ? null
              : OptimizerSubject.bytes(w.maskOut(), Bits.bytes(weights[t].length));
      long here = 0;
      for (int i = 0; i < weights[t].length; i++) {
        here += expected[t][i] ? 0 : 1;
        boolean right = true;
        if (out != null) {
          int want = expected[t][i] ? Float.floatToRawIntBits(weights[t][i]) : 0;
          right = Float.floatToRawIntBits(out[i]) == want;
        }
        if (mask != null) {
          right &= (mask[i >> 3] >> (i & 7) & 1) != 0 == expected[t][i];
        }
        if (!right) {
          throw new AssertionError(
              what
                  + ": "
                  + w.name()
                  + "["
                  + i
                  + "] = "
                  + weights[t][i]
                  + " should be "
                  + (expected[t][i] ? "kept" : "pruned"));
        }
      }
      assertEquals(
          new MagnitudePrune.TensorResult(w.name(), weights[t].length, here),
          result.tensors().get(t),
          what);
      all += weights[t].length;
      pruned += here;
    }
    assertEquals(all, result.total(), what);
    assertEquals(pruned, result.pruned(), what);
  }

  private static boolean[] allTrue(int n) {
    boolean[] all = new boolean[n];
    Arrays.fill(all, true);
    return all;
  }

  private static BytePointer at(BytePointer bits, long element) {
    return new BytePointer(bits).position(element / 8);
  }

  private static ByteBuffer bytes(BytePointer bits) {
    return bits.asByteBuffer();
  }

  private static void assertMessage(String message, org.junit.jupiter.api.function.Executable e) {
    assertEquals(message, assertThrows(InputException.class, e).getMessage());
  }
}
