package org.espalier.benchmarks;

import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.espalier.op.FusedStep;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * An optimizer over a whole model, by itself and with what compression adds: matrices keep a mask and renew
 * scales a row, a fake-quantized copy and a gate. Guarded: clipped by the norm of all gradients, which must be
 * finite.
 *
 * <p>The peer composes it from libtorch's operations, with the step of its optimizer (torch) or with its
 * fused kernel (torchFused). Both work on the same memory, on 2 MiB pages.
 *
 * @param <M> the model with the peer's optimizer
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public abstract class OptimizerBenchmark<M extends OptimizerModel> extends Comparison {
  /** What is done, and to which model: a perceptron 784-256-128-10, or BERT-base. */
  @Param({
    "step-mlp",
    "compressed-mlp",
    "step-110M",
    "compressed-110M",
    "guarded-110M",
    "int8-110M"
  })
  public String size;

  private static final Set<Class<?>> CHECKED = new HashSet<>();

  private M model;
  private FusedStep ours;

  abstract M model(List<long[]> shapes, boolean compressed);

  /**
   * Our optimizer of a model's tensors.
   *
   * @param int8 whether working copies are of int8
   * @param guarded whether it clips and skips
   */
  abstract FusedStep optimizer(M model, boolean int8, boolean guarded);

  /** Buffers that are read and written beside the weights. */
  abstract int states();

  /** How far our weights may be from the peer's after two steps. */
  abstract double tolerance(boolean guarded);

  @Setup(Level.Trial)
  public void prepare() {
    if (CHECKED.add(getClass())) {
      check();
    }
    model = model(OptimizerModel.shapes(size), !size.startsWith("step"));
    ours = optimizer(model, size.startsWith("int8"), size.startsWith("guarded"));
  }

  @TearDown
  public void release() {
    ours.close();
    model.close();
  }

  /** Weights, gradient and states read; weights and states written, and the copy. */
  @Override
  public double bytes(String method, String size) {
    return OptimizerModel.bytes(size, states());
  }

  @Benchmark
  public Object espalier() {
    return ours.step();
  }

  @Benchmark
  public void torch() {
    model.torch(size, false);
  }

  @Benchmark
  public void torchFused() {
    model.torch(size, true);
  }

  @Benchmark
  public void ceiling() {
    model.traffic(size);
  }

  /** Two steps of each kind on one encoder layer: ours leaves the weights of the composed peer. */
  private void check() {
    for (String kind : new String[] {"step", "compressed", "guarded"}) {
      boolean guarded = kind.equals("guarded");
      try (M a = model(OptimizerModel.layer(768), !kind.equals("step"));
          M b = model(OptimizerModel.layer(768), !kind.equals("step"));
          FusedStep step = optimizer(a, false, guarded)) {
        for (int i = 1; i <= 2; i++) {
          step.step();
          b.torch(kind, false);
        }
        a.mustEqual(b, tolerance(guarded));
      }
    }
  }
}
