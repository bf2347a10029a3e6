package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

class CheckpointConverterTest {
  @TempDir Path folder;

  private CheckpointConverter.Result convert(Path model, SafetensorsDtype dtype) {
    return CheckpointConverter.convert(
        new CheckpointConverter.Job(model, out(), tensor -> true, dtype), Progress.NONE);
  }

  private Path out() {
    return folder.resolve("out");
  }

  @ParameterizedTest
  @CsvSource({"F16, 1", "F16, 3", "BF16, 1", "BF16, 3"})
  void float32IsRoundedToTheNearestAndAllElseIsCopied(SafetensorsDtype dtype, int shards)
      throws IOException {
    TestModel model = TestModel.transformer();
    Path input = folder.resolve("in");
    Path folderOrShards = shards == 1 ? model.single(input) : model.sharded(input, shards);
    Files.writeString(
        input.resolve("config.json"),
        """
        {"model_type":"gpt2","torch_dtype":"float32","vision_config":{"dtype":"float32"},
         "text_config":{"torch_dtype":"float64"},"rope_theta":10000.0}""");
    CheckpointConverter.Result result = convert(folderOrShards, dtype);
    assertEquals(
        List.of(
            "model.layers.0.norm.weight",
            "model.layers.0.up_proj.weight",
            "model.layers.1.conv.weight"),
        result.tensors());
    assertEquals(result.inputBytes() - 2 * (16 + 33 * 16 + 6 * 8 * 9), result.outputBytes());
    try (Checkpoint made = Checkpoint.open(out())) {
      for (TensorSpec spec : model.specs().values()) {
        boolean converted = result.tensors().contains(spec.name());
        assertEquals(converted ? dtype : spec.dtype(), made.tensor(spec.name()).dtype());
        assertEquals(spec.shape(), made.tensor(spec.name()).shape());
        if (!converted) {
          assertArrayEquals(model.bytes(spec.name()), TestModel.read(made, spec.name()));
          continue;
        }
        float[] expected = model.values(spec.name());
        for (int i = 0; i < expected.length; i++) {
          expected[i] = TestModel.nearest(dtype, expected[i]);
        }
        assertArrayEquals(expected, TestModel.values(made, spec.name()));
      }
    }
    String type = dtype == SafetensorsDtype.F16 ? "float16" : "bfloat16";
    String config = Files.readString(out().resolve("config.json")).replaceAll("\\s", "");
    assertTrue(config.contains("\"torch_dtype\":\"" + type + "\",\"vision_config\""), config);
    assertTrue(config.contains("\"vision_config\":{\"dtype\":\"" + type + "\"}"), config);
    assertTrue(config.contains("\"text_config\":{\"torch_dtype\":\"float64\"}"), config);
    assertTrue(Files.exists(out().resolve("tokenizer.json")));
  }

  @Test
  void aFolderBehindALinkIsRead() throws IOException {
    Path input = folder.resolve("in");
    TestModel.transformer().sharded(input, 2);
    Path link = Files.createSymbolicLink(folder.resolve("link"), input.getFileName());
    convert(link, SafetensorsDtype.F16);
    assertTrue(Files.exists(out().resolve("tokenizer.json")));
    try (Checkpoint made = Checkpoint.open(out())) {
      assertEquals(2, made.files().size());
    }
  }

  /** More than one piece, and a file alone. */
  @Test
  void largeTensorsComeInPieces() {
    TestModel model =
        new TestModel()
            .addRandom(new Random(1), "odd", SafetensorsDtype.F32, 3, 700_001)
            .add("empty", SafetensorsDtype.F32, new float[0], 0, 5)
            .add("one", SafetensorsDtype.F32, new float[] {1.0000001f});
    Path file = model.file(folder.resolve("model.safetensors"));
    CheckpointConverter.Result result = convert(file, SafetensorsDtype.BF16);
    assertEquals(List.of("empty", "odd", "one"), result.tensors());
    try (Checkpoint made = Checkpoint.open(out())) {
      float[] expected = model.values("odd");
      for (int i = 0; i < expected.length; i++) {
        expected[i] = TestModel.nearest(SafetensorsDtype.BF16, expected[i]);
      }
      assertArrayEquals(expected, TestModel.values(made, "odd"));
      assertEquals(1, TestModel.values(made, "one")[0]);
    }
  }

  @ParameterizedTest
  @EnumSource(names = {"F16", "BF16"})
  void whatIsNotANumberStaysAndWhatIsTooLargeIsRefused(SafetensorsDtype dtype) {
    float[] special = {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, -0f, 1e-30f};
    Path file =
        new TestModel()
            .add("special", SafetensorsDtype.F32, special, 5)
            .file(folder.resolve("special.safetensors"));
    convert(file, dtype);
    try (Checkpoint made = Checkpoint.open(out())) {
      float[] values = TestModel.values(made, "special");
      assertTrue(Float.isNaN(values[0]));
      assertEquals(Float.POSITIVE_INFINITY, values[1]);
      assertEquals(Float.NEGATIVE_INFINITY, values[2]);
      assertEquals(Float.floatToRawIntBits(-0f), Float.floatToRawIntBits(values[3]));
      assertEquals(TestModel.nearest(dtype, 1e-30f), values[4]);
    }
    float[] large = new float[200_000];
    large[150_000] = dtype == SafetensorsDtype.F16 ? -65520 : Float.MAX_VALUE;
    Path beyond =
        new TestModel()
            .add("large", SafetensorsDtype.F32, large, large.length)
            .file(folder.resolve("large.safetensors"));
    Path target = folder.resolve("none");
    CheckpointConverter.Job job =
        new CheckpointConverter.Job(beyond, target, tensor -> true, dtype);
    InputException e =
        assertThrows(InputException.class, () -> CheckpointConverter.convert(job, Progress.NONE));
    assertTrue(e.getMessage().contains("tensor 'large' has the value"), e.getMessage());
    assertTrue(e.getMessage().contains("" + large[150_000]), e.getMessage());
    assertFalse(Files.exists(target));
  }

  @Test
  void aQuantizedModelIsRefused() throws IOException {
    TestModel model =
        new TestModel()
            .add("a.weight", SafetensorsDtype.I64, new float[4], 2, 2)
            .add("a.weight_scale", SafetensorsDtype.F32, new float[2], 2, 1);
    Path file = model.file(folder.resolve("model.safetensors"));
    InputException scale =
        assertThrows(InputException.class, () -> convert(file, SafetensorsDtype.F16));
    assertTrue(scale.getMessage().contains("is quantized already"), scale.getMessage());
    Path in = TestModel.transformer().single(folder.resolve("in"));
    Files.writeString(in.resolve("config.json"), "{\"quantization_config\":{}}");
    InputException config =
        assertThrows(InputException.class, () -> convert(in, SafetensorsDtype.F16));
    assertTrue(config.getMessage().contains("is quantized already"), config.getMessage());
    Path half =
        new TestModel()
            .add("w", SafetensorsDtype.F16, new float[2], 2)
            .file(folder.resolve("half.safetensors"));
    InputException none =
        assertThrows(InputException.class, () -> convert(half, SafetensorsDtype.BF16));
    assertTrue(none.getMessage().contains("no tensor of float32"), none.getMessage());
    assertThrows(
        IllegalArgumentException.class,
        () -> new CheckpointConverter.Job(half, out(), tensor -> true, SafetensorsDtype.F64));
  }
}
