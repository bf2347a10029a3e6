package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A causal language model of the Llama kind with random weights: input_ids [n, t], attention_mask [n, all] and keys and
 * values of earlier tokens, to logits [n, t, vocabulary] and those of all tokens. Several queries share keys and values,
 * inner layers are gated, and queries and keys are turned by their position or, where that is spelled out, all alike.
 */
public final class GroupedDecoder extends SmallGraph {
  /** How the attention is written. */
  public enum Form {
    /** Keys and values are repeated as a trace of PyTorch does, which computes all lengths and looks for open ones. */
    TRACED,
    /** They are repeated to lengths that are constants. */
    EXPANDED,
    /** The same behind one product, which a Split of given lengths divides, as it does that of the inner layer. */
    DIVIDED,
    /** The same divided by Slices, with queries and keys of one length. */
    SLICED,
    /** GroupQueryAttention, which turns queries and keys itself. */
    GROUPED,
    /** The same, and all queries share keys and values. */
    SINGLE,
    /** The same of two such groups and of one product, and one product for gate and rest of the inner layer. */
    PACKED,
    /** MultiHeadAttention behind RotaryEmbedding, as many keys as queries. */
    HEADED,
    /** Attention of ONNX behind RotaryEmbedding, which keeps keys and values of earlier tokens itself. */
    STANDARD,
    /** The same where heads have an axis of their own and a norm, and what comes before joins keys and values. */
    APART,
    /** Attention, whose weight makes queries, keys and values, without those of earlier tokens. */
    WHOLE
  }

  public static final int HEADS = 4;

  /** Numbers of a head: what ONNX Runtime turns comes by sixteens. */
  public static final int HEAD = 16;

  private static final int PLACES = 32;

  private final Form form;
  private final int width;
  private final int groups;

  private GroupedDecoder(Form form, long seed, int width) {
    super("decoder", seed);
    this.form = form;
    this.width = width;
    groups = groups(form);
  }

  /** Heads of keys and values. */
  public static int groups(Form form) {
    return form == Form.SINGLE ? 1 : hasSharedKeys(form) ? HEADS / 2 : HEADS;
  }

  /** Whether several queries read the same keys. */
  public static boolean hasSharedKeys(Form form) {
    return form != Form.HEADED && form != Form.WHOLE;
  }

  /**
   * A model.
   *
   * @param width of a token's vector
   */
  public static ModelProto of(Form form, long seed, int vocabulary, int width, int layers) {
    return new GroupedDecoder(form, seed, width).build(vocabulary, layers);
  }

  private String linear(String name, String x, int from, int to) {
    String w = weight(name, (float) (1 / Math.sqrt(from)), from, to);
    return add("MatMul", List.of(x, w));
  }

  private ModelProto build(int vocabulary, int layers) {
    for (TextInput input : new TextInput[] {TextInput.INPUT_IDS, TextInput.ATTENTION_MASK}) {
      int tokens = input == TextInput.ATTENTION_MASK ? -4 : -2;
      graph.addInput(value(input.inputName(), DataType.INT64, -1, tokens));
    }
    index("zero", 0);
    index("one", 1);
    index("two", 2);
    index("three", 3);
    shape("first", 0);
    shape("last", -1);
    shape("third", 2);
    shape("one1", 1);
    weight("wte", 0.5f, vocabulary, width);
    String mask = mask();
    String x = add("Gather", List.of("wte", "input_ids"));
    for (int layer = 0; layer < layers; layer++) {
      String name = "layers." + layer;
      x = add("Add", List.of(x, attention(layer, name + ".attn", norm(name + ".ln_1", x), mask)));
      x = add("Add", List.of(x, gated(name + ".mlp", norm(name + ".ln_2", x))));
    }
    weight("lm_head", 0.3f, width, vocabulary);
    graph.addNode(node("MatMul", "/lm_head", List.of(norm("ln_f", x), "lm_head"), "logits"));
    outputs(vocabulary);
    return form == Form.STANDARD || form == Form.APART
        ? SmallModels.model(24, graph)
        : runtimeModel(17);
  }

  private String norm(String name, String x) {
    float[] ones = new float[width];
    Arrays.fill(ones, 1);
    graph.addInitializer(floats(name, ones, width));
    return add("LayerNormalization", List.of(x, name), attribute("axis", -1));
  }

