package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.stream.Stream;
import org.espalier.GoldenFiles;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** torch.optim.SGD over several steps: gradients g1, g2, … lead from weights p0 over p1, p2, … */
class FusedSgdGoldenTest {
  /**
   * The files of the repository are met in every bit. Those of a PyTorch build that rounds products
   * by themselves are not: 2^-21 is what that does to weights of magnitude 1 over six steps.
   */
  private static final float TOLERANCE =
      System.getProperty("espalier.golden", "").isEmpty() ? 0 : 0x1p-21f;

  @TestFactory
  Stream<DynamicTest> agreesWithPyTorch() {
    return GoldenFiles.tests("sgd_*.safetensors", (file, isa) -> check(file));
  }

  private static void check(GoldenFiles.GoldenFile file) {
    FusedSgd.Options options =
        new FusedSgd.Options(
            Double.parseDouble(file.setting("lr")),
            file.doubleSetting("momentum", 0),
            file.doubleSetting("dampening", 0),
            file.doubleSetting("weight_decay", 0),
            file.booleanSetting("nesterov", false),
            file.booleanSetting("maximize", false),
            0,
            false);
    float[] start = file.floats("p0");
    try (OwnedTensor weight = Numbers.tensor(DType.F32, start);
        OwnedTensor gradient = OwnedTensor.allocate(DType.F32, start.length);
        OwnedTensor momentum = OwnedTensor.allocate(DType.F32, start.length);
        FusedSgd sgd =
            new FusedSgd(List.of(FusedSgd.Parameter.of(weight, gradient, momentum)), options)) {
      int steps = 0;
      for (; file.hasTensor("g" + (steps + 1)); steps++) {
        Numbers.write(gradient, file.floats("g" + (steps + 1)));
        sgd.step();
        float[] expected = file.floats("p" + (steps + 1));
        float[] actual = Numbers.read(weight);
        for (int i = 0; i < expected.length; i++) {
          // Adding +0 makes zeros compare by value.
          assertEquals(
              expected[i] + 0f,
              actual[i] + 0f,
              TOLERANCE * Math.max(1, Math.abs(expected[i])),
              "step " + (steps + 1) + ", weight " + i);
        }
      }
      assertTrue(steps > 0, file + " has no gradient g1");
    }
  }
}
