package org.espalier.evaluate;

import java.nio.file.Path;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;

/** Features of texts: the embeddings that a fixed encoder gives. */
public final class TextFeatures extends EncoderFeatures {
  /** A text that tokenizers take. */
  private static final String TRIAL = "a";

  private final OnnxTextModel model;
  private final TextTokenizer tokenizer;
  private final TextEmbedder embedder;
  private final int width;

  /**
   * Opens an encoder and tries it.
   *
   * @param encoder an ONNX model that takes token ids and gives hidden states [batch, tokens, width] or embeddings [batch,
   *     width]
   * @param tokenizer its {@code tokenizer.json}
   * @param maxTokens texts are cut after so many, special ones included; see {@link TextTokenizer}
   * @throws InputException if either is none, or the model does not run on a text of that length
   */
  public TextFeatures(Path encoder, Path tokenizer, int maxTokens, Pooling pooling) {
    this.tokenizer = new TextTokenizer(tokenizer, maxTokens);
    OnnxTextModel opened = null;
    try {
      opened = new OnnxTextModel(encoder, 1);
      model = opened;
      embedder = new TextEmbedder(opened, pooling);
      width = of(TRIAL, null).length;
      tryLongest(maxTokens);
    } catch (RuntimeException e) {
      this.tokenizer.close();
      if (opened != null) {
        opened.close();
      }
      throw e;
    }
  }

  /** Runs it on a text of as many tokens as texts may have: positions may be fewer. */
  private void tryLongest(int maxTokens) {
    Tokens longest = tokenizer.encode((TRIAL + " ").repeat(maxTokens));
    try {
      embedder.embed(longest);
    } catch (InputException e) {
      throw new InputException(
          e.getMessage()
              + " (for a text of "
              + longest.length()
              + " tokens, after which texts are cut)",
          e);
    }
  }

  @Override
  public int width() {
    return width;
  }

  /** Whether the encoder gives hidden states of tokens, which are pooled; else it gives embeddings. */
  public boolean isOfTokens() {
    return embedder.isOfTokens();
  }

  /**
   * The features of a text, of length 1 together.
   *
   * @param second a text that is read together with it; null for none
   * @throws InputException where the tokenizer or the model does not take the text, or it has no tokens
   * @throws IllegalStateException after close
   */
  public float[] of(String text, String second) {
    return whileOpen(
        () -> {
          Tokens tokens = tokenizer.encode(text, second);
          if (tokens.length() == 0) {
            throw new InputException("the text has no tokens");
          }
          return embedder.embed(tokens);
        });
  }

  @Override
  void release() {
    model.close();
    tokenizer.close();
  }
}
