package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.op.FakeQuantize;
import org.espalier.op.ScaleGradients;
import org.espalier.torch.TorchDevice;

/**
 * Ranges of activations as parameters: LSQ (Esser et al., 2020) for the step, LSQ+ (Bhalgat et al., 2020)
 * for where zero lies. With s = (max − min) / 255 and z = −255 · min / (max − min)
 *
 * <pre>
 *   dL/dmax =   dL/ds / 255 + dL/dz · 255 · min / (max − min)²
 *   dL/dmin = − dL/ds / 255 − dL/dz · 255 · max / (max − min)²
 * </pre>
 *
 * <p>The optimizer holds each end in a unit of its own, a power of two that makes it about as large as a weight
 * at first: one learning rate then suits both, with AdamW too. The steps of SGD are those of LSQ, its factor
 * included.
 */
final class LearnedRanges implements AutoCloseable {
  private static final FakeQuantize GRID =
      FakeQuantize.affine(8).rounding(FakeQuantize.Rounding.DIVIDE).given();

  /** An end starts between this and half of it, in its unit. */
  private static final double FIRST = 0x1p-4;

  /** The narrowest range; its scale has a reciprocal. */
  private static final float NARROWEST = 0x1p-100f;

  private final Map<String, ActivationRange> ranges;
  private final List<String> names;
  private final float[] units;
  private final TorchDevice device;
  private final TrainingBuffer ends;
  private final TrainingBuffer gradients;

  /** What this step's forward pass quantized. */
  private final List<Seen> seen = new ArrayList<>();

  /** What reads that, of the last step; null before the first. */
  private ScaleGradients reading;

  private int readCount;

  private record Seen(int index, Tensor x, Tensor y) {}

  /**
   * Learns ranges.
   *
   * @param ranges which {@link #follow} moves
   */
  LearnedRanges(Map<String, ActivationRange> ranges, TorchDevice device) {
    this.ranges = ranges;
    this.device = device;
    names = List.copyOf(ranges.keySet());
    units = new float[names.size()];
    for (int i = 0; i < units.length; i++) {
      ActivationRange r = ranges.get(names.get(i));
      double width = Math.max((double) r.max() - r.min(), NARROWEST);
      units[i] = (float) Math.scalb(1 / FIRST, Math.getExponent(width) + 1);
    }
    ends = TrainingBuffer.zeros(device, Math.max(1, 2L * units.length));
    gradients = TrainingBuffer.zeros(device, ends.elements());
    take();
  }

  /** Minimum and maximum of each range, in their units: what the optimizer moves. */
  TrainingBuffer ends() {
    return ends;
  }

  /** What {@link #learn} writes. */
  TrainingBuffer gradients() {
    return gradients;
  }

  /** Writes what belongs to a saved run beside the ranges. */
  void writeUnits(DataOutputStream out) throws IOException {
    for (float unit : units) {
      out.writeFloat(unit);
    }
  }

  /** Reads what {@link #writeUnits} wrote for the same ranges. */
  void readUnits(DataInputStream in) throws IOException {
    for (int i = 0; i < units.length; i++) {
      units[i] = in.readFloat();
      if (!(units[i] > 0 && Float.isFinite(units[i]))) {
        throw new InputException("the saved run is damaged: a unit of " + units[i]);
      }
    }
    take();
  }

  /** Sets the ends to the present ranges. */
  void take() {
    float[] values = new float[(int) ends.elements()];
    for (int i = 0; i < units.length; i++) {
      ActivationRange r = ranges.get(names.get(i));
      values[2 * i] = r.min() / units[i];
      values[2 * i + 1] = r.max() / units[i];
    }
    ends.set(values);
  }

  /** An activation before and on its grid, whose gradient the next {@link #learn} reads. */
  void saw(String activation, Tensor x, Tensor y) {
    if (y.requires_grad()) {
      y.retain_grad();
    } else {
      y.requires_grad_(true); // an input of the model has no gradient of its own
    }
    // Retained: the graph frees what a node made before the backward pass.
    seen.add(
        new Seen(
            names.indexOf(activation),
            new Tensor(x).retainReference(),
            new Tensor(y).retainReference()));
  }

