package org.espalier.op;

import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_sgd_options;
import org.espalier.binding.esp_sgd_result;
import org.espalier.binding.esp_sgd_tensor;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * Stochastic gradient descent over a list of tensors in one native call, with what a compressed
 * network needs done while a weight is in the cache: the mask is held, clipped weights receive no
 * gradient, and scale, fake-quantized working copy and gate are renewed. For each element:
 *
 * <pre>
 *   d = mask · gate · gradient            a pruned or clipped weight receives no gradient
 *   d = clip factor · d                   min(1, maxNorm / (norm + 1e-6)), norm over the whole list
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
 * <p>The first eight lines are torch.optim.SGD (PyTorch), with the same bits as its CPU
 * implementation where mask, gate and clipping are absent. «first» is a state of each tensor and
 * survives a skipped step. Results have the same bits on every instruction set and for every number
 * of threads.
 *
 * <p>The list is kept in native form: a step is one call and copies nothing. The tensors must stay
 * alive until {@link #close}. Not thread safe; several objects may step at once on different
 * tensors.
 */
public final class FusedSgd implements AutoCloseable {
  /** What has a scale of its own. */
  public enum Channel {
    /** The whole tensor: one scale. */
    TENSOR(espalier.ESP_CHANNEL_TENSOR),
    /** Each index of the first axis: the output channels of Linear [out, in] and Conv. */
    FIRST_AXIS(espalier.ESP_CHANNEL_ROW),
    /** Each index of the last axis: the output channels of an ONNX MatMul [in, out]. */
    LAST_AXIS(espalier.ESP_CHANNEL_COLUMN);

    private final int code;

    Channel(int code) {
      this.code = code;
    }

    /**
     * The channels of an axis; negative axes count from the last.
     *
     * @throws IllegalArgumentException for an axis that is neither the first nor the last
     */
    public static Channel ofAxis(int axis, int rank) {
      int from = axis < 0 ? axis + rank : axis;
      if (from < 0 || from >= rank || from != 0 && from != rank - 1) {
        throw new IllegalArgumentException(
            "axis " + axis + " of " + rank + "; channels along the first or the last axis only");
      }
      return from == 0 ? FIRST_AXIS : LAST_AXIS;
    }

    private long count(Tensor weight) {
      return this == TENSOR ? 1 : weight.dimension(this == FIRST_AXIS ? 0 : -1);
    }
  }

  /**
   * The scales of a quantized working copy.
   *
   * @param values one F32 scale a channel
   * @param given false: each step writes absmax / 127 (1 for a channel of zeros) before it quantizes;
   *     true: the scales stay what they are, each positive with a finite reciprocal, and what lies
   *     beyond 127 of them is clipped and gated
   */
  public record Scale(Tensor values, Channel channel, boolean given) {
    public Scale {
      if (values.dtype() != DType.F32) {
        throw new IllegalArgumentException("scales are " + values.dtype() + "; F32 is needed");
      }
    }
  }

  /**
   * What forward sees: a copy of the weights, on the grid of the scales where there are any. One of
   * the two is null.
   *
   * @param floats as many elements as the weight, of any type
   * @param integers as many bytes: the integers of the grid; needs scales
   */
  public record WorkingCopy(Tensor floats, BytePointer integers) {
    public WorkingCopy {
      if ((floats == null) == (integers == null)) {
        throw new IllegalArgumentException("a working copy is either of floats or of integers");
      }
    }

    /** Floats of the type of {@code copy}. */
    public static WorkingCopy of(Tensor copy) {
      return new WorkingCopy(copy, null);
    }

    /** The integers of the grid; needs scales. */
    public static WorkingCopy int8(BytePointer copy) {
      return new WorkingCopy(null, copy);
    }

    private void check(Tensor weight) {
      long n = weight.elements();
      if (floats != null && floats.elements() != n) {
        throw new IllegalArgumentException(
            "weight " + weight + ", working copy " + floats + ": the sizes differ");
      }
      if (integers != null
          && integers.limit() > 0
          && integers.limit() - integers.position() < n) {
        throw new IllegalArgumentException(
            "the working copy holds " + (integers.limit() - integers.position()) + " bytes, "
                + weight + " needs " + n);
      }
    }

    private Pointer memory() {
      return floats == null ? integers : floats.pointer();
    }

    private int code() {
      return floats == null
          ? espalier.ESP_COPY_INT8
          : switch (floats.dtype()) {
            case F32 -> espalier.ESP_COPY_F32;
            case BF16 -> espalier.ESP_COPY_BF16;
            case F16 -> espalier.ESP_COPY_F16;
          };
    }
  }

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
      long n = weight.elements();
      if (weight.dtype() != DType.F32 || momentum != null && momentum.dtype() != DType.F32) {
        throw new IllegalArgumentException(
            "weight " + weight + ", momentum " + momentum + ": both are F32 in training");
      }
      if (gradient.elements() != n || momentum != null && momentum.elements() != n) {
        throw new IllegalArgumentException(
            "weight " + weight + ", gradient " + gradient + ", momentum " + momentum
                + ": the sizes differ");
      }
      Bits.check("mask", mask, n);
      Bits.check("gate", gate, n);
      if (workingCopy != null) {
        workingCopy.check(weight);
        if (workingCopy.integers() != null && scale == null) {
          throw new IllegalArgumentException("an int8 working copy needs scales");
        }
      }
      if (scale != null) {
        if (scale.channel() != Channel.TENSOR && weight.rank() == 0) {
          throw new IllegalArgumentException("a scalar has no axis to have channels along");
        }
        long channels = scale.channel().count(weight);
        if (scale.values().elements() != channels) {
          throw new IllegalArgumentException(
              scale.values().elements() + " scales for the " + channels + " channels of " + weight
                  + " (" + scale.channel() + ")");
        }
      }
    }

    /** Plain SGD: no mask, no gate, no working copy. {@code momentum} may be null. */
    public static Parameter of(Tensor weight, Tensor gradient, Tensor momentum) {
      return new Parameter(weight, gradient, momentum, null, null, null, null);
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
      atLeastZero("learning rate", learningRate);
      atLeastZero("momentum", momentum);
      atLeastZero("weight decay", weightDecay);
      atLeastZero("max norm", maxNorm);
      if (!Float.isFinite((float) dampening)) {
        throw new IllegalArgumentException("dampening " + dampening + " is not finite");
      }
      if (nesterov && !(momentum > 0 && dampening == 0)) {
        throw new IllegalArgumentException(
            "Nesterov needs momentum above 0 (" + momentum + ") and dampening 0 (" + dampening
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

    private static void atLeastZero(String name, double value) {
      if (!(value >= 0 && Float.isFinite((float) value))) {
        throw new IllegalArgumentException(name + " " + value + "; finite and 0 or more is needed");
      }
    }
  }

  /**
   * What a step found.
   *
   * @param norm of mask · gate · gradient over the list; NaN where neither clipping nor skipping
   *     asked for it
   * @param clipFactor 1 where nothing was clipped
   * @param skipped whether non-finite gradients left everything as it was
   * @param nonFinite NaN and infinite gradient entries; 0 where neither clipping nor skipping asked
   * @param nonFiniteChannels channels whose new scale is NaN, because one of their weights is NaN or
   *     infinite after the step
   */
  public record Result(
      double norm, double clipFactor, boolean skipped, long nonFinite, long nonFiniteChannels) {}

  private final List<Parameter> parameters; // keeps the memory reachable
  private final esp_sgd_tensor list;
  private final esp_sgd_options options;
  private final esp_sgd_result result = new esp_sgd_result();
  private boolean closed;

  /**
   * A list whose momentum buffers hold nothing yet: the first step writes them without reading.
   *
   * @throws IllegalArgumentException where a parameter has no momentum buffer and the options ask for
   *     momentum
   */
  public FusedSgd(List<Parameter> parameters, Options options) {
    this.parameters = List.copyOf(parameters);
    this.list = new esp_sgd_tensor(Math.max(1, parameters.size()));
    this.options =
        new esp_sgd_options()
            .learning_rate(options.learningRate())
            .momentum(options.momentum())
            .dampening(options.dampening())
            .weight_decay(options.weightDecay())
            .max_norm(options.maxNorm())
            .nesterov(options.nesterov() ? 1 : 0)
            .maximize(options.maximize() ? 1 : 0)
            .skip_non_finite(options.skipNonFinite() ? 1 : 0);
    for (int i = 0; i < parameters.size(); i++) {
      Parameter p = parameters.get(i);
      if (options.momentum() > 0 && p.momentum() == null) {
        throw new IllegalArgumentException(
            "parameter " + i + " has no momentum buffer, and momentum is " + options.momentum());
      }
      describe(list.getPointer(i), p);
    }
  }

  private static void describe(esp_sgd_tensor t, Parameter p) {
    long n = p.weight().elements();
    Channel channel = p.scale() == null ? Channel.TENSOR : p.scale().channel();
    long channels = channel.count(p.weight());
    boolean last = channel == Channel.LAST_AXIS;
    long other = channels == 0 ? 0 : n / channels;
    t.weight(floats(p.weight()))
        .gradient(p.gradient().pointer())
        .momentum(p.momentum() == null ? null : floats(p.momentum()))
        .mask(p.mask())
        .gate(p.gate())
        .working_copy(p.workingCopy() == null ? null : p.workingCopy().memory())
        .scale(p.scale() == null ? null : floats(p.scale().values()))
        .rows(last ? other : channels)
        .cols(last ? channels : other)
        .gradient_dtype(p.gradient().dtype().code())
        .working_copy_type(
            p.workingCopy() == null ? espalier.ESP_COPY_NONE : p.workingCopy().code())
        .channel(channel.code)
        .scale_given(p.scale() != null && p.scale().given() ? 1 : 0)
        .first(1);
  }

  private static FloatPointer floats(Tensor tensor) {
    return new FloatPointer(tensor.pointer());
  }

  /** The learning rate of the next steps; 0 or more. */
  public void learningRate(double value) {
    Options.atLeastZero("learning rate", value);
    open();
    options.learning_rate(value);
  }

  public double learningRate() {
    open();
    return options.learning_rate();
  }

  /**
   * Whether the momentum buffer of parameter {@code index} holds nothing yet. True until a first step
   * is done; set it to false for buffers that were restored.
   */
  public boolean first(int index) {
    open();
    return list.getPointer(checked(index)).first() != 0;
  }

  public void first(int index, boolean value) {
    open();
    list.getPointer(checked(index)).first(value ? 1 : 0);
  }

  /**
   * One step with the gradients as they are now.
   *
   * @throws IllegalArgumentException a given scale is not positive or has no finite reciprocal; nothing
   *     was written
   * @throws org.espalier.InputException clipping is on, skipping is off and a gradient is not finite;
   *     nothing was written
   */
  public Result step() {
    open();
    Status.check(espalier.esp_fused_sgd(list, parameters.size(), options, result));
    return new Result(
        result.norm(),
        result.clip_factor(),
        result.skipped() != 0,
        result.non_finite(),
        result.non_finite_channels());
  }

  private int checked(int index) {
    if (index < 0 || index >= parameters.size()) {
      throw new IndexOutOfBoundsException(index + " of " + parameters.size() + " parameters");
    }
    return index;
  }

  private void open() {
    if (closed) {
      throw new IllegalStateException("the optimizer is closed");
    }
  }

  @Override
  public void close() {
    closed = true;
    list.close();
    options.close();
    result.close();
  }
}
