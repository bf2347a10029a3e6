package org.espalier.torch;

import java.util.List;
import java.util.function.Consumer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch_cuda;
import org.espalier.device.Cuda;
import org.espalier.device.CudaStream;
import org.espalier.op.FakeQuantize;
import org.espalier.op.FusedStep;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.ScaleGradients;
import org.espalier.op.StepResult;
import org.slf4j.LoggerFactory;

/**
 * Where a model's tensors are; the only class that knows of libtorch on GPUs. Those need the build
 * with {@code -Pgpu}, whose class path has the GPU's libtorch in place of the CPU's. This class was
 * compiled against it but has not run on a GPU yet.
 */
public final class TorchDevice {
  /** Host memory. */
  public static final TorchDevice CPU = new TorchDevice(-1, null);

  /** Of libtorch's GPU; -1: host memory. */
  private final int index;

  /** The device of the kernels; null for the one that holds libtorch's tensors. */
  private final org.espalier.device.Device kernels;

  private TorchDevice(int index, org.espalier.device.Device kernels) {
    this.index = index;
    this.kernels = kernels;
  }

  /**
   * Tensors in host memory and our kernels on a CUDA device that reads and writes host memory, as the
   * emulator of the tests does.
   */
  static TorchDevice hostMemoryOf(org.espalier.device.Device kernels) {
    return new TorchDevice(-1, kernels);
  }

  /**
   * A GPU.
   *
   * @throws UnsupportedOperationException where this libtorch sees no such GPU, or our kernels cannot use it
   */
  public static TorchDevice cuda(int index) {
    Libtorch.load();
    if (!torch.cuda_is_available()) {
      throw new UnsupportedOperationException(
          "libtorch sees no GPU; it takes a driver of CUDA 13 (580 or newer) and a build with"
              + " -Pgpu");
    }
    Cuda.requireAvailable();
    int count = torch.cuda_device_count();
    if (index < 0 || index >= count) {
      throw new UnsupportedOperationException(
          "there is no GPU " + index + "; libtorch sees " + count + ", numbered from 0");
    }
    return new TorchDevice(index, null);
  }

  /** The first GPU where libtorch sees one and our kernels can use it, host memory otherwise. */
  public static TorchDevice best() {
    Libtorch.load();
    if (!torch.cuda_is_available()) {
      return CPU;
    }
    if (!Cuda.isAvailable()) {
      LoggerFactory.getLogger(TorchDevice.class)
          .warn(
              "libtorch sees a GPU; training on the CPU: {}",
              Cuda.unavailabilityCause().getMessage());
      return CPU;
    }
    return cuda(0);
  }

  /** Where a tensor is. */
  public static TorchDevice of(Tensor tensor) {
    return tensor.is_cuda() ? new TorchDevice(tensor.device().index(), null) : CPU;
  }

  /**
   * The same device as our kernels know it.
   *
   * @throws UnsupportedOperationException where they cannot use it
   */
  public org.espalier.device.Device device() {
    if (kernels != null) {
      return kernels;
    }
    return isCuda() ? org.espalier.device.Device.cuda(index) : org.espalier.device.Device.cpu();
  }

  /** Whether tensors are on a GPU. */
  public boolean isCuda() {
    return index >= 0;
  }

  /** Whether our kernels run on a GPU. */
  public boolean hasCudaKernels() {
    return kernels != null || isCuda();
  }

  /** A view of a tensor of this device for our kernels, see {@link TensorView#of}. */
  public org.espalier.device.Tensor view(Tensor tensor) {
    return kernels == null ? TensorView.of(tensor) : TensorView.of(tensor, kernels);
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
  private Pointer currentStream() {
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

  /**
   * Queues kernels between what libtorch has been given by this thread and what it will be.
   *
   * @throws IllegalArgumentException where our kernels run on the CPU
   */
  public void queue(Consumer<CudaStream> work) {
    CudaStream stream = stream();
    work.accept(stream);
    if (!isCuda()) {
      stream.synchronize(); // libtorch computes on the host and waits for no stream
    }
  }

  /** Quantizes tensors of this device, behind the work that made them; scales that are given must be usable. */
  public void run(FakeQuantize.Batch batch) {
    if (hasCudaKernels()) {
      queue(batch::queue);
    } else {
      batch.run();
    }
  }

  /** The same for gradients of scales. */
  public void run(ScaleGradients gradients) {
    if (hasCudaKernels()) {
      queue(gradients::queue);
    } else {
      gradients.run();
    }
  }

  /** Prunes tensors of this device, behind the work that made them. */
  public MagnitudePrune.Result prune(List<MagnitudePrune.Weights> list, MagnitudePrune.Rule rule) {
    try (MagnitudePrune.Batch batch = MagnitudePrune.batch(list, rule)) {
      if (!hasCudaKernels()) {
        return batch.run();
      }
      CudaStream stream = stream();
      batch.queue(stream);
      return batch.result(stream);
    }
  }

  /** A loss over tensors of this device, behind the work that made them. */
  public KdSoftmaxLoss.Result compute(KdSoftmaxLoss loss) {
    if (!hasCudaKernels()) {
      return loss.compute();
    }
    CudaStream stream = stream();
    loss.queue(stream);
    return loss.result(stream);
  }

  /** A step over tensors of this device, behind the work that made their gradients. */
  public StepResult step(FusedStep step) {
    if (!hasCudaKernels()) {
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
