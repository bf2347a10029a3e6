package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.op.Channel;
import org.espalier.op.FusedAdamW;
import org.espalier.op.FusedSgd;
import org.espalier.op.FusedStep;
import org.espalier.op.Scale;
import org.espalier.op.StepResult;
import org.espalier.op.WorkingCopy;
import org.espalier.torch.TorchDevice;
import org.espalier.train.QuantizedWeight.EndGradients;

/** The optimizer of one stage: one native call for all parameters, with its state. */
final class Update implements AutoCloseable {
  private final List<TrainedWeight> weights;
  private final List<TrainingBuffer> states = new ArrayList<>();
  private final List<Tensor> gradients = new ArrayList<>();

  /** The weights whose scales are learned. The optimizer has the ends of their grids behind all weights. */
  private final List<TrainedWeight> learned;

  /** What writes the gradients of those ends. */
  private final List<EndGradients> learning = new ArrayList<>();

  /** Where ranges of activations are learned: the last parameter of all; else null. */
  private final StaticGrid ranges;

  /** How many tensors are moved. */
  private final int parameters;

  private final FusedStep step;
  private final TorchDevice device;

  /**
   * An optimizer of weights.
   *
   * @param ranges whose ranges are parameters too; null where there are none
   * @param device where all of them are
   */
  Update(List<TrainedWeight> weights, StaticGrid ranges, Optimizer optimizer, TorchDevice device) {
    this.ranges = ranges;
    this.weights = List.copyOf(weights);
    this.device = device;
    this.learned = weights.stream().filter(w -> w.ends() != null).toList();
    for (TrainedWeight w : weights) {
      // Retained: the scope of a step must not free it.
      Tensor gradient = torch.zeros_like(w.parameter.tensor()).retainReference();
      w.parameter.tensor().mutable_grad().put(gradient);
      gradients.add(gradient);
      if (w.ends() != null) {
        learning.add(w.learningEnds(gradient));
      }
    }
    List<FusedSgd.Parameter> moved = moved();
    parameters = moved.size();
    step =
        optimizer instanceof Optimizer.Sgd s
            ? sgd(moved, s)
            : adamW(moved, (Optimizer.AdamW) optimizer);
  }

  /** All that the optimizer moves: weights, then ends of grids, then ranges. */
  private List<FusedSgd.Parameter> moved() {
    List<FusedSgd.Parameter> moved = new ArrayList<>();
    for (int i = 0; i < weights.size(); i++) {
      TrainedWeight w = weights.get(i);
      if (w.rests()) {
        continue;
      }
      FusedSgd.Parameter p =
          FusedSgd.Parameter.of(w.latent().tensor(), device.view(gradients.get(i)), null)
              .withMask(w.maskBits())
              .withGate(w.gateBits());
      moved.add(
          w.isRoundedInStep()
              ? p.withWorkingCopy(WorkingCopy.of(w.working.tensor()), scale(w))
              : p);
    }
    for (TrainedWeight w : learned) {
      moved.add(FusedSgd.Parameter.of(w.ends().tensor(), w.endGradients().tensor(), null));
    }
    if (ranges != null) {
      LearnedRanges l = ranges.learned();
      moved.add(FusedSgd.Parameter.of(l.ends().tensor(), l.gradients().tensor(), null));
    }
    return moved;
  }

  private FusedSgd sgd(List<FusedSgd.Parameter> moved, Optimizer.Sgd s) {
    if (s.momentum() > 0) {
      moved.replaceAll(p -> p.withMomentum(state(p)));
    }
    return new FusedSgd(
        moved,
        FusedSgd.Options.of(s.learningRate())
            .withMomentum(s.momentum())
            .withWeightDecay(s.weightDecay())
            .withNesterov(s.nesterov())
            .withMaxNorm(s.maxNorm())
            .withSkipNonFinite(true));
  }

