package org.espalier.online.memory;

import java.nio.FloatBuffer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;

/** The elements of F32 tensors in host memory. */
public final class Floats {
  private Floats() {}

  /** All of them where they lie, for bulk copies. Making it costs more than a small prediction. */
  public static FloatBuffer of(Tensor tensor) {
    return new FloatPointer(tensor.pointer()).capacity(tensor.elements()).asBuffer();
  }

  /** How many a row of a table has, which is what an index of the first axis stands for. */
  public static int rowLength(Tensor table) {
    return Math.toIntExact(table.elements() / table.dimension(0));
  }

  /** All of them in a new array. */
  public static float[] copy(Tensor tensor) {
    float[] copy = new float[Math.toIntExact(tensor.elements())];
    of(tensor).get(0, copy);
    return copy;
  }
}
