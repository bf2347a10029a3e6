package org.espalier.online;

/**
 * The gradient of a table with regard to the rows that a batch has read.
 *
 * @param rows their numbers, each once, in ascending order
 * @param values row by row
 */
public record RowGradient(long[] rows, float[] values) {}
