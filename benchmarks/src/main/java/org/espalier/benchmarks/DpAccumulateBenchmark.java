package org.espalier.benchmarks;

import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.DpAccumulate;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/** One example's gradient clipped and added, then noise, beside the same by libtorch's operations. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class DpAccumulateBenchmark extends Comparison {
  /** Elements: in the L2 cache, a large matrix. */
  @Param({"65536", "2359296"})
  public String size;

  private OwnedTensor gradient;
  private OwnedTensor sum;
  private Tensor gradientView;
  private Tensor sumView;
  private DpAccumulate ours;
  private long counter;

  @Setup
  public void prepare() {
    int n = Integer.parseInt(size);
    gradient = OwnedTensor.allocate(DType.F32, n);
    sum = OwnedTensor.allocate(DType.F32, n);
    Random random = new Random(1);
    FloatPointer p = new FloatPointer(gradient.pointer());
    FloatPointer q = new FloatPointer(sum.pointer());
    for (int i = 0; i < n; i++) {
      p.put(i, (float) random.nextGaussian());
      q.put(i, 0);
    }
    gradientView = torch.from_blob(gradient.pointer(), n);
    sumView = torch.from_blob(sum.pointer(), n);
    ours = new DpAccumulate(List.of(new DpAccumulate.Parameter(gradient, sum)));
    ours.accumulate(1);
    try (PointerScope scope = new PointerScope()) {
      double norm = torch.norm(sumView).item_float();
      if (!(Math.abs(norm - 1) <= 1e-4)) {
        throw new IllegalStateException("what was added has the norm " + norm + ", not 1");
      }
    }
  }

  @TearDown
  public void release() {
    ours.close();
    gradient.close();
    sum.close();
  }

  /** The gradient is read twice, the sum is read and written twice. */
  @Override
  public double bytes(String method, String size) {
    return 4.0 * 6 * Double.parseDouble(size);
  }

  @Benchmark
  public void espalier() {
    ours.accumulate(1);
    ours.noise(7, counter, 1e-3, 1);
    counter += ours.blocks();
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      double norm = torch.norm(gradientView).item_float();
      sumView.add_(gradientView, new Scalar(Math.min(1, 1 / norm)));
      sumView.add_(torch.randn_like(sumView), new Scalar(1e-3));
    }
  }
}
