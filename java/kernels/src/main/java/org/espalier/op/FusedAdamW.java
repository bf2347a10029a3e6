package org.espalier.op;

import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_adamw_options;
import org.espalier.binding.esp_adamw_tensor;
import org.espalier.binding.esp_step_noise;
import org.espalier.binding.esp_step_result;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Tensor;

/**
 * AdamW (Loshchilov and Hutter, «Decoupled Weight Decay Regularization»); see {@link FusedStep}. For
 * each element, t being 1 in the first step:
 *
 * <pre>
 *   g = mask · gate · gradient            a pruned or clipped weight receives no gradient
 *   g = clip factor · g                   min(1, maxNorm / (norm + 1e-6)), norm over the whole list
 *   g = (g + sigma · z) / divisor         where there is noise: see {@link StepNoise}
 *   g = −g                                where maximize
 *   m = beta1 · m + (1 − beta1) · g       m and v are 0 before the first step
 *   v = beta2 · v + (1 − beta2) · g²
 *   weight = (1 − learningRate · weightDecay) · weight
 *            − learningRate / (1 − beta1^t) · m / (√v / √(1 − beta2^t) + epsilon)
 *   m, v = +0 where their magnitude is below 2^-126
 *   weight, m, v = mask · (weight, m, v)  exactly +0 where pruned
 *   scale = absmax / 127, working copy = scale · clamp(rint(weight · (1/scale)), −127, 127)
 *   gate = −127 ≤ rint(weight · (1/scale)) ≤ 127
 * </pre>
 *
 * <p>A gated weight still decays. The weights follow torch.optim.AdamW (PyTorch) up to the order of
 * roundings. t is a state of each tensor and survives a skipped step. Results have the same bits on
 * every instruction set and for every number of threads.
 *
 */
public final class FusedAdamW extends FusedStep {
  /**
   * One tensor and what belongs to it.
   *
   * @param weight the latent weights, F32
   * @param gradient as many elements, F32, BF16 or F16
   * @param firstMoment m, as many elements, F32; the first step writes it without reading
   * @param secondMoment v, likewise
   * @param mask one bit a weight, 1 = kept, or null
   * @param gate one bit a weight, 1 = passes, or null; read, and written anew where there are scales
   * @param workingCopy or null
   * @param scale or null: the working copy is plain
   */
  public record Parameter(
      Tensor weight,
      Tensor gradient,
      Tensor firstMoment,
      Tensor secondMoment,
      BytePointer mask,
      BytePointer gate,
      WorkingCopy workingCopy,
      Scale scale) {
    public Parameter {
      TrainedTensor trained = new TrainedTensor(weight, gradient, mask, gate, workingCopy, scale);
      trained.checkState("first moment", firstMoment);
      trained.checkState("second moment", secondMoment);
    }

    /** Plain AdamW: no mask, no gate, no working copy. */
    public static Parameter of(
        Tensor weight, Tensor gradient, Tensor firstMoment, Tensor secondMoment) {
      return new Parameter(weight, gradient, firstMoment, secondMoment, null, null, null, null);
    }

    /** What SGD would update, with moments in the place of its momentum. */
    public static Parameter of(FusedSgd.Parameter p, Tensor firstMoment, Tensor secondMoment) {
      return new Parameter(
          p.weight(),
          p.gradient(),
          firstMoment,
          secondMoment,
          p.mask(),
          p.gate(),
          p.workingCopy(),
          p.scale());
    }

    public Parameter withMask(BytePointer bits) {
      return new Parameter(
          weight, gradient, firstMoment, secondMoment, bits, gate, workingCopy, scale);
    }

    public Parameter withGate(BytePointer bits) {
      return new Parameter(
          weight, gradient, firstMoment, secondMoment, mask, bits, workingCopy, scale);
    }

    /** A copy of the weights, rounded to its type. */
    public Parameter withWorkingCopy(WorkingCopy copy) {
      return new Parameter(weight, gradient, firstMoment, secondMoment, mask, gate, copy, scale);
    }

    /** Scales, and the copy on their grid (null: scales and gate only). */
    public Parameter withWorkingCopy(WorkingCopy copy, Scale scales) {
      return new Parameter(weight, gradient, firstMoment, secondMoment, mask, gate, copy, scales);
    }
  }

