/**
 * Detection of a change of the world by a stream of errors: {@link org.espalier.online.drift.DriftDetectors} is the entry.
 * A detector sees errors in [0, 1] alone, says when their mean has risen, keeps memory that does not grow with the stream
 * (ADWIN: with its logarithm), and goes on with the same bits from what it saved. What is done about a change is the
 * learner's.
 */
package org.espalier.online.drift;
