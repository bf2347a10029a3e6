package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.compress.CompressedTensorsFolder;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.compress.onnx.Float16Converter;
import org.espalier.compress.onnx.LayerPruner;
import org.espalier.compress.onnx.RefittingPruner;
import org.espalier.evaluate.LanguageModelEvaluator;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.format.NearNames;
import org.espalier.format.Sha256;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.source.ModelSource;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.GraphScript;
import org.espalier.torch.script.TorchScriptImport;
import org.espalier.train.Augmentation;
import org.espalier.train.Compression;
import org.espalier.train.Examples;
import org.espalier.train.OnnxCompression;
import org.espalier.train.Pooling;
import org.espalier.train.Stage;
import org.espalier.train.TrainedForm;
import org.espalier.transformers.SentenceModules;
import org.espalier.transformers.TransformersModel;

/** The models and data that a recipe names, and what trains them. */
final class RunInputs {
  final Path modelFile;
  final Path teacherFile;
  final Path studentFile;
  final Path configFile;
  final OnnxModel model;
  final RunData data;
  private final Recipe recipe;
  private final RunHost host;

  /**
   * Opens the files.
   *
   * @throws InputException where one is missing or is none that recipes take
   */
  RunInputs(Recipe recipe, RunHost host) {
    this.recipe = recipe;
    this.host = host;
    modelFile = host.modelFile(recipe.model().file());
    teacherFile = recipe.teacher() == null ? null : host.modelFile(recipe.teacher());
    boolean other = recipe.student() != null && recipe.student().file() != null;
    studentFile = other ? host.modelFile(recipe.student().file()) : null;
    configFile = configFile(recipe, host, modelFile);
    if (recipe.formats().contains("compressed-tensors")) {
      checkFormat("compressed-tensors", () -> CompressedTensorsFolder.check(configFile));
    }
    if (!isScript(modelFile) && !isFolder(modelFile) && !modelFile.toString().endsWith(".onnx")) {
      throw new InputException(
          recipe.model().place()
              + ": model.file: "
              + recipe.model().file()
              + " is neither .onnx nor .pt nor a folder of safetensors with its config.json;"
              + " recipes compress ONNX models and TorchScript modules (models written in Java are"
              + " trained through org.espalier.torch)");
    }
    // A script becomes a graph by an example, which must be there first.
    OnnxModel onnx = isScript(modelFile) ? null : read(modelFile);
    boolean missing = onnx != null && MissingValues.areKnownTo(onnx);
    long classes = onnx == null ? 0 : LineExamples.classesOf(onnx);
    data = RunData.of(recipe, host, asked(onnx), missing, classes);
    recipe.requirements().requireAmong(data.measures());
    if (onnx != null && recipe.isForEmbeddings() && LanguageModelEvaluator.isOne(onnx)) {
      host.note(
          "the model gives logits for each token, which are followed as states of tokens are; what"
              + " predicts the next token is trained with data.task: causal-lm, and of a folder"
              + " \"architectures\" in config.json names a class without the head, …Model");
    }
    model = onnx == null ? read(modelFile) : onnx;
  }

  /** The inputs of all models that are given; empty where the model is a module, which has one. */
  private Map<String, ValueInfoProto> asked(OnnxModel onnx) {
    List<OnnxModel> models = new ArrayList<>();
    for (Path file : new Path[] {modelFile, teacherFile, studentFile}) {
      if (file != null && !isScript(file)) {
        models.add(file.equals(modelFile) ? onnx : onnx(file, text -> {}));
      }
    }
    return onnx == null ? Map.of() : LineInputs.asked(models);
  }

  /** A stage ends with a comparison in ONNX Runtime, which may refuse what libtorch runs. */
  private void checkComparable() {
    for (Path file : studentFile == null ? List.of(modelFile) : List.of(modelFile, studentFile)) {
      if (isScript(file)) {
        continue;
      }
      MeasuredModel measured = measured(file);
      if (data.evaluationTexts() != null) {
        host.checkComparable(measured, data.evaluationTexts());
      } else {
        host.checkComparable(measured, data.evaluationExample(), data.classes());
      }
    }
  }

