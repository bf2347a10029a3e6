package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.onnx.channels.HiddenChannels.Bounds;
import org.espalier.compress.onnx.channels.HiddenChannels.Count;
import org.espalier.compress.onnx.channels.HiddenChannels.Reader;
import org.espalier.compress.onnx.channels.HiddenChannels.Slice;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/** Makes one set of hidden channels of a model smaller. */
public final class ChannelNarrowing {
  private final OnnxModel model;
  private final HiddenChannels set;
  private final OnnxModel.Names names;
  private final Map<String, NodeProto> producers;

  /** What is read by an input of a node in place of what was, by the output of the node. */
  private final Map<String, Map<Integer, String>> inputs = new HashMap<>();

  /**
   * @param set of the model as it is now
   */
  public ChannelNarrowing(OnnxModel model, HiddenChannels set) {
    this.model = model;
    this.set = set;
    names = model.names();
    producers = model.producers();
  }

  /**
   * Removes all but so many channels, and refits the products that read them.
   *
   * @param fit of the set, to the model with the weights that it has now
   * @throws InputException if a weight is not finite
   */
  public void apply(ChannelFit fit, int keep) {
    int[] kept = fit.keep(keep);
    for (int i = 0; i < set.readers().size(); i++) {
      Reader reader = set.readers().get(i);
      double[] change = fit.biasChange(i, kept);
      if (change != null) {
        addToBias(reader, change);
      }
      int[] numbers = ChannelFit.numbers(kept, reader.group());
      String constant = reader.slice().constant();
      model.replaceConstant(tensor(constant, reader.slice(), fit.rows(i), numbers));
    }
    cut(kept);
    rewire(kept.length);
  }

  /** What is read by an input of a node in place of what was, by the output of the node. */
  public Map<String, Map<Integer, String>> inputs() {
    return inputs;
  }

  /**
   * A constant of some of the channels, and of what is no channel's.
   *
   * @param rows of all numbers of the channels, as {@link ChannelFit} has them
   * @param kept the numbers that stay
   */
  private OnnxInitializer tensor(String name, Slice slice, double[][] rows, int[] kept) {
    OnnxInitializer whole = model.constant(slice.constant());
    long[] dims = whole.dims().clone();
    int inner = ChannelFit.inner(dims, slice);
    int[] numbers = slice.layout().numbers(set.size(), rows.length / set.size());
    boolean[] stays = new boolean[rows.length];
    for (int k : kept) {
      stays[k] = true;
    }
    int length = (int) Arrays.stream(numbers).filter(k -> k < 0 || stays[k]).count();
    int outer = (int) (whole.elements() / ((long) numbers.length * inner));
    float[] values = new float[outer * length * inner];
    FloatBuffer before = whole.floats();
    int[] read = new int[rows.length];
    int at = 0;
    int from = before.position();
    for (int o = 0; o < outer; o++) {
      for (int k : numbers) {
        for (int i = 0; i < inner; i++, from++) {
          if (k < 0) {
            values[at++] = before.get(from);
          } else if (stays[k]) {
            values[at++] = (float) rows[k][read[k]++];
          }
        }
      }
    }
    dims[slice.axis()] = length;
    return OnnxInitializer.floats(name, whole.type(), dims, values);
  }

  private void addToBias(Reader reader, double[] change) {
    NodeProto n = producers.get(reader.bias());
    boolean own = reader.bias().equals(reader.node());
    int input = own ? 2 : ConstantVector.input(model, n, change.length);
    NodeProto changed = ConstantVector.changed(model, names, n, input, change);
    read(reader.bias(), input, changed.getInput(input));
  }

  private void read(String node, int input, String value) {
    inputs.computeIfAbsent(node, n -> new HashMap<>()).put(input, value);
  }

  /** Cuts all constants but the weights that read the channels. */
  private void cut(int[] kept) {
    Map<String, List<NodeProto>> consumers = model.consumers();
    Set<Slice> read = new HashSet<>();
    set.readers().forEach(reader -> read.add(reader.slice()));
    Map<String, List<Slice>> byConstant = new LinkedHashMap<>();
    for (Slice slice : set.slices()) {
      if (!read.contains(slice)) {
        byConstant.computeIfAbsent(slice.constant(), c -> new ArrayList<>()).add(slice);
      }
    }
    byConstant.forEach(
        (constant, slices) -> {
          Slice first = slices.get(0);
          boolean own =
              consumers.get(constant).size() == slices.stream().map(Slice::node).distinct().count()
                  && slices.stream()
                      .allMatch(s -> s.axis() == first.axis() && s.layout().equals(first.layout()));
          if (own) {
            model.replaceConstant(tensor(constant, first, rows(first), kept));
            return;
          }
          for (Slice slice : slices) { // somebody else reads it as it is
            String name = names.unique(constant + "_cut");
            model.addInitializer(tensor(name, slice, rows(slice), kept));
            read(slice.node(), slice.input(), name);
          }
        });
  }

