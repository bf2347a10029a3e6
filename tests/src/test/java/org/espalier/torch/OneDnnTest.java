package org.espalier.torch;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class OneDnnTest {
  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  @Test
  void aWrongNumberIsSeen() {
    assertTrue(OneDnn.agrees(floats -> floats));
    assertFalse(OneDnn.agrees(floats -> floats.add(new Scalar(1))));
    assertFalse(OneDnn.agrees(floats -> floats.mul(new Scalar(Double.NaN))));
    assertFalse(
        OneDnn.agrees(
            floats -> {
              floats.view(-1).narrow(0, 0, 1).add_(new Scalar(1));
              return floats;
            }));
  }

  /** Whatever computes them once libtorch is loaded, on each machine: outputs and both gradients. */
  @ParameterizedTest
  @CsvSource({
    "1, 8, 8, 1, 1",
    "8, 8, 8, 1, 1",
    "3, 8, 16, 1, 1",
    "12, 12, 8, 1, 1",
    "15, 31, 8, 1, 1",
    "24, 40, 8, 1, 2",
    "20, 24, 9, 2, 2",
    "24, 20, 9, 2, 1",
    "24, 24, 8, 1, 24",
    "16, 16, 8, 1, 1"
  })
  void convolutionsAreRight(int inputs, int outputs, int side, int stride, int groups) {
    torch.manual_seed(inputs + outputs);
    Tensor x = torch.randn(4, inputs, side, side);
    Tensor w = torch.randn(outputs, inputs / groups, 3, 3);
    Tensor[] floats = withGradients(x, w, stride, groups);
    Tensor[] doubles =
        withGradients(x.to(ScalarType.Double), w.to(ScalarType.Double), stride, groups);
    for (int i = 0; i < floats.length; i++) {
      double error = floats[i].to(ScalarType.Double).sub(doubles[i]).abs().max().item_double();
      double largest = doubles[i].abs().max().item_double();
      assertTrue(error < 1e-5 * largest, i + ": " + error + " of " + largest);
    }
  }

  private static Tensor[] withGradients(Tensor inputs, Tensor weights, int stride, int groups) {
    Tensor x = inputs.detach().requires_grad_(true);
    Tensor w = weights.detach().requires_grad_(true);
    long[] one = {1, 1};
    long[] strides = {stride, stride};
    Tensor y = torch.conv2d(x, w, new TensorOptional(), strides, one, one, groups);
    y.mul(y).sum().backward();
    return new Tensor[] {y.detach(), x.grad(), w.grad()};
  }
}
