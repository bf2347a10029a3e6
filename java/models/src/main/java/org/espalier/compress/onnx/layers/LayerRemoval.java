package org.espalier.compress.onnx.layers;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.InputException;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;

/**
 * A graph without some of its layers: who read what one made reads what it read. Keys and values of earlier tokens that only
 * it took and gave go with it, and those of the others are numbered anew, without gaps.
 */
public final class LayerRemoval {
  private final OnnxModel model;

  /** What is read in place of the outputs of layers that are gone. */
  private final Map<String, String> instead = new HashMap<>();

  /** Norms of sums that others made before layers that are gone. */
  private final Map<String, NodeProto> norms = new HashMap<>();

  /** The new numbers of keys and values, by the old ones. */
  private final Map<Integer, Integer> numbers = new HashMap<>();

  private LayerRemoval(OnnxModel model, Collection<RepeatedLayer> gone) {
    this.model = model;
    Set<Integer> removed = new HashSet<>();
    Map<String, NodeProto> producers = model.producers();
    for (RepeatedLayer layer : gone) {
      bypass(layer, producers);
      removed.add(layer.cache());
    }
    Set<Integer> all = new TreeSet<>();
    model.inputs().forEach(input -> all.add(PastInput.layer(input.getName())));
    model.outputs().forEach(output -> all.add(PastInput.layer(output.getName())));
    instead.remove(""); // of a norm that gives no sum
    all.remove(-1);
    all.removeAll(removed);
    all.forEach(number -> numbers.put(number, numbers.size()));
  }

  private void bypass(RepeatedLayer layer, Map<String, NodeProto> producers) {
    String stream = layer.inputSum() == null ? layer.input() : layer.inputSum();
    String value = instead.getOrDefault(stream, stream);
    if (!layer.normed()) {
      instead.put(layer.output(), value);
      return;
    }
    NodeProto norm = producers.get(layer.output());
    if (value.equals(layer.inputSum())) {
      NodeProto before = norms.getOrDefault(layer.input(), producers.get(layer.input()));
      norms.put(layer.output(), SkippedNorm.ofSum(norm, before));
    } else {
      norms.put(layer.output(), SkippedNorm.ofValue(norm, value));
      instead.put(SkippedNorm.sum(norm), value);
    }
  }

  /**
   * Takes layers out of a model.
   *
   * @param gone some that {@link LayerSearch} found in it, in graph order; not all of a stack
   * @throws InputException if the others read what only these made; the model must not be used then
   */
  public static void apply(OnnxModel model, Collection<RepeatedLayer> gone) {
    new LayerRemoval(model, gone).apply();
  }

  private void apply() {
    List<ValueInfoProto> outputs =
        model.outputs().stream().filter(output -> stays(output.getName())).toList();
    Set<String> given = new HashSet<>();
    outputs.forEach(o -> given.add(instead.getOrDefault(o.getName(), o.getName())));
    List<NodeProto> nodes = OnnxModel.needed(bypassed(), given);
    List<ValueInfoProto> inputs = new ArrayList<>();
    Map<String, String> names = new HashMap<>();
    for (ValueInfoProto input : model.inputs()) {
      String name = input.getName();
      if (stays(name)) {
        inputs.add(input);
      } else {
        checkReaders(name, nodes);
      }
      names.put(name, renumbered(name));
    }
    outputs.forEach(output -> names.put(output.getName(), renumbered(output.getName())));
    for (ValueInfoProto output : outputs) {
      if (instead.containsKey(output.getName())) {
        give(instead.get(output.getName()), output.getName(), names, nodes);
      }
    }
    model.replaceGraph(
        renamed(inputs, names),
        renamed(outputs, names),
        nodes.stream().map(n -> InnerGraphs.renamed(n, names)).toList());
  }

  /** Has a value be an output that a layer made which is gone: by its name where it may have another. */
  private void give(String value, String output, Map<String, String> names, List<NodeProto> nodes) {
    boolean isInner = nodes.stream().anyMatch(n -> n.getOutputList().contains(value));
    if (isInner && names.putIfAbsent(value, output) == null) {
      return;
    }
    nodes.add(
        NodeProto.newBuilder().setOpType("Identity").addInput(value).addOutput(output).build());
  }

  /** Of what a layer took that is gone a length may be read still, which all others have too. */
  private void checkReaders(String input, List<NodeProto> nodes) {
    for (NodeProto n : nodes) {
      if (OnnxModel.uses(n).contains(input) && !OnnxModel.isOwn(n, "Shape")) {
        throw new InputException(
            model.name()
                + ": the input "
                + input
                + " is read by the node "
                + n.getName()
                + ", which is of no layer");
      }
    }
  }

  private boolean stays(String end) {
    int number = PastInput.layer(end);
    return number < 0 || numbers.containsKey(number);
  }

  private String renumbered(String end) {
    int number = PastInput.layer(end);
    return number < 0 ? end : PastInput.withLayer(end, numbers.getOrDefault(number, 0));
  }

  private static List<ValueInfoProto> renamed(
      List<ValueInfoProto> ends, Map<String, String> names) {
    return ends.stream()
        .map(end -> end.toBuilder().setName(names.get(end.getName())))
        .map(ValueInfoProto.Builder::build)
        .toList();
  }

  /** All nodes, which read past the layers; what these made is called otherwise. */
  private List<NodeProto> bypassed() {
    OnnxModel.Names unused = model.names();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      NodeProto.Builder made =
          (n.getOutputCount() == 0 ? n : norms.getOrDefault(n.getOutput(0), n)).toBuilder();
      for (int o = 0; o < made.getOutputCount(); o++) {
        if (instead.containsKey(made.getOutput(o))) {
          made.setOutput(o, unused.unique(made.getOutput(o) + "_gone"));
        }
      }
      nodes.add(InnerGraphs.renamed(made.build(), instead));
    }
    return nodes;
  }
}
