package org.espalier.op;

import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_sgd_options;
import org.espalier.binding.esp_sgd_tensor;
import org.espalier.binding.esp_step_noise;
import org.espalier.binding.esp_step_result;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Tensor;

/**
 * Stochastic gradient descent; see {@link FusedStep}. For each element:
 *
 * <pre>
 *   d = mask · gate · gradient            a pruned or clipped weight receives no gradient
 *   d = clip factor · d                   min(1, maxNorm / (norm + 1e-6)), norm over the whole list
 *   d = (d + sigma · z) / divisor         where there is noise: see {@link StepNoise}
 *   d = −d                                where maximize
 *   d = d + weightDecay · weight          a gated weight still decays
 *   b = first ? d : momentum · b + (1 − dampening) · d
 *   d = nesterov ? d + momentum · b : b
 *   weight = weight − learningRate · d
 *   weight, b = mask · (weight, b)        exactly +0 where pruned
 *   scale = absmax / 127, working copy = scale · clamp(rint(weight · (1/scale)), −127, 127)
 *   gate = −127 ≤ rint(weight · (1/scale)) ≤ 127
 * </pre>
 *
 * <p>The first nine lines are torch.optim.SGD (PyTorch), with the same bits as its CPU
 * implementation where mask, gate, clipping and noise are absent. «first» is a state of each tensor and
 * survives a skipped step. Results have the same bits on every instruction set and for every number
 * of threads.
 *
 */
public final class FusedSgd extends FusedStep {
  /**
   * One tensor and what belongs to it.
   *
   * @param weight the latent weights, F32
   * @param gradient as many elements, F32, BF16 or F16
   * @param momentum as many elements, F32, or null where the options' momentum is 0
   * @param mask one bit a weight, 1 = kept, or null
   * @param gate one bit a weight, 1 = passes, or null; read, and written anew where there are scales
   * @param workingCopy or null
   * @param scale or null: the working copy is plain
   */
  public record Parameter(
      Tensor weight,
      Tensor gradient,
      Tensor momentum,
      BytePointer mask,
      BytePointer gate,
      WorkingCopy workingCopy,
      Scale scale) {
    public Parameter {
      TrainedTensor trained = new TrainedTensor(weight, gradient, mask, gate, workingCopy, scale);
      if (momentum != null) {
        trained.checkState("momentum", momentum);
      }
    }

    /** Plain SGD: no mask, no gate, no working copy. {@code momentum} may be null. */
    public static Parameter of(Tensor weight, Tensor gradient, Tensor momentum) {
      return new Parameter(weight, gradient, momentum, null, null, null, null);
    }

    /** With momentum, or without it where {@code state} is null. */
    public Parameter withMomentum(Tensor state) {
      return new Parameter(weight, gradient, state, mask, gate, workingCopy, scale);
    }

    public Parameter withMask(BytePointer bits) {
      return new Parameter(weight, gradient, momentum, bits, gate, workingCopy, scale);
    }

    public Parameter withGate(BytePointer bits) {
      return new Parameter(weight, gradient, momentum, mask, bits, workingCopy, scale);
    }

    /** A copy of the weights, rounded to its type. */
    public Parameter withWorkingCopy(WorkingCopy copy) {
      return new Parameter(weight, gradient, momentum, mask, gate, copy, scale);
    }

    /** Scales, and the copy on their grid (null: scales and gate only). */
    public Parameter withWorkingCopy(WorkingCopy copy, Scale scales) {
      return new Parameter(weight, gradient, momentum, mask, gate, copy, scales);
    }
  }

  /**
   * The settings of torch.optim.SGD, and two more.
   *
   * @param learningRate 0 or more
   * @param momentum 0 or more
   * @param weightDecay 0 or more
   * @param nesterov needs momentum above 0 and dampening 0
   * @param maxNorm gradients are scaled so that their norm over the whole list is at most this; 0
   *     does not clip
   * @param skipNonFinite a NaN or infinity in a gradient (where mask and gate let it through) skips
   *     the step, and every state stays as it is
   */
  public record Options(
      double learningRate,
      double momentum,
      double dampening,
      double weightDecay,
      boolean nesterov,
      boolean maximize,
      double maxNorm,
      boolean skipNonFinite) {
    public Options {
      TrainedTensor.atLeastZero("learning rate", learningRate);
      TrainedTensor.atLeastZero("momentum", momentum);
      TrainedTensor.atLeastZero("weight decay", weightDecay);
      TrainedTensor.atLeastZero("max norm", maxNorm);
      if (!Float.isFinite((float) dampening)) {
        throw new IllegalArgumentException("dampening " + dampening + " is not finite");
      }
      if (nesterov && !(momentum > 0 && dampening == 0)) {
        throw new IllegalArgumentException(
            "Nesterov needs momentum above 0 ("
                + momentum
                + ") and dampening 0 ("
                + dampening
                + ")");
      }
    }

    /** Plain gradient descent. */
    public static Options of(double learningRate) {
      return new Options(learningRate, 0, 0, 0, false, false, 0, false);
    }

    public Options withMomentum(double value) {
      return new Options(
          learningRate, value, dampening, weightDecay, nesterov, maximize, maxNorm, skipNonFinite);
    }

    public Options withDampening(double value) {
      return new Options(
          learningRate, momentum, value, weightDecay, nesterov, maximize, maxNorm, skipNonFinite);
    }

    public Options withWeightDecay(double value) {
      return new Options(
          learningRate, momentum, dampening, value, nesterov, maximize, maxNorm, skipNonFinite);
    }

    public Options withNesterov(boolean value) {
      return new Options(
          learningRate, momentum, dampening, weightDecay, value, maximize, maxNorm, skipNonFinite);
    }

    public Options withMaximize(boolean value) {
      return new Options(
          learningRate, momentum, dampening, weightDecay, nesterov, value, maxNorm, skipNonFinite);
    }

    public Options withMaxNorm(double value) {
      return new Options(
          learningRate, momentum, dampening, weightDecay, nesterov, maximize, value, skipNonFinite);
    }

    public Options withSkipNonFinite(boolean value) {
      return new Options(
          learningRate, momentum, dampening, weightDecay, nesterov, maximize, maxNorm, value);
    }
  }

