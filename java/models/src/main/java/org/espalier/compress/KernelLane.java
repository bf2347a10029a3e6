package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.function.Consumer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/** Observes and quantizes rows on the CPU. */
final class KernelLane implements RowLane {
  /** Makes what is stored of rows. */
  @FunctionalInterface
  interface Rounding {
    /**
     * @param rows [rows, columns] in the host's memory
     * @param zeroPoints null where all are 0
     * @param stored receives a byte for each element
     */
    void round(Tensor rows, FloatPointer scales, IntPointer zeroPoints, BytePointer stored);
  }

  private final FakeQuantize observer;
  private final Rounding rounding;
  private final PieceBuffer integers = new PieceBuffer(RowQuantizer.PIECE);
  private Tensor rows;

  KernelLane(FakeQuantize observer, Rounding rounding) {
    this.observer = observer;
    this.rounding = rounding;
  }

  @Override
  public void start(Tensor rows) {
    this.rows = rows;
  }

  @Override
  public FakeQuantize.NonFinite observe(FloatPointer scales, IntPointer zeroPoints) {
    return observer.run(FakeQuantize.Job.observe(rows, scales, zeroPoints));
  }

  /** {@inheritDoc} A row longer than a piece comes alone and goes in several. */
  @Override
  public void quantize(FloatPointer scales, IntPointer zeroPoints, Consumer<ByteBuffer> sink) {
    long count = rows.dimension(0);
    for (long from = 0; from < rows.elements(); from += RowQuantizer.PIECE) {
      long length = Math.min(RowQuantizer.PIECE, rows.elements() - from);
      Tensor part = rows.slice(from, length);
      rounding.round(
          RowQuantizer.matrix(part, count, length / count), scales, zeroPoints, integers.pointer());
      sink.accept(integers.first(length));
    }
  }

  @Override
  public void close() {
    integers.close();
  }
}
