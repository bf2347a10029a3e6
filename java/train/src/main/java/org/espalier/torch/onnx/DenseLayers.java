package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.espalier.compress.onnx.RoundedActivations;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.Activation;

/**
 * A multilayer perceptron, found in a graph: its features may be scaled, and go through products with constant weights one
 * after the other to the first output, each with a bias or none and an activation or none. What a product reads may be
 * multiplied by factors and rounded before, and what it gives rounded behind. Such a model is learned without libtorch.
 *
 * @param scalings what is done to features before the first layer, in this order
 * @param layers at least one
 */
public record DenseLayers(List<Scaling> scalings, List<Layer> layers) {
  /**
   * A layer, in the order in which values go through it.
   *
   * @param factors by which each feature is multiplied, the constant's name, or null
   * @param read to what features are rounded then, or null
   * @param weight the constant's name
   * @param bias the constant's name, or null
   * @param transposed whether the weight is [features, outputs], not [outputs, features]
   * @param sums to what its sums are rounded, or null
   * @param activation what its outputs go through, or null
   */
  public record Layer(
      String factors,
      Rounding read,
      String weight,
      String bias,
      boolean transposed,
      int features,
      int outputs,
      Rounding sums,
      Activation activation) {
    private Layer withRead(Rounding rounding) {
      return new Layer(
          factors, rounding, weight, bias, transposed, features, outputs, sums, activation);
    }

    private Layer withFactors(String constant) {
      return new Layer(
          constant, read, weight, bias, transposed, features, outputs, sums, activation);
    }

    /** Whether it is a product, a bias and an activation alone. */
    boolean isPlain() {
      return factors == null && read == null && sums == null;
    }

    /** Whether the range to which it rounds is that of a batch. */
    boolean readsBatch() {
      return read != null && read.isToOwnRange() || sums != null && sums.isToOwnRange();
    }
  }

  /**
   * An operation on each feature and a number of its own.
   *
   * @param values of each feature
   */
  public record Scaling(Operator operator, float[] values) {
    /** Scales the features of an example, in place. */
    public void apply(float[] features) {
      for (int j = 0; j < features.length; j++) {
        features[j] =
            switch (operator) {
              case ADD -> features[j] + values[j];
              case SUB -> features[j] - values[j];
              case MUL -> features[j] * values[j];
              case DIV -> features[j] / values[j];
            };
      }
    }
  }

  /** What combines a feature with its number; the names are those of ONNX. */
  public enum Operator {
    ADD,
    SUB,
    MUL,
    DIV
  }

  public int features() {
    return layers.get(0).features();
  }

  public int outputs() {
    return layers.get(layers.size() - 1).outputs();
  }

  /** Whether all layers are products, biases and activations alone. */
  public boolean arePlain() {
    return layers.stream().allMatch(Layer::isPlain);
  }

  /** Whether an example's outputs follow from all of its batch, whose range they are rounded to. */
  public boolean mixExamples() {
    return layers.stream().anyMatch(Layer::readsBatch);
  }

  /**
   * Reads a model.
   *
   * @param parameters of it
   * @return empty where it is anything else, or has parameters beside its layers'
   */
  public static Optional<DenseLayers> of(OnnxModel model, GraphParameters parameters) {
    return new Walk(model, parameters).result();
  }

  /** From the output to the input, node by node. */
  private static final class Walk {
    private final OnnxModel model;
    private final GraphParameters parameters;
    private final Map<String, NodeProto> producers;
    private final Deque<Layer> layers = new ArrayDeque<>();
    private final Deque<Scaling> scalings = new ArrayDeque<>();

    // Of the layer that is being read.
    private Activation activation;
    private Rounding sums;
    private String bias;

    Walk(OnnxModel model, GraphParameters parameters) {
      this.model = model;
      this.parameters = parameters;
      producers = model.producers();
    }

    Optional<DenseLayers> result() {
      if (model.inputs().size() != 1 || model.outputs().isEmpty() || !read() || !fit()) {
        return Optional.empty();
      }
      return Optional.of(new DenseLayers(List.copyOf(scalings), List.copyOf(layers)));
    }

