package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The element types of the tensors of a model, of its main graph and of those inside it, as far as operators say them. What
 * the model itself says of values between is not believed. Not safe for several threads while nodes are followed.
 */
public final class ValueTypes {
  private static final Set<String> BOOLEAN =
      Set.of(
          "And",
          "Equal",
          "Greater",
          "GreaterOrEqual",
          "IsInf",
          "IsNaN",
          "Less",
          "LessOrEqual",
          "Not",
          "OptionalHasElement",
          "Or",
          "RegexFullMatch",
          "Xor");

  private static final Set<String> INDICES =
      Set.of("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "SequenceLength", "Shape", "Size");

  /** Operators that take or give sequences, optional values or words. */
  private static final Set<String> NO_TENSORS =
      Set.of(
          "ConcatFromSequence",
          "Optional",
          "OptionalGetElement",
          "SequenceAt",
          "SequenceConstruct",
          "SequenceEmpty",
          "SequenceErase",
          "SequenceInsert",
          "SequenceMap",
          "SplitToSequence");

  /** Operators of ONNX Runtime whose outputs have the type of their first input. */
  private static final Set<String> RUNTIMES =
      Set.of(
          "Attention",
          "BiasGelu",
          "BiasSplitGelu",
          "FastGelu",
          "FusedConv",
          "FusedGemm",
          "FusedMatMul",
          "Gelu",
          "GroupNorm",
          "GroupQueryAttention",
          "MatMulBnb4",
          "MatMulNBits",
          "MultiHeadAttention",
          "QuickGelu",
          "RotaryEmbedding");

  /** Others of ONNX Runtime whose outputs' types are known. */
  private static final Set<String> OTHER_RUNTIMES =
      Set.of(
          "DequantizeLinear",
          "EmbedLayerNormalization",
          "GatherBlockQuantized",
          "SkipLayerNormalization",
          "SkipSimplifiedLayerNormalization");

  private final Map<String, DataType> types = new HashMap<>();

  private ValueTypes() {}

  /** Whether a type is float32, float16 or bfloat16. */
  public static boolean isFloat(DataType type) {
    return type == DataType.FLOAT || type == DataType.FLOAT16 || type == DataType.BFLOAT16;
  }

  /** The types of all values of a model. */
  public static ValueTypes of(OnnxModel model) {
    ValueTypes types = ofGiven(model);
    types.believe(model.outputs());
    model.nodes().forEach(types::follow);
    return types;
  }

  /** Those of a model's inputs and initializers, before any node is {@linkplain #follow followed}. */
  static ValueTypes ofGiven(OnnxModel model) {
    ValueTypes types = new ValueTypes();
    model.initializers().forEach(i -> types.put(i.name(), i.type()));
    model.inputs().forEach(types::put);
    return types;
  }

  /** Whether the types of what a node gives are told by its operator: of ONNX's own, and some of ONNX Runtime's. */
  public static boolean isKnown(NodeProto n) {
    return OnnxModel.isOwn(n)
        || FusedNodes.isRuntimes(n)
            && (RUNTIMES.contains(n.getOpType()) || OTHER_RUNTIMES.contains(n.getOpType()));
  }

  /** The type of a tensor; null where it is not known, and for what is no tensor. */
  public DataType of(String value) {
    return types.get(value);
  }

  private void put(String value, DataType type) {
    if (type != null && type != DataType.UNDEFINED && !value.isEmpty()) {
      types.put(value, type);
    }
  }

  private void put(ValueInfoProto v) {
    TypeProto type = v.getType();
    if (type.hasTensorType()) {
      put(v.getName(), DataType.forNumber(type.getTensorType().getElemType()));
    }
  }

  /** Takes the types that a graph says of what it gives, until the nodes that make it tell others. */
  private void believe(List<ValueInfoProto> outputs) {
    outputs.stream().filter(v -> of(v.getName()) == null).forEach(this::put);
  }

  private DataType input(NodeProto n, int i) {
    return i < n.getInputCount() ? types.get(n.getInput(i)) : null;
  }

  /** Follows a node whose inputs are known, and those inside it. */
  void follow(NodeProto n) {
    for (GraphProto g : InnerGraphs.of(n)) {
      g.getInitializerList().forEach(t -> put(t.getName(), DataType.forNumber(t.getDataType())));
      g.getInputList().forEach(this::put);
      feed(n, g);
      believe(g.getOutputList());
      g.getNodeList().forEach(this::follow);
    }
    List<DataType> made = made(n);
    for (int i = 0; i < n.getOutputCount(); i++) {
      put(n.getOutput(i), made.get(Math.min(i, made.size() - 1)));
    }
  }

  /** What the body of a Loop or Scan is fed has the types of what its node reads, which bodies need not say. */
  private void feed(NodeProto n, GraphProto body) {
    boolean loop = n.getOpType().equals("Loop");
    // The first set's Scan reads how long its sequences are besides.
    int more = Math.max(0, n.getInputCount() - body.getInputCount());
    for (int i = 0; i < body.getInputCount(); i++) {
      DataType fed = input(n, i + more);
      if (loop && i < 2) {
        fed = i == 0 ? DataType.INT64 : DataType.BOOL; // which round it is, and whether it goes on
      }
      put(body.getInput(i).getName(), fed);
    }
  }

  /** The types of a node's outputs, the last for all that follow; a list of null where they are not known. */
  private List<DataType> made(NodeProto n) {
    if (!OnnxModel.isOwn(n)) {
      return FusedNodes.isRuntimes(n) ? ofRuntimes(n) : alike(null);
    }
    String operator = n.getOpType();
    DataType first = input(n, 0);
    if (BOOLEAN.contains(operator)) {
      return alike(DataType.BOOL);
    } else if (INDICES.contains(operator)) {
      return alike(DataType.INT64);
    } else if (NO_TENSORS.contains(operator)) {
      return alike(null);
    }
    return switch (operator) {
      case "Cast" -> alike(named(n, "to", null));
      case "CastLike" -> alike(input(n, 1));
      case "Constant" -> alike(ofConstant(n));
      case "ConstantOfShape" -> {
        AttributeProto value = Attributes.find(n, "value");
        yield alike(
            value == null ? DataType.FLOAT : DataType.forNumber(value.getT().getDataType()));
      }
      case "RandomNormal", "RandomUniform" -> alike(named(n, "dtype", DataType.FLOAT));
      case "Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike" ->
          alike(named(n, "dtype", first));
      case "Multinomial" -> alike(named(n, "dtype", DataType.INT32));
      case "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix" ->
          alike(named(n, "output_datatype", DataType.FLOAT));
      case "BatchNormalization" -> types(first, input(n, 3) == null ? first : input(n, 3));
      case "LayerNormalization" -> types(first, named(n, "stash_type", DataType.FLOAT));
      case "MaxPool", "TopK", "Unique" -> types(first, DataType.INT64);
      case "Dropout" -> types(first, DataType.BOOL);
      case "OneHot" -> alike(input(n, 2));
      case "Where" -> alike(input(n, 1));
      case "If", "Scan" -> ofGraph(n, 0);
      case "Loop" -> ofGraph(n, 1); // the first is the condition
      case "QuantizeLinear" ->
          alike(named(n, "output_dtype", input(n, 2) == null ? DataType.UINT8 : input(n, 2)));
      case "DequantizeLinear" -> alike(named(n, "output_dtype", input(n, 1)));
      case "DynamicQuantizeLinear" -> List.of(DataType.UINT8, DataType.FLOAT, DataType.UINT8);
      case "QLinearConv", "QLinearMatMul" -> alike(input(n, 7));
      case "ConvInteger", "MatMulInteger" -> alike(DataType.INT32);
      case "TfIdfVectorizer" -> alike(DataType.FLOAT);
      case "ImageDecoder" -> alike(DataType.UINT8);
      case "StringSplit" -> List.of(DataType.STRING, DataType.INT64);
      default -> alike(first);
    };
  }

  private List<DataType> ofRuntimes(NodeProto n) {
    return switch (n.getOpType()) {
      case "GatherBlockQuantized" -> alike(input(n, 2));
      case "DequantizeLinear" -> alike(input(n, 1));
      case "EmbedLayerNormalization" -> Arrays.asList(input(n, 2), DataType.INT32, input(n, 2));
      case "SkipLayerNormalization", "SkipSimplifiedLayerNormalization" ->
          Arrays.asList(input(n, 0), DataType.FLOAT, DataType.FLOAT, input(n, 0));
      default -> alike(RUNTIMES.contains(n.getOpType()) ? input(n, 0) : null);
    };
  }

  /** What the first graph of a node gives from an output on, as others of the node do. */
  private List<DataType> ofGraph(NodeProto n, int from) {
    List<DataType> made = new ArrayList<>();
    InnerGraphs.of(n).stream()
        .limit(1)
        .flatMap(g -> g.getOutputList().stream())
        .skip(from)
        .forEach(v -> made.add(of(v.getName())));
    return made.isEmpty() ? alike(null) : made;
  }

  private static DataType ofConstant(NodeProto n) {
    for (AttributeProto a : n.getAttributeList()) {
      TensorProto tensor = a.hasSparseTensor() ? a.getSparseTensor().getValues() : a.getT();
      switch (a.getName()) {
        case "value", "sparse_value" -> {
          return DataType.forNumber(tensor.getDataType());
        }
        case "value_float", "value_floats" -> {
          return DataType.FLOAT;
        }
        case "value_int", "value_ints" -> {
          return DataType.INT64;
        }
        case "value_string", "value_strings" -> {
          return DataType.STRING;
        }
        default -> {}
      }
    }
    return null;
  }

  /** The type that an attribute says; {@code otherwise} where the node has none, or its number is 0. */
  private static DataType named(NodeProto n, String attribute, DataType otherwise) {
    int number = (int) Attributes.integer(n, attribute, 0);
    return number == 0 ? otherwise : DataType.forNumber(number);
  }

  private static List<DataType> types(DataType first, DataType others) {
    return Arrays.asList(first, others);
  }

  private static List<DataType> alike(DataType type) {
    return Collections.singletonList(type);
  }
}