  /**
   * What carries the recipe out, after the checks that need the model.
   *
   * @param begins whether nothing has been trained yet
   */
  Compression compression(Path cache, TorchDevice device, boolean begins) {
    Compression.Job job = job(cache);
    TrainedForm form = TrainedForm.of(job.model());
    OnnxModel trained = form.floats();
    List<String> weights = OnnxWeights.of(trained).stream().map(OnnxWeight::name).toList();
    for (Stage stage : recipe.stages().stages()) {
      if (stage instanceof Stage.Prune p && p.pruning().include() instanceof NameGlobs globs) {
        globs.check(weights);
      } else if (stage instanceof Stage.Quantize q
          && q.quantization().include() instanceof NameGlobs globs) {
        globs.check(weights);
      }
    }
    OnnxCompression compression = compression(job, form, device);
    try {
      if (data.evaluationExamples() != null) {
        compression.checkMeasured(data.evaluationExamples());
      }
      if (recipe.formats().contains("torchscript")) {
        checkFormat("torchscript", () -> GraphScript.check(trained));
      }
      if (recipe.formats().contains("onnx-float16")) {
        checkFormat("onnx-float16", () -> new Float16Converter(form.floats(), weight -> true));
      }
      if (begins) {
        checkComparable();
        noteInnerWeights(trained);
        noteUnseenWeights(trained);
        compression.resting().forEach(host::note);
      }
    } catch (InputException e) {
      compression.close();
      throw e;
    }
    return compression;
  }

  private OnnxCompression compression(Compression.Job job, TrainedForm form, TorchDevice device) {
    try {
      return new OnnxCompression(
          recipe.isForTexts() ? recipe.stages() : recipe.stagesFor(data.labels()),
          job,
          form,
          device);
    } catch (Augmentation.Refused e) {
      throw new InputException(recipe.data().augmented() + ": data.augment: " + e.getMessage(), e);
    }
  }

  /** Training sees branches and bodies, and moves only what the main graph reads. */
  private void noteInnerWeights(OnnxModel trained) {
    List<String> alone = OnnxWeights.inner(trained, false);
    if (!alone.isEmpty()) {
      host.note(
          "weights in branches of If and bodies of loops are neither pruned nor trained ("
              + NearNames.list("", alone)
              + ")");
    }
    List<String> shared = OnnxWeights.inner(trained, true);
    boolean quantizes =
        recipe.stages().stages().stream().anyMatch(stage -> stage instanceof Stage.Quantize);
    if (quantizes && !shared.isEmpty()) {
      host.note(
          "from the quantize stage on, weights that the main graph and a branch or body share are"
              + " two: the main graph's are trained, those inside stay as they were ("
              + NearNames.list("", shared)
              + ")");
    }
  }

  /** Refitting needs to see what weights are multiplied with. */
  private void noteUnseenWeights(OnnxModel trained) {
    List<String> inner = OnnxWeights.inner(trained, false);
    for (Stage stage : recipe.stages().stages()) {
      if (stage instanceof Stage.Prune p && p.pruning().refit()) {
        List<OnnxWeight> pruned =
            OnnxWeights.of(trained).stream()
                .filter(weight -> !weight.isEmbedding() || p.pruning().embeddings())
                .filter(weight -> p.pruning().include().test(weight.name()))
                .filter(weight -> !inner.contains(weight.name()))
                .toList();
        RefittingPruner.unseen(trained, pruned)
            .forEach(text -> host.note("stage " + stage.name() + ": " + text));
      }
    }
  }

  private void checkFormat(String format, Runnable check) {
    try {
      check.run();
    } catch (InputException e) {
      throw new InputException(
          recipe.model().place() + ": export.formats: " + format + ": " + e.getMessage(), e);
    }
  }

  /** The folders that the checkpoint of the model that is trained has for linear layers of sentence-transformers. */
  List<String> modules() {
    Path trained = studentFile != null ? studentFile : modelFile;
    return isFolder(trained) ? SentenceModules.dense(trained) : List.of();
  }

  /** The configuration that compressed-tensors takes; null where nothing does. */
  private static Path configFile(Recipe recipe, RunHost host, Path modelFile) {
    if (recipe.model().config() != null) {
      return host.file(recipe.model().config());
    }
    if (isFolder(modelFile)) {
      return modelFile.resolve(TransformersModel.CONFIGURATION);
    }
    if (recipe.formats().contains("compressed-tensors")) {
      throw new InputException(
          recipe.model().place()
              + ": export.formats: compressed-tensors: model.config is missing; it takes the"
              + " config.json of the original");
    }
    return null;
  }

  private static boolean isFolder(Path file) {
    return Files.isDirectory(file);
  }

  /** A model that is no module, as it is. */
  private static OnnxModel onnx(Path file, Consumer<String> notes) {
    return isFolder(file) ? TransformersModel.read(file, notes) : OnnxModel.read(file);
  }

  private static MeasuredModel measured(Path file) {
    return isFolder(file)
        ? ModelSource.measured(onnx(file, text -> {})) // said when it was read
        : MeasuredModel.of(file);
  }

  private static boolean isScript(Path file) {
    return file.toString().endsWith(".pt") || file.toString().endsWith(".pth");
  }

