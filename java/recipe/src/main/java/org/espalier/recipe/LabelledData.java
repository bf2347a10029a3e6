package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.ComputedList;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.TextInput;
import org.espalier.format.safetensors.ExampleRows;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/**
 * Reads and splits {@code data.examples}: tensors of one shape, from a file of tensors or of lines, images, which become such, or
 * texts, which become the tokens that models ask for.
 */
final class LabelledData {
  private final Recipe recipe;
  private final Recipe.DataSettings data;
  private final RunHost host;
  private final Map<String, ValueInfoProto> asked;
  private final boolean missing;
  private final long outputs;

  /** Whether nothing is learned from labels. */
  private final boolean unused;

  /** The names of the classes, which folders may say. */
  private List<String> classes;

  /**
   * @param asked the models' inputs by name, which lines become; empty for a module, which has one
   * @param missing whether NaN in an input says that a value is missing, which the model knows
   * @param outputs how many classes the model tells apart; 0 where it does not say
   */
  LabelledData(
      Recipe recipe,
      RunHost host,
      Map<String, ValueInfoProto> asked,
      boolean missing,
      long outputs) {
    this.recipe = recipe;
    this.data = recipe.data();
    this.host = host;
    this.asked = asked;
    this.missing = missing;
    this.outputs = outputs;
    unused =
        recipe.stages().stages().stream()
            .map(stage -> stage.training().objective())
            .allMatch(objective -> objective.output() > 0 && objective.labels() == 0);
    classes = data.classes();
  }

  RunData read() {
    Fed fed = examples(host.examples(data.examples()));
    // Classes may be of another output than the one that is followed; numbers are measured.
    if (unused && !(fed.examples.labels() instanceof Labels.Numbers)) {
      fed = fed.withoutLabels();
    }
    Examples.Labelled all = fed.examples;
    Fed own = data.evaluationExamples() == null ? null : evaluation(all);
    int evaluation = own == null ? data.evaluation() : 0;
    int heldOut = data.validation() + evaluation;
    int train = RunData.train(data, all.size(), heldOut, "examples");
    List<Integer> order = new ArrayList<>();
    for (int i = 0; i < all.size(); i++) {
      order.add(i);
    }
    Collections.shuffle(order, new Random(recipe.stages().seed()));
    Examples.Labelled training = pick(all, order.subList(heldOut, heldOut + train));
    List<Integer> calibration =
        order.subList(heldOut, heldOut + Math.min(train, data.calibration()));
    Fed measured = own == null ? fed.pick(order.subList(0, evaluation)) : own;
    return new RunData(
        training,
        pick(all, order.subList(evaluation, heldOut)),
        host.calibration(pick(all, calibration)),
        null,
        measured.examples,
        measured.sources,
        names(all.labels()));
  }

  /** What the report calls classes, also where labels are their numbers. */
  private List<String> names(Labels labels) {
    return classes.isEmpty() && labels instanceof Labels.Classes ? host.classes() : classes;
  }

  /**
   * Examples as a model is fed them.
   *
   * @param sources what each is made of; null where that is not known
   */
  private record Fed(Examples.Labelled examples, List<ExampleSource> sources) {
    Fed withoutLabels() {
      return new Fed(new Examples.Labelled(examples.inputs(), null), sources);
    }

    Fed pick(List<Integer> indices) {
      return new Fed(
          LabelledData.pick(examples, indices),
          sources == null ? null : indices.stream().map(sources::get).toList());
    }
  }

  /** What is trained on and held out. A text that occurs twice could be trained on and measured. */
  private Fed examples(Path file) {
    if (!LineExamples.areIn(file)) {
      return new Fed(ExamplesFile.read(file, data.task(), missing), null);
    }
    LineExamples all =
        LineExamples.read(file, data.task(), new ClassOrder(data.classes(), host::classes), asked);
    classes = all.classes();
    if (!unused) {
      all.requireClasses(outputs, data.classes());
    }
    Optional.ofNullable(all.origin(data.classes())).ifPresent(host::note);
    if (!all.areTexts() && !all.areImages()) {
      return fed(all);
    }
    Path own = data.evaluationExamples() == null ? null : host.examples(data.evaluationExamples());
    boolean lines = own != null && LineExamples.areIn(own);
    LineExamples kept = all.distinct(lines ? LineExamples.unlabelled(own, asked) : null);
    int left = all.lines().size() - kept.lines().size();
    String what = all.areTexts() ? "text" : "image";
    if (left > 0) {
      host.note(
          left
              + " "
              + what
              + "s of "
              + file
              + " are left out, for they occur more than once"
              + (own == null ? "" : ", or in " + own));
    }
    if (kept.lines().isEmpty()) {
      throw new InputException(file + " has no " + what + " that is not in " + own);
    }
    return fed(kept);
  }

