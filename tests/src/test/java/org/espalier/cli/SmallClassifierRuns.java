package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.io.TempDir;

/** Recipe, model and examples of a classifier of 76 weights; a run takes a fraction of a second. */
abstract class SmallClassifierRuns {
  static final String RECIPE =
      """
      seed: 3
      model:
        file: mlp.onnx
      data:
        examples: examples.safetensors
        validation: 32
        evaluation: 64
        calibration: 32
      stages:
        - kind: prune
          sparsity: 0.25
          schedule: cubic
          steps: 12
          batch: 16
          learning-rate: 1e-3
          validate-every: 4
        - kind: quantize
          steps: 12
          batch: 16
          learning-rate: 1e-3
          validate-every: 4
        - kind: distil
          steps: 6
          batch: 16
          learning-rate: 1e-4
      export:
        formats: [onnx, onnx-float, safetensors, torchscript]
      checkpoint:
        every-seconds: 0
      """;

  @TempDir Path folder;
  Path recipe;

  @BeforeEach
  void makeInputs() throws IOException {
    Files.write(folder.resolve("mlp.onnx"), SmallModels.mlp().toByteArray());
    recipe = Files.writeString(folder.resolve("recipe.yaml"), RECIPE);
    examples(256, 8, 4);
  }

  /** Makes int8.onnx of the model, and a recipe for it: without a stage that quantizes. */
  void makeInt8() throws IOException {
    Path int8 = folder.resolve("int8.onnx");
    Run.of(
            "quantize",
            folder.resolve("mlp.onnx"),
            "-o",
            int8,
            "--to",
            "onnx-dynamic",
            "--calibration",
            "none")
        .done();
    Files.writeString(
        recipe,
        RECIPE.replace("mlp.onnx", "int8.onnx").replace("kind: quantize", "kind: fine-tune"));
  }

  void examples(int n, int width, int classes) {
    examples(5, n, width, classes);
  }

  void examples(long seed, int n, int width, int classes) {
    Random random = new Random(seed);
    ByteBuffer inputs = ByteBuffer.allocate(4 * n * width).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer labels = ByteBuffer.allocate(8 * n).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      for (int j = 0; j < width; j++) {
        inputs.putFloat((float) random.nextGaussian());
      }
      labels.putLong(random.nextInt(classes));
    }
    List<TensorSpec> specs =
        List.of(
            new TensorSpec("inputs", SafetensorsDtype.F32, List.of((long) n, (long) width)),
            new TensorSpec("labels", SafetensorsDtype.I64, List.of((long) n)));
    try (AtomicFile file = AtomicFile.create(folder.resolve("examples.safetensors"))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      writer.append("inputs", inputs.flip());
      writer.append("labels", labels.flip());
      writer.finish();
      file.commit();
    }
  }

  static void assertSameModels(Path one, Path other) throws IOException {
    for (String name :
        List.of("model-int8.onnx", "model-float.onnx", "model.safetensors", "model.pt")) {
      assertArrayEquals(
          Files.readAllBytes(one.resolve(name)), Files.readAllBytes(other.resolve(name)), name);
    }
  }
}
