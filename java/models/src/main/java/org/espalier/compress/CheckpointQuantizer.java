package org.espalier.compress;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SortedSet;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.device.Device;
import org.espalier.format.Names;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Quantizes the linear layers of a model's folder in the compressed-tensors layout: what stands for {@code X.weight} in the
 * chosen {@link LinearForm} takes its place in the same shard; {@code config.json} gets the {@code quantization_config};
 * all else is copied.
 *
 * <p>Scales are rounded to the weights' type and at least 2^-23. Of 8 bits one a row, by that format's convention: absmax /
 * 127.5; q = clamp(rint(w / scale), -128, 127). Of 4 bits one a block of a row, of 16 from max|w| / 7 down to 17/32 of it, or as many
 * ranges with zero points, that which changes the weights least in squares; q = clamp(rint(w / scale) + zero, -8, 7). Source:
 * the compressed-tensors package.
 *
 * <p>The input is mapped and the output written piece by piece, so the memory that a run takes for
 * itself does not grow with the model.
 */
public final class CheckpointQuantizer {
  private static final String WEIGHT = ".weight";
  private static final String OUTPUT_HEAD = "lm_head";

  private CheckpointQuantizer() {}

  /**
   * What to do.
   *
   * @param model a folder that holds a model, or its {@code model.safetensors}
   * @param target the folder to write
   * @param choice the tensors to quantize; {@link #isLinearWeight} where the user says nothing
   * @param form what they become
   */
  public record Job(Path model, Path target, Predicate<TensorInfo> choice, LinearForm form) {}

  /**
   * What was done.
   *
   * @param total weights that are quantized now
   * @param tensors the tensors that are quantized now
   * @param fitted those of them whose integers examples chose
   * @param ignored modules of linear layers that stay float, as the configuration names them
   * @param inputBytes bytes of the model's tensors
   * @param outputBytes bytes of the quantized model's tensors
   * @param seconds where the time went
   */
  public record Result(
      long total,
      List<String> tensors,
      Set<String> fitted,
      List<String> ignored,
      long inputBytes,
      long outputBytes,
      Seconds seconds) {}

  /**
   * The tensors that are quantized where the user names none: matrices called {@code X.weight} that
   * are neither embeddings nor the output head, which may be tied to them, nor routers of experts.
   */
  public static boolean isLinearWeight(TensorInfo tensor) {
    return isQuantizable(tensor)
        && !WeightNames.isEmbedding(tensor.name())
        && !WeightNames.isHead(tensor.name())
        && !WeightNames.isRouter(tensor.name());
  }

  /**
   * Checks that a model can take the layout at all.
   *
   * @throws InputException where it is no folder with a {@code config.json}, or quantized already, or its linear
   *     layers are not Linear modules
   */
  public static void check(Path model) {
    ModelConfig.read(folder(model).resolve(ModelConfig.FILE));
  }

  private static boolean isQuantizable(TensorInfo tensor) {
    return tensor.dtype().computable() != null
        && tensor.rank() == 2
        && tensor.elements() > 0
        && tensor.name().endsWith(WEIGHT);
  }

  /**
   * Quantizes a model on the CPU.
   *
   * @throws InputException if the model or the target are not as they should be, or a weight is not
   *     finite; nothing is written then
   */
  public static Result quantize(Job job, Progress progress) {
    return quantize(job, Device.cpu(), progress);
  }

  /**
   * Quantizes a model on a device, with the same bytes in the output.
   *
   * @throws InputException as {@link #quantize(Job, Progress)}
   */
  public static Result quantize(Job job, Device device, Progress progress) {
    return quantize(job, device, (form, weights, receiver) -> {}, progress);
  }

  /**
   * Quantizes a model on the CPU, with integers that examples chose.
   *
   * @param fitting finds them; weights that it does not fit are rounded as they are without it
   * @throws InputException as {@link #quantize(Job, Progress)}
   */
  public static Result quantize(Job job, LinearFitting fitting, Progress progress) {
    return quantize(job, Device.cpu(), fitting, progress);
  }

