package org.espalier.online;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.op.KdSoftmaxLoss;

/** Computes the loss of a batch and its gradient with respect to the outputs. */
final class LossGradient implements AutoCloseable {
  /** Beyond this a multiplier stays: a constraint that cannot be met must not grow for ever. */
  private static final double MAX_MULTIPLIER = 1e6;

  private final Loss loss;
  private final ZeroDistance constraint;
  private final int columns;
  private final int capacity;
  private final double[] multipliers;
  private final float[] target;
  private final double[] residual;
  private double distance = Double.NaN; // before the first step

  // Of the kernel, for softmax losses.
  private final Opened opened = new Opened();
  private final OwnedTensor student;
  private final OwnedTensor teacher;
  private final OwnedTensor slope;
  private final LongPointer labels;
  private final FloatBuffer studentMemory;
  private final FloatBuffer teacherMemory;
  private final FloatBuffer slopeMemory;
  private final Map<Integer, KdSoftmaxLoss> kernels = new HashMap<>();

  LossGradient(Loss loss, ZeroDistance constraint, int columns, int capacity) {
    this.loss = loss;
    this.constraint = constraint;
    this.columns = columns;
    this.capacity = capacity;
    if (loss instanceof Loss.Binary && columns != 1) {
      throw new IllegalArgumentException(
          "the binary loss is for one output; the model has " + columns);
    }
    boolean softmax = loss instanceof Loss.CrossEntropy || loss instanceof Loss.Distillation;
    if (softmax && columns < 2) {
      throw new IllegalArgumentException(
          loss + " is for two outputs or more; the model has " + columns);
    }
    if (constraint != null) {
      constraint.check(loss);
    }
    multipliers = new double[columns];
    residual = new double[columns];
    target = constraint == null ? null : new float[capacity * columns];
    boolean distils = loss instanceof Loss.Distillation;
    try {
      student = softmax ? logits() : null;
      slope = softmax ? logits() : null;
      labels = softmax ? opened.add(labels(capacity)) : null;
      teacher = distils ? logits() : null;
    } catch (RuntimeException | Error e) {
      opened.close();
      throw e;
    }
    studentMemory = softmax ? Floats.of(student) : null;
    slopeMemory = softmax ? Floats.of(slope) : null;
    teacherMemory = distils ? Floats.of(teacher) : null;
  }

  private static LongPointer labels(int capacity) {
    return new LongPointer(capacity).retainReference(); // whatever scope is open
  }

  private OwnedTensor logits() {
    return opened.add(OwnedTensor.allocate(DType.F32, capacity, columns));
  }

  /** Of the constraint, one an output. */
  double[] multipliers() {
    return multipliers;
  }

  /** Takes multipliers that were saved. */
  void multipliers(double[] saved) {
    System.arraycopy(saved, 0, multipliers, 0, multipliers.length);
  }

  /** The root of the mean ‖f − t‖² of the last batch; 0 without a constraint. */
  double distance() {
    return distance;
  }

  /**
   * @param outputs rows · columns values
   * @param taught what the teacher gives, or null
   * @param gradient receives the gradient of the mean
   * @return the loss, the constraint's part included
   */
  double compute(float[] outputs, int rows, Example[] outcomes, float[] taught, float[] gradient) {
    if (rows < 1 || rows > capacity) {
      throw new IllegalArgumentException(rows + " rows; 1 to " + capacity + " are right");
    }
    double value;
    if (loss instanceof Loss.Squared) {
      value = squared(outputs, rows, outcomes, gradient);
    } else if (loss instanceof Loss.Huber huber) {
      value = huber(huber.delta(), outputs, rows, outcomes, gradient);
    } else if (loss instanceof Loss.Binary) {
      value = binary(outputs, rows, outcomes, gradient);
    } else {
      value = softmax(outputs, rows, outcomes, taught, gradient);
    }
    return constraint == null ? value : value + constrain(outputs, rows, outcomes, gradient);
  }

