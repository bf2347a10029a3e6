package org.espalier.train;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.LogitRows;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.TorchDevice;
import org.espalier.train.BatchTotals.Share;
import org.espalier.train.TrainingListener.Validation;

/**
 * The passes over the examples of a job that its objectives need: forward and backward through the graph that is
 * trained, two at a time where there are two threads, and once through the teacher.
 */
final class Passes implements AutoCloseable {
  private static final int VALIDATION_BATCH = 32;

  private final Compression.Job job;
  private final TorchDevice device;
  private final SideBySide threads;

  /** Null where training examples are shown as they are. */
  private final Augmenter augmenter;

  /** Gives what objectives compare with. */
  private OnnxModel teacher;

  /** The graph as the caller's thread runs it; null where there is none. */
  private Lane first;

  /** The graph as a second thread runs it; made when it is needed. */
  private Lane second;

  /** Null where ranges of activations are not fixed. */
  private StaticGrid fixed;

  /** Of labels that are numbers; else not used. */
  private final double variance;

  /** The value of the graph that holds a classifier's logits; null where it has none. */
  private String logits;

  /** Of the logits; null where no objective looks at them. */
  private LogitRows rows;

  /** Whether what objectives look at is [texts, tokens, …]. */
  private boolean perToken;

  /** What the teacher gives, by the value of it that objectives ask for. */
  private final Map<Value, Targets> targets = new EnumMap<>(Value.class);

  /** A value of a model that objectives look at. */
  private enum Value {
    /** See {@link ClassifierOutput#logits}. */
    LOGITS,
    /** The first output. */
    OUTPUT
  }

  /**
   * What the teacher gives.
   *
   * @param teachers the same one for each lane, which is asked of each batch: of causal texts, whose logits are too many to
   *     be kept, and of training examples that no step shows again as they are; else empty
   * @param output of it that objectives look at
   * @param training what it gave for the training examples; null where it is asked
   * @param validation the same for the validation examples
   */
  private record Targets(
      List<Lane> teachers, String output, TeacherOutputs training, TeacherOutputs validation)
      implements AutoCloseable {
    @Override
    public void close() {
      for (int i = teachers.size() - 1; i >= 0; i--) {
        teachers.get(i).close(); // a sibling first
      }
      for (TeacherOutputs outputs : new TeacherOutputs[] {training, validation}) {
        if (outputs != null) {
          outputs.close();
        }
      }
    }
  }

  Passes(Compression.Job job, TorchDevice device) {
    this.job = job;
    this.device = device;
    this.augmenter =
        job.augmentation().isAny()
            ? new Augmenter(job.augmentation(), Augmentation.layout(job.model(), job.training()))
            : null;
    this.variance = job.labels() instanceof Labels.Numbers numbers ? numbers.variance() : 1;
    this.teacher = job.teacher() == null ? job.model() : job.teacher();
    this.threads = device.hasCudaKernels() ? SideBySide.inOrder() : SideBySide.onThreads();
  }

  /**
   * From now on passes go through this graph.
   *
   * @param fixed their ranges; null where they are not fixed
   * @param logits the output of it that objectives for logits look at
   */
  void use(Lane lane, StaticGrid fixed, String logits) {
    release();
    first = lane;
    this.fixed = fixed;
    this.logits = logits;
  }

  /**
   * Sets how outputs are read.
   *
   * @param logits how they fall into rows; null where no objective looks at them
   * @param perToken whether each token of a text has some of its own
   */
  void read(LogitRows logits, boolean perToken) {
    rows = logits;
    this.perToken = perToken;
  }

  /** The output of the graph that an objective looks at. */
  private String output(Objective objective) {
    return value(objective) == Value.LOGITS ? logits : first.graph().outputNames().get(0);
  }

  private Value value(Objective objective) {
    return objective.isForLogits(job.labels()) ? Value.LOGITS : Value.OUTPUT;
  }

  /** Leaves the graph, which its owner may close then. */
  void release() {
    if (second != null) {
      second.close();
      second = null;
    }
    first = null;
    fixed = null;
  }

  /**
   * Adds a batch's gradients to those of the parameters. On the CPU it goes in two halves, on two threads where
   * there are two, unless the objective compares the examples of a batch or ranges follow it: autograd's sum of
   * two gradients does not depend on which comes first, so the number of threads changes no bit.
   *
   * @param seed of the plan and the stage
   * @param step from 0
   */
  Loss addGradients(Objective objective, int[] indices, long seed, long step) {
    boolean halved =
        !device.hasCudaKernels()
            && objective.similarity() == 0
            && (fixed == null || !fixed.moves() && fixed.learned() == null)
            && indices.length > 1;
    if (!halved) {
      Share share = share(objective, indices, true);
      if (augmenter != null) {
        show(first, objective, share, indices, seed, step);
      }
      return backward(loss(first, objective, share, BatchTotals.of(share), true));
    }
    List<int[]> parts = List.of(everySecond(indices, 0), everySecond(indices, 1));
    List<Share> halves = parts.stream().map(part -> share(objective, part, true)).toList();
    List<Lane> lanes = lanes();
    if (augmenter != null) {
      threads.run(
          () -> show(lanes.get(0), objective, halves.get(0), parts.get(0), seed, step),
          () -> show(lanes.get(1), objective, halves.get(1), parts.get(1), seed, step));
    }
    BatchTotals totals = BatchTotals.of(halves);
    return threads
        .run(
            () -> gradient(lanes.get(0), objective, halves.get(0), totals),
            () -> gradient(lanes.get(1), objective, halves.get(1), totals))
        .stream()
        .reduce(Loss::plus)
        .orElseThrow();
  }

