package org.espalier.benchmarks;

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
import org.espalier.op.Linear;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * Outputs of one row and plain gradient descent on it, or of several rows and both gradients, beside the same by libtorch
 * without autograd.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class LinearBenchmark extends Comparison {
  /** Features x outputs x rows; a t behind says that the weight is [features, outputs]. */
  @Param({"1024x1x1", "384x10x1", "384x256x1", "384x256x1t", "384x256x32", "384x256x32t"})
  public String size;

  private int count;
  private boolean transposed;
  private OwnedTensor weight;
  private OwnedTensor bias;
  private OwnedTensor rows;
  private OwnedTensor out;
  private OwnedTensor weightGradient;
  private OwnedTensor biasGradient;
  private OwnedTensor rowGradient;
  private Linear ours;
  private Linear gradient;
  private Linear back;
  private Tensor weightView;
  private Tensor biasView;
  private Tensor rowsView;
  private Tensor outView;
  private Tensor weightGradientView;
  private Tensor rowGradientView;

  private static int[] parts(String size) {
    return java.util.Arrays.stream(size.replace("t", "").split("x"))
        .mapToInt(Integer::parseInt)
        .toArray();
  }

  @Setup
  public void prepare() {
    int[] parts = parts(size);
    int features = parts[0];
    int outputs = parts[1];
    count = parts[2];
    transposed = size.endsWith("t");
    Random random = new Random(1);
    long[] shape = transposed ? new long[] {features, outputs} : new long[] {outputs, features};
    weight = filled(random, shape);
    bias = filled(random, outputs);
    rows = filled(random, count, features);
    out = filled(random, count, outputs);
    weightGradient = OwnedTensor.allocate(DType.F32, shape);
    biasGradient = OwnedTensor.allocate(DType.F32, outputs);
    rowGradient = OwnedTensor.allocate(DType.F32, count, features);
    ours = new Linear(weight, bias, rows, out, transposed);
    gradient = new Linear(weightGradient, biasGradient, rows, out, transposed);
    back = new Linear(weight, bias, rowGradient, out, transposed);
    Tensor stored = torch.from_blob(weight.pointer(), shape);
    weightView = transposed ? stored : stored.t(); // [features, outputs]
    biasView = torch.from_blob(bias.pointer(), outputs);
    rowsView = torch.from_blob(rows.pointer(), count, features);
    outView = torch.from_blob(out.pointer(), count, outputs);
    weightGradientView = torch.from_blob(weightGradient.pointer(), shape);
    rowGradientView = torch.from_blob(rowGradient.pointer(), count, features);
    try (PointerScope scope = new PointerScope()) {
      Tensor expected = torch.addmm(biasView, rowsView, weightView);
      ours.forward(count);
      check("outputs", expected, outView);
      Tensor slopes = outView.clone();
      Tensor ofWeight = transposed ? rowsView.t().matmul(slopes) : slopes.t().matmul(rowsView);
      gradient.backward(count);
      check("gradient", ofWeight, weightGradientView);
      back.backwardRows(count);
      check("gradient of the rows", slopes.matmul(weightView.t()), rowGradientView);
    }
  }

  private static void check(String what, Tensor expected, Tensor actual) {
    double difference = expected.sub(actual).abs().max().item_float();
    if (!(difference <= 1e-3)) {
      throw new IllegalStateException("the " + what + " differ by " + difference);
    }
  }

  private static OwnedTensor filled(Random random, long... shape) {
    OwnedTensor tensor = OwnedTensor.allocate(DType.F32, shape);
    FloatPointer p = new FloatPointer(tensor.pointer());
    for (long i = 0; i < tensor.elements(); i++) {
      p.put(i, (float) (0.1 * random.nextGaussian()));
    }
    return tensor;
  }

  @TearDown
  public void release() {
    for (Linear linear : new Linear[] {ours, gradient, back}) {
      linear.close();
    }
    for (OwnedTensor tensor :
        new OwnedTensor[] {weight, bias, rows, out, weightGradient, biasGradient, rowGradient}) {
      tensor.close();
    }
  }

  /** One row: the weights are read twice and written once, the row is read twice. Several: each matrix once a product. */
  @Override
  public double bytes(String method, String size) {
    int[] parts = parts(size);
    double weights = (double) parts[0] * parts[1];
    double between = (double) parts[2] * (parts[0] + parts[1]);
    return 4 * (parts[2] == 1 ? 3 * weights + 2 * parts[0] : 3 * (weights + between));
  }

  @Benchmark
  public void espalier() {
    ours.forward(count);
    if (count == 1) {
      ours.descend(1e-6);
    } else {
      gradient.backward(count);
      back.backwardRows(count);
    }
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Tensor slope = torch.addmm(biasView, rowsView, weightView);
      if (count == 1) {
        weightView.addmm_(rowsView.t(), slope, new Scalar(1.0), new Scalar(-1e-6));
        biasView.add_(slope.view(-1), new Scalar(-1e-6));
      } else if (transposed) {
        torch.mm_out(weightGradientView, rowsView.t(), slope);
        torch.mm_out(rowGradientView, slope, weightView.t());
      } else {
        torch.mm_out(weightGradientView, slope.t(), rowsView);
        torch.mm_out(rowGradientView, slope, weightView.t());
      }
    }
  }
}
