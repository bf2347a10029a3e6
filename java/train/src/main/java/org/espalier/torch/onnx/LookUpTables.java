package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxModel;

/** Tables that a model looks rows up in: constants that a Gather of the main graph reads along their first axis. */
public final class LookUpTables {
  private final OnnxModel model;

  private LookUpTables(OnnxModel model) {
    this.model = model;
  }

  /**
   * Finds them.
   *
   * @return by constant who reads it in another way, empty where nobody does: a run reads some rows of it then, and
   *     nothing else
   */
  public static Map<String, String> of(OnnxModel model) {
    LookUpTables found = new LookUpTables(model);
    Map<String, String> tables = new TreeMap<>();
    model
        .consumers()
        .forEach(
            (value, readers) -> {
              if (model.constant(value) != null
                  && readers.stream().anyMatch(n -> found.isLookUp(n, value))) {
                tables.put(value, found.otherReader(value, readers));
              }
            });
    return tables;
  }

  private boolean isLookUp(NodeProto n, String table) {
    if (!OnnxModel.isOwn(n) || !n.getOpType().equals("Gather") || !n.getInput(0).equals(table)) {
      return false;
    }
    long axis = Attributes.integer(n, "axis", 0);
    return axis == 0 || axis == -model.constant(table).dims().length;
  }

  private String otherReader(String table, List<NodeProto> readers) {
    if (model.outputs().stream().anyMatch(v -> v.getName().equals(table))) {
      return "who reads the output " + table;
    }
    return readers.stream()
        .filter(n -> !isLookUp(n, table))
        .findFirst()
        .map(n -> n.getOpType() + " " + (n.getName().isEmpty() ? Fusion.identity(n) : n.getName()))
        .orElse("");
  }
}
