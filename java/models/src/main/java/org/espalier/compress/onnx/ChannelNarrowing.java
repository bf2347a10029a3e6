package org.espalier.compress.onnx;

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
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.HiddenChannels.Reader;
import org.espalier.compress.onnx.HiddenChannels.Slice;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/** Makes one set of hidden channels of a model smaller. */
final class ChannelNarrowing {
  private final OnnxModel model;
  private final HiddenChannels set;
  private final OnnxModel.Names names;

  /** What is read by an input of a node in place of what was, by the output of the node. */
  private final Map<String, Map<Integer, String>> inputs = new HashMap<>();

  /**
   * @param set of the model as it is now
   */
  ChannelNarrowing(OnnxModel model, HiddenChannels set) {
    this.model = model;
    this.set = set;
    names = model.names();
  }

  /**
   * Removes all but so many channels, and refits the products that read them.
   *
   * @param statistics of what the products read, by the name of the value; empty to go by magnitude
   * @throws InputException if a weight is not finite
   */
  void apply(int keep, Map<String, ActivationStatistics> statistics) {
    boolean seen = !statistics.isEmpty();
    // What both reads and makes them has a bias that is to be cut too.
    boolean biased =
        seen
            && set.readers().stream()
                .allMatch(r -> r.bias() != null && !set.makers().contains(r.node()));
    double[][] magnitudes = seen ? null : magnitudes();
    ChannelElimination elimination = new ChannelElimination(set.size());
    List<double[][]> weights = new ArrayList<>();
    List<double[]> means = new ArrayList<>();
    for (Reader reader : set.readers()) {
      double[][] rows = rows(reader.weight(), reader.slice());
      ActivationStatistics activation = statistics.get(reader.activation());
      weights.add(rows);
      means.add(biased ? mean(reader.slice(), rows, activation, all()) : null);
      elimination.add(seen ? moments(activation, biased) : magnitudes, rows);
    }
    int[] kept = elimination.keep(keep);
    for (int i = 0; i < weights.size(); i++) {
      Reader reader = set.readers().get(i);
      Slice slice = reader.slice();
      if (biased) {
        double[] change = means.get(i);
        double[] now = mean(slice, weights.get(i), statistics.get(reader.activation()), kept);
        for (int c = 0; c < change.length; c++) {
          change[c] -= now[c];
        }
        addToBias(reader, change);
      }
      model.replaceConstant(tensor(slice.constant(), slice, weights.get(i), kept));
    }
    cut(kept);
    rewire(kept.length);
  }

  private int[] all() {
    return IntStream.range(0, set.size()).toArray();
  }

  private static double[][] moments(ActivationStatistics seen, boolean centred) {
    float[] ones = new float[seen.channels()];
    Arrays.fill(ones, 1);
    return seen.moments(new float[seen.channels()], ones, centred);
  }

  /** Moments that know nothing but the sum of squares of the weights that make each channel. */
  private double[][] magnitudes() {
    double[][] diagonal = new double[set.size()][1];
    for (Slice slice : set.slices()) {
      if (set.makers().contains(slice.node()) && slice.input() == 1) {
        double[][] rows = rows(slice.constant(), slice);
        for (int c = 0; c < rows.length; c++) {
          diagonal[c][0] += Arrays.stream(rows[c]).map(w -> w * w).sum();
        }
      }
    }
    return diagonal;
  }

  /** For each channel all numbers of a constant that are its own, in their order. */
  private double[][] rows(String weight, Slice slice) {
    OnnxInitializer tensor = model.constant(slice.constant());
    FloatBuffer values = tensor.floats();
    int inner = inner(tensor.dims(), slice);
    int outer = (int) (tensor.elements() / ((long) set.size() * inner));
    double[][] rows = new double[set.size()][outer * inner];
    int at = values.position();
    for (int o = 0; o < outer; o++) {
      for (double[] row : rows) {
        for (int i = 0; i < inner; i++) {
          float w = values.get(at++);
          if (!Float.isFinite(w)) {
            throw new InputException(
                model.name()
                    + ": the weights "
                    + weight
                    + " hold "
                    + w
                    + "; finite numbers are right");
          }
          row[o * inner + i] = w;
        }
      }
    }
    return rows;
  }

