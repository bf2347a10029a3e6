package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.google.protobuf.ByteString;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.function.DoublePredicate;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Raises a model from operator set 7 or later to 13. Operators whose meaning is the same in both
 * stay; those of which an attribute became an input are rewritten; a Softmax over several axes is
 * spelled out; any other operator is refused by name. The changes are those of the changelog of the
 * ONNX specification.
 */
public final class OpsetUpgrade {
  /** The highest version that this class can produce. */
  public static final long TARGET = 13;

  /** Before this version, broadcasting was an attribute. */
  private static final long OLDEST = 7;

  /** Operators that mean the same in versions 7 to 13, apart from more types and negative axes. */
  private static final Set<String> SAME =
      Set.of(
          "Abs",
          "Acos",
          "Acosh",
          "Add",
          "And",
          "ArgMax",
          "ArgMin",
          "Asin",
          "Asinh",
          "Atan",
          "Atanh",
          "AveragePool",
          "BitShift",
          "Cast",
          "Ceil",
          "Celu",
          "Compress",
          "Concat",
          "ConcatFromSequence",
          "Constant",
          "ConstantOfShape",
          "Conv",
          "ConvInteger",
          "ConvTranspose",
          "Cos",
          "Cosh",
          "CumSum",
          "DepthToSpace",
          "DequantizeLinear",
          "Det",
          "Div",
          "DynamicQuantizeLinear",
          "Einsum",
          "Elu",
          "Equal",
          "Erf",
          "Exp",
          "Expand",
          "EyeLike",
          "Flatten",
          "Floor",
          "GRU",
          "Gather",
          "GatherElements",
          "GatherND",
          "Gemm",
          "GlobalAveragePool",
          "GlobalLpPool",
          "GlobalMaxPool",
          "Greater",
          "GreaterOrEqual",
          "HardSigmoid",
          "Identity",
          "If",
          "InstanceNormalization",
          "IsInf",
          "IsNaN",
          "LRN",
          "LSTM",
          "LayerNormalization", // of ONNX Runtime, which has it in all sets
          "LeakyRelu",
          "Less",
          "LessOrEqual",
          "Log",
          "LpNormalization",
          "LpPool",
          "MatMul",
          "MatMulInteger",
          "Max",
          "MaxPool",
          "MaxRoiPool",
          "MaxUnpool",
          "Mean",
          "MeanVarianceNormalization",
          "Min",
          "Mod",
          "Mul",
          "Multinomial",
          "Neg",
          "NonMaxSuppression",
          "NonZero",
          "Not",
          "OneHot",
          "Or",
          "PRelu",
          "Pow",
          "QLinearConv",
          "QLinearMatMul",
          "QuantizeLinear",
          "RNN",
          "RandomNormal",
          "RandomNormalLike",
          "RandomUniform",
          "RandomUniformLike",
          "Range",
          "Reciprocal",
          "ReduceL1",
          "ReduceL2",
          "ReduceLogSum",
          "ReduceLogSumExp",
          "ReduceMax",
          "ReduceMean",
          "ReduceMin",
          "ReduceProd",
          "ReduceSumSquare",
          "Relu",
          "Reshape",
          "ReverseSequence",
          "RoiAlign",
          "Round",
          "ScatterElements",
          "ScatterND",
          "Selu",
          "Shape",
          "Shrink",
          "Sigmoid",
          "Sign",
          "SimplifiedLayerNormalization", // as LayerNormalization
          "Sin",
          "Sinh",
          "Size",
          "Softplus",
          "Softsign",
          "SpaceToDepth",
          "Sqrt",
          "StringNormalizer",
          "Sub",
          "Sum",
          "Tan",
          "Tanh",
          "TfIdfVectorizer",
          "ThresholdedRelu",
          "Tile",
          "Transpose",
          "Unique",
          "Where",
          "Xor");

  /** The version from which on an operator means what it means in 13. */
  private static long sameSince(String op) {
    if (SAME.contains(op)) {
      return 0;
    }
    return switch (op) {
      case "BatchNormalization" -> 9;
      case "Slice" -> 10;
      case "Clip",
              "Pad",
              "Resize",
              "TopK",
              "Loop",
              "SequenceAt",
              "SequenceConstruct",
              "SequenceEmpty",
              "SequenceErase",
              "SequenceInsert",
              "SequenceLength",
              "SplitToSequence" ->
          11;
      case "Dropout" -> 12;
      default -> Long.MAX_VALUE;
    };
  }

  private final OnnxModel model;
  private final OnnxModel.Names names;
  private final long version;

  private OpsetUpgrade(OnnxModel model) {
    this.model = model;
    this.names = model.names();
    this.version = model.opset("");
  }

