package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;

/**
 * Language models and encoders of random weights in the forms in which they are exported for ONNX Runtime: with its own
 * operators of attention and norms, with those of ONNX, or with all of it spelled out, as the model had it.
 */
public final class RuntimeModels extends SmallGraph {
  private static final int HEADS = 4;
  private static final int SHARED = 2;

  /** Of a head: ONNX Runtime wants a multiple of 16. */
  private static final int WIDTH = 16;

  private static final int HIDDEN = HEADS * WIDTH;
  private static final int INNER = 96;
  private static final int PLACES = 64;

  /** How a decoder is written. */
  public enum Form {
    /** GroupQueryAttention rotates and is given queries, keys and values of one product. */
    PACKED,
    /** The same of three products. */
    GROUPED,
    /** The same, other angles for long texts than for short ones. */
    LONG,
    /** RotaryEmbedding by position_ids, MultiHeadAttention with a mask that is added. */
    MULTI_HEAD,
    /** No operator but those of ONNX. */
    PLAIN,
    /** Those of operator set 23: Attention, which keeps the caches, RotaryEmbedding and RMSNormalization. */
    STANDARD,
    /** Those of operator set 24 as PyTorch exports them: heads have an axis of their own, and caches come before. */
    EXPORTED
  }

  private final Form form;

  /** What is added to scores where no operator makes it of lengths. */
  private String mask;

  /** As exporters write them in operator set 24: {@link #encoder} with the operators of ONNX. */
  public static ModelProto exportedEncoder(long seed, int vocabulary, int layers) {
    return new RuntimeModels("encoder", seed, Form.EXPORTED).exportedEncoder(vocabulary, layers);
  }

  private RuntimeModels(String name, long seed, Form form) {
    super(name, seed);
    this.form = form;
  }

  /**
   * A causal language model of the Llama kind with caches: input_ids, attention_mask and, where the form needs them,
   * position_ids to logits [n, t, vocabulary].
   */
  public static ModelProto decoder(Form form, long seed, int vocabulary, int layers) {
    return new RuntimeModels("decoder", seed, form).decoder(vocabulary, layers);
  }

  /**
   * An encoder of the BERT kind as ONNX Runtime's optimizer leaves it: input_ids, attention_mask and token_type_ids to
   * last_hidden_state [n, t, 64].
   *
   * @param lengths whether attention is told how long texts are, in place of their masks
   */
  public static ModelProto encoder(long seed, int vocabulary, int layers, boolean lengths) {
    return new RuntimeModels("encoder", seed, null).encoder(vocabulary, layers, lengths);
  }

  private String product(String name, String x, int from, int to) {
    String w = weight(name + ".weight", (float) (0.6 / Math.sqrt(from)), from, to);
    String y = "/" + name + "/output_0";
    graph.addNode(node("MatMul", "/" + name, List.of(x, w), y));
    return y;
  }

  private String scale(String name) {
    float[] values = new float[HIDDEN];
    for (int i = 0; i < values.length; i++) {
      values[i] = 0.8f + 0.4f * random.nextFloat();
    }
    graph.addInitializer(OnnxInitializer.floats(name, new long[] {HIDDEN}, values).message());
    return name;
  }

  private static String input(TextInput input) {
    return input.inputName();
  }

  private ModelProto decoder(int vocabulary, int layers) {
    boolean positions = !isGrouped();
    graph.addInput(value(input(TextInput.INPUT_IDS), DataType.INT64, -1, -2));
    graph.addInput(value(input(TextInput.ATTENTION_MASK), DataType.INT64, -1, -4));
    if (positions) {
      graph.addInput(value(input(TextInput.POSITION_IDS), DataType.INT64, -1, -2));
    }
    if (form != Form.LONG) {
      graph.addInitializer(angles("cos_cache", PLACES, 1000));
      graph.addInitializer(angles("sin_cache", PLACES, 1000));
    }
    String words = weight("model.embed_tokens.weight", 0.5f, vocabulary, HIDDEN);
    String x = add("Gather", List.of(words, input(TextInput.INPUT_IDS)));
    // What is added up, and what was computed last and is to be added.
    String delta = null;
    if (isGrouped()) {
      lengths();
    } else {
      mask = form == Form.EXPORTED ? visible(true) : mask(true);
    }
    for (int layer = 0; layer < layers; layer++) {
      String name = "model.layers." + layer;
      String[] before = norm(name + ".input_layernorm", x, delta);
      delta = attention(name + ".attn", layer, before[0]);
      String[] middle = norm(name + ".post_attention_layernorm", before[1], delta);
      delta = feedForward(name + ".mlp", middle[0]);
      x = middle[1];
    }
    String last = norm("model.norm", x, delta)[0];
    String head = weight("lm_head.weight", (float) (0.6 / Math.sqrt(HIDDEN)), HIDDEN, vocabulary);
    graph.addNode(node("MatMul", "/lm_head/MatMul", List.of(last, head), "logits"));
    outputs(vocabulary);
    return switch (form) {
      case STANDARD -> SmallModels.model(23, graph);
      case EXPORTED -> SmallModels.model(24, graph);
      default -> runtimeModel(17);
    };
  }

