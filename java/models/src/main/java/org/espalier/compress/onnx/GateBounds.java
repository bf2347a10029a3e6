package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Cuts off the images of Convs that are read as x · g(x) alone, where the gate g is 0 below some value: what lies
 * below changes nothing, and would stretch the grid of x. HardSwish, as x · Clip(α · x + β, 0, 1), is 0 below −β/α;
 * x · Sigmoid(x) (SiLU, Swish) as good as 0 below {@link #SILU}.
 */
final class GateBounds {
  /** There SiLU is −0.0005: a grid that reaches down to it has steps of 0.04 or more. */
  private static final float SILU = -10;

  /** A gate has no more operations with one number than this on either side of its bounds. */
  private static final int MOST_NUMBERS = 4;

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;
  private final Set<String> outputs;

  /**
   * A gate that is 0 where a line is.
   *
   * @param clip cuts off α · x + β below 0
   * @param factor α, above 0
   * @param summand β
   */
  record Hard(NodeProto clip, float factor, float summand) {
    /** The value of x below which the gate is 0. */
    float zero() {
      return -summand / factor;
    }
  }

  GateBounds(OnnxModel model) {
    this.model = model;
    producers = model.producers();
    consumers = model.consumers();
    outputs = model.outputNames();
  }

  /** Rewrites {@code model}, of operator set 13 or later and in {@link IntegerForm}, in place. */
  static void apply(OnnxModel model) {
    GateBounds gates = new GateBounds(model);
    Map<String, Float> least = new HashMap<>();
    for (NodeProto n : model.nodes()) {
      if (OnnxModel.isOwn(n, "Mul") && n.getInputCount() == 2) {
        gates.find(n.getInput(0), n.getInput(1), least);
        gates.find(n.getInput(1), n.getInput(0), least);
      }
    }
    if (least.isEmpty()) {
      return;
    }
    OnnxModel.Names names = model.names();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (!least.containsKey(output)) {
        nodes.add(n);
        continue;
      }
      // What reads the image keeps its name for it.
      String all = names.unique(output + "_all");
      String bound = names.unique("number");
      model.addInitializer(OnnxInitializer.floats(bound, new long[0], least.get(output)));
      nodes.add(n.toBuilder().setOutput(0, all).build());
      nodes.add(Nodes.node("Clip", output, all, bound).clearName().build());
    }
    model.setNodes(nodes);
  }

  private void find(String x, String gate, Map<String, Float> least) {
    NodeProto conv = producers.get(x);
    if (conv == null || !OnnxModel.isOwn(conv, "Conv") || outputs.contains(x)) {
      return;
    }
    Float below = zeroBelow(gate, x);
    // One reader is the product, the other the gate's.
    if (below != null && below < 0 && consumers.get(x).size() == 2) {
      least.put(x, below);
    }
  }

  /** The value of x below which a gate is 0; null if there is none or the gate is something else. */
  private Float zeroBelow(String gate, String x) {
    NodeProto n = alone(gate);
    if (n != null && OnnxModel.isOwn(n, "Sigmoid")) {
      return n.getInput(0).equals(x) ? SILU : null;
    }
    Hard hard = hard(gate, x);
    return hard == null ? null : (Float) hard.zero();
  }

  /** What a gate is of x; null if it is something else, or read elsewhere. */
  Hard hard(String gate, String x) {
    String value = gate;
    for (int step = 0; step <= MOST_NUMBERS; step++) {
      NodeProto n = alone(value);
      if (n == null) {
        return null;
      }
      if (OnnxModel.isOwn(n, "Clip")) {
        float[] bounds = IntegerOperators.bounds(model, n);
        float[] line = bounds != null && bounds[0] == 0 ? line(n.getInput(0), x) : null;
        return line != null && line[0] > 0 ? new Hard(n, line[0], line[1]) : null;
      }
      int constant = Nodes.number(model, n);
      if (constant < 0
          || !OnnxModel.isOwn(n, "Mul") && !(OnnxModel.isOwn(n, "Div") && constant == 1)) {
        return null;
      }
      value = n.getInput(1 - constant);
    }
    return null;
  }

  /** The node that makes a value with one reader; null for all other values. */
  private NodeProto alone(String value) {
    boolean alone =
        !outputs.contains(value) && consumers.getOrDefault(value, List.of()).size() == 1;
    return alone ? producers.get(value) : null;
  }

  /** Factor and summand of a value that is α · x + β; null if it is something else. */
  private float[] line(String end, String x) {
    float factor = 1;
    float summand = 0;
    String value = end;
    for (int step = 0; !value.equals(x); step++) {
      NodeProto n = step < MOST_NUMBERS ? alone(value) : null;
      int constant = n == null ? -1 : Nodes.number(model, n);
      if (constant < 0) {
        return null;
      }
      float c = model.constant(n.getInput(constant)).floats().get(0);
      switch (n.getOpType()) {
        case "Add" -> summand += factor * c;
        case "Mul" -> factor *= c;
        case "Div" -> factor /= constant == 1 ? c : Float.NaN;
        default -> factor = Float.NaN;
      }
      value = n.getInput(1 - constant);
    }
    return Float.isNaN(factor) ? null : new float[] {factor, summand};
  }
}
