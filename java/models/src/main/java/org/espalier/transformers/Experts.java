package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.ArrayList;
import java.util.List;
import java.util.function.BinaryOperator;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * A block of experts of which each token takes some: those with the largest of softmax(W·x), a router, and their sum by these
 * weights. Tokens are brought into the order of their experts and cut there, so that each expert is products of its own
 * weights with its own tokens, which may be none, and no branch is needed.
 *
 * @param count of experts
 * @param taken by a token
 * @param normed whether the weights of those that are taken are made to add up to 1
 */
record Experts(GraphWriter g, long hidden, long count, long taken, boolean normed) {
  /** The most outputs that a node should have. */
  private static final long MOST = 4096;

  /**
   * What a configuration says of them.
   *
   * @param countKey by which it says how many there are
   */
  static Experts of(
      Configuration config, GraphWriter g, long hidden, String countKey, boolean normed) {
    long count = config.size(countKey);
    if (count > MOST) {
      throw config.wrong(countKey, "a whole number from 1 to " + MOST);
    }
    long taken = config.size("num_experts_per_tok");
    if (taken > count) {
      throw config.wrong("num_experts_per_tok", "at most " + countKey + " = " + count);
    }
    return new Experts(g, hidden, count, taken, normed);
  }

  /**
   * Writes the block.
   *
   * @param x [batch, tokens, hidden]
   * @param path of the block, which has the router as {@code gate} and {@code experts}
   * @param expert writes what the expert of a path makes of tokens [tokens, hidden]
   */
  String write(String x, String path, BinaryOperator<String> expert) {
    String tokens = g.node("Reshape", path, List.of(x, g.wholes(-1, hidden)));
    String router = path + ".gate";
    String scores = g.linear(tokens, router, hidden, count, false);
    String shares = g.node("Softmax", router, List.of(scores), attribute("axis", -1L));
    List<String> best =
        g.nodes("TopK", router, 2, List.of(shares, g.wholes(taken)), attribute("axis", -1L));
    // Each token as often as it has experts, first those of expert 0.
    String chosen = g.node("Reshape", router, List.of(best.get(1), g.wholes(-1)));
    String order = sorted(chosen, path + "/order");
    String token = g.node("Div", path, List.of(order, g.whole(taken)));
    String rows = g.node("Gather", path, List.of(tokens, token), attribute("axis", 0L));
    List<String> parts =
        g.nodes(
            "Split", path, (int) count, List.of(rows, counts(chosen, path)), attribute("axis", 0L));
    List<String> made = new ArrayList<>();
    for (int e = 0; e < count; e++) {
      made.add(expert.apply(parts.get(e), path + ".experts." + e));
    }
    String all = g.node("Concat", path, made, attribute("axis", 0L));
    String back = sorted(order, path + "/back");
    String own = g.node("Gather", path + "/back", List.of(all, back), attribute("axis", 0L));
    String ofToken = g.node("Reshape", path + "/back", List.of(own, g.wholes(-1, taken, hidden)));
    String weight = g.node("Unsqueeze", router, List.of(weights(best.get(0), router), g.wholes(2)));
    String weighed = g.node("Mul", path + "/weighed", List.of(ofToken, weight));
    String sum =
        g.node("ReduceSum", path, List.of(weighed, g.wholes(1)), attribute("keepdims", 0L));
    return g.node("Reshape", path + "/sum", List.of(sum, g.shape(x)));
  }

  private String weights(String shares, String path) {
    if (!normed) {
      return shares;
    }
    String sum =
        g.node("ReduceSum", path, List.of(shares, g.wholes(-1)), attribute("keepdims", 1L));
    return g.node("Div", path, List.of(shares, sum));
  }

  /** Where the smallest of whole numbers stands, then the next, of equal ones the first. */
  private String sorted(String numbers, String path) {
    List<String> inputs = List.of(numbers, g.shape(numbers));
    return g.nodes("TopK", path, 2, inputs, attribute("axis", 0L), attribute("largest", 0L)).get(1);
  }

  /** How often each expert was chosen. */
  private String counts(String chosen, String path) {
    int size = (int) count;
    String none =
        g.constant(OnnxInitializer.int64s("zeros/" + size, new long[] {size}, new long[size]));
    String ones = g.node("Expand", path, List.of(g.wholes(1), g.shape(chosen)));
    return g.node(
        "ScatterElements",
        path,
        List.of(none, chosen, ones),
        attribute("axis", 0L),
        attribute("reduction", "add"));
  }
}
