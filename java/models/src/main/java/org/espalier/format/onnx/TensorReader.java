package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.SparseTensorProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;

/** Checks the tensors of a model that is read, wherever they are in it, and puts their external data inside. */
final class TensorReader {
  private final String name;
  private final ExternalData external;

  /**
   * @param name what messages call the model
   * @param model the model's file; null for a model that is none
   */
  TensorReader(String name, Path model) {
    this.name = name;
    this.external = new ExternalData(model);
  }

  /** The files of external data that were used so far. */
  Set<Path> files() {
    return external.files();
  }

  /** An initializer, of the file that holds its data where that is too large for a message. */
  OnnxInitializer initializer(TensorProto t) {
    String where = name + ": the initializer " + t.getName();
    OnnxTensors.check(t, where);
    if (t.getDataLocation() != DataLocation.EXTERNAL) {
      return OnnxInitializer.ofMessage(t);
    }
    OnnxTensors.External data = external.find(t, where);
    return data.length() > Integer.MAX_VALUE
        ? OnnxInitializer.ofFile(t, data.file(), data.offset())
        : OnnxInitializer.ofMessage(external.resolve(t, data));
  }

  /** The node with the external data of its attributes inside; itself where it has none. */
  NodeProto inline(NodeProto n) {
    NodeProto.Builder b = null;
    for (int i = 0; i < n.getAttributeCount(); i++) {
      AttributeProto a = n.getAttribute(i);
      AttributeProto changed = inline(a, "the node " + GraphCheck.describe(n));
      if (changed != a) {
        b = b == null ? n.toBuilder() : b;
        b.setAttribute(i, changed);
      }
    }
    return b == null ? n : b.build();
  }

  private AttributeProto inline(AttributeProto a, String where) {
    AttributeProto.Builder b = null;
    if (a.hasT()) {
      TensorProto t = inline(a.getT(), where);
      b = t == a.getT() ? null : a.toBuilder().setT(t);
    }
    for (int i = 0; i < a.getTensorsCount(); i++) {
      TensorProto t = inline(a.getTensors(i), where);
      if (t != a.getTensors(i)) {
        b = b == null ? a.toBuilder() : b;
        b.setTensors(i, t);
      }
    }
    if (a.hasSparseTensor()) {
      check(a.getSparseTensor(), where);
    }
    for (SparseTensorProto s : a.getSparseTensorsList()) {
      check(s, where);
    }
    if (a.hasG()) {
      GraphProto g = inline(a.getG());
      if (g != a.getG()) {
        b = b == null ? a.toBuilder() : b;
        b.setG(g);
      }
    }
    for (int i = 0; i < a.getGraphsCount(); i++) {
      GraphProto g = inline(a.getGraphs(i));
      if (g != a.getGraphs(i)) {
        b = b == null ? a.toBuilder() : b;
        b.setGraphs(i, g);
      }
    }
    return b == null ? a : b.build();
  }

  private GraphProto inline(GraphProto g) {
    GraphProto.Builder b = null;
    for (int i = 0; i < g.getInitializerCount(); i++) {
      TensorProto t = inline(g.getInitializer(i), "the graph " + g.getName());
      if (t != g.getInitializer(i)) {
        b = b == null ? g.toBuilder() : b;
        b.setInitializer(i, t);
      }
    }
    for (SparseTensorProto s : g.getSparseInitializerList()) {
      check(s, "the graph " + g.getName());
    }
    for (int i = 0; i < g.getNodeCount(); i++) {
      NodeProto n = inline(g.getNode(i));
      if (n != g.getNode(i)) {
        b = b == null ? g.toBuilder() : b;
        b.setNode(i, n);
      }
    }
    return b == null ? g : b.build();
  }

  private TensorProto inline(TensorProto t, String where) {
    String place = name + ": the tensor " + t.getName() + " of " + where;
    OnnxTensors.check(t, place);
    if (t.getDataLocation() != DataLocation.EXTERNAL) {
      return t;
    }
    OnnxTensors.External data = external.find(t, place);
    if (data.length() > Integer.MAX_VALUE) {
      throw new InputException(place + " has 2 GiB or more, which only an initializer may have");
    }
    return external.resolve(t, data);
  }

  /** Checks a sparse tensor, whose data must be in the message. */
  void check(SparseTensorProto s, String where) {
    for (TensorProto t : List.of(s.getValues(), s.getIndices())) {
      String place = name + ": the sparse tensor " + s.getValues().getName() + " of " + where;
      OnnxTensors.check(t, place);
      if (t.getDataLocation() == DataLocation.EXTERNAL) {
        throw new InputException(place + " has external data, which is not read");
      }
    }
  }
}
