/**
 * Versions of a model in a folder: published whole, verified, signed where wanted, rolled back,
 * pinned and collected, by one writer and any number of readers.
 */
package org.espalier.store;
