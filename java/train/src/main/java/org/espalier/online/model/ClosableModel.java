package org.espalier.online.model;

import org.espalier.online.Learnable;

/** A model that is closed once, and not amid a step. */
abstract class ClosableModel implements Learnable {
  private volatile boolean closed;

  /** Frees its memory; called once, by who holds the monitor of this. */
  abstract void free();

  /** What is written after close would be somebody else's memory. */
  final void checkOpen() {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
  }

  @Override
  public boolean isClosed() {
    return closed;
  }

  @Override
  public void close() {
    Learnable.checkOutsideStep(this);
    synchronized (this) {
      if (!closed) {
        closed = true;
        free();
      }
    }
  }
}