  /**
   * Raises {@code model} to at least {@code wanted}, at most 13; a model that has it stays.
   *
   * @throws InputException if an operator cannot be raised, naming it
   */
  public static void raise(OnnxModel model, long wanted) {
    if (wanted > TARGET) {
      throw new IllegalArgumentException("operator set " + wanted);
    }
    if (model.opset("") >= wanted) {
      return;
    }
    OpsetUpgrade upgrade = new OpsetUpgrade(model);
    if (upgrade.version < OLDEST) {
      throw new InputException(
          model.name() + " uses operator set " + upgrade.version + "; export it with 13 or later");
    }
    List<NodeProto> nodes = upgrade.convert(model.nodes());
    model.setOpset("", TARGET);
    model.requireIrVersion(7);
    model.setNodes(nodes);
  }

  private List<NodeProto> convert(List<NodeProto> nodes) {
    List<NodeProto> out = new ArrayList<>();
    for (NodeProto n : nodes) {
      boolean standard = OnnxModel.isOwn(n);
      NodeProto inner = InnerGraphs.withNodes(n, this::convert);
      if (!standard || sameSince(n.getOpType()) <= version) {
        out.add(inner);
      } else {
        convert(inner, out);
      }
    }
    return out;
  }

  private void convert(NodeProto n, List<NodeProto> out) {
    if (n.getInputCount() == 0 || n.getOutputCount() == 0) {
      throw refused(n, "it has no input or no output");
    }
    NodeProto.Builder b = n.toBuilder();
    switch (n.getOpType()) {
      case "Unsqueeze", "Squeeze", "ReduceSum" -> {
        List<Long> axes = remove(b, "axes");
        if (axes != null) {
          b.addInput(constant(n, "axes", axes, out));
        }
      }
      case "Split" -> {
        List<Long> parts = remove(b, "split");
        if (parts != null) {
          b.addInput(constant(n, "split", parts, out));
        }
      }
      case "Slice" -> {
        List<Long> axes = remove(b, "axes");
        b.addInput(constant(n, "starts", remove(b, "starts"), out));
        b.addInput(constant(n, "ends", remove(b, "ends"), out));
        if (axes != null) {
          b.addInput(constant(n, "axes", axes, out));
        }
      }
      case "TopK" -> {
        if (version < 10) {
          b.addInput(constant(n, "k", List.of(Attributes.integer(n, "k", 1)), out));
          remove(b, "k");
        }
      }
      case "Clip" -> {
        float min = Attributes.real(n, "min", -Float.MAX_VALUE);
        float max = Attributes.real(n, "max", Float.MAX_VALUE);
        remove(b, "min");
        remove(b, "max");
        b.addInput(constant(n, "min", min, out)).addInput(constant(n, "max", max, out));
      }
      case "Pad" -> {
        float value = Attributes.real(n, "value", 0);
        b.addInput(constant(n, "pads", remove(b, "pads"), out));
        remove(b, "value");
        b.addInput(constant(n, "value", value, out));
      }
      case "Upsample", "Resize" -> {
        resize(n, b, out);
        return;
      }
      case "Dropout" -> remove(b, "ratio");
      case "BatchNormalization" -> {
        if (Attributes.integer(n, "spatial", 1) != 1) {
          throw refused(n, "its statistics are not per channel");
        }
        remove(b, "spatial");
      }
      case "Softmax", "LogSoftmax", "Hardmax" -> {
        overSeveralAxes(n, out);
        return;
      }
      default -> throw refused(n, "its meaning changed");
    }
    out.add(b.build());
  }

  /**
   * Upsample, and Resize before 11: output i is at i / scale in the input. The nearest is the one below along axes that grow and, as
   * ONNX Runtime has it, the one above along those that shrink, so that nearest is two nodes where scales may do both.
   */
  private void resize(NodeProto n, NodeProto.Builder b, List<NodeProto> out) {
    AttributeProto given = Attributes.find(n, "scales");
    String scales;
    if (n.getInputCount() == 2 && !n.getInput(1).isEmpty()) {
      scales = n.getInput(1);
    } else if (version < 9 && given != null && given.getFloatsCount() > 0) {
      float[] values = new float[given.getFloatsCount()];
      for (int i = 0; i < values.length; i++) {
        values[i] = given.getFloats(i);
      }
      scales =
          constant(
              n, "scales", OnnxInitializer.floats("", new long[] {values.length}, values), out);
    } else {
      throw refused(n, "its scales are missing");
    }
    AttributeProto mode = Attributes.find(n, "mode");
    String how = mode == null ? "nearest" : mode.getS().toStringUtf8();
    b.setOpType("Resize").clearInput().addInput(n.getInput(0)).addInput("").addInput(scales);
    b.clearAttribute()
        .addAttribute(Attributes.attribute("mode", how.equals("bilinear") ? "linear" : how))
        .addAttribute(Attributes.attribute("coordinate_transformation_mode", "asymmetric"));
    boolean nearest = how.equals("nearest");
    if (!nearest || n.getOpType().equals("Upsample") || are(scales, s -> s >= 1)) {
      out.add(b.addAttribute(Attributes.attribute("nearest_mode", "floor")).build());
    } else if (are(scales, s -> s <= 1)) {
      out.add(b.addAttribute(Attributes.attribute("nearest_mode", "ceil")).build());
    } else {
      String one = constant(n, "one", 1, out);
      String growing = names.unique(scales + "_growing");
      String shrinking = names.unique(scales + "_shrinking");
      String grown = names.unique(n.getOutput(0) + "_grown");
      out.add(Nodes.node("Max", growing, scales, one).build());
      out.add(Nodes.node("Min", shrinking, scales, one).build());
      NodeProto.Builder first = b.clone().clearName().setInput(2, growing).setOutput(0, grown);
      out.add(first.addAttribute(Attributes.attribute("nearest_mode", "floor")).build());
      b.setInput(0, grown).setInput(2, shrinking);
      out.add(b.addAttribute(Attributes.attribute("nearest_mode", "ceil")).build());
    }
  }

