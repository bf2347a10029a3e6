package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Rewrites to the same in operators that ONNX Runtime runs on integers:
 *
 * <ul>
 *   <li>a {@code Pad} with zeros in front of Convs becomes their padding;
 *   <li>{@code Max} and {@code Min} with one number become {@code Clip}, which a grid can do;
 *   <li>{@code Swish} becomes x · Sigmoid(α · x);
 *   <li>{@code HardSwish}, or {@code x · HardSigmoid(x)}, becomes x · Clip(α · x + β, 0, 1).
 * </ul>
 */
final class IntegerForm {
  private final OnnxModel model;
  private final OnnxModel.Names names;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;
  private final Set<String> outputs;
  private final List<NodeProto> nodes = new ArrayList<>();

  /** The Pads that become padding, by their outputs. */
  private final Map<String, NodeProto> pads = new HashMap<>();

  private IntegerForm(OnnxModel model) {
    this.model = model;
    names = model.names();
    producers = model.producers();
    consumers = model.consumers();
    outputs = model.outputNames();
  }

  /** Rewrites {@code model}, of operator set 13 or later, in place. */
  static void apply(OnnxModel model) {
    IntegerForm form = new IntegerForm(model);
    model.nodes().forEach(form::rewrite);
    model.setNodes(form.nodes);
    RuntimeForm.removeUnused(model);
  }

  private void rewrite(NodeProto n) {
    switch (OnnxModel.isOwn(n) ? n.getOpType() : "") {
      case "Pad" -> {
        if (isPadding(n)) {
          pads.put(n.getOutput(0), n);
        }
        nodes.add(n);
      }
      case "Conv" -> nodes.add(pads.containsKey(n.getInput(0)) ? padded(n) : n);
      case "Max", "Min" -> nodes.add(clip(n));
      case "Swish" -> swish(n);
      case "HardSwish" -> hardSwish(n, n.getInput(0), 1 / 6f, 0.5f);
      case "Mul" -> {
        NodeProto gate = hardSigmoid(n);
        if (gate == null) {
          nodes.add(n);
        } else {
          float alpha = Attributes.real(gate, "alpha", 0.2f);
          hardSwish(n, gate.getInput(0), alpha, Attributes.real(gate, "beta", 0.5f));
        }
      }
      default -> nodes.add(n);
    }
  }

  /** Whether a Pad adds zeros around images that only Convs read. */
  private boolean isPadding(NodeProto pad) {
    long[] amounts = pad.getInputCount() > 1 ? integers(pad.getInput(1)) : null;
    AttributeProto mode = Attributes.find(pad, "mode");
    boolean plain =
        amounts != null
            && (mode == null || mode.getS().toStringUtf8().equals("constant"))
            && (pad.getInputCount() < 3 || pad.getInput(2).isEmpty() || isZero(pad.getInput(2)))
            && (pad.getInputCount() < 4 || pad.getInput(3).isEmpty())
            && !outputs.contains(pad.getOutput(0));
    if (!plain) {
      return false;
    }
    int rank = amounts.length / 2;
    for (int d = 0; d < amounts.length; d++) {
      if (amounts[d] < 0 || amounts[d] > 0 && d % rank < 2) {
        return false;
      }
    }
    return consumers.getOrDefault(pad.getOutput(0), List.of()).stream()
        .allMatch(
            c -> {
              AttributeProto auto = Attributes.find(c, "auto_pad");
              OnnxInitializer w = OnnxModel.isOwn(c, "Conv") ? model.constant(c.getInput(1)) : null;
              return w != null
                  && w.dims().length == rank
                  && (auto == null || auto.getS().toStringUtf8().equals("NOTSET"));
            });
  }

  private boolean isZero(String value) {
    OnnxInitializer c = model.constant(value);
    return c != null && c.type() == DataType.FLOAT && c.elements() == 1 && c.floats().get(0) == 0;
  }

  /** The Conv that pads by itself what a Pad in front of it did. */
  private NodeProto padded(NodeProto conv) {
    NodeProto pad = pads.get(conv.getInput(0));
    long[] amounts = integers(pad.getInput(1));
    int rank = amounts.length / 2;
    AttributeProto own = Attributes.find(conv, "pads");
    AttributeProto.Builder sum =
        AttributeProto.newBuilder().setName("pads").setType(AttributeType.INTS);
    for (int i = 0; i < 2 * (rank - 2); i++) {
      int d = i < rank - 2 ? i + 2 : i + 4;
      sum.addInts(amounts[d] + (own == null ? 0 : own.getInts(i)));
    }
    NodeProto.Builder b = conv.toBuilder().clearAttribute().setInput(0, pad.getInput(0));
    conv.getAttributeList().stream()
        .filter(a -> !a.getName().equals("pads"))
        .forEach(b::addAttribute);
    return b.addAttribute(sum).build();
  }

