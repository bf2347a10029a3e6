package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

class CheckpointQuantizerTest extends CheckpointFolders {
  private static final List<String> CHOSEN =
      List.of(
          "model.layers.0.q_proj.weight",
          "model.layers.0.up_proj.weight",
          "model.layers.1.q_proj.weight");

  private CheckpointQuantizer.Result quantize() {
    return quantize(CheckpointQuantizer::isLinearWeight);
  }

  private CheckpointQuantizer.Result quantize(Predicate<TensorInfo> choice) {
    return CheckpointQuantizer.quantize(
        new CheckpointQuantizer.Job(model, target, choice, LinearForm.INT8), Progress.NONE);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aModelComesOutInTheLayoutOfCompressedTensors(boolean sharded) throws IOException {
    TestModel source = TestModel.transformer();
    if (sharded) {
      source.sharded(model, 3);
    } else {
      source.single(model);
    }
    CheckpointQuantizer.Result result = quantize();
    assertEquals(CHOSEN, result.tensors());
    assertEquals(List.of("lm_head"), result.ignored());
    long outputBytes = 0;
    long total = 0;
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertEquals(source.specs().size() + CHOSEN.size(), checkpoint.tensors().size());
      for (String name : source.specs().keySet()) {
        if (CHOSEN.contains(name)) {
          assertQuantized(source, name, checkpoint);
          total += checkpoint.tensor(name).elements();
          assertEquals(
              checkpoint.fileOf(name), checkpoint.fileOf(name + "_scale"), "not in one shard");
        } else {
          assertArrayEquals(source.bytes(name), TestModel.read(checkpoint, name), name);
        }
      }
      outputBytes = checkpoint.tensors().stream().mapToLong(TensorInfo::bytes).sum();
    }
    assertEquals(total, result.total());
    assertEquals(outputBytes, result.outputBytes());
    assertEquals(
        source.specs().keySet().stream().mapToLong(n -> source.bytes(n).length).sum(),
        result.inputBytes());
    if (sharded) {
      JsonNode index = new ObjectMapper().readTree(target.resolve(Checkpoint.INDEX).toFile());
      assertEquals(outputBytes, index.at("/metadata/total_size").asLong());
    }
    JsonNode config = new ObjectMapper().readTree(target.resolve("config.json").toFile());
    assertEquals("llama", config.get("model_type").asText());
    CompressedTensorsConfig parsed =
        CompressedTensorsConfig.parse(config.get("quantization_config"), "config.json");
    assertEquals(List.of("lm_head"), parsed.ignore());
    assertEquals("tokens", Files.readString(target.resolve("tokenizer.json")));
    assertEquals("notes", Files.readString(target.resolve("sub/notes.txt")));
    assertFalse(Files.exists(target.resolve(".git")));
    assertEquals(List.of("model", "out"), list());
  }

