package org.espalier.device;

import java.lang.ref.Cleaner;
import org.bytedeco.javacpp.Pointer;
import org.slf4j.LoggerFactory;

/**
 * Memory that an object has of the system until it is closed, released once. Where the object was forgotten, that
 * is said when the garbage collector finds it, and the memory is released then. Thread safe.
 */
final class NativeMemory {
  private static final Cleaner CLEANER = Cleaner.create();

  /** Gives memory back to where it is from. */
  interface Release {
    void of(Pointer memory);
  }

  private final Block block;
  private final Cleaner.Cleanable cleanable;

  /**
   * @param owner that closes it; must be reachable neither from the release nor from the name
   * @param name what the memory is, for people
   */
  NativeMemory(Object owner, String name, long address, long bytes, Release release) {
    block = new Block(name, address, bytes, release);
    cleanable = CLEANER.register(owner, block);
  }

  /**
   * @throws IllegalStateException after close
   */
  long address() {
    if (block.released) {
      throw new IllegalStateException(block.name + " is closed");
    }
    return block.address;
  }

  long bytes() {
    return block.bytes;
  }

  /** Releases the memory; closing twice does nothing. */
  void close() {
    block.closed = true;
    cleanable.clean();
  }

  /** What the cleaner runs, once; it must not reach the owner. */
  private static final class Block implements Runnable {
    final String name;
    final long address;
    final long bytes;
    final Release release;
    volatile boolean closed;
    volatile boolean released;

    Block(String name, long address, long bytes, Release release) {
      this.name = name;
      this.address = address;
      this.bytes = bytes;
      this.release = release;
    }

    @Override
    public void run() {
      released = true;
      release.of(Tensor.at(address, bytes));
      if (!closed) {
        LoggerFactory.getLogger(NativeMemory.class)
            .warn("{} was never closed; use try-with-resources", name);
      }
    }
  }
}
