package org.espalier.cli;

import java.io.IOException;
import java.io.InputStream;
import java.io.InterruptedIOException;
import java.util.Arrays;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Standard input or a pipe, read by a thread of its own: who waits for bytes can still be asked to stop.
 */
final class PipeSource implements LineReader.Source {
  private static final long PATIENCE_MILLIS = 100;
  private static final byte[] END = {};

  private final BlockingQueue<byte[]> chunks = new ArrayBlockingQueue<>(16);
  private volatile IOException failure;
  private byte[] chunk = END;
  private int at;
  private boolean ended;

  PipeSource(InputStream in) {
    Thread thread = new Thread(() -> pump(in), "espalier-input");
    thread.setDaemon(true);
    thread.start();
  }

  private void pump(InputStream in) {
    byte[] buffer = new byte[1 << 16];
    try {
      int read;
      do {
        try {
          read = in.read(buffer);
        } catch (IOException e) {
          failure = e;
          read = -1;
        }
        chunks.put(read < 0 ? END : Arrays.copyOf(buffer, read));
      } while (read >= 0);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  @Override
  public int read(byte[] buffer) throws IOException {
    if (at == chunk.length && !ended) {
      byte[] next;
      try {
        next = chunks.poll(PATIENCE_MILLIS, TimeUnit.MILLISECONDS);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        throw new InterruptedIOException("interrupted");
      }
      if (next == null) {
        return 0;
      }
      ended = next == END;
      chunk = next;
      at = 0;
    }
    if (ended) {
      if (failure != null) {
        throw failure;
      }
      return -1;
    }
    int taken = Math.min(buffer.length, chunk.length - at);
    System.arraycopy(chunk, at, buffer, 0, taken);
    at += taken;
    return taken;
  }
}
