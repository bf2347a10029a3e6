package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.channels.HiddenChannels.Attribute;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxModel;

/**
 * An attention that is one node, of ONNX or of ONNX Runtime's own operators, and where its inputs and outputs have heads.
 * Either whole groups go, keys and values with all queries that read them, or of each group as many queries.
 *
 * @param heads of the queries
 * @param groups heads of keys and values; each is read by as many queries
 * @param apart whether heads have an axis of their own, [n, heads, steps, numbers]; else queries, keys and values are
 *     rows of the numbers of all heads
 */
public record FusedAttention(NodeProto node, Kind kind, int heads, int groups, boolean apart) {
  /**
   * The operators, each with the inputs that it has beyond queries, keys and values.
   *
   * @see <a href="https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md">their definition</a>
   */
  private enum Kind {
    /** Queries, keys and values, or one value of all. */
    GROUPED(
        FusedOperators.DOMAIN, "GroupQueryAttention", -1, 10, Set.of(3, 4), Set.of(5, 6, 7, 8, 9)),
    SEPARATE(FusedOperators.DOMAIN, "MultiHeadAttention", 3, 5, Set.of(6, 7), Set.of(4, 8)),
    /** What is attended to, and a weight that makes queries, keys and values of it. */
    WHOLE(FusedOperators.DOMAIN, "Attention", 2, 5, Set.of(4), Set.of(3, 6)),
    /** That of ONNX itself. */
    STANDARD("", "Attention", -1, 3, Set.of(4, 5), Set.of(6));

    private final String domain;
    private final String operator;

    /** What is added to queries, keys and values, one after the other. */
    private final int bias;

    /** What is added to the products of queries and keys: [n, heads, steps, steps]. */
    private final int scores;

    /** Keys and values of earlier tokens. */
    private final Set<Integer> caches;

    /** What all heads share, as lengths, places and masks of steps. */
    private final Set<Integer> common;

    Kind(
        String domain,
        String operator,
        int bias,
        int scores,
        Set<Integer> caches,
        Set<Integer> common) {
      this.domain = domain;
      this.operator = operator;
      this.bias = bias;
      this.scores = scores;
      this.caches = caches;
      this.common = common;
    }

    /** The attribute that says how many heads of queries there are. */
    private String counting() {
      return this == STANDARD ? "q_num_heads" : "num_heads";
    }
  }

  private static final int KEYS = 1;
  private static final int VALUES = 2;

  /** Whether a node is an attention. */
  public static boolean is(NodeProto n) {
    return kind(n) != null;
  }

  private static Kind kind(NodeProto n) {
    String domain = OnnxModel.isOwn(n) ? "" : n.getDomain();
    for (Kind kind : Kind.values()) {
      if (n.getOpType().equals(kind.operator) && domain.equals(kind.domain)) {
        return kind;
      }
    }
    return null;
  }

  /** What a node is; null if it is none, or its heads are not told rightly. */
  static FusedAttention of(NodeProto n, ValueShapes shapes) {
    Kind kind = kind(n);
    if (kind == null) {
      return null;
    }
    boolean apart = kind == Kind.STANDARD && shapes.rank(n.getInput(0)) == 4;
    long heads =
        apart ? shapes.length(n.getInput(0), 3) : Attributes.integer(n, kind.counting(), 0);
    long groups = heads;
    if (apart) {
      groups = shapes.length(n.getInput(KEYS), 3);
    } else if (kind == Kind.GROUPED || kind == Kind.STANDARD) {
      groups = Attributes.integer(n, "kv_num_heads", 0);
    }
    boolean fits = heads > 0 && groups > 0 && heads <= Integer.MAX_VALUE && heads % groups == 0;
    return fits ? new FusedAttention(n, kind, (int) heads, (int) groups, apart) : null;
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
   * @param value rows of numbers, or heads, that it reads or gives
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

  /** How many numbers of the axis a head has; 0 where that cannot be told. */
  private int width(String value, ChannelPlace place, int size, ValueShapes shapes) {
    if (place.axis() != axis()) {
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
    boolean fits = parts > 0 && length > 0 && length % parts == 0 && (!apart || length == parts);
    return fits ? (int) (length / parts) : 0;
  }

  /** On which axis heads are, of whatever has no rows of scores or caches. */
  private int axis() {
    return apart ? 3 : 1;
  }

  /** Whether queries, keys and values have the axes that they should, no value is read twice, and all else is known. */
  private boolean isUnderstood(ValueShapes shapes) {
    int axes = apart ? 4 : 3;
    boolean fits =
        kind == Kind.WHOLE
            ? sizes().stream().distinct().count() <= 1 && shapes.rank(input(1)) == 2
            : shapes.rank(input(0)) == axes
                && (isPacked()
                    || shapes.rank(input(KEYS)) == axes && shapes.rank(input(VALUES)) == axes);
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
        whole
            ? new ChannelPlace(axis(), 1, queries * width)
            : new ChannelPlace(axis(), groups, width);
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
        all.put(input(KEYS), new ChannelPlace(axis(), 1, width));
        all.put(input(VALUES), new ChannelPlace(axis(), 1, width));
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
    attributes.add(new Attribute(output(), kind.counting(), heads / size));
    int width = rows.each() * size / heads;
    if (rows.block() == queries() * width) { // whole groups
      attributes.add(new Attribute(output(), "kv_num_heads", 1));
    }
    attributes.add(new Attribute(output(), "qkv_hidden_sizes", rows.each()));
    return attributes;
  }
}
