package org.espalier.recipe;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ChannelPruner;
import org.espalier.compress.onnx.RefittingPruner;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.TorchScriptImport;
import org.espalier.torch.onnx.GraphScript;
import org.espalier.train.Compression;
import org.espalier.train.Examples;
import org.espalier.train.OnnxCompression;
import org.espalier.train.Stage;

/**
 * Carries a recipe out in a folder: trains, keeps checkpoints, exports, measures and reports. While it
 * runs, {@code run/} in the folder holds its state; that goes when the report is written, which is last.
 */
public final class RecipeRun {
  /** The report for programs; a folder that has it holds a complete run. */
  public static final String REPORT_JSON = "report.json";

  /** The report for people. */
  public static final String REPORT_HTML = "report.html";

  private static final String STATE = "run";
  private static final String CHECKPOINT = "checkpoint";
  private static final String TEACHER_CACHE = "teacher";
  private static final String LOCK = "lock";

  private final Recipe recipe;
  private final Path folder;
  private final RunHost host;
  private final TorchDevice device;

  /** How a run ended. */
  public enum Outcome {
    COMPLETE,
    /** The user asked for it; the checkpoint is written. */
    STOPPED,
    /** The folder held the complete run already. */
    WAS_COMPLETE
  }

  /**
   * @param base the folder where relative paths of the recipe begin
   * @param folder where everything is written; made where it does not exist
   * @param device where the model trains
   */
  public RecipeRun(Recipe recipe, Path base, Path folder, RunMonitor monitor, TorchDevice device) {
    this.recipe = recipe;
    this.folder = folder;
    this.host = new RunHost(recipe, base, monitor);
    this.device = device;
  }

  /**
   * Opens everything that the recipe names and prepares the run, without training or writing.
   *
   * @param base the folder where relative paths of the recipe begin
   * @return what was found, by name
   * @throws InputException where something is missing or does not fit
   */
  public static Map<String, Object> check(Recipe recipe, Path base, RunMonitor monitor) {
    try (RunHost host = new RunHost(recipe, base, monitor)) {
      return check(recipe, host);
    }
  }

  private static Map<String, Object> check(Recipe recipe, RunHost host) {
    Inputs inputs = new Inputs(recipe, host);
    RunData data = inputs.data;
    Map<String, Object> found = new LinkedHashMap<>();
    found.put("model", inputs.model.name());
    found.put("training_examples", data.training().size());
    found.put("validation_examples", data.validation().size());
    if (data.task() != null) {
      found.put("task", data.task());
    }
    long steps = 0;
    for (Stage stage : recipe.stages().stages()) {
      steps += stage.training().steps(data.training().size());
    }
    found.put("stages", recipe.stages().stages().size());
    found.put("steps", steps);
    try (Compression compression = inputs.compression(null, TorchDevice.CPU, true)) {
      found.put("weights", compression.layers().size());
    }
    return found;
  }

  /** The models and data of a recipe. */
  private static final class Inputs {
    final Path modelFile;
    final Path teacherFile;
    final Path studentFile;
    final Path configFile;
    final OnnxModel model;
    final RunData data;
    private final Recipe recipe;
    private final RunHost host;

    Inputs(Recipe recipe, RunHost host) {
      modelFile = host.file(recipe.model().file());
      teacherFile = recipe.teacher() == null ? null : host.file(recipe.teacher());
      boolean other = recipe.student() != null && recipe.student().file() != null;
      studentFile = other ? host.file(recipe.student().file()) : null;
      configFile = recipe.model().config() == null ? null : host.file(recipe.model().config());
      if (!isScript(modelFile) && !modelFile.toString().endsWith(".onnx")) {
        throw new InputException(
            recipe.model().place()
                + ": model.file: "
                + recipe.model().file()
                + " is neither .onnx nor .pt; recipes compress ONNX models and TorchScript modules"
                + " (models written in Java are trained through org.espalier.torch)");
      }
      this.recipe = recipe;
      this.host = host;
      // A script becomes a graph by an example, which must be there first.
      OnnxModel onnx = isScript(modelFile) ? null : read(modelFile);
      data = RunData.of(recipe, host, onnx != null && MissingValues.areKnownTo(onnx));
      model = onnx == null ? read(modelFile) : onnx;
    }

