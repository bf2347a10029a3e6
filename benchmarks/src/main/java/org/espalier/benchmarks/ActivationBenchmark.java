package org.espalier.benchmarks;

import java.util.Locale;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.Activation;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/** An activation and its slope in place, beside libtorch's in place and its backward. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class ActivationBenchmark extends Comparison {
  /** Function and elements. */
  @Param({"tanh-8192", "sigmoid-8192", "tanh-4194304"})
  public String size;

  private int n;
  private Activation ours;
  private OwnedTensor values;
  private OwnedTensor slopes;
  private Tensor valueView;
  private Tensor slopeView;

  @Setup
  public void prepare() {
    String[] parts = size.split("-");
    n = Integer.parseInt(parts[1]);
    ours = new Activation(Activation.Kind.valueOf(parts[0].toUpperCase(Locale.ROOT)), 0);
    values = OwnedTensor.allocate(DType.F32, n);
    slopes = OwnedTensor.allocate(DType.F32, n);
    valueView = torch.from_blob(values.pointer(), n);
    slopeView = torch.from_blob(slopes.pointer(), n);
    Random random = new Random(1);
    FloatPointer v = new FloatPointer(values.pointer());
    FloatPointer s = new FloatPointer(slopes.pointer());
    for (int i = 0; i < n; i++) {
      v.put(i, (float) (2 * random.nextGaussian()));
      s.put(i, (float) random.nextGaussian());
    }
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Tensor result = valueView.clone();
      forward(result);
      Tensor slope = backward(slopeView, result);
      espalier();
      double difference =
          Math.max(
              result.sub(valueView).abs().max().item_float(),
              slope.sub(slopeView).abs().max().item_float());
      if (!(difference <= 1e-6)) {
        throw new IllegalStateException("the results differ by " + difference);
      }
    }
  }

  private void forward(Tensor tensor) {
    if (ours.kind() == Activation.Kind.TANH) {
      tensor.tanh_();
    } else {
      tensor.sigmoid_();
    }
  }

  private Tensor backward(Tensor slope, Tensor result) {
    return ours.kind() == Activation.Kind.TANH
        ? torch.tanh_backward(slope, result)
        : torch.sigmoid_backward(slope, result);
  }

  @TearDown
  public void release() {
    values.close();
    slopes.close();
  }

  /** Values are read twice and written once, slopes read and written. */
  @Override
  public double bytes(String method, String size) {
    return 20.0 * Integer.parseInt(size.split("-")[1]);
  }

  @Benchmark
  public void espalier() {
    ours.forward(values, n);
    ours.backward(values, slopes, n);
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      forward(valueView);
      slopeView.copy_(backward(slopeView, valueView));
    }
  }
}