  /** Of a batch sorted by length both halves are about as long. */
  private static int[] everySecond(int[] indices, int first) {
    int[] result = new int[(indices.length - first + 1) / 2];
    for (int i = 0; i < result.length; i++) {
      result[i] = indices[2 * i + first];
    }
    return result;
  }

  private Loss gradient(Lane lane, Objective objective, Share share, BatchTotals totals) {
    try (PointerScope scope = new PointerScope()) {
      return backward(loss(lane, objective, share, totals, true));
    }
  }

  private static Loss backward(Loss loss) {
    if (!Double.isFinite(loss.value())) {
      throw new NonFiniteLossException("the loss is " + loss.value());
    }
    loss.backward();
    return loss;
  }

  /** The graph as two threads run it. */
  private List<Lane> lanes() {
    if (second == null) {
      second = first.sibling();
    }
    return List.of(first, second);
  }

  /** What the simulation of activations took of the step's time. */
  long simulationNanoseconds() {
    long sum = first.activations() == null ? 0 : first.activations().nanoseconds();
    if (second == null || second.activations() == null) {
      return sum;
    }
    return (sum + second.activations().nanoseconds()) / threads.width();
  }

  /**
   * Examples of a batch.
   *
   * @param trains whether they are training examples; else validation examples
   */
  private Share share(Objective objective, int[] indices, boolean trains) {
    Examples examples = trains ? job.training() : job.validation();
    Targets kept = objective.needsTeacher() ? targets.get(value(objective)) : null;
    Set<String> inputs = new LinkedHashSet<>(first.graph().inputNames());
    if (kept != null && job.isCausal()) {
      kept.teachers().forEach(teacher -> inputs.addAll(teacher.graph().inputNames()));
    }
    Batch batch = Batch.of(examples, indices, List.copyOf(inputs)).on(device);
    if (examples instanceof Examples.Texts texts && texts.causal()) {
      int longest = batch.longest();
      return new Share(
          batch, null, texts.following(indices, longest), texts.attended(indices, longest));
    }
    Tensor teacher = null;
    if (kept != null) {
      TeacherOutputs outputs = trains ? kept.training() : kept.validation();
      teacher =
          device.place(
              outputs == null
                  ? kept.validation().room(indices.length) // show() asks
                  : outputs.read(indices, batch));
    }
    if (!(examples instanceof Examples.Labelled labelled)) {
      return new Share(batch, teacher, null);
    }
    Labels labels = labelled.labels(indices, batch.longest());
    boolean[] attended = null;
    if (value(objective) == Value.LOGITS) {
      attended =
          perToken
              ? labelled.attendedTokens(indices, batch.longest())
              : labelled.attended(indices, rows.perExample());
    }
    return new Share(batch, teacher, labels, attended);
  }

