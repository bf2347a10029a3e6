package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.channels.ValueShapes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SpelledOut;
import org.espalier.format.onnx.SpelledOut.LayerNorm;
import org.espalier.format.onnx.ValueTypes;

/**
 * Says of the operands of sums with a layer norm behind them that they have one shape. ONNX Runtime joins such a sum and its norm
 * only where it knows that, which of exported encoders it does not, and its kernel for a layer norm alone takes five times as long
 * since 1.28. Of sums that are float32 when they are found. Of one use.
 */
public final class SumShapes {
  /** The lengths of such sums of three axes, by the sums' names. */
  private final Map<String, long[]> shapes = new HashMap<>();

  /** What lengths that are not known are called. */
  private final Map<Long, String> names = new HashMap<>();

  private SumShapes() {}

  /** Says it in a model as it is. */
  public static void say(OnnxModel model) {
    find(model).apply(model);
  }

  /** Finds such sums in a model before it is rewritten, when shapes can be told. */
  static SumShapes find(OnnxModel model) {
    SumShapes found = new SumShapes();
    ValueShapes shapes = new ValueShapes(model, true);
    for (ValueInfoProto input : model.inputs()) {
      TensorShapeProto said = input.getType().getTensorType().getShape();
      long[] lengths = shapes.of(input.getName());
      for (int i = 0; i < said.getDimCount(); i++) {
        if (!said.getDim(i).getDimParam().isEmpty() && !ValueShapes.isKnown(lengths[i])) {
          found.names.put(lengths[i], said.getDim(i).getDimParam());
        }
      }
    }
    SpelledOut spelled = new SpelledOut(model);
    for (NodeProto n : model.nodes()) {
      String x = normed(n, model, spelled);
      NodeProto sum = x == null ? null : spelled.producer(x, "Add");
      if (sum != null) {
        long[] a = shapes.of(sum.getInput(0));
        long[] b = shapes.of(sum.getInput(1));
        if (a != null && a.length == 3 && Arrays.equals(a, b)) {
          found.shapes.put(x, a);
        }
      }
    }
    return found;
  }

  /** What a node is the last of a layer norm of float32 of; null where it is not. */
  private static String normed(NodeProto n, OnnxModel model, SpelledOut spelled) {
    if (!OnnxModel.isOwn(n, "LayerNormalization")) {
      LayerNorm norm = spelled.layerNorm(n);
      return norm == null ? null : norm.x();
    }
    OnnxInitializer gamma = model.constant(n.getInput(1));
    return gamma != null && gamma.type() == DataType.FLOAT ? n.getInput(0) : null;
  }

  /** Says it of the operands that the sums have now, as far as they are there still. */
  void apply(OnnxModel model) {
    ValueTypes types = ValueTypes.of(model);
    Set<String> given = new HashSet<>(model.outputNames());
    model.inputs().forEach(v -> given.add(v.getName()));
    for (NodeProto n : model.nodes()) {
      long[] lengths = OnnxModel.isOwn(n, "Add") ? shapes.get(n.getOutput(0)) : null;
      if (lengths == null) {
        continue;
      }
      for (String operand : n.getInputList()) {
        DataType type = types.of(operand);
        if (type != null && model.constant(operand) == null && given.add(operand)) {
          model.setValueInfo(info(operand, type, lengths));
        }
      }
    }
  }

  private ValueInfoProto info(String value, DataType type, long[] lengths) {
    TensorShapeProto.Builder shape = TensorShapeProto.newBuilder();
    for (long length : lengths) {
      TensorShapeProto.Dimension.Builder dimension = shape.addDimBuilder();
      if (ValueShapes.isKnown(length)) {
        dimension.setDimValue(length);
      } else {
        dimension.setDimParam(names.computeIfAbsent(length, id -> "length_" + names.size()));
      }
    }
    return ValueInfoProto.newBuilder()
        .setName(value)
        .setType(
            TypeProto.newBuilder()
                .setTensorType(
                    TypeProto.Tensor.newBuilder().setElemType(type.getNumber()).setShape(shape)))
        .build();
  }
}
