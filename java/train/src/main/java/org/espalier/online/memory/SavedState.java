package org.espalier.online.memory;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import org.espalier.InputException;

/** Pieces of a learner's saved state. What is read may be anything. Safe for several threads. */
public final class SavedState {
  private static final int MAX_TEXT = 1 << 20;

  /** So many floats are moved at once. */
  private static final int PIECE = 1 << 14;

  private SavedState() {}

  /** What to throw of a state that cannot have been written. */
  public static InputException damaged(String what) {
    return new InputException("the learner's saved state is damaged: " + what);
  }

  /**
   * A count.
   *
   * @throws InputException where it is below {@code least} or above {@code most}
   */
  public static int count(DataInput in, int least, int most) throws IOException {
    int value = in.readInt();
    if (value < least || value > most) {
      throw damaged("a count is " + value + "; " + least + " to " + most + " are right");
    }
    return value;
  }

  /** An array, of which the reader knows the length. */
  public static void write(DataOutput out, float[] values) throws IOException {
    write(out, FloatBuffer.wrap(values));
  }

  /**
   * An array of a known length.
   *
   * @throws InputException where it has another one
   */
  public static float[] floats(DataInput in, int length) throws IOException {
    float[] values = new float[length];
    read(in, FloatBuffer.wrap(values));
    return values;
  }

  /** All that a buffer holds, piece by piece. */
  private static void write(DataOutput out, FloatBuffer memory) throws IOException {
    out.writeInt(memory.capacity());
    ByteBuffer piece = ByteBuffer.allocate(4 * Math.min(PIECE, memory.capacity()));
    for (int at = 0; at < memory.capacity(); at += PIECE) {
      int count = Math.min(PIECE, memory.capacity() - at);
      piece.asFloatBuffer().put(0, memory, at, count);
      out.write(piece.array(), 0, 4 * count);
    }
  }

  /** Fills a buffer with as many floats as were written. */
  private static void read(DataInput in, FloatBuffer memory) throws IOException {
    count(in, memory.capacity(), memory.capacity());
    ByteBuffer piece = ByteBuffer.allocate(4 * Math.min(PIECE, memory.capacity()));
    for (int at = 0; at < memory.capacity(); at += PIECE) {
      int count = Math.min(PIECE, memory.capacity() - at);
      in.readFully(piece.array(), 0, 4 * count);
      memory.put(at, piece.asFloatBuffer(), 0, count);
    }
  }

  /** A text, or null. */
  public static void write(DataOutput out, String text) throws IOException {
    if (text == null) {
      out.writeInt(-1);
    } else {
      byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
      out.writeInt(bytes.length);
      out.write(bytes);
    }
  }

  /**
   * A text that was written, or null.
   *
   * @throws InputException where it is too long
   */
  public static String text(DataInput in) throws IOException {
    int length = count(in, -1, MAX_TEXT);
    if (length < 0) {
      return null;
    }
    byte[] bytes = new byte[length];
    in.readFully(bytes);
    return new String(bytes, StandardCharsets.UTF_8);
  }
}