    /** A stage ends with a comparison in ONNX Runtime, which may refuse what libtorch runs. */
    private void checkComparable() {
      for (Path file : studentFile == null ? List.of(modelFile) : List.of(modelFile, studentFile)) {
        if (isScript(file)) {
          continue;
        }
        if (data.evaluationTexts() != null) {
          host.checkComparable(file, data.evaluationTexts());
        } else {
          host.checkComparable(file, data.evaluationExample());
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
      OnnxModel trained = OnnxCompression.trainable(job.model());
      List<String> weights = OnnxWeights.of(trained).stream().map(OnnxWeight::name).toList();
      for (Stage stage : recipe.stages().stages()) {
        if (stage instanceof Stage.Prune p && p.pruning().include() instanceof NameGlobs globs) {
          globs.check(weights);
        } else if (stage instanceof Stage.Quantize q
            && q.quantization().include() instanceof NameGlobs globs) {
          globs.check(weights);
        }
      }
      OnnxCompression compression =
          new OnnxCompression(
              recipe.isForTexts() ? recipe.stages() : recipe.stagesFor(data.labels()), job, device);
      try {
        if (data.evaluationExamples() != null) {
          compression.checkMeasured(data.evaluationExamples());
        }
        if (recipe.formats().contains("torchscript")) {
          checkScript(trained);
        }
        if (begins) {
          checkComparable();
          noteInnerWeights(trained);
          noteUnseenWeights(trained);
        }
      } catch (InputException e) {
        compression.close();
        throw e;
      }
      return compression;
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

    private void checkScript(OnnxModel trained) {
      try {
        GraphScript.check(trained);
      } catch (InputException e) {
        throw new InputException(
            recipe.model().place() + ": export.formats: torchscript: " + e.getMessage(), e);
      }
    }

    private static boolean isScript(Path file) {
      return file.toString().endsWith(".pt") || file.toString().endsWith(".pth");
    }

    /** A TorchScript module becomes a graph, so that everything can be done to it. */
    private OnnxModel read(Path file) {
      if (!isScript(file)) {
        return host.withComputedWeights(OnnxModel.read(file));
      }
      if (recipe.isForTexts()) {
        throw new InputException(
            recipe.model().place()
                + ": "
                + file
                + ": TorchScript modules take labelled examples; a model of texts must be ONNX");
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
    Path reference(Path state) {
      if (!isScript(modelFile)) {
        return modelFile;
      }
      Path written = state.resolve("model.onnx");
      model.write(written, modelFile);
      return written;
    }

    /** The model without some of its hidden channels. */
    private OnnxModel narrowed() {
      host.progress("removing channels", 0, 0);
      OnnxModel narrow = model.copy();
      try {
        ChannelPruner pruner =
            new ChannelPruner(
                narrow, recipe.student().channels(), recipe.student().allocation(), weight -> true);
        pruner.kept().ifPresent(host::note);
        List<ChannelPruner.Narrowed> sets =
            pruner.prune(
                data.calibration(),
                (phase, done, total) ->
                    host.progress(
                        phase == Progress.Phase.CALIBRATE
                            ? "removing channels: calibrating"
                            : "removing channels: trying smaller models",
                        done,
                        total));
        host.note(ChannelPruner.summary(sets) + " are left");
      } catch (InputException e) {
        throw new InputException(
            recipe.student().place() + ": student.channels: " + e.getMessage(), e);
      }
      return narrow;
    }

    private Compression.Job job(Path cache) {
      OnnxModel trained =
          recipe.student() == null ? model : studentFile != null ? read(studentFile) : narrowed();
      OnnxModel teacher =
          teacherFile != null ? read(teacherFile) : recipe.student() != null ? model : null;
      return new Compression.Job(
          trained,
          teacher,
          data.training(),
          data.validation(),
          recipe.model().pooling(),
          data.calibration(),
          cache);
    }
  }

  /**
   * Runs the recipe. Libtorch computes on half of {@link CpuThreads#get} threads from then on, because two halves of
   * a batch run at once.
   *
   * @param resume whether to go on where a run in the folder stopped
   * @throws InputException for bad input, before anything is written where that is possible
   * @throws org.espalier.train.NonFiniteLossException where training broke down; the last checkpoint
   *     stays
   */
  public Outcome run(boolean resume) {
    Libtorch.useThreads(Math.max(1, CpuThreads.get() / 2)); // two halves of a batch run at once
    try (host) {
      return carryOut(resume);
    }
  }

  private Outcome carryOut(boolean resume) {
    long start = System.nanoTime();
    Path state = folder.resolve(STATE);
    if (resume && Files.exists(folder.resolve(REPORT_JSON))) {
      requireThisRecipe();
      deleteTree(state); // where the process ended between the report and this
      return Outcome.WAS_COMPLETE;
    }
    checkFolder(resume);
    boolean existed = Files.exists(folder);
    host.progress("reading", 0, 0);
    Inputs inputs = new Inputs(recipe, host);
    RunData data = inputs.data;
    CheckpointFile checkpoint = new CheckpointFile(state.resolve(CHECKPOINT), identity(inputs));
    ReportBuilder report = new ReportBuilder(recipe);
    boolean begins = !resume || !checkpoint.exists();
    try (Compression compression =
            inputs.compression(state.resolve(TEACHER_CACHE), device, begins);
        RunLock lock = lock(state)) {
      Path reference = inputs.reference(state);
      if (!begins) {
        report.restore(checkpoint.read(compression::restore));
        host.note("going on from " + state.resolve(CHECKPOINT));
      }
      RunListener listener =
          new RunListener(recipe, host, compression, checkpoint, report, data, reference, state);
      boolean complete;
      try {
        complete = compression.run(listener);
      } catch (RunListener.Stopped e) {
        return Outcome.STOPPED; // where nothing can be saved: the checkpoint before stays
      } catch (InputException e) {
        // What only some examples show is seen late; there is nothing to go on with.
        if (!checkpoint.exists()) {
          deleteTree(existed ? state : folder);
        }
        throw e;
      }
      if (!complete) {
        checkpoint.write(report.progress(), compression::save);
        return Outcome.STOPPED;
      }
      finish(compression, report, inputs, reference, data, start);
      deleteTree(state);
      return Outcome.COMPLETE;
    }
  }

  /** Makes the folder of the run's state and holds it. */
  private static RunLock lock(Path state) {
    createFolder(state);
    return new RunLock(state.resolve(LOCK));
  }

  /** A complete run is no answer to another recipe. */
  private void requireThisRecipe() {
    Path path = folder.resolve(REPORT_JSON);
    JsonNode of;
    try {
      of = new ObjectMapper().readTree(Files.readAllBytes(path)).path("recipe");
    } catch (JsonProcessingException e) {
      throw new InputException(path + " is damaged; name a new folder", e);
    } catch (IOException e) {
      throw new InputException("cannot read " + path + ": " + e.getMessage(), e);
    }
    List<String> overrides = new ArrayList<>();
    of.path("set").forEach(set -> overrides.add(set.asText()));
    if (!of.path("text").asText().equals(recipe.text()) || !overrides.equals(recipe.overrides())) {
      throw new InputException(
          folder
              + " holds the complete run of another recipe or of other --set options; name a new"
              + " folder");
    }
  }

  private void checkFolder(boolean resume) {
    boolean exists = Files.exists(folder, LinkOption.NOFOLLOW_LINKS);
    Path into = exists ? folder : folder.toAbsolutePath().normalize().getParent();
    if (exists && !Files.isDirectory(folder)) {
      throw new InputException("cannot write " + folder + ": it exists and is not a folder");
    }
    if (into == null || !Files.isDirectory(into)) {
      throw new InputException(
          "cannot write " + folder + ": the folder " + into + " does not exist");
    }
    if (!Files.isWritable(into)) {
      throw new InputException(
          "cannot write " + folder + ": the folder " + into + " is not writable");
    }
    if (exists) {
      checkContent(resume);
    }
  }

  private void checkContent(boolean resume) {
    if (Files.exists(folder.resolve(STATE).resolve(CHECKPOINT))) {
      if (!resume) {
        throw new InputException(
            folder
                + " holds a run that is not complete; --resume goes on with it, or name a new"
                + " folder");
      }
      return;
    }
    try (Stream<Path> content = Files.list(folder)) {
      // A run that was killed before its first checkpoint left nothing worth keeping.
      if (content.anyMatch(path -> !path.getFileName().toString().equals(STATE))) {
        throw new InputException(
            "cannot write " + folder + ": the folder is not empty; name a new one");
      }
    } catch (IOException e) {
      throw new InputException("cannot read " + folder + ": " + e.getMessage(), e);
    }
  }

  private static void createFolder(Path state) {
    try {
      Files.createDirectories(state);
    } catch (IOException e) {
      throw new InputException("cannot make the folder " + state + ": " + reason(e), e);
    }
  }

  private static String reason(IOException e) {
    boolean told = e instanceof FileSystemException f && f.getReason() != null;
    return told ? ((FileSystemException) e).getReason() : e.toString();
  }

  /** What a run must have in common with the one that it goes on with. */
  private byte[] identity(Inputs inputs) {
    MessageDigest sum = CheckpointFile.sha256();
    sum.update(recipe.text().getBytes(StandardCharsets.UTF_8));
    for (String override : recipe.overrides()) {
      sum.update((byte) 0);
      sum.update(override.getBytes(StandardCharsets.UTF_8));
    }
    for (Path file : new Path[] {inputs.modelFile, inputs.teacherFile, inputs.studentFile}) {
      sum.update((byte) 1);
      if (file != null) {
        sum.update(sha256(file));
      }
    }
    inputs.data.digest(sum);
    return sum.digest();
  }

  static byte[] sha256(Path file) {
    MessageDigest sum = CheckpointFile.sha256();
    try (InputStream in = Files.newInputStream(file);
        OutputStream out = new DigestOutputStream(OutputStream.nullOutputStream(), sum)) {
      in.transferTo(out);
      return sum.digest();
    } catch (IOException e) {
      throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
    }
  }

  private void finish(
      Compression compression,
      ReportBuilder report,
      Inputs inputs,
      Path reference,
      RunData data,
      long start) {
    host.progress("writing", 0, 0);
    deleteLeftovers();
    String grid = grid();
    OnnxModel exported = compression.export();
    OnnxModel dense = compression.floatModel();
    ArrayNode outputs = JsonNodeFactory.instance.arrayNode();
    // The model that is measured is written whatever else is asked for.
    Path main = folder.resolve(grid == null ? "model.onnx" : "model-" + grid + ".onnx");
    outputs.add(
        output(
            exported.write(main, inputs.modelFile),
            (grid == null ? "" : grid + " ") + "model for ONNX Runtime"));
    for (String format : recipe.formats()) {
      switch (format) {
        case "onnx-float" -> {
          Path file = folder.resolve("model-float.onnx");
          outputs.add(
              output(
                  dense.write(file, inputs.modelFile),
                  "its weights before rounding, as a float32 model"));
        }
        case "safetensors" -> {
          Path file = folder.resolve("model.safetensors");
          DenseWeights.write(dense, file);
          outputs.add(
              output(
                  file,
                  isFitted()
                      ? "float32 weights of the fitted graph with its factors (no checkpoint of the"
                          + " original architecture), linear layers as [out, in]"
                      : "its float32 weights, linear layers as [out, in]"));
        }
        case "compressed-tensors" -> {
          Path target = folder.resolve("compressed-tensors");
          deleteTree(target); // of a process that ended after it and before the report
          CompressedWeights.write(dense, exported, inputs.configFile, target);
          outputs.add(
              output(
                  target.resolve("model.safetensors"), "int8 weights in the Hugging Face layout"));
        }
        case "torchscript" -> {
          Path file = folder.resolve("model.pt");
          GraphScript.write(compression.roundedModel(), DenseWeights::plain, file);
          outputs.add(
              output(
                  file,
                  grid == null
                      ? "TorchScript module"
                      : "TorchScript module, float32 weights rounded to their grids, activations"
                          + " float32"));
        }
        default -> {} // onnx is written above
      }
    }
    ObjectNode last = report.lastStage();
    Map<String, Object> fidelity = last.has("fidelity") ? null : compare(reference, main, data);
    ObjectNode json =
        report.finish(
            compression,
            outputs,
            fidelity,
            machine(),
            modelNode(inputs),
            data,
            (System.nanoTime() - start) * 1e-9);
    // Its presence says that the run is complete, so it comes last.
    ReportFiles.write(json, folder.resolve(REPORT_HTML), folder.resolve(REPORT_JSON));
  }

  private Map<String, Object> machine() {
    Map<String, Object> machine = new LinkedHashMap<>(host.machine());
    machine.put("trained_on", device.toString());
    return machine;
  }

  /** What a process left half written in the folder when it was killed. */
  private void deleteLeftovers() {
    try (Stream<Path> content = Files.list(folder)) {
      content.filter(AtomicFile::isTemporary).forEach(RecipeRun::deleteTree);
    } catch (IOException e) {
      throw new InputException("cannot read " + folder + ": " + e.getMessage(), e);
    }
  }

  /** What weights are in the end: int8, int4, or null for floats. */
  private String grid() {
    for (Stage stage : recipe.stages().stages()) {
      if (stage instanceof Stage.Quantize q) {
        return q.quantization().form().weights();
      }
    }
    return null;
  }

  private boolean isFitted() {
    return recipe.stages().stages().stream()
        .anyMatch(s -> s instanceof Stage.Quantize q && q.quantization().fit());
  }

  private Map<String, Object> compare(Path reference, Path candidate, RunData data) {
    host.progress("measuring in ONNX Runtime", 0, 0);
    return data.evaluationTexts() != null
        ? host.compare(reference, candidate, data.evaluationTexts())
        : host.compare(reference, candidate, data.evaluationExamples());
  }

  private ObjectNode modelNode(Inputs inputs) {
    ObjectNode node = JsonNodeFactory.instance.objectNode();
    node.put("file", recipe.model().file());
    node.put(
        "bytes",
        FileTree.bytes(
            inputs.model.files().isEmpty() ? List.of(inputs.modelFile) : inputs.model.files()));
    node.put("sha256", HexFormat.of().formatHex(sha256(inputs.modelFile)));
    if (recipe.teacher() != null) {
      node.put("teacher", recipe.teacher());
    }
    if (recipe.student() != null) {
      String file = recipe.student().file();
      if (file != null) {
        node.put("student", file);
      } else {
        node.put("channels_removed", recipe.student().channels());
      }
    }
    return node;
  }

  private ObjectNode output(Path file, String what) {
    return output(List.of(file), what);
  }

  /** An output of several files, the first of which names the others: what an ONNX file cannot hold lies beside it. */
  private ObjectNode output(List<Path> files, String what) {
    Path file = files.get(0);
    ObjectNode node = JsonNodeFactory.instance.objectNode();
    node.put("file", folder.relativize(file).toString());
    node.put("what", what);
    node.put("bytes", FileTree.bytes(files));
    node.put("sha256", HexFormat.of().formatHex(sha256(file)));
    for (Path data : files.subList(1, files.size())) {
      node.withArray("data")
          .addObject()
          .put("file", data.getFileName().toString())
          .put("sha256", HexFormat.of().formatHex(sha256(data)));
    }
    return node;
  }

  private static void deleteTree(Path root) {
    try {
      FileTree.delete(root);
    } catch (IOException e) {
      throw new InputException("cannot delete " + root + ": " + e.getMessage(), e);
    }
  }
}
