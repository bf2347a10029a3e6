package org.espalier.evaluate;

import java.nio.file.Path;
import org.espalier.InputException;

/**
 * Features of texts: the embeddings that a fixed encoder gives in ONNX Runtime, each of a text alone, so that they do not
 * depend on what else is computed. Safe for several threads; closing must wait for them.
 */
public final class TextFeatures implements AutoCloseable {
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
   * @param maxTokens texts are cut after so many, special ones included; from 3 on
   * @throws InputException if either is none, or the model does not run on a text of that length
   */
  public TextFeatures(Path encoder, Path tokenizer, int maxTokens, Pooling pooling) {
    this.tokenizer = new TextTokenizer(tokenizer, maxTokens);
    OnnxTextModel opened = null;
    try {
      opened = new OnnxTextModel(encoder, 1);
      model = opened;
      embedder = new TextEmbedder(opened, pooling);
      of("a ".repeat(maxTokens)); // as many as positions are asked for
      width = of("a").length;
    } catch (RuntimeException e) {
      this.tokenizer.close();
      if (opened != null) {
        opened.close();
      }
      throw e;
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
   * @throws InputException where the tokenizer or the model does not take the text
   */
  public float[] of(String text) {
    return embedder.embed(tokenizer.encode(text));
  }

  @Override
  public void close() {
    model.close();
    tokenizer.close();
  }
}
