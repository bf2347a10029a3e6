package org.espalier.online;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.SavedState;

/**
 * The memory that steps change, floats and bits in a fixed order, of which checkpoints are made. What follows from other
 * memory is in none of them. Not for several threads.
 */
final class StateMemory implements AutoCloseable {
  private final List<OwnedTensor> owned = new ArrayList<>();
  private final List<BytePointer> bits = new ArrayList<>();
  private final List<FloatBuffer> floats = new ArrayList<>();
  private final List<ByteBuffer> bitMemory = new ArrayList<>();

  // What the states of format 3 have: of all memory in its order.
  private final List<Saved> savedFloats = new ArrayList<>();
  private final List<Saved> savedBits = new ArrayList<>();

  /**
   * Memory as states of format 3 have it.
   *
   * @param length floats, or bytes of bits
   * @param follows whether it follows from other memory
   */
  private record Saved(int length, boolean follows) {}

  /** Float memory, bits and the optimizer's steps by tensor at a moment. */
  record Checkpoint(List<float[]> floats, List<byte[]> bits, long[] steps) {}

  /** Floats of its own, zeros. */
  OwnedTensor own(long... shape) {
    OwnedTensor tensor = OwnedTensor.allocate(DType.F32, shape);
    owned.add(tensor);
    add(Floats.of(tensor));
    return tensor;
  }

  /** Floats of its own that follow from others. */
  OwnedTensor ownFollowing(long... shape) {
    OwnedTensor tensor = OwnedTensor.allocate(DType.F32, shape);
    owned.add(tensor);
    addFollowing(Floats.of(tensor));
    return tensor;
  }

  /** Bits of its own, none set. */
  BytePointer ownBits(long elements) {
    BytePointer pointer = bits(elements, false);
    bitMemory.add(pointer.asBuffer());
    return pointer;
  }

  /** Bits of its own that follow from other memory, all set. */
  BytePointer ownFollowingBits(long elements) {
    return bits(elements, true);
  }

  private BytePointer bits(long elements, boolean follow) {
    // Whole words, because kernels may read the last one whole.
    BytePointer pointer = new BytePointer((elements + 63) / 64 * 8);
    pointer.retainReference(); // a scope that is open here shall not free it
    BytePointer.memset(pointer, follow ? 0xff : 0, pointer.capacity());
    bits.add(pointer);
    savedBits.add(new Saved(Math.toIntExact(pointer.capacity()), follow));
    return pointer;
  }

  /** Floats of somebody else, which must stay where they are. */
  void add(FloatBuffer memory) {
    floats.add(memory);
    savedFloats.add(new Saved(memory.capacity(), false));
  }

  /** Floats that follow from others. */
  void addFollowing(FloatBuffer memory) {
    savedFloats.add(new Saved(memory.capacity(), true));
  }

  /** Makes zeros of the floats of its own. */
  void clearOwned() {
    owned.forEach(tensor -> clear(Floats.of(tensor)));
  }

  static void clear(FloatBuffer buffer) {
    buffer.put(0, new float[buffer.capacity()]);
  }

  Checkpoint copy(long[] steps) {
    List<float[]> values = new ArrayList<>();
    for (FloatBuffer memory : floats) {
      float[] copy = new float[memory.capacity()];
      memory.get(0, copy);
      values.add(copy);
    }
    List<byte[]> copies = new ArrayList<>();
    for (ByteBuffer memory : bitMemory) {
      byte[] copy = new byte[memory.capacity()];
      memory.get(0, copy);
      copies.add(copy);
    }
    return new Checkpoint(values, copies, steps);
  }

  void restore(Checkpoint checkpoint) {
    for (int i = 0; i < floats.size(); i++) {
      floats.get(i).put(0, checkpoint.floats().get(i));
    }
    for (int i = 0; i < bitMemory.size(); i++) {
      bitMemory.get(i).put(0, checkpoint.bits().get(i));
    }
  }

  static void write(DataOutput out, Checkpoint checkpoint) throws IOException {
    for (float[] values : checkpoint.floats()) {
      SavedState.write(out, values);
    }
    for (byte[] values : checkpoint.bits()) {
      out.writeInt(values.length);
      out.write(values);
    }
    for (long steps : checkpoint.steps()) {
      out.writeLong(steps);
    }
  }

  /**
   * Reads a checkpoint of this shape.
   *
   * @param format of the state that it is part of
   * @param tensors whose steps it has
   */
  Checkpoint read(DataInput in, int format, int tensors) throws IOException {
    boolean isWhole = format < 4;
    List<float[]> values = new ArrayList<>();
    for (Saved saved : savedFloats) {
      if (isWhole || !saved.follows) {
        float[] read = SavedState.floats(in, saved.length);
        if (!saved.follows) {
          values.add(read);
        }
      }
    }
    List<byte[]> copies = new ArrayList<>();
    for (Saved saved : savedBits) {
      if (isWhole || !saved.follows) {
        byte[] read = new byte[SavedState.count(in, saved.length, saved.length)];
        in.readFully(read);
        if (!saved.follows) {
          copies.add(read);
        }
      }
    }
    long[] steps = new long[tensors];
    for (int i = 0; i < steps.length; i++) {
      steps[i] = in.readLong();
      if (steps[i] < 0) {
        throw SavedState.damaged("a weight had " + steps[i] + " steps");
      }
    }
    return new Checkpoint(values, copies, steps);
  }

  @Override
  public void close() {
    owned.forEach(OwnedTensor::close);
    bits.forEach(BytePointer::close);
  }
}
