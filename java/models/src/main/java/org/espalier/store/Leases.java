package org.espalier.store;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/**
 * Which versions are being read, across processes: readers hold a shared lock on the byte of the
 * file {@code leases} whose number is the version's, the collector takes it exclusively. The system
 * drops the locks of a process that dies.
 *
 * <p>POSIX drops all locks of a process on a file as soon as the process closes any descriptor of
 * it, so one JVM has one channel a store, and counts by itself. Thread safe.
 */
final class Leases {
  private static final Map<Path, Leases> OPEN = new HashMap<>();

  private final Path file;
  private final FileChannel channel;
  private final Map<Long, FileLock> locks = new HashMap<>();
  private final Map<Long, Integer> readers = new HashMap<>();
  private final Set<Long> claimed = new HashSet<>();
  private int users;

  private Leases(Path file) throws IOException {
    this.file = file;
    this.channel = open(file);
  }

  private static FileChannel open(Path file) throws IOException {
    try {
      return FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE);
    } catch (AccessDeniedException e) {
      return FileChannel.open(file, StandardOpenOption.READ); // may read but not collect
    } catch (FileSystemException e) {
      if (e.getReason() != null && e.getReason().contains("Read-only")) {
        return FileChannel.open(file, StandardOpenOption.READ);
      }
      throw e;
    }
  }

  /** The leases of a store; each call needs a {@link #leave()}. */
  static Leases join(Path file) {
    synchronized (OPEN) {
      try {
        Path real = file.toRealPath();
        Leases leases = OPEN.get(real);
        if (leases == null) {
          leases = first(real);
          OPEN.put(real, leases);
        }
        leases.users++;
        return leases;
      } catch (NoSuchFileException e) {
        throw new InputException(
            file.getParent()
                + " is damaged: "
                + file.getFileName()
                + " is missing; an empty file of that name repairs it, while nobody uses the store",
            e);
      } catch (IOException e) {
        throw InputException.of("cannot open " + file, e);
      }
    }
  }

  private static Leases first(Path file) throws IOException {
    if (!Copies.claim(file)) {
      throw new InputException(
          file.getParent()
              + " is being read by another copy of this library in this JVM, of another class"
              + " loader; one copy uses a store: where applications share a JVM, they share the"
              + " library too");
    }
    Leases leases = null;
    try {
      leases = new Leases(file);
      return leases;
    } finally {
      if (leases == null) {
        Copies.drop(file);
      }
    }
  }

  void leave() {
    synchronized (OPEN) {
      if (--users > 0) {
        return;
      }
      OPEN.remove(file);
      try {
        channel.close();
      } catch (IOException e) {
        throw InputException.of("cannot close " + file, e);
      } finally {
        Copies.drop(file);
      }
    }
  }

  /** Keeps a version from being collected until {@link #release}. */
  synchronized void hold(long version) {
    // A claim of this JVM: the system would call a lock beside it an error instead of waiting.
    boolean interrupted = false;
    while (claimed.contains(version)) {
      try {
        wait();
      } catch (InterruptedException e) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    if (!readers.containsKey(version)) {
      try {
        locks.put(version, channel.lock(version, 1, true));
      } catch (IOException e) {
        throw InputException.of("cannot lock " + file, e);
      }
    }
    readers.merge(version, 1, Integer::sum);
  }

  synchronized void release(long version) {
    if (readers.merge(version, -1, Integer::sum) == 0) {
      readers.remove(version);
      release(locks.remove(version));
    }
  }

  /** Runs {@code collect} while nobody reads the version; false where somebody does. */
  boolean unread(long version, Runnable collect) {
    FileLock lock;
    synchronized (this) {
      if (readers.containsKey(version) || claimed.contains(version)) {
        return false;
      }
      try {
        lock = channel.tryLock(version, 1, false);
      } catch (IOException e) {
        throw InputException.of("cannot lock " + file, e);
      }
      if (lock == null) {
        return false;
      }
      claimed.add(version);
    }
    try {
      collect.run();
    } finally {
      synchronized (this) {
        release(lock);
        claimed.remove(version);
        notifyAll();
      }
    }
    return true;
  }

  private void release(FileLock lock) {
    try {
      lock.release();
    } catch (IOException e) {
      throw InputException.of("cannot unlock " + file, e);
    }
  }
}
