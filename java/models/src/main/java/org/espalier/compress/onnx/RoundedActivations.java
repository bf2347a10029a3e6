package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * QuantizeLinear or DynamicQuantizeLinear and behind it DequantizeLinear with the same steps, one for the whole tensor: what
 * an activation is rounded to. A Clip between them keeps some of the integers, as in models that PyTorch has trained for 7 bits.
 */
public final class RoundedActivations {
  private RoundedActivations() {}

  /**
   * How an activation is rounded.
   *
   * @param source the node that makes integers of it
   * @param least the smallest integer that a Clip keeps; null where none says so
   * @param most the largest one, likewise
   */
  public record Rounded(NodeProto source, Integer least, Integer most) {}

  /**
   * What makes the integers that a DequantizeLinear takes back.
   *
   * @param producers of the model
   * @return null where the node is none, or its steps are others or not known to be the same
   */
  public static Rounded of(
      OnnxModel model, Map<String, NodeProto> producers, NodeProto dequantize) {
    if (!OnnxModel.isOwn(dequantize, "DequantizeLinear")) {
      return null;
    }
    NodeProto q = producers.get(dequantize.getInput(0));
    Integer[] ends = {null, null};
    if (q != null && OnnxModel.isOwn(q, "Clip")) {
      for (int i = 0; i < 2; i++) {
        OnnxInitializer end = model.constant(name(q, i + 1));
        if (end == null
            ? !name(q, i + 1).isEmpty()
            : end.elements() != 1 || !Int8Model.isOfBytes(end.type())) {
          return null;
        }
        ends[i] = end == null ? null : Int8Model.integer(end.type(), end.data(), 0);
      }
      q = producers.get(q.getInput(0));
      if (q == null || !q.getOpType().equals("QuantizeLinear")) {
        return null;
      }
      dequantize = dequantize.toBuilder().setInput(0, q.getOutput(0)).build();
    }
    // Since operator set 23 the type in which they compute may be another than that of the values.
    if (q == null
        || !OnnxModel.isOwn(q)
        || Attributes.integer(q, "precision", 0) != 0
        || Attributes.integer(dequantize, "output_dtype", 0) != 0) {
      return null;
    }
    boolean same =
        switch (q.getOpType()) {
          case "DynamicQuantizeLinear" -> q.getOutputList().equals(dequantize.getInputList());
          case "QuantizeLinear" ->
              isSame(model, q, dequantize, 1)
                  && isSame(model, q, dequantize, 2)
                  && model.constant(q.getInput(1)).elements() == 1;
          default -> false;
        };
    return same ? new Rounded(q, ends[0], ends[1]) : null;
  }

  /**
   * Takes the roundings out of a model whose ranges it finds while it runs: an Identity stands where a DynamicQuantizeLinear and
   * a DequantizeLinear were.
   *
   * @return the outputs of these, which were rounded before
   */
  public static Set<String> takeDynamicOut(OnnxModel model) {
    Map<String, NodeProto> producers = model.producers();
    Set<String> outputs = new LinkedHashSet<>();
    List<NodeProto> nodes = new ArrayList<>(model.nodes());
    nodes.replaceAll(
        n -> {
          Rounded rounded = of(model, producers, n);
          if (rounded == null || !rounded.source().getOpType().equals("DynamicQuantizeLinear")) {
            return n;
          }
          outputs.add(n.getOutput(0));
          return Nodes.node("Identity", n.getOutput(0), rounded.source().getInput(0))
              .setName(n.getName())
              .build();
        });
    if (!outputs.isEmpty()) {
      model.setNodes(nodes);
      RuntimeForm.removeUnused(model);
    }
    return outputs;
  }

  /** Whether both nodes have the same constant for an input, or none. */
  static boolean isSame(OnnxModel model, NodeProto a, NodeProto b, int input) {
    String here = name(a, input);
    String there = name(b, input);
    OnnxInitializer one = model.constant(here);
    OnnxInitializer other = model.constant(there);
    if (one == null || other == null) {
      return here.isEmpty() && there.isEmpty();
    }
    return one.type() == other.type()
        && Arrays.equals(one.dims(), other.dims())
        && one.data().equals(other.data());
  }

  private static String name(NodeProto n, int input) {
    return input < n.getInputCount() ? n.getInput(input) : "";
  }
}