  /** What tells the attentions which tokens there are: a bias [1, 1, t, all], or how many. */
  private String mask() {
    String all = add("Gather", List.of(add("Shape", List.of("attention_mask")), "one"));
    if (form == Form.GROUPED || form == Form.SINGLE || form == Form.PACKED) {
      String sum = add("ReduceSum", List.of("attention_mask", "one1"), attribute("keepdims", 0));
      add("Cast", List.of(add("Sub", List.of(sum, "one1"))), attribute("to", 6));
      add("Cast", List.of(all), attribute("to", 6));
      return "";
    }
    String now = add("Gather", List.of(add("Shape", List.of("input_ids")), "one"));
    String rows = add("Range", List.of(add("Sub", List.of(all, now)), all, "one"));
    String columns = add("Range", List.of("zero", all, "one"));
    String row = add("Unsqueeze", List.of(rows, "last"));
    String column = add("Unsqueeze", List.of(columns, "first"));
    String seen = add("LessOrEqual", List.of(column, row));
    graph
        .addInitializer(floats("nothing", new float[1]))
        .addInitializer(SmallModels.number("least", -1e9f));
    String bias = add("Where", List.of(seen, "nothing", "least"));
    return add("Unsqueeze", List.of(bias, shape("heads_and_texts", 0, 1)));
  }

  private String attention(int layer, String name, String x, String mask) {
    return linear(name + ".o", attended(layer, name, x, mask), HEADS * HEAD, width);
  }

  private String attended(int layer, String name, String x, String mask) {
    if (form == Form.WHOLE) {
      int all = 3 * HEADS * HEAD;
      weight(name + ".qkv", 0.3f, width, all);
      weight(name + ".bias", 0.3f, all);
      List<String> whole = List.of(x, name + ".qkv", name + ".bias", "", "", mask);
      AttributeProto sizes = list("qkv_hidden_sizes", HEADS * HEAD, HEADS * HEAD, HEADS * HEAD);
      return runtime("Attention", whole, attribute("num_heads", HEADS), sizes);
    }
    String pastKey = past(layer, "key", groups, HEAD);
    String pastValue = past(layer, "value", groups, HEAD);
    int values = groups * HEAD;
    List<String> inputs;
    if (form == Form.PACKED) {
      int all = HEADS * HEAD + 2 * values;
      weight(name + ".bias", 0.3f, all);
      String packed = add("Add", List.of(linear(name + ".qkv", x, width, all), name + ".bias"));
      inputs = List.of(packed, "", "");
    } else if (form == Form.DIVIDED || form == Form.SLICED) {
      long all = HEADS * HEAD;
      String packed = linear(name + ".qkv", x, width, (int) all + 2 * values);
      inputs = divided(name, packed, all, values, values);
    } else {
      inputs =
          List.of(
              linear(name + ".q", x, width, HEADS * HEAD),
              linear(name + ".k", x, width, values),
              linear(name + ".v", x, width, values));
    }
    return switch (form) {
      case TRACED, EXPANDED, DIVIDED, SLICED -> spelled(layer, inputs, mask);
      case GROUPED, SINGLE, PACKED -> {
        List<String> all = new ArrayList<>(inputs);
        all.addAll(List.of(pastKey, pastValue, tokens("Cast", 0), tokens("Cast", 1)));
        all.addAll(List.of(turn("cosines"), turn("sines")));
        yield fused(
            layer,
            "GroupQueryAttention",
            all,
            attribute("num_heads", HEADS),
            attribute("kv_num_heads", groups),
            attribute("do_rotary", 1));
      }
      case HEADED -> {
        shape(name + ".places", 0);
        weight(name + ".bias", 0.3f, 3 * HEADS * HEAD);
        List<String> all = new ArrayList<>();
        for (int i = 0; i < 2; i++) {
          List<String> turned =
              List.of(inputs.get(i), name + ".places", turn("cosines"), turn("sines"));
          all.add(
              i == 0
                  ? runtime("RotaryEmbedding", turned)
                  : runtime(
                      "RotaryEmbedding",
                      turned,
                      attribute("num_heads", HEADS),
                      attribute("rotary_embedding_dim", HEAD)));
        }
        all.addAll(List.of(inputs.get(2), name + ".bias", "", mask, pastKey, pastValue));
        yield fused(layer, "MultiHeadAttention", all, attribute("num_heads", HEADS));
      }
      case STANDARD -> {
        List<String> all = new ArrayList<>();
        all.add(rotated(inputs.get(0), attribute("num_heads", HEADS)));
        all.add(rotated(inputs.get(1), attribute("num_heads", groups)));
        all.addAll(List.of(inputs.get(2), mask, pastKey, pastValue));
        AttributeProto heads = attribute("q_num_heads", HEADS);
        yield withCaches(layer, add("Attention", all, heads, attribute("kv_num_heads", groups)));
      }
      case APART -> {
        String q = rotated(rooted(name + ".q", heads(inputs.get(0), HEADS, HEAD)));
        String k = rotated(rooted(name + ".k", heads(inputs.get(1), groups, HEAD)));
        String v = heads(inputs.get(2), groups, HEAD);
        k = joined(layer, "key", k);
        v = joined(layer, "value", v);
        yield together(add("Attention", List.of(q, k, v, mask)), HEADS * HEAD);
      }
      case WHOLE -> throw new IllegalStateException("has no products of its own");
    };
  }

