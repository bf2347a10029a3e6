package org.espalier.op;

import org.bytedeco.javacpp.Pointer;

/** Native structs that an object holds until it is closed. */
final class Natives {
  private Natives() {}

  /**
   * Keeps a struct alive until its {@code close()}: without this a {@link org.bytedeco.javacpp.PointerScope} that
   * was open when it was made would free it at its end.
   */
  static <P extends Pointer> P keep(P struct) {
    struct.retainReference();
    return struct;
  }
}
