package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.espalier.compress.onnx.IntegerEnds;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.op.MagnitudePrune;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;

/**
 * A parameter with what training keeps beside it. Float parameters are trained in place. What forward reads of a quantized one is
 * on its grid, and {@link LatentWeights} beside it are trained or, where {@link RestingIntegers} do, scales alone.
 */
final class TrainedWeight implements AutoCloseable {
  final Parameter parameter;
  final TrainingBuffer working;
  final long elements;
  private final TorchDevice device;

  /** One bit a weight, 1 = kept; null where nothing was pruned. */
  private TrainingBuffer mask;

  /** Null where the parameter is float. */
  private QuantizedWeight quantized;

  /** The same where the grid came with the model; else null. */
  private LatentWeights given;

  TrainedWeight(Parameter parameter, TorchDevice device) {
    this.parameter = parameter;
    this.device = device;
    this.working = TrainingBuffer.of(device, parameter.tensor());
    this.elements = working.elements();
  }

  String name() {
    return parameter.name();
  }

  /** Whether it is looked up in and nothing else. */
  boolean isTable() {
    return parameter.kind() == Parameter.Kind.EMBEDDING;
  }

  boolean isQuantized() {
    return quantized != null;
  }

  /** What the optimizer updates. */
  TrainingBuffer latent() {
    return isQuantized() && !rests() ? quantized.latent() : working;
  }

  TrainingBuffer scales() {
    return quantized.scales();
  }

  /** The axis along which the scales lie; −1 for one scale. Not of a grid of blocks. */
  int channelAxis() {
    return quantized.grid().axis();
  }

  /** Whether no weight is trained, but the scales of its blocks. */
  boolean rests() {
    return quantized instanceof RestingIntegers;
  }

  /** Whether an optimizer can write the working weights in its step; else they are renewed after it. */
  boolean isRoundedInStep() {
    return isQuantized()
        && ends() == null
        && quantized.grid().block() == 0
        && quantized.grid().least() == IntegerEnds.USUAL.least()
        && quantized.grid().largest() == IntegerEnds.USUAL.largest();
  }

  /**
   * Puts the weight on a grid.
   *
   * @param learn whether {@link #ends} are parameters: beside latent weights or, of a grid of blocks, in their place
   */
  void quantize(WeightGrid grid, byte[] integers, float[] scales, boolean learn) {
    quantized =
        learn && grid.block() > 0
            ? new RestingIntegers(grid, parameter.tensor(), integers, scales, device)
            : new LatentWeights(grid, working, integers, scales, learn, device);
    renew();
  }

  /** Has the weight stay on a grid with scales for each index of an axis that came with the model. */
  void stayOn(WeightGrid grid, byte[] integers, float[] scales) {
    given = new LatentWeights(grid, working, integers, scales, false, device);
    quantized = given;
    renew();
  }

  /** After a step, has a weight on a grid that came with the model lie within its ends. */
  void bringBack() {
    if (given != null) {
      given.bringBack();
    }
  }

  /** The scales as the grid has them. */
  float[] gridScales() {
    return quantized.gridScales();
  }

  /** What the optimizer moves where scales are learned; else null. */
  TrainingBuffer ends() {
    return isQuantized() ? quantized.ends() : null;
  }

  /** What {@link #learningEnds} writes. */
  TrainingBuffer endGradients() {
    return quantized.endGradients();
  }

  /** See {@link QuantizedWeight#learningEnds}. */
  QuantizedWeight.EndGradients learningEnds(Tensor gradient) {
    return quantized.learningEnds(gradient);
  }

  /** Takes the scales from the ends, of which a step takes half at most, and renews what forward reads. */
  void followEnds() {
    quantized.follow(0.5f);
    renew();
  }

  /** Takes the scales from ends that were set. */
  void takeEnds() {
    quantized.follow(0);
  }

  /** Gives the weight a mask that keeps everything, if it has none yet. */
  void makeMask() {
    if (mask == null) {
      mask = TrainingBuffer.bits(device, elements);
      mask.setBits();
    }
  }

  /** Gives the weight the mask that keeps what is not 0. */
  void maskZeros() {
    makeMask();
    device.prune(
        List.of(MagnitudePrune.Weights.of(name(), latent().tensor()).maskOut(maskBits())),
        new MagnitudePrune.Threshold(Float.MIN_VALUE));
  }

  /** How many working weights are exactly 0. */
  long zeros() {
    long zeros = 0;
    for (float value : working.values()) {
      zeros += value == 0 ? 1 : 0;
    }
    return zeros;
  }

  /** Writes what forward reads. */
  void renew() {
    if (isQuantized()) {
      quantized.renew();
    }
  }

  /** The integers of the working weights. */
  byte[] integers() {
    return quantized.integers();
  }

  BytePointer gateBits() {
    return isQuantized() ? quantized.gateBits() : null;
  }

  /** The mask's memory, or null. */
  TrainingBuffer mask() {
    return mask;
  }

  BytePointer maskBits() {
    return mask == null ? null : mask.bytes();
  }

  /**
   * What became of the weights.
   *
   * @param then what they were at the start of the plan, after equalization
   */
  LayerReport report(FloatBuffer then) {
    double low = Double.NaN;
    double high = Double.NaN;
    if (isQuantized()) {
      low = Double.POSITIVE_INFINITY;
      high = 0;
      for (float s : quantized.scales().values()) {
        low = Math.min(low, Math.abs(s));
        high = Math.max(high, Math.abs(s));
      }
    }
    return LayerReport.of(
        name(),
        LongStream.of(working.tensor().shape()).boxed().toList(),
        then,
        FloatBuffer.wrap(working.values()),
        isQuantized() ? quantized.grid().bits() : 32,
        low,
        high);
  }

  /** Writes what {@link #restore} reads. */
  void save(DataOutputStream out) throws IOException {
    if (isQuantized()) {
      quantized.write(out);
    } else {
      working.write(out);
    }
    out.writeBoolean(mask != null);
    if (mask != null) {
      mask.write(out);
    }
  }

  /** Takes what was saved of a weight that lies on a grid where this one does. */
  void restore(DataInputStream in) throws IOException {
    if (isQuantized()) {
      quantized.read(in);
    } else {
      working.read(in);
    }
    if (in.readBoolean()) {
      makeMask();
      mask.read(in);
    }
    renew();
  }

  @Override
  public void close() {
    if (mask != null) {
      mask.close();
    }
    if (isQuantized()) {
      quantized.close();
    }
  }
}