  /** One of the Casts that tell how many tokens there are. */
  private String tokens(String op, int which) {
    return graph.getNodeList().stream()
        .filter(n -> n.getOpType().equals(op))
        .map(n -> n.getOutput(0))
        .toList()
        .get(which);
  }

  private String turn(String name) {
    if (graph.getInitializerList().stream().noneMatch(t -> t.getName().equals(name))) {
      float[] values = new float[PLACES * HEAD / 2];
      for (int i = 0; i < values.length; i++) {
        double angle = i / (HEAD / 2) * Math.pow(0.1, i % (HEAD / 2));
        values[i] = (float) (name.equals("sines") ? Math.sin(angle) : Math.cos(angle));
      }
      graph.addInitializer(floats(name, values, PLACES, HEAD / 2));
    }
    return name;
  }

  /** Each head of queries or keys turned by its place, which none is given for. */
  private String rotated(String x, AttributeProto... attributes) {
    String zeros = add("Mul", List.of("input_ids", "zero"));
    return add("RotaryEmbedding", List.of(x, turn("cosines"), turn("sines"), zeros), attributes);
  }

  private String rooted(String name, String x) {
    weight(name + ".norm", 1, HEAD);
    return add("RMSNormalization", List.of(x, name + ".norm"));
  }

  private String joined(int layer, String kind, String now) {
    String past = "past_key_values." + layer + "." + kind;
    String all = present(layer, kind, groups, HEAD);
    graph.addNode(node("Concat", "/" + all, List.of(past, now), all, attribute("axis", 2)));
    return all;
  }

  private String fused(int layer, String op, List<String> inputs, AttributeProto... attributes) {
    return withCaches(layer, runtime(op, inputs, attributes));
  }

  /** What the node that was added last gives, which gives keys and values too. */
  private String withCaches(int layer, String output) {
    NodeProto.Builder n = graph.getNodeBuilder(graph.getNodeCount() - 1);
    n.addOutput(present(layer, "key", groups, HEAD))
        .addOutput(present(layer, "value", groups, HEAD));
    return output;
  }

  private String spelled(int layer, List<String> inputs, String mask) {
    String q = turned(normed(layer + ".q", heads(inputs.get(0), HEADS, HEAD)));
    String k = turned(normed(layer + ".k", heads(inputs.get(1), groups, HEAD)));
    k = repeated(layer, "key", k);
    String v = repeated(layer, "value", heads(inputs.get(2), groups, HEAD));
    String scores =
        add("MatMul", List.of(q, add("Transpose", List.of(k), list("perm", 0, 1, 3, 2))));
    graph.addInitializer(SmallModels.number("root" + layer, (float) Math.sqrt(HEAD)));
    String scaled = add("Div", List.of(scores, "root" + layer));
    String weights =
        add("Softmax", List.of(add("Add", List.of(scaled, mask))), attribute("axis", -1));
    return together(add("MatMul", List.of(weights, v)), HEADS * HEAD);
  }

  /** Each head by itself, as one operator does it or as that is spelled out. */
  private String normed(String name, String x) {
    if (form != Form.SLICED) {
      return x;
    }
    weight(name + ".norm", 1, HEAD);
    if (name.endsWith("q")) {
      return add("LayerNormalization", List.of(x, name + ".norm"), attribute("axis", -1));
    }
    graph.addInitializer(SmallModels.number(name + ".square", 2));
    graph.addInitializer(SmallModels.number(name + ".least", 1e-5f));
    String square = add("Pow", List.of(x, name + ".square"));
    String mean = add("ReduceMean", List.of(square), list("axes", -1));
    String length = add("Sqrt", List.of(add("Add", List.of(mean, name + ".least"))));
    return add("Mul", List.of(add("Div", List.of(x, length)), name + ".norm"));
  }

  /** The second half of each head before the first, as rotations have it. */
  private String turned(String x) {
    String from = shape(0);
    String half = shape(HEAD / 2);
    String end = shape(HEAD);
    String lower = add("Slice", List.of(x, from, half, "last"));
    String upper = add("Slice", List.of(x, half, end, "last"));
    String other = add("Concat", List.of(add("Neg", List.of(upper)), lower), attribute("axis", -1));
    String sine = weight(other + ".sine", 0.7f, HEAD);
    return add("Add", List.of(x, add("Mul", List.of(other, sine))));
  }

