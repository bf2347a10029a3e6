package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.NodeProto;
import com.google.protobuf.ByteString;
import java.util.stream.LongStream;

/** Attributes of nodes: read from one, or made for one. */
public final class Attributes {
  private Attributes() {}

  /** The attribute of a name; null where the node has none. */
  public static AttributeProto find(NodeProto n, String name) {
    for (AttributeProto a : n.getAttributeList()) {
      if (a.getName().equals(name)) {
        return a;
      }
    }
    return null;
  }

  /**
   * @param otherwise what it is where the node has none
   */
  public static long integer(NodeProto n, String name, long otherwise) {
    AttributeProto a = find(n, name);
    return a == null ? otherwise : a.getI();
  }

  /**
   * @param otherwise what it is where the node has none
   */
  public static float real(NodeProto n, String name, float otherwise) {
    AttributeProto a = find(n, name);
    return a == null ? otherwise : a.getF();
  }

  /** All numbers of an attribute; null where the node has none. */
  public static long[] integers(NodeProto n, String name) {
    AttributeProto a = find(n, name);
    return a == null ? null : a.getIntsList().stream().mapToLong(Long::longValue).toArray();
  }

  public static AttributeProto attribute(String name, long value) {
    return AttributeProto.newBuilder().setName(name).setType(AttributeType.INT).setI(value).build();
  }

  /**
   * @param value is rounded to float32
   */
  public static AttributeProto attribute(String name, double value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeType.FLOAT)
        .setF((float) value)
        .build();
  }

  public static AttributeProto attribute(String name, String value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeType.STRING)
        .setS(ByteString.copyFromUtf8(value))
        .build();
  }

  /** A tensor; its own name does not count. */
  public static AttributeProto attribute(String name, OnnxInitializer tensor) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeType.TENSOR)
        .setT(tensor.message())
        .build();
  }

  public static AttributeProto attribute(String name, long[] values) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder().setName(name).setType(AttributeType.INTS);
    LongStream.of(values).forEach(b::addInts);
    return b.build();
  }
}
