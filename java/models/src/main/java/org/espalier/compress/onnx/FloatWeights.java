package org.espalier.compress.onnx;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;

/** Says which weights quantization leaves float, and why. */
public final class FloatWeights {
  /** Operators of quantized models. */
  static final Set<String> INTEGER =
      Set.of(
          "ConvInteger",
          "DequantizeLinear",
          "GatherBlockQuantized",
          "MatMulInteger",
          "MatMulNBits",
          "QGemm",
          "QLinearConv",
          "QLinearMatMul");

  /** Those that compute with floats besides, of any width. */
  static final Set<String> OF_BLOCKS = Set.of("GatherBlockQuantized", "MatMulNBits");

  private FloatWeights() {}

  /**
   * A line a reason: how many weights stay float for it, and the names of some.
   *
   * @param skipped the reasons by the weights' names
   */
  public static List<String> lines(Map<String, String> skipped) {
    return lines(skipped, "stays float", "stay float");
  }

  /**
   * The same of weights of which something else is said.
   *
   * @param one what a weight alone does
   * @param several what several do
   */
  public static List<String> lines(Map<String, String> skipped, String one, String several) {
    Map<String, List<String>> names = new TreeMap<>();
    skipped.forEach((name, why) -> names.computeIfAbsent(why, w -> new ArrayList<>()).add(name));
    List<String> lines = new ArrayList<>();
    names.forEach(
        (reason, list) ->
            lines.add(
                (list.size() == 1
                        ? "1 weight " + one + ": "
                        : list.size() + " weights " + several + ": ")
                    + reason
                    + " ("
                    + NearNames.list("", list)
                    + ")"));
    return lines;
  }

  /** The error that a model has no weights to quantize, with the reasons. */
  static InputException none(OnnxModel model, String wanted, Map<String, String> skipped) {
    List<String> parts = new ArrayList<>();
    parts.add(model.name() + " has no weights to quantize: no " + wanted);
    parts.addAll(lines(skipped));
    OnnxWeights.outOfReach(model).ifPresent(parts::add);
    quantized(model).ifPresent(how -> parts.add(how + "; quantize the model that it was made of"));
    return new InputException(String.join("; ", parts));
  }

  /** A sentence that a model is quantized already, with its operators; empty where it is not. */
  public static Optional<String> quantized(OnnxModel model) {
    Set<String> integer = new TreeSet<>();
    model.nodes().forEach(n -> integer.add(n.getOpType()));
    integer.retainAll(INTEGER);
    return integer.isEmpty()
        ? Optional.empty()
        : Optional.of("it is quantized already, with " + String.join(", ", integer));
  }
}
