package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Predicate;
import java.util.function.ToLongFunction;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.InputException;
import org.espalier.compress.CheckpointPruner;
import org.espalier.compress.MaskFile;
import org.espalier.compress.PieceBuffer;
import org.espalier.compress.Progress;
import org.espalier.compress.Seconds;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.espalier.format.AtomicFile;
import org.espalier.format.Names;
import org.espalier.format.onnx.IntegerScales;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.MagnitudePrune;

/**
 * Prunes an ONNX model into a new one with the same graph: zeros in the tensors, no fewer of them. Weights go by
 * magnitude or, given examples, by what these show, and those that stay are refitted then ({@link RefittingPruner}).
 * Tensors count in the order of {@link #candidates}.
 */
public final class OnnxPruner {
  private OnnxPruner() {}

  /**
   * A constant tensor of a model that could be pruned.
   *
   * @param name a name for people, unique in the model: the weight's, or the initializer's own
   * @param value the value that holds it in the graph
   * @param tensor its data
   * @param weight what the graph does with it; null for one that nothing multiplies with
   */
  public record Candidate(String name, String value, OnnxInitializer tensor, OnnxWeight weight) {

    /** The type in which kernels compute on it, or null where they do not. */
    DType dtype() {
      return switch (tensor.type()) {
        case FLOAT -> DType.F32;
        case FLOAT16 -> DType.F16;
        case BFLOAT16 -> DType.BF16;
        default -> null;
      };
    }

    /** Where patterns run: the axis that the graph sums over, else the last. */
    int axis() {
      return weight == null ? tensor.dims().length - 1 : weight.reductionAxis();
    }

    /** The tensor as a checkpoint would describe it, for files of masks. */
    TensorInfo info() {
      List<Long> shape = new ArrayList<>();
      for (long size : tensor.dims()) {
        shape.add(size);
      }
      return new TensorInfo(name, SafetensorsDtype.F32, shape, 0, 4 * tensor.elements());
    }
  }

  /**
   * What to do.
   *
   * @param target the file to write
   * @param rule how much to prune, and of what
   * @param choice the tensors to prune; {@link #isPrunable} where the user says nothing
   * @param maskIn a {@link MaskFile} of what is pruned already, or null: a tensor without a mask is
   *     whole, and a mask of a tensor that is not chosen is refused
   * @param maskOut where to write a {@link MaskFile} of what is kept, or null
   * @param examples what the weights that stay are refitted to, or null to prune by magnitude alone
   */
  public record Job(
      Path target,
      MagnitudePrune.Rule rule,
      Predicate<Candidate> choice,
      Path maskIn,
      Path maskOut,
      ActivationSource examples) {}

