package org.espalier.train;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.compress.OnnxPruner;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.LogitRows;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.op.MagnitudePrune;
import org.espalier.torch.OnnxGraph;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;

/**
 * Finds what would stop a plan in its middle before it begins, by a few examples: weights and outputs that are
 * not finite, shapes and labels that do not fit, patterns that the weights do not have.
 */
final class PlanCheck {
  /** Examples of the trial: a size that hardly stands in a graph by chance, as 1 and 2 do. */
  private static final int FEW = 3;

  private static final int MEASURED_BATCH = 32;

  private static final Map<SafetensorsDtype, DataType> TYPES =
      Map.of(
          SafetensorsDtype.F64, DataType.DOUBLE,
          SafetensorsDtype.F32, DataType.FLOAT,
          SafetensorsDtype.F16, DataType.FLOAT16,
          SafetensorsDtype.BF16, DataType.BFLOAT16,
          SafetensorsDtype.I64, DataType.INT64,
          SafetensorsDtype.I32, DataType.INT32,
          SafetensorsDtype.U8, DataType.UINT8,
          SafetensorsDtype.BOOL, DataType.BOOL);

  private final CompressionPlan plan;
  private final Compression.Job job;

  /** One for each stage whose output labels must fit. */
  private final List<Output> labelled = new ArrayList<>();

  /** Of the model's logits; null where no objective looks at them. */
  private LogitRows rows;

  PlanCheck(CompressionPlan plan, Compression.Job job) {
    this.plan = plan;
    this.job = job;
  }