  private double squared(float[] out, int rows, Example[] outcomes, float[] gradient) {
    double sum = 0;
    double n = (double) rows * columns;
    for (int i = 0; i < rows * columns; i++) {
      double d = out[i] - outcomes[i / columns].values()[i % columns];
      sum += d * d;
      gradient[i] = (float) (2 * d / n);
    }
    return sum / n;
  }

  private double huber(double delta, float[] out, int rows, Example[] outcomes, float[] gradient) {
    double sum = 0;
    double n = (double) rows * columns;
    for (int i = 0; i < rows * columns; i++) {
      double d = out[i] - outcomes[i / columns].values()[i % columns];
      double size = Math.abs(d);
      sum += size <= delta ? 0.5 * d * d : delta * (size - 0.5 * delta);
      gradient[i] = (float) ((size <= delta ? d : delta * Math.signum(d)) / n);
    }
    return sum / n;
  }

  private static double binary(float[] out, int rows, Example[] outcomes, float[] gradient) {
    double sum = 0;
    for (int i = 0; i < rows; i++) {
      double z = out[i];
      int y = outcomes[i].label();
      // log(1 + e^z) − y·z without overflow.
      sum += Math.max(z, 0) - y * z + StrictMath.log1p(StrictMath.exp(-Math.abs(z)));
      gradient[i] = (float) ((sigmoid(z) - y) / rows);
    }
    return sum / rows;
  }

  static double sigmoid(double z) {
    double e = StrictMath.exp(-Math.abs(z));
    return z >= 0 ? 1 / (1 + e) : e / (1 + e);
  }

  private double softmax(
      float[] out, int rows, Example[] outcomes, float[] taught, float[] gradient) {
    studentMemory.put(0, out, 0, rows * columns);
    for (int i = 0; i < rows; i++) {
      labels.put(i, outcomes[i].label());
    }
    if (teacher != null) {
      teacherMemory.put(0, taught, 0, rows * columns);
    }
    double value = kernels.computeIfAbsent(rows, this::kernel).compute().loss();
    slopeMemory.get(0, gradient, 0, rows * columns);
    return value;
  }

  private KdSoftmaxLoss kernel(int rows) {
    KdSoftmaxLoss.Settings settings =
        loss instanceof Loss.Distillation d
            ? new KdSoftmaxLoss.Settings(
                d.alpha(), d.temperature(), d.beta(), KdSoftmaxLoss.NO_LABEL)
            : KdSoftmaxLoss.Settings.of(1, 1);
    return new KdSoftmaxLoss(
        settings,
        new KdSoftmaxLoss.Batch(
            logits(student, rows),
            teacher == null ? null : logits(teacher, rows),
            labels,
            null,
            null,
            logits(slope, rows)));
  }

  private KdSoftmaxLoss.Logits logits(Tensor memory, int rows) {
    return new KdSoftmaxLoss.Logits(memory, rows, columns, columns);
  }

  private double constrain(float[] out, int rows, Example[] outcomes, float[] gradient) {
    constraint.target().write(out, rows, columns, outcomes, target);
    double squares = 0;
    double lagrangian = 0;
    Arrays.fill(residual, 0);
    for (int i = 0; i < rows * columns; i++) {
      int c = i % columns;
      double d = (double) out[i] - target[i];
      squares += d * d;
      residual[c] += d / rows;
      lagrangian += multipliers[c] * d / rows;
      gradient[i] += (float) ((constraint.rho() * d + multipliers[c]) / rows);
    }
    distance = Math.sqrt(squares / rows);
    return lagrangian + 0.5 * constraint.rho() * squares / rows;
  }

  /** After a step that was done: the multipliers follow the residual of its batch. */
  void stepped(double learningRate) {
    if (constraint != null && constraint.augmented()) {
      for (int c = 0; c < columns; c++) {
        double grown = multipliers[c] + learningRate * constraint.rho() * residual[c];
        multipliers[c] = Math.max(-MAX_MULTIPLIER, Math.min(MAX_MULTIPLIER, grown));
      }
    }
  }

  @Override
  public void close() {
    kernels.values().forEach(KdSoftmaxLoss::close);
    opened.close();
  }
}
