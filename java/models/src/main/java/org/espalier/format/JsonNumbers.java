package org.espalier.format;

/** Numbers that JSON does not have, as strings. */
public final class JsonNumbers {
  private JsonNumbers() {}

  /** The number that a string is of NaN, Infinity and -Infinity; null where it is none of them. */
  public static Float ofString(String text) {
    return switch (text) {
      case "NaN" -> Float.NaN;
      case "Infinity" -> Float.POSITIVE_INFINITY;
      case "-Infinity" -> Float.NEGATIVE_INFINITY;
      default -> null;
    };
  }
}
