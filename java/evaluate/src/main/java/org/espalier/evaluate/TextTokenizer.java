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
import org.espalier.InputException;
import org.espalier.format.safetensors.Names;

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
   * The tokens of one text. The three arrays have one length.
   *
   * @param ids vocabulary indices with the special tokens
   * @param mask 1 for every token of the text
   * @param types segment ids
   */
  public record Tokens(long[] ids, long[] mask, long[] types) {
    public int length() {
      return ids.length;
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
  private final PatternWork work;
  private final HuggingFaceTokenizer tokenizer;

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
    work = TokenizerFile.check(file);
    this.file = file;
    try {
      tokenizer =
          HuggingFaceTokenizer.newInstance(
              file,
              Map.of(
                  "truncation",
                  "true",
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
    if (text.length() > LONGEST) {
      throw new InputException(
          refused(text) + "it has " + text.length() + " characters; " + LONGEST + " are the most");
    }
    String objection = work.objection(text);
    if (objection != null) {
      throw new InputException(refused(text) + objection);
    }
    Encoding e;
    try {
      e = tokenizer.encode(text);
    } catch (RuntimeException failure) {
      throw new InputException(refused(text) + failure.getMessage(), failure);
    }
    return new Tokens(e.getIds(), e.getAttentionMask(), e.getTypeIds());
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
  }
}
