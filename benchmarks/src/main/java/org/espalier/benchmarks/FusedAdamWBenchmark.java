package org.espalier.benchmarks;

import java.util.List;
import java.util.concurrent.TimeUnit;
import org.bytedeco.pytorch.AdamW;
import org.bytedeco.pytorch.AdamWOptions;
import org.bytedeco.pytorch.Dispatcher;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueVector;
import org.bytedeco.pytorch.OperatorHandle;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.op.FusedAdamW;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * AdamW over a whole model, by itself and with what compression adds: matrices keep a mask and renew
 * scales a row, a fake-quantized copy and a gate. Guarded: clipped by the norm of all gradients, which
 * must be finite.
 *
 * <p>The peer composes it from libtorch's operations, with {@code AdamW::step} (torch) or with its
 * fused kernel (torchFused, whose step counters stand still). Both work on the same memory, on 2 MiB pages.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class FusedAdamWBenchmark extends Comparison {
  private static final double RATE = 1e-4;
  private static final double BETA1 = 0.9;
  private static final double BETA2 = 0.999;
  private static final double EPSILON = 1e-8;
  private static final double DECAY = 0.01;

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
  private FusedAdamW ours;

  @Setup(Level.Trial)
  public void prepare() {
    check();
    model = new Model(OptimizerModel.shapes(size), !size.startsWith("step"));
    ours = new FusedAdamW(model.parameters(size.startsWith("int8")), options(size));
  }

  @TearDown
  public void release() {
    ours.close();
    model.close();
  }

  private static FusedAdamW.Options options(String size) {
    FusedAdamW.Options options =
        FusedAdamW.Options.of(RATE)
            .withBetas(BETA1, BETA2)
            .withEpsilon(EPSILON)
            .withWeightDecay(DECAY);
    return size.startsWith("guarded")
        ? options.withMaxNorm(OptimizerModel.MAX_NORM).withSkipNonFinite(true)
        : options;
  }

  /** Weights, gradient and moments read; weights and moments written, and the copy. */
  @Override
  public double bytes(String method, String size) {
    return OptimizerModel.bytes(size, 2);
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
  private static void check() {
    if (checked) {
      return;
    }
    for (String kind : new String[] {"step", "compressed", "guarded"}) {
      try (Model a = new Model(OptimizerModel.layer(768), !kind.equals("step"));
          Model b = new Model(OptimizerModel.layer(768), !kind.equals("step"));
          FusedAdamW adamW = new FusedAdamW(a.parameters(false), options(kind))) {
        for (int step = 1; step <= 2; step++) {
          adamW.step();
          b.torch(kind, false);
        }
        a.mustEqual(b, 3e-8); // four roundings of weights below 0.25
      }
    }
    checked = true;
  }

  private static final class Model extends OptimizerModel {
    private final AdamW adamW;
    private final OperatorHandle fused =
        Dispatcher.singleton().findSchemaOrThrow("aten::_fused_adamw_", "");
    private final TensorVector steps = new TensorVector();

    Model(List<long[]> shapes, boolean compressed) {
      super(shapes, compressed, 2);
      AdamWOptions options = new AdamWOptions(RATE);
      options.betas().put(new double[] {BETA1, BETA2});
      options.eps().put(EPSILON);
      options.weight_decay().put(DECAY);
      adamW = new AdamW(w, options);
      for (int i = 0; i < shapes.size(); i++) {
        steps.push_back(torch.full(new long[0], new Scalar(10f)));
      }
    }

    List<FusedAdamW.Parameter> parameters(boolean int8) {
      return parts(int8).stream()
          .map(
              p ->
                  new FusedAdamW.Parameter(
                      p.weight(),
                      p.gradient(),
                      p.states().get(0),
                      p.states().get(1),
                      p.mask(),
                      p.gate(),
                      p.workingCopy(),
                      p.scale()))
          .toList();
    }

    @Override
    void torchStep(boolean fusedStep) {
      if (!fusedStep) {
        adamW.step();
        return;
      }
      IValueVector arguments = new IValueVector();
      for (TensorVector tensors :
          List.of(w, g, torchStates.get(0), torchStates.get(1), new TensorVector(), steps)) {
        arguments.push_back(list(tensors));
      }
      for (double option : new double[] {RATE, BETA1, BETA2, DECAY, EPSILON}) {
        arguments.push_back(new IValue(option));
      }
      arguments.push_back(new IValue(false)); // amsgrad
      arguments.push_back(new IValue(false)); // maximize
      arguments.push_back(new IValue()); // gradient scale
      arguments.push_back(new IValue()); // found infinity
      fused.callBoxed(arguments);
    }
  }
}
