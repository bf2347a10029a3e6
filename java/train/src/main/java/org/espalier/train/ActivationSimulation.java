package org.espalier.train;

import java.nio.ByteOrder;
import java.nio.LongBuffer;
import java.util.HashMap;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.device.DType;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.InputTransforms;
import org.espalier.torch.TensorView;

/**
 * Puts activations on the 8-bit grid that the runtime will use. With DynamicQuantizeLinear (ONNX) every
 * run finds its own step, so in training each example gets the one that it would get alone:
 *
 * <pre>
 *   scale = (max(0, max x) − min(0, min x)) / 255,  zero = rint(clamp(−min / scale, 0, 255))
 *   q = clamp(rint(x / scale) + zero, 0, 255),      y = scale · (q − zero)
 * </pre>
 *
 * <p>over the example without its padding. The gradient passes unchanged where nothing was clipped.
 */
final class ActivationSimulation implements InputTransforms, AutoCloseable {
  private static final FakeQuantize GRID =
      FakeQuantize.affine(8).perChannel(0).rounding(FakeQuantize.Rounding.DIVIDE).minMax();

  /** The activation that each node reads in front of its weight, by the node's name. */
  private final Map<String, String> activations;

  private final Map<String, Site> sites = new HashMap<>();
  private FloatPointer scales = new FloatPointer(1).retainReference();
  private IntPointer zeroPoints = new IntPointer(1).retainReference();
  private BytePointer gate = new BytePointer(8).retainReference();
  private LongBuffer words = LongBuffer.allocate(1);
  private Batch batch;
  private boolean on = true;
  private long nanoseconds;

  ActivationSimulation(Map<String, String> activations) {
    this.activations = Map.copyOf(activations);
  }

  @Override
  public UnaryOperator<Tensor> transform(String node, int input) {
    String activation = activations.get(node);
    return activation == null || input != 0
        ? null
        : sites.computeIfAbsent(activation, name -> new Site());
  }

  /** What the next forward pass runs on. */
  void begin(Batch next) {
    batch = next;
    nanoseconds = 0;
    sites.values().forEach(Site::forget);
  }

  /** Whether anything is quantized; switched off the model computes in float. */
  void on(boolean value) {
    on = value;
  }

  /** Time in this class since {@link #begin}. */
  long nanoseconds() {
    return nanoseconds;
  }

  /** One activation, which may have several readers. Each gets a handle that it may close. */
  private final class Site implements UnaryOperator<Tensor> {
    private Tensor seen;
    private Tensor result;

    void forget() {
      if (seen != null) {
        seen.close();
        result.close();
        seen = null;
      }
    }

    @Override
    public Tensor apply(Tensor x) {
      if (!on) {
        return x;
      }
      if (seen == null || !seen.is_same(x)) {
        long start = System.nanoTime();
        forget();
        // Retained: the graph frees what a node made before the next node runs.
        result = quantize(x).retainReference();
        seen = new Tensor(x).retainReference();
        nanoseconds += System.nanoTime() - start;
      }
      return new Tensor(result);
    }
  }

  private Tensor quantize(Tensor x) {
    long[] shape = x.shape();
    if (shape[0] != batch.size()) {
      throw new IllegalStateException(
          "an activation has " + shape[0] + " rows in a batch of " + batch.size());
    }
    Tensor source = x.contiguous();
    boolean padded = batch.mask() != null && shape.length == 3 && shape[1] == batch.longest();
    // Zero is in every range, so zeroed padding leaves the range of the example alone.
    Tensor y = padded ? source.mul(batch.mask()) : source.clone();
    long bits = (y.numel() + 63) / 64 * 8;
    if (scales.capacity() < shape[0]) {
      scales.close();
      zeroPoints.close();
      // Retained: the scope of this step must not free what the next one uses.
      scales = new FloatPointer(shape[0]).retainReference();
      zeroPoints = new IntPointer(shape[0]).retainReference();
    }
    if (gate.capacity() < bits) {
      gate.close();
      gate = new BytePointer(bits).retainReference();
      words = gate.asByteBuffer().order(ByteOrder.nativeOrder()).asLongBuffer();
    }
    // Nothing in the graph has kept y yet, so writing to it is what its later readers see.
    org.espalier.device.Tensor view = TensorView.of(y);
    GRID.run(FakeQuantize.Job.fake(view, view, gate, scales, zeroPoints));
    return allPass(y.numel()) ? y : gated(source, y);
  }

  private boolean allPass(long n) {
    int whole = (int) (n / 64);
    for (int i = 0; i < whole; i++) {
      if (words.get(i) != -1L) {
        return false;
      }
    }
    for (long i = whole * 64L; i < n; i++) {
      if ((gate.get(i >> 3) >> (i & 7) & 1) == 0) {
        return false;
      }
    }
    return true;
  }

  /** The values of {@code y} behind a product with the gate, whose gradient is the gate. */
  private Tensor gated(Tensor source, Tensor y) {
    float[] passes = new float[(int) y.numel()];
    for (int i = 0; i < passes.length; i++) {
      passes[i] = gate.get(i >> 3) >> (i & 7) & 1;
    }
    Tensor masked = source.mul(AbstractTensor.create(passes, y.shape()));
    TrainedWeight.copy(TensorView.of(y), TensorView.of(masked));
    return masked;
  }

  @Override
  public void close() {
    sites.values().forEach(Site::forget);
    scales.close();
    zeroPoints.close();
    gate.close();
  }
}
