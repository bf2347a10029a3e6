package org.espalier.train;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.function.Consumer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.CudaTensor;
import org.espalier.device.DType;
import org.espalier.device.Device;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.torch.TorchDevice;

/**
 * Words of 32 bits that training keeps beside a model, in the memory of the device that it trains on, or a view
 * of what libtorch has there. What the host reads and writes of a GPU's memory is a copy, behind the work
 * that is queued.
 */
final class TrainingBuffer implements AutoCloseable {
  private static final int PIECE = 1 << 16;

  private final TorchDevice device;
  private final Tensor tensor;
  private final Runnable release;

  private TrainingBuffer(TorchDevice device, Tensor tensor, Runnable release) {
    this.device = device;
    this.tensor = tensor;
    this.release = release;
  }

  /** Memory of its own, all 0. */
  static TrainingBuffer zeros(TorchDevice device, long... shape) {
    Device place = device.device();
    if (!place.isCuda()) {
      OwnedTensor tensor = OwnedTensor.allocate(DType.F32, shape);
      return new TrainingBuffer(device, tensor, tensor::close);
    }
    long elements = 1;
    for (long size : shape) {
      elements *= size;
    }
    CudaMemory memory = CudaMemory.allocate(place, Math.max(1, elements) * DType.F32.bytes());
    device.queue(memory::zero);
    Tensor tensor = CudaTensor.of(place, memory.pointer(), DType.F32, shape);
    return new TrainingBuffer(device, tensor, memory::close);
  }

  /** Room for one bit an element, all 0. */
  static TrainingBuffer bits(TorchDevice device, long elements) {
    return zeros(device, (elements + 31) / 32);
  }

  /** A tensor of libtorch's; closing this does nothing to it. */
  static TrainingBuffer of(TorchDevice device, org.bytedeco.pytorch.Tensor tensor) {
    return new TrainingBuffer(device, device.view(tensor), () -> {});
  }

  Tensor tensor() {
    return tensor;
  }

  /**
   * Some of its floats in another shape.
   *
   * @param from the first of them
   */
  Tensor part(long from, long... shape) {
    Device place = device.device();
    FloatPointer first = floats().position(from);
    return place.isCuda()
        ? CudaTensor.of(place, first, DType.F32, shape)
        : Tensor.of(first, DType.F32, shape);
  }

  long elements() {
    return tensor.elements();
  }

  FloatPointer floats() {
    return new FloatPointer(pointer());
  }

  IntPointer ints() {
    return new IntPointer(pointer());
  }

  BytePointer bytes() {
    return new BytePointer(pointer());
  }

  private Pointer pointer() {
    return tensor.pointerOn(device.device());
  }

  /** Its floats. */
  float[] values() {
    float[] values = new float[Math.toIntExact(elements())];
    onHost(true, false, bytes -> bytes.asFloatBuffer().get(values));
    return values;
  }

  /** Its integers. */
  int[] integers() {
    int[] values = new int[Math.toIntExact(elements())];
    onHost(true, false, bytes -> bytes.asIntBuffer().get(values));
    return values;
  }

  /** Its floats as a constant of a model. */
  OnnxInitializer constant(String name, long[] dims) {
    ByteBuffer data =
        ByteBuffer.allocateDirect(Math.toIntExact(tensor.bytes())).order(ByteOrder.nativeOrder());
    onHost(true, false, bytes -> data.put(bytes).flip());
    return OnnxInitializer.of(name, DataType.FLOAT, dims, data);
  }

  /** Copies its bits, which are whole words. */
  void get(long[] words) {
    onHost(true, false, bytes -> bytes.asLongBuffer().get(words));
  }

  /** Its first bytes. */
  byte[] firstBytes(int count) {
    byte[] values = new byte[count];
    onHost(true, false, bytes -> bytes.get(values));
    return values;
  }

  /** Sets all floats. */
  void set(float... values) {
    onHost(false, true, bytes -> bytes.asFloatBuffer().put(values));
  }

  /** Lets {@code values} write all floats, from the first on, into memory outside of Java's heap. */
  void set(Consumer<FloatBuffer> values) {
    onHost(false, true, bytes -> values.accept(bytes.asFloatBuffer()));
  }

  /** Lets {@code work} change some floats. */
  void change(Consumer<FloatBuffer> work) {
    onHost(true, true, bytes -> work.accept(bytes.asFloatBuffer()));
  }

  /** Sets all integers. */
  void set(int... values) {
    onHost(false, true, bytes -> bytes.asIntBuffer().put(values));
  }

  /** Sets all bits to 1. */
  void setBits() {
    onHost(
        false,
        true,
        bytes -> {
          while (bytes.hasRemaining()) {
            bytes.put((byte) -1);
          }
        });
  }

  /** Writes the bytes. */
  void write(DataOutputStream out) throws IOException {
    try {
      onHost(true, false, bytes -> write(bytes, out));
    } catch (UncheckedIOException e) {
      throw e.getCause();
    }
  }

  private static void write(ByteBuffer from, DataOutputStream out) {
    byte[] piece = new byte[PIECE];
    try {
      while (from.hasRemaining()) {
        int n = Math.min(PIECE, from.remaining());
        from.get(piece, 0, n);
        out.write(piece, 0, n);
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Reads the bytes. */
  void read(DataInputStream in) throws IOException {
    try {
      onHost(false, true, bytes -> read(in, bytes));
    } catch (UncheckedIOException e) {
      throw e.getCause();
    }
  }

  private static void read(DataInputStream in, ByteBuffer to) {
    byte[] piece = new byte[PIECE];
    try {
      while (to.hasRemaining()) {
        int n = Math.min(PIECE, to.remaining());
        in.readFully(piece, 0, n);
        to.put(piece, 0, n);
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** Copies the values of another buffer of the same length. Both are on one device, or one of them is on the host. */
  void copyFrom(TrainingBuffer other) {
    boolean here = tensor.device().isCuda();
    boolean there = other.tensor.device().isCuda();
    if (here && there) {
      device.queue(stream -> stream.copy(other.tensor, tensor));
    } else if (here || there) {
      CudaStream stream = (here ? device : other.device).stream();
      stream.copy(other.tensor, tensor);
      stream.synchronize();
    } else {
      Pointer.memcpy(tensor.pointer(), other.tensor.pointer(), tensor.bytes());
    }
  }

  /** Lets the host work on the memory, or on a copy of a GPU's that is fetched before and sent after. */
  private void onHost(boolean fetch, boolean send, Consumer<ByteBuffer> work) {
    if (!tensor.device().isCuda()) {
      work.accept(hostBytes(tensor));
      return;
    }
    try (OwnedTensor copy = OwnedTensor.allocate(DType.F32, elements())) {
      CudaStream stream = device.stream();
      if (fetch) {
        stream.copy(tensor, copy);
        stream.synchronize();
      }
      work.accept(hostBytes(copy));
      if (send) {
        stream.copy(copy, tensor);
        stream.synchronize();
      }
    }
  }

  private static ByteBuffer hostBytes(Tensor tensor) {
    return new BytePointer(tensor.pointer())
        .capacity(tensor.bytes())
        .asByteBuffer()
        .order(ByteOrder.nativeOrder());
  }

  /** The floats of a tensor in host memory. */
  static FloatBuffer buffer(Tensor tensor) {
    return hostBytes(tensor).asFloatBuffer();
  }

  @Override
  public void close() {
    release.run();
  }
}
