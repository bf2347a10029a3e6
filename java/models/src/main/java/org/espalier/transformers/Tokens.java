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
    String behind = g.node("Less", path, List.of(distances, g.whole(0)));
    String one = g.node("Cast", path, List.of(behind), attribute("to", DataType.FLOAT_VALUE));
    return g.node("Mul", path, List.of(one, g.number(-Float.MAX_VALUE)));
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
    String beyond = g.node("Greater", path, List.of(distance, g.whole(most)));
    String one = g.node("Cast", path, List.of(beyond), attribute("to", DataType.FLOAT_VALUE));
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

  /** The mean over the tokens of each text: [batch, hidden]. */
  String mean(String x, String mask) {
    String kept = kept(mask);
    String read = g.node("Mul", "mean", List.of(x, kept));
    String sum = g.node("ReduceSum", "mean", List.of(read, g.wholes(1)), attribute("keepdims", 0L));
    String count =
        g.node("ReduceSum", "mean/count", List.of(kept, g.wholes(1)), attribute("keepdims", 0L));
    return g.node("Div", "mean", List.of(sum, count));
  }
}
