package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.function.Consumer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/** Observes rows of a matrix, which gives their scales, and quantizes them, one set of rows at a time. */
interface RowLane extends AutoCloseable {
  /** Begins with rows of a matrix, a tensor [rows, columns] in the host's memory. */
  void start(Tensor rows);

  /**
   * Ends what was begun.
   *
   * @param scales receives the observed scale of each row
   * @param zeroPoints receives the zero points; null where all are 0
   * @return what is not finite
   */
  FakeQuantize.NonFinite observe(FloatPointer scales, IntPointer zeroPoints);

  /** Hands over the integers of the rows for their scales and zero points, in one piece or several. */
  void quantize(FloatPointer scales, IntPointer zeroPoints, Consumer<ByteBuffer> integers);

  @Override
  void close();
}
