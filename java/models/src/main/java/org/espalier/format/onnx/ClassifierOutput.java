package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/**
 * What the {@linkplain OnnxModel#mainOutput main output} of a classifier is: logits, or probabilities that a Sigmoid or a Softmax makes of them
 * at the end of the graph, where nodes may follow that only shape or clip them.
 *
 * @param output the main output
 * @param form what it holds
 * @param logits the value that holds the logits: the output itself, or what the Sigmoid or Softmax is given;
 *     null for {@link Form#OTHER}
 * @param axis of the Softmax, -1 for the last; not used for others
 */
public record ClassifierOutput(String output, Form form, String logits, long axis) {
  /** From this operator set on a Softmax is along one axis; before, along all from its axis on. */
  public static final int ONE_AXIS = 13;

  private static final Set<String> SHAPING =
      Set.of("Cast", "Clip", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze");

  /** Of probabilities alone these do not make logits. */
  private static final Set<String> MIXING =
      Set.of("Add", "Concat", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum");

  private static final Set<String> CHOOSING =
      Set.of(
          "Expand",
          "Gather",
          "ReduceMax",
          "ReduceMean",
          "ReduceMin",
          "ReduceProd",
          "ReduceSum",
          "Slice",
          "Transpose");

  private static final Set<String> PROBABILITIES = Set.of("HardSigmoid", "Sigmoid", "Softmax");

  /** What an output holds. */
  public enum Form {
    LOGITS,
    /** Probabilities of one class, or of several that do not exclude each other: 1 / (1 + exp(−logit)). */
    SIGMOID,
    /** Probabilities of classes of which one is right. */
    SOFTMAX,
    /** Probabilities that were made in another way: averages, products, one column of a Softmax. */
    OTHER
  }

  /**
   * Finds it in a model.
   *
   * @throws InputException where the model has no output
   */
  public static ClassifierOutput of(OnnxModel model) {
    if (model.outputs().isEmpty()) {
      throw new InputException(model.name() + " has no output");
    }
    String output = model.mainOutput().getName();
    Map<String, NodeProto> producers = model.producers();
    String at = output;
    NodeProto node = producers.get(at);
    while (node != null && is(node, SHAPING)) {
      at = node.getInput(0);
      node = producers.get(at);
    }
    if (node != null && is(node, Set.of("Sigmoid"))) {
      return new ClassifierOutput(output, Form.SIGMOID, node.getInput(0), -1);
    }
    String spelled = node == null ? null : spelledSigmoid(model, producers, node);
    if (spelled != null) {
      return new ClassifierOutput(output, Form.SIGMOID, spelled, -1);
    }
    if (node != null && is(node, Set.of("Softmax"))) {
      return new ClassifierOutput(output, Form.SOFTMAX, node.getInput(0), axis(model, node));
    }
    return probabilities(model).contains(output)
        ? new ClassifierOutput(output, Form.OTHER, null, -1)
        : new ClassifierOutput(output, Form.LOGITS, output, -1);
  }

  /** The z of a node that ends 1 / (1 + exp(−z)) or exp(z) / (1 + exp(z)); null for another. */
  private static String spelledSigmoid(
      OnnxModel model, Map<String, NodeProto> producers, NodeProto node) {
    String denominator;
    String numerator = null;
    if (is(node, Set.of("Reciprocal"))) {
      denominator = node.getInput(0);
    } else if (node.getInputCount() != 2) {
      return null;
    } else if (is(node, Set.of("Pow")) && isNumber(model, node.getInput(1), -1)) {
      denominator = node.getInput(0);
    } else if (is(node, Set.of("Div"))) {
      denominator = node.getInput(1);
      numerator = isNumber(model, node.getInput(0), 1) ? null : node.getInput(0);
    } else {
      return null;
    }
    String power = otherOperand(model, producers.get(denominator), "Add", 1);
    NodeProto exp = power == null ? null : producers.get(power);
    if (exp == null || !is(exp, Set.of("Exp"))) {
      return null;
    }
    String exponent = exp.getInput(0);
    if (numerator != null) {
      NodeProto above = producers.get(numerator);
      boolean same =
          above != null && is(above, Set.of("Exp")) && above.getInput(0).equals(exponent);
      return same ? exponent : null;
    }
    NodeProto negation = producers.get(exponent);
    if (negation == null) {
      return null;
    }
    if (is(negation, Set.of("Neg"))) {
      return negation.getInput(0);
    }
    if (is(negation, Set.of("Sub"))
        && negation.getInputCount() == 2
        && isNumber(model, negation.getInput(0), 0)) {
      return negation.getInput(1);
    }
    return otherOperand(model, negation, "Mul", -1);
  }

  /** What an operator of two operands is given beside a number; null where it is another. */
  private static String otherOperand(
      OnnxModel model, NodeProto node, String operator, float number) {
    if (node == null || !is(node, Set.of(operator)) || node.getInputCount() != 2) {
      return null;
    }
    for (int i = 0; i < 2; i++) {
      if (isNumber(model, node.getInput(i), number)) {
        return node.getInput(1 - i);
      }
    }
    return null;
  }

  private static boolean isNumber(OnnxModel model, String value, float number) {
    OnnxInitializer constant = model.constant(value);
    if (constant == null || constant.elements() != 1 || constant.dims().length > 1) {
      return false;
    }
    return switch (constant.type()) {
      case FLOAT, FLOAT16, BFLOAT16, DOUBLE -> constant.floats().get(0) == number;
      case INT64 -> constant.data().getLong(0) == number; // an exponent of Pow
      default -> false;
    };
  }

  private static boolean is(NodeProto node, Set<String> operators) {
    return OnnxModel.isOwn(node)
        && operators.contains(node.getOpType())
        && node.getInputCount() > 0;
  }

  private static long axis(OnnxModel model, NodeProto softmax) {
    return Attributes.integer(softmax, "axis", model.opset("") < ONE_AXIS ? 1 : -1);
  }

  /** The values that are made of nothing but probabilities and constants. */
  private static Set<String> probabilities(OnnxModel model) {
    Set<String> found = new HashSet<>();
    Map<String, NodeProto> producers = model.producers();
    for (NodeProto node : model.nodes()) {
      boolean made = is(node, PROBABILITIES) || spelledSigmoid(model, producers, node) != null;
      if (is(node, SHAPING) || is(node, CHOOSING)) {
        made = found.contains(node.getInput(0));
      } else if (is(node, MIXING)) {
        List<String> mixed =
            node.getInputList().stream().filter(v -> model.constant(v) == null).toList();
        made = made || !mixed.isEmpty() && found.containsAll(mixed);
      }
      if (made) {
        found.add(node.getOutput(0));
      }
    }
    return found;
  }
}
