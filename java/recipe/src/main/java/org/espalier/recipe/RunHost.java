package org.espalier.recipe;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.backend.Isa;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.ScaledProducts;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.LanguageModelEvaluator;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.evaluate.ModelPair;
import org.espalier.evaluate.OnnxRuntime;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.RuntimeModel;
import org.espalier.evaluate.TensorEvaluator;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.WordNetSentences;
import org.espalier.format.ComputedList;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.image.ImageProcessor;
import org.espalier.source.MavenEntry;
import org.espalier.source.MavenFiles;
import org.espalier.source.ModelSource;
import org.espalier.source.SentencePooling;
import org.espalier.torch.Libtorch;
import org.espalier.train.Examples;
import org.espalier.train.Labels;
import org.espalier.transformers.TransformersModel;

/** What a run needs beside training: files behind references, the tokenizer, ONNX Runtime, who watches it. */
final class RunHost implements AutoCloseable {
  private final Recipe recipe;
  private final Path base;
  private final RunMonitor monitor;
  private final MavenFiles maven;
  private TextTokenizer tokenizer;
  private ImageProcessor imageProcessor;
  private Pooling pooling;

  /**
   * @param base where relative paths of the recipe begin
   */
  RunHost(Recipe recipe, Path base, RunMonitor monitor) {
    this.recipe = recipe;
    this.base = base;
    this.monitor = monitor;
    this.maven = new MavenFiles(monitor::note);
  }

  /**
   * The file that a recipe names.
   *
   * @param reference a path, relative to the recipe's folder, or {@code maven:…}
   * @throws InputException where there is none
   */
  Path file(String reference) {
    if (MavenEntry.isOne(reference)) {
      return maven.file(MavenEntry.parse(reference));
    }
    Path path = base.resolve(ModelSource.path(reference));
    if (!Files.isRegularFile(path)) {
      throw new InputException(
          "there is no file "
              + path
              + (Path.of(reference).isAbsolute()
                  ? ""
                  : " (paths in a recipe start at its folder)"));
    }
    return path;
  }

  /** The same of a model, which may be a folder of safetensors with its configuration. */
  Path modelFile(String reference) {
    if (!MavenEntry.isOne(reference)) {
      Path path = base.resolve(ModelSource.path(reference));
      if (TransformersModel.isOne(path)) {
        return path;
      }
    }
    return file(reference);
  }

  /** The same of examples, which may be a folder of images. */
  Path examples(String reference) {
    if (!MavenEntry.isOne(reference)) {
      Path path = base.resolve(ModelSource.path(reference));
      if (Files.isDirectory(path)) {
        return path;
      }
    }
    return file(reference);
  }

  /**
   * Sentences of WordNet, different ones in a fixed order.
   *
   * @param reference of one of its files in an artefact
   */
  List<String> wordNet(String reference, int count) {
    Path archive =
        MavenEntry.isOne(reference) ? maven.jar(MavenEntry.parse(reference)) : file(reference);
    return WordNetSentences.sample(archive, count);
  }

  private synchronized TextTokenizer tokenizer() {
    if (tokenizer == null) {
      String named = recipe.model().tokenizer();
      Path file = named != null ? file(named) : model().tokenizer("model.tokenizer");
      tokenizer = new TextTokenizer(file, recipe.model().maxTokens());
    }
    return tokenizer;
  }

  private ModelSource model() {
    String named = recipe.model().file();
    return ModelSource.findAny(
        MavenEntry.isOne(named) ? named : modelFile(named).toString(),
        text -> {}); // said when the model was found
  }

  /** How the states of a text's tokens become its embedding. */
  synchronized Pooling pooling() {
    if (pooling == null) {
      ModelSource model = model();
      OnnxModel graph = model.asGiven(text -> {}); // said when it was read
      pooling = model.pooling(graph, recipe.model().pooling(), "model.pooling", this::note);
    }
    return pooling;
  }

  /** What says beside the model that states are pooled as they were; null where nothing does, or they were not. */
  synchronized SentencePooling sentencePooling() {
    if (pooling == null) {
      return null;
    }
    SentencePooling found;
    try {
      found = model().sentencePooling();
    } catch (InputException e) {
      return null; // the recipe says how, and that what lies there is none was told
    }
    return found == null || found.pooling() != pooling ? null : found;
  }

  /** The names of the model's classes; empty where none are there. */
  List<String> classes() {
    return model().classes();
  }

  /** How images become tensors. */
  synchronized ImageProcessor imageProcessor() {
    if (imageProcessor == null) {
      String named = recipe.model().imageProcessor();
      imageProcessor =
          ImageProcessor.read(
              named != null ? file(named) : model().imageProcessor("model.image-processor"));
    }
    return imageProcessor;
  }

  /** The file that says how images become tensors; null where there were none. */
  synchronized Path imageProcessorFile() {
    return imageProcessor == null ? null : imageProcessor.file();
  }

  /** The file of the tokenizer that texts were read with; null where there were none. */
  synchronized Path tokenizerFile() {
    return tokenizer == null ? null : tokenizer.file();
  }

  /** The tokens of texts, with the special ones. */
  List<long[]> tokens(List<String> texts) {
    TextTokenizer open = tokenizer();
    return texts.stream().map(text -> open.encode(text).ids()).toList();
  }