  /** How many numbers of a channel lie one after the other. */
  private static int inner(long[] dims, Slice slice) {
    int inner = slice.block();
    for (int i = slice.axis() + 1; i < dims.length; i++) {
      inner *= (int) dims[i];
    }
    return inner;
  }

  /**
   * A constant of some of the channels.
   *
   * @param rows of all channels, as {@link #rows} gives them
   */
  private OnnxInitializer tensor(String name, Slice slice, double[][] rows, int[] kept) {
    long[] dims = model.constant(slice.constant()).dims().clone();
    int inner = inner(dims, slice);
    int outer = rows[0].length / inner;
    float[] values = new float[outer * kept.length * inner];
    int at = 0;
    for (int o = 0; o < outer; o++) {
      for (int c : kept) {
        for (int i = 0; i < inner; i++) {
          values[at++] = (float) rows[c][o * inner + i];
        }
      }
    }
    dims[slice.axis()] = (long) kept.length * slice.block();
    return OnnxInitializer.floats(name, dims, values);
  }

  /** The mean of a product's outputs, without its bias. */
  private double[] mean(
      Slice slice, double[][] rows, ActivationStatistics activation, int[] channels) {
    long[] dims = model.constant(slice.constant()).dims();
    // A channel's numbers are [outputs, kernel or pixels] or, where its axis is the first, [pixels,
    // outputs].
    boolean last = slice.axis() == 0;
    int inner = inner(dims, slice);
    double[] mean = new double[(int) dims[last ? 1 : 0]];
    for (int c : channels) {
      for (int i = 0; i < rows[c].length; i++) {
        mean[last ? i % mean.length : i / inner] += activation.mean(c) * rows[c][i];
      }
    }
    return mean;
  }

  private void addToBias(Reader reader, double[] change) {
    NodeProto n = model.producers().get(reader.bias());
    if (!reader.bias().equals(reader.node())) {
      NodeProto changed = ConstantVector.changed(model, names, n, change);
      for (int i = 0; i < n.getInputCount(); i++) {
        if (!changed.getInput(i).equals(n.getInput(i))) {
          read(reader.bias(), i, changed.getInput(i));
        }
      }
      return;
    }
    FloatBuffer old = model.constant(n.getInput(2)).floats();
    float[] values = new float[change.length];
    for (int c = 0; c < values.length; c++) {
      values[c] = (float) (old.get(old.position() + c) + change[c]);
    }
    String name = names.unique(n.getInput(2) + "_fitted");
    model.addInitializer(OnnxInitializer.floats(name, new long[] {values.length}, values));
    read(reader.node(), 2, name);
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
                  && slices.stream().allMatch(s -> s.axis() == first.axis());
          if (own) {
            model.replaceConstant(tensor(constant, first, rows(constant, first), kept));
            return;
          }
          for (Slice slice : slices) { // somebody else reads it as it is
            String name = names.unique(constant + "_cut");
            model.addInitializer(tensor(name, slice, rows(constant, slice), kept));
            read(slice.node(), slice.input(), name);
          }
        });
  }

  private void rewire(int left) {
    List<NodeProto> nodes = new ArrayList<>();
    Set<String> changedShapes = new HashSet<>(set.values());
    set.slices().forEach(slice -> changedShapes.add(slice.constant()));
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      NodeProto.Builder changed = n.toBuilder();
      inputs.getOrDefault(output, Map.of()).forEach(changed::setInput);
      if (set.depthwise().contains(output)) {
        for (int i = 0; i < n.getAttributeCount(); i++) {
          if (n.getAttribute(i).getName().equals("group")) {
            changed.setAttribute(i, Nodes.attribute("group", left));
          }
        }
      }
      for (Slice slice : set.slices()) {
        if (slice.node().equals(output)) { // it may be a transposition of the constant
          changedShapes.add(n.getInput(slice.input()));
        }
      }
      nodes.add(changed.build());
    }
    model.setNodes(nodes);
    model.removeValueInfo(changedShapes::contains);
  }
}
