package org.espalier.device;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;

/**
 * A CUDA device for tests, with doubles of the host's memory. Tests that use it are tagged {@code device}:
 * they also run in a JVM whose CUDA library is the emulator of tests/cuda. Close it.
 */
public final class TestDevice implements AutoCloseable {
  /** The owner is kept so that the host's memory stays alive: its pointer alone does not see to that. */
  private record Double(Object owner, Pointer host, CudaMemory there, long bytes) {}

  private final Device device;
  private final List<Double> doubles = new ArrayList<>();

  /** The first device; the test is skipped where there is none, unless one is required. */
  public TestDevice() {
    if (!System.getProperty("espalier.test.device", "").equals("required")) {
      assumeTrue(Cuda.isAvailable(), "no CUDA device");
    }
    device = Device.cuda(0);
  }

  public Device device() {
    return device;
  }

  /** The double of a tensor; null for null. */
  public Tensor of(Tensor host) {
    if (host == null) {
      return null;
    }
    CudaMemory memory = add(host, host.pointer(), host.bytes());
    return CudaTensor.of(device, memory.pointer(), host.dtype(), host.shape());
  }

  /** The double of bytes from a pointer's position on; null for null. */
  public BytePointer of(BytePointer host, long bytes) {
    return host == null ? null : add(host, host.getPointer(), bytes).asBytes();
  }

  private CudaMemory add(Object owner, Pointer host, long bytes) {
    CudaMemory memory = CudaMemory.allocate(device, bytes);
    doubles.add(new Double(owner, host, memory, bytes));
    return memory;
  }

  /** Copies all memory to the device. */
  public void push() {
    CudaStream stream = CudaStream.defaultOf(device);
    doubles.forEach(d -> d.there.copyFrom(d.host, d.bytes, stream));
    stream.synchronize();
  }

  /** Copies all memory back. */
  public void pull() {
    CudaStream stream = CudaStream.defaultOf(device);
    doubles.forEach(d -> d.there.copyTo(d.host, d.bytes, stream));
    stream.synchronize();
  }

  @Override
  public void close() {
    doubles.forEach(d -> d.there.close());
  }
}
