package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;

/**
 * A causal language model of the GPT-2 kind with random weights, spelled out as exporters do: input_ids,
 * attention_mask and position_ids [n, t] int64, and where wanted keys and values of earlier tokens, to logits [n, t,
 * vocabulary].
 */
public final class SmallDecoder extends SmallGraph {
  private static final int HEADS = 2;
  private static final int PLACES = 64;

  private final int width;
  private final boolean past;
  private boolean tied;

  private SmallDecoder(long seed, int width, boolean past) {
    super("decoder", seed);
    this.width = width;
    this.past = past;
  }

  /** The same model whose head is its embedding, turned. */
  public static ModelProto tied(long seed, int vocabulary, int width, int layers) {
    SmallDecoder decoder = new SmallDecoder(seed, width, false);
    decoder.tied = true;
    return decoder.build(vocabulary, layers);
  }

  /**
   * A model.
   *
   * @param width of a token's vector, even
   */
  public static ModelProto of(long seed, int vocabulary, int width, int layers) {
    return new SmallDecoder(seed, width, false).build(vocabulary, layers);
  }

  /** The same model with inputs for what was read before, and outputs for what was read then. */
  public static ModelProto withPast(long seed, int vocabulary, int width, int layers) {
    return new SmallDecoder(seed, width, true).build(vocabulary, layers);
  }

  /** x · w + b. */
  private String linear(String name, String x, int from, int to) {
    String w = weight(name + ".weight", (float) (0.6 / Math.sqrt(from)), from, to);
    return add("Add", List.of(vector(name + ".bias", 0, to), add("MatMul", List.of(x, w))));
  }

  private String norm(String name, String x) {
    List<String> inputs =
        List.of(x, vector(name + ".weight", 1, width), vector(name + ".bias", 0, width));
    return add("LayerNormalization", inputs, attribute("axis", -1), real("epsilon", 1e-5f));
  }

  private ModelProto build(int vocabulary, int layers) {
    for (TextInput input :
        new TextInput[] {TextInput.INPUT_IDS, TextInput.ATTENTION_MASK, TextInput.POSITION_IDS}) {
      int tokens = past && input == TextInput.ATTENTION_MASK ? -4 : -2;
      graph.addInput(value(input.inputName(), DataType.INT64, -1, tokens));
    }
    String tokens = add("Gather", List.of(weight("wte", 0.5f, vocabulary, width), "input_ids"));
    String places = add("Gather", List.of(weight("wpe", 0.1f, PLACES, width), "position_ids"));
    String x = add("Add", List.of(tokens, places));
    String mask = mask(past);
    for (int layer = 0; layer < layers; layer++) {
      String name = "h." + layer;
      x = add("Add", List.of(x, attention(layer, norm(name + ".ln_1", x), mask)));
      x = add("Add", List.of(x, feedForward(name, norm(name + ".ln_2", x))));
    }
    String head =
        tied
            ? add("Transpose", List.of("wte"), list("perm", 1, 0))
            : weight("lm_head", (float) (0.6 / Math.sqrt(width)), width, vocabulary);
    graph.addNode(node("MatMul", "/lm_head/MatMul", List.of(norm("ln_f", x), head), "logits"));
    outputs(vocabulary);
    return SmallModels.model(17, graph);
  }

  private String attention(int layer, String x, String mask) {
    String name = "h." + layer;
    String all = linear(name + ".attn.c_attn", x, width, 3 * width);
    String split = name + "/Split";
    graph.addNode(
        node(
                "Split",
                split,
                List.of(all, shape(width, width, width)),
                split + "_q",
                attribute("axis", -1))
            .toBuilder()
            .addOutput(split + "_k")
            .addOutput(split + "_v")
            .build());
    int each = width / HEADS;
    String q = heads(split + "_q", HEADS, each);
    String k = withPast(layer, "key", heads(split + "_k", HEADS, each));
    String v = withPast(layer, "value", heads(split + "_v", HEADS, each));
    k = add("Transpose", List.of(k), list("perm", 0, 1, 3, 2));
    String scale = scalar(name + ".scale", (float) Math.sqrt(width / HEADS));
    String scores = add("Div", List.of(add("MatMul", List.of(q, k)), scale));
    String weights =
        add("Softmax", List.of(add("Add", List.of(scores, mask))), attribute("axis", -1));
    String seen = add("MatMul", List.of(weights, v));
    return linear(name + ".attn.c_proj", together(seen, width), width, width);
  }

  private String withPast(int layer, String kind, String now) {
    if (!past) {
      return now;
    }
    String before = past(layer, kind, HEADS, width / HEADS);
    String all = present(layer, kind, HEADS, width / HEADS);
    graph.addNode(node("Concat", "/" + all, List.of(before, now), all, attribute("axis", 2)));
    return all;
  }

  private String feedForward(String name, String x) {
    String h = linear(name + ".mlp.c_fc", x, width, 4 * width);
    String root = scalar(name + ".root", (float) Math.sqrt(2));
    String erf = add("Erf", List.of(add("Div", List.of(h, root))));
    String half = add("Mul", List.of(h, scalar(name + ".half", 0.5f)));
    String gelu = add("Mul", List.of(half, add("Add", List.of(erf, scalar(name + ".unit", 1)))));
    return linear(name + ".mlp.c_proj", gelu, 4 * width, width);
  }
}
