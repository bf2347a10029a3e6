package org.espalier.torch;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch_cuda;
import org.espalier.device.CudaStream;
import org.espalier.op.FusedStep;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.StepResult;

/**
 * Where a model's tensors are; the only class that knows of libtorch on GPUs. Those need the build
 * with {@code -Pgpu}, whose class path has the GPU's libtorch in place of the CPU's. This class was
 * compiled against it but has not run on a GPU yet.
 */
public final class TorchDevice {
  /** Host memory. */
  public static final TorchDevice CPU = new TorchDevice(-1);

  private final int index;

  private TorchDevice(int index) {
    this.index = index;
  }

  /**
   * A GPU.
   *
   * @throws UnsupportedOperationException where this libtorch sees no such GPU
   */
  public static TorchDevice cuda(int index) {
    Libtorch.load();
    if (!torch.cuda_is_available()) {
      throw new UnsupportedOperationException(
          "libtorch sees no GPU; it takes a driver of CUDA 13 (580 or newer) and a build with"
              + " -Pgpu");
    }
    int count = torch.cuda_device_count();
    if (index < 0 || index >= count) {
      throw new UnsupportedOperationException(
          "there is no GPU " + index + "; libtorch sees " + count + ", numbered from 0");
    }
    return new TorchDevice(index);
  }

  /** The first GPU where libtorch sees one, host memory otherwise. */
  public static TorchDevice best() {
    Libtorch.load();
    return torch.cuda_is_available() ? cuda(0) : CPU;
  }

  /** Where a tensor is. */
  public static TorchDevice of(Tensor tensor) {
    return tensor.is_cuda() ? new TorchDevice(tensor.device().index()) : CPU;
  }

  /**
   * The same device as our kernels know it.
   *
   * @throws UnsupportedOperationException where they cannot use it
   */
  public org.espalier.device.Device device() {
    return isCuda() ? org.espalier.device.Device.cuda(index) : org.espalier.device.Device.cpu();
  }

  public boolean isCuda() {
    return index >= 0;
  }

  /** The tensor on this device; itself where it is there already. */
  public Tensor place(Tensor tensor) {
    if (isCuda() != tensor.is_cuda() || isCuda() && tensor.device().index() != index) {
      Device device = isCuda() ? new Device("cuda:" + index) : new Device("cpu");
      return tensor.to(device, tensor.scalar_type());
    }
    return tensor;
  }

  /**
   * The stream that libtorch enqueues this thread's work on, for kernels that must run in order with
   * it; null on the CPU.
   */
  public Pointer currentStream() {
    return isCuda() ? Streams.current(index) : null;
  }

  /**
   * That stream for our kernels, which then run in order with libtorch's work of this thread. It stays
   * libtorch's: ask anew for each use, closing it does nothing.
   *
   * @throws IllegalArgumentException on the CPU
   */
  public CudaStream stream() {
    return CudaStream.of(device(), currentStream());
  }

  /** A loss over tensors of this device, behind the work that made them. */
  public KdSoftmaxLoss.Result compute(KdSoftmaxLoss loss) {
    if (!isCuda()) {
      return loss.compute();
    }
    CudaStream stream = stream();
    loss.queue(stream);
    return loss.result(stream);
  }

  /** A step over tensors of this device, behind the work that made their gradients. */
  public StepResult step(FusedStep step) {
    if (!isCuda()) {
      return step.step();
    }
    CudaStream stream = stream();
    step.queue(stream);
    return step.result(stream);
  }

  /** A class of its own: the verifier of the JVM would look for the type of a stream on CPUs too. */
  private static final class Streams {
    static Pointer current(int index) {
      return torch_cuda.getCurrentCUDAStream((byte) index).stream();
    }
  }

  @Override
  public String toString() {
    return isCuda() ? "cuda:" + index : "cpu";
  }
}
