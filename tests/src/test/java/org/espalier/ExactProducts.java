package org.espalier;

import java.util.List;
import org.espalier.compress.onnx.Int8Saturation;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.train.Quantization;

/** What tests of int8 models in ONNX Runtime need: 8-bit products that do not saturate. */
public final class ExactProducts {
  private ExactProducts() {}

  /** Whether this is one; on others weights of 7 bits are exact. */
  public static boolean areHere() {
    return !Int8Saturation.onThisMachine();
  }

  /** The weights whose products are exact here: uint8 everywhere, int8 where {@link #areHere}. */
  public static List<WeightIntegers> weights() {
    return areHere()
        ? List.of(WeightIntegers.INT8, WeightIntegers.UINT8)
        : List.of(WeightIntegers.UINT8);
  }

  /** The first of them. */
  public static WeightIntegers first() {
    return weights().get(0);
  }

  /** A form of a stage between braces, with what makes its products exact. */
  public static String form(String form) {
    return areHere() || form.equals("int4") ? form : form + ", unsigned-weights: true";
  }

  /** What of a recipe's stage on lines of its own says the same. */
  public static String lines(String form) {
    return form(form).replace(", ", "\n    ");
  }

  /** What {@code quantize} takes beside a form for products that are exact. */
  public static List<String> options(String form) {
    return areHere() || !List.of("onnx-dynamic", "onnx-qdq").contains(form)
        ? List.of()
        : List.of("--unsigned-weights");
  }

  /** A quantization whose products are exact. */
  public static Quantization exact(Quantization quantization) {
    return quantization.with(quantization.weights().withIntegers(first()));
  }
}
