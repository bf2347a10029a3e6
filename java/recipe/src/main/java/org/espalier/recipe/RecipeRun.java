package org.espalier.recipe;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.compress.onnx.Int8Saturation;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.format.FileTree;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.espalier.train.Compression;
import org.espalier.train.Stage;
import org.espalier.train.TrainedForm;

/**
 * Carries a recipe out in a folder: trains, keeps checkpoints, exports, measures and reports. While it
 * runs, {@code run/} in the folder holds its state; that goes when the report is written, which is last.
 * Not safe for several threads.
 */
public final class RecipeRun {
  /** The report for programs; a folder that has it holds a complete run. */
  public static final String REPORT_JSON = "report.json";

  /** The report for people. */
  public static final String REPORT_HTML = "report.html";

  private final Recipe recipe;
  private final RunFolder folder;
  private final RunHost host;
  private final TorchDevice device;

  /** How a run ended. */
  public enum Outcome {
    /** All is written; whether {@code report.require} is kept says {@code requirements} in the report. */
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
    this.folder = new RunFolder(folder);
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
    RunInputs inputs = new RunInputs(recipe, host);
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
    if (resume && folder.isComplete()) {
      folder.requireRunOf(recipe);
      folder.deleteState(); // where the process ended between the report and this
      return Outcome.WAS_COMPLETE;
    }
    folder.check(resume);
    boolean existed = folder.exists();
    ReportBuilder.saturating(recipe, Int8Saturation.onThisMachine())
        .ifPresent(warning -> host.note("warning: " + warning));
    host.progress("reading", 0, 0);
    RunInputs inputs;
    try {
      inputs = new RunInputs(recipe, host);
    } catch (RunListener.Stopped e) {
      return Outcome.STOPPED; // nothing is written yet
    }
    CheckpointFile checkpoint = new CheckpointFile(folder.checkpoint(), inputs.identity());
    ReportBuilder report = new ReportBuilder(recipe);
    boolean begins = !resume || !checkpoint.exists();
    try (Compression compression = inputs.compression(folder.teacherCache(), device, begins);
        RunLock lock = folder.lock()) {
      MeasuredModel reference = inputs.reference(folder.state());
      if (!begins) {
        report.restore(checkpoint.read(compression::restore));
        host.note("going on from " + folder.checkpoint());
      }
      RunListener listener =
          new RunListener(
              recipe,
              host,
              compression,
              checkpoint,
              report,
              inputs.data,
              reference,
              folder.state());
      boolean complete;
      try {
        complete = compression.run(listener);
      } catch (RunListener.Stopped e) {
        return Outcome.STOPPED; // where nothing can be saved: the checkpoint before stays
      } catch (InputException e) {
        // What only some examples show is seen late; there is nothing to go on with.
        if (!checkpoint.exists()) {
          if (existed) {
            folder.deleteState();
          } else {
            folder.delete();
          }
        }
        throw e;
      }
      if (!complete) {
        checkpoint.write(report.progress(), compression::save);
        return Outcome.STOPPED;
      }
      finish(compression, report, inputs, reference, start);
      folder.deleteState();
      return Outcome.COMPLETE;
    }
  }

  private void finish(
      Compression compression,
      ReportBuilder report,
      RunInputs inputs,
      MeasuredModel reference,
      long start) {
    host.progress("writing", 0, 0);
    folder.deleteLeftovers();
    RunExport export = new RunExport(recipe, inputs, host, folder, compression);
    Path model = export.write(recipe.formats());
    Map<String, Object> fidelity = null;
    if (!report.lastStage().has("fidelity")) {
      host.progress("measuring in ONNX Runtime", 0, 0);
      fidelity = inputs.data.compare(host, reference, MeasuredModel.of(model));
    }
    ObjectNode json =
        report.finish(
            compression,
            export.outputs(),
            fidelity,
            machine(),
            modelNode(inputs, compression.form()),
            inputs.data,
            (System.nanoTime() - start) * 1e-9);
    // Its presence says that the run is complete, so it comes last.
    ReportFiles.write(json, folder.reportHtml(), folder.reportJson());
  }

  private Map<String, Object> machine() {
    Map<String, Object> machine = new LinkedHashMap<>(host.machine());
    machine.put("trained_on", device.toString());
    return machine;
  }

  private ObjectNode modelNode(RunInputs inputs, TrainedForm form) {
    ObjectNode node = JsonNodeFactory.instance.objectNode();
    node.put("file", recipe.model().file());
    node.put(
        "bytes",
        FileTree.bytes(
            inputs.model.files().isEmpty() ? List.of(inputs.modelFile) : inputs.model.files()));
    node.put("sha256", RunInputs.hexSha256(inputs.modelFile));
    if (recipe.isForEmbeddings()) {
      node.put("pooling", host.pooling().toString());
    }
    if (form.isInt8() && recipe.student() == null) {
      node.put("weights", "int8");
    }
    if (recipe.teacher() != null) {
      node.put("teacher", recipe.teacher());
    }
    if (recipe.student() != null) {
      Recipe.StudentSettings student = recipe.student();
      if (student.file() != null) {
        node.put("student", student.file());
      }
      if (student.layers() > 0) {
        node.put("layers_removed", student.layers());
      }
      if (student.channels() > 0) {
        node.put("channels_removed", student.channels());
      }
    }
    return node;
  }
}
