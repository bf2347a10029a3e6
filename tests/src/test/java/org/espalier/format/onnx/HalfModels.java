package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.List;
import java.util.stream.Stream;

/** Makes float16 or bfloat16 models of float32 ones, as converters do. */
public final class HalfModels {
  /** What converters leave of larger values, such as those that stand for minus infinity in masks. */
  private static final float LARGEST = 1e4f;

  private HalfModels() {}

  /** The model with all that is float32 in 16 bits, inputs and outputs too. */
  public static ModelProto of(ModelProto model, DataType half) {
    return model.toBuilder().setGraph(graph(model.getGraph(), half)).build();
  }

  /** The model in 16 bits inside, behind and before Casts. */
  public static ModelProto inside(ModelProto model, DataType half) {
    GraphProto outer = model.getGraph();
    GraphProto.Builder g = graph(outer, half).toBuilder();
    List<NodeProto> nodes = List.copyOf(g.getNodeList());
    g.clearNode().clearInput().clearOutput();
    g.addAllInput(outer.getInputList()).addAllOutput(outer.getOutputList());
    List<String> cast =
        Stream.concat(outer.getInputList().stream(), outer.getOutputList().stream())
            .filter(v -> v.getType().getTensorType().getElemType() == DataType.FLOAT_VALUE)
            .map(ValueInfoProto::getName)
            .toList();
    outer.getInputList().stream()
        .map(ValueInfoProto::getName)
        .filter(cast::contains)
        .forEach(name -> g.addNode(cast(name, name + "_half", half)));
    for (NodeProto n : nodes) {
      NodeProto.Builder b = n.toBuilder();
      for (int i = 0; i < n.getInputCount(); i++) {
        b.setInput(i, n.getInput(i) + (cast.contains(n.getInput(i)) ? "_half" : ""));
      }
      for (int i = 0; i < n.getOutputCount(); i++) {
        b.setOutput(i, n.getOutput(i) + (cast.contains(n.getOutput(i)) ? "_half" : ""));
      }
      g.addNode(b);
    }
    outer.getOutputList().stream()
        .map(ValueInfoProto::getName)
        .filter(cast::contains)
        .forEach(name -> g.addNode(cast(name + "_half", name, DataType.FLOAT)));
    return model.toBuilder().setGraph(g).build();
  }

  private static NodeProto cast(String from, String to, DataType type) {
    return SmallModels.node(
        "Cast", "", List.of(from), to, SmallModels.attribute("to", type.getNumber()));
  }

  private static GraphProto graph(GraphProto g, DataType half) {
    GraphProto.Builder b = g.toBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      b.setInitializer(i, tensor(g.getInitializer(i), half));
    }
    for (List<ValueInfoProto.Builder> values :
        List.of(b.getInputBuilderList(), b.getOutputBuilderList(), b.getValueInfoBuilderList())) {
      for (ValueInfoProto.Builder v : values) {
        if (v.getType().getTensorType().getElemType() == DataType.FLOAT_VALUE) {
          v.getTypeBuilder().getTensorTypeBuilder().setElemType(half.getNumber());
        }
      }
    }
    for (int k = 0; k < g.getNodeCount(); k++) {
      b.setNode(k, node(g.getNode(k), half));
    }
    return b.build();
  }

  private static NodeProto node(NodeProto n, DataType half) {
    NodeProto.Builder b = InnerGraphs.changed(n, g -> graph(g, half)).toBuilder();
    for (AttributeProto.Builder a : b.getAttributeBuilderList()) {
      if (a.hasT()) {
        a.setT(tensor(a.getT(), half));
      }
      if (a.getName().equals("to") && a.getI() == DataType.FLOAT_VALUE) {
        a.setI(half.getNumber());
      }
    }
    return b.build();
  }

  private static TensorProto tensor(TensorProto t, DataType half) {
    if (t.getDataType() != DataType.FLOAT_VALUE) {
      return t;
    }
    OnnxInitializer i = OnnxInitializer.ofMessage(t);
    float[] values = new float[(int) i.elements()];
    i.floats().get(values);
    for (int k = 0; k < values.length; k++) {
      values[k] = Math.max(-LARGEST, Math.min(LARGEST, values[k]));
    }
    return OnnxInitializer.floats(i.name(), i.dims(), values).rounded(half).message();
  }
}
