package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayDeque;
import java.util.Collection;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.Activation;

/**
 * The layers of a multilayer perceptron, found in a graph: products with constant weights one after the other from the only
 * input to the first output, each with a bias or none and an activation or none. Such a model is learned without libtorch.
 */
public final class DenseLayers {
  /** What changes nothing while a model is not trained for its statistics. */
  private static final Set<String> NOTHING = Set.of("Identity", "Dropout");

  private final OnnxModel model;
  private final Deque<Layer> layers = new ArrayDeque<>();

  // Of the layer that is being read, from its end on.
  private Activation activation;
  private String bias;

  /**
   * A layer.
   *
   * @param weight the constant's name
   * @param bias the constant's name, or null
   * @param transposed whether the weight is [features, outputs], not [outputs, features]
   * @param activation what its outputs go through, or null
   */
  public record Layer(
      String weight,
      String bias,
      boolean transposed,
      int features,
      int outputs,
      Activation activation) {}

  private DenseLayers(OnnxModel model) {
    this.model = model;
  }

  /**
   * Reads a model.
   *
   * @param parameters all that training changes in it
   * @return empty where it is anything else, or has parameters beside its layers'
   */
  public static Optional<List<Layer>> of(
      OnnxModel model, Collection<GraphParameters.Entry> parameters) {
    DenseLayers found = new DenseLayers(model);
    if (model.inputs().size() != 1 || model.outputs().isEmpty() || !found.read()) {
      return Optional.empty();
    }
    Set<String> trained = new HashSet<>();
    parameters.forEach(p -> trained.add(p.constant()));
    Set<String> own = new HashSet<>();
    int constants = 0;
    int width = found.layers.getFirst().features();
    for (Layer layer : found.layers) {
      own.add(layer.weight());
      constants++;
      if (layer.bias() != null) {
        own.add(layer.bias());
        constants++;
      }
      if (layer.features() != width) {
        return Optional.empty();
      }
      width = layer.outputs();
    }
    // A constant that two layers share has the gradients of both.
    boolean fits = own.size() == constants && own.equals(trained);
    return fits ? Optional.of(List.copyOf(found.layers)) : Optional.empty();
  }

  /** Walks from the output to the input; false where something else is on the way. */
  private boolean read() {
    Map<String, NodeProto> producers = model.producers();
    String input = model.inputs().get(0).getName();
    String value = model.outputs().get(0).getName();
    while (!value.equals(input)) {
      NodeProto n = producers.get(value);
      if (n == null || !OnnxModel.isOwn(n) || !n.getOutput(0).equals(value)) {
        return false;
      }
      value = step(n, input);
      if (value == null) {
        return false;
      }
    }
    return activation == null && bias == null && !layers.isEmpty();
  }

  /** What a node's value comes from; null where it is no part of a layer. */
  private String step(NodeProto n, String input) {
    String first = n.getInput(0);
    if (NOTHING.contains(n.getOpType())) {
      return first;
    }
    return switch (n.getOpType()) {
      case "Flatten" -> first.equals(input) && integer(n, "axis", 1) == 1 ? first : null;
      case "Relu" -> activated(n, Activation.RELU);
      case "Sigmoid" -> activated(n, Activation.SIGMOID);
      case "Tanh" -> activated(n, Activation.TANH);
      case "LeakyRelu" -> {
        float alpha = real(n, "alpha", 0.01f);
        yield alpha >= 0 && alpha <= Float.MAX_VALUE
            ? activated(n, Activation.leakyRelu(alpha))
            : null;
      }
      case "Add" -> added(n);
      case "MatMul" -> product(n, false);
      case "Gemm" -> {
        boolean plain =
            integer(n, "transA", 0) == 0 && real(n, "alpha", 1) == 1 && real(n, "beta", 1) == 1;
        if (plain && n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
          plain = bias == null;
          bias = n.getInput(2);
        }
        yield plain ? product(n, integer(n, "transB", 0) != 0) : null;
      }
      default -> null;
    };
  }

  private String activated(NodeProto n, Activation function) {
    if (activation != null || bias != null) {
      return null;
    }
    activation = function;
    return n.getInput(0);
  }

  private String added(NodeProto n) {
    int constant = model.constant(n.getInput(1)) != null ? 1 : 0;
    if (bias != null || n.getInput(0).equals(n.getInput(1))) {
      return null;
    }
    bias = n.getInput(constant);
    return n.getInput(1 - constant);
  }

  private String product(NodeProto n, boolean outputsFirst) {
    OnnxInitializer weight = model.constant(n.getInput(1));
    if (weight == null || weight.dims().length != 2 || weight.elements() == 0) {
      return null;
    }
    int outputs = (int) weight.dims()[outputsFirst ? 0 : 1];
    int features = (int) weight.dims()[outputsFirst ? 1 : 0];
    if (bias != null) {
      OnnxInitializer added = model.constant(bias);
      // Along the last axis, and one for each output.
      if (added == null
          || added.elements() != outputs
          || added.dims().length == 0
          || added.dims()[added.dims().length - 1] != outputs) {
        return null;
      }
    }
    layers.addFirst(new Layer(n.getInput(1), bias, !outputsFirst, features, outputs, activation));
    activation = null;
    bias = null;
    return n.getInput(0);
  }

  private static long integer(NodeProto n, String name, long otherwise) {
    AttributeProto a = find(n, name);
    return a == null ? otherwise : a.getI();
  }

  private static float real(NodeProto n, String name, float otherwise) {
    AttributeProto a = find(n, name);
    return a == null ? otherwise : a.getF();
  }

  private static AttributeProto find(NodeProto n, String name) {
    return n.getAttributeList().stream()
        .filter(a -> a.getName().equals(name))
        .findFirst()
        .orElse(null);
  }
}