  /** Whether a value is known, and all its numbers are such. */
  private boolean are(String value, DoublePredicate such) {
    OnnxInitializer known = model.constant(value);
    if (known == null || known.type() != DataType.FLOAT) {
      return false;
    }
    FloatBuffer numbers = known.floats();
    while (numbers.hasRemaining()) {
      if (!such.test(numbers.get())) {
        return false;
      }
    }
    return true;
  }

  /**
   * Before version 13 a Softmax ran over all axes from {@code axis} on, as if flattened. Over the
   * last axis alone both mean the same.
   */
  private void overSeveralAxes(NodeProto n, List<NodeProto> out) {
    long axis = Attributes.integer(n, "axis", 1);
    NodeProto.Builder b = n.toBuilder();
    remove(b, "axis");
    b.addAttribute(Attributes.attribute("axis", -1));
    if (axis == -1 || axis + 1 == rank(n.getInput(0)) || axis + 1 == rank(n.getOutput(0))) {
      out.add(b.build());
      return;
    }
    String base = n.getOutput(0);
    String shape = names.unique(base + "_shape");
    String flat = names.unique(base + "_flat");
    String result = names.unique(base + "_result");
    out.add(Nodes.node("Shape", shape, n.getInput(0)).build());
    out.add(
        Nodes.node("Flatten", flat, n.getInput(0))
            .addAttribute(Attributes.attribute("axis", axis))
            .build());
    out.add(b.setInput(0, flat).setOutput(0, result).build());
    out.add(Nodes.node("Reshape", base, result, shape).clearName().build());
  }

  /** How many axes a value has; 0 where the model does not say it. */
  private int rank(String value) {
    ValueInfoProto info = model.valueInfo(value);
    return info == null ? 0 : info.getType().getTensorType().getShape().getDimCount();
  }

  private InputException refused(NodeProto n, String why) {
    return new InputException(
        model.name()
            + " cannot be raised from operator set "
            + version
            + " to "
            + TARGET
            + " because of "
            + n.getOpType()
            + " '"
            + n.getName()
            + "': "
            + why
            + "; export it with operator set 13 or later");
  }

  /** Removes a list attribute and returns it; null if there is none. */
  private static List<Long> remove(NodeProto.Builder b, String attribute) {
    for (int i = 0; i < b.getAttributeCount(); i++) {
      if (b.getAttribute(i).getName().equals(attribute)) {
        List<Long> values = List.copyOf(b.getAttribute(i).getIntsList());
        b.removeAttribute(i);
        return values;
      }
    }
    return null;
  }

  private String constant(NodeProto n, String what, List<Long> values, List<NodeProto> out) {
    if (values == null) {
      throw refused(n, "its attribute " + what + " is missing");
    }
    long[] array = values.stream().mapToLong(Long::longValue).toArray();
    return constant(n, what, OnnxInitializer.int64s("", new long[] {array.length}, array), out);
  }

  private String constant(NodeProto n, String what, float value, List<NodeProto> out) {
    return constant(n, what, OnnxInitializer.floats("", new long[0], value), out);
  }

  private String constant(NodeProto n, String what, OnnxInitializer values, List<NodeProto> out) {
    String name = names.unique(n.getOutput(0) + "_" + what);
    TensorProto.Builder tensor = TensorProto.newBuilder().setDataType(values.type().getNumber());
    for (long d : values.dims()) {
      tensor.addDims(d);
    }
    byte[] raw = new byte[(int) values.byteLength()];
    values.data().get(raw);
    tensor.setRawData(ByteString.copyFrom(raw));
    out.add(
        NodeProto.newBuilder()
            .setOpType("Constant")
            .setName(name)
            .addOutput(name)
            .addAttribute(
                AttributeProto.newBuilder()
                    .setName("value")
                    .setType(AttributeType.TENSOR)
                    .setT(tensor))
            .build());
    return name;
  }
}
