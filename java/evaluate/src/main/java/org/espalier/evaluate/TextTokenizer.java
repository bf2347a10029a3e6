package org.espalier.evaluate;

import ai.djl.huggingface.tokenizers.Encoding;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import org.espalier.InputException;
import org.espalier.format.Names;
import org.espalier.format.onnx.TextInput;

/**
 * Turns text into token ids with a Hugging Face {@code tokenizer.json}. Padding that the file asks for
 * is switched off (a text alone must not carry padding); truncation is at {@code maxTokens}.
 *
 * <p>Safe for use by several threads. Close it to free the native tokenizer.
 */
public final class TextTokenizer implements AutoCloseable {

  static {
    // The library would look for a GPU flavour of its native part and download it, and would report
    // its use over the network; the packaged CPU part is all that tokenization needs.
    setIfAbsent("RUST_FLAVOR", "cpu");
    setIfAbsent("ai.djl.offline", "true");
    setIfAbsent("OPT_OUT_TRACKING", "true");
  }

  private static void setIfAbsent(String key, String value) {
    if (System.getenv(key) == null && System.getProperty(key) == null) {
      System.setProperty(key, value);
    }
  }

  /**
   * The tokens of one text. The arrays have one length.
   *
   * @param ids vocabulary indices with the special tokens
   * @param mask 1 for every token of the text
   * @param types segment ids
   * @param words which of the words that were given a token is the first of, from 0; −1 for a token that is not the first
   *     of one. Null for a text that was not given in words
   */
  public record Tokens(long[] ids, long[] mask, long[] types, int[] words) {
    public int length() {
      return ids.length;
    }

    /** What an input of a model takes of the text. */
    public long[] of(TextInput input) {
      if (input == TextInput.TOKEN_TYPE_IDS) { // the tokenizer knows the parts of a text
        return types;
      }
      long[] values = new long[ids.length];
      input.write(ids, values, 0);
      return values;
    }

    /** Of some texts the longest and that with the highest token, which ask most of a model. */
    static List<Tokens> mostAsking(List<Tokens> texts) {
      return List.of(
          Collections.max(texts, Comparator.comparingInt(Tokens::length)),
          Collections.max(texts, Comparator.comparingLong(Tokens::highest)));
    }

    private long highest() {
      return Arrays.stream(ids).max().orElse(0);
    }
  }

  /**
   * Characters of the longest text: several books. A pattern such as {@code \s*[\r\n]+} may try each of them in turn, and
   * the library ends the process after ten million.
   */
  static final int LONGEST = 1 << 22;

  /** The least number of tokens that texts may be cut after: two are special ones as a rule. */
  public static final int LEAST_TOKENS = 3;

  /** The largest such number. */
  public static final int MOST_TOKENS = 1_000_000;

  /** How much of a text a message shows. */
  private static final int SHOWN = 60;

  private final Path file;
  private final TokenizerFile.Checked checked;
  private final int maxTokens;
  private final HuggingFaceTokenizer tokenizer;

  /** The same that cuts nothing, for pairs of texts; null until there is one. */
  private HuggingFaceTokenizer whole;

  /**
   * Opens a tokenizer.
   *
   * @param file a {@code tokenizer.json}
   * @param maxTokens longest encoding, {@value #LEAST_TOKENS} to {@value #MOST_TOKENS}, special tokens included; longer
   *     texts are cut
   * @throws InputException when the file is missing or is not a tokenizer
   */
  public TextTokenizer(Path file, int maxTokens) {
    if (maxTokens < LEAST_TOKENS || maxTokens > MOST_TOKENS) {
      throw new IllegalArgumentException(
          "maxTokens is " + maxTokens + "; " + LEAST_TOKENS + " to " + MOST_TOKENS + " is right");
    }
    if (!Files.isRegularFile(file)) {
      throw new InputException("tokenizer " + file + " does not exist or is not a file");
    }
    checked = TokenizerFile.check(file);
    this.file = file;
    this.maxTokens = maxTokens;
    tokenizer = open(true);
  }

  /** The file that it was read from. */
  public Path file() {
    return file;
  }

  private HuggingFaceTokenizer open(boolean cuts) {
    try {
      return HuggingFaceTokenizer.newInstance(
          file,
          Map.of(
              "truncation",
              Boolean.toString(cuts),
              "maxLength",
              Integer.toString(maxTokens),
              "modelMaxLength",
              Integer.toString(maxTokens),
              "stride", // of parts behind the first, which nobody asks for; where it is too
              // long the process ends
              "0",
              "padding",
              "false"));
    } catch (IOException | RuntimeException e) {
      throw new InputException(
          "tokenizer "
              + file
              + " cannot be read as a Hugging Face tokenizer.json: "
              + e.getMessage(),
          e);
    }
  }

