package org.espalier.train;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.espalier.InputException;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.LogitRows;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;

/**
 * Finds what would stop a plan in its middle before it begins, by a few examples: weights and outputs that are
 * not finite, shapes and labels that do not fit, patterns that the weights do not have.
 */
final class PlanCheck {
  private static final int MEASURED_BATCH = 32;
  private static final String NEEDED =
      "embedding and similarity need [texts, tokens, width] or [texts, width]";

  private final CompressionPlan plan;
  private final Compression.Job job;
  private final TrainedForm form;

  /** One for each stage whose output labels must fit. */
  private final List<LabelledOutput> labelled = new ArrayList<>();

  /** Of the model's logits; null where no objective looks at them. */
  private LogitRows rows;

  /** See {@link #isPerToken}. */
  private boolean perToken;

  /**
   * @param form of the job's model
   */
  PlanCheck(CompressionPlan plan, Compression.Job job, TrainedForm form) {
    this.plan = plan;
    this.job = job;
    this.form = form;
  }

  /**
   * Checks the model with the examples and, where there is one, the teacher.
   *
   * @throws InputException where something does not fit
   */
  void run(Lane lane) {
    for (Parameter p : lane.graph().parameters()) {
      if (!TrialBatch.isFinite(p.tensor())) {
        throw new InputException(
            job.model().name() + ": the weight " + p.name() + " holds NaN or infinite values");
      }
    }
    new InputCheck(job).run();
    boolean taught = plan.stages().stream().anyMatch(s -> s.training().objective().needsTeacher());
    OnnxModel learning = form.floats();
    ClassifierOutput own = ClassifierOutput.of(learning);
    OnnxModel teaching =
        job.teacher() == null || !taught ? null : TrainedForm.ofTeacher(job.teacher());
    ClassifierOutput other = teaching == null ? null : ClassifierOutput.of(teaching);
    try (Lane teacher =
        teaching == null
            ? null
            : Lane.frozen(job.opened(withLogits(teaching, other)), List.of(), TorchDevice.CPU)) {
      Map<String, long[]> shapes = new HashMap<>();
      Map<String, long[]> wantedShapes = new HashMap<>();
      for (Stage stage : plan.stages()) {
        Objective objective = stage.training().objective();
        String value = value(own, job.model(), objective, stage);
        long[] shape =
            shapes.computeIfAbsent(
                value, v -> TrialBatch.shape(lane, job.training(), v, job.model().name()));
        if (job.training() instanceof Examples.Labelled texts && texts.areTexts()) {
          checkShapes(lane, value, shape, stage == plan.stages().get(0));
        }
        if (objective.isForEmbeddings()) {
          checkStates(stage, value, shape, lane);
        } else {
          check(stage, value, shape, own, learning.opset(""));
        }
        if (teacher != null && objective.needsTeacher()) {
          String taughtBy = value(other, job.teacher(), objective, stage);
          long[] wanted =
              wantedShapes.computeIfAbsent(
                  taughtBy,
                  v -> TrialBatch.shape(teacher, job.training(), v, job.teacher().name()));
          checkTaught(taughtBy, wanted, shape);
        }
      }
    }
  }

  /**
   * Looks how an output of texts follows their lengths. One a text has one shape. One a token, which labels of tokens ask
   * for and texts without labels allow, is [texts, tokens, values].
   *
   * @param shape for the longest text
   * @param decides whether it is this output that says which of them it is; else it must be as the one that did
   */
  private void checkShapes(Lane lane, String value, long[] shape, boolean decides) {
    String name = job.model().name();
    List<Examples> both = List.of(job.training(), job.validation());
    List<long[]> shapes =
        both.stream().map(e -> TrialBatch.shapeOfShortest(lane, e, value, name)).toList();
    if (decides) {
      boolean oneShape = shapes.stream().allMatch(other -> Arrays.equals(other, shape));
      perToken = job.labels() instanceof Labels.TokenClasses || job.labels() == null && !oneShape;
    }
    int longest = job.training().length(TrialBatch.longest(job.training()));
    for (int i = 0; i < both.size(); i++) {
      int shortest = both.get(i).length(TrialBatch.shortest(both.get(i)));
      long[] other = shapes.get(i);
      boolean right =
          perToken
              ? isOfTokens(shape, longest) && isOfTokens(other, shortest) && shape[2] == other[2]
              : Arrays.equals(other, shape);
      if (!right) {
        throw new InputException(
            name
                + ": the output "
                + value
                + " has the shape "
                + Arrays.toString(shape)
                + " for a text of "
                + longest
                + " tokens and "
                + Arrays.toString(other)
                + " for one of "
                + shortest
                + "; "
                + (perToken
                    ? "labels of words, and texts without labels, are for models that give [texts,"
                        + " tokens, values]"
                    : "labels of texts are for models with one output a text"));
      }
    }
  }