    /** Reads the graph; false where something other than layers is between its input and output. */
    private boolean read() {
      String input = model.inputs().get(0).getName();
      String value = model.outputs().get(0).getName();
      while (value != null && !value.equals(input)) {
        NodeProto n = producers.get(value);
        if (n == null || !OnnxModel.isOwn(n) || !n.getOutput(0).equals(value)) {
          return false;
        }
        value = parameters.preparedInputs().contains(value) ? prepared(n) : layered(n);
      }
      return value != null && isAtOutputs() && !layers.isEmpty();
    }

    /** Whether nothing was read yet of the layer that is being read. */
    private boolean isAtOutputs() {
      return activation == null && sums == null && bias == null;
    }

    /** Whether each layer reads what the one before it gives, and all parameters are theirs. */
    private boolean fit() {
      Set<String> own = new HashSet<>();
      int constants = 0;
      int width = layers.getFirst().features();
      for (Scaling scaling : scalings) {
        if (scaling.values().length != width) {
          return false;
        }
      }
      for (Layer layer : layers) {
        for (String constant : new String[] {layer.factors(), layer.weight(), layer.bias()}) {
          if (constant != null) {
            own.add(constant);
            constants++;
          }
        }
        if (layer.features() != width) {
          return false;
        }
        width = layer.outputs();
      }
      Set<String> trained = new HashSet<>();
      parameters.parameters().forEach(p -> trained.add(p.constant()));
      // A constant that two layers share has the gradients of both.
      return own.size() == constants && own.equals(trained);
    }

    /** What a node makes of the input; null where it is more than to scale features. */
    private String prepared(NodeProto n) {
      int width = layers.isEmpty() ? 0 : layers.getFirst().features();
      switch (n.getOpType()) {
        case "Identity":
          return n.getInput(0);
        case "Cast":
          return Attributes.integer(n, "to", 0) == DataType.FLOAT_VALUE ? n.getInput(0) : null;
        case "Flatten":
          return Attributes.integer(n, "axis", 1) == 1 ? n.getInput(0) : null;
        case "Reshape":
          return isRows(model.constant(n.getInput(1)), width) ? n.getInput(0) : null;
        case "DequantizeLinear":
          return scalings.isEmpty() ? rounded(n) : null;
        case "Add":
        case "Sub":
        case "Mul":
        case "Div":
          break;
        default:
          return null;
      }
      int at = model.constant(n.getInput(1)) != null ? 1 : 0;
      boolean commutes = n.getOpType().equals("Add") || n.getOpType().equals("Mul");
      float[] values = values(model.constant(n.getInput(at)), width);
      if (at == 0 && !commutes || values == null) {
        return null;
      }
      scalings.addFirst(
          new Scaling(Operator.valueOf(n.getOpType().toUpperCase(Locale.ROOT)), values));
      return n.getInput(1 - at);
    }

    /** Whether a shape is [examples, features]. */
    private static boolean isRows(OnnxInitializer shape, int features) {
      if (shape == null || shape.type() != DataType.INT64 || shape.elements() != 2) {
        return false;
      }
      long rows = shape.data().getLong(0);
      long columns = shape.data().getLong(Long.BYTES);
      return rows == 0 && columns == -1 || rows <= 0 && columns == features;
    }

    /** One number a feature, where the constant is that or one for all; else null. */
    private static float[] values(OnnxInitializer constant, int features) {
      if (constant.type() != DataType.FLOAT) {
        return null;
      }
      FloatBuffer given = constant.floats();
      float[] values = new float[features];
      if (constant.elements() == 1) {
        Arrays.fill(values, given.get(0));
        return values;
      }
      if (!isLast(constant, features)) {
        return null;
      }
      given.get(0, values);
      return values;
    }

    /** Whether a constant has one number for each of so many columns, and no rows. */
    private static boolean isLast(OnnxInitializer constant, int columns) {
      long[] dims = constant.dims();
      return constant.elements() == columns && dims.length > 0 && dims[dims.length - 1] == columns;
    }

