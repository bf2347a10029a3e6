package org.espalier.recipe;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.compress.Glob;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.compress.onnx.Clipping;
import org.espalier.format.InputFile;
import org.espalier.format.NearNames;
import org.espalier.op.MagnitudePrune;
import org.espalier.train.CompressionPlan;
import org.espalier.train.Labels;
import org.espalier.train.Objective;
import org.espalier.train.Optimizer;
import org.espalier.train.Pruning;
import org.espalier.train.Quantization;
import org.espalier.train.Stage;
import org.espalier.train.Training;

/**
 * What a run does, read from YAML and checked. {@link RecipeSchema} says what the keys mean.
 *
 * @param source the file as the user named it
 * @param text of the file
 * @param overrides what {@code --set} changed, as given
 * @param model what is compressed
 * @param teacher a reference to another model; null: the model
 * @param student what is trained in place of the model; null: the model
 * @param stages what is done
 * @param ofDefaultLoss names of the stages whose loss is not written down
 * @param formats what is written, see {@link RecipeSchema#FORMS}
 * @param title of the report; null for one made of the model's name
 * @param measureStages whether ONNX Runtime measures the model after each stage
 * @param checkpointSeconds between two checkpoints
 */
public record Recipe(
    String source,
    String text,
    List<String> overrides,
    ModelSettings model,
    String teacher,
    StudentSettings student,
    DataSettings data,
    CompressionPlan stages,
    Set<String> ofDefaultLoss,
    List<String> formats,
    String title,
    boolean measureStages,
    double checkpointSeconds) {
  /** So many examples show what is fitted to them. */
  private static final int CALIBRATION = 256;

  /** Texts of a batch; with fewer there is one other text at most. */
  private static final int LEAST_SIMILAR = 3;

  /** A scale of int4 answers for a block of weights, and is counted in eighths of what it was. */
  private static final double RATE_OF_SCALES = 3e-4;

  /**
   * The model.
   *
   * @param file a path or a reference
   * @param tokenizer a path or a reference; null for the one beside the model
   * @param config the config.json of the original checkpoint; null where there is none
   * @param place where it was written
   */
  public record ModelSettings(
      String file,
      String tokenizer,
      String config,
      org.espalier.train.Pooling pooling,
      int maxTokens,
      Place place) {}

  /** What labels are. */
  public enum Task {
    /** What they look like. */
    AUTO,
    /** Classes. */
    CLASSIFICATION,
    /** Numbers. */
    REGRESSION,
    /** Of texts: each token is the label of the one before it. */
    CAUSAL_LM;

    /** What recipes call it. */
    public String key() {
      return name().toLowerCase(Locale.ROOT).replace('_', '-');
    }

    static Task of(String key) {
      return Arrays.stream(values()).filter(t -> t.key().equals(key)).findAny().orElseThrow();
    }
  }

  /**
   * What is trained in place of the model.
   *
   * @param file a reference; null for the model itself with fewer channels
   * @param channels the share of its hidden channels that goes; 0 where there is a file
   * @param allocation of which sets how many go
   */
  public record StudentSettings(
      String file, double channels, ChannelPruner.Allocation allocation, Place place) {}

  /**
   * The data: {@code texts} or {@code examples}.
   *
   * @param wordNet whether {@code texts} is an artefact with WordNet's files
   * @param task what the labels of examples are, or that texts have labels
   * @param train how many are trained on; 0 for all that are left
   * @param evaluationTexts null to hold some out
   * @param evaluationExamples null to hold some out
   */
  public record DataSettings(
      String texts,
      boolean wordNet,
      String examples,
      Task task,
      int train,
      int validation,
      int evaluation,
      int calibration,
      String evaluationTexts,
      String evaluationExamples,
      Place place) {}

  public Recipe {
    overrides = List.copyOf(overrides);
    formats = List.copyOf(formats);
    ofDefaultLoss = Set.copyOf(ofDefaultLoss);
  }

  /**
   * Reads a recipe file.
   *
   * @param overrides {@code stage.key=value} or {@code section.key=value} each
   * @throws InputException where the file cannot be read or is no recipe, with file and line
   */
  public static Recipe read(Path file, List<String> overrides) {
    return parse(file.toString(), content(file), overrides);
  }

  private static String content(Path file) {
    try {
      if (Files.isDirectory(file)) {
        throw new InputException(file + " is a folder; a recipe is a YAML file");
      }
      return InputFile.text(file, YamlReader.MAX_CHARACTERS);
    } catch (NoSuchFileException e) {
      throw new InputException(
          "there is no recipe " + file + "; 'espalier recipe init' writes one", e);
    } catch (CharacterCodingException e) {
      throw new InputException(file + " is not UTF-8 text", e);
    } catch (IOException e) {
      throw new InputException(file + " cannot be read: " + e.getMessage(), e);
    }
  }

  /**
   * Reads the text of a recipe.
   *
   * @param source how messages call it
   * @throws InputException where it is no recipe, with the line
   */
  public static Recipe parse(String source, String text, List<String> overrides) {
    YamlNode root = YamlReader.read(source, true, text);
    for (String override : overrides) {
      root = override(root, override);
    }
    Settings all = new SettingsReader().read(root);
    Settings model = all.group("model");
    Settings data = all.group("data");
    checkSource(data);
    Task task = Task.of(data.text("task"));
    Kind kind = kind(data, task);
    Set<String> ofDefaultLoss = new HashSet<>();
    CompressionPlan plan = plan(all, kind, ofDefaultLoss);
    Settings export = all.group("export");
    List<String> formats = export.texts("formats").stream().distinct().toList();
    if (formats.contains("compressed-tensors")) {
      checkCompressedTensors(plan.stages(), model, export);
    }
    return new Recipe(
        source,
        text,
        overrides,
        modelSettings(model),
        all.has("teacher") ? all.group("teacher").text("file") : null,
        all.has("student") ? student(all.group("student")) : null,
        dataSettings(data, task, isRefitted(all, plan)),
        plan,
        ofDefaultLoss,
        formats,
        all.group("report").text("title"),
        all.group("report").flag("each-stage"),
        all.group("checkpoint").real("every-seconds"));
  }

  /** Data are either texts or examples, and so are those that it is measured on. */
  private static void checkSource(Settings data) {
    if (data.given("texts") == data.given("examples")) {
      throw data.wrong(
          data.given("texts") ? "examples" : "texts",
          "either texts or examples is needed, not both");
    }
    if (data.given("evaluation-texts") && data.given("examples")) {
      throw data.wrong("evaluation-texts", "the data are examples; evaluation-examples takes them");
    }
    if (data.given("evaluation-examples") && data.given("texts")) {
      throw data.wrong("evaluation-examples", "the data are texts; evaluation-texts takes them");
    }
  }

  private static Kind kind(Settings data, Task task) {
    boolean texts = data.given("texts");
    if (texts && task != Task.AUTO && task != Task.CAUSAL_LM) {
      throw data.wrong(
          "task",
          task.key()
              + " says what labels are, and texts have none; causal-lm learns the next token");
    }
    if (!texts && task == Task.CAUSAL_LM) {
      throw data.wrong(
          "task", "causal-lm takes data.texts; the labels of examples are in their file");
    }
    return !texts ? Kind.EXAMPLES : task == Task.CAUSAL_LM ? Kind.CAUSAL : Kind.EMBEDDED;
  }

  /**
   * The stages.
   *
   * @param ofDefaultLoss receives the names of those that say nothing of their loss
   */
  private static CompressionPlan plan(Settings all, Kind kind, Set<String> ofDefaultLoss) {
    List<Stage> stages = new ArrayList<>();
    boolean tuned = false;
    for (Settings stage : all.groups("stages")) {
      Stage made = stage(stage, kind);
      tuned |= stage.text("kind").equals("fine-tune");
      if (stage.group("loss") == null) {
        ofDefaultLoss.add(stage.text("name"));
        if (kind == Kind.CAUSAL && tuned && !all.has("teacher")) {
          // The original would take back what was learned after it.
          made = made.with(made.training().with(Objective.ofLabels()));
        }
      }
      stages.add(made);
    }
    try {
      return new CompressionPlan(stages, all.whole("seed"));
    } catch (IllegalArgumentException e) {
      throw new InputException(all.place("stages") + ": stages: " + e.getMessage(), e);
    }
  }

  private static ModelSettings modelSettings(Settings model) {
    return new ModelSettings(
        model.text("file"),
        model.text("tokenizer"),
        model.text("config"),
        model.text("pooling").equals("cls")
            ? org.espalier.train.Pooling.CLS
            : org.espalier.train.Pooling.MEAN,
        model.small("max-tokens"),
        model.place("file"));
  }

  /** Whether weights are solved for by what calibration saw, for which texts can hardly be too many. */
  private static boolean isRefitted(Settings all, CompressionPlan plan) {
    return all.has("student") && all.group("student").given("channels")
        || plan.stages().stream()
            .anyMatch(stage -> stage instanceof Stage.Prune p && p.pruning().refit());
  }

  private static DataSettings dataSettings(Settings data, Task task, boolean refitted) {
    int usual = refitted && data.given("texts") ? ActivationSource.REFITTING_TEXTS : CALIBRATION;
    return new DataSettings(
        data.text("texts"),
        data.text("format").equals("wordnet"),
        data.text("examples"),
        task,
        data.has("train") ? data.small("train") : 0,
        data.small("validation"),
        data.small("evaluation"),
        data.has("calibration") ? data.small("calibration") : usual,
        data.text("evaluation-texts"),
        data.text("evaluation-examples"),
        data.place(data.given("texts") ? "texts" : "examples"));
  }

  private static StudentSettings student(Settings student) {
    boolean file = student.given("file");
    if (file == student.given("channels")) {
      throw student.wrong(
          file ? "channels" : "file", "either file or channels is needed, not both");
    }
    if (file && student.given("allocation")) {
      throw student.wrong("allocation", "it is for channels, not for a file");
    }
    return new StudentSettings(
        student.text("file"),
        file ? 0 : student.real("channels"),
        ChannelPruner.Allocation.valueOf(student.text("allocation").toUpperCase(Locale.ROOT)),
        student.place(file ? "file" : "channels"));
  }

  private static void checkCompressedTensors(List<Stage> stages, Settings model, Settings export) {
    Stage.Quantize quantize = null;
    for (Stage stage : stages) {
      quantize = stage instanceof Stage.Quantize q ? q : quantize;
    }
    if (quantize == null) {
      throw export.wrong("formats", "compressed-tensors holds int8 weights; no stage quantizes");
    }
    if (quantize.quantization().form() == Quantization.Form.INT4) {
      throw export.wrong(
          "formats",
          "compressed-tensors is written with int8 weights; the stage "
              + quantize.name()
              + " makes 4 bits");
    }
    if (quantize.quantization().fit()) {
      throw export.wrong(
          "formats",
          "compressed-tensors: fitting puts factors into the graph that this layout has no place"
              + " for; give the stage "
              + quantize.name()
              + " fit: false");
    }
    if (!model.given("config")) {
      throw export.wrong(
          "formats",
          "compressed-tensors: model.config is missing; it takes the config.json of the original");
    }
  }

  /** Whether it works on texts; else on labelled examples. */
  public boolean isForTexts() {
    return data.texts() != null;
  }

  /** Whether it works on texts for a causal language model. */
  public boolean isCausal() {
    return data.task() == Task.CAUSAL_LM;
  }

  /**
   * What is done to examples with such labels: where they are no classes, stages that do not say what they minimise
   * follow the teacher's output, beside labels that are numbers. To fine-tune remains to learn labels.
   *
   * @param labels null where there are none
   */
  CompressionPlan stagesFor(Labels labels) {
    if (labels instanceof Labels.Classes) {
      return stages;
    }
    Objective objective = labels == null ? Objective.ofOutput() : Objective.ofNumbers(0.5);
    List<Stage> result = new ArrayList<>();
    for (Stage stage : stages.stages()) {
      Training training = stage.training();
      boolean follows = ofDefaultLoss.contains(stage.name()) && training.objective().needsTeacher();
      result.add(follows ? stage.with(training.with(objective)) : stage);
    }
    return new CompressionPlan(result, stages.seed());
  }

  private static YamlNode override(YamlNode root, String given) {
    String source = "--set " + given;
    int equals = given.indexOf('=');
    if (equals <= 0) {
      throw new InputException(
          source + ": it takes stage.key=value or section.key=value, as qat.steps=100 or seed=2");
    }
    String[] path = given.substring(0, equals).strip().split("\\.", -1);
    YamlNode value = YamlReader.read(source, false, given.substring(equals + 1));
    YamlNode.Mapping at = mapping(root, source);
    List<String> names = new ArrayList<>();
    RecipeSchema.ROOT.keys().forEach(key -> names.add(key.name()));
    names.remove("stages");
    YamlNode.Mapping stage = null;
    if (at.entries().get("stages") instanceof YamlNode.Sequence stages) {
      for (YamlNode item : stages.items()) {
        if (item instanceof YamlNode.Mapping m
            && m.entries().get("kind") instanceof YamlNode.Scalar k) {
          String name = SettingsReader.stageName(m, k.text());
          names.add(name);
          if (name.equals(path[0]) && stage == null) {
            stage = m;
          }
        }
      }
    }
    if (!names.contains(path[0])) {
      throw new InputException(
          source
              + ": there is no stage or section '"
              + path[0]
              + "'; near it: "
              + NearNames.list(path[0], names));
    }
    if (stage != null && path.length == 1) {
      throw new InputException(source + ": which key of the stage '" + path[0] + "'?");
    }
    int from = 0;
    if (stage != null) {
      at = stage;
      from = 1;
    }
    for (int i = from; i < path.length - 1; i++) {
      YamlNode next = at.entries().get(path[i]);
      if (next == null || next instanceof YamlNode.Scalar s && s.isNull()) {
        next = YamlNode.Mapping.empty(new Place(source, 0));
        at.put(path[i], next, next.place());
      }
      at = mapping(next, source);
    }
    at.put(path[path.length - 1], value, new Place(source, 0));
    return root;
  }

  private static YamlNode.Mapping mapping(YamlNode node, String source) {
    if (node instanceof YamlNode.Mapping mapping) {
      return mapping;
    }
    throw new InputException(
        source
            + ": "
            + node.place()
            + " has "
            + node.describe()
            + " where a group of keys is expected");
  }

  /** What stages can learn from. */
  private enum Kind {
    EXAMPLES,
    EMBEDDED,
    CAUSAL
  }

  private static Stage stage(Settings s, Kind kind) {
    try {
      Training training = training(s, kind);
      return switch (s.text("kind")) {
        case "prune" -> new Stage.Prune(s.text("name"), pruning(s), training);
        case "quantize" -> new Stage.Quantize(s.text("name"), quantization(s), training);
        default -> new Stage.Train(s.text("name"), training);
      };
    } catch (IllegalArgumentException e) {
      throw new InputException(s.place() + ": " + s.path() + ": " + e.getMessage(), e);
    }
  }

  private static double learningRate(Settings s) {
    boolean scales =
        s.text("kind").equals("quantize")
            && form(s) == Quantization.Form.INT4
            && learnsScales(s)
            && !s.given("learning-rate");
    return scales ? RATE_OF_SCALES : s.real("learning-rate");
  }

  private static Training training(Settings s, Kind kind) {
    double epochs = s.real("epochs");
    long steps = epochs > 0 && !s.given("steps") ? 0 : s.whole("steps");
    boolean sgd = s.text("optimizer").equals("sgd");
    refuse(
        s,
        sgd ? List.of("beta1", "beta2", "epsilon") : List.of("momentum", "nesterov"),
        "it is for optimizer: " + (sgd ? "adamw" : "sgd"));
    Optimizer optimizer =
        sgd
            ? new Optimizer.Sgd(
                learningRate(s),
                s.real("momentum"),
                s.real("weight-decay"),
                s.flag("nesterov"),
                s.real("max-norm"))
            : new Optimizer.AdamW(
                learningRate(s),
                s.real("beta1"),
                s.real("beta2"),
                s.real("epsilon"),
                s.real("weight-decay"),
                s.real("max-norm"));
    Training.Schedule schedule =
        new Training.Schedule(
            Training.Schedule.Shape.valueOf(s.text("rate-schedule").toUpperCase(Locale.ROOT)),
            s.real("warmup"),
            s.real("last-rate"));
    return new Training(
        steps,
        epochs,
        s.small("batch"),
        optimizer,
        schedule,
        objective(s, kind),
        s.small("validate-every"),
        embeddings(s));
  }

  private static Training.Embeddings embeddings(Settings s) {
    List<String> given = s.texts("train-embeddings");
    switch (given.size() == 1 ? given.get(0) : "") {
      case "auto":
        return Training.Embeddings.AUTO;
      case "always":
        return Training.Embeddings.ALWAYS;
      case "never":
        return Training.Embeddings.NEVER;
      default:
        try {
          return Training.Embeddings.named(given.stream().map(Glob::parse).toList());
        } catch (InputException | IllegalArgumentException e) {
          throw s.wrong("train-embeddings", e.getMessage());
        }
    }
  }

  private static Objective objective(Settings s, Kind kind) {
    boolean fineTune = s.text("kind").equals("fine-tune");
    if (kind == Kind.EMBEDDED && fineTune) {
      throw s.wrong(
          "kind",
          "fine-tune trains on labels, and texts have none but the tokens that follow, for"
              + " data.task: causal-lm; distil needs none");
    }
    Settings loss = s.group("loss");
    if (loss == null && fineTune) {
      return Objective.ofLabels();
    }
    if (loss == null) {
      return switch (kind) {
        case EXAMPLES -> Objective.ofLogits(0.5, 2);
        case EMBEDDED -> Objective.ofEmbeddings(1, 0, 1);
        case CAUSAL -> Objective.ofLogits(0, 1);
      };
    }
    try {
      Objective objective =
          new Objective(
              loss.real("labels"),
              loss.real("logits"),
              loss.real("temperature"),
              loss.real("bound"),
              loss.real("output"),
              loss.real("embedding"),
              loss.real("similarity"),
              loss.real("similarity-temperature"),
              loss.real("hidden"));
      if (objective.similarity() > 0 && s.whole("batch") < LEAST_SIMILAR) {
        throw s.wrong(
            "batch",
            "similarity compares a text with the others of its batch; "
                + LEAST_SIMILAR
                + " or more are needed");
      }
      String fitting =
          switch (kind) {
            case EXAMPLES ->
                "embedding, similarity and hidden need texts; for data.examples there are labels,"
                    + " logits, bound and output";
            case EMBEDDED ->
                "labels, logits, bound and output need data.examples; for texts there are"
                    + " embedding, similarity and hidden, and with data.task: causal-lm labels,"
                    + " logits and bound";
            case CAUSAL -> "for data.task: causal-lm there are labels, logits and bound";
          };
      boolean fits =
          objective.isForEmbeddings()
              ? kind == Kind.EMBEDDED
              : kind == Kind.EXAMPLES || kind == Kind.CAUSAL && objective.output() == 0;
      if (!fits) {
        throw s.wrong("loss", fitting);
      }
      return objective;
    } catch (IllegalArgumentException e) {
      throw s.wrong("loss", e.getMessage());
    }
  }

  private static Pruning pruning(Settings s) {
    if (s.text("schedule").equals("one-shot")) {
      refuse(s, List.of("update-every", "until"), "it is for schedule: cubic");
    } else if (s.flag("refit")) {
      throw s.wrong("refit", "it is for schedule: one-shot");
    }
    Pruning.Pattern pattern = null;
    if (s.given("pattern")) {
      try {
        MagnitudePrune.Pattern parsed = MagnitudePrune.Pattern.parse(s.text("pattern"));
        pattern = new Pruning.Pattern(parsed.keep(), parsed.group());
      } catch (InputException | IllegalArgumentException e) {
        throw s.wrong("pattern", e.getMessage());
      }
      if (s.given("sparsity")) {
        throw s.wrong(
            "sparsity", "the pattern says how many weights are kept; leave one of them out");
      }
    }
    return new Pruning(
        s.real("sparsity"),
        s.text("scope").equals("tensor") ? Pruning.Scope.TENSOR : Pruning.Scope.GLOBAL,
        pattern,
        s.text("schedule").equals("cubic") ? Pruning.Schedule.CUBIC : Pruning.Schedule.ONE_SHOT,
        s.small("update-every"),
        s.real("until"),
        names(s),
        s.given("include"),
        s.flag("refit"));
  }

  private static Quantization.Form form(Settings s) {
    return Quantization.Form.valueOf(s.text("form").toUpperCase(Locale.ROOT));
  }

  private static boolean learnsScales(Settings s) {
    return s.given("learn-scales") ? s.flag("learn-scales") : form(s) == Quantization.Form.INT4;
  }

  private static Quantization quantization(Settings s) {
    Quantization.Form form = form(s);
    if (form != Quantization.Form.STATIC) {
      refuse(
          s,
          List.of("clip", "observer-momentum", "freeze-observers-at", "learn-ranges"),
          "it is for form: static");
    }
    if (form == Quantization.Form.INT4) {
      refuse(s, List.of("reduce-range"), "it is for 8 bits");
      try {
        BlockQuantizer.requireBlock(s.small("block"));
      } catch (InputException e) {
        throw s.wrong("block", e.getMessage());
      }
    } else {
      refuse(s, List.of("block"), "it is for form: int4");
    }
    Clipping clipping;
    try {
      clipping = s.text("clip").equals("auto") ? null : Clipping.parse(s.text("clip"));
    } catch (InputException e) {
      throw s.wrong("clip", e.getMessage() + "; auto is right too");
    }
    return new Quantization(
        form,
        new Quantization.Weights(
            s.flag("reduce-range"), s.small("block"), s.flag("embeddings"), learnsScales(s)),
        new Quantization.Ranges(
            clipping,
            s.real("observer-momentum"),
            s.real("freeze-observers-at"),
            s.flag("learn-ranges")),
        s.flag("fit"),
        names(s));
  }

  /** Keys that would say nothing beside the others. */
  private static void refuse(Settings s, List<String> keys, String why) {
    for (String key : keys) {
      if (s.given(key)) {
        throw s.wrong(key, why);
      }
    }
  }

  private static Predicate<String> names(Settings s) {
    try {
      List<Glob> include = s.texts("include").stream().map(Glob::parse).toList();
      List<Glob> exclude = s.texts("exclude").stream().map(Glob::parse).toList();
      return new NameGlobs(s, include, exclude);
    } catch (InputException e) {
      throw s.wrong("include", e.getMessage());
    }
  }
}
