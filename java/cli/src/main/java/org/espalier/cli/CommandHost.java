package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Consumer;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.ClassifierEvaluator;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.FileActivations;
import org.espalier.evaluate.LanguageModelEvaluator;
import org.espalier.evaluate.ModelPair;
import org.espalier.evaluate.OnnxRuntime;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.RegressionEvaluator;
import org.espalier.evaluate.RuntimeModel;
import org.espalier.evaluate.TensorEvaluator;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.WordNetSentences;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RunHost;
import org.espalier.torch.Libtorch;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/** What the command line lends to a run: files, the tokenizer, ONNX Runtime, the terminal. */
final class CommandHost implements RunHost, AutoCloseable {
  private final Recipe recipe;
  private final Path recipeFolder;
  private final Consumer<String> notes;
  private final MavenFiles maven;
  private final AtomicReference<Progress> progress = new AtomicReference<>();
  private volatile boolean stopped;
  private TextTokenizer tokenizer;

  CommandHost(Recipe recipe, Path recipeFile, Consumer<String> notes) {
    this.recipe = recipe;
    this.recipeFolder = recipeFile.toAbsolutePath().getParent();
    this.notes = notes;
    this.maven = new MavenFiles(notes);
  }

  /** Shows the run here from now on. */
  void showOn(Progress shown) {
    progress.set(shown);
  }

  /** Makes {@link #stopRequested} true. */
  void stop() {
    stopped = true;
  }

  @Override
  public Path file(String reference) {
    if (MavenEntry.isOne(reference)) {
      return maven.file(MavenEntry.parse(reference));
    }
    Path path = recipeFolder.resolve(ModelSource.path(reference));
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

  @Override
  public List<String> wordNet(String reference, int count) {
    Path archive =
        MavenEntry.isOne(reference) ? maven.jar(MavenEntry.parse(reference)) : file(reference);
    return WordNetSentences.sample(archive, count);
  }

  private synchronized TextTokenizer tokenizer() {
    if (tokenizer == null) {
      String named = recipe.model().tokenizer();
      Path file =
          named != null
              ? file(named)
              : ModelSource.find(
                      MavenEntry.isOne(recipe.model().file())
                          ? recipe.model().file()
                          : file(recipe.model().file()).toString(),
                      text -> {}) // said when the model was found
                  .tokenizer("model.tokenizer");
      tokenizer = new TextTokenizer(file, recipe.model().maxTokens());
    }
    return tokenizer;
  }

  @Override
  public List<long[]> tokens(List<String> texts) {
    TextTokenizer open = tokenizer();
    return texts.stream().map(text -> open.encode(text).ids()).toList();
  }

  @Override
  public OnnxModel withComputedWeights(OnnxModel model) {
    return ModelSource.asTaken(model, this::note);
  }

  @Override
  public ActivationSource calibration(List<String> texts) {
    return new TextActivations(tokenizer(), texts, Machine.threads());
  }

  @Override
  public ActivationSource calibration(Examples.Labelled examples) {
    return new ExampleActivations(tensors(examples), Machine.threads());
  }

  @Override
  public void checkComparable(Path model, List<String> texts) {
    if (recipe.isCausal()) {
      LanguageModelEvaluator.check(tokenizer(), model, texts);
    } else {
      embeddings().check(model, texts);
    }
  }

  @Override
  public void checkComparable(Path model, Examples.Labelled example) {
    try (RuntimeModel runtime = new RuntimeModel(model)) {
      runtime.check(tensors(example));
    }
  }

  @Override
  public Map<String, Object> compare(Path reference, Path candidate, List<String> texts) {
    return recipe.isCausal()
        ? LanguageModelEvaluator.evaluate(tokenizer(), reference, candidate, texts, this::measuring)
            .toMap()
        : embeddings().evaluate(reference, candidate, texts, this::measuring).toMap();
  }

  private void measuring(org.espalier.compress.Progress.Phase phase, long done, long total) {
    progress("measuring in ONNX Runtime", done, total);
  }

  private FidelityEvaluator embeddings() {
    return new FidelityEvaluator(tokenizer(), Pooling.valueOf(recipe.model().pooling().name()));
  }

  @Override
  public Map<String, Object> compare(Path reference, Path candidate, Examples.Labelled examples) {
    try (ModelPair pair = new ModelPair(reference, candidate, tensors(examples))) {
      Map<String, Object> values =
          examples.labels() == null
              ? TensorEvaluator.evaluate(pair, this::measuring).toMapOfFirst()
              : compare(pair, examples.labels());
      values.putAll(pair.savings(this::measuring).toMap());
      return values;
    }
  }

  /** What two models give for examples, measured by their labels. */
  static Map<String, Object> compare(ModelPair pair, Labels labels) {
    if (labels instanceof Labels.Classes classes) {
      return ClassifierEvaluator.evaluate(pair, classes.values()).toMap();
    }
    Labels.Numbers numbers = (Labels.Numbers) labels;
    return RegressionEvaluator.evaluate(pair, numbers.values(), numbers.width()).toMap();
  }

  private static ExampleTensors tensors(Examples.Labelled examples) {
    List<Map<String, ExampleTensors.Value>> all = new ArrayList<>();
    for (int i = 0; i < examples.size(); i++) {
      Map<String, ExampleTensors.Value> example = new LinkedHashMap<>();
      for (Examples.Input input : examples.inputs()) {
        byte[] row = input.rows().get(i);
        long[] shape =
            LongStream.concat(LongStream.of(1), input.shape().stream().mapToLong(d -> d)).toArray();
        example.put(
            input.name() == null ? ExampleTensors.ONLY_INPUT : input.name(),
            new ExampleTensors.Value(
                ByteBuffer.allocateDirect(row.length)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .put(row)
                    .flip(),
                shape,
                FileActivations.type(input.type())));
      }
      all.add(example);
    }
    return new ExampleTensors(all);
  }

  @Override
  public Map<String, Object> machine() {
    Map<String, Object> machine = new LinkedHashMap<>();
    ObjectNode build = Build.current().toJson();
    machine.put("espalier", build.get("version").asText());
    if (build.hasNonNull("commit")) {
      machine.put("commit", build.get("commit").asText());
    }
    machine.put("isa", Machine.isa().name().toLowerCase(Locale.ROOT));
    machine.put("threads", Machine.threads());
    machine.put("java", Runtime.version().toString());
    machine.put("libtorch", Libtorch.version());
    machine.put("onnxruntime", OnnxRuntime.environment().getVersion());
    machine.put("system", System.getProperty("os.name") + " " + System.getProperty("os.version"));
    return machine;
  }

  @Override
  public void note(String text) {
    notes.accept(text);
  }

  @Override
  public void progress(String text, long done, long total) {
    Progress shown = progress.get();
    if (shown != null) {
      shown.update(text, done, total);
    }
  }

  @Override
  public boolean stopRequested() {
    return stopped;
  }

  @Override
  public void close() {
    if (tokenizer != null) {
      tokenizer.close();
    }
  }
}
