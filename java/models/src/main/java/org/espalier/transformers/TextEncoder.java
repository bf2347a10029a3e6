package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;
import java.util.function.IntUnaryOperator;
import java.util.regex.Pattern;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * One text encoder. The graph takes {@code input_ids}, {@code attention_mask} and, of models that know parts of a text,
 * {@code token_type_ids}, and gives {@code last_hidden_state}, or the {@code logits} of the head that {@code architectures}
 * names: of one that answers questions {@code start_logits} and {@code end_logits}.
 */
abstract class TextEncoder extends Encoder {
  private static final int MOST_PLACES = 1 << 20;

  private static final String CLASSIFIES = "ForSequenceClassification";
  private static final String TAGS = "ForTokenClassification";
  private static final String FILLS = "ForMaskedLM";
  private static final String ANSWERS = "ForQuestionAnswering";
  private static final Pattern HEAD = Pattern.compile(".*For[A-Z]\\w*");

  TextEncoder(Configuration config, GraphWriter g, Sizes sizes, double epsilon, String activation) {
    super(config, g, sizes, epsilon, activation);
  }

  /** What the model gives of texts, [batch, tokens, hidden]. */
  abstract String states(String ids, String mask);

  /** Logits of each text. */
  abstract String classified(String x, String mask);

  /** Logits of each token. */
  abstract String tagged(String x);

  /** Two logits of each token: that an answer begins there, and that it ends there. */
  abstract String bounded(String x);

  /** Logits of words for each token; null where the checkpoint has no head for that. */
  abstract String filled(String x);

  @Override
  final void write(List<String> classes) {
    String ids = g.input("input_ids", TOKENS);
    String mask = g.input(MASK, TOKENS);
    String x = states(ids, mask);
    if (names(classes, CLASSIFIES)) {
      g.output(LOGITS, classified(x, mask), BATCH, config.labels());
      return;
    }
    if (names(classes, TAGS)) {
      g.output(LOGITS, tagged(x), BATCH, TOKENS, config.labels());
      return;
    }
    if (names(classes, ANSWERS)) {
      String both = bounded(x);
      bound(both, 0, "start_logits");
      bound(both, 1, "end_logits");
      return;
    }
    String words = names(classes, FILLS) ? filled(x) : null;
    if (words == null) {
      classes.stream()
          .filter(name -> HEAD.matcher(name).matches() && !name.endsWith(FILLS))
          .forEach(
              name -> g.tell("the head that " + name + " has is not made here: states come out"));
      g.output(STATES, x, BATCH, TOKENS, hidden);
    } else {
      g.output(LOGITS, words, BATCH, TOKENS, words());
    }
  }

  private void bound(String both, long which, String name) {
    String index = g.whole(which);
    g.output(
        name, g.node("Gather", name, List.of(both, index), attribute("axis", -1L)), BATCH, TOKENS);
  }

  final long words() {
    return config.size("vocab_size");
  }

  /**
   * What a function tells by the distance of two tokens, [tokens, tokens].
   *
   * @param places more than which no text has
   * @param told takes how far the first is behind the second
   * @throws InputException if these are more than any model has
   */
  final String byDistance(String ids, String path, long places, IntUnaryOperator told) {
    if (places > MOST_PLACES) {
      throw config.wrong("max_position_embeddings", "at most " + MOST_PLACES);
    }
    int most = (int) places;
    long[] values = new long[2 * most + 1];
    for (int i = 0; i < values.length; i++) {
      values[i] = told.applyAsInt(i - most);
    }
    String table =
        g.constant(OnnxInitializer.int64s(path + "/table", new long[] {values.length}, values));
    String rows = g.node("Add", path, List.of(tokens.distances(ids), g.whole(places)));
    return g.node("Gather", path, List.of(table, rows));
  }

  /** The head that a linear layer is. */
  final String linearHead(String x, String path) {
    return g.linear(x, path, hidden, config.labels(), true);
  }

  /**
   * Logits of words.
   *
   * @param x of as many numbers as rows of the table have
   * @param table of words, if it is the layer's weight too
   * @param path of the layer, which has its weight where the two are not one
   * @param bias the name of its bias, or null for none
   */
  final String byWords(String x, String table, long width, String path, String bias) {
    boolean tied = config.flag("tie_word_embeddings", true);
    if (tied) {
      g.ignore(path + ".weight");
    }
    String product = tied ? g.product(x, path, table) : g.linear(x, path, width, words(), false);
    return bias == null ? product : g.node("Add", path, List.of(product, g.weight(bias, words())));
  }
}
