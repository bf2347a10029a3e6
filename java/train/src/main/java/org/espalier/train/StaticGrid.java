package org.espalier.train;

import java.util.Map;
import java.util.TreeMap;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarOptional;
import org.bytedeco.pytorch.Tensor;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.TensorView;

/**
 * QuantizeLinear and DequantizeLinear (ONNX) with the scale and zero point of an {@link ActivationRange}:
 *
 * <pre>  q = clamp(rint(x / scale) + zero, 0, 255),  y = scale · (q − zero)</pre>
 *
 * <p>Ranges may follow what training sees: before a batch is quantized, min += momentum · (min of the batch
 * − min), and max likewise; padding does not count. Where they rest they may be learned.
 */
final class StaticGrid implements ActivationSimulation.Grid {
  private static final FakeQuantize GRID =
      FakeQuantize.affine(8).rounding(FakeQuantize.Rounding.DIVIDE).given();

  /** By name, so that their order is always the same. */
  private final Map<String, ActivationRange> ranges;

  private final FloatPointer scale = new FloatPointer(1).retainReference();
  private final IntPointer zeroPoint = new IntPointer(1).retainReference();
  private final FloatPointer running = new FloatPointer(2).retainReference();
  private double momentum;

  /** Null where ranges are not learned. */
  private LearnedRanges learned;

  StaticGrid(Map<String, ActivationRange> ranges) {
    this(ranges, false);
  }

  private StaticGrid(Map<String, ActivationRange> ranges, boolean shared) {
    this.ranges = shared ? ranges : new TreeMap<>(ranges);
  }

  /**
   * It has the same ranges, now and later. Only one of the two may be used while batches move them, and the
   * sibling does not learn.
   */
  @Override
  public StaticGrid sibling() {
    return new StaticGrid(ranges, true);
  }

  /** Makes parameters of the ranges. */
  void learn() {
    learned = new LearnedRanges(ranges);
  }

  /** The ranges as parameters, or null. */
  LearnedRanges learned() {
    return learned;
  }

  /** Whether batches move the ranges. */
  boolean moves() {
    return momentum > 0;
  }

  /** How far ranges move towards the batches to come; 0 holds them. */
  void momentum(double value) {
    momentum = value;
  }

  Map<String, ActivationRange> ranges() {
    return Map.copyOf(ranges);
  }

  /** Minimum and maximum of each activation, by name. */
  float[] values() {
    float[] values = new float[2 * ranges.size()];
    int i = 0;
    for (ActivationRange r : ranges.values()) {
      values[i++] = r.min();
      values[i++] = r.max();
    }
    return values;
  }

  /** Takes back what {@link #values} gave. */
  void values(float[] values) {
    int i = 0;
    for (Map.Entry<String, ActivationRange> e : ranges.entrySet()) {
      e.setValue(new ActivationRange(values[i], values[i + 1]));
      i += 2;
    }
    if (learned != null) {
      learned.take();
    }
  }

  @Override
  public Tensor quantize(String activation, Tensor x, Batch batch) {
    Tensor source = x.contiguous();
    if (moves()) {
      observe(activation, source, batch);
    }
    ActivationRange range = ranges.get(activation);
    scale.put(0, range.scale());
    zeroPoint.put(0, range.zeroPoint());
    // Half a step beyond the outermost integers is where rounding starts to clip.
    double low = (-range.zeroPoint() - 0.5) * range.scale();
    double high = (255 - range.zeroPoint() + 0.5) * range.scale();
    Tensor y =
        source.clamp(new ScalarOptional(new Scalar(low)), new ScalarOptional(new Scalar(high)));
    // The gradient of clamp needs its input alone, so y can take the values on the grid.
    GRID.run(
        FakeQuantize.Job.fake(TensorView.of(source), TensorView.of(y), null, scale, zeroPoint));
    if (learned != null && !moves() && GradMode.is_enabled()) {
      learned.saw(activation, source, y);
    }
    return y;
  }

  private void observe(String activation, Tensor x, Batch batch) {
    ActivationRange range = ranges.get(activation);
    running.put(0, range.min());
    running.put(1, range.max());
    // Zero is in every range, so zeroed padding leaves it alone.
    Tensor seen = batch.pads(x) ? x.detach().mul(batch.mask()) : x;
    FakeQuantize.affine(8)
        .rounding(FakeQuantize.Rounding.DIVIDE)
        .movingAverage((float) momentum)
        .run(
            new FakeQuantize.Job(TensorView.of(seen), null, null, null, scale, zeroPoint, running));
    ranges.put(
        activation, new ActivationRange(Math.min(0, running.get(0)), Math.max(0, running.get(1))));
  }

  @Override
  public void close() {
    scale.close();
    zeroPoint.close();
    running.close();
    if (learned != null) {
      learned.close();
    }
  }
}
