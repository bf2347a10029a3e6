package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.HiddenChannels.Attribute;
import org.espalier.format.onnx.Attributes;

/**
 * An attention that is one node of ONNX Runtime's own operators, and where its inputs and outputs have heads. Either whole
 * groups go, keys and values with all queries that read them, or of each group as many queries.
 *
 * @param heads of the queries
 * @param groups heads of keys and values; each is read by as many queries
 */
record FusedAttention(NodeProto node, Kind kind, int heads, int groups) {
  /**
   * The operators, each with the inputs that it has beyond queries, keys and values.
   *
   * @see <a href="https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md">their definition</a>
   */
  private enum Kind {
    /** Queries, keys and values, or one value of all. */
    GROUPED("GroupQueryAttention", -1, 10, Set.of(3, 4), Set.of(5, 6, 7, 8, 9)),
    SEPARATE("MultiHeadAttention", 3, 5, Set.of(6, 7), Set.of(4, 8)),
    /** What is attended to, and a weight that makes queries, keys and values of it. */
    WHOLE("Attention", 2, 5, Set.of(4), Set.of(3, 6));

    private final String operator;

    /** What is added to queries, keys and values, one after the other. */
    private final int bias;

    /** What is added to the products of queries and keys: [n, heads, steps, steps]. */
    private final int scores;

    /** Keys and values of earlier tokens. */
    private final Set<Integer> caches;

    /** What all heads share, as lengths, places and masks of steps. */
    private final Set<Integer> common;

    Kind(String operator, int bias, int scores, Set<Integer> caches, Set<Integer> common) {
      this.operator = operator;
      this.bias = bias;
      this.scores = scores;
      this.caches = caches;
      this.common = common;
    }
  }

  private static final int KEYS = 1;
  private static final int VALUES = 2;

  /** What a node is; null if it is none, or its heads are not told rightly. */
  static FusedAttention of(NodeProto n) {
    if (!n.getDomain().equals(RuntimeOperators.DOMAIN)) {
      return null;
    }
    for (Kind kind : Kind.values()) {
      if (n.getOpType().equals(kind.operator)) {
        long heads = Attributes.integer(n, "num_heads", 0);
        long groups = kind == Kind.GROUPED ? Attributes.integer(n, "kv_num_heads", 0) : heads;
        boolean fits = groups > 0 && heads <= Integer.MAX_VALUE && heads % groups == 0;
        return fits ? new FusedAttention(n, kind, (int) heads, (int) groups) : null;
      }
    }
    return null;
  }

  /** The weight that makes queries, keys and values, which is one of its inputs; null where other nodes make them. */
  String weight() {
    return kind == Kind.WHOLE ? input(1) : null;
  }

  private int queries() {
    return heads / groups;
  }

  private String output() {
    return node.getOutput(0);
  }

  private String input(int index) {
    return index < node.getInputCount() ? node.getInput(index) : "";
  }

  /** Whether one value is queries, then keys, then values. */
  private boolean isPacked() {
    return kind == Kind.GROUPED && input(KEYS).isEmpty() && input(VALUES).isEmpty();
  }

  /**
   * Where all that it reads and gives has the channels, if one value has them at a place; null where that cannot be.
   *
   * @param value rows of numbers [n, steps, numbers] that it reads or gives
   * @param size how many channels there are
   * @param finer hears where else channels could be
   * @return by value; what is not in it has none
   */
  Map<String, ChannelPlace> places(
      String value, ChannelPlace place, int size, FinerChannels finer, ValueShapes shapes) {
    int width = isUnderstood(shapes) ? width(value, place, size, shapes) : 0;
    if (width == 0) {
      return null;
    }
    for (boolean whole : new boolean[] {true, false}) {
      Map<String, ChannelPlace> all = places(whole, width);
      if (size == (whole ? groups : queries()) && place.equals(all.get(value))) {
        return all;
      }
    }
    for (boolean whole : new boolean[] {true, false}) {
      ChannelPlace other = places(whole, width).get(value);
      if (other != null) {
        finer.add(place, other.layout());
      }
    }
    return null;
  }

