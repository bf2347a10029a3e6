package org.espalier.compress;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Predicate;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.InputException;
import org.espalier.device.Device;
import org.espalier.device.Tensor;
import org.espalier.format.AtomicFile;
import org.espalier.format.Names;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.MagnitudePrune;

/**
 * Prunes a safetensors checkpoint, a file or a folder, by magnitude into a new one of the same
 * form.
 *
 * <p>The weights are selected in the mapped input and then written piece by piece, so the memory
 * that a run takes for itself is some 2 % of the weights' bytes. Tensors count in the order of
 * their names' UTF-8 bytes, so the result does not depend on how a checkpoint is sharded. Tensors
 * that are not chosen are copied as they are.
 */
public final class CheckpointPruner {
  private CheckpointPruner() {}

  /**
   * What to do.
   *
   * @param model a safetensors file, or a folder that holds a model
   * @param target the file or folder to write
   * @param rule how much to prune, and of what
   * @param choice the tensors to prune; {@link #isPrunable} where the user says nothing
   * @param maskIn a {@link MaskFile} of what is pruned already, or null: a tensor without a mask is
   *     whole, and a mask of a tensor that is not chosen is refused
   * @param maskOut where to write a {@link MaskFile} of what is kept, or null
   */
  public record Job(
      Path model,
      Path target,
      MagnitudePrune.Rule rule,
      Predicate<TensorInfo> choice,
      Path maskIn,
      Path maskOut) {}

  /**
   * What was done.
   *
   * @param total weights of all chosen tensors
   * @param pruned weights that are zero now because they were pruned, earlier ones included
   * @param threshold the magnitude that separates the two, as {@link MagnitudePrune.Result} has it
   * @param tensors the chosen tensors, in the order of their names
   * @param seconds where the time went
   */
  public record Result(
      long total,
      long pruned,
      float threshold,
      List<MagnitudePrune.TensorResult> tensors,
      Seconds seconds) {}

  /**
   * The tensors that are pruned where the user names none: F32, BF16 and F16 tensors of rank 2 and
   * more whose names do not look like embeddings.
   */
  public static boolean isPrunable(TensorInfo tensor) {
    return tensor.dtype().computable() != null
        && tensor.rank() >= 2
        && !WeightNames.isEmbedding(tensor.name());
  }

  /**
   * Prunes a checkpoint on the CPU.
   *
   * @throws InputException if the model, the masks or the target are not as they should be, or the
   *     rule does not fit the weights; nothing is written then
   */
  public static Result prune(Job job, Progress progress) {
    return prune(job, Device.cpu(), progress);
  }

  /**
   * Prunes a checkpoint; on a CUDA device, whose memory must hold the chosen weights, with the same
   * bytes in the output.
   *
   * @throws InputException as {@link #prune(Job, Progress)}, and where the device's memory is too small
   */
  public static Result prune(Job job, Device device, Progress progress) {
    long start = System.nanoTime();
    try (Checkpoint checkpoint = Checkpoint.open(job.model());
        AlignedShards aligned = new AlignedShards(job.target());
        MaskFile maskIn = job.maskIn() == null ? null : MaskFile.open(job.maskIn())) {
      CheckpointOutput.check(checkpoint, job.target());
      checkMaskOut(job);
      List<Chosen> chosen = choose(checkpoint, job, maskIn, aligned);
      long read = System.nanoTime();
      try (PrunedPieces pieces = pieces(job, chosen, device, progress)) {
        long selected = System.nanoTime();
        PruneWriter writer = new PruneWriter(job, checkpoint, chosen, pieces, progress);
        List<MagnitudePrune.TensorResult> tensors = writer.write();
        long apply = System.nanoTime() - selected - writer.writeNanos();
        return new Result(
            tensors.stream().mapToLong(MagnitudePrune.TensorResult::total).sum(),
            tensors.stream().mapToLong(MagnitudePrune.TensorResult::pruned).sum(),
            pieces.threshold(),
            tensors,
            new Seconds(
                (read - start) * 1e-9,
                (selected - read) * 1e-9,
                apply * 1e-9,
                writer.writeNanos() * 1e-9));
      }
    }
  }

