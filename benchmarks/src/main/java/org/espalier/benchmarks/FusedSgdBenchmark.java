package org.espalier.benchmarks;

import java.util.List;
import org.bytedeco.pytorch.Dispatcher;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueVector;
import org.bytedeco.pytorch.OperatorHandle;
import org.bytedeco.pytorch.SGD;
import org.bytedeco.pytorch.SGDOptions;
import org.bytedeco.pytorch.TensorVector;
import org.espalier.op.FusedSgd;

/** SGD with momentum and weight decay; the peer is {@code SGD::step}, or libtorch's fused kernel. */
public class FusedSgdBenchmark extends OptimizerBenchmark<FusedSgdBenchmark.Model> {
  private static final double RATE = 1e-4;
  private static final double MOMENTUM = 0.9;
  private static final double DECAY = 1e-4;

  @Override
  Model model(List<long[]> shapes, boolean compressed) {
    return new Model(shapes, compressed);
  }

  @Override
  FusedSgd optimizer(Model model, boolean int8, boolean guarded) {
    FusedSgd.Options options =
        FusedSgd.Options.of(RATE).withMomentum(MOMENTUM).withWeightDecay(DECAY);
    return new FusedSgd(
        model.parameters(int8),
        guarded ? options.withMaxNorm(OptimizerModel.MAX_NORM).withSkipNonFinite(true) : options);
  }

  @Override
  int states() {
    return 1;
  }

  /** Only clipping rounds otherwise: libtorch's norm is a float. */
  @Override
  double tolerance(boolean guarded) {
    return guarded ? 1e-7 : 0;
  }

  static final class Model extends OptimizerModel {
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