  /** A TorchScript module becomes a graph, so that everything can be done to it. */
  private OnnxModel read(Path file) {
    if (!isScript(file)) {
      return host.withComputedWeights(onnx(file, host::note));
    }
    if (recipe.isForTexts()) {
      throw new InputException(
          recipe.model().place()
              + ": "
              + file
              + ": TorchScript modules take examples of tensors; a model of texts must be ONNX");
    }
    List<Examples.Input> fed = data.evaluationExamples().inputs();
    if (fed.size() > 1 || fed.get(0).type() != SafetensorsDtype.F32) {
      throw new InputException(
          recipe.model().place()
              + ": "
              + file
              + ": TorchScript modules take one float32 input; a model of others must be ONNX");
    }
    return TorchScriptImport.read(file, fed.get(0).shape());
  }

  /** The model in a form that ONNX Runtime measures. */
  MeasuredModel reference(Path state) {
    if (!isScript(modelFile)) {
      return measured(modelFile);
    }
    Path written = state.resolve("model.onnx");
    model.write(written, modelFile);
    return MeasuredModel.of(written);
  }

  /** The model without some of its layers and hidden channels. */
  private OnnxModel smaller() {
    OnnxModel small = model.copy();
    Recipe.StudentSettings student = recipe.student();
    String key = "layers";
    try {
      if (student.layers() > 0) {
        LayerPruner pruner = new LayerPruner(small, student.layers());
        host.note(pruner.prune(data.calibration(), removing(key)).summary() + " are left");
      }
      key = "channels";
      if (student.channels() > 0) {
        ChannelPruner pruner =
            new ChannelPruner(small, student.channels(), student.allocation(), weight -> true);
        pruner.kept().ifPresent(host::note);
        List<ChannelPruner.Narrowed> sets = pruner.prune(data.calibration(), removing(key));
        host.note(ChannelPruner.summary(sets) + " are left");
      }
    } catch (InputException e) {
      throw new InputException(student.place() + ": student." + key + ": " + e.getMessage(), e);
    }
    return small;
  }

  private Progress removing(String what) {
    host.progress("removing " + what, 0, 0);
    return (phase, done, total) ->
        host.progress(
            "removing "
                + what
                + (phase == Progress.Phase.CALIBRATE ? ": calibrating" : ": trying smaller models"),
            done,
            total);
  }

  private Compression.Job job(Path cache) {
    OnnxModel trained =
        recipe.student() == null ? model : studentFile != null ? read(studentFile) : smaller();
    OnnxModel teacher =
        teacherFile != null ? read(teacherFile) : recipe.student() != null ? model : null;
    return new Compression.Job(
        trained,
        teacher,
        data.training(),
        data.validation(),
        recipe.isForEmbeddings()
            ? Pooling.valueOf(host.pooling().name())
            : Pooling.MEAN, // of nothing
        data.calibration(),
        cache,
        recipe.data().augmentation());
  }

  /** What a run must have in common with the one that it goes on with. */
  byte[] identity() {
    MessageDigest sum = Sha256.digest();
    sum.update(recipe.text().getBytes(StandardCharsets.UTF_8));
    for (String override : recipe.overrides()) {
      sum.update((byte) 0);
      sum.update(override.getBytes(StandardCharsets.UTF_8));
    }
    for (Path file : new Path[] {modelFile, teacherFile, studentFile}) {
      sum.update((byte) 1);
      if (file != null) {
        sum.update(sha256(file));
      }
    }
    if (recipe.isForEmbeddings()) {
      sum.update((byte) host.pooling().ordinal());
    }
    data.digest(sum);
    return sum.digest();
  }

  /**
   * The SHA-256 of a file as reports have it; of a folder that of the lines that {@code sha256sum} prints for its
   * configuration and then its weights by name.
   *
   * @throws InputException where it cannot be read
   */
  static String hexSha256(Path file) {
    return HexFormat.of().formatHex(sha256(file));
  }

  private static byte[] sha256(Path file) {
    try {
      return isFolder(file) ? Sha256.digest().digest(sums(file)) : Sha256.of(file);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  private static byte[] sums(Path folder) throws IOException {
    List<Path> files = new ArrayList<>(onnx(folder, text -> {}).files());
    Collections.sort(files);
    files.add(0, folder.resolve(TransformersModel.CONFIGURATION));
    StringBuilder lines = new StringBuilder();
    for (Path file : files) {
      lines
          .append(HexFormat.of().formatHex(Sha256.of(file)))
          .append("  ")
          .append(file.getFileName())
          .append('\n');
    }
    return lines.toString().getBytes(StandardCharsets.UTF_8);
  }
}
