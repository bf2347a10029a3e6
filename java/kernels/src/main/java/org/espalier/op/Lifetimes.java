package org.espalier.op;

import org.bytedeco.javacpp.Pointer;
import org.espalier.device.Tensor;

/**
 * What an operation looks at before each call that it holds memory for in native form: an address stays where memory was
 * freed, and native code would read and write what is another's by then.
 */
final class Lifetimes {
  private Lifetimes() {}

  /**
   * @param tensor null: nothing
   * @throws IllegalStateException where the tensor's memory was closed
   */
  static void requireOpen(Tensor tensor) {
    if (tensor != null) {
      tensor.requireOpen();
    }
  }

  /**
   * @param pointer null: nothing
   * @param n how many elements it was given for
   * @throws IllegalStateException where the pointer was closed
   */
  static void requireOpen(String name, Pointer pointer, long n) {
    if (pointer != null && n > 0 && pointer.isNull()) {
      throw new IllegalStateException("the memory of " + name + " is closed");
    }
  }

  /**
   * Refuses a pointer that was closed before it was given, or was never allocated: native code takes it for none.
   *
   * @param pointer null: nothing
   * @throws IllegalArgumentException where it points nowhere
   */
  static void requireMemory(String name, Pointer pointer, long n) {
    if (pointer != null && n > 0 && pointer.isNull()) {
      throw new IllegalArgumentException(
          name + " is a null pointer, closed or never allocated; null says that there is none");
    }
  }
}
