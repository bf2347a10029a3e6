package org.espalier.evaluate;

import java.util.concurrent.locks.ReadWriteLock;
import java.util.concurrent.locks.ReentrantReadWriteLock;
import java.util.function.Supplier;

/**
 * Features that a fixed encoder gives in ONNX Runtime, each of one example alone, so that they do not depend on what else is
 * computed. Safe for several threads; to close waits for features that are being made.
 */
public abstract class EncoderFeatures implements AutoCloseable {
  /** Read where features are made, written by who closes. */
  private final ReadWriteLock use = new ReentrantReadWriteLock();

  private boolean closed;

  /** How many features an example has. */
  public abstract int width();

  /** Closes what the features are made with; called once, when none are being made. */
  abstract void release();

  /**
   * What is made while this is open.
   *
   * @throws IllegalStateException after close
   */
  final float[] whileOpen(Supplier<float[]> features) {
    use.readLock().lock();
    try {
      if (closed) {
        throw new IllegalStateException("the encoder is closed");
      }
      return features.get();
    } finally {
      use.readLock().unlock();
    }
  }

  /** Scales features to length 1; zeros stay. */
  static float[] normalized(float[] features) {
    double squares = 0;
    for (float x : features) {
      squares += (double) x * x;
    }
    double inverse = squares > 0 ? 1 / Math.sqrt(squares) : 0;
    for (int i = 0; i < features.length; i++) {
      features[i] = (float) (features[i] * inverse);
    }
    return features;
  }

  @Override
  public final void close() {
    use.writeLock().lock();
    try {
      if (!closed) {
        closed = true;
        release();
      }
    } finally {
      use.writeLock().unlock();
    }
  }
}
