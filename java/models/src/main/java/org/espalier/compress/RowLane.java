package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.function.Consumer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/** What observes and quantizes rows of a matrix, one set of rows at a time. */
interface RowLane extends AutoCloseable {
  /** Begins with rows of a matrix, a tensor [rows, columns] in the host's memory. */
  void start(Tensor rows);

  /**
   * Ends what was begun.
   *
   * @param scales receives the observed scale of each row
   * @return what is not finite
   */
  FakeQuantize.NonFinite observe(FloatPointer scales);

  /** Hands over the integers of the rows for their scales, in one piece or several. */
  void quantize(FloatPointer scales, Consumer<ByteBuffer> integers);

  @Override
  void close();
}