  private static boolean isOfTokens(long[] shape, int tokens) {
    return shape.length == 3 && shape[1] == tokens;
  }

  /**
   * Whether the outputs that objectives look at, where they are no hidden states, are [texts, tokens, …], after {@link
   * #run}.
   */
  boolean isPerToken() {
    return perToken || job.isCausal();
  }

  /** With a classifier's logits as an output too. */
  static OnnxModel withLogits(OnnxModel model, ClassifierOutput output) {
    String logits = output.logits();
    return logits == null ? model : model.withOutputs(List.of(logits));
  }

  /** The value of a model that a stage's objective looks at. */
  private String value(ClassifierOutput output, OnnxModel model, Objective objective, Stage stage) {
    if (!objective.isForLogits(job.labels())) {
      return output.output();
    }
    if (output.form() == ClassifierOutput.Form.OTHER) {
      throw new InputException(
          "stage "
              + stage.name()
              + ": the output "
              + output.output()
              + " of "
              + model.name()
              + " holds probabilities, and the logits that they are made of are not to be found;"
              + " labels, logits and bound need logits as the output, or a Sigmoid or Softmax at"
              + " its end, and loss {output: 1} takes any");
    }
    return output.logits();
  }

  private static void checkTaught(String taughtBy, long[] wanted, long[] shape) {
    boolean single = values(wanted) == 1 && values(shape) == 1;
    if (!Arrays.equals(wanted, shape) && !single) {
      throw new InputException(
          "the teacher's output "
              + taughtBy
              + " has the shape "
              + Arrays.toString(wanted)
              + " for one example; the student's has "
              + Arrays.toString(shape));
    }
  }

  private static long values(long[] shape) {
    return LongStream.of(shape).reduce(1, Math::multiplyExact);
  }

  /** How the model's logits are read, after {@link #run}; null where no objective looks at them. */
  LogitRows logitRows() {
    return rows;
  }

  /**
   * States of tokens are [texts, tokens, width]; a model that pools them itself gives [texts, width], whatever the length. What
   * classifies gives that too, and is not followed as an embedding is unless that is asked for.
   */
  private void checkStates(Stage stage, String output, long[] shape, Lane lane) {
    perToken = shape.length == 3;
    String where = "stage " + stage.name() + ": the output " + output + " has the shape ";
    String given = Arrays.toString(shape) + " for one text";
    if (shape.length == 2) {
      long[] other = TrialBatch.shapeOfShortest(lane, job.training(), output, job.model().name());
      if (!Arrays.equals(shape, other)) {
        throw new InputException(
            where + given + " and " + Arrays.toString(other) + " for the shortest; " + NEEDED);
      }
      if (stage.training().objective().hidden() > 0) {
        throw new InputException(
            where
                + given
                + "; hidden needs [texts, tokens, width]: loss {embedding: 1} follows what is an"
                + " embedding, and a model with one output a text for other ends takes labelled"
                + " examples");
      }
    } else if (!perToken) {
      throw new InputException(where + given + "; " + NEEDED);
    }
  }

  private void check(Stage stage, String output, long[] shape, ClassifierOutput model, long opset) {
    String where = "stage " + stage.name() + ": the output " + output;
    if (job.isCausal()) {
      checkCausal(stage, where, shape, model.form());
    } else {
      checkLabelled(stage.training().objective(), where, shape, model, opset);
    }
  }

  private void checkLabelled(
      Objective objective, String where, long[] shape, ClassifierOutput model, long opset) {
    LabelledOutput learning =
        objective.isForLogits(job.labels())
            ? logits(where, shape, model, opset)
            : numbers(objective, where, shape);
    Examples.Labelled training = (Examples.Labelled) job.training();
    Examples.Labelled validation = (Examples.Labelled) job.validation();
    learning.checkAttended(training, "training");
    learning.checkAttended(validation, "validation");
    if (objective.labels() > 0) {
      learning.checkLearned(training, validation);
      job.augmentation().checkLabels(shape, learning.rows());
    }
    // Numbers are measured, whatever is learned.
    if (objective.labels() > 0 || job.labels() instanceof Labels.Numbers) {
      labelled.add(learning);
    }
  }

