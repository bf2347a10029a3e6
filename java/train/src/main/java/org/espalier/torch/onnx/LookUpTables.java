package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Tables that a model looks rows up in: constants that a Gather of the main graph reads along their first axis, itself or
 * through Identity nodes, by which exporters give a shared weight a second name.
 */
public final class LookUpTables {
  private final OnnxModel model;
  private final Map<String, List<NodeProto>> readers;

  private LookUpTables(OnnxModel model) {
    this.model = model;
    this.readers = model.consumers();
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
    for (String value : found.readers.keySet()) {
      OnnxInitializer constant = model.constant(value);
      if (constant != null) {
        found
            .otherReader(value, constant.dims().length)
            .ifPresent(reader -> tables.put(value, reader));
      }
    }
    return tables;
  }

  /** Who reads a constant in another way than to look rows up; nothing where nobody looks rows up in it. */
  private Optional<String> otherReader(String constant, int rank) {
    boolean isTable = false;
    String other = "";
    for (String name : names(constant)) {
      if (model.outputs().stream().anyMatch(v -> v.getName().equals(name))) {
        other = "who reads the output " + name;
      }
      for (NodeProto n : readers(name)) {
        if (isLookUp(n, name, rank)) {
          isTable = true;
        } else if (!isSecondName(n) && other.isEmpty()) {
          other = n.getOpType() + " " + (n.getName().isEmpty() ? Fusion.identity(n) : n.getName());
        }
      }
    }
    return isTable ? Optional.of(other) : Optional.empty();
  }

  private List<NodeProto> readers(String value) {
    return readers.getOrDefault(value, List.of());
  }

  /** The name of a constant, and those that Identity nodes give it. */
  private List<String> names(String constant) {
    List<String> names = new ArrayList<>(List.of(constant));
    for (int i = 0; i < names.size(); i++) {
      for (NodeProto n : readers(names.get(i))) {
        if (isSecondName(n)) {
          names.add(n.getOutput(0));
        }
      }
    }
    return names;
  }

  private static boolean isSecondName(NodeProto n) {
    return OnnxModel.isOwn(n, "Identity");
  }

  private static boolean isLookUp(NodeProto n, String table, int rank) {
    if (!OnnxModel.isOwn(n, "Gather") || !n.getInput(0).equals(table)) {
      return false;
    }
    long axis = Attributes.integer(n, "axis", 0);
    return axis == 0 || axis == -rank;
  }
}
