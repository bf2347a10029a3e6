package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.train.TrainingListener.Validation;

/** How the parts of a saved run are laid out; what is read is refused where it cannot be of one. */
final class SavedRun {
  /** Start and end; the last digit is the version of the layout. */
  private static final int MAGIC = 0x45535007;

  private SavedRun() {}

  static void writeMagic(DataOutputStream out) throws IOException {
    out.writeInt(MAGIC);
  }

  static void requireMagic(DataInputStream in) throws IOException {
    int found = in.readInt();
    if (found != MAGIC) {
      throw new InputException(
          String.format("no saved run, or one of another version: %08x, not %08x", found, MAGIC));
    }
  }

  /** Names of weights may be longer than what {@link DataOutputStream#writeUTF} takes. */
  static void writeText(String text, DataOutputStream out) throws IOException {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    out.writeInt(bytes.length);
    out.write(bytes);
  }

  static String readText(DataInputStream in) throws IOException {
    int length = in.readInt();
    if (length < 0) {
      throw new InputException("the saved run is damaged: a text of " + length + " bytes");
    }
    byte[] bytes = in.readNBytes(length);
    if (bytes.length < length) {
      throw new EOFException();
    }
    return new String(bytes, StandardCharsets.UTF_8);
  }

  static void write(Validation v, DataOutputStream out) throws IOException {
    out.writeLong(v.step());
    out.writeDouble(v.loss());
    out.writeDouble(v.quality());
    out.writeBoolean(v.best());
  }

  static Validation readValidation(DataInputStream in) throws IOException {
    return new Validation(in.readLong(), in.readDouble(), in.readDouble(), in.readBoolean());
  }

  static void write(ActivationRange range, DataOutputStream out) throws IOException {
    out.writeFloat(range.min());
    out.writeFloat(range.max());
  }

  static ActivationRange readRange(DataInputStream in) throws IOException {
    float min = in.readFloat();
    float max = in.readFloat();
    if (!(min <= 0 && max >= 0 && Float.isFinite(max - min))) {
      throw new InputException("the saved run is damaged: a range [" + min + ", " + max + "]");
    }
    return new ActivationRange(min, max);
  }
}
