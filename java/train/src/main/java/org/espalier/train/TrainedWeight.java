package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.op.FakeQuantize;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.ScaleGradients;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;

/**
 * A parameter with what training keeps beside it. Float parameters are trained in place. A quantized one
 * has latent weights and scales of its own, and what forward reads is on the grid:
 *
 * <pre>  working = scale · clamp(rint(latent · (1/scale)), least, largest)</pre>
 *
 * <p>Where the scales of a grid of blocks are learned there are no latent weights: the integers rest.
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

  /** Null where the parameter is float or its integers rest: its working weights are the latent ones. */
  private TrainingBuffer latent;

  /** Positive, but where integers rest. */
  private TrainingBuffer scales;

  /**
   * Of latent weights on a grid of blocks, else null: integers are kept from 0 on, so a negative scale is a positive
   * one with the zero point {@code largest} in the place of {@code −least}.
   */
  private TrainingBuffer zeroPoints;

  /** Where integers rest; else null. */
  private RestingIntegers resting;

  /** Where scales are learned: largest · scale, the largest weight of each channel; else null. */
  private TrainingBuffer ends;

  private TrainingBuffer endGradients;
  private TrainingBuffer gate;

  /** Writes working weights and gate of the latent ones; null where the parameter is float. */
  private FakeQuantize.Batch rounding;

  /** Null where the parameter is float. */
  private WeightGrid grid;

  /**
   * What one job of a kernel goes through.
   *
   * @param from its first weight
   * @param shape with one scale for each index of its axis, see {@link #quantizer}
   * @param scale its first scale
   */
  private record Part(long from, long[] shape, long scale) {}

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
    return grid != null;
  }

  /** What the optimizer updates. */
  TrainingBuffer latent() {
    return latent == null ? working : latent;
  }

  TrainingBuffer scales() {
    return scales;
  }

  /** The axis along which the scales lie; −1 for one scale. Not of a grid of blocks. */
  int channelAxis() {
    return grid.axis();
  }

  /** Whether no weight is trained, but the scales of its blocks. */
  boolean rests() {
    return resting != null;
  }

  /** Whether an optimizer can write the working weights in its step; else they are renewed after it. */
  boolean isRoundedInStep() {
    return isQuantized() && ends == null && grid.block() == 0;
  }

  /**
   * Puts the weight on a grid. Each latent weight starts at the middle of its integer's step: there the
   * work of compensated rounding is kept until the gradient has moved a weight by half a step.
   *
   * @param learn whether {@link #ends} are parameters: beside latent weights or, of a grid of blocks, in their place
   */
  void quantize(WeightGrid on, byte[] integers, float[] scale, boolean learn) {
    grid = on;
    if (learn && grid.block() > 0) {
      resting = new RestingIntegers(grid, shape(), integers, scale, device);
      scales = resting.scales();
      ends = resting.moved();
      endGradients = resting.gradients();
      renew();
      return;
    }
    latent = TrainingBuffer.zeros(device, shape());
    scales = TrainingBuffer.zeros(device, scale.length);
    gate = TrainingBuffer.bits(device, elements);
    setScales(scale);
    if (learn) {
      endGradients = TrainingBuffer.zeros(device, scale.length);
      ends = TrainingBuffer.zeros(device, scale.length);
      float[] end = scales.values();
      for (int c = 0; c < end.length; c++) {
        end[c] *= grid.largest();
      }
      ends.set(end);
      takeEnds();
    }
    float[] steps = gridScales();
    int[] places = places();
    latent.set(
        middles -> {
          for (int i = 0; i < integers.length; i++) {
            middles.put(integers[i] * steps[places[i]]);
          }
        });
    List<FakeQuantize.Job> jobs = new ArrayList<>();
    for (Part part : parts()) {
      jobs.add(
          FakeQuantize.Job.fake(
              latent.part(part.from, part.shape),
              working.part(part.from, part.shape),
              gate.bytes().position(part.from / Byte.SIZE),
              scalesOf(part),
              zeroPointsOf(part)));
    }
    rounding = quantizer().batch(jobs);
    renew();
  }

  private void setScales(float[] given) {
    float[] steps = new float[given.length];
    int[] zeros = new int[given.length];
    for (int c = 0; c < given.length; c++) {
      steps[c] = Math.abs(given[c]);
      zeros[c] = given[c] < 0 ? grid.largest() : -grid.least();
    }
    scales.set(steps);
    if (grid.block() > 0) {
      zeroPoints = TrainingBuffer.zeros(device, given.length);
      zeroPoints.set(zeros);
    }
  }

  /** The scales as the grid has them. */
  float[] gridScales() {
    float[] steps = scales.values();
    if (zeroPoints != null) {
      int[] zeros = zeroPoints.integers();
      for (int c = 0; c < steps.length; c++) {
        steps[c] = zeros[c] == grid.largest() ? -steps[c] : steps[c];
      }
    }
    return steps;
  }

  private long[] shape() {
    return working.tensor().shape();
  }

  /** How many weights lie behind each other for each index of the grid's axis. */
  private long inner() {
    return LongStream.of(shape()).skip(grid.axis() + 1L).reduce(1, (a, b) -> a * b);
  }

  /** The index of each weight's scale. */
  private int[] places() {
    int[] places = new int[Math.toIntExact(elements)];
    if (grid.axis() < 0) {
      return places;
    }
    int length = (int) shape()[grid.axis()];
    int inner = (int) inner();
    if (grid.block() == 0) {
      Arrays.setAll(places, i -> i / inner % length);
      return places;
    }
    int blocks = (length + grid.block() - 1) / grid.block();
    for (int i = 0; i < places.length; i++) {
      int row = i / inner;
      places[i] = (row / length * blocks + row % length / grid.block()) * inner + i % inner;
    }
    return places;
  }

  private List<Part> parts() {
    if (grid.block() == 0) {
      return List.of(new Part(0, shape(), 0));
    }
    if (isInRows()) {
      return List.of(new Part(0, new long[] {elements / grid.block(), grid.block()}, 0));
    }
    List<Part> parts = new ArrayList<>();
    long rows = shape()[0];
    for (long row = 0; row < rows; row += grid.block()) {
      long[] shape = {Math.min(grid.block(), rows - row), inner()};
      parts.add(new Part(row * inner(), shape, row / grid.block() * inner()));
    }
    return parts;
  }

  /** Whether the weights of a block lie behind each other; else they lie below each other, in the columns of a matrix. */
  private boolean isInRows() {
    return grid.axis() == shape().length - 1;
  }

  private FloatPointer scalesOf(Part part) {
    return scales.floats().position(part.scale);
  }

  private IntPointer zeroPointsOf(Part part) {
    return zeroPoints == null ? null : zeroPoints.ints().position(part.scale);
  }

  /**
   * What the optimizer moves where scales are learned: the end of each channel's grid, largest · scale, or what {@link
   * RestingIntegers} has for it; else null.
   */
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
   * an end is {@code largest} times one of the scale, and so is its gradient here.
   *
   * @return to be closed before this
   */
  EndGradients learningEnds(org.bytedeco.pytorch.Tensor gradient) {
    if (rests()) {
      return new EndGradients(() -> resting.sumUp(gradient), () -> {});
    }
    FakeQuantize quantizer = quantizer();
    ScaleGradients gradients =
        quantizer.scaleGradients(
            List.of(
                new ScaleGradients.Job(
                    latent.tensor(),
                    device.view(gradient),
                    null,
                    scales.floats(),
                    null,
                    endGradients.floats(),
                    null,
                    grid.largest() * quantizer.scaleGradientFactor(latent.tensor()))));
    return new EndGradients(() -> device.run(gradients), gradients::close);
  }

  /** Writes the gradients of {@link #ends}, each time it is run. */
  record EndGradients(Runnable work, Runnable release) implements AutoCloseable {
    void run() {
      work.run();
    }

    @Override
    public void close() {
      release.run();
    }
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
    if (rests()) {
      resting.follow(least);
      return;
    }
    float[] end = ends.values();
    float[] scale = scales.values();
    for (int c = 0; c < end.length; c++) {
      end[c] = Math.max(Math.max(end[c], least * grid.largest() * scale[c]), SMALLEST_END);
      scale[c] = end[c] / grid.largest();
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
    if (rests()) {
      resting.multiply(parameter.tensor());
    } else if (rounding != null) {
      device.run(rounding);
    }
  }

  /** The integers of the working weights. */
  byte[] integers() {
    if (rests()) {
      return resting.values();
    }
    byte[] integers;
    try (TrainingBuffer found = TrainingBuffer.zeros(device, (elements + 3) / 4)) {
      List<FakeQuantize.Job> jobs = new ArrayList<>();
      for (Part part : parts()) {
        jobs.add(
            FakeQuantize.Job.real(
                latent.part(part.from, part.shape),
                found.bytes().position(part.from),
                scalesOf(part),
                zeroPointsOf(part)));
      }
      try (FakeQuantize.Batch real = quantizer().batch(jobs)) {
        device.run(real);
      }
      integers = found.firstBytes(Math.toIntExact(elements));
    }
    if (zeroPoints != null) {
      int[] zeros = zeroPoints.integers();
      int[] places = places();
      for (int i = 0; i < integers.length; i++) {
        int zero = zeros[places[i]];
        integers[i] = (byte) (zero == grid.largest() ? zero - integers[i] : integers[i] - zero);
      }
    }
    return integers;
  }

  /** What puts {@link #parts} on the grid. */
  private FakeQuantize quantizer() {
    if (grid.block() > 0) {
      return FakeQuantize.affine(0, grid.largest() - grid.least())
          .perChannel(isInRows() ? 0 : 1)
          .given();
    }
    FakeQuantize symmetric =
        FakeQuantize.symmetric(grid.least(), grid.largest(), grid.largest()).given();
    return grid.axis() < 0 ? symmetric : symmetric.perChannel(grid.axis());
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
        low = Math.min(low, Math.abs(s));
        high = Math.max(high, Math.abs(s));
      }
    }
    return new LayerReport(
        name(),
        LongStream.of(working.tensor().shape()).boxed().toList(),
        (double) zeros() / elements,
        isQuantized() ? grid.bits() : 32,
        low,
        high,
        square == 0 ? 0 : Math.sqrt(error / square));
  }

  /** Writes what {@link #restore} reads. */
  void save(DataOutputStream out) throws IOException {
    if (rests()) {
      resting.write(out);
    } else {
      latent().write(out);
    }
    if (isQuantized()) {
      scales.write(out);
      if (zeroPoints != null) {
        zeroPoints.write(out);
      }
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
    if (rests()) {
      resting.read(in);
    } else {
      latent().read(in);
    }
    if (isQuantized()) {
      scales.read(in);
      if (zeroPoints != null) {
        zeroPoints.read(in);
      }
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
    for (TrainingBuffer m :
        new TrainingBuffer[] {mask, latent, scales, zeroPoints, gate, ends, endGradients}) {
      if (m != null) {
        m.close();
      }
    }
    if (rests()) {
      resting.close();
    }
  }
}
