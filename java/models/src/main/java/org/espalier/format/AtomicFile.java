package org.espalier.format;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
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
  private static final int PROBE = 1 << 20;

  private final Path target;
  private final Path temporary;
  private final FileChannel channel;
  private final List<Runnable> checks = new ArrayList<>();
  private boolean renamed;

  private AtomicFile(Path target, Path temporary, FileChannel channel) {
    this.target = target;
    this.temporary = temporary;
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
    return Temporaries.create(
        real,
        temporary ->
            new AtomicFile(
                real,
                temporary,
                FileChannel.open(
                    temporary,
                    StandardOpenOption.CREATE_NEW,
                    StandardOpenOption.READ,
                    StandardOpenOption.WRITE)));
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
      throw Temporaries.cannotWrite(target, e);
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

  /**
   * Whether a file or folder has a name as unfinished ones have: where no process writes any more, it was
   * left behind by one that was killed.
   */
  public static boolean isTemporary(Path path) {
    return Temporaries.isName(path);
  }

  /** The temporary file, positioned where the last write ended; it can be read too. */
  public FileChannel channel() {
    return channel;
  }

  /**
   * Copies a file.
   *
   * @throws InputException if the source cannot be read, or as {@link #create} and {@link #commit} do
   */
  public static void copy(Path source, Path target) {
    try (AtomicFile file = create(target);
        FileChannel from = FileChannel.open(source, StandardOpenOption.READ)) {
      ByteBuffer buffer = ByteBuffer.allocate(1 << 20);
      while (from.read(buffer.clear()) >= 0) {
        file.write(buffer.flip());
      }
      file.commit();
    } catch (IOException e) {
      throw InputException.of("cannot copy " + source + " to " + target, e);
    }
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
      throw Temporaries.cannotWrite(target, e);
    }
  }

  /**
   * Takes room for so many bytes and gives it back, before native code writes to {@link #path()} that ends the process
   * where the disk is full. Afterwards the file is empty. Others may take the room meanwhile: it makes the end of the
   * process unlikely, not impossible.
   *
   * @throws InputException if the file system has no such room
   */
  public void probe(long bytes) {
    ByteBuffer zeros = ByteBuffer.allocate(PROBE);
    try {
      for (long left = bytes; left > 0; left -= PROBE) {
        write(zeros.clear().limit((int) Math.min(PROBE, left)));
      }
    } finally {
      try {
        channel.truncate(0);
      } catch (IOException e) {
        throw Temporaries.cannotWrite(target, e);
      }
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

  /**
   * Says what must hold before the file gets its name.
   *
   * @param check throws where something is missing; so does commit then, and the file can still be completed
   */
  public void beforeCommit(Runnable check) {
    checks.add(check);
  }

  /** Makes the file durable and gives it the target's name, replacing a file of that name. */
  public void commit() {
    commitAll(List.of(this));
  }

  /**
   * Deletes all unfinished files and folders of this process and refuses new ones, as the end of the JVM
   * does: for whoever calls {@link Runtime#halt}.
   */
  public static void abandonAll() {
    Temporaries.deleteAll();
  }

  /**
   * Makes all files durable and then renames them in the order of the list: what a file refers to
   * stands before it. If a rename fails, files of this call that replaced nothing are deleted
   * again. Where one is not complete, all stay as they are.
   *
   * @throws InputException if the file system refuses
   */
  public static void commitAll(List<AtomicFile> files) {
    for (AtomicFile file : files) {
      if (file.renamed || !file.channel.isOpen()) {
        throw new IllegalStateException(file.target + " is already committed or closed");
      }
      file.checks.forEach(Runnable::run);
    }
    for (AtomicFile file : files) {
      try {
        file.channel.force(true);
        file.channel.close();
      } catch (IOException e) {
        throw Temporaries.cannotWrite(file.target, e);
      }
    }
    if (!files.isEmpty()) {
      // One stretch under the lock: the end of the JVM comes before the first or after the last.
      Temporaries.locked(files.get(0).target, () -> renameAll(files));
    }
  }

  private static Void renameAll(List<AtomicFile> files) {
    List<Path> added = new ArrayList<>();
    try {
      for (AtomicFile file : files) {
        // Looked at now: others may have written it since this file was begun.
        boolean replaces = Files.exists(file.target, LinkOption.NOFOLLOW_LINKS);
        try {
          Files.move(
              file.temporary,
              file.target,
              StandardCopyOption.ATOMIC_MOVE,
              StandardCopyOption.REPLACE_EXISTING);
        } catch (IOException e) {
          throw Temporaries.cannotWrite(file.target, e);
        }
        file.renamed = true;
        Temporaries.renamed(file.temporary);
        if (!replaces) {
          added.add(file.target);
        }
        syncFolder(file.target.getParent());
      }
    } catch (InputException e) {
      for (Path path : added) {
        delete(path, e);
      }
      throw e;
    }
    return null;
  }

  /** Deletes the temporary file unless it was committed. */
  @Override
  public void close() {
    if (renamed) {
      return;
    }
    try {
      channel.close();
    } catch (IOException e) {
      throw Temporaries.cannotWrite(target, e);
    } finally {
      Temporaries.delete(temporary);
    }
  }

  /**
   * The error to throw when {@code cause} stopped a write through {@link #channel()}: it names the
   * target and the reason.
   */
  public InputException failure(IOException cause) {
    return Temporaries.cannotWrite(target, cause);
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
}
