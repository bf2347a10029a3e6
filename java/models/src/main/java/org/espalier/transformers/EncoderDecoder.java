package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;
import java.util.function.UnaryOperator;
import org.espalier.InputException;
import org.espalier.format.Names;
import org.espalier.transformers.TransformersModel.Part;

/**
 * One part of a model of two: an encoder that reads, or a decoder that answers token by token. The encoder takes {@code
 * input_ids} and {@code attention_mask} and gives {@code last_hidden_state} and what each layer of the decoder looks at of
 * it, {@code present.N.encoder.key} and {@code .value}. The decoder takes {@code input_ids}, {@code
 * encoder_attention_mask}, these as {@code past_key_values.N.encoder.key} and {@code .value}, and what it read before, {@code
 * past_key_values.N.decoder.key} and {@code .value}; it gives {@code logits} and {@code present.N.decoder.key} and {@code
 * .value}. What is made of the encoder's states once is made where they are, so that one decoder without branches begins a
 * text and goes on. Kinds say what is between.
 */
abstract class EncoderDecoder extends Encoder {
  /** How the class of a model ends that is the encoder alone. */
  static final String ENCODES = "EncoderModel";

  static final String IDS = "input_ids";

  private static final String READ_MASK = "encoder_attention_mask";
  private static final String READ_TOKENS = "encoder_sequence_length";
  private static final List<String> CACHED = List.of(".key", ".value");
  private static final List<String> CLASSES = List.of("ForConditionalGeneration", "Model");

  /**
   * How the modules of a layer are called behind its path, those of attention behind that of {@code self} or {@code cross}.
   *
   * @param layers between the part and a layer's number
   * @param cross attention to what the encoder read
   * @param inNorm of the feed-forward block
   */
  record Layer(
      String layers,
      String self,
      String selfNorm,
      String cross,
      String crossNorm,
      String inNorm,
      String query,
      String key,
      String value,
      String out) {}

  final Part part;
  final String base;
  private final Layer names;
  private final Sizes decoder;

  /**
   * @param part which is written
   * @param base what names of tensors begin with
   */
  EncoderDecoder(
      Configuration config,
      GraphWriter g,
      Part part,
      Sizes encoder,
      Sizes decoder,
      String base,
      Layer names,
      double epsilon,
      String activation) {
    super(config, g, part == Part.ENCODER ? encoder : decoder, epsilon, activation);
    this.part = part;
    this.base = base;
    this.names = names;
    this.decoder = decoder;
  }

  /** What begins the names of this part's tensors. */
  final String side() {
    return base + (part == Part.ENCODER ? "encoder" : "decoder");
  }

  /** What the first layer takes of tokens, [batch, tokens, hidden]. */
  abstract String embedded();

  /** Whether the encoder reads texts, which may be padded; it {@linkplain #embedded declares} other inputs itself. */
  boolean readsTexts() {
    return true;
  }

  /** Whether norms are before blocks, and not behind. */
  abstract boolean normsFirst();

  /** The norm of a block. */
  String blockNorm(String x, String path) {
    return norm(x, path);
  }

  /** Whether a linear layer of attention has a bias. */
  abstract boolean hasBias(String name);

  /** By what products of queries and keys are divided. */
  double divisor() {
    return Math.sqrt(sizes.width());
  }

  /**
   * What is added to the scores of this part's own tokens.
   *
   * @param hiding 0, and the least float where a token is hidden
   */
  String scoreTerms(String hiding) {
    return hiding;
  }

  /** The feed-forward block. */
  abstract String fed(String x, String path);

  /** What all layers gave, as the part gives it. */
  abstract String finished(String x);

  /** States, [batch, tokens, hidden], as logits of words. */
  abstract String byWords(String x);

  /** How many words an answer chooses from. */
  abstract long words();

  @Override
  final void write(List<String> classes) {
    for (String name : classes) {
      if (CLASSES.stream().noneMatch(name::endsWith)) {
        throw new InputException(
            config.place()
                + ": architectures names "
                + Names.quote(name)
                + "; of this model_type …"
                + String.join(" or …", CLASSES)
                + " is right");
      }
    }
    if (part == Part.ENCODER) {
      writeEncoder(names(classes, ENCODES));
    } else {
      writeDecoder();
    }
  }

  /**
   * @param alone whether there is no decoder
   */
  private void writeEncoder(boolean alone) {
    String terms = readsTexts() ? scoreTerms(texts()) : null;
    String x = embedded();
    for (long n = 0; n < sizes.layers(); n++) {
      String path = side() + names.layers() + n;
      x = block(x, path + names.selfNorm(), y -> seen(y, path + names.self(), terms));
      x = block(x, path + names.inNorm(), y -> fed(y, path));
    }
    g.output(STATES, finished(x), BATCH, TOKENS, hidden);
    for (long n = 0; !alone && n < decoder.layers(); n++) {
      String path = base + "decoder" + names.layers() + n + names.cross();
      for (String what : CACHED) {
        String name = path + (what.equals(".key") ? names.key() : names.value());
        String products = g.linear(STATES, name, hidden, decoder.attending(), hasBias(name));
        String heads = heads(products, name, decoder);
        g.output(
            "present." + n + ".encoder" + what,
            heads,
            BATCH,
            decoder.heads(),
            TOKENS,
            decoder.width());
      }
    }
  }