  /** Changes the images of training examples, and asks the teacher, where one is needed, of what they became. */
  private Share show(
      Lane lane, Objective objective, Share share, int[] indices, long seed, long step) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      augmenter.change(share.batch().only(), indices, seed, step);
      if (share.teacher() != null) {
        Tensor said = taught(lane, objective, share.batch());
        share.teacher().copy_(said.reshape(share.teacher().shape()));
      }
    }
    return share;
  }

  private Loss loss(
      Lane lane, Objective objective, Share share, BatchTotals totals, boolean backward) {
    Tensor output = lane.forward(share.batch(), output(objective));
    if (objective.isForEmbeddings()) {
      return new EmbeddingLoss(objective, job.pooling(), device)
          .of(output, share, totals, backward);
    }
    if (value(objective) != Value.LOGITS) {
      Tensor mask = perToken ? share.batch().mask() : null;
      Tensor counted = mask == null ? output : output.mul(mask);
      return new OutputLoss(objective, device, variance).of(counted, share, totals, backward);
    }
    LogitRows read = perToken ? new LogitRows(share.batch().longest(), rows.classes(), true) : rows;
    boolean asks = job.isCausal() && objective.needsTeacher();
    Share taught = asks ? share.with(taught(lane, objective, share.batch())) : share;
    return new LogitLoss(objective, device, read).of(output, taught, totals, backward);
  }

  /** What the teacher of a lane says of a batch. */
  private Tensor taught(Lane lane, Objective objective, Batch batch) {
    Targets asked = targets.get(value(objective));
    Lane teacher = asked.teachers().get(lane == first ? 0 : 1);
    Batch seen = augmenter == null ? batch : batch.called(teacher.graph().inputNames().get(0));
    try (NoGradGuard noGrad = new NoGradGuard()) {
      return teacher.forward(seen, asked.output());
    }
  }

  /**
   * Looks at the validation examples.
   *
   * @param step after which
   * @param best the loss to beat
   */
  Validation validate(Objective objective, long step, double best) {
    if (fixed != null) {
      fixed.momentum(0);
    }
    List<int[]> batches = Batches.inOrder(job.validation(), VALIDATION_BATCH);
    List<Lane> lanes = lanes();
    double learned = 0;
    double followed = 0;
    double quality = 0;
    long known = 0;
    long counted = 0;
    boolean byLabels = isJudgedByLabels(objective);
    for (int i = 0; i < batches.size(); i += 2) {
      int[] one = batches.get(i);
      int[] two = i + 1 < batches.size() ? batches.get(i + 1) : null;
      List<Measured> losses =
          two == null
              ? List.of(validate(lanes.get(0), objective, one))
              : threads.run(
                  () -> validate(lanes.get(0), objective, one),
                  () -> validate(lanes.get(1), objective, two));
      for (int j = 0; j < losses.size(); j++) {
        // A mean over labels is over those that are known, wherever they are.
        Loss of = losses.get(j).loss();
        BatchTotals batch = losses.get(j).batch();
        double part = objective.labels() * of.parts().getOrDefault("labels", 0.0);
        learned += part * batch.known();
        followed += (of.value() - part) * batch.rows();
        known += batch.known();
        counted += batch.rows();
        quality += of.quality() * (byLabels ? batch.known() : batch.rows());
      }
    }
    known = Math.max(1, known);
    counted = Math.max(1, counted);
    double loss = learned / known + followed / counted;
    return new Validation(step, loss, quality / (byLabels ? known : counted), loss < best);
  }

  /** Whether the quality of a loss is that of its labels; else it is that of all rows. */
  private boolean isJudgedByLabels(Objective objective) {
    boolean given =
        job.isCausal()
            || job.validation() instanceof Examples.Labelled some && some.labels() != null;
    return given && (value(objective) == Value.LOGITS || objective.labels() > 0);
  }

  /** The loss of a batch of validation examples. */
  private record Measured(Loss loss, BatchTotals batch) {}

  private Measured validate(Lane lane, Objective objective, int[] indices) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Share share = share(objective, indices, false);
      BatchTotals totals = BatchTotals.of(share);
      return new Measured(loss(lane, objective, share, totals, false), totals);
    }
  }

  /** From now on another model is the teacher. */
  void learnFrom(OnnxModel other) {
    closeTeacher();
    teacher = other;
  }

  /**
   * Computes the teacher's outputs, or finds those that were kept, where an objective needs them.
   *
   * @param taught the training examples that it is asked of, ascending
   */
  void openTargets(Objective objective, int[] taught, TrainingListener listener) {
    if (!objective.needsTeacher() || targets.containsKey(value(objective))) {
      return;
    }
    OnnxModel trainable = job.opened(TrainedForm.ofTeacher(teacher));
    String output =
        value(objective) == Value.LOGITS
            ? ClassifierOutput.of(trainable).logits()
            : trainable.mainOutput().getName();
    Lane lane = Lane.frozen(trainable, List.of(output), device);
    Targets asked = new Targets(List.of(lane, lane.sibling()), output, null, null);
    if (job.isCausal()) {
      targets.put(value(objective), asked);
      return;
    }
    List<TeacherOutputs> opened = new ArrayList<>();
    try {
      byte[] digest = TeacherOutputs.digest(teacher);
      int width = width(objective);
      List<Examples> both = List.of(job.training(), job.validation());
      for (Examples examples : augmenter == null ? both : List.of(job.validation())) {
        int[] which =
            examples == job.training() ? taught : IntStream.range(0, examples.size()).toArray();
        opened.add(
            TeacherOutputs.open(
                asked.teachers(),
                output,
                threads,
                digest,
                examples,
                which,
                width,
                perToken,
                job.cache(),
                listener));
      }
    } catch (RuntimeException e) {
      opened.forEach(TeacherOutputs::close);
      asked.close();
      throw e;
    }
    if (augmenter == null) {
      asked.close();
      targets.put(value(objective), new Targets(List.of(), output, opened.get(0), opened.get(1)));
    } else {
      targets.put(value(objective), new Targets(asked.teachers(), output, null, opened.get(0)));
    }
  }

  /** How many values the student's output has a token, or an example. */
  private int width(Objective objective) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch =
          Batch.of(job.validation(), new int[] {0}, first.graph().inputNames()).on(device);
      Tensor output = first.forward(batch, output(objective));
      long[] shape = output.shape();
      if (shape.length == 0 || shape[0] != 1) {
        throw new InputException(
            "the output "
                + first.graph().outputNames().get(0)
                + " has the shape "
                + Arrays.toString(shape)
                + " for one example; its first dimension must count the examples");
      }
      return perToken ? (int) shape[shape.length - 1] : Math.toIntExact(output.numel());
    }
  }

  @Override
  public void close() {
    threads.close();
    release();
    closeTeacher();
  }

  private void closeTeacher() {
    targets.values().forEach(Targets::close);
    targets.clear();
  }
}
