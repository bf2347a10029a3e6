package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.MagnitudePrune;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Weights of 4 bits in the packed form of compressed-tensors. */
class PackedQuantizerTest extends CheckpointFolders {
  private static final int STEPS = 15;
  private static final float LEAST = 17f / 32;

  private CheckpointQuantizer.Result quantize(LinearForm form) {
    return CheckpointQuantizer.quantize(
        new CheckpointQuantizer.Job(model, target, CheckpointQuantizer::isLinearWeight, form),
        Progress.NONE);
  }

  /**
   * By hand: 7 is the largest integer, so that its scale clips nothing; −8 is there too, so that the scale that hits the grid
   * is 7/8 of that, one of those that are tried. Rows of 11 take two words, of which the second ends in five nibbles of 0.
   */
  @Test
  void rowsArePackedFromTheLowestBitsOn() throws IOException {
    int[][] integers = {
      {7, -7, 0, 1, -1, 2, -2, 3, -3, 4, -4},
      {-8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2},
      {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7}
    };
    float[] scales = {0x1p-6f, 0x1p-3f, 0x1p-9f};
    float[] values = new float[33];
    for (int i = 0; i < 33; i++) {
      values[i] = integers[i / 11][i % 11] * scales[i / 11];
    }
    new TestModel().add("a.weight", SafetensorsDtype.BF16, values, 3, 11).single(model);
    quantize(LinearForm.int4(0, true));
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertNull(checkpoint.tensor("a.weight"));
      assertEquals(3, checkpoint.tensors().size());
      assertEquals(SafetensorsDtype.I32, checkpoint.tensor("a.weight_packed").dtype());
      assertEquals(List.of(3L, 2L), checkpoint.tensor("a.weight_packed").shape());
      assertArrayEquals(
          new int[] {0xb6a7981f, 0x4c5, 0x9abcdef0, 0x678, 0x88888888, 0xf88},
          words(checkpoint, "a.weight_packed"));
      assertEquals(SafetensorsDtype.BF16, checkpoint.tensor("a.weight_scale").dtype());
      assertEquals(List.of(3L, 1L), checkpoint.tensor("a.weight_scale").shape());
      assertArrayEquals(scales, TestModel.values(checkpoint, "a.weight_scale"));
      assertEquals(SafetensorsDtype.I64, checkpoint.tensor("a.weight_shape").dtype());
      assertArrayEquals(new int[] {3, 0, 11, 0}, words(checkpoint, "a.weight_shape"));
    }
  }

  /** By hand: each block has all integers from −8 to 7; row r has the zero points r − 4 and 3 − r. */
  @Test
  void zeroPointsArePackedAlongTheOutputs() throws IOException {
    float[] values = new float[9 * 64];
    for (int i = 0; i < values.length; i++) {
      int row = i / 64;
      int zero = i % 64 < 32 ? row - 4 : 3 - row;
      values[i] = (i % 16 - 8 - zero) * 0x1p-5f;
    }
    new TestModel().add("a.weight", SafetensorsDtype.F16, values, 9, 64).single(model);
    quantize(LinearForm.int4(32, false));
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertEquals(SafetensorsDtype.I32, checkpoint.tensor("a.weight_zero_point").dtype());
      assertEquals(List.of(2L, 2L), checkpoint.tensor("a.weight_zero_point").shape());
      assertArrayEquals(
          new int[] {0xba987654, 0x456789ab, 0xc, 0x3}, words(checkpoint, "a.weight_zero_point"));
      assertEquals(List.of(9L, 8L), checkpoint.tensor("a.weight_packed").shape());
      int[] words = words(checkpoint, "a.weight_packed");
      for (int i = 0; i < words.length; i++) {
        assertEquals(i % 2 == 0 ? 0x76543210 : 0xfedcba98, words[i]);
      }
      assertEquals(List.of(9L, 2L), checkpoint.tensor("a.weight_scale").shape());
      for (float scale : TestModel.values(checkpoint, "a.weight_scale")) {
        assertEquals(0x1p-5f, scale);
      }
    }
  }

  /** Rows of all sizes, with blocks of zeros, of denormal numbers, and with one large value. */
  @ParameterizedTest
  @CsvSource({
    "F32,32,true",
    "BF16,64,true",
    "F16,128,true",
    "F32,0,true",
    "BF16,0,true",
    "F32,128,false",
    "BF16,32,false",
    "F16,64,false",
    "F16,0,false"
  })
  void blocksHaveTheScaleThatChangesThemLeast(SafetensorsDtype dtype, int block, boolean symmetric)
      throws IOException {
    Random random = new Random(11);
    int columns = block == 0 ? 131 : 384;
    float[] values = new float[21 * columns];
    for (int i = 0; i < values.length; i++) {
      float size =
          switch (i / columns % 7) {
            case 0 -> 0;
            case 1 -> 1e-7f;
            case 2 -> dtype == SafetensorsDtype.F16 ? 1e-5f : 1e-39f;
            case 3 -> 3e3f;
            default -> 0.04f;
          };
      values[i] = (float) random.nextGaussian() * size;
    }
    values[5 * columns + 3] = -25;
    TestModel source = new TestModel().add("a.weight", dtype, values, 21, columns);
    source.single(model);
    LinearForm form = LinearForm.int4(block, symmetric);
    quantize(form);
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertPacked(source, "a.weight", checkpoint, form);
    }
  }

  /** Shapes that end pieces in every way: blocks in a row, rows in a piece, a row of several. */
  @ParameterizedTest
  @ValueSource(ints = {0, 32, 128})
  void largeMatricesAreCutAsTheyShould(int block) throws IOException {
    Random random = new Random(5);
    int odd = block == 0 ? 77 : 0;
    TestModel source =
        new TestModel()
            .addRandom(random, "wide.weight", SafetensorsDtype.F32, 2, (1 << 20) + 128 + odd)
            .addRandom(random, "tall.weight", SafetensorsDtype.BF16, (1 << 13) + 9, 128 + odd)
            .addRandom(random, "rows.weight", SafetensorsDtype.F32, 5, 256_000 + odd);
    if (block == 0) {
      source.addRandom(random, "column.weight", SafetensorsDtype.F16, 70_000, 1);
    }
    source.sharded(model, 2);
    for (boolean symmetric : new boolean[] {true, false}) {
      target = folder.resolve("out-" + symmetric);
      LinearForm form = LinearForm.int4(block, symmetric);
      CheckpointQuantizer.Result result = quantize(form);
      long bytes = 0;
      try (Checkpoint checkpoint = Checkpoint.open(target)) {
        for (String name : source.specs().keySet()) {
          assertPacked(source, name, checkpoint, form);
          assertEquals(
              checkpoint.fileOf(name + "_packed"), checkpoint.fileOf(name + "_scale"), name);
        }
        bytes = checkpoint.tensors().stream().mapToLong(TensorInfo::bytes).sum();
      }
      assertEquals(bytes, result.outputBytes());
      assertEquals(
          bytes,
          new ObjectMapper()
              .readTree(target.resolve(Checkpoint.INDEX).toFile())
              .at("/metadata/total_size")
              .asLong());
    }
  }

  @Test
  void whatIsNotChosenStaysAndIsNamed() throws IOException {
    TestModel source = TestModel.transformer();
    source.sharded(model, 3);
    CheckpointQuantizer.Result result = quantize(LinearForm.int4(0, true));
    assertEquals(3, result.tensors().size());
    assertEquals(List.of("lm_head"), result.ignored());
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      for (String name : source.specs().keySet()) {
        if (result.tensors().contains(name)) {
          assertNull(checkpoint.tensor(name));
          assertPacked(source, name, checkpoint, LinearForm.int4(0, true));
        } else {
          assertArrayEquals(source.bytes(name), TestModel.read(checkpoint, name), name);
        }
      }
    }
    CompressedTensorsConfig config =
        CompressedTensorsConfig.parse(
            new ObjectMapper()
                .readTree(target.resolve("config.json").toFile())
                .get("quantization_config"),
            "config.json");
    assertEquals(CompressedTensorsConfig.of(LinearForm.int4(0, true), List.of("lm_head")), config);
  }

  @Test
  void twoRunsGiveTheSameBytes() throws IOException {
    new TestModel()
        .addRandom(new Random(1), "a.weight", SafetensorsDtype.BF16, 700, 3072)
        .single(model);
    quantize(LinearForm.int4(128, false));
    Path first = target;
    target = folder.resolve("second");
    quantize(LinearForm.int4(128, false));
    assertArrayEquals(
        Files.readAllBytes(first.resolve(Checkpoint.SINGLE)),
        Files.readAllBytes(target.resolve(Checkpoint.SINGLE)));
  }

  @Test
  void refusesWhatTheFormCannotHold() throws IOException {
    new TestModel()
        .addRandom(new Random(1), "a.weight", SafetensorsDtype.BF16, 8, 128)
        .addRandom(new Random(1), "b.weight", SafetensorsDtype.BF16, 8, 96)
        .single(model);
    assertRefused(LinearForm.int4(128, true), "'b.weight'", "96 input channels", "128");
    quantize(LinearForm.int4(32, true));
    model = target;
    target = folder.resolve("again");
    assertRefused(LinearForm.int4(32, true), "quantized already");
    for (int block : new int[] {-1, 1, 48, 256}) {
      assertThrows(IllegalArgumentException.class, () -> LinearForm.int4(block, true));
    }
    assertThrows(
        IllegalArgumentException.class, () -> new LinearForm(LinearForm.Kind.INT8, 128, true));
    assertThrows(
        IllegalArgumentException.class, () -> new LinearForm(LinearForm.Kind.FLOAT8, 0, false));
  }

  @ParameterizedTest
  @ValueSource(strings = {"_scale", "_packed", "_shape", "_zero_point"})
  void refusesNamesThatAreTaken(String suffix) throws IOException {
    new TestModel()
        .addRandom(new Random(1), "a.weight", SafetensorsDtype.BF16, 8, 128)
        .addRandom(new Random(1), "a.weight" + suffix, SafetensorsDtype.BF16, 8)
        .single(model);
    assertRefused(LinearForm.int4(128, false), "a.weight" + suffix + "'", "quantized already");
  }

  /** Of numbers that are not finite, and of ranges that have no scale in float32. */
  @ParameterizedTest
  @ValueSource(floats = {Float.NaN, Float.POSITIVE_INFINITY, -3e38f})
  void refusesWhatHasNoScale(float bad) throws IOException {
    float[] values = new float[20 * 64];
    values[599] = bad;
    values[600] = 3e38f;
    new TestModel()
        .addRandom(new Random(1), "a.weight", SafetensorsDtype.F32, 4, 64)
        .add("b.weight", SafetensorsDtype.F32, values, 20, 64)
        .single(model);
    assertRefused(LinearForm.int4(64, false), "'b.weight'", "finite");
  }

  /** Scales are no weights: with some of them 0 nothing of a model would be left. */
  @ParameterizedTest
  @ValueSource(ints = {4, 8})
  void scalesAreNotPruned(int bits) throws IOException {
    TestModel.transformer().single(model);
    quantize(bits == 4 ? LinearForm.int4(0, true) : LinearForm.INT8);
    Path pruned = folder.resolve("pruned");
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                CheckpointPruner.prune(
                    new CheckpointPruner.Job(
                        target,
                        pruned,
                        new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL),
                        CheckpointPruner::isPrunable,
                        null,
                        null),
                    Progress.NONE));
    assertTrue(e.getMessage().contains("quantized already"), e.getMessage());
    assertFalse(Files.exists(pruned));
  }

  private void assertRefused(LinearForm form, String... messages) {
    InputException e = assertThrows(InputException.class, () -> quantize(form));
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
    assertFalse(Files.exists(target));
  }

  private static int[] words(Checkpoint checkpoint, String name) {
    ByteBuffer bytes =
        ByteBuffer.wrap(TestModel.read(checkpoint, name)).order(ByteOrder.LITTLE_ENDIAN);
    int[] words = new int[bytes.remaining() / 4];
    bytes.asIntBuffer().get(words);
    return words;
  }

  /** A scale and a zero point. */
  private record Grid(float scale, int zero) {
    int quantized(float w) {
      return (int) Math.max(-8, Math.min(7, Math.rint(w / scale) + zero));
    }

    /** Of a search that multiplies by the reciprocal. */
    double error(float[] w, int from, int to) {
      float inverse = 1 / scale;
      double sum = 0;
      for (int i = from; i < to; i++) {
        double q = Math.max(-8, Math.min(7, Math.rint(w[i] * inverse) + zero));
        float e = (float) (q - zero) * scale - w[i];
        sum += (double) e * e;
      }
      return sum;
    }
  }

  /** The grids of a block that are tried. */
  private static Grid[] candidates(float[] w, int from, int to, boolean symmetric) {
    float low = 0;
    float high = 0;
    for (int i = from; i < to; i++) {
      low = Math.min(low, w[i]);
      high = Math.max(high, w[i]);
    }
    Grid[] grids = new Grid[STEPS + 1];
    for (int i = 0; i <= STEPS; i++) {
      float share = 1f - i * (1f - LEAST) / STEPS;
      float least = symmetric ? -Math.max(-low, high) * share : low * share;
      float largest = symmetric ? -least : high * share;
      float scale = Math.max(Math.ulp(1f), symmetric ? largest / 7 : (largest - least) / 15);
      double zero = symmetric ? 0 : Math.max(-8, Math.min(7, Math.rint(-8 - least / scale)));
      grids[i] = new Grid(scale, (int) zero);
    }
    return grids;
  }

  /** Unpacks by the definition of the layout and compares each block with the best of the grids that are tried. */
  private static void assertPacked(
      TestModel source, String name, Checkpoint checkpoint, LinearForm form) {
    SafetensorsDtype dtype = source.specs().get(name).dtype();
    int rows = (int) (long) source.specs().get(name).shape().get(0);
    int columns = (int) (long) source.specs().get(name).shape().get(1);
    int width = form.block() == 0 ? columns : form.block();
    int blocks = columns / width;
    int perRow = (columns + 7) / 8;
    assertEquals(List.of((long) rows, (long) perRow), checkpoint.tensor(name + "_packed").shape());
    assertEquals(List.of((long) rows, (long) blocks), checkpoint.tensor(name + "_scale").shape());
    assertEquals(dtype, checkpoint.tensor(name + "_scale").dtype());
    assertArrayEquals(new int[] {rows, 0, columns, 0}, words(checkpoint, name + "_shape"));
    int[] packed = words(checkpoint, name + "_packed");
    float[] scales = TestModel.values(checkpoint, name + "_scale");
    int[] zeros = form.symmetric() ? null : words(checkpoint, name + "_zero_point");
    float[] w = source.values(name);
    for (int row = 0; row < rows; row++) {
      for (int block = 0; block < blocks; block++) {
        int zero = zeros == null ? 0 : (zeros[row / 8 * blocks + block] >>> 4 * (row % 8) & 15) - 8;
        Grid grid = new Grid(scales[row * blocks + block], zero);
        String where = name + " row " + row + " block " + block;
        int from = row * columns + block * width;
        assertBest(w, from, from + width, dtype, form.symmetric(), grid, where);
        for (int i = from; i < from + width; i++) {
          int column = i - row * columns;
          int stored = packed[row * perRow + column / 8] >>> 4 * (column % 8) & 15;
          if (stored - 8 != grid.quantized(w[i])) {
            assertEquals(grid.quantized(w[i]), stored - 8, where + " column " + column);
          }
        }
      }
      for (int column = columns; column < 8 * perRow; column++) {
        assertEquals(0, packed[row * perRow + column / 8] >>> 4 * (column % 8) & 15, name);
      }
    }
  }

  private static void assertBest(
      float[] w,
      int from,
      int to,
      SafetensorsDtype dtype,
      boolean symmetric,
      Grid grid,
      String where) {
    Grid[] candidates = candidates(w, from, to, symmetric);
    double[] errors = Arrays.stream(candidates).mapToDouble(g -> g.error(w, from, to)).toArray();
    double best = Arrays.stream(errors).min().orElseThrow();
    boolean found = false;
    for (int i = 0; i <= STEPS; i++) {
      // Sums in another order differ by less; stored is what is nearest to the scale that was
      // found.
      found |=
          errors[i] <= best * (1 + 1e-9)
              && candidates[i].zero() == grid.zero()
              && TestModel.nearest(dtype, candidates[i].scale()) == grid.scale();
    }
    assertTrue(found, () -> where + ": " + grid + " is none of the best");
  }
}