  /** Rows with what a scale can be: normal, of zeros, tiny, denormal, with one large value. */
  @ParameterizedTest
  @EnumSource(names = {"F32", "BF16", "F16"})
  void everyKindOfRowFollowsTheConvention(SafetensorsDtype dtype) throws IOException {
    Random random = new Random(11);
    float[][] rows = new float[40][30];
    for (int row = 0; row < rows.length; row++) {
      for (int i = 0; i < rows[row].length; i++) {
        float size =
            switch (row % 8) {
              case 0 -> 0;
              case 1 -> 1e-7f;
              case 2 -> dtype == SafetensorsDtype.F16 ? 1e-5f : 1e-30f;
              case 3 -> 0x1p-24f;
              case 4 -> 3e4f;
              default -> 0.04f;
            };
        rows[row][i] = (float) Math.max(-2, Math.min(2, random.nextGaussian())) * size;
      }
    }
    rows[5][3] = -255;
    rows[6][3] = 255;
    float[] flat = new float[40 * 30];
    for (int row = 0; row < rows.length; row++) {
      System.arraycopy(rows[row], 0, flat, row * 30, 30);
    }
    if (dtype != SafetensorsDtype.F16) {
      Arrays.fill(flat, 7 * 30, 8 * 30, 0x1p-130f);
    }
    TestModel source = new TestModel().add("a.weight", dtype, flat, 40, 30);
    source.single(model);
    quantize();
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertQuantized(source, "a.weight", checkpoint);
      float[] q = TestModel.values(checkpoint, "a.weight");
      assertEquals(-128, q[5 * 30 + 3]);
      assertEquals(127, q[6 * 30 + 3]);
    }
  }

  /** Shapes that end pieces in every way: rows in a piece, a row a piece, a row of several. */
  @Test
  void largeMatricesAreCutAsTheyShould() throws IOException {
    Random random = new Random(5);
    TestModel source =
        new TestModel()
            .addRandom(random, "wide.weight", SafetensorsDtype.F32, 2, (1 << 20) + 77)
            .addRandom(random, "tall.weight", SafetensorsDtype.BF16, (1 << 15) + 9, 3)
            .addRandom(random, "rows.weight", SafetensorsDtype.F32, 5, 500_000)
            .addRandom(random, "column.weight", SafetensorsDtype.F16, 70_000, 1);
    source.single(model);
    quantize();
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      for (String name : source.specs().keySet()) {
        assertQuantized(source, name, checkpoint);
      }
    }
  }

  @Test
  void whatStaysFloatIsNamed() throws IOException {
    Random random = new Random(5);
    new TestModel()
        .addRandom(random, "language_model.lm_head.weight", SafetensorsDtype.F32, 4, 4)
        .addRandom(random, "wte.weight", SafetensorsDtype.F32, 4, 4)
        .addRandom(random, "h.0.mlp.gate.weight", SafetensorsDtype.F32, 4, 4)
        .addRandom(random, "h.0.mlp.up.weight", SafetensorsDtype.F32, 4, 4)
        .addRandom(random, "h.0.mlp.skipped.weight", SafetensorsDtype.F32, 4, 4)
        .addRandom(random, "embedding_projection.weight", SafetensorsDtype.F32, 4, 4)
        .single(model);
    CheckpointQuantizer.Result result =
        quantize(t -> CheckpointQuantizer.isLinearWeight(t) && !t.name().contains("skipped"));
    assertEquals(List.of("h.0.mlp.up.weight"), result.tensors());
    assertEquals(
        List.of(
            "embedding_projection",
            "h.0.mlp.gate",
            "h.0.mlp.skipped",
            "language_model.lm_head",
            "lm_head"),
        result.ignored());
  }

  @Test
  void theOnlyFileStandsForItsFolder() throws IOException {
    TestModel.transformer().single(model);
    model = model.resolve(Checkpoint.SINGLE);
    assertEquals(CHOSEN, quantize().tensors());
    assertTrue(Files.exists(target.resolve("tokenizer.json")));
    target = folder.resolve("out2");
    model = TestModel.transformer().file(folder.resolve("alone.safetensors"));
    assertRefused("config.json", "name that folder");
  }

  @Test
  void twoRunsGiveTheSameBytes() throws IOException {
    TestModel.transformer().sharded(model, 2);
    quantize();
    Path first = target;
    target = folder.resolve("second");
    quantize();
    for (String file : TestModel.files(first)) {
      assertArrayEquals(
          Files.readAllBytes(first.resolve(file)), Files.readAllBytes(target.resolve(file)), file);
    }
  }

  @ParameterizedTest
  @ValueSource(floats = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY})
  void weightsThatAreNotFiniteAreRefusedByName(float bad) throws IOException {
    float[] values = new float[600];
    values[599] = bad;
    new TestModel()
        .addRandom(new Random(1), "a.weight", SafetensorsDtype.F32, 4, 4)
        .add("b.weight", SafetensorsDtype.BF16, values, 20, 30)
        .single(model);
    assertRefused("'b.weight'", "finite");
    model =
        new TestModel()
            .addRandom(new Random(1), "a.weight", SafetensorsDtype.F32, 4, 4)
            .add("b.bias", SafetensorsDtype.BF16, values, 600)
            .single(folder.resolve("biased"));
    assertEquals(16, quantize().total());
  }

  @Test
  void refusesWhatIsNotALinearWeight() throws IOException {
    TestModel source = TestModel.transformer();
    source.single(model);
    assertChoiceRefused("model.layers.1.conv.weight", "[6, 8, 3, 3]");
    assertChoiceRefused("model.position_ids", "I64");
    assertChoiceRefused("model.layers.0.norm.weight", "[16]");
    assertChoiceRefused("model.embed_tokens.weight", "embedding");
    assertChoiceRefused("none", "no tensor is chosen");
  }

  private void assertChoiceRefused(String name, String message) {
    InputException e =
        assertThrows(InputException.class, () -> quantize(t -> t.name().equals(name)));
    assertTrue(e.getMessage().contains(message), e.getMessage());
    assertFalse(Files.exists(target));
  }

  @Test
  void refusesAModelThatIsQuantizedAlready() throws IOException {
    TestModel.transformer().single(model);
    quantize();
    model = target;
    target = folder.resolve("again");
    assertRefused("quantized already");
    Files.writeString(model.resolve("config.json"), "{}");
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                quantize(
                    t -> CheckpointQuantizer.isLinearWeight(t) || t.name().equals(CHOSEN.get(0))));
    assertTrue(e.getMessage().contains(CHOSEN.get(0)), e.getMessage());
  }

  @Test
  void aTensorThatHasTheNameOfAScaleIsRefused() throws IOException {
    TestModel.transformer()
        .add(CHOSEN.get(0) + "_scale", SafetensorsDtype.F32, new float[24], 24, 1)
        .single(model);
    assertRefused(CHOSEN.get(0) + "_scale'", "quantized already");
  }

  @Test
  void refusesTargetsThatAreThere() throws IOException {
    TestModel.transformer().single(model);
    target = model;
    assertRefused("is the input");
    target = Files.writeString(folder.resolve("file"), "x");
    assertRefused("not a folder");
  }

  private void assertRefused(String... messages) throws IOException {
    List<String> before = list();
    InputException e = assertThrows(InputException.class, this::quantize);
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
    assertEquals(before, list());
  }

  private List<String> list() throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.map(f -> f.getFileName().toString()).sorted().toList();
    }
  }

  private static void assertQuantized(TestModel source, String name, Checkpoint checkpoint) {
    SafetensorsDtype dtype = source.specs().get(name).dtype();
    List<Long> shape = source.specs().get(name).shape();
    int rows = (int) (long) shape.get(0);
    int columns = (int) (long) shape.get(1);
    assertEquals(SafetensorsDtype.I8, checkpoint.tensor(name).dtype());
    assertEquals(shape, checkpoint.tensor(name).shape());
    assertEquals(dtype, checkpoint.tensor(name + "_scale").dtype());
    assertEquals(List.of((long) rows, 1L), checkpoint.tensor(name + "_scale").shape());
    float[] w = source.values(name);
    float[] q = TestModel.values(checkpoint, name);
    float[] s = TestModel.values(checkpoint, name + "_scale");
    for (int row = 0; row < rows; row++) {
      float magnitude = 0;
      for (int i = row * columns; i < (row + 1) * columns; i++) {
        magnitude = Math.max(magnitude, Math.abs(w[i]));
      }
      float scale = TestModel.nearest(dtype, Math.max(magnitude / 127.5f, Math.ulp(1f)));
      assertEquals(scale, s[row], name + ": scale of row " + row);
      for (int i = row * columns; i < (row + 1) * columns; i++) {
        double expected = Math.max(-128, Math.min(127, Math.rint(w[i] / scale)));
        if (expected != q[i]) {
          assertEquals(expected, q[i], name + " " + i + ": " + w[i] + " / " + scale);
        }
      }
    }
  }
}
