package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SpelledOut;
import org.espalier.format.onnx.SpelledOut.LayerNorm;

/**
 * Sums and the layer norms of them, as ONNX Runtime's {@code SkipLayerNormalization}. The runtime joins them only where it knows
 * their shapes, which of exported encoders it does not, and its kernel for a layer norm alone takes five times as long since 1.28.
 * For forms that no other runtime has. Of one use.
 */
final class SkipNorms {
  /** How many axes the sums of two values of one shape have, by their names. */
  private final Map<String, Integer> ranks = new HashMap<>();

  private SkipNorms() {}

  /** Finds such sums in a model before it is rewritten, when shapes can be told. */
  static SkipNorms find(OnnxModel model) {
    SkipNorms found = new SkipNorms();
    ValueShapes shapes = new ValueShapes(model, true);
    for (NodeProto n : model.nodes()) {
      if (Nodes.is(n, "Add")) {
        long[] a = shapes.of(n.getInput(0));
        long[] b = shapes.of(n.getInput(1));
        boolean even = a != null && Arrays.equals(a, b) && (a.length == 2 || a.length == 3);
        if (even && n.getInputList().stream().allMatch(v -> model.constant(v) == null)) {
          found.ranks.put(n.getOutput(0), a.length);
        }
      }
    }
    return found;
  }

  /** Joins the sums, as far as they are there still, and their norms. */
  void apply(OnnxModel model) {
    SpelledOut spelled = new SpelledOut(model);
    Map<String, NodeProto> last = new HashMap<>();
    Map<String, LayerNorm> norms = new HashMap<>();
    for (NodeProto n : model.nodes()) {
      LayerNorm norm = Nodes.is(n, "LayerNormalization") ? whole(n, spelled) : spelled.layerNorm(n);
      // Its vectors must be there before the sum is.
      if (norm != null
          && ranks.containsKey(norm.x())
          && spelled.producer(norm.x(), "Add") != null
          && model.initializer(norm.gamma()) != null
          && model.initializer(norm.beta()) != null
          && norms.putIfAbsent(norm.x(), norm) == null) {
        last.put(norm.x(), n);
      }
    }
    if (norms.isEmpty()) {
      return;
    }
    Set<String> replaced = new HashSet<>();
    last.values().forEach(n -> replaced.add(n.getOutput(0)));
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (norms.containsKey(output)) {
        nodes.add(joined(n, norms.get(output), last.get(output)));
      } else if (!replaced.contains(output)) {
        nodes.add(n);
      }
    }
    model.setNodes(nodes);
    RuntimeForm.removeUnused(model);
    Set<String> read = new HashSet<>(model.outputNames());
    model.nodes().forEach(n -> read.addAll(OnnxModel.uses(n)));
    model.setNodes(model.nodes().stream().map(n -> withoutSum(n, norms, read)).toList());
    if (model.opset(FusedOperators.DOMAIN) == 0) {
      model.setOpset(FusedOperators.DOMAIN, 1);
    }
  }

  /** A LayerNormalization that is over the last axis and gives nothing else; null for others. */
  private LayerNorm whole(NodeProto n, SpelledOut spelled) {
    if (n.getInputCount() < 3 || n.getOutputCount() != 1) {
      return null;
    }
    String x = n.getInput(0);
    long axis = Attributes.integer(n, "axis", -1);
    boolean fits =
        (axis == -1 || axis == ranks.getOrDefault(x, 0) - 1)
            && Attributes.integer(n, "stash_type", 1) == 1
            && spelled.isVector(n.getInput(1))
            && spelled.isVector(n.getInput(2));
    double epsilon = Attributes.real(n, "epsilon", 1e-5f);
    return fits ? new LayerNorm(x, n.getInput(1), n.getInput(2), epsilon) : null;
  }

  /** The sum and its norm, which gives the sum too. */
  private static NodeProto joined(NodeProto sum, LayerNorm norm, NodeProto last) {
    return Nodes.node("SkipLayerNormalization", last.getOutput(0))
        .setDomain(FusedOperators.DOMAIN)
        .setName(last.getName())
        .addAllInput(sum.getInputList())
        .addInput(norm.gamma())
        .addInput(norm.beta())
        .addAllOutput(List.of("", "", norm.x()))
        .addAttribute(Attributes.attribute("epsilon", norm.epsilon()))
        .build();
  }

  /** Such a node without the sum if nothing reads it. */
  private static NodeProto withoutSum(NodeProto n, Map<String, LayerNorm> norms, Set<String> read) {
    boolean unread =
        n.getOutputCount() == 4
            && norms.containsKey(n.getOutput(3))
            && !read.contains(n.getOutput(3));
    return unread ? n.toBuilder().clearOutput().addOutput(n.getOutput(0)).build() : n;
  }
}
