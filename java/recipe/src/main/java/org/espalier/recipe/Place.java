package org.espalier.recipe;

/**
 * Where a setting was written.
 *
 * @param source the recipe's file as the user named it, or the option of the command line
 * @param line from 1; 0 where the source has no lines
 */
public record Place(String source, int line) {
  @Override
  public String toString() {
    return line > 0 ? source + ":" + line : source;
  }
}
