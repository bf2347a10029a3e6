package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;

/**
 * Writes what follows from the places of tokens and from which of them are texts, whatever they stand for.
 *
 * @param g the graph
 */
record Tokens(GraphWriter g) {
  /** The places of tokens, [tokens]. */
  String places(String ids) {
    return g.once(
        "position_ids",
        () -> g.node("Range", "position_ids", List.of(g.whole(0), g.length(ids, 1), g.whole(1))));
  }

  /** How far the first of two tokens is behind the second, [tokens, tokens]. */
  String distances(String ids) {
    return distances(places(ids), places(ids));
  }

  /**
   * The same of tokens among others.
   *
   * @param from the places of the first, [tokens]
   * @param to those of the second
   */
  String distances(String from, String to) {
    String path = "distances";
    return g.once(
        path,
        () -> {
          String row = g.node("Unsqueeze", path + "/to", List.of(to, g.wholes(0)));
          String column = g.node("Unsqueeze", path + "/from", List.of(from, g.wholes(1)));
          return g.node("Sub", path, List.of(column, row));
        });
  }

  /** The least float where the second of two tokens is behind the first, else 0. */
  String later(String distances) {
    String path = "later";
    return leastWhere(g.node("Less", path, List.of(distances, g.whole(0))), path);
  }

  /** What is added to scores: 0, and the least float where a token is hidden: [batch, 1, 1, tokens]. */
  String hiding(String mask) {
    String wide = g.node("Unsqueeze", Encoder.MASK, List.of(mask, g.wholes(1, 2)));
    String seen =
        g.node("Cast", Encoder.MASK, List.of(wide), attribute("to", DataType.FLOAT_VALUE));
    String hidden = g.node("Sub", Encoder.MASK, List.of(g.number(1), seen));
    return g.node("Mul", Encoder.MASK, List.of(hidden, g.number(-Float.MAX_VALUE)));
  }

  /**
   * The least float where two tokens are no neighbours, else 0: [tokens, tokens].
   *
   * @param most how far from a token its last neighbours are
   */
  String strangers(String ids, long most) {
    String path = "neighbours";
    String distance = g.node("Abs", path, List.of(distances(ids)));
    return leastWhere(g.node("Greater", path, List.of(distance, g.whole(most))), path);
  }

  private String leastWhere(String condition, String path) {
    String one = g.node("Cast", path, List.of(condition), attribute("to", DataType.FLOAT_VALUE));
    return g.node("Mul", path, List.of(one, g.number(-Float.MAX_VALUE)));
  }

  /** 1 for tokens of texts and 0 for padding, or what else a mask says of tokens, as floats: [batch, tokens, 1]. */
  String kept(String mask) {
    String path = mask + "/kept";
    return g.once(
        path,
        () -> {
          String seen = g.node("Cast", path, List.of(mask), attribute("to", DataType.FLOAT_VALUE));
          return g.node("Unsqueeze", path, List.of(seen, g.wholes(2)));
        });
  }

  /**
   * The mean over the tokens of each text: [batch, hidden].
   *
   * @param weights of tokens, [batch, tokens, 1]
   */
  String mean(String x, String weights, String path) {
    String sum = sum(g.node("Mul", path, List.of(x, weights)), path);
    return g.node("Div", path, List.of(sum, sum(weights, path + "/count")));
  }

  /** The sum over tokens: [batch, hidden]. */
  String sum(String x, String path) {
    return g.node("ReduceSum", path, List.of(x, g.wholes(1)), attribute("keepdims", 0L));
  }

  /** The first token of each: [batch, hidden]. */
  String first(String x) {
    return g.node("Gather", "first", List.of(x, g.whole(0)), attribute("axis", 1L));
  }

  /** The last token of each text, which padding follows: [batch, hidden]. */
  String last(String x, String mask, String path) {
    String place = g.node("Unsqueeze", mask + "/last", List.of(lastPlaces(mask), g.wholes(1)));
    return g.node("GatherND", path, List.of(x, place), attribute("batch_dims", 1L));
  }

  /** Where the last token of each text is: [batch]. */
  String lastPlaces(String mask) {
    String path = mask + "/last";
    return g.once(path, () -> g.node("Sub", path, List.of(lengths(mask), g.wholes(1))));
  }

  /** How many tokens each text has: [batch]. */
  String lengths(String mask) {
    return g.once(mask + "/ReduceSum", () -> sum(mask, mask));
  }

  /** Queries or keys, [batch, tokens, heads · width], turned by their places. */
  String turned(String x, String path, String cosines, String sines) {
    String turned = path + "/RotaryEmbedding";
    g.runtimeNode(
        "RotaryEmbedding", path, List.of(x, g.wholes(0), cosines, sines), List.of(turned));
    return turned;
  }
}
