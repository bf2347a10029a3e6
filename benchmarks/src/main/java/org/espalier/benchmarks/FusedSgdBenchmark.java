package org.espalier.benchmarks;

import java.util.List;
import java.util.concurrent.TimeUnit;
import org.bytedeco.pytorch.Dispatcher;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueVector;
import org.bytedeco.pytorch.OperatorHandle;
import org.bytedeco.pytorch.SGD;
import org.bytedeco.pytorch.SGDOptions;
import org.bytedeco.pytorch.TensorVector;
import org.espalier.op.FusedSgd;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * SGD with momentum and weight decay over a whole model, by itself and with what compression adds:
 * matrices keep a mask and renew scales a row, a fake-quantized copy and a gate. Guarded: clipped by
 * the norm of all gradients, which must be finite.
 *
 * <p>The peer composes it from libtorch's operations, with {@code SGD::step} (torch) or with its
 * fused kernel (torchFused). Both work on the same memory, on 2 MiB pages.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class FusedSgdBenchmark extends Comparison {
  private static final double RATE = 1e-4;
  private static final double MOMENTUM = 0.9;
  private static final double DECAY = 1e-4;

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

  private static boolean checked;

  private Model model;
  private FusedSgd ours;

  @Setup(Level.Trial)
  public void prepare() {
    check();
    model = new Model(OptimizerModel.shapes(size), !size.startsWith("step"));
    ours = new FusedSgd(model.parameters(size.startsWith("int8")), options(size));
  }

  @TearDown
  public void release() {
    ours.close();
    model.close();
  }

  private static FusedSgd.Options options(String size) {
    FusedSgd.Options options =
        FusedSgd.Options.of(RATE).withMomentum(MOMENTUM).withWeightDecay(DECAY);
    return size.startsWith("guarded")
        ? options.withMaxNorm(OptimizerModel.MAX_NORM).withSkipNonFinite(true)
        : options;
  }

  /** Weights, gradient and momentum read; weights and momentum written, and the copy. */
  @Override
  public double bytes(String method, String size) {
    return OptimizerModel.bytes(size, 1);
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

  /** Two steps of each kind on one encoder layer: ours has the bits of the composed peer. */
  private static void check() {
    if (checked) {
      return;
    }
    for (String kind : new String[] {"step", "compressed", "guarded"}) {
      try (Model a = new Model(OptimizerModel.layer(768), !kind.equals("step"));
          Model b = new Model(OptimizerModel.layer(768), !kind.equals("step"));
          FusedSgd sgd = new FusedSgd(a.parameters(false), options(kind))) {
        for (int step = 1; step <= 2; step++) {
          sgd.step();
          b.torch(kind, false);
        }
        // Only clipping rounds otherwise: libtorch's norm is a float.
        double tolerance = kind.equals("guarded") ? 1e-7 : 0;
        a.mustEqual(b, tolerance);
      }
    }
    checked = true;
  }

  private static final class Model extends OptimizerModel {
    private final SGD sgd;
    private final OperatorHandle fused =
        Dispatcher.singleton().findSchemaOrThrow("aten::_fused_sgd_", "");

    Model(List<long[]> shapes, boolean compressed) {
      super(shapes, compressed, 1);
      SGDOptions options = new SGDOptions(RATE);
      options.momentum().put(MOMENTUM);
      options.weight_decay().put(DECAY);
      sgd = new SGD(w, options);
    }

    List<FusedSgd.Parameter> parameters(boolean int8) {
      return parts(int8).stream()
          .map(
              p ->
                  new FusedSgd.Parameter(
                      p.weight(),
                      p.gradient(),
                      p.states().get(0),
                      p.mask(),
                      p.gate(),
                      p.workingCopy(),
                      p.scale()))
          .toList();
    }

    @Override
    void torchStep(boolean fusedStep) {
      if (!fusedStep) {
        sgd.step();
        return;
      }
      IValueVector arguments = new IValueVector();
      for (TensorVector tensors : List.of(w, g, torchStates.get(0))) {
        arguments.push_back(list(tensors));
      }
      arguments.push_back(new IValue(DECAY));
      arguments.push_back(new IValue(MOMENTUM));
      arguments.push_back(new IValue(RATE));
      arguments.push_back(new IValue(0.0)); // dampening
      arguments.push_back(new IValue(false)); // nesterov
      arguments.push_back(new IValue(false)); // maximize
      arguments.push_back(new IValue(false)); // first step
      arguments.push_back(new IValue());
      arguments.push_back(new IValue());
      fused.callBoxed(arguments);
    }
  }
}
