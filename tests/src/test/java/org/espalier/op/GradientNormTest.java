package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.backend.Isa;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class GradientNormTest {
  /** Tensors of every size in one list, masks and gates on some, on every variant. */
  @ParameterizedTest
  @EnumSource(DType.class)
  void agreesWithTheReferenceAndHasTheSameBitsEverywhere(DType dtype) {
    int count = Numbers.SIZES.length;
    float[][] values = new float[count][];
    boolean[][] masks = new boolean[count][];
    boolean[][] gates = new boolean[count][];
    try (PointerScope scope = new PointerScope()) {
      List<OwnedTensor> tensors = new ArrayList<>();
      List<GradientNorm.Gradient> gradients = new ArrayList<>();
      for (int t = 0; t < count; t++) {
        int n = Numbers.SIZES[t];
        values[t] = Numbers.rounded(dtype, Numbers.floats(n, t));
        masks[t] = t % 3 == 0 ? null : Numbers.randomBits(n, 0.5, 100 + t);
        gates[t] = t % 2 == 0 ? null : Numbers.randomBits(n, 0.9, 200 + t);
        tensors.add(Numbers.tensor(dtype, values[t]));
        gradients.add(
            new GradientNorm.Gradient(tensors.get(t), bitsOrNull(masks[t]), bitsOrNull(gates[t])));
      }
      GradientNorm.Result expected = GradientNormReference.compute(values, masks, gates);
      double[] first = {Double.NaN};
      try (GradientNorm operation = new GradientNorm(gradients)) {
        Variants.each(
            new int[] {1, 2, 3},
            (isa, threads) -> {
              GradientNorm.Result result = operation.compute();
              // Squares are exact; only the order of the sum differs.
              assertEquals(expected.norm(), result.norm(), 1e-12 * expected.norm());
              assertEquals(0, result.nonFinite());
              if (Double.isNaN(first[0])) {
                first[0] = result.norm();
              }
              assertEquals(first[0], result.norm(), 0.0, isa + " " + threads);
            });
      }
      tensors.forEach(OwnedTensor::close);
    }
  }

  @Test
  void countsWhatIsNotFiniteUnlessMaskOrGateHidesIt() {
    for (Isa isa : Variants.isas().toList()) {
      Variants.with(
          isa,
          2,
          () -> {
            float[] g = new float[37];
            g[0] = Float.NaN;
            g[16] = Float.POSITIVE_INFINITY;
            g[36] = Float.NEGATIVE_INFINITY;
            boolean[] mask = new boolean[37];
            Arrays.fill(mask, true);
            mask[36] = false;
            try (OwnedTensor tensor = Numbers.tensor(DType.F32, g);
                BytePointer bits = Numbers.bits(mask);
                GradientNorm all =
                    new GradientNorm(List.of(new GradientNorm.Gradient(tensor, null, null)));
                GradientNorm some =
                    new GradientNorm(List.of(new GradientNorm.Gradient(tensor, bits, null)))) {
              assertEquals(3, all.compute().nonFinite());
              assertFalse(Double.isFinite(all.compute().norm()));
              assertEquals(2, some.compute().nonFinite());
            }
          });
    }
  }

  @Test
  void anEmptyListHasNormZero() {
    try (GradientNorm operation = new GradientNorm(List.of())) {
      assertEquals(new GradientNorm.Result(0, 0), operation.compute());
    }
  }

  @Test
  void refusesAMaskThatIsTooShort() {
    try (OwnedTensor tensor = OwnedTensor.allocate(DType.F32, 17);
        BytePointer bits = new BytePointer(2)) {
      IllegalArgumentException e =
          assertThrows(
              IllegalArgumentException.class, () -> new GradientNorm.Gradient(tensor, bits, null));
      assertEquals("mask holds 2 bytes, 17 bits need 3", e.getMessage());
    }
  }

  private static BytePointer bitsOrNull(boolean[] values) {
    return values == null ? null : Numbers.bits(values);
  }
}
