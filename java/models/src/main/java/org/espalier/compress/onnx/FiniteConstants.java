package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.function.DoublePredicate;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;

/** Names the constants that make activations NaN, which would otherwise be blamed on the examples. */
final class FiniteConstants {
  private FiniteConstants() {}

  /**
   * Checks the weights of a model, whether they are to be quantized or not: all activations behind them depend on them.
   *
   * @throws InputException if one is NaN or infinite, naming it
   */
  static void requireWeights(OnnxModel model) {
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      OnnxInitializer tensor = model.constant(weight.value());
      int bad = first(tensor, value -> !Double.isFinite(value));
      if (bad >= 0) {
        throw new InputException(
            model.name()
                + ": the weights "
                + weight.name()
                + " hold "
                + tensor.floats().get(bad)
                + " at element "
                + bad
                + ": what they give can be neither observed nor quantized; repair them");
      }
    }
  }

  /**
   * What went wrong in calibration, with the constant that is NaN where there is one. Infinity may be meant: masks
   * hold it.
   */
  static InputException explained(OnnxModel model, InputException problem) {
    for (OnnxInitializer tensor : model.initializers()) {
      int bad = first(tensor, Double::isNaN);
      if (bad >= 0) {
        return new InputException(
            problem.getMessage()
                + "; the constant "
                + tensor.name()
                + " is NaN at element "
                + bad
                + ", which may be why",
            problem);
      }
    }
    return problem;
  }

  /** The first element that is bad, −1 for none. */
  private static int first(OnnxInitializer tensor, DoublePredicate bad) {
    boolean real =
        switch (tensor.type()) {
          case FLOAT, FLOAT16, BFLOAT16, DOUBLE -> true;
          default -> false;
        };
    if (!real || tensor.byteLength() > Integer.MAX_VALUE) {
      return -1;
    }
    FloatBuffer values = tensor.floats();
    for (int i = 0; i < values.limit(); i++) {
      if (bad.test(values.get(i))) {
        return i;
      }
    }
    return -1;
  }
}