  private static PrunedPieces pieces(
      Job job, List<Chosen> chosen, Device device, Progress progress) {
    if (device.isCuda()) {
      return new DevicePieces(job, chosen, device, progress);
    }
    MagnitudePrune.Selection selection = null;
    if (!(job.rule() instanceof MagnitudePrune.Pattern)) {
      long bytes = chosen.stream().mapToLong(c -> c.tensor().bytes()).sum();
      progress.at(Progress.Phase.SELECT, 0, bytes);
      List<MagnitudePrune.Weights> all = chosen.stream().map(Chosen::whole).toList();
      selection = MagnitudePrune.select(all, job.rule());
      progress.at(Progress.Phase.SELECT, bytes, bytes);
    }
    return new KernelPieces(job, chosen, selection);
  }

  private static void checkMaskOut(Job job) {
    if (job.maskOut() == null) {
      return;
    }
    List<Path> inputs = new ArrayList<>();
    if (Files.isRegularFile(job.model())) {
      inputs.add(job.model());
    }
    if (job.maskIn() != null) {
      inputs.add(job.maskIn());
    }
    Path mask = AtomicFile.check(job.maskOut(), inputs.toArray(Path[]::new));
    Path target = job.target().toAbsolutePath().normalize();
    if (mask.equals(target) || mask.startsWith(target)) {
      throw new InputException(
          "cannot write the masks to " + job.maskOut() + ": the pruned model goes there");
    }
  }

  private static List<Chosen> choose(
      Checkpoint checkpoint, Job job, MaskFile maskIn, AlignedShards aligned) {
    List<Chosen> chosen = new ArrayList<>();
    Set<String> names = new HashSet<>();
    for (TensorInfo tensor : checkpoint.tensors()) {
      if (!job.choice().test(tensor)) {
        continue;
      }
      SafetensorsFile file = checkpoint.fileOf(tensor.name());
      String where = file.path() + ": tensor " + Names.quote(tensor.name());
      if (tensor.dtype().computable() == null) {
        throw new InputException(
            where + " is " + tensor.dtype() + "; F32, BF16 and F16 can be pruned");
      }
      if (LinearForm.isScale(tensor.name(), checkpoint)) {
        throw new InputException(
            where
                + " holds the scales of weights that are quantized already; prune the float model"
                + " and quantize what comes out");
      }
      names.add(tensor.name());
      SafetensorsFile readable = aligned.of(file);
      Chosen one =
          new Chosen(
              tensor,
              where,
              readable.view(readable.tensor(tensor.name())),
              maskIn == null ? null : maskIn.file(),
              maskIn == null ? null : maskIn.maskOf(tensor));
      chosen.add(one);
    }
    if (job.rule() instanceof MagnitudePrune.Pattern pattern) {
      MagnitudePrune.checkPattern(chosen.stream().map(Chosen::whole).toList(), pattern);
    }
    if (chosen.isEmpty()) {
      throw new InputException(
          job.model()
              + ": no tensor is chosen, so there is nothing to prune; name some to include");
    }
    if (maskIn != null) {
      for (TensorInfo mask : maskIn.masks()) {
        if (!names.contains(mask.name())) {
          throw new InputException(
              job.maskIn()
                  + ": mask "
                  + Names.quote(mask.name())
                  + (checkpoint.tensor(mask.name()) == null
                      ? " has no tensor in " + job.model()
                      : " is of a tensor that is not chosen; include it"));
        }
      }
    }
    return chosen;
  }

  /**
   * A chosen tensor where kernels can read it.
   *
   * @param tensor as the input has it
   * @param where file and name, for messages
   * @param view its weights in the mapped file
   * @param maskFile the file of its earlier mask, or null
   * @param mask its earlier mask there, or null
   */
  record Chosen(
      TensorInfo tensor, String where, Tensor view, SafetensorsFile maskFile, TensorInfo mask) {

    /** All of it. Patterns run along the inputs of a layer: the second axis of [out, in, ...]. */
    MagnitudePrune.Weights whole() {
      return MagnitudePrune.Weights.of(where, view)
          .maskIn(maskIn(0, view.elements()))
          .axis(Math.min(1, view.rank() - 1));
    }

    /** The earlier mask of some elements, from a multiple of 8 on, or null. */
    BytePointer maskIn(long from, long count) {
      return mask == null ? null : maskFile.bytes(mask, from / 8, (count + 7) / 8);
    }
  }
}