  /**
   * Gives a Reshape or Expand another number. Others may be told the old one by the same constant or Concat.
   *
   * @param nodes receives what makes its shape
   */
  private void count(NodeProto.Builder reshape, Count count, int left, List<NodeProto> nodes) {
    String shape = reshape.getInput(1);
    long[] numbers = count.numbers().stream().mapToLong(Long::longValue).toArray();
    numbers[count.index()] = (long) left * count.each();
    String constant = names.unique(shape + "_cut");
    model.addInitializer(OnnxInitializer.int64s(constant, new long[] {numbers.length}, numbers));
    if (count.part() < 0) {
      reshape.setInput(1, constant);
      return;
    }
    NodeProto.Builder concat = ChannelReshapes.concat(producers, shape).toBuilder();
    String joined = names.unique(shape + "_cut");
    concat.setInput(count.part(), constant).setOutput(0, joined).setName(joined);
    nodes.add(concat.build());
    reshape.setInput(1, joined);
  }

  private double[][] rows(Slice slice) {
    return ChannelFit.rows(model, set.size(), slice, 1, slice.constant());
  }

  private void rewire(int left) {
    Map<String, List<Count>> counts =
        set.counts().stream().collect(Collectors.groupingBy(Count::node));
    List<NodeProto> nodes = new ArrayList<>();
    Set<String> changedShapes = new HashSet<>(set.values());
    set.slices().forEach(slice -> changedShapes.add(slice.constant()));
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      NodeProto.Builder changed = n.toBuilder();
      inputs.getOrDefault(output, Map.of()).forEach(changed::setInput);
      if (set.depthwise().contains(output)) {
        attribute(changed, "group", left);
      }
      for (Bounds bounds : set.bounds()) {
        if (bounds.node().equals(output)) {
          cutAt(changed, bounds, left);
        }
      }
      for (HiddenChannels.Attribute attribute : set.attributes()) {
        if (attribute.node().equals(output)) {
          attribute(changed, attribute.name(), (long) left * attribute.each());
        }
      }
      for (Slice slice : set.slices()) {
        if (slice.node().equals(output)) { // it may be a transposition of the constant
          changedShapes.add(n.getInput(slice.input()));
        }
      }
      for (Count count : counts.getOrDefault(output, List.of())) {
        count(changed, count, left, nodes);
      }
      nodes.add(changed.build());
    }
    Set<String> usedBefore = new HashSet<>();
    model.nodes().forEach(n -> usedBefore.addAll(OnnxModel.uses(n)));
    Set<String> used = new HashSet<>(model.outputNames());
    for (int i = nodes.size() - 1; i >= 0; i--) {
      NodeProto n = nodes.get(i);
      boolean replaced =
          n.getOutputCount() > 0
              && usedBefore.contains(n.getOutput(0))
              && n.getOutputList().stream().noneMatch(used::contains);
      if (replaced) { // what made a shape
        nodes.remove(i);
      } else {
        used.addAll(OnnxModel.uses(n));
      }
    }
    model.setNodes(nodes);
    model.removeValueInfo(changedShapes::contains);
    for (HiddenChannels.Cache cache : set.caches()) {
      model.setLength(cache.value(), cache.axis(), (long) left * cache.each());
    }
  }

  /** Tells a Split or Slice where it cuts now. */
  private void cutAt(NodeProto.Builder n, Bounds bounds, int left) {
    long[] numbers = bounds.of(left);
    if (bounds.input() >= 0) {
      String name = names.unique(n.getInput(bounds.input()) + "_cut");
      model.addInitializer(OnnxInitializer.int64s(name, new long[] {numbers.length}, numbers));
      n.setInput(bounds.input(), name);
      return;
    }
    for (AttributeProto.Builder attribute : n.getAttributeBuilderList()) {
      if (attribute.getName().equals("split")) {
        attribute.clearInts();
        Arrays.stream(numbers).forEach(attribute::addInts);
      }
    }
  }

  private static void attribute(NodeProto.Builder n, String name, long value) {
    for (int i = 0; i < n.getAttributeCount(); i++) {
      if (n.getAttribute(i).getName().equals(name)) {
        AttributeProto.Builder attribute = n.getAttributeBuilder(i);
        if (attribute.getIntsCount() > 0) {
          for (int k = 0; k < attribute.getIntsCount(); k++) {
            attribute.setInts(k, value);
          }
        } else {
          attribute.setI(value);
        }
      }
    }
  }
}
