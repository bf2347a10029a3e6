package org.espalier.op;

import org.bytedeco.javacpp.BytePointer;
import org.espalier.binding.global.espalier;
import org.espalier.device.Tensor;

/**
 * What forward sees: a copy of the weights, on the grid of the scales where there are any. One of
 * the two is null.
 *
 * @param floats as many elements as the weight, of any type
 * @param integers as many bytes: the integers of the grid; needs scales
 */
public record WorkingCopy(Tensor floats, BytePointer integers) {
  public WorkingCopy {
    if ((floats == null) == (integers == null)) {
      throw new IllegalArgumentException("a working copy is either of floats or of integers");
    }
  }

  /** Floats of the type of {@code copy}. */
  public static WorkingCopy of(Tensor copy) {
    return new WorkingCopy(copy, null);
  }

  /** The integers of the grid; needs scales. */
  public static WorkingCopy int8(BytePointer copy) {
    return new WorkingCopy(null, copy);
  }

  void check(Tensor weight) {
    long n = weight.elements();
    if (floats != null && floats.elements() != n) {
      throw new IllegalArgumentException(
          "weight " + weight + ", working copy " + floats + ": the sizes differ");
    }
    if (floats != null) {
      floats.requireWritable("working copy");
    }
    Lifetimes.requireMemory("the working copy", integers, n);
    if (integers != null && integers.limit() > 0 && integers.limit() - integers.position() < n) {
      throw new IllegalArgumentException(
          "the working copy holds "
              + (integers.limit() - integers.position())
              + " bytes, "
              + weight
              + " needs "
              + n);
    }
  }

  int code() {
    return floats == null
        ? espalier.ESP_COPY_INT8
        : switch (floats.dtype()) {
          case F32 -> espalier.ESP_COPY_F32;
          case BF16 -> espalier.ESP_COPY_BF16;
          case F16 -> espalier.ESP_COPY_F16;
        };
  }
}
