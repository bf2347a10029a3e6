package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import java.util.HashSet;
import java.util.Set;
import java.util.function.IntFunction;
import org.espalier.InputException;

/**
 * A node while it is compiled. Attributes that its operator's entry did not ask for are refused
 * afterwards, so that nothing is ignored silently.
 */
final class Node {
  private final NodeProto proto;
  private final long opset;
  private final String where;
  private final IntFunction<long[]> constants;
  private final Set<String> read = new HashSet<>();

  /**
   * @param where the start of messages: the model and the node
   * @param constants the integers of an input that is constant, null for other inputs
   */
  Node(NodeProto proto, long opset, String where, IntFunction<long[]> constants) {
    this.proto = proto;
    this.opset = opset;
    this.where = where;
    this.constants = constants;
  }

  long opset() {
    return opset;
  }

  String where() {
    return where;
  }

  int inputs() {
    return proto.getInputCount();
  }

  int outputs() {
    return proto.getOutputCount();
  }

  boolean has(int input) {
    return input < proto.getInputCount() && !proto.getInput(input).isEmpty();
  }

  boolean uses(int output) {
    return output < proto.getOutputCount() && !proto.getOutput(output).isEmpty();
  }

  /** The integers of a constant input; null where it is absent or not constant. */
  long[] constant(int input) {
    return has(input) ? constants.apply(input) : null;
  }

  boolean hasAttribute(String name) {
    return find(name) != null;
  }

  long integer(String name, long otherwise) {
    AttributeProto a = find(name, AttributeType.INT);
    return a == null ? otherwise : a.getI();
  }

  boolean flag(String name, boolean otherwise) {
    return integer(name, otherwise ? 1 : 0) != 0;
  }

  double real(String name, double otherwise) {
    AttributeProto a = find(name, AttributeType.FLOAT);
    return a == null ? otherwise : a.getF();
  }

  String text(String name, String otherwise) {
    AttributeProto a = find(name, AttributeType.STRING);
    return a == null ? otherwise : a.getS().toStringUtf8();
  }

  /** One of some words; others are refused. */
  String choice(String name, String otherwise, String... words) {
    String text = text(name, otherwise);
    for (String word : words) {
      if (word.equals(text)) {
        return text;
      }
    }
    throw unsupported(name + " = '" + text + "'");
  }

  /** Null for {@code otherwise} is allowed. */
  long[] integers(String name, long[] otherwise) {
    AttributeProto a = find(name, AttributeType.INTS);
    return a == null ? otherwise : a.getIntsList().stream().mapToLong(Long::longValue).toArray();
  }

  float[] reals(String name) {
    AttributeProto a = find(name, AttributeType.FLOATS);
    if (a == null) {
      return null;
    }
    float[] values = new float[a.getFloatsCount()];
    for (int i = 0; i < values.length; i++) {
      values[i] = a.getFloats(i);
    }
    return values;
  }

  String[] texts(String name) {
    AttributeProto a = find(name, AttributeType.STRINGS);
    return a == null
        ? null
        : a.getStringsList().stream().map(s -> s.toStringUtf8()).toArray(String[]::new);
  }

  TensorProto tensor(String name) {
    AttributeProto a = find(name, AttributeType.TENSOR);
    return a == null ? null : a.getT();
  }

  GraphProto graph(String name) {
    AttributeProto a = find(name, AttributeType.GRAPH);
    if (a == null) {
      throw new InputException(where + " lacks the attribute " + name);
    }
    return a.getG();
  }

  /** An exception that says that {@code what} of this node is not supported. */
  InputException unsupported(String what) {
    return new InputException(where + ": " + what + " is not supported");
  }

  InputException wrong(String what) {
    return new InputException(where + ": " + what);
  }

  /** Refuses attributes that were not read. */
  void refuseUnread() {
    for (AttributeProto a : proto.getAttributeList()) {
      if (!read.contains(a.getName())) {
        throw unsupported("the attribute " + a.getName() + " in operator set " + opset);
      }
    }
  }

  private AttributeProto find(String name, AttributeType type) {
    AttributeProto a = find(name);
    if (a != null && a.getType() != type && a.getType() != AttributeType.UNDEFINED) {
      throw new InputException(
          where + ": the attribute " + name + " is " + a.getType() + ", not " + type);
    }
    return a;
  }

  private AttributeProto find(String name) {
    read.add(name);
    for (AttributeProto a : proto.getAttributeList()) {
      if (a.getName().equals(name)) {
        return a;
      }
    }
    return null;
  }
}
