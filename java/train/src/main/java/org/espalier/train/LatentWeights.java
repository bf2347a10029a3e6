package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.pytorch.Tensor;
import org.espalier.compress.onnx.IntegerEnds;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.op.FakeQuantize;
import org.espalier.op.ScaleGradients;
import org.espalier.torch.TorchDevice;

/**
 * Latent weights that the optimizer moves, and scales that rest or are learned:
 *
 * <pre>  w = scale · clamp(rint(latent · (1/scale)), least, largest)</pre>
 */
final class LatentWeights implements QuantizedWeight {
  /** The smallest end of a grid: its scale still has a finite reciprocal. */
  private static final float SMALLEST_END = 0x1p-100f;

  private final WeightGrid grid;
  private final TorchDevice device;
  private final long[] shape;
  private final TrainingBuffer latent;

  /** Positive. */
  private final TrainingBuffer scales;

  /**
   * Of a grid of blocks, else null: integers are kept from 0 on, so a negative scale is a positive one with the zero point {@code
   * largest} in the place of {@code −least}.
   */
  private final TrainingBuffer zeroPoints;

  /** One bit a weight: whether its gradient passes. */
  private final TrainingBuffer gate;

  /** Where scales are learned: largest · scale, the largest weight of each channel; else null. */
  private final TrainingBuffer ends;

  private final TrainingBuffer endGradients;

  /** Writes working weights and gate. */
  private final FakeQuantize.Batch rounding;

  /** Room for the bits of the gate. */
  private final long[] words;

  /**
   * What one job of a kernel goes through.
   *
   * @param from its first weight
   * @param shape with one scale for each index of its axis, see {@link #quantizer}
   * @param scale its first scale
   */
  private record Part(long from, long[] shape, long scale) {}

  /**
   * Each latent weight starts at the middle of its integer's step: there the work of compensated rounding is kept until the
   * gradient has moved a weight by half a step.
   *
   * @param working what forward reads
   * @param given the scales; of blocks they may be negative
   * @param learn whether {@link #ends} are parameters, which those of blocks cannot be
   */
  LatentWeights(
      WeightGrid grid,
      TrainingBuffer working,
      byte[] integers,
      float[] given,
      boolean learn,
      TorchDevice device) {
    this.grid = grid;
    this.device = device;
    shape = working.tensor().shape();
    latent = TrainingBuffer.zeros(device, shape);
    scales = TrainingBuffer.zeros(device, given.length);
    words = new long[(integers.length + Long.SIZE - 1) / Long.SIZE];
    gate = TrainingBuffer.zeros(device, 2L * words.length);
    zeroPoints = grid.block() > 0 ? TrainingBuffer.zeros(device, given.length) : null;
    endGradients = learn ? TrainingBuffer.zeros(device, given.length) : null;
    ends = learn ? TrainingBuffer.zeros(device, given.length) : null;
    setScales(given);
    if (learn) {
      float[] end = scales.values();
      for (int c = 0; c < end.length; c++) {
        end[c] *= grid.largest();
      }
      ends.set(end);
      follow(0);
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
  }

  private void setScales(float[] given) {
    float[] steps = new float[given.length];
    int[] zeros = new int[given.length];
    for (int c = 0; c < given.length; c++) {
      steps[c] = Math.abs(given[c]);
      zeros[c] = given[c] < 0 ? grid.largest() : -grid.least();
    }
    scales.set(steps);
    if (zeroPoints != null) {
      zeroPoints.set(zeros);
    }
  }

  @Override
  public WeightGrid grid() {
    return grid;
  }

  @Override
  public TrainingBuffer latent() {
    return latent;
  }

  @Override
  public TrainingBuffer scales() {
    return scales;
  }

  @Override
  public float[] gridScales() {
    float[] steps = scales.values();
    if (zeroPoints != null) {
      int[] zeros = zeroPoints.integers();
      for (int c = 0; c < steps.length; c++) {
        steps[c] = zeros[c] == grid.largest() ? -steps[c] : steps[c];
      }
    }
    return steps;
  }

  @Override
  public BytePointer gateBits() {
    return gate.bytes();
  }

  /** The number of consecutive weights for each index of the grid's axis. */
  private long inner() {
    return LongStream.of(shape).skip(grid.axis() + 1L).reduce(1, (a, b) -> a * b);
  }

  /** The index of each weight's scale. */
  private int[] places() {
    int[] places = new int[Math.toIntExact(latent.elements())];
    if (grid.axis() < 0) {
      return places;
    }
    int length = (int) shape[grid.axis()];
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
      return List.of(new Part(0, shape, 0));
    }
    if (isInRows()) {
      return List.of(new Part(0, new long[] {latent.elements() / grid.block(), grid.block()}, 0));
    }
    List<Part> parts = new ArrayList<>();
    long rows = shape[0];
    for (long row = 0; row < rows; row += grid.block()) {
      long[] block = {Math.min(grid.block(), rows - row), inner()};
      parts.add(new Part(row * inner(), block, row / grid.block() * inner()));
    }
    return parts;
  }

