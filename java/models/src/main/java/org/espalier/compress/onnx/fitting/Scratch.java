package org.espalier.compress.onnx.fitting;

import org.bytedeco.javacpp.FloatPointer;

/** Memory that kernels compute in. */
final class Scratch {
  private Scratch() {}

  /** So many floats, until they are closed, whatever scope is open here. */
  static FloatPointer floats(long count) {
    FloatPointer pointer = new FloatPointer(count);
    pointer.retainReference();
    return pointer;
  }
}
