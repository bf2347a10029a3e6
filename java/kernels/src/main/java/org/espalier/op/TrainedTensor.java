package org.espalier.op;

import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * What every optimizer asks of one tensor, checked, and as the native side sees it: rows x cols with
 * the channels along one of the two.
 */
record TrainedTensor(
    Tensor weight,
    Tensor gradient,
    BytePointer mask,
    BytePointer gate,
    WorkingCopy workingCopy,
    Scale scale) {
  TrainedTensor {
    long n = weight.elements();
    weight.requireWritable("weight");
    if (weight.dtype() != DType.F32) {
      throw new IllegalArgumentException("weight " + weight + ": F32 is needed in training");
    }
    if (gradient.elements() != n) {
      throw new IllegalArgumentException(
          "weight " + weight + ", gradient " + gradient + ": the sizes differ");
    }
    Bits.check("mask", mask, n);
    Bits.check("gate", gate, n);
    if (workingCopy != null) {
      workingCopy.check(weight);
      if (workingCopy.integers() != null && scale == null) {
        throw new IllegalArgumentException("an int8 working copy needs scales");
      }
    }
    if (scale != null) {
      if (!scale.given()) {
        scale.values().requireWritable("scales");
      }
      if (scale.channel() != Channel.TENSOR && weight.rank() == 0) {
        throw new IllegalArgumentException("a scalar has no axis to have channels along");
      }
      long channels = scale.channel().count(weight);
      if (scale.values().elements() != channels) {
        throw new IllegalArgumentException(
            scale.values().elements()
                + " scales for the "
                + channels
                + " channels of "
                + weight
                + " ("
                + scale.channel()
                + ")");
      }
    }
  }

  /** Refuses a state (momentum, a moment) that is not as large as the weight, or not F32. */
  void checkState(String name, Tensor state) {
    state.requireWritable(name);
    if (state.dtype() != DType.F32) {
      throw new IllegalArgumentException(name + " " + state + ": F32 is needed in training");
    }
    if (state.elements() != weight.elements()) {
      throw new IllegalArgumentException(
          "weight " + weight + ", " + name + " " + state + ": the sizes differ");
    }
  }

  /**
   * @throws IllegalStateException where memory of a parameter was closed since it was described
   */
  static void requireOpen(
      Tensor weight, BytePointer mask, BytePointer gate, WorkingCopy workingCopy, Scale scale) {
    weight.requireOpen();
    Lifetimes.requireOpen("mask", mask, weight.elements());
    Lifetimes.requireOpen("gate", gate, weight.elements());
    if (workingCopy != null) {
      Lifetimes.requireOpen(workingCopy.floats());
      Lifetimes.requireOpen("working copy", workingCopy.integers(), weight.elements());
    }
    if (scale != null) {
      scale.values().requireOpen();
    }
  }

  /** Refuses an option that is negative or no F32. */
  static void atLeastZero(String name, double value) {
    if (!(value >= 0 && Float.isFinite((float) value))) {
      throw new IllegalArgumentException(name + " " + value + "; finite and 0 or more is needed");
    }
  }

  /** The memory of a tensor that lies where the weight does. */
  FloatPointer floats(Tensor tensor) {
    return tensor == null ? null : new FloatPointer(at(tensor));
  }

  Pointer at(Tensor tensor) {
    return tensor.pointerOn(weight.device());
  }

  Channel channel() {
    return scale == null ? Channel.TENSOR : scale.channel();
  }

  long rows() {
    return channel() == Channel.LAST_AXIS ? others() : channels();
  }

  long cols() {
    return channel() == Channel.LAST_AXIS ? channels() : others();
  }

  private long channels() {
    return channel().count(weight);
  }

  private long others() {
    return channels() == 0 ? 0 : weight.elements() / channels();
  }

  Pointer copyMemory() {
    if (workingCopy == null) {
      return null;
    }
    return workingCopy.floats() == null ? workingCopy.integers() : at(workingCopy.floats());
  }

  int copyCode() {
    return workingCopy == null ? espalier.ESP_COPY_NONE : workingCopy.code();
  }

  FloatPointer scales() {
    return scale == null ? null : floats(scale.values());
  }

  int scaleGiven() {
    return scale != null && scale.given() ? 1 : 0;
  }
}
