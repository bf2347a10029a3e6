package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.channels.FusedAttention;
import org.espalier.compress.onnx.channels.HiddenChannels;
import org.espalier.compress.onnx.channels.HiddenChannels.Reader;
import org.espalier.compress.onnx.channels.HiddenChannels.Slice;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * What a model has to do with its hidden channels, by how many of each set there are: the multiplications of the
 * products that make and read them and of those between two values that have them, and the numbers between, which are
 * written and read.
 */
final class ChannelWork {
  /**
   * A number between products takes as long as so many multiplications: so fits what narrower sets of a text detector
   * save in ONNX Runtime on AVX-512.
   */
  private static final double MOVE = 16;

  /** A product of channels of up to two sets, told by their numbers; −1 for none. */
  private record Product(int read, int made, double multiplications) {}

  private final int[] sizes;
  private final List<Product> products = new ArrayList<>();

  /** Of each set the numbers that all its values have. */
  private final double[] numbers;

  /**
   * Sees how large everything is.
   *
   * @param source of examples, of which one will do
   */
  ChannelWork(OnnxModel model, List<HiddenChannels> sets, ActivationSource source) {
    sizes = sets.stream().mapToInt(HiddenChannels::size).toArray();
    Map<String, Integer> read = new HashMap<>();
    Map<String, Integer> made = new HashMap<>();
    Map<String, Slice> weights = new HashMap<>();
    Set<String> values = new HashSet<>();
    for (int s = 0; s < sizes.length; s++) {
      HiddenChannels set = sets.get(s);
      values.addAll(set.values());
      for (Reader reader : set.readers()) {
        read.put(reader.node(), s);
        weights.put(reader.node(), reader.slice());
      }
      for (Slice slice : set.slices()) {
        boolean makes =
            set.makers().contains(slice.node()) || set.depthwise().contains(slice.node());
        boolean reads = set.readers().stream().anyMatch(r -> r.slice().equals(slice));
        if (makes && !reads && slice.input() == 1) {
          made.put(slice.node(), s);
          weights.putIfAbsent(slice.node(), slice);
        }
      }
    }
    values.addAll(weights.keySet());
    Seen seen = Seen.of(model, values, source);
    for (int s = 0; s < sizes.length; s++) {
      for (String value : sets.get(s).inner()) {
        products.add(new Product(s, -1, seen.inner(value)));
      }
    }
    weights.forEach(
        (node, slice) -> {
          int outputs = read.containsKey(node) ? 1 - slice.axis() : slice.axis();
          products.add(
              new Product(
                  read.getOrDefault(node, -1),
                  made.getOrDefault(node, -1),
                  seen.weighted(node, slice, outputs)));
        });
    numbers =
        sets.stream()
            .mapToDouble(set -> set.values().stream().mapToLong(seen::elements).sum())
            .toArray();
  }

  /**
   * How large values were.
   *
   * @param elements over all runs
   * @param shapes of the last one
   */
  private record Seen(
      OnnxModel model,
      Map<String, NodeProto> producers,
      Map<String, Long> elements,
      Map<String, long[]> shapes) {
    static Seen of(OnnxModel model, Set<String> values, ActivationSource source) {
      Seen seen = new Seen(model, model.producers(), new HashMap<>(), new HashMap<>());
      values.removeIf(
          v -> OnnxModel.isOwn(seen.producers.get(v), "IsNaN")); // of truths, no numbers
      source.run(
          model,
          values,
          (name, shape, v) -> {
            seen.elements.merge(name, (long) v.remaining(), Long::sum);
            seen.shapes.put(name, shape);
          });
      return seen;
    }

    /** 0 of what was not asked for. */
    long elements(String value) {
      return elements.getOrDefault(value, 0L);
    }

    /** The multiplications of a product of two values, or of an attention. */
    double inner(String value) {
      NodeProto n = producers.get(value);
      if (FusedAttention.is(n)) {
        // As many steps as the text has are looked at twice, for their keys and their values.
        long[] shape = shapes.get(value);
        return 2.0 * elements.get(value) * shape[shape.length - 2];
      }
      long[] left = shapes.get(n.getInput(0));
      long[] right = shapes.get(n.getInput(1)); // one of both may have none
      long summed = left != null ? left[left.length - 1] : right[right.length - 2];
      return (double) elements.get(value) * summed;
    }

    /**
     * The multiplications of a product with a weight.
     *
     * @param slice of the weight
     * @param outputs its axis of outputs
     */
    double weighted(String node, Slice slice, int outputs) {
      OnnxInitializer weight = model.constant(slice.constant());
      boolean attends = FusedAttention.is(producers.get(node));
      // What an attention gives are as many numbers as its queries alone.
      double times = attends ? slice.layout().repeat() : 1;
      double rows = times * elements.get(node) / weight.dims()[outputs];
      // What is no channel's stays.
      double share = 1 - (double) slice.layout().rest() / weight.dims()[slice.axis()];
      return rows * weight.elements() * share;
    }
  }

  /**
   * What is to be done, in multiplications.
   *
   * @param counts how many channels each set has
   */
  double of(int[] counts) {
    double sum = 0;
    for (int s = 0; s < counts.length; s++) {
      sum += MOVE * numbers[s] * share(s, counts);
    }
    for (Product p : products) {
      sum += p.multiplications() * share(p.read(), counts) * share(p.made(), counts);
    }
    return sum;
  }

  private double share(int set, int[] counts) {
    return set < 0 ? 1 : (double) counts[set] / sizes[set];
  }
}
