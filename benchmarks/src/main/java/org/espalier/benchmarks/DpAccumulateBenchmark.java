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
import org.espalier.op.FusedSgd;
import org.espalier.op.StepNoise;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * One example's gradient clipped and added, then a step of descent with noise, beside the same by
 * libtorch's operations.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class DpAccumulateBenchmark extends Comparison {
  /** Elements: in the L2 cache, a large matrix. */
  @Param({"65536", "2359296"})
  public String size;

  private OwnedTensor gradient;
  private OwnedTensor sum;
  private OwnedTensor weight;
  private Tensor gradientView;
  private Tensor sumView;
  private Tensor weightView;
  private DpAccumulate ours;
  private FusedSgd step;

  @Setup
  public void prepare() {
    int n = Integer.parseInt(size);
    gradient = OwnedTensor.allocate(DType.F32, n);
    sum = OwnedTensor.allocate(DType.F32, n);
    weight = OwnedTensor.allocate(DType.F32, n);
    Random random = new Random(1);
    FloatPointer p = new FloatPointer(gradient.pointer());
    FloatPointer q = new FloatPointer(sum.pointer());
    FloatPointer w = new FloatPointer(weight.pointer());
    for (int i = 0; i < n; i++) {
      p.put(i, (float) random.nextGaussian());
      q.put(i, 0);
      w.put(i, 0);
    }
    gradientView = torch.from_blob(gradient.pointer(), n);
    sumView = torch.from_blob(sum.pointer(), n);
    weightView = torch.from_blob(weight.pointer(), n);
    ours = new DpAccumulate(List.of(new DpAccumulate.Parameter(gradient, sum)));
    step =
        new FusedSgd(List.of(FusedSgd.Parameter.of(weight, sum, null)), FusedSgd.Options.of(1e-3));
    step.noise(new StepNoise(1e-3, 32, 7, 0));
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
    step.close();
    weight.close();
    gradient.close();
    sum.close();
  }

  /** The gradient is read twice, sum and weight are read and written, and the sum is read again. */
  @Override
  public double bytes(String method, String size) {
    return 4.0 * 6 * Double.parseDouble(size);
  }

  @Benchmark
  public void espalier() {
    ours.accumulate(1);
    step.step();
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      double norm = torch.norm(gradientView).item_float();
      sumView.add_(gradientView, new Scalar(Math.min(1, 1 / norm)));
      Tensor noisy = sumView.add(torch.randn_like(sumView), new Scalar(1e-3));
      weightView.add_(noisy, new Scalar(-1e-3 / 32));
    }
  }
}
