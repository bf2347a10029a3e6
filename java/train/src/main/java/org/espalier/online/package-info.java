/**
 * Learning while predicting: one thread updates a model from a stream, any number predict with whole
 * versions of it; a guard skips, rolls back and quarantines.
 *
 * <p>{@link org.espalier.online.OnlineLearner} is the entry, {@link org.espalier.online.Learnable} what it asks of a model.
 * Models, stores and reports are built on this package, which knows none of them; it is built on the detection of drift, the
 * account of private learning and what they all do with memory.
 */
package org.espalier.online;
