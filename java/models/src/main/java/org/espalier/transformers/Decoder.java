package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;

/**
 * Language models of the kind of Llama: rotary positions, root mean square norms, a gated feed-forward block, fewer heads for
 * keys and values than for queries. The graph takes {@code input_ids}, {@code attention_mask} and for each layer what
 * was read before ({@code past_key_values.N.key}, {@code .value}), and gives {@code logits} and {@code present.N.key},
 * {@code .value}. Attention is ONNX Runtime's GroupQueryAttention, so texts are padded behind their end.
 */
final class Decoder implements Architecture {
  /** Where heads are normed, of what products have a bias, beyond what settings say. */
  enum Kind {
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3
  }

  private final Kind kind;

  Decoder(Kind kind) {
    this.kind = kind;
  }

  @Override
  public void write(ModelConfig config, GraphWriter g, List<String> classes) {
    new Graph(config, g).write();
  }

  /** One model. */
  private final class Graph {
    private final ModelConfig config;
    private final GraphWriter g;
    private final String base;
    private final long hidden;
    private final long heads;
    private final long shared;
    private final long width;
    private final long inner;
    private final double epsilon;
    private final String activation;
    private final boolean attentionBias;
    private final boolean outputBias;
    private final boolean innerBias;

    Graph(ModelConfig config, GraphWriter g) {
      this.config = config;
      this.g = g;
      base = g.base("model.", "embed_tokens.weight");
      hidden = config.size("hidden_size");
      heads = config.size("num_attention_heads");
      shared = config.size("num_key_value_heads", heads);
      if (heads % shared != 0) {
        throw config.wrong("num_key_value_heads", "a divisor of num_attention_heads = " + heads);
      }
      if (!config.has("head_dim") && hidden % heads != 0) {
        throw config.wrong("hidden_size", "a multiple of num_attention_heads = " + heads);
      }
      width = config.size("head_dim", kind == Kind.QWEN3 ? 128 : hidden / heads);
      if (width % 2 != 0) {
        throw new InputException("heads of " + width + " numbers have no pairs to turn");
      }
      inner = config.size("intermediate_size");
      epsilon = config.positive("rms_norm_eps", 1e-6);
      activation = config.choice("hidden_act", "silu", GraphWriter.ACTIVATIONS);
      attentionBias = kind == Kind.QWEN2 || config.flag("attention_bias", false);
      outputBias = kind != Kind.QWEN2 && attentionBias;
      innerBias = config.flag("mlp_bias", false);
      if (config.positive("partial_rotary_factor", 1) != 1) {
        throw config.wrong("partial_rotary_factor", "1, for heads that turn as a whole,");
      }
    }

    /** How many tokens one sees in a layer, itself among them; 0 for all. */
    private long window(long layer) {
      List<String> types = config.texts("layer_types");
      boolean slides =
          types.isEmpty()
              ? kind == Kind.MISTRAL
                  || config.flag("use_sliding_window", false)
                      && layer >= config.whole("max_window_layers", 28, 0)
              : layerType(types, layer).equals("sliding_attention");
      return slides ? config.whole("sliding_window", kind == Kind.MISTRAL ? 4096 : 0, 0) : 0;
    }

    private String layerType(List<String> types, long layer) {
      String type = layer < types.size() ? types.get((int) layer) : "";
      if (!List.of("full_attention", "sliding_attention").contains(type)) {
        throw config.wrong(
            "layer_types", "full_attention or sliding_attention for each of num_hidden_layers");
      }
      return type;
    }