  /**
   * The floating-point constants of a model that have elements: its weights in the order in which its nodes use them,
   * then the other initializers in their order.
   */
  public static List<Candidate> candidates(OnnxModel model) {
    List<Candidate> candidates = new ArrayList<>();
    Set<String> values = new HashSet<>();
    Set<String> names = new HashSet<>();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (model.constant(weight.value()).elements() == 0) {
        continue;
      }
      values.add(weight.value());
      names.add(weight.name());
      candidates.add(
          new Candidate(weight.name(), weight.value(), model.constant(weight.value()), weight));
    }
    for (OnnxInitializer tensor : model.initializers()) {
      boolean isFloat =
          switch (tensor.type()) {
            case FLOAT, FLOAT16, BFLOAT16, DOUBLE -> true;
            default -> false;
          };
      if (isFloat
          && tensor.elements() > 0
          && !values.contains(tensor.name())
          && names.add(tensor.name())) {
        candidates.add(new Candidate(tensor.name(), tensor.name(), tensor, null));
      }
    }
    return candidates;
  }

  /**
   * The tensors that are pruned where the user names none: the weights of matrix products,
   * convolutions and recurrent layers.
   */
  public static boolean isPrunable(Candidate candidate) {
    return candidate.weight() != null && !candidate.weight().isEmbedding();
  }

  /** Whether a pattern divides what the graph sums over with a tensor. */
  public static boolean fits(Candidate candidate, MagnitudePrune.Pattern pattern) {
    long size = candidate.tensor().dims()[candidate.axis()];
    return size % pattern.group() == 0
        && (candidate.weight() == null
            || candidate.weight().uses().stream()
                .allMatch(
                    use ->
                        use.kind() != OnnxWeight.Kind.CONV_TRANSPOSE
                            || size / use.groups() % pattern.group() == 0));
  }

  /**
   * Prunes a model.
   *
   * @param model is changed: afterwards it is what was written. Its pruned tensors lie in memory that
   *     is gone then, so it must not be used any more
   * @throws InputException if the masks or the target are not as they should be, or the rule does not
   *     fit the weights; nothing is written then
   */
  public static CheckpointPruner.Result prune(OnnxModel model, Job job, Progress progress) {
    long start = System.nanoTime();
    Path[] protectedFiles = protectedFiles(model, job);
    List<AutoCloseable> memory = new ArrayList<>();
    try (MaskFile maskIn = job.maskIn() == null ? null : MaskFile.open(job.maskIn())) {
      List<Candidate> chosen = candidates(model).stream().filter(job.choice()).toList();
      if (chosen.isEmpty()) {
        throw new InputException(
            model.name() + ": no tensor is chosen, so there is nothing to prune");
      }
      checkScales(model, chosen);
      if (maskIn != null) {
        checkMasks(maskIn, chosen, job.maskIn());
      }
      List<PieceBuffer> masks =
          job.maskOut() == null
              ? List.of()
              : buffers(chosen, tensor -> (tensor.elements() + 7) / 8, memory);
      List<PieceBuffer> outputs =
          job.examples() != null ? List.of() : buffers(chosen, OnnxInitializer::byteLength, memory);
      List<MagnitudePrune.Weights> list = new ArrayList<>();
      for (int i = 0; i < chosen.size(); i++) {
        MagnitudePrune.Weights weights = weights(model, chosen.get(i), maskIn);
        if (!outputs.isEmpty()) {
          Tensor view = weights.weights();
          weights = weights.to(outputs.get(i).tensor(view.dtype(), view.shape()));
        }
        list.add(masks.isEmpty() ? weights : weights.maskOut(masks.get(i).pointer()));
      }
      if (job.rule() instanceof MagnitudePrune.Pattern pattern) {
        MagnitudePrune.checkPattern(list, pattern);
        for (Candidate candidate : chosen) {
          if (candidate.weight() != null) {
            checkGroups(model, candidate.weight(), pattern);
          }
        }
      }
      long read = System.nanoTime();
      Pruned pruned =
          job.examples() == null
              ? byMagnitude(model, chosen, list, outputs, job.rule(), progress)
              : refitted(model, chosen, list, job, progress);
      long applied = System.nanoTime();
      long bytes = bytes(chosen);
      progress.at(Progress.Phase.WRITE, 0, bytes);
      SumShapes.say(model);
      write(model, job, chosen, masks, protectedFiles);
      progress.at(Progress.Phase.WRITE, bytes, bytes);
      return new CheckpointPruner.Result(
          pruned.result().total(),
          pruned.result().pruned(),
          pruned.result().threshold(),
          named(pruned.result().tensors(), chosen),
          new Seconds(
              (read - start) * 1e-9,
              (pruned.selected() - read) * 1e-9,
              (applied - pruned.selected()) * 1e-9,
              (System.nanoTime() - applied) * 1e-9));
    } finally {
      memory.forEach(OnnxPruner::close);
    }
  }

  /**
   * The files that are not written to.
   *
   * @throws InputException if what is to be written cannot be
   */
  private static Path[] protectedFiles(OnnxModel model, Job job) {
    List<Path> inputs = new ArrayList<>(model.files());
    if (job.maskIn() != null) {
      inputs.add(job.maskIn());
    }
    Path[] files = inputs.toArray(Path[]::new);
    Path target = AtomicFile.check(job.target(), files);
    if (job.maskOut() != null && AtomicFile.check(job.maskOut(), files).equals(target)) {
      throw new InputException(
          "cannot write the masks to " + job.maskOut() + ": the pruned model goes there");
    }
    return files;
  }

  private static void checkScales(OnnxModel model, List<Candidate> chosen) {
    Set<String> scales = IntegerScales.of(model);
    for (Candidate candidate : chosen) {
      if (scales.contains(candidate.value())) {
        throw new InputException(
            model.name()
                + ": tensor "
                + Names.quote(candidate.name())
                + " holds the scales of weights that are quantized already; prune the float model"
                + " and quantize what comes out");
      }
    }
  }

  /**
   * Memory for each tensor.
   *
   * @param bytes of a tensor
   * @param memory takes all that is made
   */
  private static List<PieceBuffer> buffers(
      List<Candidate> chosen, ToLongFunction<OnnxInitializer> bytes, List<AutoCloseable> memory) {
    List<PieceBuffer> made = new ArrayList<>();
    for (Candidate candidate : chosen) {
      PieceBuffer buffer = new PieceBuffer(Math.toIntExact(bytes.applyAsLong(candidate.tensor())));
      memory.add(buffer);
      made.add(buffer);
    }
    return made;
  }

  /** Results under the names of the tensors that they are of. */
  private static List<MagnitudePrune.TensorResult> named(
      List<MagnitudePrune.TensorResult> results, List<Candidate> chosen) {
    List<MagnitudePrune.TensorResult> named = new ArrayList<>();
    for (int i = 0; i < chosen.size(); i++) {
      MagnitudePrune.TensorResult tensor = results.get(i);
      named.add(
          new MagnitudePrune.TensorResult(chosen.get(i).name(), tensor.total(), tensor.pruned()));
    }
    return List.copyOf(named);
  }

  /**
   * What was pruned of each tensor, and when it was known.
   *
   * @param selected by {@link System#nanoTime}
   */
  private record Pruned(MagnitudePrune.Result result, long selected) {}

  private static long bytes(List<Candidate> chosen) {
    return chosen.stream().mapToLong(c -> c.tensor().byteLength()).sum();
  }

  private static Pruned byMagnitude(
      OnnxModel model,
      List<Candidate> chosen,
      List<MagnitudePrune.Weights> list,
      List<PieceBuffer> outputs,
      MagnitudePrune.Rule rule,
      Progress progress) {
    progress.at(Progress.Phase.SELECT, 0, bytes(chosen));
    MagnitudePrune.Result result;
    long selected = System.nanoTime();
    if (rule instanceof MagnitudePrune.Pattern) {
      result = MagnitudePrune.prune(list, rule);
    } else {
      MagnitudePrune.Selection selection = MagnitudePrune.select(list, rule);
      selected = System.nanoTime();
      result = selection.apply(list);
    }
    List<OnnxInitializer> pruned = new ArrayList<>();
    for (int i = 0; i < chosen.size(); i++) {
      OnnxInitializer old = chosen.get(i).tensor();
      pruned.add(
          OnnxInitializer.of(
              chosen.get(i).value(),
              old.type(),
              old.dims(),
              outputs.get(i).first(old.byteLength())));
    }
    model.replaceConstants(pruned);
    return new Pruned(result, selected);
  }

  private static Pruned refitted(
      OnnxModel model,
      List<Candidate> chosen,
      List<MagnitudePrune.Weights> list,
      Job job,
      Progress progress) {
    long bytes = bytes(chosen);
    progress.at(Progress.Phase.SELECT, 0, bytes);
    List<BitSet> kept = new ArrayList<>();
    for (MagnitudePrune.Weights weights : list) {
      int elements = Math.toIntExact(weights.weights().elements());
      BitSet bits = new BitSet(elements);
      if (weights.maskIn() == null) {
        bits.set(0, elements);
      } else {
        ByteBuffer in = weights.maskIn().limit((elements + 7) / 8).asByteBuffer();
        bits.or(BitSet.valueOf(in));
        bits.clear(elements, Math.max(elements, bits.length()));
      }
      kept.add(bits);
    }
    List<OnnxWeight> weights = new ArrayList<>();
    for (Candidate candidate : chosen) {
      if (candidate.weight() == null) {
        throw new InputException(
            model.name()
                + ": nothing multiplies with the tensor "
                + Names.quote(candidate.name())
                + ", so no outputs of it can be refitted; exclude it or prune by magnitude");
      }
      weights.add(candidate.weight());
    }
    new RefittingPruner(model, weights, RefittingPruner.ofEachTensor(list, job.rule()))
        .prune(kept, job.examples(), done -> progress.at(Progress.Phase.SELECT, done, bytes));
    List<MagnitudePrune.TensorResult> tensors = new ArrayList<>();
    long total = 0;
    long pruned = 0;
    for (int i = 0; i < list.size(); i++) {
      long elements = list.get(i).weights().elements();
      long zeros = elements - kept.get(i).cardinality();
      tensors.add(new MagnitudePrune.TensorResult(chosen.get(i).name(), elements, zeros));
      total += elements;
      pruned += zeros;
      if (list.get(i).maskOut() != null) {
        byte[] bits = Arrays.copyOf(kept.get(i).toByteArray(), (int) ((elements + 7) / 8));
        list.get(i).maskOut().put(bits);
      }
    }
    MagnitudePrune.Result result =
        new MagnitudePrune.Result(total, pruned, Float.NaN, List.copyOf(tensors));
    return new Pruned(result, System.nanoTime());
  }

  /**
   * Checks that no group of a pattern reaches from one group of a convolution into the next: their
   * input channels are never summed. ConvTranspose alone stores those of all groups along one axis.
   *
   * @throws InputException if one does
   */
  public static void checkGroups(
      OnnxModel model, OnnxWeight weight, MagnitudePrune.Pattern pattern) {
    for (OnnxWeight.Use use : weight.uses()) {
      long channels = model.constant(weight.value()).dims()[use.reductionAxis()] / use.groups();
      if (use.kind() == OnnxWeight.Kind.CONV_TRANSPOSE && channels % pattern.group() != 0) {
        throw new InputException(
            model.name()
                + ": tensor "
                + Names.quote(weight.name())
                + ": its ConvTranspose sums over "
                + channels
                + " input channels a group, which is not a multiple of "
                + pattern.group()
                + ", as the pattern "
                + pattern.keep()
                + ":"
                + pattern.group()
                + " needs");
      }
    }
  }

  private static void close(AutoCloseable memory) {
    try {
      memory.close();
    } catch (Exception e) {
      throw new IllegalStateException("memory cannot be given back", e);
    }
  }

  private static void checkMasks(MaskFile masks, List<Candidate> chosen, Path where) {
    Set<String> names = new HashSet<>();
    chosen.forEach(c -> names.add(c.name()));
    for (TensorInfo mask : masks.masks()) {
      if (!names.contains(mask.name())) {
        throw new InputException(
            where
                + ": mask "
                + Names.quote(mask.name())
                + " is of no tensor that is chosen; include that, or use the masks of this model");
      }
    }
  }

  private static MagnitudePrune.Weights weights(
      OnnxModel model, Candidate candidate, MaskFile maskIn) {
    String where = model.name() + ": tensor " + Names.quote(candidate.name());
    if (candidate.dtype() == null) {
      throw new InputException(
          where
              + " is "
              + candidate.tensor().type()
              + "; FLOAT, FLOAT16 and BFLOAT16 can be pruned");
    }
    Tensor view =
        Tensor.of(candidate.tensor().data(), candidate.dtype(), candidate.tensor().dims());
    TensorInfo mask = maskIn == null ? null : maskIn.maskOf(candidate.info());
    BytePointer bits = mask == null ? null : maskIn.file().bytes(mask, 0, mask.bytes());
    return MagnitudePrune.Weights.of(where, view).maskIn(bits).axis(candidate.axis());
  }

  /** The masks are written whole before the model takes its name, so that a full disk stops both. */
  private static void write(
      OnnxModel model,
      Job job,
      List<Candidate> chosen,
      List<PieceBuffer> masks,
      Path[] protectedFiles) {
    if (job.maskOut() == null) {
      model.write(job.target(), protectedFiles);
      return;
    }
    List<TensorInfo> infos = chosen.stream().map(Candidate::info).toList();
    try (AtomicFile file = AtomicFile.create(job.maskOut(), protectedFiles)) {
      SafetensorsWriter writer =
          new SafetensorsWriter(file, MaskFile.specs(infos), MaskFile.metadata(infos));
      for (int i = 0; i < infos.size(); i++) {
        writer.append(infos.get(i).name(), masks.get(i).first((infos.get(i).elements() + 7) / 8));
      }
      writer.finish();
      model.write(job.target(), protectedFiles);
      file.commit();
    }
  }
}