  private final esp_sgd_tensor list;
  private final esp_sgd_options options;

  /**
   * A list whose momentum buffers hold nothing yet: the first step writes them without reading.
   *
   * @throws IllegalArgumentException where a parameter has no momentum buffer and the options ask for
   *     momentum
   */
  public FusedSgd(List<Parameter> parameters, Options options) {
    super(
        parameters,
        parameters.stream().map(Parameter::weight).toList(),
        parameters.stream().map(Parameter::gradient).toList());
    this.list = Natives.keep(new esp_sgd_tensor(Math.max(1, count())));
    this.options =
        Natives.keep(new esp_sgd_options())
            .learning_rate(options.learningRate())
            .momentum(options.momentum())
            .dampening(options.dampening())
            .weight_decay(options.weightDecay())
            .max_norm(options.maxNorm())
            .nesterov(options.nesterov() ? 1 : 0)
            .maximize(options.maximize() ? 1 : 0)
            .skip_non_finite(options.skipNonFinite() ? 1 : 0);
    for (int i = 0; i < parameters.size(); i++) {
      checkMomentum(i, parameters.get(i));
      describe(list.getPointer(i), parameters.get(i));
    }
    plan(
        (plan, table) ->
            espalier_cuda.esp_cuda_fused_sgd_plan(list, count(), this.options, plan, table),
        Integer.BYTES);
  }

  private void checkMomentum(int index, Parameter p) {
    if (options.momentum() > 0 && p.momentum() == null) {
      throw new IllegalArgumentException(
          "parameter " + index + " has no momentum buffer, and momentum is " + options.momentum());
    }
  }

  /**
   * From now on parameter {@code index} is another one in host memory, of any size: the rows of a table, say, that this
   * step changes. Whether it is a {@link #first} step stays as it was.
   *
   * @throws IllegalArgumentException where it has no momentum buffer and the options ask for momentum
   * @throws UnsupportedOperationException on a CUDA device, where steps are planned ahead
   */
  public synchronized void parameter(int index, Parameter parameter) {
    boolean first = first(index);
    checkMomentum(index, parameter);
    replace(index, parameter, parameter.weight, parameter.gradient);
    describe(list.getPointer(index), parameter);
    first(index, first);
  }

  private static void describe(esp_sgd_tensor t, Parameter p) {
    TrainedTensor trained =
        new TrainedTensor(p.weight, p.gradient, p.mask, p.gate, p.workingCopy, p.scale);
    t.weight(trained.floats(p.weight))
        .gradient(trained.at(p.gradient))
        .momentum(trained.floats(p.momentum))
        .mask(p.mask)
        .gate(p.gate)
        .working_copy(trained.copyMemory())
        .scale(trained.scales())
        .rows(trained.rows())
        .cols(trained.cols())
        .gradient_dtype(p.gradient.dtype().code())
        .working_copy_type(trained.copyCode())
        .channel(trained.channel().code())
        .scale_given(trained.scaleGiven())
        .first(1);
  }

  /**
   * Whether the momentum buffer of parameter {@code index} holds nothing yet. True until a first step
   * is done; set it to false for buffers that were restored. On a CUDA device no step may be queued.
   */
  public synchronized boolean first(int index) {
    checked(index);
    if (!device().isCuda()) {
      return list.getPointer(index).first() != 0;
    }
    try (IntPointer started = new IntPointer(count())) {
      copyHistory(started, false);
      return started.get(index) == 0;
    }
  }

  public synchronized void first(int index, boolean value) {
    checked(index);
    if (!device().isCuda()) {
      list.getPointer(index).first(value ? 1 : 0);
      return;
    }
    try (IntPointer started = new IntPointer(count())) {
      copyHistory(started, false);
      copyHistory(started.put(index, value ? 0 : 1), true);
    }
  }

  @Override
  void requireOpen(Object parameter) {
    Parameter p = (Parameter) parameter;
    TrainedTensor.requireOpen(p.weight, p.mask, p.gate, p.workingCopy, p.scale);
    Lifetimes.requireOpen(p.momentum);
  }

  @Override
  void run(esp_step_result result) {
    Status.check(espalier.esp_fused_sgd(list, count(), options, result));
  }

  @Override
  void queue(DevicePlan plan, CudaMemory history, esp_step_result found, CudaStream stream) {
    Status.checkCuda(
        espalier_cuda.esp_cuda_fused_sgd(
            plan.plan(),
            plan.table(),
            plan.workspace(),
            options,
            history.asInts(),
            found,
            stream.handle()));
  }

  @Override
  double nativeLearningRate() {
    return options.learning_rate();
  }

  @Override
  void nativeLearningRate(double value) {
    options.learning_rate(value);
  }

  @Override
  esp_step_noise nativeNoise() {
    return options.noise();
  }

  @Override
  void nativeGradient(int index, Pointer memory) {
    list.getPointer(index).gradient(memory);
  }

  @Override
  void closeNative() {
    list.close();
    options.close();
  }
}
