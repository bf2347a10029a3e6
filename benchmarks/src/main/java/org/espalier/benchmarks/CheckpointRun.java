package org.espalier.benchmarks;

import java.nio.file.Path;
import org.espalier.compress.CheckpointPruner;
import org.espalier.compress.CheckpointQuantizer;
import org.espalier.compress.LinearForm;
import org.espalier.compress.Progress;
import org.espalier.compress.Seconds;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.op.MagnitudePrune;

/**
 * Prunes half of a checkpoint's weights, or quantizes it, and prints where the time went: {@code
 * CheckpointRun prune|quantize|quantize-int4 MODEL TARGET}.
 */
public final class CheckpointRun {
  private CheckpointRun() {}

  public static void main(String[] args) {
    Path model = Path.of(args[1]);
    Path target = Path.of(args[2]);
    long bytes;
    try (Checkpoint checkpoint = Checkpoint.open(model)) {
      bytes = checkpoint.files().stream().mapToLong(SafetensorsFile::dataBytes).sum();
    }
    if (args[0].equals("prune")) {
      MagnitudePrune.Rule rule = new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL);
      CheckpointPruner.Result result =
          CheckpointPruner.prune(
              new CheckpointPruner.Job(
                  model, target, rule, CheckpointPruner::isPrunable, null, null),
              Progress.NONE);
      System.out.printf(
          "prune: %d of %d weights in %d tensors, threshold %g%n",
          result.pruned(), result.total(), result.tensors().size(), result.threshold());
      print("prune", bytes, result.seconds());
    } else {
      LinearForm form = args[0].equals("quantize") ? LinearForm.INT8 : LinearForm.int4(128, true);
      CheckpointQuantizer.Result result =
          CheckpointQuantizer.quantize(
              new CheckpointQuantizer.Job(model, target, CheckpointQuantizer::isLinearWeight, form),
              Progress.NONE);
      System.out.printf(
          "%s: %d weights in %d tensors, %.2f GB to %.2f GB%n",
          args[0],
          result.total(),
          result.tensors().size(),
          result.inputBytes() * 1e-9,
          result.outputBytes() * 1e-9);
      print(args[0], bytes, result.seconds());
    }
  }

  private static void print(String what, long bytes, Seconds seconds) {
    System.out.printf(
        "%s: %.1f s, %.2f GB/s of input (read %.2f, select %.2f, apply %.2f, write %.2f s)%n",
        what,
        seconds.total(),
        bytes * 1e-9 / seconds.total(),
        seconds.read(),
        seconds.select(),
        seconds.apply(),
        seconds.write());
  }
}
