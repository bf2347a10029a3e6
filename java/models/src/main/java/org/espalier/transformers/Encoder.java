package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;

/** One model of tokens, of texts or of images. */
abstract class Encoder {
  static final String STATES = "last_hidden_state";
  static final String LOGITS = "logits";
  static final String BATCH = "batch_size";
  static final String TOKENS = "sequence_length";
  static final String MASK = "attention_mask";

  /**
   * The sizes that all kinds have.
   *
   * @param width of a head
   * @param inner of feed-forward blocks
   */
  record Sizes(long hidden, long heads, long width, long inner, long layers) {
    /** As most configurations call them. */
    static Sizes of(Configuration config) {
      return of(
          config, "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers");
    }

    /** The same with what {@code inner} is, whatever key it follows from. */
    static Sizes of(Configuration config, long inner) {
      return of(config, "hidden_size", "num_attention_heads", inner, "num_hidden_layers");
    }

    /** By the keys of a configuration. */
    static Sizes of(
        Configuration config, String hidden, String heads, String inner, String layers) {
      return of(config, hidden, heads, config.size(inner), layers);
    }

    private static Sizes of(
        Configuration config, String hidden, String heads, long inner, String layers) {
      if (config.size(hidden) % config.size(heads) != 0) {
        throw config.wrong(hidden, "a multiple of its " + config.size(heads) + " heads");
      }
      long width = config.size(hidden) / config.size(heads);
      return new Sizes(config.size(hidden), config.size(heads), width, inner, config.size(layers));
    }

    /** How many numbers the heads have together. */
    long attending() {
      return heads * width;
    }
  }

  final Configuration config;
  final GraphWriter g;
  final Sizes sizes;
  final long hidden;
  final double epsilon;
  final String activation;
  final Tokens tokens;

  Encoder(Configuration config, GraphWriter g, Sizes sizes, double epsilon, String activation) {
    this.config = config;
    this.g = g;
    this.sizes = sizes;
    this.epsilon = epsilon;
    this.activation = activation;
    hidden = sizes.hidden();
    tokens = new Tokens(g);
  }

  /**
   * Writes the graph.
   *
   * @param classes what {@code architectures} names
   */
  abstract void write(List<String> classes);

  /** Whether a class is named that ends so. */
  static boolean names(List<String> classes, String end) {
    return classes.stream().anyMatch(c -> c.endsWith(end));
  }

  final String norm(String x, String path) {
    return g.layerNorm(x, path, hidden, epsilon);
  }

  /** A linear layer, an activation and another. */
  final String feedForward(String x, String in, String out) {
    String wide = g.linear(x, in, hidden, sizes.inner(), true);
    return g.linear(g.activation(activation, wide, in), out, sizes.inner(), hidden, true);
  }

  /** Products [batch, tokens, hidden] as [batch, heads, tokens, width]. */
  final String heads(String products, String path) {
    return heads(products, path, sizes);
  }

  /** The same of other heads than those of this model's own layers. */
  final String heads(String products, String path, Sizes sizes) {
    return heads(products, path, sizes, 0, 2, 1, 3);
  }

  /** Products [batch, tokens, hidden] as [batch, heads, width, tokens], which queries are multiplied by. */
  final String turnedHeads(String products, String path) {
    return heads(products, path, sizes, 0, 2, 3, 1);
  }

  private String heads(String products, String path, Sizes sizes, long... order) {
    String apart =
        g.node("Reshape", path, List.of(products, g.wholes(0, 0, sizes.heads(), sizes.width())));
    return g.node("Transpose", path + "/heads", List.of(apart), attribute("perm", order));
  }

  /**
   * Attention by products that a linear layer each makes.
   *
   * @param names of the layers of queries, keys and values
   * @param bias whether these have a bias
   * @param more what is added to scores, or null
   */
  final String attention(String x, String path, List<String> names, boolean bias, String more) {
    String[] products = new String[3];
    for (int i = 0; i < products.length; i++) {
      products[i] = g.linear(x, names.get(i), hidden, hidden, bias);
    }
    return attend(
        heads(products[0], names.get(0)),
        turnedHeads(products[1], names.get(1)),
        heads(products[2], names.get(2)),
        path,
        Math.sqrt(sizes.width()),
        more);
  }

  /**
   * softmax(q·k / divisor + more)·v, [batch, tokens, heads · width].
   *
   * @param more null for nothing
   */
  final String attend(String q, String k, String v, String path, double divisor, String more) {
    String scores = g.node("MatMul", path + "/scores", List.of(q, k));
    if (divisor != 1) {
      scores = g.node("Div", path, List.of(scores, g.number((float) divisor)));
    }
    if (more != null) {
      scores = g.node("Add", path + "/mask", List.of(scores, more));
    }
    String shares = g.node("Softmax", path, List.of(scores), attribute("axis", -1L));
    String seen = g.node("MatMul", path + "/values", List.of(shares, v));
    String together = path + "/together";
    String rows =
        g.node("Transpose", together, List.of(seen), attribute("perm", new long[] {0, 2, 1, 3}));
    return g.node("Reshape", together, List.of(rows, g.wholes(0, 0, sizes.attending())));
  }

  /** Tokens from one place to before another. */
  final String between(String x, String path, long from, long to) {
    List<String> inputs = List.of(x, g.wholes(from), g.wholes(to), g.wholes(1));
    return g.node("Slice", path, inputs);
  }

  /** The mean over all tokens: [batch, hidden]. */
  final String mean(String x) {
    return g.node(
        "ReduceMean",
        "mean",
        List.of(x),
        attribute("axes", new long[] {1}),
        attribute("keepdims", 0L));
  }
}