    /** What a node's value comes from; null where it is no part of a layer. */
    private String layered(NodeProto n) {
      return switch (n.getOpType()) {
        case "Identity", "Dropout" -> n.getInput(0); // which drops nothing in evaluation
        case "Relu" -> activated(n, Activation.RELU);
        case "Sigmoid" -> activated(n, Activation.SIGMOID);
        case "Tanh" -> activated(n, Activation.TANH);
        case "LeakyRelu" -> {
          float alpha = Attributes.real(n, "alpha", 0.01f);
          yield alpha >= 0 && alpha <= Float.MAX_VALUE
              ? activated(n, Activation.leakyRelu(alpha))
              : null;
        }
        case "Add" -> {
          int at = model.constant(n.getInput(1)) != null ? 1 : 0;
          yield takeBias(n.getInput(at)) ? n.getInput(1 - at) : null;
        }
        case "Mul" -> {
          int at = model.constant(n.getInput(1)) != null ? 1 : 0;
          yield takeFactors(n.getInput(at)) ? n.getInput(1 - at) : null;
        }
        case "DequantizeLinear" -> rounded(n);
        case "MatMul" -> product(n, false);
        case "Gemm" -> {
          boolean plain =
              Attributes.integer(n, "transA", 0) == 0
                  && Attributes.real(n, "alpha", 1) == 1
                  && Attributes.real(n, "beta", 1) == 1;
          if (n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
            plain &= takeBias(n.getInput(2));
          }
          yield plain ? product(n, Attributes.integer(n, "transB", 0) != 0) : null;
        }
        default -> null;
      };
    }

    /** Of what is made before the next layer reads it, and of a layer's sums. */
    private String rounded(NodeProto n) {
      RoundedActivations.Rounded rounded = RoundedActivations.of(model, producers, n);
      Rounding rounding = rounded == null ? null : Rounding.of(model, rounded);
      if (rounding == null || sums != null || bias != null) {
        return null;
      }
      Layer next = layers.peekFirst();
      if (isAtOutputs() && next != null && next.read() == null && next.factors() == null) {
        layers.addFirst(layers.removeFirst().withRead(rounding));
      } else {
        sums = rounding;
      }
      return rounded.source().getInput(0);
    }

    /** The factors by which what the next layer reads is multiplied. */
    private boolean takeFactors(String name) {
      OnnxInitializer factors = model.constant(name);
      Layer next = layers.peekFirst();
      if (!isAtOutputs()
          || factors == null
          || next == null
          || next.factors() != null
          || !isLast(factors, next.features())) {
        return false;
      }
      layers.addFirst(layers.removeFirst().withFactors(name));
      return true;
    }

    private String activated(NodeProto n, Activation function) {
      if (!isAtOutputs()) {
        return null;
      }
      activation = function;
      return n.getInput(0);
    }

    private boolean takeBias(String constant) {
      if (bias != null) {
        return false;
      }
      bias = constant;
      return true;
    }

    private String product(NodeProto n, boolean isTurned) {
      String name = n.getInput(1);
      boolean outputsFirst = isTurned;
      NodeProto turn = producers.get(name);
      if (turn != null && OnnxModel.isOwn(turn, "Transpose")) {
        long[] axes = Attributes.integers(turn, "perm");
        if (axes != null && !Arrays.equals(axes, new long[] {1, 0})) {
          return null;
        }
        name = turn.getInput(0);
        outputsFirst = !isTurned;
      }
      OnnxInitializer weight = model.constant(name);
      if (weight == null || weight.dims().length != 2 || weight.elements() == 0) {
        return null;
      }
      int outputs = Math.toIntExact(weight.dims()[outputsFirst ? 0 : 1]);
      int features = Math.toIntExact(weight.dims()[outputsFirst ? 1 : 0]);
      OnnxInitializer added = bias == null ? null : model.constant(bias);
      if (bias != null && (added == null || !isLast(added, outputs))) {
        return null;
      }
      layers.addFirst(
          new Layer(null, null, name, bias, !outputsFirst, features, outputs, sums, activation));
      activation = null;
      sums = null;
      bias = null;
      return n.getInput(0);
    }
  }
}
