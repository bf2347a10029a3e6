package org.espalier.device;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier_cuda;

/**
 * A queue of work on a CUDA device: what is queued on one stream runs in order. Close a stream that was
 * created here; one that belongs to somebody else (torch's current stream, a stream of the JavaCPP
 * presets) is not destroyed. Thread safe, as CUDA's streams are; close when nothing is queued any more.
 */
public final class CudaStream implements AutoCloseable {
  private final Device device;
  private final Pointer handle;
  private final boolean owned;
  private boolean closed;

  private CudaStream(Device device, Pointer handle, boolean owned) {
    this.device = requireCuda(device);
    this.handle = handle;
    this.owned = owned;
  }

  static Device requireCuda(Device device) {
    if (!device.isCuda()) {
      throw new IllegalArgumentException("a CUDA device is needed, not the " + device);
    }
    return device;
  }

  /** Creates a stream that does not wait for the default stream. */
  public static CudaStream create(Device device) {
    requireCuda(device).makeCurrent();
    try (PointerPointer<Pointer> created = new PointerPointer<>(1)) {
      Status.checkCuda(espalier_cuda.esp_cuda_stream_create(created));
      return new CudaStream(device, created.get(0), true);
    }
  }

  /** The device's default stream. */
  public static CudaStream defaultOf(Device device) {
    return new CudaStream(device, null, false);
  }

  /**
   * Somebody else's stream.
   *
   * @param handle a {@code cudaStream_t}, such as a {@code CUstream_st} of the presets; null or address 0: the
   *     default stream
   */
  public static CudaStream of(Device device, Pointer handle) {
    return new CudaStream(device, handle, false);
  }

  public Device device() {
    return device;
  }

  /**
   * The {@code cudaStream_t}; null: the default stream.
   *
   * @throws IllegalStateException after close
   */
  public synchronized Pointer handle() {
    if (closed) {
      throw new IllegalStateException("the stream is closed");
    }
    return handle;
  }

  /**
   * Waits until all that is queued has been done.
   *
   * @throws org.espalier.binding.NativeException where some of it failed
   */
  public void synchronize() {
    device.makeCurrent();
    Status.checkCuda(espalier_cuda.esp_cuda_stream_synchronize(handle()));
  }

  /** What is queued from now on starts after what the event has recorded. */
  public void waitFor(CudaEvent event) {
    device.makeCurrent();
    Status.checkCuda(espalier_cuda.esp_cuda_stream_wait(handle(), event.handle()));
  }

  /**
   * Queues a copy. Either side may be on this device or in host memory, which must stay as it is until
   * the copy is done; only from and to {@linkplain PinnedTensor page-locked} memory does it run beside
   * other work.
   *
   * @throws IllegalArgumentException where types or numbers of elements differ, or a side is on another
   *     device
   */
  public void copy(Tensor from, Tensor to) {
    if (from.dtype() != to.dtype() || from.elements() != to.elements()) {
      throw new IllegalArgumentException("a copy of " + from + " to " + to);
    }
    device.makeCurrent();
    Status.checkCuda(
        espalier_cuda.esp_cuda_copy(reachable(to), reachable(from), from.bytes(), handle()));
  }

  private Pointer reachable(Tensor tensor) {
    return tensor.device().isCuda() ? tensor.pointerOn(device) : tensor.pointer();
  }

  @Override
  public synchronized void close() {
    if (!closed && owned) {
      device.makeCurrent();
      Status.checkCuda(espalier_cuda.esp_cuda_stream_destroy(handle));
    }
    closed = true;
  }
}