  /** The same of texts in lines, which may be pairs, or words. */
  List<TextTokenizer.Tokens> tokens(LineExamples texts) {
    return texts.tokens(tokenizer());
  }

  /** The model itself, whose weights have their scales in them, as it {@linkplain ModelSource#asTaken is taken}. */
  OnnxModel withComputedWeights(OnnxModel model) {
    ScaledProducts.fold(model).ifPresent(this::note);
    return ModelSource.asTaken(model, this::note);
  }

  /** Runs texts for calibration. */
  ActivationSource calibration(List<String> texts) {
    return new TextActivations(tokenizer(), texts, CpuThreads.get());
  }

  /** Runs labelled examples for calibration. */
  ActivationSource calibration(Examples.Labelled examples) {
    return new ExampleActivations(tensors(examples), CpuThreads.get());
  }

  /**
   * Looks whether a model can be compared on texts.
   *
   * @param texts those that it will be compared on
   * @throws InputException where ONNX Runtime does not load it, or does not run it on those that ask most of it
   */
  void checkComparable(MeasuredModel model, List<String> texts) {
    if (recipe.isCausal()) {
      LanguageModelEvaluator.check(tokenizer(), model, texts);
    } else {
      embeddings().check(model, texts);
    }
  }

  /**
   * The same on labelled examples.
   *
   * @param example one of those that it will be compared on
   * @param classes the names of the classes; empty where they have none
   * @throws InputException where ONNX Runtime does not load it, or does not run it on the example, or it has not as many
   *     classes as tags have names
   */
  void checkComparable(MeasuredModel model, Examples.Labelled example, List<String> classes) {
    if (example.labels() instanceof Labels.TokenClasses) {
      try (ModelPair itself = new ModelPair(model, model, tensors(example))) {
        measure(itself, example.labels(), classes);
      }
      return;
    }
    try (RuntimeModel runtime = new RuntimeModel(model)) {
      runtime.check(tensors(example));
    }
  }

  private Map<String, Object> measure(ModelPair pair, Labels labels, List<String> classes) {
    return LabelMeasures.of(pair, labels, classes, this::measuring);
  }

  /** How closely a model follows another on texts, as names with numbers. */
  Map<String, Object> compare(
      MeasuredModel reference, MeasuredModel candidate, List<String> texts) {
    return recipe.isCausal()
        ? LanguageModelEvaluator.evaluate(tokenizer(), reference, candidate, texts, this::measuring)
            .toMap()
        : embeddings().evaluate(reference, candidate, texts, this::measuring).toMap();
  }

  private void measuring(org.espalier.compress.Progress.Phase phase, long done, long total) {
    progress("measuring in ONNX Runtime", done, total);
  }

  private FidelityEvaluator embeddings() {
    return new FidelityEvaluator(tokenizer(), pooling());
  }

  /** The same on labelled examples. */
  Map<String, Object> compare(
      MeasuredModel reference,
      MeasuredModel candidate,
      Examples.Labelled examples,
      List<String> classes) {
    try (ModelPair pair = new ModelPair(reference, candidate, tensors(examples))) {
      Map<String, Object> values =
          examples.labels() == null
              ? TensorEvaluator.evaluate(pair, this::measuring).toMapOfFirst()
              : measure(pair, examples.labels(), classes);
      values.putAll(pair.savings(this::measuring).toMap());
      return values;
    }
  }

  /** Examples as a model is fed them. */
  static ExampleTensors tensors(Examples.Labelled examples) {
    return new ExampleTensors(
        new ComputedList<>(examples.size(), i -> values(examples.inputs(), i)));
  }

  private static Map<String, ExampleTensors.Value> values(
      List<Examples.Input> inputs, int example) {
    Map<String, ExampleTensors.Value> values = new LinkedHashMap<>();
    for (Examples.Input input : inputs) {
      values.put(
          input.name() == null ? ExampleTensors.ONLY_INPUT : input.name(),
          ExampleTensors.Value.of(input.rows().get(example), input.shape(example), input.type()));
    }
    return values;
  }

  /** What ran, by name: versions, processor, threads. */
  Map<String, Object> machine() {
    Map<String, Object> machine = new LinkedHashMap<>();
    String version = RunHost.class.getPackage().getImplementationVersion();
    machine.put("espalier", version == null ? "unpackaged" : version);
    machine.putAll(monitor.program());
    machine.put("isa", Isa.current().name().toLowerCase(Locale.ROOT));
    machine.put("threads", CpuThreads.get());
    machine.put("java", Runtime.version().toString());
    machine.put("libtorch", Libtorch.version());
    machine.put("onnxruntime", OnnxRuntime.environment().getVersion());
    machine.put("system", System.getProperty("os.name") + " " + System.getProperty("os.version"));
    return machine;
  }

  /** See {@link RunMonitor}. */
  void note(String text) {
    monitor.note(text);
  }

  /** See {@link RunMonitor}. */
  void progress(String text, long done, long total) {
    monitor.progress(text, done, total);
  }

  /** See {@link RunMonitor}. */
  boolean stopRequested() {
    return monitor.stopRequested();
  }

  @Override
  public void close() {
    if (tokenizer != null) {
      tokenizer.close();
      tokenizer = null;
    }
  }
}