  private Fed read(Path file, Recipe.Task task) {
    if (!LineExamples.areIn(file)) {
      return new Fed(ExamplesFile.read(file, task, missing), null);
    }
    LineExamples own = LineExamples.read(file, task, new ClassOrder(classes, host::classes), asked);
    if (!unused && !own.classes().equals(classes) && !own.classes().equals(host.classes())) {
      throw new InputException(
          file
              + " has folders for the classes "
              + NearNames.list("", own.classes())
              + "; those of "
              + data.examples()
              + " have no such names, which data.classes gives them, or folders of numbers");
    }
    return fed(own);
  }

  private Fed fed(LineExamples examples) {
    return new Fed(labelled(examples), examples.sources());
  }

  private Examples.Labelled labelled(LineExamples examples) {
    if (examples.areImages()) {
      return examples.images(
          asked,
          host.imageProcessor(),
          (phase, done, total) -> {
            if (host.stopRequested()) {
              throw new RunListener.Stopped();
            }
            host.progress("reading images", done, total);
          });
    }
    if (!examples.areTexts()) {
      return examples.tensors(asked, missing);
    }
    List<Tokens> tokens = host.tokens(examples);
    return new Examples.Labelled(
        inputs(examples.file(), tokens), examples.labels(tokens, host::note));
  }

  /**
   * Texts as the inputs that models have for tokens.
   *
   * @param texts the tokens of each
   * @throws InputException where no model asks for any
   */
  private List<Examples.Input> inputs(Path file, List<Tokens> texts) {
    List<Examples.Input> inputs = new ArrayList<>();
    for (TextInput input : TextInput.values()) {
      if (asked.containsKey(input.inputName())) {
        inputs.add(
            new Examples.Input(
                input.inputName(),
                SafetensorsDtype.I64,
                List.of(Examples.Input.OPEN),
                texts.stream().map(text -> row(text.of(input))).toList()));
      }
    }
    if (inputs.isEmpty()) {
      throw new InputException(
          file
              + " holds texts, which are fed to "
              + TextInput.names()
              + "; the model has "
              + (asked.isEmpty() ? "other ones, as TorchScript modules have" : asked.keySet()));
    }
    return inputs;
  }

  private static byte[] row(long[] values) {
    ByteBuffer row = ByteBuffer.allocate(Long.BYTES * values.length).order(ByteOrder.LITTLE_ENDIAN);
    row.asLongBuffer().put(values);
    return row.array();
  }

  /**
   * Examples of a file of their own for the report.
   *
   * @param all what is trained on, which they must be like
   */
  private Fed evaluation(Examples.Labelled all) {
    Path file = host.examples(data.evaluationExamples());
    // What labels are is decided once: those of few examples may all be 0 and 1.
    Recipe.Task task = all.labels() == null ? data.task() : RunData.task(all.labels());
    Fed read = read(file, task);
    Examples.Labelled own = read.examples;
    List<String> right = all.inputs().stream().map(LabelledData::describe).sorted().toList();
    List<String> given = own.inputs().stream().map(LabelledData::describe).sorted().toList();
    if (!given.equals(right)) {
      throw new InputException(
          file + " has " + given + "; " + right + " as in " + data.examples() + " is right");
    }
    if (all.labels() == null) {
      if (own.labels() != null) {
        host.note(
            "the labels of " + file + " are not measured, for nothing is learned from labels");
      }
      return read.withoutLabels();
    }
    if (own.labels() == null || own.labels().width() != all.labels().width()) {
      throw new InputException(
          file
              + " has "
              + (own.labels() == null ? "no labels" : width(own.labels()))
              + "; "
              + width(all.labels())
              + ", as in "
              + data.examples()
              + ", is right");
    }
    return read;
  }

  private static String width(Labels labels) {
    return labels instanceof Labels.TokenClasses
        ? "labels of tokens"
        : labels.width() + (labels.width() == 1 ? " label" : " labels") + " an example";
  }

  private static String describe(Examples.Input input) {
    return (input.name() == null ? ExampleRows.INPUTS : input.name())
        + " "
        + input.type()
        + " "
        + input.shape();
  }

  /** Some of the examples, in this order. */
  static Examples.Labelled pick(Examples.Labelled all, List<Integer> indices) {
    List<Examples.Input> inputs = new ArrayList<>();
    for (Examples.Input input : all.inputs()) {
      List<byte[]> rows = ComputedList.pick(input.rows(), indices);
      inputs.add(new Examples.Input(input.name(), input.type(), input.shape(), rows));
    }
    return new Examples.Labelled(
        inputs,
        all.labels() == null
            ? null
            : all.labels().of(indices.stream().mapToInt(Integer::intValue).toArray()));
  }
}