  /** Writes the gradients of the ends from what the backward pass left. */
  void learn() {
    int count = seen.size();
    float[] steps = new float[Math.max(1, count)];
    int[] zeros = new int[steps.length];
    boolean[] reached = new boolean[count];
    for (int i = 0; i < count; i++) {
      ActivationRange range = range(i);
      steps[i] = range.scale();
      zeros[i] = range.zeroPoint();
      // An activation that was always 0 has no width that could be another.
      reached[i] = seen.get(i).y.grad().defined() && range.max() - range.min() >= NARROWEST;
    }
    try (TrainingBuffer scales = TrainingBuffer.zeros(device, steps.length);
        TrainingBuffer zeroPoints = TrainingBuffer.zeros(device, steps.length);
        TrainingBuffer byScale = TrainingBuffer.zeros(device, steps.length);
        TrainingBuffer byZero = TrainingBuffer.zeros(device, steps.length)) {
      scales.set(steps);
      zeroPoints.set(zeros);
      List<ScaleGradients.Job> jobs = new ArrayList<>();
      for (int i = 0; i < count; i++) {
        if (reached[i]) {
          org.espalier.device.Tensor x = device.view(seen.get(i).x.detach());
          jobs.add(
              new ScaleGradients.Job(
                  x,
                  device.view(seen.get(i).y.grad().contiguous()),
                  null,
                  scales.floats().position(i),
                  zeroPoints.ints().position(i),
                  byScale.floats().position(i),
                  byZero.floats().position(i),
                  GRID.scaleGradientFactor(x)));
        }
      }
      if (!jobs.isEmpty()) {
        device.run(gradientsOf(jobs));
      }
      setGradients(reached, byScale.values(), byZero.values());
    } finally {
      forget();
    }
  }

  private ActivationRange range(int sight) {
    return ranges.get(names.get(seen.get(sight).index));
  }

  /**
   * Sets the gradients of the ends.
   *
   * @param reached which of {@link #seen} have a gradient
   * @param byScale gradients of their scales
   * @param byZero gradients of their zero points
   */
  private void setGradients(boolean[] reached, float[] byScale, float[] byZero) {
    float[] out = new float[(int) gradients.elements()];
    for (int i = 0; i < reached.length; i++) {
      if (!reached[i]) {
        continue;
      }
      int index = seen.get(i).index;
      ActivationRange range = range(i);
      // A change of an end moves the step by 1/255 of it in a step of SGD, as LSQ would.
      double factor = 255 * 255 / units[index];
      double width = range.max() - (double) range.min();
      double zero = byZero[i] * 255 / (width * width);
      double step = byScale[i] / 255;
      add(out, 2 * index, factor * (-step - zero * range.max()));
      add(out, 2 * index + 1, factor * (step + zero * range.min()));
    }
    gradients.set(out);
  }

  private ScaleGradients gradientsOf(List<ScaleGradients.Job> jobs) {
    if (reading != null && readCount == jobs.size()) {
      reading.replace(jobs);
      return reading;
    }
    if (reading != null) {
      reading.close();
    }
    reading = GRID.scaleGradients(jobs);
    readCount = jobs.size();
    return reading;
  }

  private static void add(float[] sums, int index, double value) {
    sums[index] = (float) (sums[index] + value);
  }

  /** Drops what the last forward pass left. */
  void forget() {
    for (Seen s : seen) {
      s.x.close();
      s.y.close();
    }
    seen.clear();
  }

  /** Moves the ranges to the ends after a step. Zero stays inside, and at most half of a width goes. */
  void follow() {
    float[] values = ends.values();
    for (int i = 0; i < units.length; i++) {
      ActivationRange old = ranges.get(names.get(i));
      float min = Math.min(0, values[2 * i] * units[i]);
      float max = Math.max(0, values[2 * i + 1] * units[i]);
      float least = Math.max(0.5f * (old.max() - old.min()), NARROWEST);
      if (max - min >= least && Float.isFinite(max - min)) {
        ranges.put(names.get(i), new ActivationRange(min, max));
      }
    }
    take();
  }

  @Override
  public void close() {
    forget();
    if (reading != null) {
      reading.close();
    }
    ends.close();
    gradients.close();
  }
}