  /** An output that holds logits, whose {@link #rows} are found. */
  private LabelledOutput logits(String where, long[] shape, ClassifierOutput model, long opset) {
    int labels = job.labels() == null ? 0 : job.labels().width();
    if (perToken && labels == 0 && model.form() == ClassifierOutput.Form.SIGMOID && shape[2] > 1) {
      throw new InputException(
          where
              + " is given to a Sigmoid, and has several values a token; loss {output: 1} follows"
              + " them");
    }
    try {
      rows =
          perToken
              ? new LogitRows((int) shape[1], Math.toIntExact(shape[2]), true)
              : LogitRows.of(shape, labels, model.form());
    } catch (InputException e) {
      throw new InputException(
          where + " has the shape " + e.getMessage() + "; loss {output: 1} takes any", e);
    }
    if (model.form() == ClassifierOutput.Form.SOFTMAX) {
      checkSoftmax(where, shape.length, model.axis(), opset);
    }
    return new LabelledOutput(where, rows);
  }

  /** An output that holds numbers. */
  private static LabelledOutput numbers(Objective objective, String where, long[] shape) {
    long values = values(shape);
    if (objective.labels() > 0 && shape.length != 2 && values > 1) {
      throw new InputException(
          where
              + " has the shape "
              + Arrays.toString(shape)
              + " for one example; labels that are numbers need [examples, values], or one value"
              + " an example, and loss {output: 1} takes any");
    }
    return new LabelledOutput(where, new LogitRows(Math.toIntExact(values), 1, true));
  }

  private void checkCausal(Stage stage, String where, long[] shape, ClassifierOutput.Form form) {
    Examples.Texts training = (Examples.Texts) job.training();
    Examples.Texts validation = (Examples.Texts) job.validation();
    if (form != ClassifierOutput.Form.LOGITS) {
      throw new InputException(
          where + " is made probabilities of; a causal language model's output must be logits");
    }
    if (shape.length != 3 || shape[1] != training.length(TrialBatch.longest(training))) {
      throw new InputException(
          where
              + " has the shape "
              + Arrays.toString(shape)
              + " for a text of "
              + training.length(TrialBatch.longest(training))
              + " tokens; a causal language model's is [texts, tokens, vocabulary]");
    }
    rows = new LogitRows((int) shape[1], Math.toIntExact(shape[2]), true);
    for (Examples.Texts texts : List.of(training, validation)) {
      String which = texts == training ? "training" : "validation";
      long largest = texts.ids().stream().flatMapToLong(LongStream::of).max().orElseThrow();
      if (largest >= rows.classes()) {
        throw new InputException(
            where
                + " has logits of "
                + rows.classes()
                + " tokens, and the "
                + which
                + " texts have a token "
                + largest
                + "; the tokenizer is of another model, or this is no language model");
      }
      if (texts.length(TrialBatch.longest(texts)) < 2
          && stage.training().objective().labels() > 0) {
        throw new InputException(
            where + " learns the next token, and none of the " + which + " texts has a second one");
      }
    }
  }

  /** A Softmax at the end must choose among the very classes that labels choose among. */
  private void checkSoftmax(String where, int rank, long axis, long opset) {
    if (rows.classes() == 1) {
      throw new InputException(
          where
              + (rows.perExample() == 1
                  ? " is given to a Softmax alone, which makes 1 of one value; a Sigmoid is meant"
                  : " is given to a Softmax, of whose classes one is right, and has as many values"
                      + " as an example has labels; labels are the numbers of the right classes,"
                      + " or a Sigmoid is meant"));
    }
    long along = axis < 0 ? axis + rank : axis;
    boolean flattens = opset < ClassifierOutput.ONE_AXIS && along != rank - 1;
    if (along != rows.axis(rank) || flattens) {
      throw new InputException(
          where
              + " is given to a Softmax along axis "
              + axis
              + (flattens ? " and all after it" : "")
              + "; its classes are along axis "
              + rows.axis(rank));
    }
  }

  /**
   * Checks examples that nothing is trained on, after {@link #run}.
   *
   * @throws InputException where a label does not fit the model, or an output is not finite
   */
  void measures(Lane lane, Examples.Labelled examples) {
    if (examples.labels() != null) {
      for (LabelledOutput output : labelled) {
        output.check(examples.labels());
        output.checkAttended(examples, "evaluation");
      }
    }
    if (examples.areTexts()) { // which are all alike but for their length and their tokens
      requireFinite(lane, examples, TrialBatch.few(examples));
      return;
    }
    for (int[] indices : Batches.inOrder(examples, MEASURED_BATCH)) {
      requireFinite(lane, examples, indices);
    }
  }

  private void requireFinite(Lane lane, Examples examples, int[] indices) {
    String output = lane.graph().outputNames().get(0);
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = Batch.of(examples, indices, lane.graph().inputNames());
      if (!TrialBatch.isFinite(lane.forward(batch, output))) {
        throw new InputException(
            job.model().name()
                + ": the output "
                + output
                + " holds NaN or infinite values for one of the evaluation examples");
      }
    }
  }
}
