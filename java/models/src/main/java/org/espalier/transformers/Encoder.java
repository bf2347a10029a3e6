package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Locale;

/**
 * Text encoders of the kind of BERT: learned positions, layer norms behind each block. The graph takes {@code input_ids}, {@code
 * attention_mask} and, of models that know parts of a text, {@code token_type_ids}, and gives {@code last_hidden_state},
 * or the {@code logits} of the head that {@code architectures} names.
 */
final class Encoder implements Architecture {
  /** How tensors and settings are called, and where positions begin. */
  enum Kind {
    BERT,
    /** RoBERTa, XLM-RoBERTa, CamemBERT: positions count tokens that are no padding. */
    ROBERTA,
    DISTILBERT
  }

  private static final String WORDS = "embeddings.word_embeddings.weight";
  private static final String CLASSIFIES = "ForSequenceClassification";
  private static final String TAGS = "ForTokenClassification";

  private final Kind kind;

  Encoder(Kind kind) {
    this.kind = kind;
  }

  @Override
  public void write(ModelConfig config, GraphWriter g, List<String> classes) {
    new Graph(config, g).write(classes);
  }

  /** One model. */
  private final class Graph {
    private final ModelConfig config;
    private final GraphWriter g;
    private final String base;
    private final boolean small;
    private final long hidden;
    private final long heads;
    private final long inner;
    private final double epsilon;
    private final String activation;

    Graph(ModelConfig config, GraphWriter g) {
      this.config = config;
      this.g = g;
      base = g.base(kind.name().toLowerCase(Locale.ROOT) + ".", WORDS);
      small = kind == Kind.DISTILBERT;
      hidden = config.size(small ? "dim" : "hidden_size");
      heads = config.size(small ? "n_heads" : "num_attention_heads");
      if (hidden % heads != 0) {
        throw config.wrong(small ? "dim" : "hidden_size", "a multiple of its " + heads + " heads");
      }
      inner = config.size(small ? "hidden_dim" : "intermediate_size");
      epsilon = small ? 1e-12 : config.positive("layer_norm_eps", 1e-12);
      activation =
          config.choice(small ? "activation" : "hidden_act", "gelu", GraphWriter.ACTIVATIONS);
      config.refuse("position_embedding_type", "absolute");
      config.refuse("is_decoder");
      config.refuse("add_cross_attention");
    }

    void write(List<String> classes) {
      String ids = g.input("input_ids", "sequence_length");
      String mask = g.input("attention_mask", "sequence_length");
      String x = embeddings(ids);
      String hiding = hiding(mask);
      long layers = config.size(small ? "n_layers" : "num_hidden_layers");
      for (long n = 0; n < layers; n++) {
        x =
            small
                ? smallLayer(x, base + "transformer.layer." + n, hiding)
                : layer(x, base + "encoder.layer." + n, hiding);
      }
      if (classes.stream().anyMatch(c -> c.endsWith(CLASSIFIES))) {
        g.output("logits", classified(x), "batch_size", labels());
      } else if (classes.stream().anyMatch(c -> c.endsWith(TAGS))) {
        String logits = g.linear(x, "classifier", hidden, labels(), true);
        g.output("logits", logits, "batch_size", "sequence_length", labels());
      } else {
        g.output("last_hidden_state", x, "batch_size", "sequence_length", hidden);
      }
    }

    private long labels() {
      int named = config.entries("id2label");
      return config.size("num_labels", named > 0 ? named : 2);
    }

    private String embeddings(String ids) {
      String path = base + "embeddings";
      String words = g.weight(base + WORDS, config.size("vocab_size"), hidden);
      String x = g.node("Gather", path + ".word_embeddings", List.of(words, ids));
      long parts = small ? 0 : config.size("type_vocab_size", 2);
      if (parts > 0) {
        String table = g.weight(path + ".token_type_embeddings.weight", parts, hidden);
        String part =
            parts > 1
                ? g.node(
                    "Gather",
                    path + ".token_type_embeddings",
                    List.of(table, g.input("token_type_ids", "sequence_length")))
                : g.node("Gather", path + ".token_type_embeddings", List.of(table, g.whole(0)));
        x = g.node("Add", path + "/parts", List.of(x, part));
      }
      String table =
          g.weight(
              path + ".position_embeddings.weight", config.size("max_position_embeddings"), hidden);
      String place =
          g.node("Gather", path + ".position_embeddings", List.of(table, positions(ids)));
      x = g.node("Add", path + "/positions", List.of(x, place));
      return g.layerNorm(x, path + ".LayerNorm", hidden, epsilon);
    }

