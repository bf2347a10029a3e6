package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.espalier.GoldenFiles;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;

/** AdamW over several steps: gradients g1, g2, … lead from weights p0 over p1, p2, … */
class FusedAdamWGoldenTest {
  @TestFactory
  Stream<DynamicTest> agreesWithDoublePrecision() {
    return GoldenFiles.testsOfOurOwn(
        GoldenFiles.directory(), "adamw_*.safetensors", (file, isa) -> check(file));
  }

  private static void check(GoldenFiles.GoldenFile file) {
    FusedAdamW.Options options =
        new FusedAdamW.Options(
            Double.parseDouble(file.setting("lr")),
            file.doubleSetting("beta1", 0.9),
            file.doubleSetting("beta2", 0.999),
            file.doubleSetting("eps", 1e-8),
            file.doubleSetting("weight_decay", 0.01),
            file.booleanSetting("maximize", false),
            0,
            false);
    float[] start = file.floats("p0");
    double largest = 0;
    for (float p : start) {
      largest = Math.max(largest, Math.abs(p));
    }
    try (OwnedTensor weight = Numbers.tensor(DType.F32, start);
        OwnedTensor gradient = OwnedTensor.allocate(DType.F32, start.length);
        OwnedTensor m = OwnedTensor.allocate(DType.F32, start.length);
        OwnedTensor v = OwnedTensor.allocate(DType.F32, start.length);
        FusedAdamW adamw =
            new FusedAdamW(List.of(FusedAdamW.Parameter.of(weight, gradient, m, v)), options)) {
      int steps = 0;
      for (; file.hasTensor("g" + (steps + 1)); steps++) {
        Numbers.write(gradient, file.floats("g" + (steps + 1)));
        adamw.step();
        double[] expected = file.doubles("p" + (steps + 1));
        float[] actual = Numbers.read(weight);
        // Two roundings of the weight a step, and some of what is subtracted, which is at most
        // lr · (1 − beta1) / √(1 − beta2): below 4 lr with the usual betas.
        double tolerance = (steps + 1) * (0x1p-23 * largest + 0x1p-20 * options.learningRate());
        for (int i = 0; i < expected.length; i++) {
          assertEquals(expected[i], actual[i], tolerance, "step " + (steps + 1) + ", weight " + i);
        }
      }
      assertTrue(steps > 0, file + " has no gradient g1");
      if (file.hasTensor("m")) {
        near("m", file.doubles("m"), Numbers.read(m));
      }
      if (file.hasTensor("v")) {
        near("v", file.doubles("v"), Numbers.read(v));
      }
    }
  }

  /** A few roundings of the largest terms in the sum that a moment is. */
  private static void near(String what, double[] expected, float[] actual) {
    double largest = Arrays.stream(expected).map(Math::abs).max().orElse(0);
    for (int i = 0; i < expected.length; i++) {
      assertEquals(expected[i], actual[i], 0x1p-20 * largest, what + " " + i);
    }
  }

  /** The files of the repository are what their generator writes. */
  @Test
  void theFilesAreGenerated(@TempDir Path folder) throws IOException {
    for (FusedAdamWGoldenFiles.Settings settings : FusedAdamWGoldenFiles.ALL) {
      String name = settings.name() + ".safetensors";
      FusedAdamWGoldenFiles.write(settings, folder.resolve(name));
      assertArrayEquals(
          Files.readAllBytes(GoldenFiles.repository().resolve(name)),
          Files.readAllBytes(folder.resolve(name)),
          name);
    }
  }
}
