package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Map;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/** Short forms of the nodes that the rewriting of graphs needs. */
final class Nodes {
  private Nodes() {}

  /** A node that reads values by other names; its graphs keep theirs. */
  static NodeProto reading(NodeProto n, Map<String, String> renamed) {
    NodeProto.Builder b = n.toBuilder();
    for (int i = 0; i < n.getInputCount(); i++) {
      b.setInput(i, renamed.getOrDefault(n.getInput(i), n.getInput(i)));
    }
    return b.build();
  }

  /**
   * A node that defines a new value and is named as that value. A node that defines a value which
   * was there before must get another name or none: names of nodes are unique too.
   */
  static NodeProto.Builder node(String op, String output, String... inputs) {
    return NodeProto.newBuilder()
        .setOpType(op)
        .setName(output)
        .addAllInput(List.of(inputs))
        .addOutput(output);
  }

  /** Which of two inputs is one float32 number; −1 if none is, or the operator is none of ONNX itself. */
  static int number(OnnxModel model, NodeProto n) {
    for (int i = 0; i < 2 && OnnxModel.isOwn(n) && n.getInputCount() == 2; i++) {
      OnnxInitializer c = model.constant(n.getInput(i));
      if (c != null && c.type() == DataType.FLOAT && c.elements() == 1) {
        return i;
      }
    }
    return -1;
  }

  /** The {@code perm} of a matrix's Transpose. */
  static AttributeProto swap() {
    return Attributes.attribute("perm", new long[] {1, 0});
  }

  /** Why the weights of an operator stay float whose products are never made of integers here. */
  static String onlyFloat(NodeProto n) {
    return n.getOpType().equals("LSTM")
        ? "no form has an int8 LSTM"
        : "ONNX Runtime has no int8 " + n.getOpType();
  }
}
