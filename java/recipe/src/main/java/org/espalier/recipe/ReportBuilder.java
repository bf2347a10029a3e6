package org.espalier.recipe;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.compress.onnx.Int8Saturation;
import org.espalier.compress.onnx.Slowdown;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.evaluate.Requirement;
import org.espalier.evaluate.Requirement.Verdict;
import org.espalier.image.Thumbnail;
import org.espalier.train.Compression;
import org.espalier.train.LayerReport;
import org.espalier.train.Quantization;
import org.espalier.train.Stage;
import org.espalier.train.TrainingListener.StageReport;
import org.espalier.train.TrainingListener.StepReport;
import org.espalier.train.TrainingListener.Validation;

/** Gathers what a run did, as the JSON of the report; checkpoints keep what there is of it. */
final class ReportBuilder {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

  /** Characters of a text, or of the name of a class, that is shown. */
  private static final int MOST_TEXT = 300;

  /** Pixels of the longer side of an image that is shown. */
  private static final int THUMBNAIL = 144;

  private final Recipe recipe;
  private ArrayNode stages = JSON.arrayNode();
  private ObjectNode stage;

  ReportBuilder(Recipe recipe) {
    this.recipe = recipe;
  }

  /** What checkpoints keep. */
  ObjectNode progress() {
    ObjectNode node = JSON.objectNode();
    node.set("stages", stages.deepCopy());
    return node;
  }

  /** Goes on with the report of a run that a checkpoint kept. */
  void restore(ObjectNode progress) {
    if (!(progress.get("stages") instanceof ArrayNode kept)) {
      throw new InputException("the checkpoint lacks the stages of its run");
    }
    stages = kept;
  }

  /**
   * A stage begins or goes on.
   *
   * @return whether it goes on
   */
  boolean stageStarted(Stage started, int index, long steps) {
    if (index < stages.size()) {
      stage = (ObjectNode) stages.get(index);
      return true;
    }
    stage = stages.addObject();
    stage.put("name", started.name());
    stage.put(
        "kind",
        started instanceof Stage.Prune
            ? "prune"
            : started instanceof Stage.Quantize ? "quantize" : "train");
    if (started instanceof Stage.Quantize q) {
      stage.put("weights", q.quantization().form().weights());
    }
    if (started instanceof Stage.Train train && train.rank() > 0) {
      stage.put("low_rank", train.rank());
    }
    stage.put("steps", steps);
    if (started.training().isAny() && started.training().objective().needsTeacher()) {
      taughtBy(index, stage.putObject("taught_by"));
    }
    stage.put("examples", 0);
    stage.put("training_seconds", 0.0);
    stage.put("added_seconds", 0.0);
    stage.putArray("validations");
    ObjectNode curve = stage.putObject("curve");
    for (String series : new String[] {"step", "loss", "learning_rate", "sparsity"}) {
      curve.putArray(series);
    }
    return false;
  }

  /** Says who teaches a stage: another one, by what it left, or a file. */
  private void taughtBy(int index, ObjectNode node) {
    Stage teacher = recipe.stages().teacherOf(index);
    if (recipe.teacher() != null) {
      node.put("file", recipe.teacher());
    } else if (recipe.student() == null && teacher != null) {
      node.put("stage", teacher.name());
    } else {
      node.put("file", recipe.model().file());
    }
  }

  void step(StepReport step) {
    stage.put("examples", stage.get("examples").asLong() + step.examples());
    stage.put("training_seconds", stage.get("training_seconds").asDouble() + step.seconds());
    stage.put("added_seconds", stage.get("added_seconds").asDouble() + step.addedSeconds());
    ObjectNode curve = (ObjectNode) stage.get("curve");
    curve.withArray("step").add(step.step());
    curve.withArray("loss").add((float) step.loss());
    curve.withArray("learning_rate").add((float) step.learningRate());
    curve.withArray("sparsity").add((float) step.sparsity());
    step.parts()
        .forEach((name, value) -> curve.withArray("part_" + name).add(number(value.floatValue())));
  }

  void validated(Validation v) {
    stage.withArray("validations").add(node(v));
  }

  void fidelity(String key, Map<String, Object> numbers) {
    stage.set(key, node(numbers));
  }

