package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.List;
import java.util.function.BiConsumer;
import org.espalier.InputException;
import org.espalier.format.Names;

/**
 * One language model. The graph takes {@code input_ids}, {@code attention_mask} and for each layer what was read before
 * ({@code past_key_values.N.key}, {@code .value}), and gives {@code logits} and {@code present.N.key}, {@code .value};
 * where {@code architectures} names a head that classifies texts, or none, it takes no more than the first two and gives the
 * {@code logits} of each text, or {@code last_hidden_state}. Attention is ONNX Runtime's GroupQueryAttention, so texts are padded behind their end. Kinds say what is between.
 */
abstract class Decoder {
  private static final String IDS = "input_ids";
  private static final String MASK = "attention_mask";

  /** What a graph gives, by how the name of the model's class ends. */
  private enum Gives {
    WORDS("ForCausalLM", "LMHeadModel"),
    CLASSES("ForSequenceClassification"),
    STATES("Model");

    private final List<String> ends;

    Gives(String... ends) {
      this.ends = List.of(ends);
    }
  }

  /**
   * The sizes that all kinds have.
   *
   * @param shared heads of keys and values, which divide those of queries
   * @param width of a head
   * @param positions how long a text may be
   */
  record Sizes(long hidden, long heads, long shared, long width, long layers, long positions) {
    /** As most configurations call them. */
    static Sizes of(Configuration config) {
      long hidden = config.size("hidden_size");
      long heads = config.size("num_attention_heads");
      long shared = config.size("num_key_value_heads", heads);
      if (heads % shared != 0) {
        throw config.wrong("num_key_value_heads", "a divisor of num_attention_heads = " + heads);
      }
      if (!config.has("head_dim") && hidden % heads != 0) {
        throw config.wrong("hidden_size", "a multiple of num_attention_heads = " + heads);
      }
      return new Sizes(
          hidden,
          heads,
          shared,
          config.size("head_dim", hidden / heads),
          config.size("num_hidden_layers"),
          config.size("max_position_embeddings"));
    }
  }

  /**
   * By what queries and keys are turned.
   *
   * @param positions the rows of the tables, [batch, tokens]; empty for the places of tokens
   */
  record Rotary(String cosines, String sines, String positions) {}

  /**
   * How a layer attends.
   *
   * @param scale of products of queries and keys
   * @param cap beyond which scores do not go; 0 for none
   * @param window how many tokens one sees, itself among them; 0 for all
   * @param rotary null where positions are not in queries and keys
   */
  record Attention(double scale, double cap, long window, Rotary rotary) {}

  final Configuration config;
  final GraphWriter g;
  final Sizes sizes;
  final long words;
  private final Tokens tokens;
  private Gives gives;

  Decoder(Configuration config, GraphWriter g, Sizes sizes) {
    this.config = config;
    this.g = g;
    this.sizes = sizes;
    words = config.size("vocab_size");
    tokens = new Tokens(g);
  }

  /** Whether tokens see those behind them too, as those of an encoder. */
  boolean looksAhead() {
    return false;
  }

  /** Looks up the words of texts, [batch, tokens]. */
  abstract String embedded(String ids);

  abstract String layer(String x, long n);

  /** What the last layer gives, normed. */
  abstract String normed(String x);

  /** States, [batch, tokens, hidden], as logits of words. */
  abstract String byWords(String x);

  /**
   * Writes the graph.
   *
   * @param classes what {@code architectures} names
   */
  final void write(List<String> classes) {
    gives = gives(classes);
    if (looksAhead() && gives == Gives.WORDS) {
      throw new InputException(
          config.place()
              + ": tokens see those behind them, so that no word follows from those before it;"
              + " …Model or …ForSequenceClassification is right in architectures");
    }
    g.input(IDS, "sequence_length");
    g.input(MASK, gives == Gives.WORDS ? "total_sequence_length" : "sequence_length");
    String x = embedded(IDS);
    for (long n = 0; n < sizes.layers(); n++) {
      x = layer(x, n);
    }
    x = normed(x);
    switch (gives) {
      case CLASSES -> g.output("logits", classified(x), "batch_size", config.labels());
      case STATES ->
          g.output("last_hidden_state", x, "batch_size", "sequence_length", sizes.hidden());
      case WORDS -> {
        g.output("logits", byWords(x), "batch_size", "sequence_length", words);
        caches();
      }
    }
  }

  private Gives gives(List<String> classes) {
    for (String name : classes) {
      for (Gives one : Gives.values()) {
        if (one.ends.stream().anyMatch(name::endsWith)) {
          return one;
        }
      }
      throw new InputException(
          config.place()
              + ": architectures names "
              + Names.quote(name)
              + "; of this model_type …ForCausalLM, …ForSequenceClassification or …Model is"
              + " right");
    }
    return Gives.WORDS;
  }

  private void caches() {
    for (long n = 0; n < sizes.layers(); n++) {
      for (String what : List.of(".key", ".value")) {
        cache("past_key_values." + n + what, "past_sequence_length", g::floatInput);
        cache("present." + n + what, "total_sequence_length", g::declareOutput);
      }
    }
  }

  private void cache(String name, String tokens, BiConsumer<String, Object[]> declare) {
    declare.accept(name, new Object[] {"batch_size", sizes.shared(), tokens, sizes.width()});
  }

