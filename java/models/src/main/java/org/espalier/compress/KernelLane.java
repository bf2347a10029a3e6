package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.function.Consumer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/** Observes and quantizes rows with the CPU's kernels. */
final class KernelLane implements RowLane {
  private final FakeQuantize observer;
  private final FakeQuantize quantizer;
  private final PieceBuffer integers = new PieceBuffer(RowQuantizer.PIECE);
  private Tensor rows;

  KernelLane(FakeQuantize observer, FakeQuantize quantizer) {
    this.observer = observer;
    this.quantizer = quantizer;
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
      quantizer.run(
          FakeQuantize.Job.real(
              RowQuantizer.matrix(part, count, length / count),
              integers.pointer(),
              scales,
              zeroPoints));
      sink.accept(integers.first(length));
    }
  }

  @Override
  public void close() {
    integers.close();
  }
}
