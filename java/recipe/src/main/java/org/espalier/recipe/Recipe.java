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
import org.espalier.InputException;
import org.espalier.compress.LinearForm;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.evaluate.ExampleLine;
import org.espalier.evaluate.Measure;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.Requirement;
import org.espalier.format.InputFile;
import org.espalier.train.Augmentation;
import org.espalier.train.CompressionPlan;
import org.espalier.train.Labels;
import org.espalier.train.Objective;
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
 * @param requirements what the result has to keep
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
    Requirements requirements,
    double checkpointSeconds) {
  /** Calibration examples where the recipe does not say how many. */
  private static final int CALIBRATION = 256;

  /**
   * The model.
   *
   * @param file a path or a reference
   * @param tokenizer a path or a reference; null for the one beside the model
   * @param imageProcessor a path or a reference; null for the one beside the model
   * @param config the config.json of the original checkpoint; null for the one in the model's folder
   * @param pooling of states of tokens; null for what lies beside the model, or the mean
   * @param place where it was written
   */
  public record ModelSettings(
      String file,
      String tokenizer,
      String imageProcessor,
      String config,
      Pooling pooling,
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
   * @param file a reference; null for the model itself with fewer layers or channels
   * @param layers the share of its layers that goes; 0 for none
   * @param channels the share of its hidden channels, of the layers that are left, that goes; 0 for none
   * @param allocation of which sets how many go
   */
  public record StudentSettings(
      String file,
      double layers,
      double channels,
      ChannelPruner.Allocation allocation,
      Place place) {}

  /**
   * The data: {@code texts} or {@code examples}.
   *
   * @param wordNet whether {@code texts} is an artefact with WordNet's files
   * @param task what the labels of examples are, or that texts have labels
   * @param classes the words that labels in lines are, in the order of the outputs; empty where they are numbers
   * @param train how many are trained on; 0 for all that are left
   * @param evaluationTexts null to hold some out
   * @param evaluationExamples null to hold some out
   * @param augmentation of the training examples
   * @param augmented where that was written
   */
  public record DataSettings(
      String texts,
      boolean wordNet,
      String examples,
      Task task,
      List<String> classes,
      int train,
      int validation,
      int evaluation,
      int calibration,
      String evaluationTexts,
      String evaluationExamples,
      Augmentation augmentation,
      Place augmented,
      Place place) {}

  /**
   * What the result has to keep.
   *
   * @param place where it was written
   */
  public record Requirements(List<Requirement> all, Place place) {
    public Requirements {
      all = List.copyOf(all);
    }

    /**
     * Refuses those of what is not measured.
     *
     * @throws InputException with the place in the recipe
     */
    void requireAmong(Set<Measure> measured) {
      try {
        all.forEach(requirement -> requirement.requireAmong(measured));
      } catch (InputException e) {
        throw new InputException(place + ": report.require: " + e.getMessage(), e);
      }
    }
  }

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
      new RecipeOverride(override).apply(root);
    }
    Settings all = new SettingsReader().read(root);
    Settings model = all.group("model");
    Settings data = all.group("data");
    checkSource(data);
    Task task = Task.of(data.text("task"));
    StageReader.Learned learned = learned(data, task);
    Set<String> ofDefaultLoss = new HashSet<>();
    CompressionPlan plan = plan(all, learned, ofDefaultLoss);
    Settings export = all.group("export");
    List<String> formats = export.texts("formats").stream().distinct().toList();
    if (formats.contains("compressed-tensors")) {
      checkCompressedTensors(plan.stages(), export);
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
        requirements(all.group("report")),
        all.group("checkpoint").real("every-seconds"));
  }

  private static Requirements requirements(Settings report) {
    List<Requirement> all = new ArrayList<>();
    for (String text : report.texts("require")) {
      try {
        all.add(Requirement.of(text));
      } catch (InputException e) {
        throw report.wrong("require", e.getMessage());
      }
    }
    return new Requirements(all, report.place("require"));
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

  private static StageReader.Learned learned(Settings data, Task task) {
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
    if (!texts) {
      return StageReader.Learned.EXAMPLES;
    }
    return task == Task.CAUSAL_LM ? StageReader.Learned.CAUSAL : StageReader.Learned.EMBEDDED;
  }

  /**
   * The stages.
   *
   * @param ofDefaultLoss receives the names of those that say nothing of their loss
   */
  private static CompressionPlan plan(
      Settings all, StageReader.Learned learned, Set<String> ofDefaultLoss) {
    List<Stage> stages = new ArrayList<>();
    for (Settings stage : all.groups("stages")) {
      stages.add(StageReader.read(stage, learned));
      if (stage.group("loss") == null) {
        ofDefaultLoss.add(stage.text("name"));
      }
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
        model.text("image-processor"),
        model.text("config"),
        model.has("pooling") ? Pooling.parse(model.text("pooling")) : null,
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
    boolean texts = data.given("texts") || ExampleLine.mayBeTexts(data.text("examples"));
    int usual = refitted && texts ? ActivationSource.REFITTING_TEXTS : CALIBRATION;
    return new DataSettings(
        data.text("texts"),
        data.text("format").equals("wordnet"),
        data.text("examples"),
        task,
        classes(data),
        data.has("train") ? data.small("train") : 0,
        data.small("validation"),
        data.small("evaluation"),
        data.has("calibration") ? data.small("calibration") : usual,
        data.text("evaluation-texts"),
        data.text("evaluation-examples"),
        augmentation(data),
        data.place("augment"),
        data.place(data.given("texts") ? "texts" : "examples"));
  }

  private static Augmentation augmentation(Settings data) {
    Settings augment = data.group("augment");
    if (augment == null) {
      return Augmentation.NONE;
    }
    if (data.given("texts")) {
      throw data.wrong("augment", "it is for images, and the data are texts");
    }
    return new Augmentation(
        Augmentation.Flip.valueOf(augment.text("flip").toUpperCase(Locale.ROOT)),
        augment.real("shift"),
        augment.real("zoom"),
        augment.real("rotate"),
        augment.real("brightness"),
        augment.real("contrast"));
  }

  private static List<String> classes(Settings data) {
    List<String> classes = data.has("classes") ? data.texts("classes") : List.of();
    if (!classes.isEmpty()
        && (!data.given("examples") || data.text("examples").endsWith(".safetensors"))) {
      throw data.wrong(
          "classes",
          "it is for examples in lines, a .jsonl, .conll or .csv file, or a folder of images");
    }
    try {
      return new ClassOrder(classes, List::of).given();
    } catch (InputException e) {
      throw data.wrong("classes", e.getMessage());
    }
  }

  private static StudentSettings student(Settings student) {
    boolean file = student.given("file");
    boolean channels = student.given("channels");
    boolean layers = student.given("layers");
    if (file == (channels || layers)) {
      throw student.wrong(
          layers ? "layers" : channels ? "channels" : "file",
          file
              ? "either a file is needed, or layers, channels or both, not both a file and these"
              : "a file, layers or channels are needed");
    }
    if (!channels && student.given("allocation")) {
      throw student.wrong("allocation", "it is for channels");
    }
    return new StudentSettings(
        student.text("file"),
        layers ? student.real("layers") : 0,
        channels ? student.real("channels") : 0,
        ChannelPruner.Allocation.valueOf(student.text("allocation").toUpperCase(Locale.ROOT)),
        student.place(file ? "file" : layers ? "layers" : "channels"));
  }

  private static void checkCompressedTensors(List<Stage> stages, Settings export) {
    Stage.Quantize quantize = null;
    for (Stage stage : stages) {
      quantize = stage instanceof Stage.Quantize q ? q : quantize;
    }
    if (quantize == null) {
      throw export.wrong(
          "formats",
          "compressed-tensors holds the int8 weights that a stage has made, and no stage quantizes;"
              + " a model that was int8 before is written as ONNX");
    }
    Quantization quantization = quantize.quantization();
    boolean int4 = quantization.form() == Quantization.Form.INT4;
    if (int4 && !LinearForm.BLOCKS.contains(quantization.weights().block())) {
      throw export.wrong(
          "formats",
          "compressed-tensors has blocks of 32, 64 and 128; the stage "
              + quantize.name()
              + " makes blocks of "
              + quantization.weights().block());
    }
    if (int4 && quantization.weights().size() > 0) {
      throw export.wrong(
          "formats",
          "compressed-tensors has weights of 4 bits alone; the stage "
              + quantize.name()
              + " gives some 8, by its size");
    }
    if (!int4 && quantization.fit()) {
      throw export.wrong(
          "formats",
          "compressed-tensors: fitting puts factors into the graph that this layout has no place"
              + " for; give the stage "
              + quantize.name()
              + " fit: false");
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

  /** Whether it works on texts for a model that embeds them. */
  boolean isForEmbeddings() {
    return isForTexts() && !isCausal();
  }

  /**
   * What is done to examples with such labels: where they are no classes, stages that do not say what they minimise
   * follow the teacher's output, beside labels that are numbers. To fine-tune remains to learn labels.
   *
   * @param labels null where there are none
   */
  CompressionPlan stagesFor(Labels labels) {
    if (labels != null && !(labels instanceof Labels.Numbers)) {
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
}