  void stageFinished(StageReport report) {
    stage.set("before", node(report.before()));
    stage.set("changed", node(report.changed()));
    stage.set("after", node(report.after()));
    stage.put("steps_done", report.steps());
    stage.put("seconds", report.seconds());
  }

  /** The last stage of a run that is complete. */
  ObjectNode lastStage() {
    return (ObjectNode) stages.get(stages.size() - 1);
  }

  /** The whole report. */
  ObjectNode finish(
      Compression compression,
      ArrayNode outputs,
      Map<String, Object> fidelity,
      Map<String, Object> machine,
      ObjectNode model,
      RunData data,
      double seconds) {
    ObjectNode root = JSON.objectNode();
    root.put("title", recipe.title() == null ? title() : recipe.title());
    root.set("model", model);
    root.set("data", examples(data));
    JsonNode measured = fidelity != null ? node(fidelity) : lastStage().get("fidelity").deepCopy();
    measured.path("changed_answers").forEach(answer -> show((ObjectNode) answer, data));
    root.set("fidelity", measured);
    Stream.of(
            saturating(recipe, Int8Saturation.onThisMachine()),
            slower(recipe, measured.path("speedup").asDouble(Double.NaN)))
        .flatMap(Optional::stream)
        .forEach(warning -> root.withArray("warnings").add(warning));
    for (Requirement requirement : recipe.requirements().all()) {
      Verdict verdict = requirement.verdict(null, key -> measured.path(key).asDouble(Double.NaN));
      root.withArray("requirements").add(node(verdict.toMap()));
    }
    root.set("stages", stages);
    root.set("layers", layers(compression));
    if (!compression.resting().isEmpty()) {
      compression.resting().forEach(root.putArray("resting")::add);
    }
    root.set("outputs", outputs);
    root.set("recipe", given());
    root.set("machine", node(machine));
    root.put("seconds", seconds);
    return root;
  }

  /** Adds to an answer that changed what its example is. */
  private static void show(ObjectNode answer, RunData data) {
    for (String key : List.of("label", "reference", "answer")) {
      int c = answer.path(key).asInt(-1);
      if (c >= 0 && c < data.classes().size()) {
        answer.put(key + "_name", shortened(data.classes().get(c)));
      }
    }
    if (data.sources() == null) {
      return;
    }
    ExampleSource source = data.sources().get(answer.get("example").asInt());
    if (source.image() == null) {
      answer.put("text", shortened(source.text()));
      return;
    }
    answer.put("image", source.image().toString());
    try {
      answer.put("thumbnail", Thumbnail.url(source.image(), THUMBNAIL));
    } catch (InputException e) {
      // It is gone since it was read: its path says what it was.
    }
  }

  private static String shortened(String text) {
    if (text.length() <= MOST_TEXT) {
      return text;
    }
    boolean split = Character.isHighSurrogate(text.charAt(MOST_TEXT - 1));
    return text.substring(0, split ? MOST_TEXT - 1 : MOST_TEXT) + "…";
  }

  private ObjectNode examples(RunData data) {
    ObjectNode examples = JSON.objectNode();
    examples.put(
        "kind",
        recipe.isForTexts()
            ? "texts"
            : data.evaluationExamples().labels() == null ? "examples" : "labelled examples");
    examples.put("source", recipe.isForTexts() ? recipe.data().texts() : recipe.data().examples());
    if (data.task() != null) {
      examples.put("task", data.task());
    }
    examples.put("training", data.training().size());
    examples.put("validation", data.validation().size());
    examples.put(
        "evaluation",
        data.evaluationTexts() != null
            ? data.evaluationTexts().size()
            : data.evaluationExamples().size());
    String source =
        recipe.isForTexts() ? recipe.data().evaluationTexts() : recipe.data().evaluationExamples();
    if (source != null) {
      examples.put("evaluation_source", source);
    }
    return examples;
  }

