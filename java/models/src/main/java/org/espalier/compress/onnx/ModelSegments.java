package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RandomDraws;

/**
 * Cuts a model into segments that run one after the other, each on what the ones before gave, so that the weights of one are
 * enough in memory. A cut is where the fewest values are carried over: between two layers as a rule. What depends on no input
 * belongs to each segment that reads it.
 */
final class ModelSegments {
  /** Bytes of a segment, in float32, unless one is told: two layers of a model of a billion weights. */
  static final long BYTES = 512L << 20;

  /**
   * Nodes that follow one another.
   *
   * @param nodes in topological order
   * @param fixed how many of them, the first, depend on no input; other segments may have them too
   * @param held the values that later segments read, of this one, earlier ones and the inputs
   */
  record Segment(List<NodeProto> nodes, int fixed, Set<String> held) {}

  private final OnnxModel model;

  /** The values that depend on no input, with the bytes of the constants that each is made of, as float32. */
  private final Map<String, Long> fixed = new HashMap<>();

  /** The nodes that depend on one, as far as they lead to weights. */
  private final List<NodeProto> flow = new ArrayList<>();

  private ModelSegments(OnnxModel model, Set<String> weights) {
    this.model = model;
    for (OnnxInitializer i : model.initializers()) {
      fixed.put(i.name(), i.float32Bytes());
    }
    Set<String> wanted = new HashSet<>(weights);
    int last = 0;
    for (NodeProto n : model.nodes()) {
      Set<String> uses = OnnxModel.uses(n);
      boolean reads = uses.stream().anyMatch(wanted::contains);
      if (!RandomDraws.isOne(n) && fixed.keySet().containsAll(uses)) {
        long bytes = uses.stream().mapToLong(fixed::get).sum();
        n.getOutputList().forEach(value -> fixed.put(value, bytes));
        if (reads) {
          wanted.addAll(n.getOutputList());
        }
        continue;
      }
      flow.add(n);
      if (reads) {
        last = flow.size();
      }
    }
    flow.subList(last, flow.size()).clear();
  }

  /** A model as the only segment. */
  static List<Segment> whole(OnnxModel model) {
    return List.of(new Segment(model.nodes(), 0, Set.of()));
  }

  /**
   * Cuts a model.
   *
   * @param weights initializers; what comes after the last node that reads one of them is left out
   * @param most bytes that the constants of a segment take in float32, unless one node reads more
   * @return none where nothing reads the weights
   */
  static List<Segment> of(OnnxModel model, Set<String> weights, long most) {
    return new ModelSegments(model, weights).cut(most);
  }

  private List<Segment> cut(long most) {
    Map<String, Integer> made = new HashMap<>(); // by so many nodes
    Map<String, Integer> lastRead = new HashMap<>();
    long[] read = new long[flow.size() + 1]; // by so many nodes
    model.inputs().forEach(v -> made.put(v.getName(), 0));
    for (int i = 0; i < flow.size(); i++) {
      read[i + 1] = read[i];
      for (String value : OnnxModel.uses(flow.get(i))) {
        lastRead.put(value, i);
        read[i + 1] += fixed.getOrDefault(value, 0L);
      }
      for (String value : flow.get(i).getOutputList()) {
        made.put(value, i + 1);
      }
    }
    made.keySet().retainAll(lastRead.keySet());
    int[] carried = carried(made, lastRead);
    List<Segment> segments = new ArrayList<>();
    for (int start = 0; start < flow.size(); ) {
      int end = end(start, read, carried, most);
      Set<String> held = new HashSet<>();
      for (Map.Entry<String, Integer> value : made.entrySet()) {
        if (value.getValue() <= end && lastRead.get(value.getKey()) >= end) {
          held.add(value.getKey());
        }
      }
      List<NodeProto> nodes = withFixed(flow.subList(start, end));
      segments.add(new Segment(nodes, nodes.size() - (end - start), held));
      start = end;
    }
    return segments;
  }

  /** How many values are carried over a cut behind so many nodes, without inputs. */
  private int[] carried(Map<String, Integer> made, Map<String, Integer> lastRead) {
    int[] carried = new int[flow.size() + 2];
    made.forEach(
        (value, at) -> {
          if (at > 0 && lastRead.get(value) >= at) {
            carried[at]++;
            carried[lastRead.get(value) + 1]--;
          }
        });
    for (int i = 1; i < carried.length; i++) {
      carried[i] += carried[i - 1];
    }
    return carried;
  }

  private int end(int start, long[] read, int[] carried, long most) {
    int end = start + 1;
    while (end < flow.size() && (read[end] == read[start] || read[end + 1] - read[start] <= most)) {
      end++;
    }
    if (end == flow.size()) {
      return end;
    }
    int best = end;
    long least = (read[end] - read[start]) / 2;
    for (int i = end - 1; i > start && read[i] - read[start] >= least; i--) {
      if (carried[i] < carried[best]) {
        best = i;
      }
    }
    return best;
  }

  /** Nodes behind those that make what they read of constants. */
  private List<NodeProto> withFixed(List<NodeProto> some) {
    Set<String> needed = new HashSet<>();
    some.forEach(n -> needed.addAll(OnnxModel.uses(n)));
    List<NodeProto> all = new ArrayList<>(some);
    Collections.reverse(all);
    List<NodeProto> nodes = model.nodes();
    for (int i = nodes.size() - 1; i >= 0; i--) {
      NodeProto n = nodes.get(i);
      if (fixed.keySet().containsAll(n.getOutputList())
          && n.getOutputList().stream().anyMatch(needed::contains)) {
        needed.addAll(OnnxModel.uses(n));
        all.add(n);
      }
    }
    Collections.reverse(all);
    return all;
  }
}
