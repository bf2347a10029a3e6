package org.espalier.recipe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.train.Compression;
import org.espalier.train.Stage;
import org.espalier.train.TrainingListener;

/** Connects training with the rest of a run: progress, checkpoints, measurements and the numbers of the report. */
final class RunListener implements TrainingListener {
  /** The weight of a new step in the moving averages of the progress line. */
  private static final double NEW = 0.1;

  private final Recipe recipe;
  private final RunHost host;
  private final Compression compression;
  private final CheckpointFile checkpoint;
  private final ReportBuilder report;
  private final RunData data;
  private final MeasuredModel reference;
  private final Path state;
  private final List<Long> steps = new ArrayList<>();

  private int stageIndex;
  private int looks;
  private long lastCheckpoint = System.nanoTime();
  private double stepSeconds;
  private double loss;
  private double examplesPerSecond;
  private boolean resumedInside;

  /** Ends a phase in which nothing can be saved. */
  static final class Stopped extends RuntimeException {
    private static final long serialVersionUID = 1L;

    Stopped() {
      super("stopped", null, false, false);
    }
  }

  RunListener(
      Recipe recipe,
      RunHost host,
      Compression compression,
      CheckpointFile checkpoint,
      ReportBuilder report,
      RunData data,
      MeasuredModel reference,
      Path state) {
    this.recipe = recipe;
    this.host = host;
    this.compression = compression;
    this.checkpoint = checkpoint;
    this.report = report;
    this.data = data;
    this.reference = reference;
    this.state = state;
    for (Stage stage : recipe.stages().stages()) {
      steps.add(stage.training().steps(data.training().size()));
    }
  }

  @Override
  public void stageStarted(Stage stage, int index, long stageSteps) {
    stageIndex = index;
    looks = 0;
    stepSeconds = 0;
    resumedInside = report.stageStarted(stage, index, stageSteps);
    host.progress(stage.name(), done(0), total());
  }

  private long done(long step) {
    long sum = step;
    for (int i = 0; i < stageIndex; i++) {
      sum += steps.get(i);
    }
    return sum;
  }

  private long total() {
    return steps.stream().mapToLong(Long::longValue).sum();
  }

  @Override
  public void note(String text, long done, long total) {
    if (host.stopRequested()) {
      throw new Stopped();
    }
    host.progress(recipe.stages().stages().get(stageIndex).name() + ": " + text, done, total);
  }

  @Override
  public boolean step(StepReport step) {
    report.step(step);
    boolean first = stepSeconds == 0;
    stepSeconds = first ? step.seconds() : stepSeconds + NEW * (step.seconds() - stepSeconds);
    loss = first ? step.loss() : loss + NEW * (step.loss() - loss);
    double speed = step.examples() / step.seconds();
    examplesPerSecond = first ? speed : examplesPerSecond + NEW * (speed - examplesPerSecond);
    long done = done(step.step());
    host.progress(
        String.format(
            Locale.ROOT,
            "%s: loss %.4g, %.0f %s/s, %s left",
            step.stage().name(),
            loss,
            examplesPerSecond,
            recipe.isForTexts() ? "texts" : "examples",
            duration((total() - done) * stepSeconds)),
        done,
        total());
    if ((System.nanoTime() - lastCheckpoint) * 1e-9 >= recipe.checkpointSeconds()) {
      save();
    }
    return !host.stopRequested();
  }

  private static String duration(double seconds) {
    long whole = Math.round(seconds);
    return whole >= 60 ? whole / 60 + " min " + whole % 60 + " s" : whole + " s";
  }

  private void save() {
    checkpoint.write(report.progress(), compression::save);
    lastCheckpoint = System.nanoTime();
  }

  @Override
  public void validated(Stage stage, Validation validation) {
    looks++;
    report.validated(validation);
    // The second look is at the quantized model that has not been trained yet.
    boolean rounded = stage instanceof Stage.Quantize && looks == 2 && validation.step() == 0;
    if (rounded && !resumedInside && recipe.measureStages() && steps.get(stageIndex) > 0) {
      report.fidelity("fidelity_untrained", measure("untrained"));
    }
  }

  @Override
  public void stageFinished(StageReport finished) {
    report.stageFinished(finished);
    boolean last = stageIndex == steps.size() - 1;
    if (recipe.measureStages() || last) {
      report.fidelity("fidelity", measure(finished.stage().name()));
    }
    save();
  }

  /** Runs the present model in ONNX Runtime. */
  private Map<String, Object> measure(String what) {
    host.progress("measuring in ONNX Runtime", done(0), total());
    Path file = state.resolve("measured-" + what + ".onnx");
    compression.export().write(file);
    try {
      return data.compare(host, reference, MeasuredModel.of(file));
    } finally {
      try {
        Files.deleteIfExists(file);
      } catch (IOException e) {
        throw InputException.of("cannot delete " + file, e);
      }
    }
  }
}
