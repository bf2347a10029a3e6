package org.espalier.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.stream.Stream;
import org.espalier.InputException;

/**
 * A folder that is filled beside its target under a temporary name and takes the target's name only
 * when it is complete: a process that is killed leaves no folder of that name or the whole one.
 *
 * <p>{@link #close()} without {@link #commit()} deletes the temporary folder, and so does the end
 * of the JVM by Ctrl-C or {@code System.exit}. What cannot be written is an {@link InputException}
 * that names the file.
 *
 * <p>One instance belongs to one thread; different instances are independent.
 */
public final class AtomicFolder implements AutoCloseable {
  private final Path target;
  private final Path temporary;
  private boolean renamed;

  private AtomicFolder(Path target, Path temporary) {
    this.target = target;
    this.temporary = temporary;
  }

  /**
   * Creates the temporary folder of {@code target}.
   *
   * @param target the folder to write: it does not exist or is empty
   * @throws InputException if it exists and is not an empty folder, or cannot be made
   */
  public static AtomicFolder create(Path target) {
    Path real = check(target);
    return Temporaries.create(
        real,
        temporary -> {
          Files.createDirectory(temporary);
          return new AtomicFolder(real, temporary);
        });
  }

  /**
   * Checks {@code target} as {@link #create} does and creates nothing, so that a long computation
   * can fail before it starts.
   *
   * @return the absolute path that would be written
   */
  public static Path check(Path target) {
    Path absolute = target.toAbsolutePath().normalize();
    if (absolute.getFileName() == null || absolute.getParent() == null) {
      throw new InputException("cannot write '" + target + "': it names no folder");
    }
    try {
      if (Files.exists(absolute, LinkOption.NOFOLLOW_LINKS)) {
        if (!Files.isDirectory(absolute, LinkOption.NOFOLLOW_LINKS)) {
          throw new InputException(
              "cannot write " + target + ": it exists and is not a folder; name a new folder");
        }
        try (Stream<Path> content = Files.list(absolute)) {
          if (content.findAny().isPresent()) {
            throw new InputException(
                "cannot write " + target + ": the folder is not empty; name a new folder");
          }
        }
      }
      Path parent = absolute.getParent();
      if (!Files.isDirectory(parent)) {
        throw new InputException(
            "cannot write " + target + ": the folder " + parent + " does not exist");
      }
      Path real = parent.toRealPath();
      if (!Files.isWritable(real)) {
        throw new InputException(
            "cannot write " + target + ": the folder " + real + " is not writable");
      }
      return real.resolve(absolute.getFileName());
    } catch (IOException e) {
      throw Temporaries.cannotWrite(target, e);
    }
  }

  /** The path of the temporary folder. */
  public Path path() {
    return temporary;
  }

  /** The absolute path that {@link #commit()} gives the folder. */
  public Path target() {
    return target;
  }

  /**
   * Creates an empty file in the temporary folder, and the folders on its way.
   *
   * @param name a relative path inside the folder
   * @return its channel, for reading and writing, which the caller closes
   */
  public FileChannel create(String name) {
    Path file = inside(name);
    // Under the lock, so that nothing new appears while the end of the JVM deletes.
    return Temporaries.locked(
        target.resolve(name),
        () -> {
          Files.createDirectories(file.getParent());
          return FileChannel.open(
              file,
              StandardOpenOption.CREATE_NEW,
              StandardOpenOption.READ,
              StandardOpenOption.WRITE);
        });
  }

  /** Creates a file in the temporary folder, of the bytes that remain. */
  public void write(String name, ByteBuffer bytes) {
    try (FileChannel channel = create(name)) {
      while (bytes.hasRemaining()) {
        channel.write(bytes);
      }
    } catch (IOException e) {
      throw failure(name, e);
    }
  }

  /** Copies the content of {@code source}, a file, to {@code name} in the temporary folder. */
  public void copy(Path source, String name) {
    try (FileChannel from = openInput(source);
        FileChannel to = create(name)) {
      long size = from.size();
      for (long at = 0; at < size; ) {
        long copied = from.transferTo(at, size - at, to);
        if (copied <= 0) {
          throw new InputException("cannot read " + source + ": it became shorter meanwhile");
        }
        at += copied;
      }
    } catch (IOException e) {
      throw failure(name, e);
    }
  }

  /**
   * Gives a file one more name, in the temporary folder, or copies it where the file system has no second names. Neither
   * may be changed after that.
   */
  public void link(Path source, String name) {
    Path file = inside(name);
    boolean linked =
        Temporaries.locked(
            target.resolve(name),
            () -> {
              Files.createDirectories(file.getParent());
              try {
                Files.createLink(file, source);
                return true;
              } catch (FileAlreadyExistsException e) {
                throw e;
              } catch (IOException | UnsupportedOperationException e) {
                return false; // the copy says what is wrong, if anything is
              }
            });
    if (!linked) {
      copy(source, name);
    }
  }

  private static FileChannel openInput(Path source) {
    try {
      return FileChannel.open(source, StandardOpenOption.READ);
    } catch (IOException e) {
      throw new InputException("cannot read " + source + Temporaries.reason(e), e);
    }
  }

  private Path inside(String name) {
    Path file = temporary.resolve(name).normalize();
    if (!file.startsWith(temporary) || file.equals(temporary)) {
      throw new IllegalArgumentException("'" + name + "' is not a path inside the folder");
    }
    return file;
  }

  /** Makes the files durable and gives the folder the target's name. */
  public void commit() {
    if (renamed || !Temporaries.isOpen(temporary)) {
      throw new IllegalStateException(target + " is already committed or closed");
    }
    try {
      Files.walkFileTree(temporary, new Syncing());
    } catch (IOException e) {
      throw Temporaries.cannotWrite(target, e);
    }
    Temporaries.locked(
        target,
        () -> {
          Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
          renamed = true;
          Temporaries.renamed(temporary);
          sync(target.getParent());
          return null;
        });
  }

  /** Deletes the temporary folder unless it was committed. */
  @Override
  public void close() {
    if (!renamed) {
      Temporaries.delete(temporary);
    }
  }

  /** The error to throw when {@code cause} stopped the writing of the file {@code name}. */
  public InputException failure(String name, IOException cause) {
    return Temporaries.cannotWrite(target.resolve(name), cause);
  }

  private static void sync(Path path) throws IOException {
    try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
      channel.force(true);
    }
  }

  private static final class Syncing extends SimpleFileVisitor<Path> {
    @Override
    public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) throws IOException {
      sync(file);
      return FileVisitResult.CONTINUE;
    }

    @Override
    public FileVisitResult postVisitDirectory(Path folder, IOException e) throws IOException {
      if (e != null) {
        throw e;
      }
      sync(folder);
      return FileVisitResult.CONTINUE;
    }
  }
}