  /** How many numbers a head has; 0 where that cannot be told. */
  private int width(String value, ChannelPlace place, int size, ValueShapes shapes) {
    if (place.axis() != 1) {
      return 0;
    }
    long length;
    int parts;
    if (kind == Kind.WHOLE) {
      length = value.equals(output()) ? shapes.length(input(1), 1) : -1;
      parts = 3 * heads;
    } else {
      length = place.length(size);
      boolean isKey = value.equals(input(KEYS)) || value.equals(input(VALUES));
      boolean isQuery = value.equals(input(0));
      parts =
          isKey
              ? groups
              : isQuery && isPacked()
                  ? heads + 2 * groups
                  : isQuery || value.equals(output()) ? heads : 0;
    }
    return parts > 0 && length > 0 && length % parts == 0 ? (int) (length / parts) : 0;
  }

  /** Whether queries, keys and values are rows of numbers, no value is read twice, and all else is known. */
  private boolean isUnderstood(ValueShapes shapes) {
    boolean fits =
        kind == Kind.WHOLE
            ? sizes().stream().distinct().count() <= 1 && shapes.rank(input(1)) == 2
            : shapes.rank(input(0)) == 3
                && (isPacked() || shapes.rank(input(KEYS)) == 3 && shapes.rank(input(VALUES)) == 3);
    for (int i = 0; i < node.getInputCount(); i++) {
      String value = input(i);
      boolean known =
          i <= VALUES
              || i == kind.bias
              || i == kind.scores
              || kind.caches.contains(i)
              || kind.common.contains(i);
      fits &=
          value.isEmpty()
              || known && node.getInputList().stream().filter(value::equals).count() == 1;
    }
    return fits && node.getOutputCount() <= 1 + kind.caches.size();
  }

  /** How many numbers queries, keys and values have in all, where an attribute says so. */
  private List<Long> sizes() {
    return Attributes.find(node, "qkv_hidden_sizes") == null
        ? List.of()
        : Attributes.find(node, "qkv_hidden_sizes").getIntsList();
  }

  /**
   * Where everything has the channels.
   *
   * @param whole whether these are whole groups; else the queries of each
   */
  private Map<String, ChannelPlace> places(boolean whole, int width) {
    int queries = queries();
    Map<String, ChannelPlace> all = new LinkedHashMap<>();
    ChannelPlace rows =
        whole ? new ChannelPlace(1, 1, queries * width) : new ChannelPlace(1, groups, width);
    all.put(output(), rows);
    if (kind == Kind.WHOLE) {
      all.put(input(1), new ChannelPlace(1, 3, width));
    } else if (isPacked()) {
      ChannelLayout packed =
          whole
              ? new ChannelLayout(1, queries * width, 2, width, 0)
              : new ChannelLayout(groups, width, 0, 0, 2 * groups * width);
      all.put(input(0), new ChannelPlace(1, packed));
    } else {
      all.put(input(0), rows);
      if (whole) {
        all.put(input(KEYS), new ChannelPlace(1, 1, width));
        all.put(input(VALUES), new ChannelPlace(1, 1, width));
      }
    }
    all.put(
        input(kind.scores),
        whole ? new ChannelPlace(3, 1, queries) : new ChannelPlace(3, groups, 1));
    if (kind.bias > 0) {
      all.put(input(kind.bias), new ChannelPlace(1, 3, width));
    }
    if (whole) {
      kind.caches.forEach(cache -> all.put(input(cache), new ChannelPlace(3)));
      node.getOutputList().stream().skip(1).forEach(cache -> all.put(cache, new ChannelPlace(3)));
    }
    all.remove("");
    return all;
  }

  /** The attributes that count channels, if it has them at these places. */
  List<Attribute> attributes(int size, Map<String, ChannelPlace> places) {
    List<Attribute> attributes = new ArrayList<>();
    ChannelPlace rows = places.get(output());
    attributes.add(new Attribute(output(), "num_heads", heads / size));
    int width = rows.each() * size / heads;
    if (rows.block() == queries() * width) { // whole groups
      attributes.add(new Attribute(output(), "kv_num_heads", 1));
    }
    attributes.add(new Attribute(output(), "qkv_hidden_sizes", rows.each()));
    return attributes;
  }
}