  /**
   * Checks the model with the examples and, where there is one, the teacher.
   *
   * @throws InputException where something does not fit
   */
  void run(OnnxGraph graph) {
    for (Parameter p : graph.parameters()) {
      if (!isFinite(p.tensor())) {
        throw new InputException(
            job.model().name() + ": the weight " + p.name() + " holds NaN or infinite values");
      }
    }
    checkBatches();
    checkInputs();
    boolean taught = plan.stages().stream().anyMatch(s -> s.training().objective().needsTeacher());
    OnnxModel learning = OnnxCompression.trainable(job.model());
    ClassifierOutput own = ClassifierOutput.of(learning);
    OnnxModel teaching =
        job.teacher() == null || !taught ? null : OnnxCompression.trainable(job.teacher());
    ClassifierOutput other = teaching == null ? null : ClassifierOutput.of(teaching);
    try (OnnxGraph teacher =
        teaching == null
            ? null
            : OnnxGraph.frozen(job.opened(withLogits(teaching, other)), TorchDevice.CPU)) {
      Map<String, long[]> shapes = new HashMap<>();
      Map<String, long[]> wantedShapes = new HashMap<>();
      for (Stage stage : plan.stages()) {
        Objective objective = stage.training().objective();
        String value = value(own, job.model(), objective, stage);
        long[] shape = shapes.computeIfAbsent(value, v -> shape(graph, v, job.model().name()));
        check(stage, value, shape, own, learning.opset(""));
        if (teacher != null && objective.needsTeacher()) {
          String taughtBy = value(other, job.teacher(), objective, stage);
          long[] wanted =
              wantedShapes.computeIfAbsent(taughtBy, v -> shape(teacher, v, job.teacher().name()));
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
      }
    }
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

  private static long values(long[] shape) {
    return LongStream.of(shape).reduce(1, Math::multiplyExact);
  }

  /** A batch of one can be opened and come back; what is written for several would not run on one example. */
  private void checkBatches() {
    for (OnnxModel model : models()) {
      List<String> names = model.inputs().stream().map(ValueInfoProto::getName).toList();
      for (ValueInfoProto value : model.inputs()) {
        TensorShapeProto shape = value.getType().getTensorType().getShape();
        int axes =
            job.training() instanceof Examples.Labelled rows
                ? input(rows, value.getName(), names, model).shape().size()
                : 1; // the tokens of a text
        boolean batched = shape.getDimCount() == axes + 1;
        if (batched && shape.getDim(0).getDimValue() > 1) {
          throw new InputException(
              model.name()
                  + ": the input "
                  + value.getName()
                  + " is of "
                  + shape.getDim(0).getDimValue()
                  + " examples at once; training and measuring take models of batches of any size,"
                  + " or of 1: export it as one of these");
        }
      }
    }
  }

  /** A tensor that no model takes is one with a wrong name. */
  private void checkInputs() {
    if (!(job.training() instanceof Examples.Labelled rows)) {
      return;
    }
    Set<String> taken = new TreeSet<>();
    for (OnnxModel model : models()) {
      List<String> names = model.inputs().stream().map(ValueInfoProto::getName).toList();
      taken.addAll(names);
      for (ValueInfoProto input : model.inputs()) {
        DataType wanted = DataType.forNumber(input.getType().getTensorType().getElemType());
        SafetensorsDtype type = input(rows, input.getName(), names, model).type();
        if (!TYPES.get(type).equals(wanted)) {
          throw new InputException(
              model.name()
                  + ": the input "
                  + input.getName()
                  + " is "
                  + wanted
                  + "; its tensor among the examples is "
                  + type);
        }
      }
    }
    for (Examples.Input input : rows.inputs()) {
      if (input.name() != null && !taken.contains(input.name())) {
        throw new InputException(
            "the tensor "
                + input.name()
                + " of the examples is no input of "
                + job.model().name()
                + ", which takes "
                + taken);
      }
    }
  }

  private static Examples.Input input(
      Examples.Labelled rows, String name, List<String> names, OnnxModel model) {
    try {
      return rows.input(name, names);
    } catch (InputException e) {
      throw new InputException(model.name() + ": " + e.getMessage(), e);
    }
  }

  private List<OnnxModel> models() {
    return job.teacher() == null ? List.of(job.model()) : List.of(job.model(), job.teacher());
  }

  /** Checks the weights that a stage prunes. */
  void prunes(String stage, Pruning pruning, List<TrainedWeight> candidates) {
    if (candidates.isEmpty()) {
      throw new InputException(
          "stage "
              + stage
              + ": "
              + job.model().name()
              + " has no weights that the plan could prune"
              + (OnnxWeights.inner(job.model(), false).stream().anyMatch(pruning.include())
                  ? " but those in branches of If and bodies of loops, which training leaves as"
                      + " they are; 'espalier prune' takes them"
                  : ""));
    }
    if (pruning.pattern() != null) {
      MagnitudePrune.Pattern pattern = (MagnitudePrune.Pattern) pruning.rule(0);
      MagnitudePrune.checkPattern(
          candidates.stream()
              .map(
                  w ->
                      MagnitudePrune.Weights.of(w.name(), w.latent().tensor())
                          .axis(w.parameter.reductionAxis()))
              .toList(),
          pattern);
      Set<String> names = candidates.stream().map(TrainedWeight::name).collect(Collectors.toSet());
      OnnxWeights.of(job.model()).stream()
          .filter(weight -> names.contains(weight.name()))
          .forEach(weight -> OnnxPruner.checkGroups(job.model(), weight, pattern));
    }
  }

  /** How the model's logits are read, after {@link #run}; null where no objective looks at them. */
  LogitRows logitRows() {
    return rows;
  }

  private void check(Stage stage, String output, long[] shape, ClassifierOutput model, long opset) {
    Objective objective = stage.training().objective();
    String where = "stage " + stage.name() + ": the output " + output;
    if (objective.isForEmbeddings() && shape.length != 3) {
      throw new InputException(
          where
              + " has the shape "
              + Arrays.toString(shape)
              + " for one text; embedding, similarity and hidden need [texts, tokens, width]");
    }
    if (objective.isForEmbeddings()) {
      return;
    }
    if (job.isCausal()) {
      checkCausal(stage, where, shape, model.form());
      return;
    }
    long values = values(shape);
    int labels = job.labels() == null ? 0 : job.labels().width();
    Output learning;
    if (objective.isForLogits(job.labels())) {
      try {
        rows = LogitRows.of(shape, labels, model.form());
      } catch (InputException e) {
        throw new InputException(
            where + " has the shape " + e.getMessage() + "; loss {output: 1} takes any", e);
      }
      if (model.form() == ClassifierOutput.Form.SOFTMAX) {
        checkSoftmax(where, shape.length, model.axis(), opset);
      }
      learning = new Output(where, rows);
    } else {
      if (objective.labels() > 0 && shape.length != 2 && values > 1) {
        throw new InputException(
            where
                + " has the shape "
                + Arrays.toString(shape)
                + " for one example; labels that are numbers need [examples, values], or one value"
                + " an example, and loss {output: 1} takes any");
      }
      learning = new Output(where, new LogitRows(Math.toIntExact(values), 1, true));
    }
    Examples.Labelled training = (Examples.Labelled) job.training();
    Examples.Labelled validation = (Examples.Labelled) job.validation();
    learning.checkAttended(training, "training");
    learning.checkAttended(validation, "validation");
    if (objective.labels() > 0) {
      learning.checkLearned(training, validation);
    }
    // Numbers are measured, whatever is learned.
    if (objective.labels() > 0 || job.labels() instanceof Labels.Numbers) {
      labelled.add(learning);
    }
  }

  private void checkCausal(Stage stage, String where, long[] shape, ClassifierOutput.Form form) {
    Examples.Texts training = (Examples.Texts) job.training();
    Examples.Texts validation = (Examples.Texts) job.validation();
    if (form != ClassifierOutput.Form.LOGITS) {
      throw new InputException(
          where + " is made probabilities of; a causal language model's output must be logits");
    }
    if (shape.length != 3 || shape[1] != training.length(longest(training))) {
      throw new InputException(
          where
              + " has the shape "
              + Arrays.toString(shape)
              + " for a text of "
              + training.length(longest(training))
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
      if (texts.length(longest(texts)) < 2 && stage.training().objective().labels() > 0) {
        throw new InputException(
            where + " learns the next token, and none of the " + which + " texts has a second one");
      }
    }
  }

  private static int longest(Examples examples) {
    int longest = 0;
    for (int i = 0; i < examples.size(); i++) {
      longest = examples.length(i) > examples.length(longest) ? i : longest;
    }
    return longest;
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
  void measures(OnnxGraph graph, Examples.Labelled examples) {
    if (examples.labels() != null) {
      for (Output output : labelled) {
        output.check(examples.labels());
        output.checkAttended(examples, "evaluation");
      }
    }
    for (int[] indices : Batches.inOrder(examples, MEASURED_BATCH)) {
      requireFinite(graph, examples, indices);
    }
  }

  private void requireFinite(OnnxGraph graph, Examples examples, int[] indices) {
    String output = graph.outputNames().get(0);
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = Batch.of(examples, indices, graph.inputNames());
      if (!isFinite(graph.forward(batch.inputs()).get(output))) {
        throw new InputException(
            job.model().name()
                + ": the output "
                + output
                + " holds NaN or infinite values for one of the evaluation examples");
      }
    }
  }

  /**
   * An output of which a stage learns labels.
   *
   * @param rows of logits, or one of each number
   */
  private record Output(String where, LogitRows rows) {
    /** Refuses labels that do not fit it. */
    void check(Labels labels) {
      if (labels.width() != rows.perExample()) {
        throw new InputException(
            where
                + " has "
                + rows.perExample()
                + (rows.perExample() == 1 ? " value" : " values")
                + " an example, and the labels have "
                + labels.width()
                + (labels instanceof Labels.Numbers
                    ? " (numbers; data.task: classification takes whole numbers as classes)"
                    : ""));
      }
      if (labels instanceof Labels.Classes some) {
        boolean one = rows.classes() == 1;
        int classes = one ? 2 : rows.classes();
        for (long label : some.values()) {
          if (label != Labels.Classes.NO_LABEL && (label < 0 || label >= classes)) {
            throw new InputException(
                where
                    + (one ? " is one logit" : " has " + classes + " classes")
                    + (one && rows.perExample() > 1 ? " a label" : "")
                    + ", and there is a label "
                    + label
                    + "; 0 to "
                    + (classes - 1)
                    + " are right, and "
                    + Labels.Classes.NO_LABEL
                    + " for none"
                    + (one ? " (data.task: regression takes labels as numbers)" : ""));
          }
        }
      }
    }

    /** Refuses examples of which nothing counts. */
    void checkAttended(Examples.Labelled examples, String which) {
      boolean[] attended = examples.attended(rows.perExample());
      if (attended != null && IntStream.range(0, attended.length).noneMatch(i -> attended[i])) {
        throw new InputException(
            "attention_mask is 0 for all of the " + which + " examples; 1 is what is attended to");
      }
    }

    private int known(Examples.Labelled examples) {
      Labels labels = examples.labels();
      return labels.known(
          labels instanceof Labels.Classes ? examples.attended(rows.perExample()) : null);
    }

    /** Refuses labels whose distances no loss can sum. */
    private void checkSquares(Labels labels, String which) {
      if (labels instanceof Labels.Numbers numbers) {
        for (float value : numbers.values()) {
          if (Math.abs(value) > BreakdownCheck.LARGEST) {
            throw new InputException(
                where
                    + " learns numbers, and one of the "
                    + which
                    + " examples has the label "
                    + value
                    + "; training cannot sum squares of values beyond "
                    + BreakdownCheck.LARGEST);
          }
        }
      }
    }

    /** Refuses labels from which nothing can be learned, too. */
    void checkLearned(Examples.Labelled trainedOn, Examples.Labelled validatedWith) {
      Labels training = trainedOn.labels();
      check(training);
      check(validatedWith.labels());
      boolean trained = known(trainedOn) > 0;
      if (!trained || known(validatedWith) == 0) {
        throw new InputException(
            where
                + " learns from labels, and none of the "
                + (trained ? "validation" : "training")
                + " examples has one");
      }
      checkSquares(training, "training");
      checkSquares(validatedWith.labels(), "validation");
      if (training instanceof Labels.Numbers numbers && numbers.variance() < Float.MIN_NORMAL) {
        throw new InputException(
            where + " learns numbers, and all labels of the training examples are equal");
      }
      if (rows.classes() == 1 && training instanceof Labels.Classes classes) {
        long[] known =
            LongStream.of(classes.values()).filter(l -> l != Labels.Classes.NO_LABEL).toArray();
        if (LongStream.of(known).allMatch(label -> label == known[0])) {
          throw new InputException(
              where
                  + (rows.perExample() == 1 ? " is one logit" : " is one logit a label")
                  + ", and all labels of the training examples are "
                  + known[0]
                  + "; examples of both classes are needed");
        }
      }
    }
  }

  private static long highest(long[] tokens) {
    return LongStream.of(tokens).max().orElseThrow();
  }

  /** Some of the examples; of texts the longest among them, and that with the highest token. */
  private static int[] few(Examples examples) {
    int longest = longest(examples);
    int[] few = IntStream.range(0, FEW).map(i -> (longest + i) % examples.size()).toArray();
    if (examples instanceof Examples.Texts texts) {
      few[FEW - 1] =
          IntStream.range(0, texts.size())
              .reduce((a, b) -> highest(texts.ids().get(b)) > highest(texts.ids().get(a)) ? b : a)
              .orElseThrow();
    }
    return few;
  }

  /** The shape of what the model gives for an example, found by a batch of {@link #few}. */
  private long[] shape(OnnxGraph graph, String value, String name) {
    Examples examples = job.training();
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      int[] few = few(examples);
      Batch batch = batch(examples, few, graph, name);
      Tensor output;
      try {
        output = graph.forward(batch.inputs()).get(value);
      } catch (InputException e) {
        throw new InputException(
            e.getMessage()
                + (examples instanceof Examples.Texts texts
                    ? " (for texts of up to "
                        + examples.length(few[0])
                        + " tokens, of which "
                        + highest(texts.ids().get(few[FEW - 1]))
                        + " is the highest)"
                    : " (for " + FEW + " examples; the model must take batches of any size)"),
            e);
      }
      String what = name + ": the output " + value;
      if (output.scalar_type().intern() != ScalarType.Float) {
        throw new InputException(
            what
                + " is "
                + output.scalar_type().intern()
                + "; only float32 outputs can be trained");
      }
      long[] shape = output.shape();
      if (shape.length == 0 || shape[0] != FEW) {
        throw new InputException(
            what
                + " has the shape "
                + Arrays.toString(shape)
                + " for "
                + FEW
                + " examples; its first dimension must count them");
      }
      if (!isFinite(output)) {
        throw new InputException(what + " holds NaN or infinite values for an example");
      }
      shape[0] = 1;
      return shape;
    }
  }

  private static Batch batch(Examples examples, int[] indices, OnnxGraph graph, String name) {
    try {
      return Batch.of(examples, indices, graph.inputNames());
    } catch (InputException e) {
      throw new InputException(name + ": " + e.getMessage(), e);
    }
  }

  private static boolean isFinite(Tensor t) {
    try (PointerScope scope = new PointerScope()) {
      return torch.isfinite(t).all().item_bool();
    }
  }
}
