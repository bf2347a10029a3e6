package org.espalier.online;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.IOException;
import java.io.StringWriter;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Locale;
import org.espalier.InputException;

/**
 * A file of examples that were not learned, or should not have been, one JSON object a line, for a
 * person to look at. Thread safe.
 */
public final class Quarantine implements AutoCloseable {
  private final Path file;
  private final long limit;
  private final FileChannel channel;
  private final JsonFactory json = new JsonFactory();
  private long count;
  private long lost;

  private Quarantine(Path file, long limit, FileChannel channel) {
    this.file = file;
    this.limit = limit;
    this.channel = channel;
  }

  /**
   * Opens a file and appends to it.
   *
   * @param limit bytes at which it is full; what comes then is counted and not written
   * @throws InputException if it cannot be written
   */
  public static Quarantine open(Path file, long limit) {
    try {
      return new Quarantine(
          file,
          limit,
          FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.APPEND));
    } catch (IOException e) {
      throw InputException.of("cannot write the quarantine " + file, e);
    }
  }

  /**
   * Adds an example.
   *
   * @return false where the file is full or could not be written: the example is only counted
   */
  public boolean add(Event.Kind why, long step, Example example) {
    StringWriter line = new StringWriter();
    try (JsonGenerator g = json.createGenerator(line)) {
      g.writeStartObject();
      g.writeStringField("why", why.name().toLowerCase(Locale.ROOT));
      g.writeNumberField("step", step);
      if (example.id() != null) {
        g.writeStringField("id", example.id());
      }
      if (example.label() >= 0) {
        g.writeNumberField("label", example.label());
      } else {
        write(g, "values", example.values());
      }
      write(g, "features", example.features());
      g.writeEndObject();
    } catch (IOException e) {
      throw new IllegalStateException("a string cannot be written", e);
    }
    return append(line.toString());
  }

  /** Adds a line of an input that could not be read. */
  public boolean addLine(long number, String reason, String text) {
    StringWriter line = new StringWriter();
    try (JsonGenerator g = json.createGenerator(line)) {
      g.writeStartObject();
      g.writeStringField("why", "malformed");
      g.writeNumberField("line", number);
      g.writeStringField("reason", reason);
      g.writeStringField("text", text);
      g.writeEndObject();
    } catch (IOException e) {
      throw new IllegalStateException("a string cannot be written", e);
    }
    return append(line.toString());
  }

  /** NaN and infinities, which JSON lacks, are strings. */
  private static void write(JsonGenerator g, String name, float[] values) throws IOException {
    g.writeArrayFieldStart(name);
    for (float v : values) {
      if (Float.isFinite(v)) {
        g.writeNumber(v);
      } else {
        g.writeString(Float.toString(v));
      }
    }
    g.writeEndArray();
  }

  private synchronized boolean append(String line) {
    count++;
    try {
      ByteBuffer bytes = ByteBuffer.wrap((line + "\n").getBytes(StandardCharsets.UTF_8));
      long before = channel.size();
      if (before + bytes.remaining() > limit) {
        lost++;
        return false;
      }
      try {
        while (bytes.hasRemaining()) {
          channel.write(bytes);
        }
      } catch (IOException e) {
        channel.truncate(before); // half a line would spoil the next one
        throw e;
      }
      return true;
    } catch (IOException e) {
      lost++; // a full disk must not stop the learning
      return false;
    }
  }

  /** How many were added. */
  public synchronized long count() {
    return count;
  }

  /** How many of them could not be written. */
  public synchronized long lost() {
    return lost;
  }

  @Override
  public synchronized void close() {
    try {
      channel.close();
    } catch (IOException e) {
      throw InputException.of("cannot close the quarantine " + file, e);
    }
  }
}
