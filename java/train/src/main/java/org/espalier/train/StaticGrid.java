package org.espalier.train;

import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.StraightThrough;
import org.espalier.torch.TorchDevice;

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

  private final TorchDevice device;
  private final Map<String, Placed> placed = new HashMap<>();
  private final TrainingBuffer running;

  private final RepeatedQuantize quantizing;

  /** Moves ranges; null where they rest. */
  private RepeatedQuantize observing;

  /** Null where ranges are not learned. */
  private LearnedRanges learned;

  StaticGrid(Map<String, ActivationRange> ranges, TorchDevice device) {
    this(ranges, device, false);
  }

  private StaticGrid(Map<String, ActivationRange> ranges, TorchDevice device, boolean shared) {
    this.ranges = shared ? ranges : new TreeMap<>(ranges);
    this.device = device;
    running = TrainingBuffer.zeros(device, 2);
    quantizing = new RepeatedQuantize(GRID, device);
  }

  /** Scale and zero point of a range, where the kernels read them. */
  private static final class Placed {
    final TrainingBuffer scale;
    final TrainingBuffer zeroPoint;
    private ActivationRange range;

    Placed(TorchDevice device) {
      scale = TrainingBuffer.zeros(device, 1);
      zeroPoint = TrainingBuffer.zeros(device, 1);
    }

    /** Writes them where the range is another: a GPU waits for that. */
    void place(ActivationRange next) {
      if (!next.equals(range)) {
        scale.set(next.scale());
        zeroPoint.set(next.zeroPoint());
        range = next;
      }
    }

    /** What the memory holds is another's. */
    void forget() {
      range = null;
    }

    void close() {
      scale.close();
      zeroPoint.close();
    }
  }

  /**
   * It has the same ranges, now and later. Only one of the two may be used while batches move them, and the
   * sibling does not learn.
   */
  @Override
  public StaticGrid sibling() {
    return new StaticGrid(ranges, device, true);
  }

  /** Makes parameters of the ranges. */
  void learn() {
    learned = new LearnedRanges(ranges, device);
  }

  /** The ranges as parameters, or null. */
  LearnedRanges learned() {
    return learned;
  }

  /** Whether batches move the ranges. */
  boolean moves() {
    return observing != null;
  }

  /** How far ranges move towards the batches to come; 0 holds them. */
  void momentum(double value) {
    if (observing != null) {
      observing.close();
    }
    observing =
        value == 0
            ? null
            : new RepeatedQuantize(
                FakeQuantize.affine(8)
                    .rounding(FakeQuantize.Rounding.DIVIDE)
                    .movingAverage((float) value),
                device);
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
    Placed grid = placed.computeIfAbsent(activation, name -> new Placed(device));
    grid.place(range);
    Tensor rounded = torch.empty_like(source);
    quantizing.run(
        FakeQuantize.Job.fake(
            device.view(source),
            device.view(rounded),
            null,
            grid.scale.floats(),
            grid.zeroPoint.ints()));
    Tensor y = StraightThrough.of(source, rounded, range.scale(), range.zeroPoint(), 0, 255);
    if (learned != null && !moves() && GradMode.is_enabled()) {
      learned.saw(activation, source, y);
    }
    return y;
  }

  private void observe(String activation, Tensor x, Batch batch) {
    ActivationRange range = ranges.get(activation);
    running.set(range.min(), range.max());
    // Zero is in every range, so zeroed padding leaves it alone.
    Tensor seen = batch.pads(x) ? x.detach().mul(batch.mask()) : x;
    Placed grid = placed.computeIfAbsent(activation, name -> new Placed(device));
    observing.run(
        new FakeQuantize.Job(
            device.view(seen),
            null,
            null,
            null,
            grid.scale.floats(),
            grid.zeroPoint.ints(),
            running.floats()));
    float[] moved = running.values();
    ranges.put(activation, new ActivationRange(Math.min(0, moved[0]), Math.max(0, moved[1])));
    grid.forget();
  }

  @Override
  public void close() {
    quantizing.close();
    momentum(0);
    placed.values().forEach(Placed::close);
    running.close();
    if (learned != null) {
      learned.close();
    }
  }
}
