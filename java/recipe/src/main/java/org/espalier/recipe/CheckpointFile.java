package org.espalier.recipe;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.DigestInputStream;
import java.security.DigestOutputStream;
import java.security.MessageDigest;
import java.util.Arrays;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.Sha256;

/**
 * The state of a run in one file: 8 bytes of a mark, 32 bytes of what the run is of, the length of a
 * JSON text (4 bytes) and the text, the state of the training, and the SHA-256 of all that. It is
 * written under another name and takes its own when it is whole, so that there always is a good one;
 * nothing of it is used before its sum is found right.
 */
final class CheckpointFile {
  private static final byte[] MARK = {'E', 'S', 'P', 'R', 'U', 'N', 1, '\n'};
  private static final int SUM = 32;
  private static final int MAX_JSON = 1 << 28;

  private final Path path;
  private final byte[] identity;

  /**
   * @param identity 32 bytes that a run of the same recipe on the same inputs has too
   */
  CheckpointFile(Path path, byte[] identity) {
    this.path = path;
    this.identity = identity.clone();
  }

  /** Writes the state of the training. */
  @FunctionalInterface
  interface Writer {
    void write(OutputStream out) throws IOException;
  }

  /** Reads the state of the training. */
  @FunctionalInterface
  interface Reader {
    void read(InputStream in) throws IOException;
  }

  boolean exists() {
    return Files.exists(path);
  }

  /**
   * Replaces the checkpoint.
   *
   * @throws InputException where it cannot be written; the one before stays
   */
  void write(ObjectNode progress, Writer state) {
    try (AtomicFile file = AtomicFile.create(path)) {
      MessageDigest sum = Sha256.digest();
      // Not closed: that would close the channel before it is made durable.
      OutputStream out =
          new DigestOutputStream(new BufferedOutputStream(file.stream(), 1 << 20), sum);
      byte[] json = new ObjectMapper().writeValueAsBytes(progress);
      out.write(MARK);
      out.write(identity);
      for (int shift = 24; shift >= 0; shift -= 8) {
        out.write(json.length >>> shift);
      }
      out.write(json);
      state.write(out);
      ((DigestOutputStream) out).on(false);
      out.write(sum.digest());
      out.flush();
      file.commit();
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("the progress of a run is no JSON", e);
    } catch (IOException e) {
      throw new InputException("cannot write the checkpoint " + path + ": " + e.getMessage(), e);
    }
  }

  /**
   * Reads the checkpoint.
   *
   * @return what was given as {@code progress}
   * @throws InputException where it is damaged or of another run
   */
  ObjectNode read(Reader state) {
    try {
      checkSum();
      try (DataInputStream in =
          new DataInputStream(new BufferedInputStream(Files.newInputStream(path), 1 << 20))) {
        in.skipNBytes(MARK.length);
        byte[] of = new byte[identity.length];
        in.readFully(of);
        if (!Arrays.equals(of, identity)) {
          throw new InputException(
              path
                  + " is of another run: the recipe, its --set options or its input files have"
                  + " changed; name a new folder, or restore them");
        }
        int length = in.readInt();
        if (length < 0 || length > MAX_JSON) {
          throw damaged(null);
        }
        byte[] json = new byte[length];
        in.readFully(json);
        ObjectNode progress = (ObjectNode) new ObjectMapper().readTree(json);
        state.read(in);
        return progress;
      }
    } catch (EOFException | JsonProcessingException e) {
      throw damaged(e);
    } catch (IOException e) {
      throw new InputException("cannot read the checkpoint " + path + ": " + e.getMessage(), e);
    }
  }

  private InputException damaged(Exception cause) {
    return new InputException(
        path + " is damaged; without --resume into a new folder the run begins anew", cause);
  }

  private void checkSum() throws IOException {
    long size = Files.size(path);
    if (size < MARK.length + identity.length + 4 + SUM) {
      throw damaged(null);
    }
    MessageDigest sum = Sha256.digest();
    try (InputStream file = new BufferedInputStream(Files.newInputStream(path), 1 << 20);
        DigestInputStream in = new DigestInputStream(file, sum)) {
      byte[] mark = in.readNBytes(MARK.length);
      byte[] buffer = new byte[1 << 20];
      for (long left = size - MARK.length - SUM; left > 0; ) {
        int read = in.read(buffer, 0, (int) Math.min(left, buffer.length));
        if (read < 0) {
          throw damaged(null);
        }
        left -= read;
      }
      byte[] actual = sum.digest();
      in.on(false);
      if (!Arrays.equals(mark, MARK) || !Arrays.equals(actual, in.readNBytes(SUM))) {
        throw damaged(null);
      }
    }
  }
}