  /** Whether the weights of a block lie behind each other; else they lie below each other, in the columns of a matrix. */
  private boolean isInRows() {
    return grid.axis() == shape.length - 1;
  }

  private FloatPointer scalesOf(Part part) {
    return scales.floats().position(part.scale);
  }

  private IntPointer zeroPointsOf(Part part) {
    return zeroPoints == null ? null : zeroPoints.ints().position(part.scale);
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

  @Override
  public TrainingBuffer ends() {
    return ends;
  }

  @Override
  public TrainingBuffer endGradients() {
    return endGradients;
  }

  /**
   * A step of SGD then moves the scales as Esser et al. (Learned Step Size Quantization, 2020) have it, their factor included: a
   * change of an end is {@code largest} times one of the scale, and so is its gradient here.
   */
  @Override
  public EndGradients learningEnds(Tensor gradient) {
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

  @Override
  public void follow(float least) {
    float[] end = ends.values();
    float[] scale = scales.values();
    for (int c = 0; c < end.length; c++) {
      end[c] = Math.max(Math.max(end[c], least * grid.largest() * scale[c]), SMALLEST_END);
      scale[c] = end[c] / grid.largest();
    }
    ends.set(end);
    scales.set(scale);
  }

  @Override
  public void renew() {
    device.run(rounding);
  }

  /** Brings weights that a step has moved beyond the ends of the grid back to them: see {@link IntegerEnds#bringBack}. */
  void bringBack() {
    int elements = Math.toIntExact(latent.elements());
    gate.get(words);
    if (IntegerEnds.allPass(words, elements)) {
      return;
    }
    IntegerEnds ends = new IntegerEnds(grid.least(), grid.largest());
    IntegerEnds.Steps steps = IntegerEnds.Steps.along(grid.axis(), scales.values(), elements);
    latent.change(values -> ends.bringBack(words, values, steps));
    gate.setBits();
  }

  @Override
  public byte[] integers() {
    byte[] integers;
    try (TrainingBuffer found = TrainingBuffer.zeros(device, (latent.elements() + 3) / 4)) {
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
      integers = found.firstBytes(Math.toIntExact(latent.elements()));
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

  @Override
  public void write(DataOutputStream out) throws IOException {
    latent.write(out);
    scales.write(out);
    if (zeroPoints != null) {
      zeroPoints.write(out);
    }
    if (ends != null) {
      ends.write(out);
    }
  }

  @Override
  public void read(DataInputStream in) throws IOException {
    latent.read(in);
    scales.read(in);
    if (zeroPoints != null) {
      zeroPoints.read(in);
    }
    if (ends != null) {
      ends.read(in);
    }
  }

  @Override
  public void close() {
    rounding.close();
    for (TrainingBuffer m :
        new TrainingBuffer[] {latent, scales, zeroPoints, gate, ends, endGradients}) {
      if (m != null) {
        m.close();
      }
    }
  }
}
