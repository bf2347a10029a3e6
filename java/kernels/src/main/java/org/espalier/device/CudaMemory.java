package org.espalier.device;

import java.lang.ref.Reference;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier_cuda;

/**
 * Bytes of a CUDA device, or page-locked bytes of the host, aligned to 256. Close them when no queued
 * work uses them; memory that is forgotten is reported when the garbage collector finds it, and freed
 * then.
 */
public final class CudaMemory implements AutoCloseable {
  private final Device device;
  private final NativeMemory memory;

  private CudaMemory(Device device, long address, long bytes) {
    this.device = device;
    memory =
        new NativeMemory(
            this,
            "CUDA memory of " + bytes + " bytes",
            address,
            bytes,
            block -> release(device, block));
  }

  private static void release(Device device, Pointer block) {
    device.makeCurrent();
    Status.checkCuda(
        device.isCuda()
            ? espalier_cuda.esp_cuda_release(block)
            : espalier_cuda.esp_cuda_host_release(block));
  }

  /**
   * Memory of a device. What it holds is not defined.
   *
   * @throws OutOfMemoryError where the device has no such memory
   */
  public static CudaMemory allocate(Device device, long bytes) {
    CudaStream.requireCuda(device).makeCurrent();
    try (PointerPointer<Pointer> result = new PointerPointer<>(1)) {
      Status.checkCuda(espalier_cuda.esp_cuda_allocate(bytes, result));
      return new CudaMemory(device, addressOf(result), bytes);
    }
  }

  /**
   * Page-locked memory of the host, from and to which copies run beside other work.
   *
   * @throws UnsupportedOperationException with the reason, where CUDA cannot be used
   * @throws OutOfMemoryError where there is no such memory
   */
  public static CudaMemory pinned(long bytes) {
    Cuda.requireAvailable();
    try (PointerPointer<Pointer> result = new PointerPointer<>(1)) {
      Status.checkCuda(espalier_cuda.esp_cuda_host_allocate(bytes, result));
      return new CudaMemory(Device.cpu(), addressOf(result), bytes);
    }
  }

  private static long addressOf(PointerPointer<Pointer> result) {
    Pointer found = result.get(0);
    return found == null ? 0 : found.address();
  }

  /** Where the memory is; page-locked memory is the CPU's. */
  public Device device() {
    return device;
  }

  public long bytes() {
    return memory.bytes();
  }

  /**
   * @throws IllegalStateException after close
   */
  public Pointer pointer() {
    return Tensor.at(memory.address(), bytes());
  }

  /**
   * @throws IllegalStateException after close
   */
  void requireOpen() {
    memory.address();
  }

  /** The memory as operations take bytes and bit fields. */
  public BytePointer asBytes() {
    BytePointer bytes = new BytePointer(pointer());
    bytes.position(0).capacity(bytes()).limit(bytes());
    return bytes;
  }

  public FloatPointer asFloats() {
    FloatPointer floats = new FloatPointer(pointer());
    floats.position(0).capacity(bytes() / 4).limit(bytes() / 4);
    return floats;
  }

  public IntPointer asInts() {
    IntPointer ints = new IntPointer(pointer());
    ints.position(0).capacity(bytes() / 4).limit(bytes() / 4);
    return ints;
  }

  public LongPointer asLongs() {
    LongPointer longs = new LongPointer(pointer());
    longs.position(0).capacity(bytes() / 8).limit(bytes() / 8);
    return longs;
  }

  /**
   * Queues a copy of the first {@code bytes} bytes from this device or from host memory, which must stay as it is
   * until the copy is done.
   */
  public void copyFrom(Pointer source, long bytes, CudaStream stream) {
    copyFrom(0, source, bytes, stream);
  }

  /** Queues a copy of {@code bytes} bytes from there to byte {@code offset} and on. */
  public void copyFrom(long offset, Pointer source, long bytes, CudaStream stream) {
    copy(at(offset, bytes), source, bytes, stream);
    Reference.reachabilityFence(this);
  }

  /** Queues a copy of the first {@code bytes} bytes to host memory or to memory of this device. */
  public void copyTo(Pointer destination, long bytes, CudaStream stream) {
    copyTo(0, destination, bytes, stream);
  }

  /** Queues a copy of {@code bytes} bytes from byte {@code offset} on. */
  public void copyTo(long offset, Pointer destination, long bytes, CudaStream stream) {
    copy(destination, at(offset, bytes), bytes, stream);
    Reference.reachabilityFence(this);
  }

  private Pointer at(long offset, long bytes) {
    if (offset < 0 || bytes < 0 || bytes > bytes() - offset) {
      throw new IllegalArgumentException(
          bytes + " bytes from " + offset + " on of memory of " + bytes());
    }
    return Tensor.at(pointer().address() + offset, bytes);
  }

  private static void copy(Pointer destination, Pointer source, long bytes, CudaStream stream) {
    stream.device().makeCurrent();
    Status.checkCuda(espalier_cuda.esp_cuda_copy(destination, source, bytes, stream.handle()));
  }

  /** Queues filling with zeros; device memory only. */
  public void zero(CudaStream stream) {
    stream.device().makeCurrent();
    Status.checkCuda(espalier_cuda.esp_cuda_fill_zero(pointer(), bytes(), stream.handle()));
    Reference.reachabilityFence(this);
  }

  /** Frees the memory. Closing twice does nothing. */
  @Override
  public void close() {
    memory.close();
  }
}