  private static Result quantize(Job job, Device device, LinearFitting fitting, Progress progress) {
    long start = System.nanoTime();
    Path folder = folder(job.model());
    ModelConfig config = ModelConfig.read(folder.resolve(ModelConfig.FILE));
    try (Checkpoint checkpoint = Checkpoint.open(folder);
        AlignedShards aligned = new AlignedShards(job.target())) {
      CheckpointOutput.check(checkpoint, job.target());
      Set<String> chosen = choose(checkpoint, job);
      List<String> ignored = ignored(checkpoint, chosen);
      byte[] json = config.with(CompressedTensorsConfig.of(job.form(), ignored));
      for (String tensor : chosen) {
        aligned.of(checkpoint.fileOf(tensor));
      }
      Function<TensorInfo, List<TensorSpec>> outputs =
          t -> chosen.contains(t.name()) ? job.form().tensors(t) : List.of(TensorSpec.of(t));
      long opened = System.nanoTime();
      try (CheckpointOutput output =
              CheckpointOutput.create(
                  checkpoint, job.target(), outputs, Map.of(ModelConfig.FILE, json));
          RowQuantizer rows = new RowQuantizer(job.form(), device, widest(checkpoint, chosen))) {
        Set<String> fitted = new HashSet<>();
        fitting.fit(
            job.form(),
            chosen.stream().collect(Collectors.toMap(c -> c, c -> checkpoint.tensor(c).dtype())),
            weight -> {
              fitted.add(weight.name());
              rows.write(checkpoint.tensor(weight.name()), weight, output);
            });
        output.writeAll(
            chosen,
            tensor -> {
              if (fitted.contains(tensor.name())) {
                return;
              }
              SafetensorsFile file = checkpoint.fileOf(tensor.name());
              String where = file.path() + ": tensor " + Names.quote(tensor.name());
              rows.quantize(aligned.of(file), tensor.name(), where, output);
            },
            progress);
        return new Result(
            chosen.stream().map(checkpoint::tensor).mapToLong(TensorInfo::elements).sum(),
            List.copyOf(chosen),
            Set.copyOf(fitted),
            ignored,
            checkpoint.tensors().stream().mapToLong(TensorInfo::bytes).sum(),
            checkpoint.tensors().stream()
                .flatMap(t -> outputs.apply(t).stream())
                .mapToLong(TensorSpec::bytes)
                .sum(),
            output.seconds(start, opened));
      }
    }
  }

  private static long widest(Checkpoint checkpoint, Set<String> chosen) {
    return chosen.stream()
        .mapToLong(name -> checkpoint.tensor(name).shape().get(1))
        .max()
        .orElse(0);
  }

  private static SortedSet<String> choose(Checkpoint checkpoint, Job job) {
    SortedSet<String> chosen = new TreeSet<>(Names.ORDER);
    for (TensorInfo tensor : checkpoint.tensors()) {
      if (!job.choice().test(tensor)) {
        continue;
      }
      String where =
          checkpoint.fileOf(tensor.name()).path() + ": tensor " + Names.quote(tensor.name());
      if (!isQuantizable(tensor)) {
        throw new InputException(
            where
                + " is "
                + tensor.dtype()
                + tensor.shape()
                + "; F32, BF16 and F16 matrices called X"
                + WEIGHT
                + " can be quantized");
      }
      if (WeightNames.isTable(tensor.name())) {
        throw new InputException(
            where + " is an embedding; compressed-tensors is for linear layers");
      }
      job.form()
          .misfit(tensor)
          .ifPresent(
              why -> {
                throw new InputException(
                    where + ": " + why + "; a block of all of them fits, or leave it float");
              });
      for (TensorSpec made : job.form().tensors(tensor)) {
        if (!made.name().equals(tensor.name()) && checkpoint.tensor(made.name()) != null) {
          throw new InputException(
              where
                  + " has a "
                  + Names.quote(made.name())
                  + " beside it, as in a model that is quantized already");
        }
      }
      chosen.add(tensor.name());
    }
    if (chosen.isEmpty()) {
      throw new InputException(
          job.model() + ": no tensor is chosen, so there is nothing to quantize");
    }
    return chosen;
  }

  /** What the configuration must name, for a reader takes every other Linear for quantized. */
  private static List<String> ignored(Checkpoint checkpoint, Set<String> chosen) {
    SortedSet<String> modules = new TreeSet<>(Names.ORDER);
    if (!chosen.contains(OUTPUT_HEAD + WEIGHT)) {
      // Named even where it is not in the file because it is tied to the embeddings.
      modules.add(OUTPUT_HEAD);
    }
    for (TensorInfo tensor : checkpoint.tensors()) {
      boolean linear =
          tensor.dtype().isFloat() && tensor.rank() == 2 && tensor.name().endsWith(WEIGHT);
      if (linear && !chosen.contains(tensor.name()) && !WeightNames.isTable(tensor.name())) {
        modules.add(WeightNames.module(tensor.name()));
      }
    }
    return List.copyOf(modules);
  }

  /** The folder of a model that was given by its only file. */
  private static Path folder(Path model) {
    if (Files.isDirectory(model)) {
      return model;
    }
    Path parent = model.toAbsolutePath().getParent();
    boolean only = Checkpoint.SINGLE.equals(model.getFileName().toString());
    if (only && Files.isRegularFile(parent.resolve(ModelConfig.FILE))) {
      return parent;
    }
    throw new InputException(
        model
            + ": compressed-tensors is a layout of a model's folder with "
            + ModelConfig.FILE
            + " in it; name that folder");
  }
}
