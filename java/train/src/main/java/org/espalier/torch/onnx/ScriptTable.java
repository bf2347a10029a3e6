package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Function;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;

/**
 * All operators that can be written in TorchScript. An entry says with the same calls of libtorch what the
 * kernel of {@link OperatorTable} does; adding one is adding a line to the file of its family, and the
 * conformance test then compares the two on every backend case.
 */
final class ScriptTable {
  private static final Map<String, Script> ENTRIES = new HashMap<>();

  static {
    ScriptElementwise.add(ScriptTable::add);
    ScriptActivations.add(ScriptTable::add);
    ScriptShapes.add(ScriptTable::add);
    ScriptIndices.add(ScriptTable::add);
    ScriptReductions.add(ScriptTable::add);
    ScriptLayers.add(ScriptTable::add);
    ScriptAttention.add(ScriptTable::add);
    ScriptStandardAttention.add(ScriptTable::add);
    ScriptQuantization.add(ScriptTable::add);
    ScriptResize.add(ScriptTable::add);
  }

  private ScriptTable() {}

  /** Receives the entries of a family. */
  interface Sink {
    void add(String name, Script script);

    /** An operator whose one output is an expression. */
    default void one(String name, Function<ScriptCall, String> f) {
      add(name, c -> new ScriptValue[] {ScriptValue.of(f.apply(c))});
    }

    /** A function of the first input. */
    default void unary(String name, String function) {
      one(name, c -> function + "(" + c.in(0) + ")");
    }

    /** A function of the first two inputs. */
    default void binary(String name, String function) {
      one(name, c -> function + "(" + c.in(0) + ", " + c.in(1) + ")");
    }
  }

  private static void add(String name, Script script) {
    ENTRIES.put(name, script);
  }

  static Set<String> names() {
    return new TreeSet<>(ENTRIES.keySet());
  }

  static Script find(Operator operator) {
    return ENTRIES.get(operator.name());
  }

  /** Names every operator at once that cannot be written. */
  static void refuseUnknown(OnnxModel model) {
    Set<String> unknown = new TreeSet<>();
    model.nodes().forEach(n -> addUnknown(n, unknown));
    if (!unknown.isEmpty()) {
      throw new InputException(
          model.name()
              + " uses operators that cannot be written in TorchScript: "
              + String.join(", ", unknown));
    }
  }

  private static void addUnknown(NodeProto n, Set<String> unknown) {
    String type = OperatorTable.name(n);
    if (!ENTRIES.containsKey(type) && !type.equals("Constant")) {
      unknown.add(type);
    }
    for (AttributeProto a : n.getAttributeList()) {
      if (a.hasG()) {
        a.getG().getNodeList().forEach(inner -> addUnknown(inner, unknown));
      }
    }
  }
}
