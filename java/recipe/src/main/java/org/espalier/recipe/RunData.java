package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.Measure;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/**
 * The examples of a run, split by its seed: what is trained on, what chooses the best state, and what the
 * report measures never overlap.
 *
 * @param evaluationTexts for text models; else null
 * @param evaluationExamples for other models; else null
 * @param sources what each of those is made of; null where that is not known
 * @param classes the names of the classes; empty where they have none
 */
record RunData(
    Examples training,
    Examples validation,
    ActivationSource calibration,
    List<String> evaluationTexts,
    Examples.Labelled evaluationExamples,
    List<ExampleSource> sources,
    List<String> classes) {
  /** The report of embeddings needs neighbours to compare. */
  private static final int LEAST_EVALUATION_TEXTS = 3;

  /**
   * @param asked the models' inputs by name; empty for a module, which has one
   * @param missing whether NaN in an input says that a value is missing, which the model knows
   * @param classes that the model tells apart; 0 where it does not say
   */
  static RunData of(
      Recipe recipe,
      RunHost host,
      Map<String, ValueInfoProto> asked,
      boolean missing,
      long classes) {
    return recipe.isForTexts()
        ? texts(recipe, host)
        : new LabelledData(recipe, host, asked, missing, classes).read();
  }

  /** Some of the labels; null where there are none, as of texts. */
  Labels labels() {
    return evaluationExamples == null ? null : evaluationExamples.labels();
  }

  /** One of those that the report is measured on, where they are not texts. */
  Examples.Labelled evaluationExample() {
    return LabelledData.pick(evaluationExamples, List.of(0));
  }

  /** Runs a model and its reference on what the report is measured on. */
  Map<String, Object> compare(RunHost host, MeasuredModel reference, MeasuredModel candidate) {
    return evaluationTexts != null
        ? host.compare(reference, candidate, evaluationTexts)
        : host.compare(reference, candidate, evaluationExamples, classes);
  }

  /** What {@link #compare} measures, where the examples define it. */
  Set<Measure> measures() {
    if (evaluationTexts != null) {
      return task() == null ? Measure.OF_EMBEDDINGS : Measure.OF_LANGUAGE_MODELS;
    }
    return labels() == null ? Measure.OF_TENSORS : LabelMeasures.measures(labels(), classes);
  }

  /** What is learned from labels, in the words of {@code data.task}; null where there are none. */
  String task() {
    if (labels() == null) {
      boolean causal = training instanceof Examples.Texts texts && texts.causal();
      return causal ? Recipe.Task.CAUSAL_LM.key() : null;
    }
    return task(labels()).key();
  }

  static Recipe.Task task(Labels labels) {
    return labels instanceof Labels.Numbers ? Recipe.Task.REGRESSION : Recipe.Task.CLASSIFICATION;
  }

  /** Adds all that is trained on and measured to a digest. */
  void digest(MessageDigest sum) {
    for (Examples examples : new Examples[] {training, validation, evaluationExamples}) {
      if (examples instanceof Examples.Texts texts) {
        texts.ids().forEach(ids -> sum.update(longs(ids)));
      } else if (examples instanceof Examples.Labelled rows) {
        rows.digest(sum);
        if (rows.labels() instanceof Labels.Numbers numbers) {
          ByteBuffer bytes = ByteBuffer.allocate(4 * numbers.values().length + 4);
          bytes.putInt(numbers.width()).asFloatBuffer().put(numbers.values());
          sum.update(bytes.rewind());
        } else if (rows.labels() instanceof Labels.TokenClasses tokens) {
          tokens.rows().forEach(row -> sum.update(longs(row)));
        } else {
          Labels.Classes classes = (Labels.Classes) rows.labels();
          sum.update(longs(classes == null ? new long[0] : classes.values()));
          sum.update(longs(new long[] {classes == null ? 0 : classes.width()}));
        }
      }
    }
    if (evaluationTexts != null) {
      evaluationTexts.forEach(text -> sum.update((text + "\n").getBytes(StandardCharsets.UTF_8)));
    }
  }

  private static ByteBuffer longs(long[] values) {
    ByteBuffer bytes = ByteBuffer.allocate(8 * values.length + 8).putLong(values.length);
    bytes.asLongBuffer().put(values);
    return bytes.rewind();
  }

  private static RunData texts(Recipe recipe, RunHost host) {
    Recipe.DataSettings data = recipe.data();
    List<String> own =
        data.evaluationTexts() == null ? null : lines(host.file(data.evaluationTexts()));
    int heldOut = data.validation() + (own == null ? data.evaluation() : 0);
    List<String> all;
    if (data.wordNet()) {
      if (data.train() == 0) {
        throw new InputException(
            data.place() + ": data.train: missing; wordnet has more sentences than a run needs");
      }
      all = host.wordNet(data.texts(), Math.addExact(data.train(), heldOut));
    } else {
      all = lines(host.file(data.texts()));
      if (all.isEmpty()) {
        throw new InputException(data.place() + ": data.texts: " + data.texts() + " holds no text");
      }
    }
    // A text that occurs twice could be trained on and measured.
    all = new ArrayList<>(new LinkedHashSet<>(all));
    if (own != null) {
      all.removeAll(new LinkedHashSet<>(own));
    }
    Collections.shuffle(all, new Random(recipe.stages().seed()));
    int evaluation = own == null ? data.evaluation() : 0;
    int train = train(data, all.size(), heldOut, "different texts");
    List<String> training = all.subList(heldOut, heldOut + train);
    List<String> evaluationTexts = own == null ? List.copyOf(all.subList(0, evaluation)) : own;
    int least = recipe.isCausal() ? 1 : LEAST_EVALUATION_TEXTS;
    if (evaluationTexts.size() < least) {
      throw new InputException(
          data.place()
              + ": data: "
              + evaluationTexts.size()
              + " evaluation texts; at least "
              + least
              + " are needed");
    }
    List<String> calibration = training.subList(0, Math.min(data.calibration(), train));
    return new RunData(
        new Examples.Texts(host.tokens(training), recipe.isCausal()),
        new Examples.Texts(host.tokens(all.subList(evaluation, heldOut)), recipe.isCausal()),
        host.calibration(List.copyOf(calibration)),
        evaluationTexts,
        null,
        null,
        List.of());
  }

  static int train(Recipe.DataSettings data, int size, int heldOut, String what) {
    int left = size - heldOut;
    if (left < Math.max(1, data.train())) {
      throw new InputException(
          data.place()
              + ": data: there are "
              + size
              + " "
              + what
              + "; "
              + heldOut
              + " are held out, and "
              + (data.train() == 0 ? "at least 1 is" : data.train() + " are")
              + " wanted for training");
    }
    return data.train() == 0 ? left : data.train();
  }

  private static List<String> lines(Path file) {
    return FidelityEvaluator.readTexts(file).stream().map(String::strip).toList();
  }
}