  private boolean isStandard() {
    return form == Form.STANDARD || form == Form.EXPORTED;
  }

  private boolean isGrouped() {
    return form == Form.PACKED || form == Form.GROUPED || form == Form.LONG;
  }

  /** The cosines or the sines of so many places, by the name of the table. */
  private static TensorProto angles(String name, int places, double base) {
    float[] values = new float[places * WIDTH / 2];
    for (int place = 0; place < places; place++) {
      for (int i = 0; i < WIDTH / 2; i++) {
        double angle = place * Math.pow(base, -2.0 * i / WIDTH);
        values[place * WIDTH / 2 + i] =
            (float) (name.startsWith("cos") ? Math.cos(angle) : Math.sin(angle));
      }
    }
    return OnnxInitializer.floats(name, new long[] {places, WIDTH / 2}, values).message();
  }

  /** A branch that gives both tables. */
  private static AttributeProto tables(String branch, int places, double base) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder().setName(branch).setType(AttributeProto.AttributeType.GRAPH);
    for (String table : List.of("cos_cache", "sin_cache")) {
      String name = table + "_" + branch;
      b.getGBuilder()
          .setName(branch)
          .addOutput(value(name, DataType.FLOAT, -5, WIDTH / 2))
          .addNodeBuilder()
          .setOpType("Constant")
          .addOutput(name)
          .addAttributeBuilder()
          .setName("value")
          .setType(AttributeProto.AttributeType.TENSOR)
          .setT(angles(name, places, base));
    }
    return b.build();
  }

  /** What GroupQueryAttention takes of the mask: the last token of each text, and how long the longest is. */
  private void lengths() {
    String mask = input(TextInput.ATTENTION_MASK);
    String sums = add("ReduceSum", List.of(mask, shape("axis", 1)), attribute("keepdims", 0));
    String last = add("Sub", List.of(sums, index("one", 1)));
    graph.addNode(node("Cast", "/last", List.of(last), "seqlens_k", attribute("to", 6)));
    String all = add("Gather", List.of(add("Shape", List.of(mask)), "one"));
    graph.addNode(node("Cast", "/total", List.of(all), "total_length", attribute("to", 6)));
    if (form == Form.LONG) {
      graph.addNode(
          node(
                  "If",
                  "/angles/If",
                  List.of(add("Greater", List.of(all, index("short", 12)))),
                  "cos_cache",
                  tables("then_branch", PLACES, 5000),
                  tables("else_branch", 12, 1000))
              .toBuilder()
              .addOutput("sin_cache")
              .build());
    }
  }

  /** The norm of a sum, and the sum. */
  private String[] norm(String name, String x, String delta) {
    String scale = scale(name + ".weight");
    AttributeProto epsilon = real("epsilon", 1e-6f);
    if (form == Form.PLAIN) {
      String sum = delta == null ? x : add("Add", List.of(x, delta));
      String square = add("Pow", List.of(sum, scalar(name + ".two", 2)));
      String mean = add("ReduceMean", List.of(square), list("axes", -1), attribute("keepdims", 1));
      String root =
          add("Sqrt", List.of(add("Add", List.of(mean, scalar(name + ".epsilon", 1e-6f)))));
      String inverse = add("Div", List.of(scalar(name + ".unit", 1), root));
      String normal = add("Mul", List.of(sum, inverse));
      return new String[] {add("Mul", List.of(scale, normal)), sum};
    }
    if (isStandard()) {
      String sum = delta == null ? x : add("Add", List.of(x, delta));
      return new String[] {add("RMSNormalization", List.of(sum, scale), epsilon), sum};
    }
    if (delta == null) {
      List<String> inputs = List.of(x, scale);
      String y =
          add(
              "SimplifiedLayerNormalization",
              inputs,
              attribute("axis", -1),
              epsilon,
              attribute("stash_type", 1));
      return new String[] {y, x};
    }
    String y = "/" + name + "/output_0";
    String sum = "/" + name + "/output_3";
    runtime(
        "SkipSimplifiedLayerNormalization",
        List.of(x, delta, scale),
        List.of(y, "", "", sum),
        epsilon);
    return new String[] {y, sum};
  }

  private String attention(String name, int layer, String x) {
    int shared = form == Form.MULTI_HEAD ? HEADS : SHARED;
    String seen;
    if (form == Form.PACKED) {
      String all = product(name + ".qkv_proj", x, HIDDEN, (HEADS + 2 * SHARED) * WIDTH);
      seen = query(name, layer, all, "", "");
    } else {
      String q = product(name + ".q_proj", x, HIDDEN, HIDDEN);
      String k = product(name + ".k_proj", x, HIDDEN, shared * WIDTH);
      String v = product(name + ".v_proj", x, HIDDEN, shared * WIDTH);
      seen =
          switch (form) {
            case MULTI_HEAD -> multiHead(name, layer, q, k, v);
            case STANDARD -> standard(name, layer, q, k, v);
            case EXPORTED -> exported(layer, q, k, v);
            case PLAIN -> plain(name, layer, q, k, v);
            default -> query(name, layer, q, k, v);
          };
    }
    return product(name + ".o_proj", seen, HIDDEN, HIDDEN);
  }

  /** Inputs and outputs of a layer for keys and values that were read before. */
  private String[] caches(int layer, int heads) {
    return new String[] {
      past(layer, "key", heads, WIDTH),
      past(layer, "value", heads, WIDTH),
      present(layer, "key", heads, WIDTH),
      present(layer, "value", heads, WIDTH)
    };
  }

  private String query(String name, int layer, String q, String k, String v) {
    String[] caches = caches(layer, SHARED);
    String y = "/" + name + "/output_0";
    runtime(
        "GroupQueryAttention",
        List.of(
            q, k, v, caches[0], caches[1], "seqlens_k", "total_length", "cos_cache", "sin_cache"),
        List.of(y, caches[2], caches[3]),
        attribute("num_heads", HEADS),
        attribute("kv_num_heads", SHARED),
        attribute("do_rotary", 1),
        attribute("rotary_interleaved", 0),
        attribute("local_window_size", -1),
        real("scale", 0.25f));
    return y;
  }

  private String multiHead(String name, int layer, String q, String k, String v) {
    String[] caches = caches(layer, HEADS);
    String[] turned = {"/" + name + "/q_rotary/output_0", "/" + name + "/k_rotary/output_0"};
    for (int i = 0; i < 2; i++) {
      runtime(
          "RotaryEmbedding",
          List.of(i == 0 ? q : k, "position_ids", "cos_cache", "sin_cache"),
          List.of(turned[i]),
          attribute("interleaved", 0),
          attribute("num_heads", HEADS),
          attribute("rotary_embedding_dim", 0));
    }
    String y = "/" + name + "/output_0";
    runtime(
        "MultiHeadAttention",
        List.of(turned[0], turned[1], v, "", "", mask, caches[0], caches[1]),
        List.of(y, caches[2], caches[3]),
        attribute("num_heads", HEADS),
        real("scale", 0.25f));
    return y;
  }

  private String standard(String name, int layer, String q, String k, String v) {
    String[] caches = caches(layer, SHARED);
    List<String> inputs =
        List.of(rotated(q, HEADS), rotated(k, SHARED), v, mask, caches[0], caches[1]);
    String y = "/" + name + "/output_0";
    graph.addNode(
        node(
                "Attention",
                "/" + name,
                inputs,
                y,
                attribute("q_num_heads", HEADS),
                attribute("kv_num_heads", SHARED),
                real("scale", 0.25f))
            .toBuilder()
            .addOutput(caches[2])
            .addOutput(caches[3]));
    return y;
  }

  private String rotated(String rows, int heads) {
    return add(
        "RotaryEmbedding",
        List.of(rows, "cos_cache", "sin_cache", "position_ids"),
        attribute("num_heads", heads));
  }

  private String exported(int layer, String q, String k, String v) {
    String[] caches = caches(layer, SHARED);
    String[] now = {rotated(heads(k, SHARED, WIDTH)), heads(v, SHARED, WIDTH)};
    for (int i = 0; i < 2; i++) {
      List<String> both = List.of(caches[i], now[i]);
      graph.addNode(node("Concat", "/" + caches[i + 2], both, caches[i + 2], attribute("axis", 2)));
    }
    List<String> inputs = List.of(rotated(heads(q, HEADS, WIDTH)), caches[2], caches[3], mask);
    return together(add("Attention", inputs), HIDDEN);
  }

  private String rotated(String heads) {
    return add("RotaryEmbedding", List.of(heads, "cos_cache", "sin_cache", "position_ids"));
  }

  private String plain(String name, int layer, String q, String k, String v) {
    String[] caches = caches(layer, SHARED);
    String[] parts = {heads(q, HEADS, WIDTH), heads(k, SHARED, WIDTH)};
    for (int i = 0; i < 2; i++) {
      parts[i] = turn(name + (i == 0 ? ".q" : ".k"), parts[i]);
    }
    String[] now = {parts[1], heads(v, SHARED, WIDTH)};
    for (int i = 0; i < 2; i++) {
      List<String> both = List.of(caches[i], now[i]);
      graph.addNode(node("Concat", "/" + caches[i + 2], both, caches[i + 2], attribute("axis", 2)));
      now[i] = repeat(name + (i == 0 ? ".k" : ".v"), caches[i + 2]);
    }
    String keys = add("Transpose", List.of(now[0]), list("perm", 0, 1, 3, 2));
    String product = add("MatMul", List.of(parts[0], keys));
    String scores = add("Mul", List.of(product, scalar(name + ".scale", 0.25f)));
    String weights =
        add("Softmax", List.of(add("Add", List.of(scores, mask))), attribute("axis", -1));
    String seen = add("MatMul", List.of(weights, now[1]));
    return together(seen, HIDDEN);
  }

  /** x · cos + (−second half, first half) · sin. */
  private String turn(String name, String x) {
    String half = "/" + name + "/Split";
    graph.addNode(
        node(
                "Split",
                half,
                List.of(x, shape(WIDTH / 2, WIDTH / 2)),
                half + "_0",
                attribute("axis", -1))
            .toBuilder()
            .addOutput(half + "_1")
            .build());
    String minus = add("Neg", List.of(half + "_1"));
    String turned = add("Concat", List.of(minus, half + "_0"), attribute("axis", -1));
    String cos = add("Mul", List.of(x, both(name + ".cos", "cos_cache")));
    String sin = add("Mul", List.of(turned, both(name + ".sin", "sin_cache")));
    return add("Add", List.of(cos, sin));
  }

  private String both(String name, String cache) {
    String rows = add("Gather", List.of(cache, "position_ids"));
    String wide = add("Concat", List.of(rows, rows), attribute("axis", -1));
    return add("Unsqueeze", List.of(wide, shape(1)));
  }

  /** Each head of keys or values as often as queries share it. */
  private String repeat(String name, String x) {
    String apart = add("Unsqueeze", List.of(x, shape(2)));
    String times = add("Expand", List.of(apart, shape(1, 1, HEADS / SHARED, 1, 1)));
    String sizes = add("Shape", List.of(x));
    String texts = add("Slice", List.of(sizes, shape(0), shape(1)));
    String tail = shape(HEADS, -1, WIDTH);
    return add(
        "Reshape", List.of(times, add("Concat", List.of(texts, tail), attribute("axis", 0))));
  }

  private String feedForward(String name, String x) {
    String gate = product(name + ".gate_proj", x, HIDDEN, INNER);
    String up = product(name + ".up_proj", x, HIDDEN, INNER);
    String silu =
        form == Form.EXPORTED
            ? add("Swish", List.of(gate))
            : add("Mul", List.of(gate, add("Sigmoid", List.of(gate))));
    return product(name + ".down_proj", add("Mul", List.of(silu, up)), INNER, HIDDEN);
  }

  private ModelProto encoder(int vocabulary, int layers, boolean lengths) {
    TextInput[] inputs = {TextInput.INPUT_IDS, TextInput.ATTENTION_MASK, TextInput.TOKEN_TYPE_IDS};
    String[] ints = new String[inputs.length];
    for (int i = 0; i < inputs.length; i++) {
      graph.addInput(value(input(inputs[i]), DataType.INT64, -1, -2));
      ints[i] = add("Cast", List.of(input(inputs[i])), attribute("to", 6));
    }
    AttributeProto epsilon = real("epsilon", 1e-5f);
    String x = "embedded";
    runtime(
        "EmbedLayerNormalization",
        List.of(
            ints[0],
            ints[2],
            weight("embeddings.word_embeddings.weight", 0.5f, vocabulary, HIDDEN),
            weight("embeddings.position_embeddings.weight", 0.1f, PLACES, HIDDEN),
            weight("embeddings.token_type_embeddings.weight", 0.1f, 2, HIDDEN),
            scale("embeddings.LayerNorm.weight"),
            vector("embeddings.LayerNorm.bias", 0.1f, HIDDEN),
            ints[1]),
        List.of(x, "lengths"),
        epsilon);
    for (int layer = 0; layer < layers; layer++) {
      String name = "encoder.layer." + layer;
      String seen = "/" + name + "/attention/output_0";
      runtime(
          "Attention",
          List.of(
              x,
              weight(name + ".attention.qkv.weight", 0.08f, HIDDEN, 3 * HIDDEN),
              vector(name + ".attention.qkv.bias", 0.05f, 3 * HIDDEN),
              lengths ? "lengths" : ints[1]),
          List.of(seen),
          attribute("num_heads", HEADS));
      String projected = product(name + ".attention.output", seen, HIDDEN, HIDDEN);
      x = skip(name + ".attention.LayerNorm", projected, x, "/" + name + "/first", epsilon);
      String inner = product(name + ".intermediate", x, HIDDEN, INNER);
      String active = "/" + name + "/gelu/output_0";
      String bias = vector(name + ".intermediate.bias", 0.05f, INNER);
      runtime("BiasGelu", List.of(inner, bias), List.of(active));
      String outer = product(name + ".output", active, INNER, HIDDEN);
      String out = layer + 1 == layers ? "last_hidden_state" : "/" + name + "/second";
      x = skip(name + ".output.LayerNorm", outer, x, out, epsilon);
    }
    graph.addOutput(value("last_hidden_state", DataType.FLOAT, -1, -2, HIDDEN));
    return runtimeModel(14);
  }

  private ModelProto exportedEncoder(int vocabulary, int layers) {
    graph.addInput(value(input(TextInput.INPUT_IDS), DataType.INT64, -1, -2));
    graph.addInput(value(input(TextInput.ATTENTION_MASK), DataType.INT64, -1, -2));
    String words = weight("embeddings.word_embeddings.weight", 0.5f, vocabulary, HIDDEN);
    String x = add("Gather", List.of(words, input(TextInput.INPUT_IDS)));
    graph.addInitializer(angles("cos_cache", PLACES, 1000));
    graph.addInitializer(angles("sin_cache", PLACES, 1000));
    String real = add("Cast", List.of(input(TextInput.ATTENTION_MASK)), attribute("to", 9));
    String row = add("Unsqueeze", List.of(real, shape(1, 2)));
    AttributeProto second = attribute("start", 1);
    String texts = add("Shape", List.of(real), attribute("end", 1));
    String tokens = add("Shape", List.of(real), second);
    List<String> lengths = List.of(texts, shape(1), tokens, tokens);
    mask = add("Expand", List.of(row, add("Concat", lengths, attribute("axis", 0))));
    String ones = add("CumSum", List.of(input(TextInput.ATTENTION_MASK), index("along", 1)));
    String places = add("Sub", List.of(ones, index("one", 1)));
    graph.addNode(node("Max", "/places", List.of(places, index("zero", 0)), "position_ids"));
    for (int layer = 0; layer < layers; layer++) {
      String name = "encoder.layer." + layer;
      String q = rotated(heads(product(name + ".query", x, HIDDEN, HIDDEN), HEADS, WIDTH));
      String k = rotated(heads(product(name + ".key", x, HIDDEN, HIDDEN), HEADS, WIDTH));
      String v = heads(product(name + ".value", x, HIDDEN, HIDDEN), HEADS, WIDTH);
      String seen = together(add("Attention", List.of(q, k, v, mask)), HIDDEN);
      String projected = product(name + ".attention.output", seen, HIDDEN, HIDDEN);
      x = norm(name + ".attention.norm", x, projected)[0];
      String inner = product(name + ".intermediate", x, HIDDEN, INNER);
      String outer = product(name + ".output", add("Gelu", List.of(inner)), INNER, HIDDEN);
      x = norm(name + ".output.norm", x, outer)[0];
    }
    graph.addNode(node("Identity", "/last", List.of(x), "last_hidden_state"));
    graph.addOutput(value("last_hidden_state", DataType.FLOAT, -1, -2, HIDDEN));
    return SmallModels.model(24, graph);
  }

  private String skip(String name, String x, String skip, String y, AttributeProto epsilon) {
    runtime(
        "SkipLayerNormalization",
        List.of(
            x,
            skip,
            scale(name + ".weight"),
            vector(name + ".bias", 0.05f, HIDDEN),
            vector(name + ".dense.bias", 0.05f, HIDDEN)),
        List.of(y),
        epsilon);
    return y;
  }
}