  private FusedAdamW adamW(List<FusedSgd.Parameter> moved, Optimizer.AdamW a) {
    return new FusedAdamW(
        moved.stream().map(p -> FusedAdamW.Parameter.of(p, state(p), state(p))).toList(),
        FusedAdamW.Options.of(a.learningRate())
            .withBetas(a.beta1(), a.beta2())
            .withEpsilon(a.epsilon())
            .withWeightDecay(a.weightDecay())
            .withMaxNorm(a.maxNorm())
            .withSkipNonFinite(true));
  }

  private static Scale scale(TrainedWeight w) {
    Channel channel =
        w.channelAxis() < 0
            ? Channel.TENSOR
            : Channel.ofAxis(w.channelAxis(), w.working.tensor().rank());
    return new Scale(w.scales().tensor(), channel, true);
  }

  private org.espalier.device.Tensor state(FusedSgd.Parameter p) {
    TrainingBuffer state = TrainingBuffer.zeros(device, p.weight().elements());
    states.add(state);
    return state.tensor();
  }

  /**
   * One step.
   *
   * @throws NonFiniteLossException where a gradient is NaN or infinite, naming the parameter; nothing
   *     was written
   */
  StepResult step(double learningRate) {
    learning.forEach(EndGradients::run);
    if (ranges != null) {
      ranges.learned().learn();
    }
    step.learningRate(learningRate);
    StepResult result = device.step(step);
    if (result.skipped()) {
      throw new NonFiniteLossException(
          result.nonFinite()
              + " entries of gradients are NaN or infinite, those of "
              + firstNonFinite()
              + " among them");
    }
    // Learned scales are known only now, so the working weights are written after the step.
    learned.forEach(TrainedWeight::followEnds);
    weights.stream()
        .filter(w -> w.ends() == null && !w.isRoundedInStep())
        .forEach(TrainedWeight::renew);
    weights.forEach(TrainedWeight::bringBack);
    if (ranges != null) {
      if (ranges.moves()) {
        ranges.learned().take();
      } else {
        ranges.learned().follow();
      }
    }
    return result;
  }

  private String firstNonFinite() {
    for (int i = 0; i < weights.size(); i++) {
      if (!torch.isfinite(gradients.get(i)).all().item_bool()) {
        return weights.get(i).name();
      }
    }
    for (TrainedWeight w : learned) {
      for (float gradient : w.endGradients().values()) {
        if (!Float.isFinite(gradient)) {
          return "the scales of " + w.name();
        }
      }
    }
    return "the ranges of activations";
  }

  /** The steps that the state of a parameter has seen. Of SGD it is known only whether there were any: 0 or 1. */
  private long steps(int index) {
    return step instanceof FusedAdamW adamW
        ? adamW.steps(index)
        : ((FusedSgd) step).first(index) ? 0 : 1;
  }

  private void steps(int index, long value) {
    if (step instanceof FusedAdamW adamW) {
      adamW.steps(index, value);
    } else {
      ((FusedSgd) step).first(index, value == 0);
    }
  }

  /** Writes the optimizer's state. */
  void save(DataOutputStream out) throws IOException {
    for (int i = 0; i < parameters; i++) {
      out.writeLong(steps(i));
    }
    for (TrainingBuffer state : states) {
      state.write(out);
    }
  }

  /** Reads what {@link #save} wrote for the same parameters and settings. */
  void restore(DataInputStream in) throws IOException {
    for (int i = 0; i < parameters; i++) {
      steps(i, in.readLong());
    }
    for (TrainingBuffer state : states) {
      state.read(in);
    }
  }

  void zeroGradients() {
    gradients.forEach(Tensor::zero_);
  }

  @Override
  public void close() {
    step.close();
    learning.forEach(EndGradients::close);
    states.forEach(TrainingBuffer::close);
    for (int i = 0; i < weights.size(); i++) {
      weights.get(i).parameter.tensor().mutable_grad().put(new Tensor());
      gradients.get(i).close();
    }
  }
}
