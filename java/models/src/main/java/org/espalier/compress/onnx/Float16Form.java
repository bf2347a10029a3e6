package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.List;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SpelledOut;
import org.espalier.format.onnx.SpelledOut.LayerNorm;
import org.espalier.format.onnx.ValueTypes;

/**
 * Exact rewrites after which more of a model can be float16:
 *
 * <ul>
 *   <li>constants are tensors, those too that are one number behind a {@code Cast}; a {@code CastLike} is a {@code Cast};
 *   <li>a {@code BatchNormalization} behind a {@code Conv} is part of it;
 *   <li>a layer norm that is spelled out becomes one operator, ONNX Runtime's in sets before 17: it sums in float32.
 * </ul>
 */
final class Float16Form {
  private final OnnxModel model;

  /** Of the model as it was. */
  private final ValueTypes types;

  private Float16Form(OnnxModel model) {
    this.model = model;
    this.types = ValueTypes.of(model);
  }

  /** Rewrites {@code model} in place. */
  static void apply(OnnxModel model) {
    Float16Form form = new Float16Form(model);
    model.setNodes(model.nodes().stream().map(form::plain).toList());
    BatchNormFolding.apply(model);
    form.joinLayerNorms();
  }

  /** A node as the simplest that it is, with those inside it: a tensor where its numbers are constant, a Cast for a CastLike. */
  private NodeProto plain(NodeProto node) {
    boolean like = OnnxModel.isOwn(node, "CastLike") && node.getInputCount() == 2;
    NodeProto n = like ? cast(node, types.of(node.getInput(1))) : node;
    OnnxInitializer tensor =
        switch (OnnxModel.isOwn(n) ? n.getOpType() : "") {
          case "Constant" -> ofNumbers(n);
          case "Cast" -> ofOneCast(n);
          default -> null;
        };
    if (tensor != null) {
      return n.toBuilder()
          .setOpType("Constant")
          .clearInput()
          .clearAttribute()
          .addAttribute(Attributes.attribute("value", tensor))
          .build();
    }
    return InnerGraphs.withEachNode(n, this::plain);
  }

  /** ONNX Runtime puts Casts around a CastLike of float16 that do not fit; where the type is unknown it is left alone. */
  private static NodeProto cast(NodeProto like, DataType type) {
    return type == null
        ? like
        : like.toBuilder()
            .setOpType("Cast")
            .clearInput()
            .addInput(like.getInput(0))
            .addAttribute(Attributes.attribute("to", type.getNumber()))
            .build();
  }

  /** The tensor of a Constant that tells its numbers without one; null for others. */
  private static OnnxInitializer ofNumbers(NodeProto n) {
    AttributeProto one = Attributes.find(n, "value_float");
    AttributeProto many = Attributes.find(n, "value_floats");
    if (one != null) {
      return OnnxInitializer.floats(n.getOutput(0), new long[0], one.getF());
    } else if (many == null) {
      return null;
    }
    float[] values = new float[many.getFloatsCount()];
    for (int i = 0; i < values.length; i++) {
      values[i] = many.getFloats(i);
    }
    return OnnxInitializer.floats(n.getOutput(0), new long[] {values.length}, values);
  }

  /** What a Cast makes of a constant of float64 or int64 that is one number; null for other Casts. */
  private OnnxInitializer ofOneCast(NodeProto n) {
    OnnxInitializer c = model.constant(n.getInput(0));
    if (c == null || c.elements() != 1 || Attributes.integer(n, "to", 0) != DataType.FLOAT_VALUE) {
      return null;
    }
    return switch (c.type()) {
      case DOUBLE ->
          OnnxInitializer.floats(n.getOutput(0), c.dims(), (float) c.data().getDouble(0));
      case INT64 -> OnnxInitializer.floats(n.getOutput(0), c.dims(), c.data().getLong(0));
      default -> null;
    };
  }

  private void joinLayerNorms() {
    SpelledOut spelled = new SpelledOut(model);
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      LayerNorm norm = spelled.layerNorm(n);
      nodes.add(
          norm == null
              ? n
              : Nodes.node(
                      "LayerNormalization", n.getOutput(0), norm.x(), norm.gamma(), norm.beta())
                  .setName(n.getName())
                  .addAttribute(Attributes.attribute("axis", -1))
                  .addAttribute(Attributes.attribute("epsilon", norm.epsilon()))
                  .build());
    }
    model.setNodes(nodes);
    RuntimeForm.removeUnused(model);
  }
}