  /** Each head of keys or values as often as queries read it. */
  private String repeated(int layer, String kind, String now) {
    String all = joined(layer, kind, now);
    String shape = add("Shape", List.of(all));
    String[] lengths = new String[4];
    List<String> indices = List.of("zero", "one", "two", "three");
    for (int i = 0; i < 4; i++) {
      lengths[i] = add("Gather", List.of(shape, indices.get(i)));
    }
    String apart = add("Unsqueeze", List.of(all, "third"));
    String texts = add("Unsqueeze", List.of(lengths[0], "first"));
    String steps = add("Unsqueeze", List.of(lengths[2], "first"));
    int queries = HEADS / groups;
    if (form != Form.TRACED) {
      String wide = concat(texts, shape(groups, queries), steps, shape(HEAD));
      String expanded = add("Expand", List.of(apart, wide));
      String heads = concat(texts, shape(HEADS), steps, shape(HEAD));
      return add("Reshape", List.of(expanded, heads));
    }
    String groups1 = add("Unsqueeze", List.of(lengths[1], "first"));
    String numbers1 = add("Unsqueeze", List.of(lengths[3], "first"));
    String wide = concat(texts, groups1, shape(queries), steps, numbers1);
    AttributeProto one =
        AttributeProto.newBuilder()
            .setName("value")
            .setType(AttributeType.TENSOR)
            .setT(SmallModels.int64s("", 1))
            .build();
    String ones = add("ConstantOfShape", List.of(shape(5)), one);
    String open = add("Mul", List.of(ones, "last"));
    String shown = add("Where", List.of(add("Equal", List.of(wide, open)), ones, wide));
    String expanded = add("Expand", List.of(apart, shown));
    String heads = add("Mul", List.of(lengths[1], index(lengths[1] + ".queries", queries)));
    String heads1 = add("Unsqueeze", List.of(heads, "first"));
    return add("Reshape", List.of(expanded, concat(texts, heads1, steps, numbers1)));
  }

  private String concat(String... parts) {
    return add("Concat", List.of(parts), attribute("axis", 0));
  }

  /** Pieces of the last axis. */
  private List<String> divided(String name, String x, long... lengths) {
    List<String> pieces = new ArrayList<>();
    if (form == Form.DIVIDED) {
      for (int i = 0; i < lengths.length; i++) {
        pieces.add(name + ".piece" + i);
      }
      List<String> inputs = List.of(x, shape(name + ".lengths", lengths));
      graph.addNode(
          node("Split", "/" + name, inputs, pieces.get(0), attribute("axis", -1)).toBuilder()
              .addAllOutput(pieces.subList(1, pieces.size())));
      return pieces;
    }
    long from = 0;
    for (long length : lengths) {
      String begin = shape(from);
      from += length;
      boolean last = pieces.size() == lengths.length - 1;
      String end = shape(last ? Long.MAX_VALUE : from);
      pieces.add(add("Slice", List.of(x, begin, end, "last")));
    }
    return pieces;
  }

  private String gated(String name, String x) {
    String gate;
    String up;
    if (form == Form.PACKED) {
      String both = linear(name + ".gate_up", x, width, 4 * width);
      gate = name + ".gate";
      up = name + ".up";
      graph.addNode(
          node("Split", "/" + name, List.of(both), gate, attribute("axis", -1)).toBuilder()
              .addOutput(up));
      gate = runtime("QuickGelu", List.of(gate), real("alpha", 1));
    } else if (form == Form.DIVIDED || form == Form.SLICED) {
      String both = linear(name + ".gate_up", x, width, 4 * width);
      List<String> halves = divided(name, both, 2 * width, 2 * width);
      gate = add("Mul", List.of(halves.get(0), add("Sigmoid", List.of(halves.get(0)))));
      up = halves.get(1);
    } else if (form == Form.WHOLE) {
      weight(name + ".gate.bias", 0.3f, 2 * width);
      String h = linear(name + ".gate", x, width, 2 * width);
      gate = runtime("BiasGelu", List.of(h, name + ".gate.bias"));
      up = linear(name + ".up", x, width, 2 * width);
    } else {
      String h = linear(name + ".gate", x, width, 2 * width);
      gate = add("Mul", List.of(h, add("Sigmoid", List.of(h))));
      up = linear(name + ".up", x, width, 2 * width);
    }
    return linear(name + ".down", add("Mul", List.of(gate, up)), 2 * width, width);
  }
}
