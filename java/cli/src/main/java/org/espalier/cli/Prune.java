package org.espalier.cli;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.CheckpointPruner;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.compress.onnx.ChannelPruner.Allocation;
import org.espalier.compress.onnx.FloatWeights;
import org.espalier.compress.onnx.LayerPruner;
import org.espalier.compress.onnx.OnnxPruner;
import org.espalier.compress.onnx.OnnxPruner.Candidate;
import org.espalier.compress.onnx.RefittingPruner;
import org.espalier.compress.onnx.ScaledProducts;
import org.espalier.device.Device;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.NearNames;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.MagnitudePrune.Scope;
import org.espalier.source.ModelSource;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Zeroes the weights of least magnitude. */
@Command(
    name = "prune",
    description = {
      "Writes the model to OUT with the weights of least magnitude zeroed.",
      "",
      "By default it takes the weights of MatMul, Gemm, Conv, ConvTranspose, LSTM, GRU and RNN in"
          + " ONNX, and float tensors of rank 2 and more that are no embeddings in safetensors."
          + " Ties go to the weights that come first. The zeros are unstructured: they change"
          + " neither a file's size nor its speed.",
      "",
      "With --channels it removes whole channels in place of single weights, those that calibration"
          + " says are missed least, refits the weights that read the others, and tells how much"
          + " faster the result is. Channels are counted by sets, many in multiples of 16;"
          + " --include and --exclude name the weights that make them. Heads that share keys and"
          + " values count as one where these go with them, and as one of each such group where"
          + " they stay. By default sets that the"
          + " outputs miss less lose more, and in all as much work is saved as if each lost the"
          + " share; with --allocation uniform each loses it.",
      "",
      "With --layers it removes whole layers, as the blocks of a transformer, in place of single"
          + " weights: those that the outputs for some calibration examples miss least, one after"
          + " another. What is left is as much smaller and faster, and is meant to be trained:"
          + " 'espalier compress' has it follow the original. Keys and values that a decoder takes"
          + " and gives for earlier tokens are numbered anew.",
      "",
      "With --vocabulary it removes tokens that texts like those which the model will read do not"
          + " have, which are most of a model's of many languages. Texts of the others give the"
          + " same outputs; all single characters stay, so that others are read too, in more"
          + " tokens. The tokenizer is written beside the model. Special tokens keep their numbers"
          + " where these are low.",
      "",
      "With --refit each tensor loses as much as it would by magnitude, but the same share of each"
          + " output's weights, to the nearest whole one, those that what calibration sees misses"
          + " least, and the others are refitted to it: outputs change much less. With --scope"
          + " tensor each tensor loses the same share, which suits transformers.",
      "",
      "A pattern n:m lies along the axis that is summed over: the inputs of a matrix product or"
          + " recurrent layer, the input channels of a convolution.",
    },
    footer = {
      "",
      "Examples:",
      "  espalier prune model.onnx -o half.onnx --amount 0.5",
      "  espalier prune checkpoint/ -o sparse/ --sparsity 0.8 --scope tensor \\",
      "    --exclude 'lm_head.*' --mask-out masks.safetensors",
      "  espalier prune sparse.safetensors -o sparser.safetensors --sparsity 0.9 \\",
      "    --mask-in masks.safetensors --json",
      "  espalier prune model.onnx -o m24.onnx --pattern 2:4 --include '*.query.*'",
      "  espalier prune model.onnx -o half.onnx --amount 0.5 --refit --calibration texts.txt",
      "  espalier prune model.onnx -o small.onnx --channels 0.3",
      "  espalier prune encoder.onnx -o shallow.onnx --layers 0.5 --calibration texts.txt",
      "  espalier prune multilingual.onnx -o german.onnx --vocabulary german.txt",
    })
