package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/**
 * What the first output of a classifier is: logits, or probabilities that a Sigmoid or a Softmax makes of them
 * at the end of the graph, where nodes may follow that only shape or clip them.
 *
 * @param output the first output
 * @param form what it holds
 * @param logits the value that holds the logits: the output itself, or what the Sigmoid or Softmax is given;
 *     null for {@link Form#OTHER}
 */
public record ClassifierOutput(String output, Form form, String logits) {
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
    /** Of one class or of several that do not exclude each other: 1 / (1 + exp(−logit)). */
    SIGMOID,
    /** Of classes of which one is right, along the last axis. */
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
    String output = model.outputs().get(0).getName();
    Map<String, NodeProto> producers = model.producers();
    String at = output;
    NodeProto node = producers.get(at);
    while (node != null && is(node, SHAPING)) {
      at = node.getInput(0);
      node = producers.get(at);
    }
    if (node != null && is(node, Set.of("Sigmoid"))) {
      return new ClassifierOutput(output, Form.SIGMOID, node.getInput(0));
    }
    if (node != null && is(node, Set.of("Softmax")) && isAlongLast(node)) {
      return new ClassifierOutput(output, Form.SOFTMAX, node.getInput(0));
    }
    return probabilities(model).contains(output)
        ? new ClassifierOutput(output, Form.OTHER, null)
        : new ClassifierOutput(output, Form.LOGITS, output);
  }

  private static boolean is(NodeProto node, Set<String> operators) {
    return (node.getDomain().isEmpty() || node.getDomain().equals("ai.onnx"))
        && operators.contains(node.getOpType())
        && node.getInputCount() > 0;
  }

  /** Logits of a classifier are [N, classes], so axis 1 is the last one. */
  private static boolean isAlongLast(NodeProto softmax) {
    for (AttributeProto a : softmax.getAttributeList()) {
      if (a.getName().equals("axis")) {
        return a.getI() == -1 || a.getI() == 1;
      }
    }
    return true;
  }

  /** The values that are made of nothing but probabilities and constants. */
  private static Set<String> probabilities(OnnxModel model) {
    Set<String> found = new HashSet<>();
    for (NodeProto node : model.nodes()) {
      boolean made = is(node, PROBABILITIES);
      if (is(node, SHAPING) || is(node, CHOOSING)) {
        made = found.contains(node.getInput(0));
      } else if (is(node, MIXING)) {
        List<String> mixed =
            node.getInputList().stream().filter(v -> model.constant(v) == null).toList();
        made = !mixed.isEmpty() && found.containsAll(mixed);
      }
      if (made) {
        found.add(node.getOutput(0));
      }
    }
    return found;
  }
}
