package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.HashMap;
import java.util.Map;
import java.util.function.Consumer;

/**
 * The look-ups that read the weights of products, such as a language model's embedding that is its last product
 * too: each by its output, with the Gather that it was and the product whose weights it reads.
 *
 * @param <P> what a product is known by
 */
final class TiedLookUps<P> {
  private record LookUp<P>(NodeProto gather, P product) {}

  private final Map<String, LookUp<P>> byOutput = new HashMap<>();

  /** Notes that {@code gather} reads the weights of {@code product}. */
  void add(NodeProto gather, P product) {
    byOutput.put(gather.getOutput(0), new LookUp<>(gather, product));
  }

  /** Whether the value {@code output} is looked up in the weights of a product. */
  boolean contains(String output) {
    return byOutput.containsKey(output);
  }

  /** The Gather behind an output that is {@link #contains contained}. */
  NodeProto gather(String output) {
    return byOutput.get(output).gather();
  }

  /** The product behind an output that is {@link #contains contained}. */
  P product(String output) {
    return byOutput.get(output).product();
  }

  /** Whether something looks up in the weights of {@code product}. */
  boolean reads(P product) {
    return byOutput.values().stream().anyMatch(l -> l.product().equals(product));
  }

  void forEachProduct(Consumer<P> action) {
    byOutput.values().forEach(l -> action.accept(l.product()));
  }
}
