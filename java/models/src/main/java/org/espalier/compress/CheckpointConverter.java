package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.SortedSet;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.HalfFloats;
import org.espalier.format.Names;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Rounds float32 tensors of a checkpoint, a safetensors file or a model's folder, to 16 bits: each value to the nearest, of two as
 * near to the even one. What the folder's {@code config.json} says of the type of weights follows; all else is copied.
 *
 * <p>Input and output are read and written piece by piece, so the memory that a run takes for itself does not grow with the
 * model.
 */
public final class CheckpointConverter {
  /** Elements of a piece. */
  private static final int PIECE = 1 << 20;

  /** Elements that one thread rounds at once. */
  private static final int PART = 1 << 16;

  private CheckpointConverter() {}

  /**
   * What to do.
   *
   * @param model a folder that holds a model, or a file
   * @param target the folder or file to write
   * @param choice the tensors to convert, of those that are F32
   * @param dtype F16 or BF16
   */
  public record Job(Path model, Path target, Predicate<TensorInfo> choice, SafetensorsDtype dtype) {
    /**
     * @throws IllegalArgumentException for another type
     */
    public Job {
      if (dtype != SafetensorsDtype.F16 && dtype != SafetensorsDtype.BF16) {
        throw new IllegalArgumentException(dtype + "; F16 and BF16 have 16 bits");
      }
    }
  }

  /**
   * What was done.
   *
   * @param tensors the tensors that have 16 bits now
   * @param inputBytes bytes of the model's tensors
   * @param outputBytes bytes of the tensors that were written
   * @param seconds where the time went
   */
  public record Result(List<String> tensors, long inputBytes, long outputBytes, Seconds seconds) {}

  /** Whether a tensor can be converted. */
  public static boolean isConvertible(TensorInfo tensor) {
    return tensor.dtype() == SafetensorsDtype.F32;
  }

  /**
   * Converts a model.
   *
   * @throws InputException if the model or the target are not as they should be, the model is quantized, or a tensor has a
   *     finite number that is beyond the type's largest; nothing is written then
   */
  public static Result convert(Job job, Progress progress) {
    long start = System.nanoTime();
    try (Checkpoint checkpoint = Checkpoint.open(job.model())) {
      CheckpointOutput.check(checkpoint, job.target());
      SortedSet<String> chosen = choose(checkpoint, job);
      Map<String, byte[]> replaced =
          Files.isRegularFile(checkpoint.path().resolve(ModelConfig.FILE))
              ? Map.of(
                  ModelConfig.FILE,
                  ModelConfig.ofFloats(checkpoint.path().resolve(ModelConfig.FILE))
                      .withType(name(job.dtype())))
              : Map.of();
      Function<TensorInfo, TensorSpec> outputs =
          t ->
              chosen.contains(t.name())
                  ? new TensorSpec(t.name(), job.dtype(), t.shape())
                  : TensorSpec.of(t);
      long opened = System.nanoTime();
      try (CheckpointOutput output =
          CheckpointOutput.create(
              checkpoint, job.target(), t -> List.of(outputs.apply(t)), replaced)) {
        ByteBuffer read = ByteBuffer.allocateDirect(4 * PIECE).order(ByteOrder.LITTLE_ENDIAN);
        ByteBuffer piece = ByteBuffer.allocateDirect(2 * PIECE).order(ByteOrder.LITTLE_ENDIAN);
        output.writeAll(
            chosen,
            tensor ->
                convert(checkpoint.fileOf(tensor.name()), tensor, job.dtype(), read, piece, output),
            progress);
        return new Result(
            List.copyOf(chosen),
            checkpoint.tensors().stream().mapToLong(TensorInfo::bytes).sum(),
            checkpoint.tensors().stream().map(outputs).mapToLong(TensorSpec::bytes).sum(),
            output.seconds(start, opened));
      }
    }
  }

  private static String name(SafetensorsDtype dtype) {
    return dtype == SafetensorsDtype.F16 ? "float16" : "bfloat16";
  }

  private static SortedSet<String> choose(Checkpoint checkpoint, Job job) {
    SortedSet<String> chosen = new TreeSet<>(Names.ORDER);
    for (TensorInfo tensor : checkpoint.tensors()) {
      if (LinearForm.isScale(tensor.name(), checkpoint)) {
        throw new InputException(
            where(checkpoint, tensor)
                + " is the scale of integers: the model is quantized already; take the float"
                + " model");
      }
      if (isConvertible(tensor) && job.choice().test(tensor)) {
        chosen.add(tensor.name());
      }
    }
    if (chosen.isEmpty()) {
      throw new InputException(
          job.model() + ": no tensor of float32 is chosen, so there is nothing to convert");
    }
    return chosen;
  }

  private static String where(Checkpoint checkpoint, TensorInfo tensor) {
    return where(checkpoint.fileOf(tensor.name()), tensor);
  }

  private static String where(SafetensorsFile file, TensorInfo tensor) {
    return file.path() + ": tensor " + Names.quote(tensor.name());
  }

  private static void convert(
      SafetensorsFile file,
      TensorInfo tensor,
      SafetensorsDtype dtype,
      ByteBuffer read,
      ByteBuffer piece,
      CheckpointOutput output) {
    for (long from = 0; from < tensor.elements(); from += PIECE) {
      int count = (int) Math.min(PIECE, tensor.elements() - from);
      file.read(tensor, 4 * from, read.clear().limit(4 * count));
      FloatBuffer values = read.flip().asFloatBuffer();
      ShortBuffer halves = piece.clear().asShortBuffer();
      int beyond =
          IntStream.range(0, (count + PART - 1) / PART)
              .parallel()
              .map(part -> round(values, halves, part * PART, count, dtype))
              .filter(index -> index >= 0)
              .min()
              .orElse(-1);
      if (beyond >= 0) {
        throw new InputException(
            where(file, tensor)
                + " has the value "
                + values.get(beyond)
                + ", which is beyond the largest "
                + name(dtype)
                + (dtype == SafetensorsDtype.F16 ? "; bfloat16 holds it" : "")
                + "; --exclude leaves the tensor as it is");
      }
      output.append(tensor.name(), piece.limit(2 * count));
    }
  }

  /** Rounds a part; the index of the first finite value that becomes infinite, or -1. */
  private static int round(
      FloatBuffer values, ShortBuffer halves, int from, int end, SafetensorsDtype dtype) {
    boolean half = dtype == SafetensorsDtype.F16;
    int infinite = half ? 0x7c00 : 0x7f80;
    int beyond = -1;
    for (int i = from; i < Math.min(from + PART, end); i++) {
      float value = values.get(i);
      short rounded = half ? HalfFloats.toFloat16(value) : HalfFloats.toBfloat16(value);
      halves.put(i, rounded);
      if ((rounded & Short.MAX_VALUE) == infinite && !Float.isInfinite(value) && beyond < 0) {
        beyond = i;
      }
    }
    return beyond;
  }
}
