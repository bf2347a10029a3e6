package org.espalier.train;

/**
 * Training met a NaN or an infinity. The step was not done: weights and optimizer are those after the
 * last good step.
 */
public final class NonFiniteLossException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /** An error that says where training broke down, and what would help. */
  public NonFiniteLossException(String message) {
    super(message);
  }
}
