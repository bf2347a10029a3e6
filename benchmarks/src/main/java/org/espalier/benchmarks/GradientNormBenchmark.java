package org.espalier.benchmarks;

import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.backend.Bandwidth;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.GradientNorm;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * The norm of a gradient in double together with its finiteness, beside libtorch's norm in float
 * (which a NaN or infinity shows up in).
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class GradientNormBenchmark extends Comparison {
  /** Elements: in the L2 cache, a large matrix, BERT-base. */
  @Param({"65536", "2359296", "109482240"})
  public String size;

  private OwnedTensor gradient;
  private Tensor view;
  private GradientNorm ours;

  @Setup(Level.Trial)
  public void prepare() {
    long n = Long.parseLong(size);
    gradient = OwnedTensor.allocate(DType.F32, n);
    FloatPointer p = new FloatPointer(gradient.pointer());
    Random random = new Random(1);
    float[] block = new float[65536];
    for (int i = 0; i < block.length; i++) {
      block[i] = (float) random.nextGaussian();
    }
    for (long i = 0; i < n; i += block.length) {
      p.position(i).put(block, 0, (int) Math.min(block.length, n - i));
    }
    view = torch.from_blob(gradient.pointer(), n);
    ours = new GradientNorm(List.of(new GradientNorm.Gradient(gradient, null, null)));
    double expected;
    try (PointerScope scope = new PointerScope()) {
      // In double: over 110 M elements the peer's float sum is off by a hundredth.
      expected = torch.norm(view.to(torch.ScalarType.Double)).item_double();
    }
    double actual = ours.compute().norm();
    if (!(Math.abs(expected - actual) <= 1e-9 * actual)) {
      throw new IllegalStateException("norm " + actual + ", the peer has " + expected);
    }
  }

  @TearDown
  public void release() {
    ours.close();
    view.close();
    gradient.close();
  }

  @Override
  public double bytes(String method, String size) {
    return 4.0 * Long.parseLong(size);
  }

  @Benchmark
  public Object espalier() {
    return ours.compute();
  }

  @Benchmark
  public double torch() {
    try (PointerScope scope = new PointerScope()) {
      return torch.norm(view).item_float();
    }
  }

  @Benchmark
  public void ceiling() {
    Bandwidth.READ.run(new FloatPointer(gradient.pointer()), null, null, null, gradient.elements());
  }
}
