package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.ScaleGradients;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;

/**
 * A parameter with what training keeps beside it. Float parameters are trained in place. A quantized one
 * has latent weights and scales of its own, and what forward reads is on the grid:
 *
 * <pre>  working = scale · clamp(rint(latent · (1/scale)), −qmax, qmax)</pre>
 */
final class TrainedWeight implements AutoCloseable {
  /** Its scale has a reciprocal. */
  private static final float SMALLEST_END = 0x1p-100f;

  final Parameter parameter;
  final TrainingBuffer working;
  final long elements;
  private final TorchDevice device;

  /** One bit a weight, 1 = kept; null where nothing was pruned. */
  private TrainingBuffer mask;

  /** Null where the parameter is float: its working weights are the latent ones. */
  private TrainingBuffer latent;

  private TrainingBuffer scales;

  /** Where scales are learned: qmax · scale, the largest weight of each channel; else null. */
  private TrainingBuffer ends;

  private TrainingBuffer endGradients;
  private TrainingBuffer gate;

  /** Writes working weights and gate of the latent ones; null where the parameter is float. */
  private FakeQuantize.Batch rounding;

  private int channelAxis = -1;
  private int qmax;

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
    return latent != null;
  }

  /** What the optimizer updates. */
  TrainingBuffer latent() {
    return latent == null ? working : latent;
  }

  TrainingBuffer scales() {
    return scales;
  }

  int channelAxis() {
    return channelAxis;
  }

  /**
   * Puts the weight on a grid. Each latent weight starts at the middle of its integer's step: there the
   * work of compensated rounding is kept until the gradient has moved a weight by half a step.
   *
   * @param axis along which the scales lie; −1 for one scale
   * @param largest the integers are in [−largest, largest]
   */
  void quantize(int axis, int largest, byte[] integers, float[] scale) {
    quantize(axis, largest, integers, scale, false);
  }

  /**
   * Puts the weight on a grid whose scales may be learned.
   *
   * @param learn whether {@link #ends} are parameters
   */
  void quantize(int axis, int largest, byte[] integers, float[] scale, boolean learn) {
    long[] shape = working.tensor().shape();
    channelAxis = axis;
    qmax = largest;
    latent = TrainingBuffer.zeros(device, shape);
    scales = TrainingBuffer.zeros(device, scale.length);
    gate = TrainingBuffer.bits(device, elements);
    scales.set(scale);
    if (learn) {
      ends = TrainingBuffer.zeros(device, scale.length);
      endGradients = TrainingBuffer.zeros(device, scale.length);
      float[] end = new float[scale.length];
      for (int c = 0; c < scale.length; c++) {
        end[c] = qmax * scale[c];
      }
      ends.set(end);
      takeEnds();
    }
    float[] steps = scales.values();
    long inner =
        axis < 0 ? elements : LongStream.of(shape).skip(axis + 1L).reduce(1, (a, b) -> a * b);
    latent.set(
        middles -> {
          for (int i = 0; i < integers.length; i++) {
            middles.put(integers[i] * steps[(int) (i / inner % steps.length)]);
          }
        });
    rounding =
        grid()
            .batch(
                List.of(
                    FakeQuantize.Job.fake(
                        latent.tensor(), working.tensor(), gate.bytes(), scales.floats(), null)));
    renew();
  }

  /** The end of each channel's grid, qmax · scale, where scales are learned; else null. */
  TrainingBuffer ends() {
    return ends;
  }

  /** What {@link #learningEnds} writes. */
  TrainingBuffer endGradients() {
    return endGradients;
  }

  /**
   * What writes the gradients of the ends, from the gradient of the working weights. A step of SGD then moves the
   * scales as Esser et al. (Learned Step Size Quantization, 2020) have it, their factor included: a change of
   * an end is qmax times one of the scale, and so is its gradient here.
   *
   * @return to be closed before this
   */
  ScaleGradients learningEnds(Tensor gradient) {
    FakeQuantize grid = grid();
    return grid.scaleGradients(
        List.of(
            new ScaleGradients.Job(
                latent.tensor(),
                gradient,
                null,
                scales.floats(),
                null,
                endGradients.floats(),
                null,
                qmax * grid.scaleGradientFactor(latent.tensor()))));
  }

  /** Takes the scales from the ends, of which a step takes half at most, and renews what forward reads. */
  void followEnds() {
    rescale(0.5f);
    renew();
  }

  /** Takes the scales from ends that were set. */
  void takeEnds() {
    rescale(0);
  }

  private void rescale(float least) {
    float[] end = ends.values();
    float[] scale = scales.values();
    for (int c = 0; c < end.length; c++) {
      end[c] = Math.max(Math.max(end[c], least * qmax * scale[c]), SMALLEST_END);
      scale[c] = end[c] / qmax;
    }
    ends.set(end);
    scales.set(scale);
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

  /** Writes working weights and gate of the latent ones as they are. */
  void renew() {
    if (rounding != null) {
      device.run(rounding);
    }
  }

  /** The integers of the working weights. */
  byte[] integers() {
    try (TrainingBuffer integers = TrainingBuffer.zeros(device, (elements + 3) / 4);
        FakeQuantize.Batch real =
            grid()
                .batch(
                    List.of(
                        FakeQuantize.Job.real(
                            latent.tensor(), integers.bytes(), scales.floats(), null)))) {
      device.run(real);
      return integers.firstBytes(Math.toIntExact(elements));
    }
  }

  private FakeQuantize grid() {
    FakeQuantize grid = FakeQuantize.symmetric(-qmax, qmax, qmax).given();
    return channelAxis < 0 ? grid : grid.perChannel(channelAxis);
  }

  BytePointer gateBits() {
    return gate == null ? null : gate.bytes();
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
    float[] now = working.values();
    double error = 0;
    double square = 0;
    for (int i = 0; i < elements; i++) {
      double d = (double) now[i] - then.get(i);
      error += d * d;
      square += (double) then.get(i) * then.get(i);
    }
    double low = Double.NaN;
    double high = Double.NaN;
    if (isQuantized()) {
      low = Double.POSITIVE_INFINITY;
      high = 0;
      for (float s : scales.values()) {
        low = Math.min(low, s);
        high = Math.max(high, s);
      }
    }
    return new LayerReport(
        name(),
        LongStream.of(working.tensor().shape()).boxed().toList(),
        (double) zeros() / elements,
        isQuantized() ? qmax == 127 ? 8 : 7 : 32,
        low,
        high,
        square == 0 ? 0 : Math.sqrt(error / square));
  }

  /** Writes what {@link #restore} reads. */
  void save(DataOutputStream out) throws IOException {
    latent().write(out);
    if (isQuantized()) {
      scales.write(out);
      if (ends != null) {
        ends.write(out);
      }
    }
    out.writeBoolean(mask != null);
    if (mask != null) {
      mask.write(out);
    }
  }

  /** Takes what was saved of a weight that lies on a grid where this one does. */
  void restore(DataInputStream in) throws IOException {
    latent().read(in);
    if (isQuantized()) {
      scales.read(in);
      if (ends != null) {
        ends.read(in);
      }
    }
    if (in.readBoolean()) {
      makeMask();
      mask.read(in);
    }
    renew();
  }

  @Override
  public void close() {
    if (rounding != null) {
      rounding.close();
    }
    for (TrainingBuffer m : new TrainingBuffer[] {mask, latent, scales, gate, ends, endGradients}) {
      if (m != null) {
        m.close();
      }
    }
  }
}
