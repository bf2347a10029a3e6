package org.espalier.format;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.locks.ReentrantLock;
import org.espalier.InputException;
import org.slf4j.LoggerFactory;

/**
 * A file that is written beside its target under a temporary name and takes the target's name only
 * when it is complete: a process that is killed leaves the old file or the new one, never a part.
 *
 * <pre>{@code
 * try (AtomicFile file = AtomicFile.create(target, input)) {
 *   file.write(bytes);
 *   file.commit();
 * }
 * }</pre>
 *
 * <p>{@link #close()} without {@link #commit()} deletes the temporary file, and so does the end of
 * the JVM by Ctrl-C or {@code System.exit}. What cannot be written (no such folder, no permission,
 * a full disk) is an {@link InputException} that names the target.
 *
 * <p>Do not map the channel for writing: a full disk would then end the JVM by a signal. One
 * instance belongs to one thread; different instances are independent.
 */
public final class AtomicFile implements AutoCloseable {
  private static final Set<AtomicFile> OPEN = ConcurrentHashMap.newKeySet();

  /** Held while files take their names, so that Ctrl-C comes before or after, never between. */
  private static final ReentrantLock RENAMING = new ReentrantLock();

  private static boolean stopping;

  static {
    Runtime.getRuntime().addShutdownHook(new Thread(AtomicFile::deleteAll, "espalier-temporaries"));
  }

  private final Path target;
  private final Path temporary;
  private final boolean replaces;
  private final FileChannel channel;
  private boolean renamed;

  private AtomicFile(Path target, Path temporary, boolean replaces, FileChannel channel) {
    this.target = target;
    this.temporary = temporary;
    this.replaces = replaces;
    this.channel = channel;
  }

  /**
   * Creates the temporary file of {@code target}.
   *
   * @param target the file to write; a symbolic link to a file stands for that file
   * @param inputs files that {@code target} must not be, compared as files, not as names
   * @throws InputException if the target is a directory or a device, is one of the inputs, may not
   *     be written, or its folder is missing or not writable
   */
  public static AtomicFile create(Path target, Path... inputs) {
    Path real = check(target, inputs);
    Path folder = real.getParent();
    boolean replaces = Files.exists(real);
    for (int attempt = 0; ; attempt++) {
      Path temporary =
          folder.resolve(
              String.format(".espalier-%016x.tmp", ThreadLocalRandom.current().nextLong()));
      RENAMING.lock();
      try {
        if (stopping) {
          throw new InputException(target + " is not written: the program is ending");
        }
        FileChannel channel =
            FileChannel.open(
                temporary,
                StandardOpenOption.CREATE_NEW,
                StandardOpenOption.READ,
                StandardOpenOption.WRITE);
        AtomicFile file = new AtomicFile(real, temporary, replaces, channel);
        OPEN.add(file);
        return file;
      } catch (FileAlreadyExistsException e) {
        if (attempt == 9) {
          throw cannotWrite(target, e);
        }
      } catch (IOException e) {
        throw cannotWrite(target, e);
      } finally {
        RENAMING.unlock();
      }
    }
  }

  /**
   * Checks {@code target} as {@link #create} does and creates nothing, so that a long computation
   * can fail before it starts.
   *
   * @return the absolute path that would be written, with a symbolic link followed
   */
  public static Path check(Path target, Path... inputs) {
    if (Files.isDirectory(target)) {
      throw new InputException("cannot write " + target + ": it is a directory; name a file");
    }
    Path absolute = target.toAbsolutePath().normalize();
    if (target.getFileName() == null || absolute.getParent() == null) {
      throw new InputException("cannot write '" + target + "': it names no file");
    }
    boolean exists = Files.exists(target);
    if (!exists && Files.exists(target, LinkOption.NOFOLLOW_LINKS)) {
      throw new InputException(
          "cannot write " + target + ": it is a symbolic link to a file that does not exist");
    }
    if (exists && !Files.isRegularFile(target)) {
      throw new InputException("cannot write " + target + ": it exists and is not a regular file");
    }
    Path real;
    try {
      if (exists) {
        real = target.toRealPath();
      } else {
        Path folder = target.toAbsolutePath().getParent();
        if (!Files.exists(folder)) {
          throw new InputException(
              "cannot write " + target + ": the folder " + folder + " does not exist");
        }
        if (!Files.isDirectory(folder)) {
          throw new InputException("cannot write " + target + ": " + folder + " is not a folder");
        }
        real = folder.toRealPath().resolve(target.getFileName());
      }
      for (Path input : inputs) {
        if (exists && Files.exists(input) && Files.isSameFile(real, input)) {
          throw new InputException(
              "cannot write "
                  + target
                  + ": it is the input "
                  + input
                  + ", which is never modified; name another file");
        }
      }
    } catch (IOException e) {
      throw cannotWrite(target, e);
    }
    if (exists && !Files.isWritable(real)) {
      throw new InputException("cannot write " + target + ": the file is write-protected");
    }
    if (!Files.isWritable(real.getParent())) {
      throw new InputException(
          "cannot write " + target + ": the folder " + real.getParent() + " is not writable");
    }
    return real;
  }

