package org.espalier.compress;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.device.Tensor;
import org.espalier.format.AtomicFile;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.op.MagnitudePrune;

/** Writes a pruned checkpoint, and its masks where they are wanted, piece by piece. */
final class PruneWriter {
  /** Elements of a piece; a multiple of 8, so that masks are cut between bytes. */
  private static final int PIECE = 1 << 20;

  private static final long MAX_PIECE = 1 << 26;

  private final CheckpointPruner.Job job;
  private final Checkpoint input;
  private final List<CheckpointPruner.Chosen> chosen;
  private final MagnitudePrune.Selection selection;
  private final Progress progress;
  private long writeNanos;

  /**
   * @param selection of the chosen tensors in their order; null for a pattern
   */
  PruneWriter(
      CheckpointPruner.Job job,
      Checkpoint input,
      List<CheckpointPruner.Chosen> chosen,
      MagnitudePrune.Selection selection,
      Progress progress) {
    this.job = job;
    this.input = input;
    this.chosen = chosen;
    this.selection = selection;
    this.progress = progress;
  }

  /** Writes all and gives the files their names. */
  List<MagnitudePrune.TensorResult> write() {
    long create = System.nanoTime();
    try (CheckpointOutput output =
            CheckpointOutput.create(input, job.target(), t -> List.of(TensorSpec.of(t)), Map.of());
        AtomicFile maskFile = job.maskOut() == null ? null : AtomicFile.create(job.maskOut());
        PieceBuffer weights = new PieceBuffer(4 * pieceElements());
        PieceBuffer bits = new PieceBuffer(pieceElements() / 8 + 1)) {
      SafetensorsWriter masks = maskFile == null ? null : maskWriter(maskFile);
      writeNanos += System.nanoTime() - create;
      List<MagnitudePrune.TensorResult> results = writeTensors(output, masks, weights, bits);
      if (masks == null) {
        output.commit();
      } else {
        masks.finish();
        output.commit(maskFile);
      }
      writeNanos += output.writeNanos();
      return results;
    }
  }

  /** Time spent with files, in nanoseconds. */
  long writeNanos() {
    return writeNanos;
  }

  private SafetensorsWriter maskWriter(AtomicFile file) {
    List<TensorInfo> tensors = chosen.stream().map(CheckpointPruner.Chosen::tensor).toList();
    return new SafetensorsWriter(file, MaskFile.specs(tensors), MaskFile.metadata(tensors));
  }

  private List<MagnitudePrune.TensorResult> writeTensors(
      CheckpointOutput output, SafetensorsWriter masks, PieceBuffer weights, PieceBuffer bits) {
    Map<String, Integer> indexOf = new HashMap<>();
    for (int i = 0; i < chosen.size(); i++) {
      indexOf.put(chosen.get(i).tensor().name(), i);
    }
    MagnitudePrune.TensorResult[] results = new MagnitudePrune.TensorResult[chosen.size()];
    long total = input.tensors().stream().mapToLong(TensorInfo::bytes).sum();
    long done = 0;
    for (TensorInfo tensor : input.tensorsByPlace()) {
      Integer index = indexOf.get(tensor.name());
      if (index == null) {
        progress.at(Progress.Phase.WRITE, done, total);
        output.copy(tensor);
      } else {
        CheckpointPruner.Chosen one = chosen.get(index);
        long elements = tensor.elements();
        long step = step(one);
        long pruned = 0;
        for (long from = 0; from < elements; from += step) {
          progress.at(Progress.Phase.WRITE, done + from * one.view().dtype().bytes(), total);
          long count = Math.min(step, elements - from);
          pruned += prune(index, one, from, count, masks, weights, bits);
          output.append(tensor.name(), weights.first(count * one.view().dtype().bytes()));
          if (masks != null) {
            long start = System.nanoTime();
            masks.append(tensor.name(), bits.first((count + 7) / 8));
            writeNanos += System.nanoTime() - start;
          }
        }
        results[index] = new MagnitudePrune.TensorResult(tensor.name(), elements, pruned);
      }
      done += tensor.bytes();
    }
    progress.at(Progress.Phase.WRITE, total, total);
    return List.of(results);
  }

  private long prune(
      int index,
      CheckpointPruner.Chosen one,
      long from,
      long count,
      SafetensorsWriter masks,
      PieceBuffer weights,
      PieceBuffer bits) {
    Tensor view = one.view().slice(from, count);
    long[] shape = {count};
    if (selection == null) {
      // Rows of [out, in, ...]; for a matrix any run of whole groups will do.
      long inner = inner(one);
      shape = inner == 1 ? shape : new long[] {count / (inner * in(one)), in(one), inner};
      view = Tensor.ofAddress(view.address(), view.bytes(), view.dtype(), shape);
    }
    MagnitudePrune.Weights piece =
        MagnitudePrune.Weights.of(one.where(), view)
            .to(weights.tensor(view.dtype(), shape))
            .maskIn(one.maskIn(from, count))
            .maskOut(masks == null ? null : bits.pointer())
            .axis(Math.min(1, shape.length - 1));
    return selection != null
        ? selection.apply(index, from, piece)
        : MagnitudePrune.prune(List.of(piece), job.rule()).pruned();
  }

  /** Elements of a tensor's pieces: whole groups, and rows where groups are not contiguous. */
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
}