  /**
   * Encodes one text.
   *
   * @throws InputException where the tokenizer does not take it, as one whose vocabulary lacks its unknown token, or it is
   *     too long, or its patterns would take too long for it
   */
  public Tokens encode(String text) {
    check(text);
    Encoding e = encoded(text, () -> tokenizer.encode(text));
    return new Tokens(e.getIds(), e.getAttentionMask(), e.getTypeIds(), null);
  }

  /**
   * Encodes a text that is cut into words already, each as if it stood alone; what Hugging Face calls {@code
   * is_split_into_words}. Where a tokenizer of bytes tells the begin of a word by the space before it and adds none itself,
   * each word gets one ({@code add_prefix_space}).
   *
   * @param words of which some may have no tokens, as one that is empty
   * @throws InputException as for one text
   */
  public Tokens encode(List<String> words) {
    List<String> given =
        checked.bareWords()
            ? words.stream().map(word -> word.startsWith(" ") ? word : " " + word).toList()
            : words;
    String text = String.join(" ", words);
    checkLength(text);
    given.forEach(this::checkWork);
    Encoding e = encoded(text, () -> tokenizer.encode(given));
    return new Tokens(e.getIds(), e.getAttentionMask(), e.getTypeIds(), begun(e.getWordIds()));
  }

  /** The words that tokens are the first of, of the words that they are of. */
  private static int[] begun(long[] words) {
    int[] begun = new int[words.length];
    for (int i = 0; i < begun.length; i++) {
      begun[i] = i > 0 && words[i] == words[i - 1] ? -1 : (int) words[i];
    }
    return begun;
  }

  /**
   * Encodes two texts as one, as models that compare them read them. Where they are too long together the longer one is
   * cut first.
   *
   * @param second null for one text
   * @throws InputException as for one text, and where the tokenizer has no way to put two together
   */
  public Tokens encode(String text, String second) {
    if (second == null) {
      return encode(text);
    }
    if (checked.pairs() != null) {
      throw new InputException(
          "tokenizer " + file + " cannot encode a pair of texts: " + checked.pairs());
    }
    check(text);
    check(second);
    // The library keeps all parts of what it cuts, for two texts each with each.
    HuggingFaceTokenizer uncut = whole();
    Encoding e = encoded(text, () -> uncut.encode(text, second));
    int ofFirst = encoded(text, () -> uncut.encode(text, false, false)).getIds().length;
    return cut(e, ofFirst);
  }

  private synchronized HuggingFaceTokenizer whole() {
    if (whole == null) {
      whole = open(false);
    }
    return whole;
  }

  /** Special tokens stay, and of each text the first ones. */
  private Tokens cut(Encoding e, int ofFirst) {
    long[] special = e.getSpecialTokenMask();
    int own = (int) Arrays.stream(special).filter(token -> token == 0).count();
    int room = Math.min(own, maxTokens - (special.length - own));
    if (room < Math.min(own, 2)) {
      throw new InputException(
          "of "
              + maxTokens
              + " tokens at most none is left for a pair of texts beside "
              + (special.length - own)
              + " special ones");
    }
    int shorter = Math.min(Math.min(ofFirst, own - ofFirst), room / 2);
    int first = 2 * ofFirst <= own ? shorter : room - shorter;
    int[] kept = new int[special.length];
    int n = 0;
    int seen = 0;
    for (int i = 0; i < special.length; i++) {
      if (special[i] == 0) {
        int place = seen < ofFirst ? seen : seen - ofFirst;
        boolean cuts = place >= (seen < ofFirst ? first : room - first);
        seen++;
        if (cuts) {
          continue;
        }
      }
      kept[n++] = i;
    }
    int[] places = Arrays.copyOf(kept, n);
    return new Tokens(
        at(places, e.getIds()), at(places, e.getAttentionMask()), at(places, e.getTypeIds()), null);
  }

  private static long[] at(int[] places, long[] values) {
    return Arrays.stream(places).mapToLong(place -> values[place]).toArray();
  }

  private void check(String text) {
    checkLength(text);
    checkWork(text);
  }

  private void checkLength(String text) {
    if (text.length() > LONGEST) {
      throw new InputException(
          refused(text) + "it has " + text.length() + " characters; " + LONGEST + " are the most");
    }
  }

  private void checkWork(String text) {
    String objection = checked.work().objection(text);
    if (objection != null) {
      throw new InputException(refused(text) + objection);
    }
  }

  private Encoding encoded(String text, Supplier<Encoding> encoding) {
    try {
      return encoding.get();
    } catch (RuntimeException failure) {
      throw new InputException(refused(text) + failure.getMessage(), failure);
    }
  }

  private String refused(String text) {
    return "tokenizer "
        + file
        + " does not take the text "
        + Names.quote(text.length() > SHOWN ? text.substring(0, SHOWN) + "…" : text)
        + ": ";
  }

  @Override
  public void close() {
    tokenizer.close();
    synchronized (this) {
      if (whole != null) {
        whole.close();
      }
    }
  }
}