  /**
   * A constant vector of integers, also one that is put together from parts of constants, as converters write
   * paddings; null if it is none.
   */
  private long[] integers(String value) {
    OnnxInitializer c = model.constant(value);
    if (c != null) {
      if (c.type() != DataType.INT64 || c.dims().length != 1) {
        return null;
      }
      long[] values = new long[(int) c.elements()];
      c.data().asLongBuffer().get(values);
      return values;
    }
    NodeProto n = producers.get(value);
    if (n == null) {
      return null;
    }
    if (OnnxModel.isOwn(n, "Split")) {
      long[] whole = integers(n.getInput(0));
      // One element for each output is what parts are made for.
      return whole != null && whole.length == n.getOutputCount()
          ? new long[] {whole[n.getOutputList().indexOf(value)]}
          : null;
    }
    if (!OnnxModel.isOwn(n, "Concat")) {
      return null;
    }
    long[] all = {};
    for (String input : n.getInputList()) {
      long[] part = integers(input);
      if (part == null) {
        return null;
      }
      int start = all.length;
      all = Arrays.copyOf(all, start + part.length);
      System.arraycopy(part, 0, all, start, part.length);
    }
    return all;
  }

  /** A Clip for the larger or smaller of a value and one number. */
  private NodeProto clip(NodeProto n) {
    int constant = n.getInputCount() == 2 && model.constant(n.getInput(0)) != null ? 0 : 1;
    OnnxInitializer c = n.getInputCount() == 2 ? model.constant(n.getInput(constant)) : null;
    String x = c == null ? "" : n.getInput(1 - constant);
    NodeProto producer = producers.get(x);
    // Behind an image a number of its rank changes no shape.
    boolean image =
        producer != null
            && Set.of("Add", "Conv", "LeakyRelu", "Relu").contains(producer.getOpType());
    if (c == null
        || c.type() != DataType.FLOAT
        || c.elements() != 1
        || c.dims().length > 0 && !(image && c.dims().length <= 4)) {
      return n;
    }
    String bound = number(c.floats().get(0));
    NodeProto.Builder b = Nodes.node("Clip", n.getOutput(0), x).setName(n.getName());
    return OnnxModel.isOwn(n, "Max")
        ? b.addInput(bound).build()
        : b.addInput("").addInput(bound).build();
  }

  /** The HardSigmoid of x in x · HardSigmoid(x); null if a product is something else. */
  private NodeProto hardSigmoid(NodeProto product) {
    for (int i = 0; i < 2 && product.getInputCount() == 2; i++) {
      NodeProto gate = producers.get(product.getInput(i));
      if (gate != null
          && OnnxModel.isOwn(gate, "HardSigmoid")
          && gate.getInput(0).equals(product.getInput(1 - i))) {
        return gate;
      }
    }
    return null;
  }

  private void swish(NodeProto n) {
    String x = n.getInput(0);
    float alpha = Attributes.real(n, "alpha", 1);
    String scaled = x;
    if (alpha != 1) {
      scaled = names.unique(n.getOutput(0) + "_scaled");
      nodes.add(Nodes.node("Mul", scaled, x, number(alpha)).build());
    }
    String gate = names.unique(n.getOutput(0) + "_gate");
    nodes.add(Nodes.node("Sigmoid", gate, scaled).build());
    nodes.add(Nodes.node("Mul", n.getOutput(0), x, gate).setName(n.getName()).build());
  }

  private void hardSwish(NodeProto n, String x, float alpha, float beta) {
    String scaled = names.unique(n.getOutput(0) + "_scaled");
    String shifted = names.unique(n.getOutput(0) + "_shifted");
    String gate = names.unique(n.getOutput(0) + "_gate");
    nodes.add(Nodes.node("Mul", scaled, x, number(alpha)).build());
    nodes.add(Nodes.node("Add", shifted, scaled, number(beta)).build());
    nodes.add(Nodes.node("Clip", gate, shifted, number(0), number(1)).build());
    nodes.add(Nodes.node("Mul", n.getOutput(0), x, gate).setName(n.getName()).build());
  }

  private String number(float value) {
    String name = names.unique("number");
    model.addInitializer(OnnxInitializer.floats(name, new long[0], value));
    return name;
  }
}
