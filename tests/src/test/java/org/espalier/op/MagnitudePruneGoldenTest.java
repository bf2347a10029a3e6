package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.GoldenFiles;
import org.espalier.GoldenFiles.GoldenFile;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** Against {@code torch.nn.utils.prune}: tensors w0, w1, … become pruned0, pruned1, … */
class MagnitudePruneGoldenTest {
  @TestFactory
  Stream<DynamicTest> agreesWithPyTorch() {
    return GoldenFiles.tests("prune_*.safetensors", (file, isa) -> check(file));
  }

  private static void check(GoldenFile file) {
    List<OwnedTensor> tensors = new ArrayList<>();
    List<BytePointer> masks = new ArrayList<>();
    List<MagnitudePrune.Weights> list = new ArrayList<>();
    try (PointerScope scope = new PointerScope()) {
      int count = 0;
      for (; file.hasTensor("w" + count); count++) {
        float[] w = file.floats("w" + count);
        boolean[] all = new boolean[w.length];
        Arrays.fill(all, true);
        tensors.add(Numbers.tensor(DType.F32, w, file.shape("w" + count)));
        masks.add(Numbers.bits(all));
        list.add(
            MagnitudePrune.Weights.of("w" + count, tensors.get(count))
                .inPlace()
                .maskIn(masks.get(count))
                .maskOut(masks.get(count))
                .axis(Integer.parseInt(file.setting("axis", "-1"))));
      }
      // Each rule sees the mask of the one before.
      for (MagnitudePrune.Rule rule : rules(file)) {
        MagnitudePrune.prune(list, rule);
      }
      for (int t = 0; t < count; t++) {
        float[] expected = file.floats("pruned" + t);
        float[] actual = Numbers.read(tensors.get(t));
        assertEquals(expected.length, actual.length);
        for (int i = 0; i < expected.length; i++) {
          String where = "w" + t + "[" + i + "]";
          // Zeros compare by value: a product with the mask leaves -0.
          assertEquals(expected[i] + 0f, actual[i] + 0f, 0f, where);
          if (file.hasTensor("mask" + t)) {
            assertEquals(file.bytes("mask" + t)[i] != 0, Bits.get(masks.get(t), i), where);
          }
        }
      }
    } finally {
      tensors.forEach(OwnedTensor::close);
    }
  }

  /** The settings say which: a threshold, a pattern, or amounts applied one after another. */
  private static List<MagnitudePrune.Rule> rules(GoldenFile file) {
    if (file.hasSetting("threshold")) {
      return List.of(new MagnitudePrune.Threshold(Float.parseFloat(file.setting("threshold"))));
    }
    if (file.hasSetting("pattern")) {
      return List.of(MagnitudePrune.Pattern.parse(file.setting("pattern")));
    }
    MagnitudePrune.Scope scope =
        file.setting("scope", "global").equals("tensor")
            ? MagnitudePrune.Scope.TENSOR
            : MagnitudePrune.Scope.GLOBAL;
    List<MagnitudePrune.Rule> rules = new ArrayList<>();
    for (String amount : file.setting("amounts").replaceAll("[\\[\\] ]", "").split(",")) {
      // As in PyTorch an integer is a count and a float is a fraction.
      rules.add(
          amount.matches("\\d+")
              ? new MagnitudePrune.Count(Long.parseLong(amount), scope)
              : new MagnitudePrune.Amount(Double.parseDouble(amount), scope));
    }
    return rules;
  }
}
