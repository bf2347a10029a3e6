package org.espalier.torch.onnx;

import java.util.Arrays;
import org.bytedeco.pytorch.Tensor;
import org.espalier.torch.TorchDevice;

/** The values of a program while it runs, by slot. */
final class Frame {
  private final TorchDevice device;
  private Tensor[] tensors = new Tensor[16];

  /** The integers of a value on the host, once they were read; null otherwise. */
  private long[][] longs = new long[16][];

  private boolean training;

  Frame(TorchDevice device) {
    this.device = device;
  }

  void reserve(int slots) {
    if (slots > tensors.length) {
      tensors = Arrays.copyOf(tensors, 2 * slots);
      longs = Arrays.copyOf(longs, 2 * slots);
    }
  }

  Tensor get(int slot) {
    return tensors[slot];
  }

  void set(int slot, Tensor tensor) {
    restore(slot, tensor, null);
  }

  /** Puts a value back together with its integers on the host. */
  void restore(int slot, Tensor tensor, long[] values) {
    tensors[slot] = tensor;
    longs[slot] = values;
  }

  /** Takes a value out; the caller owns it then. */
  Tensor take(int slot) {
    Tensor t = tensors[slot];
    restore(slot, null, null);
    return t;
  }

  /** Frees the value of a slot, if it has one. */
  void release(int slot) {
    Tensor t = take(slot);
    if (t != null) {
      t.close();
    }
  }

  long[] longs(int slot) {
    return longs[slot];
  }

  void remember(int slot, long[] values) {
    longs[slot] = values;
  }

  boolean isTraining() {
    return training;
  }

  void train(boolean on) {
    training = on;
  }

  Tensor place(Tensor tensor) {
    return device.place(tensor);
  }
}