    void write() {
      long layers = config.size("num_hidden_layers");
      long words = config.size("vocab_size");
      long positions = config.size("max_position_embeddings");
      double[] frequencies = RotaryTable.frequencies(config, width);
      String cosines = g.constant(RotaryTable.table("cos_cache", false, positions, frequencies));
      String sines = g.constant(RotaryTable.table("sin_cache", true, positions, frequencies));
      String ids = g.input("input_ids", "sequence_length");
      String mask = g.input("attention_mask", "total_sequence_length");
      String last = last(mask);
      String total = total(mask);
      String table = g.weight(base + "embed_tokens.weight", words, hidden);
      String x = g.node("Gather", base + "embed_tokens", List.of(table, ids));
      for (long n = 0; n < layers; n++) {
        String path = base + "layers." + n;
        String normed = g.rootMeanSquareNorm(x, path + ".input_layernorm", hidden, epsilon);
        String seen =
            attention(normed, path + ".self_attn", n, List.of(last, total, cosines, sines));
        x = g.node("Add", path + "/attention", List.of(x, seen));
        normed = g.rootMeanSquareNorm(x, path + ".post_attention_layernorm", hidden, epsilon);
        x = g.node("Add", path + "/feed_forward", List.of(x, feedForward(normed, path + ".mlp")));
      }
      x = g.rootMeanSquareNorm(x, base + "norm", hidden, epsilon);
      boolean tied = config.flag("tie_word_embeddings", false);
      String logits =
          g.product(x, "lm_head", tied ? table : g.weight("lm_head.weight", words, hidden));
      g.output("logits", logits, "batch_size", "sequence_length", words);
      for (long n = 0; n < layers; n++) {
        for (String what : List.of(".key", ".value")) {
          g.floatInput(
              "past_key_values." + n + what, "batch_size", shared, "past_sequence_length", width);
          g.declareOutput(
              "present." + n + what, "batch_size", shared, "total_sequence_length", width);
        }
      }
    }

    /** The place of the last token of each text: int32 [batch]. */
    private String last(String mask) {
      String sum =
          g.node(
              "ReduceSum", "attention_mask", List.of(mask, g.wholes(1)), attribute("keepdims", 0L));
      String place = g.node("Sub", "attention_mask", List.of(sum, g.wholes(1)));
      return g.node(
          "Cast", "attention_mask/last", List.of(place), attribute("to", DataType.INT32_VALUE));
    }

    /** How many tokens there are with those that were read before: an int32. */
    private String total(String mask) {
      String shape = g.node("Shape", "attention_mask", List.of(mask));
      String length = g.node("Gather", "attention_mask", List.of(shape, g.whole(1)));
      return g.node(
          "Cast", "attention_mask/total", List.of(length), attribute("to", DataType.INT32_VALUE));
    }

    private String attention(String x, String path, long layer, List<String> common) {
      String q = g.linear(x, path + ".q_proj", hidden, heads * width, attentionBias);
      String k = g.linear(x, path + ".k_proj", hidden, shared * width, attentionBias);
      String v = g.linear(x, path + ".v_proj", hidden, shared * width, attentionBias);
      if (kind == Kind.QWEN3) {
        q = headNorm(q, path + ".q_norm", heads);
        k = headNorm(k, path + ".k_norm", shared);
      }
      List<String> inputs = new ArrayList<>(List.of(q, k, v));
      inputs.add("past_key_values." + layer + ".key");
      inputs.add("past_key_values." + layer + ".value");
      inputs.addAll(common);
      List<AttributeProto> attributes = new ArrayList<>();
      attributes.add(attribute("num_heads", heads));
      attributes.add(attribute("kv_num_heads", shared));
      attributes.add(attribute("do_rotary", 1L));
      attributes.add(attribute("scale", 1 / Math.sqrt(width)));
      long window = window(layer);
      if (window > 0) {
        attributes.add(attribute("local_window_size", window));
      }
      String seen = path + "/GroupQueryAttention";
      g.runtimeNode(
          "GroupQueryAttention",
          path,
          inputs,
          List.of(seen, "present." + layer + ".key", "present." + layer + ".value"),
          attributes.toArray(AttributeProto[]::new));
      return g.linear(seen, path + ".o_proj", heads * width, hidden, outputBias);
    }

    private String headNorm(String x, String path, long count) {
      String apart = g.node("Reshape", path, List.of(x, g.wholes(0, 0, count, width)));
      String normed = g.rootMeanSquareNorm(apart, path, width, epsilon);
      return g.node("Reshape", path + "/together", List.of(normed, g.wholes(0, 0, count * width)));
    }

    private String feedForward(String x, String path) {
      String gate = g.linear(x, path + ".gate_proj", hidden, inner, innerBias);
      String up = g.linear(x, path + ".up_proj", hidden, inner, innerBias);
      String opened = g.activation(activation, gate, path + ".gate_proj");
      String both = g.node("Mul", path, List.of(opened, up));
      return g.linear(both, path + ".down_proj", inner, hidden, innerBias);
    }
  }
}