  /** Declares texts, and gives 0, and the least float where a token is hidden. */
  private String texts() {
    g.input(IDS, TOKENS);
    return tokens.hiding(g.input(MASK, TOKENS));
  }

  /** Attention among the tokens of a text. */
  private String seen(String x, String path, String terms) {
    String q = heads(projected(x, path + names.query()), path + names.query());
    String k = turnedHeads(projected(x, path + names.key()), path + names.key());
    String v = heads(projected(x, path + names.value()), path + names.value());
    return out(attend(q, k, v, path, divisor(), terms), path);
  }

  private String projected(String x, String name) {
    return g.linear(x, name, hidden, sizes.attending(), hasBias(name));
  }

  private String out(String seen, String path) {
    String name = path + names.out();
    return g.linear(seen, name, sizes.attending(), hidden, hasBias(name));
  }

  /** What a block makes is added to what it took. */
  private String block(String x, String norm, UnaryOperator<String> made) {
    String from = normsFirst() ? blockNorm(x, norm) : x;
    String sum = g.node("Add", norm, List.of(made.apply(from), x));
    return normsFirst() ? sum : blockNorm(sum, norm);
  }

  private void writeDecoder() {
    g.input(IDS, TOKENS);
    String read = readsTexts() ? tokens.hiding(g.input(READ_MASK, READ_TOKENS)) : null;
    String terms = scoreTerms(tokens.later(distances()));
    String x = embedded();
    for (long n = 0; n < sizes.layers(); n++) {
      long layer = n;
      String path = side() + names.layers() + n;
      x = block(x, path + names.selfNorm(), y -> goneOn(y, path + names.self(), layer, terms));
      x = block(x, path + names.crossNorm(), y -> lookedUp(y, path + names.cross(), layer, read));
      x = block(x, path + names.inNorm(), y -> fed(y, path));
    }
    g.output(LOGITS, byWords(finished(x)), BATCH, TOKENS, words());
    for (long n = 0; n < sizes.layers(); n++) {
      for (String what : CACHED) {
        String name = present(n, what);
        g.declareOutput(name, BATCH, sizes.heads(), "total_sequence_length", sizes.width());
      }
    }
  }

  private static String past(long layer, String what) {
    return "past_key_values." + layer + what;
  }

  private static String present(long layer, String what) {
    return "present." + layer + ".decoder" + what;
  }

  /** Attention among tokens and those that were read before. */
  private String goneOn(String x, String path, long layer, String terms) {
    String q = heads(projected(x, path + names.query()), path + names.query());
    String k = cached(x, path + names.key(), layer, ".key");
    String v = cached(x, path + names.value(), layer, ".value");
    return out(attend(q, turned(k, path), v, path, divisor(), terms), path);
  }

  /** Heads behind those of tokens that were read before. */
  private String cached(String x, String name, long layer, String what) {
    String own = heads(projected(x, name), name);
    String before = cache(layer, ".decoder" + what, "past_sequence_length");
    return g.named("Concat", present(layer, what), List.of(before, own), attribute("axis", 2L));
  }

  /** Attention to what the encoder read. */
  private String lookedUp(String x, String path, long layer, String hiding) {
    String q = heads(projected(x, path + names.query()), path + names.query());
    String k = turned(cache(layer, ".encoder.key", READ_TOKENS), path);
    String v = cache(layer, ".encoder.value", READ_TOKENS);
    return out(attend(q, k, v, path, divisor(), hiding), path);
  }

  /** An input for keys or values. */
  private String cache(long layer, String what, String tokens) {
    return g.floatInput(past(layer, what), BATCH, sizes.heads(), tokens, sizes.width());
  }

  /** Keys [batch, heads, tokens, width] as [batch, heads, width, tokens]. */
  private String turned(String keys, String path) {
    long[] order = {0, 1, 3, 2};
    return g.node("Transpose", path + "/keys", List.of(keys), attribute("perm", order));
  }

  /** The places of tokens, behind those that were read before: [tokens]. */
  final String ownPlaces() {
    if (part == Part.ENCODER) {
      return tokens.places(IDS);
    }
    String path = "position_ids";
    return g.once(
        path,
        () ->
            g.node(
                "Range", path, List.of(g.length(past(0, ".decoder.key"), 2), total(), g.whole(1))));
  }

  private String total() {
    String path = "total_length";
    List<String> both = List.of(g.length(past(0, ".decoder.key"), 2), g.length(IDS, 1));
    return g.once(path, () -> g.node("Add", path, both));
  }

  /** How far a token is behind each that it may see. */
  final String distances() {
    if (part == Part.ENCODER) {
      return tokens.distances(IDS);
    }
    String path = "all_position_ids";
    String all =
        g.once(path, () -> g.node("Range", path, List.of(g.whole(0), total(), g.whole(1))));
    return tokens.distances(ownPlaces(), all);
  }

  /**
   * The table of words that both parts, and where it is so the head, have under several names.
   *
   * @param stored by which of them a checkpoint may have it, the first first
   */
  final String table(List<String> stored, long words) {
    String name = stored.stream().filter(g::has).findFirst().orElse(stored.get(0));
    stored.forEach(g::ignore);
    return g.weight(name, words, hidden);
  }

  /** x · factor. */
  final String scaled(String x, String path, double factor) {
    return factor == 1 ? x : g.node("Mul", path + "/scaled", List.of(x, g.number((float) factor)));
  }
}
