package org.espalier.torch.script;

import ai.onnx.proto.OnnxMl.AttributeProto;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.torch.script.ScriptGraph.Ref;
import org.espalier.torch.script.ScriptGraph.Size;

/** A call of a TorchScript module while it is read: its arguments, and the graph to which its nodes go. */
final class TorchScriptCall {
  private final ScriptGraph graph;
  private final String kind;
  private final List<Object> arguments;

  TorchScriptCall(ScriptGraph graph, String kind, List<Object> arguments) {
    this.graph = graph;
    this.kind = kind;
    this.arguments = arguments;
  }

  int size() {
    return arguments.size();
  }

  Object argument(int i) {
    return arguments.get(i);
  }

  List<Object> arguments() {
    return arguments;
  }

  boolean has(int i) {
    return i < arguments.size() && arguments.get(i) != TorchScriptOperators.NONE;
  }

  List<?> list(int i) {
    if (arguments.get(i) instanceof List<?> list) {
      return list;
    }
    throw unsupported("an argument that is no list");
  }

  /** A tensor; a number becomes a constant of float32. */
  Ref tensor(int i) {
    return tensor(arguments.get(i));
  }

  Ref tensor(Object value) {
    if (value instanceof Ref ref) {
      return ref;
    }
    if (value instanceof Number number) {
      return real(number.doubleValue());
    }
    throw unsupported("an argument that is no tensor");
  }

  /** A constant of float32. */
  Ref real(double value) {
    return constant(torch.full(new long[0], new Scalar(value)).to(ScalarType.Float), "constant");
  }

  Ref constant(Tensor t, String otherwise) {
    return graph.constant(t, otherwise);
  }

  long integer(int i) {
    if (arguments.get(i) instanceof Long value) {
      return value;
    }
    throw unsupported("an integer that is computed");
  }

  double number(int i) {
    if (arguments.get(i) instanceof Number value) {
      return value.doubleValue();
    }
    throw unsupported("a number that is computed");
  }

  boolean flag(int i) {
    if (arguments.get(i) instanceof Boolean value) {
      return value;
    }
    throw unsupported("a flag that is computed");
  }

  long[] integers(int i) {
    if (arguments.get(i) instanceof Long value) {
      return new long[] {value};
    }
    if (arguments.get(i) instanceof List<?> list
        && list.stream().allMatch(Long.class::isInstance)) {
      return list.stream().mapToLong(v -> (Long) v).toArray();
    }
    throw unsupported("a list of other than known integers");
  }

  /** A list of integers, known or computed, as an int64 tensor of rank 1. */
  Ref sizes(int i) {
    List<String> parts = new ArrayList<>();
    for (Object value : list(i)) {
      parts.add(size(value).name());
    }
    return emitted("Concat", 1, parts, Attributes.attribute("axis", 0));
  }

  /** A constant of int64 and rank 1. */
  Ref longs(long... of) {
    return constant(AbstractTensor.create(of, new long[] {of.length}), "constant");
  }

  Ref emit(String operator, int rank, String... inputs) {
    return graph.emitted(operator, rank, List.of(inputs));
  }

  Ref emitted(String operator, int rank, List<String> inputs, AttributeProto... attributes) {
    return graph.emitted(operator, rank, inputs, attributes);
  }

  /** A node of several outputs of one rank. */
  List<Ref> split(Ref x, int outputs, List<String> inputs, AttributeProto... attributes) {
    return graph.split(x, outputs, inputs, attributes);
  }

  /** An integer, known or computed, as an int64 tensor of rank 1. */
  Ref size(Object value) {
    if (value instanceof Size s) {
      return emit("Unsqueeze", 1, s.name(), longs(0).name());
    } else if (value instanceof Long known) {
      return longs(known);
    }
    throw unsupported("sizes that are no integers");
  }

  InputException unsupported(String what) {
    return new InputException(
        graph.name() + ": " + kind + " with " + what + " cannot be read as a graph");
  }
}
