package org.espalier.format;

import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.locks.ReentrantLock;
import java.util.regex.Pattern;
import org.espalier.InputException;

/**
 * The files and folders of this process that have a temporary name, which the end of the JVM deletes.
 * They are made and renamed under one lock, so that Ctrl-C comes before or after, never between.
 */
final class Temporaries {
  private static final Pattern NAME = Pattern.compile("\\.espalier-[0-9a-f]{16}\\.tmp");
  private static final Set<Path> OPEN = ConcurrentHashMap.newKeySet();
  private static final ReentrantLock LOCK = new ReentrantLock();
  private static boolean stopping;

  static {
    Runtime.getRuntime()
        .addShutdownHook(new Thread(Temporaries::deleteAll, "espalier-temporaries"));
  }

  private Temporaries() {}

  /** Work on the file system. */
  @FunctionalInterface
  interface Work<T> {
    T run() throws IOException;
  }

  /** Makes a file or folder of the given name, which must not exist. */
  @FunctionalInterface
  interface Maker<T> {
    T make(Path temporary) throws IOException;
  }

  /**
   * Makes a file or folder beside {@code target} under a temporary name.
   *
   * @throws InputException that names the target, if that fails or the program is ending
   */
  static <T> T create(Path target, Maker<T> maker) {
    for (int attempt = 0; ; attempt++) {
      Path temporary =
          target.resolveSibling(
              String.format(".espalier-%016x.tmp", ThreadLocalRandom.current().nextLong()));
      boolean last = attempt == 9;
      T made =
          locked(
              target,
              () -> {
                try {
                  T result = maker.make(temporary);
                  OPEN.add(temporary);
                  return result;
                } catch (FileAlreadyExistsException e) {
                  if (last) {
                    throw e;
                  }
                  return null;
                }
              });
      if (made != null) {
        return made;
      }
    }
  }

  /**
   * Does work that must not meet the end of the JVM half-way.
   *
   * @throws InputException that names the target, if the work fails or the program is ending
   */
  static <T> T locked(Path target, Work<T> work) {
    LOCK.lock();
    try {
      if (stopping) {
        throw new InputException(target + " is not written: the program is ending");
      }
      return work.run();
    } catch (IOException e) {
      throw cannotWrite(target, e);
    } finally {
      LOCK.unlock();
    }
  }

  /** Whether this is such a name, in use or left behind by a process that was killed. */
  static boolean isName(Path path) {
    return NAME.matcher(path.getFileName().toString()).matches();
  }

  /** Whether this is a temporary name in use. */
  static boolean isOpen(Path temporary) {
    return OPEN.contains(temporary);
  }

  /** Says that the temporary name is not in use any more. */
  static void renamed(Path temporary) {
    OPEN.remove(temporary);
  }

  /** Deletes a temporary file, or a folder with all that is in it. */
  static void delete(Path temporary) {
    try {
      FileTree.delete(temporary);
      OPEN.remove(temporary);
    } catch (IOException e) {
      throw new InputException("cannot delete the temporary " + temporary + reason(e), e);
    }
  }

  static InputException cannotWrite(Path target, IOException e) {
    return new InputException("cannot write " + target + reason(e), e);
  }

  /** The reason of a failure, to be put behind a message. */
  static String reason(IOException e) {
    String reason = e instanceof FileSystemException f ? f.getReason() : e.getMessage();
    if (e instanceof AccessDeniedException) {
      reason = "permission denied";
    }
    return ": " + (reason == null ? e.getClass().getSimpleName() : reason);
  }

  /** Deletes all temporary files and folders, and refuses new ones. */
  static void deleteAll() {
    LOCK.lock();
    try {
      stopping = true;
      for (Path temporary : OPEN) {
        // The writing thread may still run: it may add a file between two passes, and its open
        // files
        // keep working when they are unlinked.
        for (int pass = 0;
            Files.exists(temporary, LinkOption.NOFOLLOW_LINKS) && pass < 10;
            pass++) {
          try {
            FileTree.delete(temporary);
          } catch (IOException e) {
            if (pass == 9) {
              System.err.println("left behind: " + temporary + reason(e));
            }
          }
        }
      }
    } finally {
      LOCK.unlock();
    }
  }
}
