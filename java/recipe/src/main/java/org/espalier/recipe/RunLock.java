package org.espalier.recipe;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.espalier.InputException;

/** Holds a run's folder for one process. It is released when the process ends, however it ends. */
final class RunLock implements AutoCloseable {
  private final Path file;
  private final FileChannel channel;

  /**
   * @param file of the lock, which may be deleted while it is held
   * @throws InputException where another run holds it
   */
  RunLock(Path file) {
    this.file = file;
    try {
      channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
    } catch (IOException e) {
      throw InputException.of("cannot open " + file, e);
    }
    if (!isFree()) {
      close();
      throw new InputException(
          "another run is at work in " + file.getParent() + "; wait for it, or name a new folder");
    }
  }

  private boolean isFree() {
    try {
      return channel.tryLock() != null;
    } catch (OverlappingFileLockException e) {
      return false; // a run of this process
    } catch (IOException e) {
      close();
      throw InputException.of("cannot lock " + file, e);
    }
  }

  @Override
  public void close() {
    try {
      channel.close();
    } catch (IOException e) {
      throw InputException.of("cannot close " + file, e);
    }
  }
}
