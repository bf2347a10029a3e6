package org.espalier.torch.onnx;

import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;

/** The inputs of a step while it runs. */
final class Inputs {
  private final Frame frame;
  private final int[] slots;
  private final Operator operator;

  /** Inputs that a transform replaced for this run; null without transforms. */
  private Tensor[] replaced;

  Inputs(Frame frame, int[] slots, Operator operator) {
    this.frame = frame;
    this.slots = slots;
    this.operator = operator;
  }

  int size() {
    return slots.length;
  }

  boolean has(int i) {
    return i < slots.length && slots[i] >= 0;
  }

  Tensor get(int i) {
    if (replaced != null && i < replaced.length && replaced[i] != null) {
      return replaced[i];
    }
    checkPresent(i);
    return frame.get(slots[i]);
  }

  private void checkPresent(int i) {
    if (!has(i)) {
      throw new InputException("input " + i + " is missing");
    }
  }

  Tensor orNull(int i) {
    return has(i) ? get(i) : null;
  }

  TensorOptional optional(int i) {
    return has(i) ? new TensorOptional(get(i)) : new TensorOptional();
  }

  ScalarType type(int i) {
    return ElementTypes.of(get(i));
  }

  /** All inputs, which must be present. */
  Tensor[] all() {
    Tensor[] all = new Tensor[slots.length];
    for (int i = 0; i < all.length; i++) {
      all[i] = get(i);
    }
    return all;
  }

  /** The values of an input, as integers on the host; the array must not be changed. */
  long[] longs(int i) {
    checkDeclared(i);
    checkPresent(i);
    long[] known = frame.longs(slots[i]);
    if (known == null) {
      Tensor t = get(i).to(ScalarType.Long).cpu().contiguous();
      known = new long[Math.toIntExact(t.numel())];
      if (known.length > 0) {
        LongPointer p = t.data_ptr_long();
        p.get(known);
      }
      frame.remember(slots[i], known);
    }
    return known;
  }

  /** {@link #longs(int)}, or null where the input is absent. */
  long[] longsOrNull(int i) {
    return has(i) ? longs(i) : null;
  }

  /** The values of an input, as real numbers on the host. */
  double[] doubles(int i) {
    checkDeclared(i);
    Tensor t = get(i).to(ScalarType.Double).cpu().contiguous();
    double[] values = new double[Math.toIntExact(t.numel())];
    if (values.length > 0) {
      DoublePointer p = t.data_ptr_double();
      p.get(values);
    }
    return values;
  }

  private void checkDeclared(int i) {
    if (!operator.readsOnHost(i)) {
      throw new IllegalStateException(
          operator.name() + " reads input " + i + " on the host but its entry does not say so");
    }
  }

  boolean isTraining() {
    return frame.isTraining();
  }

  /** An int64 tensor of host values, on the device of the model. */
  Tensor tensor(long[] values, long... shape) {
    Tensor t =
        values.length == 0
            ? org.bytedeco.pytorch.global.torch.zeros(
                shape, new org.bytedeco.pytorch.TensorOptions(ScalarType.Long))
            : AbstractTensor.create(values, shape);
    return frame.place(t);
  }

  /** A float64 tensor of host values, on the device of the model. */
  Tensor tensor(double[] values, long... shape) {
    return frame.place(AbstractTensor.create(values, shape));
  }

  /** {@code tensor} on the device of the model. */
  Tensor place(Tensor tensor) {
    return frame.place(tensor);
  }

  void replace(int i, Tensor tensor) {
    if (replaced == null) {
      replaced = new Tensor[2];
    }
    replaced[i] = tensor;
  }

  void clearReplaced() {
    replaced = null;
  }
}
