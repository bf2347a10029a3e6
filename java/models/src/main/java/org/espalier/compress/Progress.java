package org.espalier.compress;

/** Hears how far a long run has come; called often, by the thread that runs it. */
@FunctionalInterface
public interface Progress {
  /** Nobody listens. */
  Progress NONE = (phase, done, total) -> {};

  /** What a run does, in this order; a run may skip one. */
  enum Phase {
    /** Finds the weights to prune. */
    SELECT,
    /** Computes and writes the output. */
    WRITE
  }

  /**
   * @param phase what is being done
   * @param done bytes of the input that this phase is through with
   * @param total bytes of the input that this phase goes through
   */
  void at(Phase phase, long done, long total);
}
