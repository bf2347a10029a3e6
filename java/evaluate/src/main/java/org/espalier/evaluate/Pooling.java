package org.espalier.evaluate;

import java.util.Locale;
import org.espalier.InputException;

/** How the hidden states [tokens, width] of one text become one embedding [width]. */
public enum Pooling {
  /** The mean over the tokens whose attention mask is 1 (Sentence-Transformers' default). */
  MEAN {
    @Override
    void pool(float[] hidden, int from, long[] mask, int width, float[] out) {
      double[] sum = new double[width];
      int counted = 0;
      for (int t = 0; t < mask.length; t++) {
        if (mask[t] != 0) {
          counted++;
          for (int c = 0; c < width; c++) {
            sum[c] += hidden[from + t * width + c];
          }
        }
      }
      for (int c = 0; c < width; c++) {
        out[c] = (float) (sum[c] / Math.max(1, counted));
      }
    }
  },
  /** The hidden state of the first token (BGE). */
  CLS {
    @Override
    void pool(float[] hidden, int from, long[] mask, int width, float[] out) {
      if (mask.length > 0) {
        System.arraycopy(hidden, from, out, 0, width);
      }
    }
  },
  /** The hidden state of the last token whose attention mask is 1 (Qwen3-Embedding). */
  LAST {
    @Override
    void pool(float[] hidden, int from, long[] mask, int width, float[] out) {
      int last = mask.length - 1;
      while (last > 0 && mask[last] == 0) {
        last--;
      }
      if (last >= 0) {
        System.arraycopy(hidden, from + last * width, out, 0, width);
      }
    }
  };

  /**
   * Pools one text.
   *
   * @param hidden row-major hidden states; this text's rows start at {@code from}
   * @param mask one entry a row
   * @param out receives {@code width} values; zeros where there is no row
   */
  abstract void pool(float[] hidden, int from, long[] mask, int width, float[] out);

  /**
   * Reads {@code mean}, {@code cls} or {@code last}.
   *
   * @throws InputException for anything else
   */
  public static Pooling parse(String name) {
    for (Pooling p : values()) {
      if (p.name().equalsIgnoreCase(name)) {
        return p;
      }
    }
    throw new InputException("unknown pooling '" + name + "': use mean, cls or last");
  }

  @Override
  public String toString() {
    return name().toLowerCase(Locale.ROOT);
  }
}
