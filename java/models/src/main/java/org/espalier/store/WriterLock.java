package org.espalier.store;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.HashSet;
import java.util.Set;
import org.espalier.InputException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The lock of a store's only writer. Within this JVM a set holds it, against other processes a lock of the system,
 * which is dropped when the process dies.
 */
final class WriterLock implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(WriterLock.class);
  private static final long PAUSE_MILLIS = 10;

  /**
   * Stores that this JVM writes or is about to. Looked at before the lock file is opened: closing any
   * descriptor of that file would drop the process's lock on it.
   */
  private static final Set<Path> HERE = new HashSet<>();

  private final Path folder;
  private final FileChannel channel;

  private WriterLock(Path folder, FileChannel channel) {
    this.folder = folder;
    this.channel = channel;
  }

  /**
   * @param folder the store's real path
   */
  static WriterLock take(Path folder, Duration patience) {
    long deadline = System.nanoTime() + patience.toNanos();
    awaitOthersHere(folder, deadline);
    WriterLock taken = null;
    try {
      awaitOtherCopies(folder, deadline);
      FileChannel channel =
          FileChannel.open(
              folder.resolve(ModelStore.LOCK),
              StandardOpenOption.CREATE,
              StandardOpenOption.READ,
              StandardOpenOption.WRITE);
      try {
        FileLock lock = channel.tryLock();
        while (lock == null) {
          if (System.nanoTime() >= deadline) {
            throw new InputException(
                folder
                    + " is being written by process "
                    + owner(channel)
                    + "; one writes at a time: wait, or end that process");
          }
          Thread.sleep(PAUSE_MILLIS);
          lock = channel.tryLock();
        }
        sign(channel);
        taken = new WriterLock(folder, channel);
        return taken;
      } finally {
        if (taken == null) {
          channel.close();
        }
      }
    } catch (IOException e) {
      throw InputException.of("cannot lock the store " + folder, e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new InputException("interrupted while waiting for the writer of " + folder, e);
    } finally {
      if (taken == null) {
        leave(folder);
      }
    }
  }

  private static void awaitOthersHere(Path folder, long deadline) {
    synchronized (HERE) {
      while (!HERE.add(folder)) {
        long left = (deadline - System.nanoTime()) / 1_000_000;
        if (left <= 0) {
          throw new InputException(
              folder + " is being written by another thread of this process; one writes at a time");
        }
        try {
          HERE.wait(left);
        } catch (InterruptedException e) {
          Thread.currentThread().interrupt();
          throw new InputException("interrupted while waiting for the writer of " + folder, e);
        }
      }
    }
  }

  private static void awaitOtherCopies(Path folder, long deadline) throws InterruptedException {
    while (!Copies.claim(folder.resolve(ModelStore.LOCK))) {
      if (System.nanoTime() >= deadline) {
        throw new InputException(
            folder
                + " is being written by another copy of this library in this JVM, of another class"
                + " loader; one writes at a time");
      }
      Thread.sleep(PAUSE_MILLIS);
    }
  }

  private static void leave(Path folder) {
    Copies.drop(folder.resolve(ModelStore.LOCK));
    synchronized (HERE) {
      HERE.remove(folder);
      HERE.notifyAll();
    }
  }

  /** Writes who holds the lock. A full disk must not stop a process that comes to delete old versions. */
  private static void sign(FileChannel channel) {
    byte[] name = (ProcessHandle.current().pid() + "\n").getBytes(StandardCharsets.US_ASCII);
    try {
      channel.truncate(0);
      channel.write(ByteBuffer.wrap(name), 0);
    } catch (IOException e) {
      LOG.debug("the lock of a store is taken and does not say by whom", e);
    }
  }

  private static String owner(FileChannel channel) throws IOException {
    ByteBuffer buffer = ByteBuffer.allocate(32);
    channel.read(buffer, 0);
    String text = new String(buffer.array(), 0, buffer.position(), StandardCharsets.US_ASCII);
    return text.strip().matches("[0-9]{1,19}") ? text.strip() : "(unknown)";
  }

  @Override
  public void close() {
    try {
      channel.close(); // releases the lock
    } catch (IOException e) {
      throw InputException.of("cannot unlock the store " + folder, e);
    } finally {
      leave(folder);
    }
  }
}