  private static ArrayNode layers(Compression compression) {
    ArrayNode layers = JSON.arrayNode();
    for (LayerReport layer : compression.layers()) {
      ObjectNode node = layers.addObject();
      node.put("name", DenseWeights.plain(layer.name()));
      ArrayNode shape = node.putArray("shape");
      layer.shape().forEach(shape::add);
      node.put("sparsity", layer.sparsity());
      node.put("bits", layer.bits());
      node.set("smallest_scale", number(layer.smallestScale()));
      node.set("largest_scale", number(layer.largestScale()));
      node.set("error", number(layer.error()));
    }
    return layers;
  }

  private ObjectNode given() {
    ObjectNode given = JSON.objectNode();
    given.put("file", recipe.source());
    given.put("text", recipe.text());
    ArrayNode overrides = given.putArray("set");
    recipe.overrides().forEach(overrides::add);
    given.put("seed", recipe.stages().seed());
    return given;
  }

  /**
   * A warning that products of the quantized model saturate where it is measured, with what helps; empty where they do not.
   *
   * @param saturates whether ONNX Runtime's products of int8 do
   */
  static Optional<String> saturating(Recipe recipe, boolean saturates) {
    return quantizations(recipe)
        .filter(q -> q.form() != Quantization.Form.INT4)
        .filter(q -> q.weights().integers() == WeightIntegers.INT8)
        .filter(q -> saturates)
        .map(q -> Int8Saturation.warning("unsigned-weights: true where they are quantized"))
        .findFirst();
  }

  private static Stream<Quantization> quantizations(Recipe recipe) {
    return recipe.stages().stages().stream()
        .filter(Stage.Quantize.class::isInstance)
        .map(stage -> ((Stage.Quantize) stage).quantization());
  }

  /** A warning that a quantized model is slower than the original, with what helps; empty where it is not slower. */
  static Optional<String> slower(Recipe recipe, double speedup) {
    Optional<Quantization> quantized = quantizations(recipe).findFirst();
    if (quantized.isEmpty()) {
      return Optional.empty();
    }
    Quantization.Form form = quantized.get().form();
    String other =
        switch (form) {
          case DYNAMIC ->
              "form: static, which looks for no range as it runs and computes convolutions in"
                  + " integers too, ";
          case STATIC -> "";
          case INT4 -> "form: dynamic, which computes many rows at once in integers of 8 bits, ";
        };
    return Slowdown.of(speedup)
        .map(
            slower ->
                slower
                    + "; what helps most often: "
                    + other
                    + "include or exclude, so that small weights stay float, or student:"
                    + " {channels: …} in place of "
                    + form.weights()
                    + ", which makes the model narrower");
  }

  private String title() {
    String file = recipe.model().file().replaceFirst("/+$", "");
    String name = file.substring(Math.max(file.lastIndexOf('/'), file.lastIndexOf('!')) + 1);
    return name.endsWith(".onnx") ? name.substring(0, name.length() - ".onnx".length()) : name;
  }

  private static ObjectNode node(Validation v) {
    ObjectNode node = JSON.objectNode();
    node.put("step", v.step());
    node.set("loss", number(v.loss()));
    node.set("quality", number(v.quality()));
    node.put("best", v.best());
    return node;
  }

  private static ObjectNode node(Map<?, ?> values) {
    ObjectNode node = JSON.objectNode();
    values.forEach((name, value) -> node.set(String.valueOf(name), json(value)));
    return node;
  }

  private static JsonNode json(Object value) {
    if (value instanceof Integer || value instanceof Long) {
      return JSON.numberNode(((Number) value).longValue());
    }
    if (value instanceof Number n) {
      return number(n.doubleValue());
    }
    if (value instanceof Map<?, ?> map) {
      return node(map);
    }
    if (value instanceof List<?> list) {
      ArrayNode array = JSON.arrayNode();
      list.forEach(member -> array.add(json(member)));
      return array;
    }
    if (value instanceof Boolean flag) {
      return JSON.booleanNode(flag);
    }
    return JSON.textNode(String.valueOf(value));
  }

  /** A number; null for NaN and infinities, which JSON lacks. */
  private static JsonNode number(double value) {
    return Double.isFinite(value) ? JSON.numberNode(value) : JSON.nullNode();
  }

  private static JsonNode number(float value) {
    return Float.isFinite(value) ? JSON.numberNode(value) : JSON.nullNode();
  }
}
