package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.List;
import org.espalier.InputException;
import org.espalier.device.Tensor;
import org.espalier.op.MagnitudePrune;

/** Pieces that the CPU's kernels make from the mapped weights. */
final class KernelPieces implements PrunedPieces {
  /** Elements of a piece; a multiple of 8, so that masks are cut between bytes. */
  static final int PIECE = 1 << 20;

  private static final long MAX_PIECE = 1 << 26;

  private final CheckpointPruner.Job job;
  private final List<CheckpointPruner.Chosen> chosen;
  private final MagnitudePrune.Selection selection;
  private final PieceBuffer weights;
  private final PieceBuffer bits;
  private long elements;
  private int elementBytes;

  /**
   * @param selection of the chosen tensors in their order; null for a pattern
   */
  KernelPieces(
      CheckpointPruner.Job job,
      List<CheckpointPruner.Chosen> chosen,
      MagnitudePrune.Selection selection) {
    this.job = job;
    this.chosen = chosen;
    this.selection = selection;
    int largest = pieceElements();
    this.weights = new PieceBuffer(4 * largest);
    this.bits = new PieceBuffer(largest / 8 + 1);
  }

  @Override
  public float threshold() {
    return selection == null ? Float.NaN : selection.threshold();
  }

  @Override
  public long make(int index, long from, long count) {
    CheckpointPruner.Chosen one = chosen.get(index);
    Tensor view = one.view().slice(from, count);
    long[] shape = {count};
    if (selection == null) {
      // Rows of [out, in, ...]; for a matrix any run of whole groups will do.
      long inner = inner(one);
      shape = inner == 1 ? shape : new long[] {count / (inner * in(one)), in(one), inner};
      view = Tensor.ofAddress(view.address(), view.bytes(), view.dtype(), shape);
    }
    elements = count;
    elementBytes = view.dtype().bytes();
    MagnitudePrune.Weights piece =
        MagnitudePrune.Weights.of(one.where(), view)
            .to(weights.tensor(view.dtype(), shape))
            .maskIn(one.maskIn(from, count))
            .maskOut(job.maskOut() == null ? null : bits.pointer())
            .axis(Math.min(1, shape.length - 1));
    return selection != null
        ? selection.apply(index, from, piece)
        : MagnitudePrune.prune(List.of(piece), job.rule()).pruned();
  }

  @Override
  public ByteBuffer weights() {
    return weights.first(elements * elementBytes);
  }

  @Override
  public ByteBuffer bits() {
    return bits.first((elements + 7) / 8);
  }

  /** Whole groups, and rows where groups are not contiguous. */
  @Override
  public long step(int index) {
    return step(chosen.get(index));
  }

  private long step(CheckpointPruner.Chosen one) {
    if (!(job.rule() instanceof MagnitudePrune.Pattern pattern)) {
      return PIECE;
    }
    long unit = inner(one) == 1 ? pattern.group() : in(one) * inner(one);
    // Of whole bytes of masks too.
    long whole = Math.multiplyExact(unit, 8);
    return whole * Math.max(1, PIECE / whole);
  }

  private int pieceElements() {
    long largest = chosen.stream().mapToLong(this::step).max().orElse(PIECE);
    if (largest > MAX_PIECE) {
      throw new InputException(
          job.model()
              + ": eight rows of a convolution have "
              + largest
              + " weights; at most "
              + MAX_PIECE
              + " can be pruned by a pattern");
    }
    return (int) largest;
  }

  /** The size of the reduction axis. */
  private static long in(CheckpointPruner.Chosen one) {
    return one.view().dimension(Math.min(1, one.view().rank() - 1));
  }

  /** Elements between neighbours on the reduction axis. */
  private static long inner(CheckpointPruner.Chosen one) {
    long inner = 1;
    for (int axis = 2; axis < one.view().rank(); axis++) {
      inner *= one.view().dimension(axis);
    }
    return inner;
  }

  @Override
  public void close() {
    weights.close();
    bits.close();
  }
}
