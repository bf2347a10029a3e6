package org.espalier.device;

import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier_cuda;

/** A point in a stream's work, for other streams to wait for and for measuring time. Close it. */
public final class CudaEvent implements AutoCloseable {
  private final Device device;
  private final Pointer handle;
  private boolean closed;

  private CudaEvent(Device device, Pointer handle) {
    this.device = device;
    this.handle = handle;
  }

  public static CudaEvent create(Device device) {
    CudaStream.requireCuda(device).makeCurrent();
    try (PointerPointer<Pointer> created = new PointerPointer<>(1)) {
      Status.checkCuda(espalier_cuda.esp_cuda_event_create(created));
      return new CudaEvent(device, created.get(0));
    }
  }

  /** Marks what is queued on the stream so far; an earlier mark is forgotten. */
  public void record(CudaStream stream) {
    device.makeCurrent();
    Status.checkCuda(espalier_cuda.esp_cuda_event_record(handle(), stream.handle()));
  }

  /** Waits until what was recorded has been done. */
  public void synchronize() {
    device.makeCurrent();
    Status.checkCuda(espalier_cuda.esp_cuda_event_synchronize(handle()));
  }

  /** Milliseconds from {@code start} to this event; both must have happened. */
  public float millisecondsSince(CudaEvent start) {
    device.makeCurrent();
    try (FloatPointer elapsed = new FloatPointer(1)) {
      Status.checkCuda(espalier_cuda.esp_cuda_event_elapsed(start.handle(), handle(), elapsed));
      return elapsed.get();
    }
  }

  synchronized Pointer handle() {
    if (closed) {
      throw new IllegalStateException("the event is closed");
    }
    return handle;
  }

  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      device.makeCurrent();
      Status.checkCuda(espalier_cuda.esp_cuda_event_destroy(handle));
    }
  }
}
