/**
 * Learning while predicting: one thread updates a model from a stream, any number predict with whole
 * versions of it; a guard skips, rolls back and quarantines.
 */
package org.espalier.online;
