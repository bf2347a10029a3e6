package org.espalier.online;

/**
 * Something that the guard or a drift detector did.
 *
 * @param kind what happened
 * @param step the number of steps done before
 * @param examples the number of examples seen before
 * @param version the newest version then
 * @param evidence the numbers that made it happen, in words
 */
public record Event(Kind kind, long step, long examples, long version, String evidence) {
  /** What can happen. */
  public enum Kind {
    /** Examples with outputs that are not finite were taken out, or a step was not done. */
    NON_FINITE,
    /** Examples that the model does not take were left out, as with a row that a table does not have. */
    REFUSED,
    NORM_CLIPPED,
    NORM_SKIPPED,
    LOSS_SPIKE,
    /** The last good weights were taken back. */
    ROLLBACK,
    DRIFT,
    /** The quarantine file is full, and examples are only counted. */
    QUARANTINE_FULL
  }
}