final class Prune implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Parameters(paramLabel = "MODEL", description = "The model to prune. It is not changed.")
  private String model;

  @Option(
      names = {"-o", "--output"},
      paramLabel = "OUT",
      required = true,
      description = "The file, or for a folder the folder, to write.")
  private String output;

  @ArgGroup(multiplicity = "1")
  private How how;

  @Option(
      names = "--scope",
      paramLabel = "global|tensor",
      description =
          "Whether the amount, count or sparsity is of all chosen tensors together or of each."
              + " Default: global.")
  private Scope scope;

  @Option(
      names = "--allocation",
      paramLabel = "global|uniform",
      description =
          "Of which sets --channels removes how many. global: more where the outputs of some"
              + " calibration examples change less, at the work that the same share of each would"
              + " leave; takes longer, and is uniform without calibration or where that is hardly"
              + " worse. uniform: the same share of each set. Default: global.")
  private Allocation allocation;

  @Option(
      names = "--cache-heads",
      description =
          "With --channels remove heads of a decoder too whose keys and values are its inputs and"
              + " outputs (past_key_values, present). The shapes that the model declares for these"
              + " say how many are left, with --allocation global not as many in each layer: who"
              + " runs it must take them from there, not from a configuration of the original."
              + " Default: they stay; of queries that share keys and values some of each group"
              + " go.")
  private boolean cacheHeads;

  @Mixin private TensorOptions tensors;

  @Option(
      names = "--mask-in",
      paramLabel = "FILE",
      description = "What is pruned already and stays so: masks of an earlier --mask-out.")
  private String maskIn;

  @Option(
      names = "--mask-out",
      paramLabel = "FILE",
      description = "Also write what is kept: a safetensors file with a bit a weight, 1 = kept.")
  private String maskOut;

  @Option(
      names = "--refit",
      description =
          "Choose by what calibration sees, and refit the weights that stay to it, so that outputs"
              + " change least; for ONNX models, with --amount, --sparsity or --pattern.")
  private boolean refit;

  @Mixin private CalibrationOptions calibration = CalibrationOptions.ofPruning();
  @Mixin private OutputOptions outputs;
  @Mixin private TokenizerOptions tokenizer;

  @Mixin private DeviceOption device;

  /** How much to prune: one of these. */
  private static final class How {
    @Option(
        names = "--amount",
        paramLabel = "FRACTION",
        description = "This fraction, 0 to 1, of the weights that --mask-in keeps.")
    private Double amount;

    @Option(
        names = "--count",
        paramLabel = "K",
        description = "So many of the weights that --mask-in keeps.")
    private Long count;

    @Option(
        names = "--sparsity",
        paramLabel = "S",
        description = "As many as make this fraction, 0 to 1, of all weights pruned.")
    private Double sparsity;

    @Option(
        names = "--threshold",
        paramLabel = "T",
        description = "The weights with a magnitude below T.")
    private Float threshold;

    @Option(
        names = "--pattern",
        paramLabel = "N:M",
        description =
            "All but the N largest of each M consecutive inputs of an output, as 2:4. ONNX weights"
                + " whose inputs M does not divide stay whole, unless --include names them.")
    private String pattern;

    @Option(
        names = "--channels",
        paramLabel = "SHARE",
        description =
            "Remove this share of the hidden channels of an ONNX model altogether, so that it is"
                + " smaller and faster: the inner width of feed-forward blocks, the heads of"
                + " attentions, the channels of images between convolutions.")
    private Double channels;

    @Option(
        names = "--layers",
        paramLabel = "SHARE",
        description =
            "Remove this share of the layers of an ONNX model, to the nearest whole one: of those"
                + " that follow each other with the same operators and shapes, each with a residual"
                + " sum.")
    private Double layers;

    @Option(
        names = "--vocabulary",
        paramLabel = "TEXTS",
        description =
            "Remove the tokens that none of these texts has from the tables of an ONNX model and"
                + " from its tokenizer: a UTF-8 file with a text a line, or a .jsonl file of"
                + " {\"text\": \"...\"}.")
    private String vocabulary;

    /** The option that removes parts of the model; null where weights are pruned. */
    private String ofParts() {
      return channels != null
          ? "--channels"
          : layers != null ? "--layers" : vocabulary != null ? "--vocabulary" : null;
    }
  }

  /**
   * What a removal of parts left.
   *
   * @param text for people
   * @param key of {@code json}
   */
  private record Left(String text, String key, JsonNode json) {}

  /** Removes parts of a model. */
  @FunctionalInterface
  private interface Removal {
    /**
     * Removes them.
     *
     * @param examples empty where the user wants no calibration
     */
    Left from(Optional<ActivationSource> examples, Progress progress);
  }

  private MagnitudePrune.Rule rule() {
    if (scope != null && (how.threshold != null || how.pattern != null)) {
      throw new InputException("--scope is for --amount, --count and --sparsity");
    }
    if (refit && (how.threshold != null || how.count != null)) {
      throw new InputException(
          "--refit is for --amount, --sparsity and --pattern, where each output of a tensor loses"
              + " the same share");
    }
    Scope of = scope == null ? Scope.GLOBAL : scope;
    if (how.amount != null) {
      return new MagnitudePrune.Amount(how.amount, of);
    } else if (how.count != null) {
      return new MagnitudePrune.Count(how.count, of);
    } else if (how.sparsity != null) {
      return new MagnitudePrune.Sparsity(how.sparsity, of);
    } else if (how.threshold != null) {
      return new MagnitudePrune.Threshold(how.threshold);
    }
    return MagnitudePrune.Pattern.parse(how.pattern);
  }

  @Override
  public Integer call() {
    String isa = Machine.isa().name().toLowerCase(Locale.ROOT);
    if (how.channels == null) {
      if (allocation != null) {
        throw new InputException("--allocation is for --channels");
      }
      if (cacheHeads) {
        throw new InputException("--cache-heads is for --channels");
      }
    }
    if (how.ofParts() != null) {
      if (scope != null || maskIn != null || maskOut != null || refit) {
        throw new InputException(
            "--scope, --mask-in, --mask-out and --refit are for weights, not " + how.ofParts());
      }
      if (how.channels == null && tensors.given()) {
        throw new InputException(
            "--include and --exclude name weights, of which " + how.ofParts() + " has none");
      }
      if (how.vocabulary != null) {
        removeTokens();
      } else {
        removeParts();
      }
      return 0;
    }
    if (outputs.given()) {
      throw new InputException("--outputs is for --channels and --layers");
    }
    if (!refit && (calibration.given() || tokenizer.given())) {
      throw new InputException(
          "--calibration and --tokenizer are for --channels, --layers and --refit");
    }
    MagnitudePrune.Rule rule = rule();
    Path masksIn = maskIn == null ? null : ModelSource.path(maskIn);
    Path masksOut = maskOut == null ? null : ModelSource.path(maskOut);
    ModelSource source = ModelSource.find(model, common::note);
    if (refit) {
      source = source.asOnnx("--refit");
    }
    Path target = source.output(output);
    Device computes = device.use(source.kind() != ModelSource.Kind.ONNX);
    CheckpointPruner.Result result;
    try (Progress progress = new Progress(common.err(), "reading")) {
      if (source.kind() == ModelSource.Kind.ONNX) {
        OnnxModel onnx = source.onnx(common::note);
        ScaledProducts.fold(onnx).ifPresent(common::note);
        Companions companions = new Companions(source, target);
        companions.check();
        Set<String> chosen = choose(onnx, rule);
        ActivationSource examples = null;
        if (refit) {
          List<OnnxWeight> weights =
              OnnxWeights.of(onnx).stream().filter(w -> chosen.contains(w.name())).toList();
          RefittingPruner.unseen(onnx, weights).forEach(common::note);
          examples = calibration.fixed(onnx, source, tokenizer, common::note, progress);
        }
        result =
            OnnxPruner.prune(
                onnx,
                new OnnxPruner.Job(
                    target, rule, c -> chosen.contains(c.name()), masksIn, masksOut, examples),
                progress::update);
        companions.write();
        companions.tell(common::note);
      } else {
        Set<String> chosen = choose(source.path());
        result =
            CheckpointPruner.prune(
                new CheckpointPruner.Job(
                    source.path(),
                    target,
                    rule,
                    tensor -> chosen.contains(tensor.name()),
                    masksIn,
                    masksOut),
                computes,
                progress::update);
      }
    }
    report(result, computes.toString(), isa);
    if (rule instanceof MagnitudePrune.Pattern) {
      common.note("the zeros are stored like other weights: the file is as large and as fast");
    } else {
      common.note(
          "unstructured zeros change neither the file's size nor its speed; 'espalier quantize'"
              + " changes both");
    }
    return 0;
  }

  private void removeParts() {
    String option = how.ofParts();
    if (outputs.given() && allocation == Allocation.UNIFORM) {
      throw new InputException("--outputs is for --allocation global, which looks at them");
    }
    ModelSource source = ModelSource.find(model, common::note).asOnnx(option);
    device.use(false);
    Path target = source.output(output);
    long begin = System.nanoTime();
    OnnxModel onnx = source.onnx(common::note);
    AtomicFile.check(target, onnx.files().toArray(Path[]::new));
    Companions companions = new Companions(source, target);
    companions.check();
    Removal removal = how.channels != null ? channels(onnx) : layers(onnx);
    Left left;
    double speedup;
    List<Path> written;
    try (Progress progress = new Progress(common.err(), "calibrating")) {
      Optional<ActivationSource> examples =
          calibration.dynamic(onnx, source, tokenizer, common::note, progress);
      if (outputs.given() && examples.isEmpty()) {
        throw new InputException("--outputs is for models that are calibrated: --calibration");
      }
      left = removal.from(examples, progress);
      progress.update("timing", 0, 0);
      speedup = calibration.speedup(source, onnx, examples, common::note);
      progress.update("writing", 0, 0);
      written = onnx.write(target, source.path());
      companions.write();
    }
    companions.tell(common::note);
    report(
        left,
        FileTree.bytes(onnx.files()),
        FileTree.bytes(written),
        speedup,
        (System.nanoTime() - begin) * 1e-9);
    common.note(
        "'espalier compress' trains what is left: a recipe with the original as model and this as"
            + " student, or with student: {"
            + option.substring(2)
            + ": …} in place of this step");
  }

  private void removeTokens() {
    if (outputs.given() || calibration.given()) {
      throw new InputException("--outputs and --calibration are not for --vocabulary");
    }
    ModelSource source = ModelSource.find(model, common::note).asOnnx("--vocabulary");
    device.use(false);
    new TokenRemoval(common, source, source.output(output))
        .run(
            ModelSource.path(how.vocabulary),
            tokenizer.file(source, common::note),
            tokenizer.maxTokens());
  }

  private Removal channels(OnnxModel onnx) {
    if (cacheHeads && hasPast(onnx) && calibration.ofTensors()) {
      throw new InputException(
          "--cache-heads: tensors of --calibration hold keys and values of all heads, which the"
              + " narrower model does not take; a text file, or 'none', is right");
    }
    ChannelPruner pruner =
        ChannelPruner.choosing(
            onnx,
            how.channels,
            allocation == null ? Allocation.GLOBAL : allocation,
            cacheHeads ? ChannelPruner.Caches.NARROW : ChannelPruner.Caches.KEEP,
            names -> tensors.choose(names, name -> true));
    pruner.measureBy(outputs.choose(onnx));
    pruner.kept().ifPresent(kept -> common.note(kept + "; --cache-heads removes such too"));
    return (examples, progress) -> {
      List<ChannelPruner.Narrowed> narrowed = pruner.prune(examples.orElse(null), progress::update);
      ArrayNode list = JsonNodeFactory.instance.arrayNode();
      for (ChannelPruner.Narrowed set : narrowed) {
        list.addObject()
            .put("name", set.name())
            .put("numbers", set.numbers())
            .put("before", set.before())
            .put("after", set.after());
      }
      return new Left(
          ChannelPruner.summary(narrowed)
              + ", in "
              + narrowed.size()
              + (narrowed.size() == 1 ? " set" : " sets"),
          "channels",
          list);
    };
  }

  private Removal layers(OnnxModel onnx) {
    if (hasPast(onnx) && calibration.ofTensors()) {
      throw new InputException(
          "--layers: tensors of --calibration hold keys and values of all layers, which the"
              + " shallower model does not take; a text file is right");
    }
    LayerPruner pruner = new LayerPruner(onnx, how.layers, outputs.choose(onnx));
    return (examples, progress) -> {
      LayerPruner.Removed removed =
          pruner.prune(
              examples.orElseThrow(
                  () ->
                      new InputException(
                          "--layers removes what examples say is missed least: --calibration names"
                              + " some")),
              progress::update);
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("before", removed.layers());
      ArrayNode gone = json.putArray("removed");
      removed.gone().forEach(gone::add);
      json.set("output_error", Json.of(removed.error()));
      return new Left(
          removed.summary()
              + ", which changes outputs for up to "
              + LayerPruner.SOME
              + " of the examples by "
              + Quantity.percent(removed.error())
              + " of their norm",
          "layers",
          json);
    };
  }

  private static boolean hasPast(OnnxModel onnx) {
    return onnx.inputs().stream().anyMatch(input -> PastInput.isOne(input.getName()));
  }

  private Set<String> choose(OnnxModel onnx, MagnitudePrune.Rule rule) {
    Map<String, Candidate> candidates =
        OnnxPruner.candidates(onnx).stream()
            .collect(Collectors.toMap(Candidate::name, Function.identity()));
    if (candidates.isEmpty()) {
      throw new InputException(
          onnx.name()
              + " has no weights to prune"
              + OnnxWeights.outOfReach(onnx).map(inner -> ": " + inner).orElse(""));
    }
    Optional<String> quantized = FloatWeights.quantized(onnx);
    if (quantized.isPresent()
        && !tensors.replacesDefault()
        && candidates.values().stream().noneMatch(OnnxPruner::isPrunable)) {
      throw new InputException(
          onnx.name()
              + " has no weights to prune: "
              + quantized.get()
              + "; prune the model that it was made of");
    }
    OnnxWeights.outOfReach(onnx).ifPresent(common::note);
    return tensors.choose(candidates.keySet(), usual(candidates, rule));
  }

  private Set<String> choose(Path path) {
    try (Checkpoint checkpoint = Checkpoint.open(path)) {
      List<String> names =
          checkpoint.tensors().stream()
              .filter(tensor -> tensor.dtype().isFloat())
              .map(TensorInfo::name)
              .toList();
      List<String> others =
          checkpoint.tensors().stream()
              .filter(t -> t.dtype().isFloat() && t.dtype().computable() == null && t.rank() >= 2)
              .map(tensor -> tensor.name() + " of " + tensor.dtype())
              .toList();
      if (!others.isEmpty()) {
        common.note(
            "types that are not F32, F16 or BF16 stay as they are: "
                + String.join(", ", others.subList(0, Math.min(3, others.size())))
                + (others.size() > 3 ? " and " + (others.size() - 3) + " more" : ""));
      }
      return tensors.choose(names, name -> CheckpointPruner.isPrunable(checkpoint.tensor(name)));
    }
  }

  /** What is taken by default: of a pattern what it divides, where that is anything. */
  private Predicate<String> usual(Map<String, Candidate> candidates, MagnitudePrune.Rule rule) {
    List<String> prunable =
        candidates.keySet().stream()
            .filter(name -> OnnxPruner.isPrunable(candidates.get(name)))
            .toList();
    if (!(rule instanceof MagnitudePrune.Pattern pattern) || tensors.replacesDefault()) {
      return Set.copyOf(prunable)::contains;
    }
    Set<String> fitting =
        prunable.stream()
            .filter(name -> OnnxPruner.fits(candidates.get(name), pattern))
            .collect(Collectors.toSet());
    List<String> others = prunable.stream().filter(name -> !fitting.contains(name)).toList();
    if (fitting.isEmpty() || others.isEmpty()) {
      return Set.copyOf(prunable)::contains;
    }
    common.note(
        others.size()
            + (others.size() == 1 ? " tensor stays whole: " : " tensors stay whole: ")
            + pattern.group()
            + " does not divide what is summed over ("
            + NearNames.list("", others)
            + ")");
    return fitting::contains;
  }

  private void report(
      Left left, long inputBytes, long outputBytes, double speedup, double seconds) {
    double ratio = (double) outputBytes / inputBytes;
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("output", output);
      json.put("input_bytes", inputBytes).put("output_bytes", outputBytes);
      json.put("size_ratio", ratio).put("seconds", seconds);
      if (!Double.isNaN(speedup)) {
        json.put("speedup", speedup);
      }
      json.set(left.key(), left.json());
      common.print(json);
      return;
    }
    Table table = new Table("", "");
    table.add("left", left.text());
    table.add("size", Format.sizes(outputBytes, inputBytes));
    if (!Double.isNaN(speedup)) {
      table.add("speed", Format.speedup(speedup));
    }
    table.add("time", Quantity.seconds(seconds));
    table.print(common.out());
  }

  private void report(CheckpointPruner.Result result, String computes, String isa) {
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("total", result.total()).put("pruned", result.pruned());
      json.set("threshold", Json.of(result.threshold()));
      json.put("device", computes).put("isa", isa);
      json.set("seconds", Json.of(result.seconds()));
      ArrayNode list = json.putArray("tensors");
      for (MagnitudePrune.TensorResult tensor : result.tensors()) {
        list.addObject()
            .put("name", tensor.name())
            .put("total", tensor.total())
            .put("pruned", tensor.pruned());
      }
      common.print(json);
      return;
    }
    Table table = new Table("", "");
    double share = result.total() == 0 ? 0 : (double) result.pruned() / result.total();
    table.add(
        "pruned",
        result.pruned()
            + " of "
            + result.total()
            + " weights, "
            + Quantity.percent(share)
            + ", in "
            + result.tensors().size()
            + " tensors");
    if (!Float.isNaN(result.threshold())) {
      table.add("threshold", Float.toString(result.threshold()));
    }
    table.add("computed", "on " + computes + ", " + isa);
    table.add(
        "time",
        String.format(
            Locale.ROOT,
            "%s: read %s, select %s, apply %s, write %s",
            Quantity.seconds(result.seconds().total()),
            Quantity.seconds(result.seconds().read()),
            Quantity.seconds(result.seconds().select()),
            Quantity.seconds(result.seconds().apply()),
            Quantity.seconds(result.seconds().write())));
    table.print(common.out());
  }
}
