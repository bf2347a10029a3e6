package org.espalier.torch;

import java.util.Arrays;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.device.CudaTensor;
import org.espalier.device.DType;
import org.espalier.device.Device;

/**
 * The only place where torch tensors become views that the kernels read and write, without a copy.
 *
 * <p>A view keeps the Java object of its tensor reachable, but not its memory where somebody closes
 * that object: a {@link org.bytedeco.javacpp.PointerScope} does so at its end, so a view of a
 * tensor made in a scope ends with the scope. Whoever uses it then gets an {@link IllegalStateException}.
 *
 * <p>Autograd does not notice what a kernel writes. Write to a tensor only between a backward pass
 * and the next forward pass.
 */
public final class TensorView {
  private TensorView() {}

  /**
   * A view of a contiguous F32, BF16 or F16 tensor in host memory or on a GPU. Of the latter it is a {@link
   * CudaTensor}, which what computes on the CPU refuses; queue what computes there on {@link
   * TorchDevice#stream}, where libtorch's own work is.
   *
   * @throws IllegalArgumentException where the tensor is undefined, on another kind of device, strided,
   *     or of another type
   * @throws UnsupportedOperationException where the tensor is on a GPU that our kernels cannot use
   */
  public static org.espalier.device.Tensor of(Tensor tensor) {
    return of(tensor, null);
  }

  /**
   * @param device what reads and writes the tensor's memory; null: the device that it is on
   */
  static org.espalier.device.Tensor of(Tensor tensor, Device device) {
    if (tensor.isNull() || !tensor.defined()) {
      throw new IllegalArgumentException(
          tensor.isNull() ? "the tensor is closed" : "the tensor is undefined (no gradient?)");
    }
    if (!tensor.is_cpu() && !tensor.is_cuda()) {
      throw new IllegalArgumentException(
          describe(tensor)
              + " is on "
              + tensor.device().str().getString()
              + ", neither in host memory nor on a CUDA device");
    }
    DType dtype = dtype(tensor);
    if (!tensor.is_contiguous()) {
      throw new IllegalArgumentException(
          describe(tensor)
              + " is strided "
              + Arrays.toString(tensor.strides().vec().get())
              + "; a contiguous tensor is needed");
    }
    Memory memory = new Memory(tensor, tensor.numel() * dtype.bytes());
    Device place = device == null ? TorchDevice.of(tensor).device() : device;
    return place.isCuda()
        ? CudaTensor.of(place, memory, dtype, tensor.shape())
        : org.espalier.device.Tensor.of(memory, dtype, tensor.shape());
  }

  private static DType dtype(Tensor tensor) {
    ScalarType type = tensor.scalar_type().intern();
    return switch (type) {
      case Float -> DType.F32;
      case BFloat16 -> DType.BF16;
      case Half -> DType.F16;
      default ->
          throw new IllegalArgumentException(
              describe(tensor) + " cannot be viewed; kernels take Float, BFloat16 and Half");
    };
  }

  private static String describe(Tensor tensor) {
    return "the tensor " + tensor.scalar_type().intern() + Arrays.toString(tensor.shape());
  }

  /** The tensor's memory with its true size: data_ptr has none and does not hold the tensor. */
  private static final class Memory extends Pointer {
    private final Tensor tensor;

    Memory(Tensor tensor, long bytes) {
      this.tensor = tensor;
      Pointer data = tensor.data_ptr(); // null of an empty tensor
      this.address = data == null ? 0 : data.address();
      this.limit = bytes;
      this.capacity = bytes;
    }

    /** The limit counts bytes. */
    @Override
    public int sizeof() {
      return 1;
    }

    /** Closed with the tensor's Java object. */
    @Override
    public boolean isNull() {
      return tensor.isNull();
    }
  }
}
