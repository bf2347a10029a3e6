package org.espalier.online.model;

import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.online.OuterProduct;
import org.espalier.online.memory.Opened;

/** A model of dense layers with memory of its own: that of its weights, and room for a batch, made when one is larger. */
abstract class DenseModel extends ClosableModel implements OuterProduct {
  private final Opened memory = new Opened();
  private final Opened room = new Opened();
  private int capacity;

  /** Zeros that last as long as the model. */
  final OwnedTensor own(long... shape) {
    return memory.add(OwnedTensor.allocate(DType.F32, shape));
  }

  /**
   * Makes room for a batch of so many examples, at least one.
   *
   * @param opened takes what is to be closed when the room is too small
   */
  abstract void makeRoom(int count, Opened opened);

  /**
   * Makes room for a batch where there is too little.
   *
   * @throws IllegalArgumentException if its features or values are too many for a buffer
   */
  final void reserve(int count) {
    checkOpen();
    if (count <= capacity) {
      return;
    }
    int most = Integer.MAX_VALUE / Float.BYTES / width();
    if (count > most) {
      throw new IllegalArgumentException(
          "a batch of "
              + count
              + " examples; with "
              + features()
              + " features and "
              + outputs()
              + " outputs "
              + most
              + " are possible");
    }
    room.close();
    capacity = 0;
    makeRoom(count, room);
    capacity = count;
  }

  @Override
  void free() {
    room.close();
    memory.close();
  }
}
