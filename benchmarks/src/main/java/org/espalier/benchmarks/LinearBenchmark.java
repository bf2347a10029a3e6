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

/** Outputs of one row and plain gradient descent on it, beside the same by libtorch without autograd. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class LinearBenchmark extends Comparison {
  /** Features x outputs. */
  @Param({"1024x1", "384x10"})
  public String size;

  private OwnedTensor weight;
  private OwnedTensor bias;
  private OwnedTensor row;
  private OwnedTensor out;
  private Linear ours;
  private Tensor weightView;
  private Tensor biasView;
  private Tensor rowView;

  @Setup
  public void prepare() {
    int features = Integer.parseInt(size.substring(0, size.indexOf('x')));
    int outputs = Integer.parseInt(size.substring(size.indexOf('x') + 1));
    Random random = new Random(1);
    weight = filled(random, outputs, features);
    bias = filled(random, outputs);
    row = filled(random, 1, features);
    out = filled(random, 1, outputs);
    ours = new Linear(weight, bias, row, out);
    weightView = torch.from_blob(weight.pointer(), outputs, features);
    biasView = torch.from_blob(bias.pointer(), outputs);
    rowView = torch.from_blob(row.pointer(), features);
    try (PointerScope scope = new PointerScope()) {
      Tensor expected = torch.addmv(biasView, weightView, rowView);
      ours.forward(1);
      Tensor actual = torch.from_blob(out.pointer(), outputs);
      double difference = expected.sub(actual).abs().max().item_float();
      if (!(difference <= 1e-3)) {
        throw new IllegalStateException("the outputs differ by " + difference);
      }
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
    ours.close();
    for (OwnedTensor tensor : new OwnedTensor[] {weight, bias, row, out}) {
      tensor.close();
    }
  }

  /** The weights are read twice and written once, the row is read twice. */
  @Override
  public double bytes(String method, String size) {
    double features = Double.parseDouble(size.substring(0, size.indexOf('x')));
    double outputs = Double.parseDouble(size.substring(size.indexOf('x') + 1));
    return 4 * (3 * features * outputs + 2 * features);
  }

  @Benchmark
  public void espalier() {
    ours.forward(1);
    ours.descend(1e-6);
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Tensor slope = torch.addmv(biasView, weightView, rowView);
      weightView.addr_(slope, rowView, new Scalar(1.0), new Scalar(-1e-6));
      biasView.add_(slope, new Scalar(-1e-6));
    }
  }
}
