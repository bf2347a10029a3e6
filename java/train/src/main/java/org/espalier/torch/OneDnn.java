package org.espalier.torch;

import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Context;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.slf4j.LoggerFactory;

/**
 * oneDNN, from which libtorch takes convolutions of float32. Where a machine does not say how large its caches are, as some
 * virtual machines do not, oneDNN 3.7 packs channels wrongly of which there are no multiple of 8 or 16: outputs and gradients
 * are other numbers, or NaN, without an error.
 */
final class OneDnn {
  /** Of channels: a multiple neither of 8, the blocks of AVX2, nor of 16, those of AVX-512. */
  private static final int CHANNELS = 20;

  private OneDnn() {}

  /**
   * Computes a convolution and a transposed one, and where oneDNN is wrong has libtorch compute all of them by itself from
   * now on, in the whole process, with a warning. A tenth of a second in a new process.
   */
  static void leaveOutWhereWrong() {
    Context context = torch.globalContext();
    boolean nnpack = context.userEnabledNNPACK();
    // Where it lacks the caches' sizes it says so with each convolution that it is asked for.
    context.setUserEnabledNNPACK(false);
    if (agrees(floats -> floats)) {
      context.setUserEnabledNNPACK(nnpack);
      return;
    }
    context.setUserEnabledMkldnn(false);
    LoggerFactory.getLogger(OneDnn.class)
        .warn(
            "oneDNN computes convolutions wrongly here, as it does where a virtual machine hides"
                + " the sizes of its caches; libtorch's own are used, which take 1.3 to 2.5 times"
                + " as long, by channel up to 8 times");
  }

  /**
   * Whether convolutions of float32 have the numbers of those of float64, which oneDNN has none of. All are whole and small,
   * so that each order of summing gives the same.
   *
   * @param seen what becomes of the results of float32 before they are compared
   */
  static boolean agrees(UnaryOperator<Tensor> seen) {
    try (PointerScope scope = new PointerScope()) {
      Tensor x = wholes(2, CHANNELS, 8, 8);
      Tensor w = wholes(CHANNELS, CHANNELS, 3, 3);
      return agree(seen.apply(convolved(x, w)), convolved(wide(x), wide(w)))
          && agree(seen.apply(transposed(x, w)), transposed(wide(x), wide(w)));
    }
  }

  private static Tensor convolved(Tensor x, Tensor w) {
    long[] one = {1, 1};
    return torch.conv2d(x, w, new TensorOptional(), one, one, one, 1);
  }

  private static Tensor transposed(Tensor x, Tensor w) {
    long[] one = {1, 1};
    return torch.conv_transpose2d(x, w, new TensorOptional(), one, one, new long[2], 1, one);
  }

  private static boolean agree(Tensor floats, Tensor doubles) {
    return wide(floats).equal(doubles);
  }

  private static Tensor wide(Tensor floats) {
    return floats.to(ScalarType.Double);
  }

  /** Numbers from -3 to 3 in no order that a mistake of a place would keep. */
  private static Tensor wholes(long... shape) {
    int count = 1;
    for (long n : shape) {
      count *= (int) n;
    }
    float[] values = new float[count];
    for (int i = 0; i < count; i++) {
      values[i] = (i * 31L % 101) % 7 - 3;
    }
    return Tensor.create(values, shape);
  }
}
