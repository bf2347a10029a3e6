package org.espalier.benchmarks;

import java.util.List;
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

/**
 * AdamW; the peer is {@code AdamW::step}, or libtorch's fused kernel, whose step counters stand still.
 */
public class FusedAdamWBenchmark extends OptimizerBenchmark<FusedAdamWBenchmark.Model> {
  private static final double RATE = 1e-4;
  private static final double BETA1 = 0.9;
  private static final double BETA2 = 0.999;
  private static final double EPSILON = 1e-8;
  private static final double DECAY = 0.01;

  @Override
  Model model(List<long[]> shapes, boolean compressed) {
    return new Model(shapes, compressed);
  }

  @Override
  FusedAdamW optimizer(Model model, boolean int8, boolean guarded) {
    FusedAdamW.Options options =
        FusedAdamW.Options.of(RATE)
            .withBetas(BETA1, BETA2)
            .withEpsilon(EPSILON)
            .withWeightDecay(DECAY);
    return new FusedAdamW(
        model.parameters(int8),
        guarded ? options.withMaxNorm(OptimizerModel.MAX_NORM).withSkipNonFinite(true) : options);
  }

  @Override
  int states() {
    return 2;
  }

  /** Four roundings of weights below 0.25. */
  @Override
  double tolerance(boolean guarded) {
    return 3e-8;
  }

  static final class Model extends OptimizerModel {
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