  private String asInt32(String x, String path) {
    return g.once(
        path, () -> g.node("Cast", path, List.of(x), attribute("to", DataType.INT32_VALUE)));
  }

  /** The logits of each text's last token. */
  private String classified(String x) {
    String state = tokens.last(x, MASK, "score");
    return g.linear(state, "score", sizes.hidden(), config.labels(), false);
  }

  /** How many tokens there are with those that were read before. */
  final String totalLength() {
    return g.length(MASK, 1);
  }

  /**
   * The places of tokens: [batch, tokens]. Those behind the end of a text that begins go on, of one that goes on they are
   * behind what was read.
   */
  final String positions() {
    String path = "position_ids";
    String count = g.length(IDS, 1);
    String read = g.node("Sub", path, List.of(tokens.lengths(MASK), count));
    String before = g.node("Max", path, List.of(read, g.wholes(0)));
    String first = g.node("Unsqueeze", path, List.of(before, g.wholes(1)));
    String step = g.node("Range", path, List.of(g.whole(0), count, g.whole(1)));
    return g.node("Add", path, List.of(first, step));
  }

  /**
   * Writes the attention of a layer.
   *
   * @param products queries, keys and values, or one value of all
   */
  final String attend(List<String> products, String path, long layer, Attention how) {
    return looksAhead() ? attendAll(products, path, how) : attendBefore(products, path, layer, how);
  }

  private String attendBefore(List<String> products, String path, long layer, Attention how) {
    List<String> inputs = new ArrayList<>(products);
    while (inputs.size() < 3) {
      inputs.add("");
    }
    for (String what : List.of(".key", ".value")) {
      inputs.add(gives == Gives.WORDS ? "past_key_values." + layer + what : "");
    }
    inputs.add(asInt32(tokens.lastPlaces(MASK), MASK + "/last/int32"));
    inputs.add(asInt32(totalLength(), MASK + "/total"));
    List<AttributeProto> attributes = new ArrayList<>();
    attributes.add(attribute("num_heads", sizes.heads()));
    attributes.add(attribute("kv_num_heads", sizes.shared()));
    attributes.add(attribute("scale", how.scale()));
    if (how.rotary() != null) {
      attributes.add(attribute("do_rotary", 1L));
      inputs.add(how.rotary().cosines());
      inputs.add(how.rotary().sines());
      if (!how.rotary().positions().isEmpty()) {
        inputs.add(how.rotary().positions());
      }
    }
    if (how.cap() > 0) {
      attributes.add(attribute("softcap", how.cap()));
    }
    if (how.window() > 0) {
      attributes.add(attribute("local_window_size", how.window()));
    }
    String seen = path + "/GroupQueryAttention";
    g.runtimeNode(
        "GroupQueryAttention",
        path,
        inputs,
        List.of(seen, "present." + layer + ".key", "present." + layer + ".value"),
        attributes.toArray(AttributeProto[]::new));
    return seen;
  }

  /**
   * Attention in both directions: to all tokens, or to {@code window / 2} on either side. The heads of queries that share one
   * of keys and values lie beside each other, so that nothing is repeated.
   */
  private String attendAll(List<String> products, String path, Attention how) {
    long group = sizes.heads() / sizes.shared();
    String q =
        grouped(turned(products.get(0), path + "/q", how), path + "/q", group, 0, 2, 3, 1, 4);
    String k = grouped(turned(products.get(1), path + "/k", how), path + "/k", 1, 0, 2, 3, 4, 1);
    String v = grouped(products.get(2), path + "/v", 1, 0, 2, 3, 1, 4);
    String scores = g.node("MatMul", path + "/scores", List.of(q, k));
    String scaled = g.node("Mul", path, List.of(scores, g.number((float) how.scale())));
    String more = how.window() > 0 ? near(how.window() / 2) : hidden();
    String seen = g.node("Add", path + "/mask", List.of(scaled, more));
    String shares = g.node("Softmax", path, List.of(seen), attribute("axis", -1L));
    String values = g.node("MatMul", path + "/values", List.of(shares, v));
    String together = path + "/together";
    String rows =
        g.node(
            "Transpose", together, List.of(values), attribute("perm", new long[] {0, 3, 1, 2, 4}));
    return g.node(
        "Reshape", together, List.of(rows, g.wholes(0, 0, sizes.heads() * sizes.width())));
  }

  /** Products [batch, tokens, heads · width], apart as [batch, tokens, shared, group, width] and in another order. */
  private String grouped(String products, String path, long group, long... order) {
    List<String> inputs = List.of(products, g.wholes(0, 0, sizes.shared(), group, sizes.width()));
    String apart = g.node("Reshape", path, inputs);
    return g.node("Transpose", path, List.of(apart), attribute("perm", order));
  }

  private String turned(String products, String path, Attention how) {
    return tokens.turned(products, path, how.rotary().cosines(), how.rotary().sines());
  }

  /** What is added to scores: 0, and the least float where a token is hidden: [batch, 1, 1, 1, tokens]. */
  private String hidden() {
    String path = MASK + "/hidden";
    return g.once(path, () -> g.node("Unsqueeze", path, List.of(tokens.hiding(MASK), g.wholes(1))));
  }

  /** The same where only so many on either side are seen: [batch, 1, 1, tokens, tokens]. */
  private String near(long most) {
    String path = MASK + "/near/" + most;
    return g.once(path, () -> g.node("Min", path, List.of(hidden(), tokens.strangers(IDS, most))));
  }
}
