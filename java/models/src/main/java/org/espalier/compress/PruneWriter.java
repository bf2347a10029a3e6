package org.espalier.compress;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.format.AtomicFile;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.op.MagnitudePrune;

/** Writes a pruned checkpoint, and its masks where they are wanted, piece by piece. */
final class PruneWriter {
  private final CheckpointPruner.Job job;
  private final Checkpoint input;
  private final List<CheckpointPruner.Chosen> chosen;
  private final PrunedPieces pieces;
  private final Progress progress;
  private long writeNanos;

  /**
   * @param pieces of the chosen tensors in their order
   */
  PruneWriter(
      CheckpointPruner.Job job,
      Checkpoint input,
      List<CheckpointPruner.Chosen> chosen,
      PrunedPieces pieces,
      Progress progress) {
    this.job = job;
    this.input = input;
    this.chosen = chosen;
    this.pieces = pieces;
    this.progress = progress;
  }

  /** Writes all and gives the files their names. */
  List<MagnitudePrune.TensorResult> write() {
    long create = System.nanoTime();
    try (CheckpointOutput output =
            CheckpointOutput.create(input, job.target(), t -> List.of(TensorSpec.of(t)), Map.of());
        AtomicFile maskFile = job.maskOut() == null ? null : AtomicFile.create(job.maskOut())) {
      SafetensorsWriter masks = maskFile == null ? null : maskWriter(maskFile);
      writeNanos += System.nanoTime() - create;
      List<MagnitudePrune.TensorResult> results = writeTensors(output, masks);
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
      CheckpointOutput output, SafetensorsWriter masks) {
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
        long step = pieces.step(index);
        long pruned = 0;
        for (long from = 0; from < elements; from += step) {
          progress.at(Progress.Phase.WRITE, done + from * one.view().dtype().bytes(), total);
          long count = Math.min(step, elements - from);
          pruned += pieces.make(index, from, count);
          output.append(tensor.name(), pieces.weights());
          if (masks != null) {
            long start = System.nanoTime();
            masks.append(tensor.name(), pieces.bits());
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
}