  /**
   * The settings of torch.optim.AdamW, and two more.
   *
   * @param learningRate 0 or more
   * @param beta1 0 or more, below 1
   * @param beta2 0 or more, below 1
   * @param epsilon above 0: a weight that never had a gradient divides by it
   * @param weightDecay 0 or more; decoupled
   * @param maxNorm gradients are scaled so that their norm over the whole list is at most this; 0
   *     does not clip
   * @param skipNonFinite a NaN or infinity in a gradient (where mask and gate let it through) skips
   *     the step, and every state stays as it is
   */
  public record Options(
      double learningRate,
      double beta1,
      double beta2,
      double epsilon,
      double weightDecay,
      boolean maximize,
      double maxNorm,
      boolean skipNonFinite) {
    public Options {
      TrainedTensor.atLeastZero("learning rate", learningRate);
      rate("beta1", beta1);
      rate("beta2", beta2);
      if (!((float) epsilon > 0 && Float.isFinite((float) epsilon))) {
        throw new IllegalArgumentException("epsilon " + epsilon + "; finite and above 0 is needed");
      }
      TrainedTensor.atLeastZero("weight decay", weightDecay);
      TrainedTensor.atLeastZero("max norm", maxNorm);
    }

    private static void rate(String name, double value) {
      if (!(value >= 0 && (float) value < 1)) {
        throw new IllegalArgumentException(
            name + " " + value + "; 0 or more and below 1 is needed");
      }
    }

    /** PyTorch's defaults: betas 0.9 and 0.999, epsilon 1e-8, weight decay 0.01. */
    public static Options of(double learningRate) {
      return new Options(learningRate, 0.9, 0.999, 1e-8, 0.01, false, 0, false);
    }

    public Options withBetas(double first, double second) {
      return new Options(
          learningRate, first, second, epsilon, weightDecay, maximize, maxNorm, skipNonFinite);
    }

    public Options withEpsilon(double value) {
      return new Options(
          learningRate, beta1, beta2, value, weightDecay, maximize, maxNorm, skipNonFinite);
    }

    public Options withWeightDecay(double value) {
      return new Options(
          learningRate, beta1, beta2, epsilon, value, maximize, maxNorm, skipNonFinite);
    }

    public Options withMaximize(boolean value) {
      return new Options(
          learningRate, beta1, beta2, epsilon, weightDecay, value, maxNorm, skipNonFinite);
    }

    public Options withMaxNorm(double value) {
      return new Options(
          learningRate, beta1, beta2, epsilon, weightDecay, maximize, value, skipNonFinite);
    }

    public Options withSkipNonFinite(boolean value) {
      return new Options(
          learningRate, beta1, beta2, epsilon, weightDecay, maximize, maxNorm, value);
    }
  }

  private final esp_adamw_tensor list;
  private final esp_adamw_options options;

  /** A list whose moments hold nothing yet: the first step writes them without reading. */
  public FusedAdamW(List<Parameter> parameters, Options options) {
    super(
        parameters,
        parameters.stream().map(Parameter::weight).toList(),
        parameters.stream().map(Parameter::gradient).toList());
    this.list = Natives.keep(new esp_adamw_tensor(Math.max(1, count())));
    this.options =
        Natives.keep(new esp_adamw_options())
            .learning_rate(options.learningRate())
            .beta1(options.beta1())
            .beta2(options.beta2())
            .epsilon(options.epsilon())
            .weight_decay(options.weightDecay())
            .max_norm(options.maxNorm())
            .maximize(options.maximize() ? 1 : 0)
            .skip_non_finite(options.skipNonFinite() ? 1 : 0);
    for (int i = 0; i < parameters.size(); i++) {
      describe(list.getPointer(i), parameters.get(i));
    }
    plan(
        (plan, table) ->
            espalier_cuda.esp_cuda_fused_adamw_plan(list, count(), this.options, plan, table),
        Long.BYTES);
  }

  /**
   * From now on parameter {@code index} is another one in host memory, of any size: the rows of a table, say, that this
   * step changes. How many {@link #steps} it has done stays as it was.
   *
   * @throws UnsupportedOperationException on a CUDA device, where steps are planned ahead
   */
  public synchronized void parameter(int index, Parameter parameter) {
    long steps = steps(index);
    replace(index, parameter, parameter.weight, parameter.gradient);
    describe(list.getPointer(index), parameter);
    steps(index, steps);
  }

  private static void describe(esp_adamw_tensor t, Parameter p) {
    TrainedTensor trained =
        new TrainedTensor(p.weight, p.gradient, p.mask, p.gate, p.workingCopy, p.scale);
    t.weight(trained.floats(p.weight))
        .gradient(trained.at(p.gradient))
        .first_moment(trained.floats(p.firstMoment))
        .second_moment(trained.floats(p.secondMoment))
        .mask(p.mask)
        .gate(p.gate)
        .working_copy(trained.copyMemory())
        .scale(trained.scales())
        .rows(trained.rows())
        .cols(trained.cols())
        .step(0)
        .gradient_dtype(p.gradient.dtype().code())
        .working_copy_type(trained.copyCode())
        .channel(trained.channel().code())
        .scale_given(trained.scaleGiven());
  }

  /**
   * How many steps parameter {@code index} has done, skipped ones not among them. 0: its moments hold
   * nothing yet; set the number for moments that were restored. On a CUDA device no step
   * may be queued.
   */
  public synchronized long steps(int index) {
    checked(index);
    if (!device().isCuda()) {
      return list.getPointer(index).step();
    }
    try (LongPointer steps = new LongPointer(count())) {
      copyHistory(steps, false);
      return steps.get(index);
    }
  }

  public synchronized void steps(int index, long value) {
    checked(index);
    if (value < 0) {
      throw new IllegalArgumentException(value + " steps; 0 or more is needed");
    }
    if (!device().isCuda()) {
      list.getPointer(index).step(value);
      return;
    }
    try (LongPointer steps = new LongPointer(count())) {
      copyHistory(steps, false);
      copyHistory(steps.put(index, value), true);
    }
  }

  @Override
  void requireOpen(Object parameter) {
    Parameter p = (Parameter) parameter;
    TrainedTensor.requireOpen(p.weight, p.mask, p.gate, p.workingCopy, p.scale);
    p.firstMoment.requireOpen();
    p.secondMoment.requireOpen();
  }

  @Override
  void run(esp_step_result result) {
    Status.check(espalier.esp_fused_adamw(list, count(), options, result));
  }

  @Override
  void queue(DevicePlan plan, CudaMemory history, esp_step_result found, CudaStream stream) {
    Status.checkCuda(
        espalier_cuda.esp_cuda_fused_adamw(
            plan.plan(),
            plan.table(),
            plan.workspace(),
            options,
            history.asLongs(),
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