    private String positions(String ids) {
      if (kind == Kind.ROBERTA) {
        String path = "position_ids";
        long padding = config.whole("pad_token_id", 1, 0);
        String none = g.node("Equal", path, List.of(ids, g.whole(padding)));
        String some =
            g.node(
                "Cast",
                path,
                List.of(g.node("Not", path, List.of(none))),
                attribute("to", DataType.INT64_VALUE));
        String count = g.node("CumSum", path, List.of(some, g.whole(1)));
        String counted = g.node("Mul", path, List.of(count, some));
        return g.node("Add", path, List.of(counted, g.whole(padding)));
      }
      return g.node("Range", "position_ids", List.of(g.whole(0), g.length(ids, 1), g.whole(1)));
    }

    /** What is added to scores: 0, and the least float where a token is hidden: [batch, 1, 1, tokens]. */
    private String hiding(String mask) {
      String path = "attention_mask";
      String wide = g.node("Unsqueeze", path, List.of(mask, g.wholes(1, 2)));
      String seen = g.node("Cast", path, List.of(wide), attribute("to", DataType.FLOAT_VALUE));
      String hidden = g.node("Sub", path, List.of(g.number(1), seen));
      return g.node("Mul", path, List.of(hidden, g.number(-Float.MAX_VALUE)));
    }

    private String layer(String x, String path, String hiding) {
      String self = path + ".attention.self";
      String seen = attention(x, self, List.of(".query", ".key", ".value"), hiding);
      String out = g.linear(seen, path + ".attention.output.dense", hidden, hidden, true);
      String sum = g.node("Add", path + ".attention.output", List.of(out, x));
      x = g.layerNorm(sum, path + ".attention.output.LayerNorm", hidden, epsilon);
      String wide = g.linear(x, path + ".intermediate.dense", hidden, inner, true);
      wide = g.activation(activation, wide, path + ".intermediate");
      out = g.linear(wide, path + ".output.dense", inner, hidden, true);
      sum = g.node("Add", path + ".output", List.of(out, x));
      return g.layerNorm(sum, path + ".output.LayerNorm", hidden, epsilon);
    }

    private String smallLayer(String x, String path, String hiding) {
      String self = path + ".attention";
      String seen = attention(x, self, List.of(".q_lin", ".k_lin", ".v_lin"), hiding);
      String out = g.linear(seen, self + ".out_lin", hidden, hidden, true);
      String sum = g.node("Add", self, List.of(out, x));
      x = g.layerNorm(sum, path + ".sa_layer_norm", hidden, epsilon);
      String wide = g.linear(x, path + ".ffn.lin1", hidden, inner, true);
      wide = g.activation(activation, wide, path + ".ffn");
      out = g.linear(wide, path + ".ffn.lin2", inner, hidden, true);
      sum = g.node("Add", path + ".ffn", List.of(out, x));
      return g.layerNorm(sum, path + ".output_layer_norm", hidden, epsilon);
    }

    private String attention(String x, String path, List<String> names, String hiding) {
      long width = hidden / heads;
      String[] parts = new String[3];
      for (int i = 0; i < parts.length; i++) {
        String part = path + names.get(i);
        String product = g.linear(x, part, hidden, hidden, true);
        String apart = g.node("Reshape", part, List.of(product, g.wholes(0, 0, heads, width)));
        long[] order = i == 1 ? new long[] {0, 2, 3, 1} : new long[] {0, 2, 1, 3};
        parts[i] = g.node("Transpose", part + "/heads", List.of(apart), attribute("perm", order));
      }
      String product = g.node("MatMul", path + "/scores", List.of(parts[0], parts[1]));
      String scores = g.node("Div", path, List.of(product, g.number((float) Math.sqrt(width))));
      String masked = g.node("Add", path + "/mask", List.of(scores, hiding));
      String shares = g.node("Softmax", path, List.of(masked), attribute("axis", -1L));
      String seen = g.node("MatMul", path + "/values", List.of(shares, parts[2]));
      String together =
          g.node(
              "Transpose",
              path + "/together",
              List.of(seen),
              attribute("perm", new long[] {0, 2, 1, 3}));
      return g.node("Reshape", path + "/together", List.of(together, g.wholes(0, 0, hidden)));
    }

    /** The logits of the text's first token. */
    private String classified(String x) {
      String first = g.node("Gather", "first", List.of(x, g.whole(0)), attribute("axis", 1L));
      return switch (kind) {
        case BERT -> {
          String dense = g.linear(first, base + "pooler.dense", hidden, hidden, true);
          String pooled = g.node("Tanh", "pooler", List.of(dense));
          yield g.linear(pooled, "classifier", hidden, labels(), true);
        }
        case ROBERTA -> {
          String dense = g.linear(first, "classifier.dense", hidden, hidden, true);
          String pooled = g.node("Tanh", "classifier", List.of(dense));
          yield g.linear(pooled, "classifier.out_proj", hidden, labels(), true);
        }
        case DISTILBERT -> {
          String dense = g.linear(first, "pre_classifier", hidden, hidden, true);
          String pooled = g.node("Relu", "pre_classifier", List.of(dense));
          yield g.linear(pooled, "classifier", hidden, labels(), true);
        }
      };
    }
  }
}