  /** The temporary file, positioned where the last write ended; it can be read too. */
  public FileChannel channel() {
    return channel;
  }

  /** The path of the temporary file. */
  public Path path() {
    return temporary;
  }

  /** The absolute path that {@link #commit()} gives the file, with a symbolic link followed. */
  public Path target() {
    return target;
  }

  /**
   * Writes all that remains in {@code bytes}.
   *
   * @throws InputException if the file system refuses, for instance because it is full
   */
  public void write(ByteBuffer bytes) {
    try {
      while (bytes.hasRemaining()) {
        channel.write(bytes);
      }
    } catch (IOException e) {
      throw cannotWrite(target, e);
    }
  }

  /** An unbuffered stream into the file; its failures are the {@link InputException}s of write. */
  public OutputStream stream() {
    return new OutputStream() {
      @Override
      public void write(int b) {
        AtomicFile.this.write(ByteBuffer.wrap(new byte[] {(byte) b}));
      }

      @Override
      public void write(byte[] bytes, int offset, int length) {
        AtomicFile.this.write(ByteBuffer.wrap(bytes, offset, length));
      }
    };
  }

  /** Makes the file durable and gives it the target's name, replacing a file of that name. */
  public void commit() {
    commitAll(List.of(this));
  }

  /**
   * Makes all files durable and then renames them in the order of the list: what a file refers to
   * stands before it. If a rename fails, files of this call that replaced nothing are deleted
   * again.
   *
   * @throws InputException if the file system refuses
   */
  public static void commitAll(List<AtomicFile> files) {
    for (AtomicFile file : files) {
      if (file.renamed || !file.channel.isOpen()) {
        throw new IllegalStateException(file.target + " is already committed or closed");
      }
      try {
        file.channel.force(true);
        file.channel.close();
      } catch (IOException e) {
        throw cannotWrite(file.target, e);
      }
    }
    List<AtomicFile> done = new ArrayList<>();
    RENAMING.lock();
    try {
      for (AtomicFile file : files) {
        if (stopping) {
          throw new InputException(file.target + " is not written: the program is ending");
        }
        try {
          Files.move(
              file.temporary,
              file.target,
              StandardCopyOption.ATOMIC_MOVE,
              StandardCopyOption.REPLACE_EXISTING);
        } catch (IOException e) {
          throw cannotWrite(file.target, e);
        }
        file.renamed = true;
        OPEN.remove(file);
        done.add(file);
        syncFolder(file.target.getParent());
      }
    } catch (InputException e) {
      for (AtomicFile file : done) {
        if (!file.replaces) {
          delete(file.target, e);
        }
      }
      throw e;
    } finally {
      RENAMING.unlock();
    }
  }

  /** Deletes the temporary file unless it was committed. */
  @Override
  public void close() {
    if (renamed) {
      return;
    }
    try {
      channel.close();
      Files.deleteIfExists(temporary);
      OPEN.remove(this);
    } catch (IOException e) {
      throw new InputException("cannot delete the temporary file " + temporary + reason(e), e);
    }
  }

  /**
   * The error to throw when {@code cause} stopped a write through {@link #channel()}: it names the
   * target and the reason.
   */
  public InputException failure(IOException cause) {
    return cannotWrite(target, cause);
  }

  private static InputException cannotWrite(Path target, IOException e) {
    return new InputException("cannot write " + target + reason(e), e);
  }

  private static String reason(IOException e) {
    String reason = e instanceof FileSystemException f ? f.getReason() : e.getMessage();
    if (e instanceof AccessDeniedException) {
      reason = "permission denied";
    }
    return ": " + (reason == null ? e.getClass().getSimpleName() : reason);
  }

  /**
   * A rename is durable once its folder is; file systems that cannot sync a folder need no sync.
   */
  private static void syncFolder(Path folder) {
    try (FileChannel c = FileChannel.open(folder, StandardOpenOption.READ)) {
      c.force(true);
    } catch (IOException e) {
      LoggerFactory.getLogger(AtomicFile.class)
          .debug("the folder {} could not be synced", folder, e);
    }
  }

  private static void delete(Path path, Exception because) {
    try {
      Files.deleteIfExists(path);
    } catch (IOException e) {
      because.addSuppressed(e);
    }
  }

  private static void deleteAll() {
    RENAMING.lock();
    try {
      stopping = true;
      for (AtomicFile file : OPEN) {
        // The writing thread may still run: its channel keeps working on the unlinked file.
        try {
          Files.deleteIfExists(file.temporary);
        } catch (IOException e) {
          System.err.println("left behind: " + file.temporary + reason(e));
        }
      }
    } finally {
      RENAMING.unlock();
    }
  }
}
