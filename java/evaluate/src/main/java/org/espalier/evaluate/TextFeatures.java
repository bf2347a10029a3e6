package org.espalier.evaluate;

import java.nio.file.Path;
import java.util.concurrent.locks.ReadWriteLock;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;

/**
 * Features of texts: the embeddings that a fixed encoder gives in ONNX Runtime, each of a text alone, so that they do not
 * depend on what else is computed. Safe for several threads.
 */
public final class TextFeatures implements AutoCloseable {
  /** A text that tokenizers take. */
  private static final String TRIAL = "a";

  private final OnnxTextModel model;
  private final TextTokenizer tokenizer;
  private final TextEmbedder embedder;
  private final int width;

  /** Read where features are made, written by who closes. */
  private final ReadWriteLock use = new ReentrantReadWriteLock();

  private boolean closed;

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
      width = of(TRIAL).length;
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

  /** How many features a text has. */
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
   * @throws InputException where the tokenizer or the model does not take the text, or it has no tokens
   * @throws IllegalStateException after close
   */
  public float[] of(String text) {
    use.readLock().lock();
    try {
      if (closed) {
        throw new IllegalStateException("the encoder is closed");
      }
      Tokens tokens = tokenizer.encode(text);
      if (tokens.length() == 0) {
        throw new InputException("the text has no tokens");
      }
      return embedder.embed(tokens);
    } finally {
      use.readLock().unlock();
    }
  }

  /** Waits for features that are being made. */
  @Override
  public void close() {
    use.writeLock().lock();
    try {
      if (!closed) {
        closed = true;
        model.close();
        tokenizer.close();
      }
    } finally {
      use.writeLock().unlock();
    }
  }
}
