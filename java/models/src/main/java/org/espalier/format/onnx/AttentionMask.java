package org.espalier.format.onnx;

import java.nio.ByteBuffer;

/** The input that says which tokens of an example are about something: those where it is not 0. */
public final class AttentionMask {
  /** Its name. */
  public static final String INPUT = "attention_mask";

  private AttentionMask() {}

  /**
   * Reads an example's mask.
   *
   * @param mask all its values, of any type; not changed
   * @param attended receives whether each of them is not 0, from {@code at} on
   * @param count values of the mask
   */
  public static void read(ByteBuffer mask, boolean[] attended, int at, int count) {
    int bytes = mask.limit() / count;
    for (int i = 0; i < count * bytes; i++) {
      attended[at + i / bytes] |= mask.get(i) != 0;
    }
  }
}
