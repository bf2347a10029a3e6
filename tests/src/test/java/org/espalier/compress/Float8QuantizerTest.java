package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.format.Float8;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class Float8QuantizerTest extends CheckpointFolders {
  private CheckpointQuantizer.Result quantize() {
    return CheckpointQuantizer.quantize(
        new CheckpointQuantizer.Job(
            model, target, CheckpointQuantizer::isLinearWeight, LinearForm.FLOAT8),
        Progress.NONE);
  }

  /** Rows of zeros, tiny ones, denormals, and of such different sizes that the small ones are below full precision. */
  @ParameterizedTest
  @EnumSource(names = {"F32", "BF16", "F16"})
  void everyKindOfRowIsRounded(SafetensorsDtype dtype) throws IOException {
    Random random = new Random(11);
    float[] flat = new float[40 * 30];
    for (int i = 0; i < flat.length; i++) {
      float size =
          switch (i / 30 % 6) {
            case 0 -> 0;
            case 1 -> 1e-5f;
            case 2 -> dtype == SafetensorsDtype.F16 ? 1e-5f : 1e-30f;
            case 3 -> (float) Math.pow(2, -random.nextInt(14));
            case 4 -> 3e4f;
            default -> 0.04f;
          };
      flat[i] = (float) Math.max(-2, Math.min(2, random.nextGaussian())) * size;
    }
    TestModel source = new TestModel().add("a.weight", dtype, flat, 40, 30);
    source.single(model);
    assertEquals(List.of("a.weight"), quantize().tensors());
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertRounded(source, "a.weight", checkpoint);
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
        assertRounded(source, name, checkpoint);
      }
    }
  }

  @Test
  void readersAreToldWhatItIs() throws IOException {
    TestModel.transformer().single(model);
    CheckpointQuantizer.Result result = quantize();
    assertEquals(3, result.tensors().size());
    JsonNode config = new ObjectMapper().readTree(target.resolve("config.json").toFile());
    JsonNode told = config.path("quantization_config");
    assertEquals("float-quantized", told.path("format").asText());
    JsonNode scheme = told.at("/config_groups/group_0");
    assertEquals("[\"Linear\"]", scheme.path("targets").toString());
    assertEquals(
        "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"channel\",\"dynamic\":false}",
        scheme.path("weights").toString());
    assertEquals(
        "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"token\",\"dynamic\":true}",
        scheme.path("input_activations").toString());
    assertEquals(List.of("lm_head"), CompressedTensorsConfig.parse(told, "config.json").ignore());
    model = target;
    target = folder.resolve("again");
    InputException e = assertThrows(InputException.class, this::quantize);
    assertTrue(e.getMessage().contains("quantized already"), e.getMessage());
  }

  /** Nearest by trying each number there is; of two as near the one whose last bit is 0. */
  private static void assertRounded(TestModel source, String name, Checkpoint checkpoint) {
    SafetensorsDtype dtype = source.specs().get(name).dtype();
    List<Long> shape = source.specs().get(name).shape();
    int rows = (int) (long) shape.get(0);
    int columns = (int) (long) shape.get(1);
    assertEquals(SafetensorsDtype.F8_E4M3, checkpoint.tensor(name).dtype());
    assertEquals(shape, checkpoint.tensor(name).shape());
    assertEquals(dtype, checkpoint.tensor(name + "_scale").dtype());
    assertEquals(List.of((long) rows, 1L), checkpoint.tensor(name + "_scale").shape());
    float[] w = source.values(name);
    byte[] q = TestModel.read(checkpoint, name);
    float[] s = TestModel.values(checkpoint, name + "_scale");
    double[] numbers = new double[0x7f];
    Arrays.setAll(numbers, bits -> Float8.value((byte) bits));
    for (int row = 0; row < rows; row++) {
      float magnitude = 0;
      for (int i = row * columns; i < (row + 1) * columns; i++) {
        magnitude = Math.max(magnitude, Math.abs(w[i]));
      }
      float scale = TestModel.nearest(dtype, Math.max(magnitude / 448, Math.ulp(1f)));
      assertEquals(scale, s[row], name + ": scale of row " + row);
      for (int i = row * columns; i < (row + 1) * columns; i++) {
        int expected = nearest(numbers, Math.abs(w[i] / scale));
        if (expected != (q[i] & 0x7f) || q[i] < 0 != (Float.floatToRawIntBits(w[i]) < 0)) {
          assertEquals(expected, q[i], name + " " + i + ": " + w[i] + " / " + scale);
        }
      }
    }
  }

  private static int nearest(double[] numbers, double value) {
    int low = 0;
    int high = numbers.length - 1;
    while (high - low > 1) {
      int middle = (low + high) / 2;
      if (numbers[middle] <= value) {
        low = middle;
      } else {
        high = middle;
      }
    }
    double below = value - numbers[low];
    double above = numbers[high] - value;
    return below < above || below == above && low % 2 == 0 ? low : high;
  }
}
