package org.espalier.compress;

import java.util.function.Predicate;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import org.espalier.InputException;

/**
 * A shell glob over tensor names: {@code *} any characters, {@code ?} one character, {@code [abc]},
 * {@code [a-z]} and {@code [!abc]} one character of a set or outside it, a backslash before a
 * character that stands for itself. The whole name must match; dots and slashes are characters like
 * any other.
 *
 * @param text what the user wrote
 */
public record Glob(String text, Pattern pattern) implements Predicate<String> {

  /**
   * Reads a glob.
   *
   * @throws InputException if a set has no end or a range runs backwards
   */
  public static Glob parse(String text) {
    StringBuilder regex = new StringBuilder();
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      switch (c) {
        case '*' -> regex.append(".*");
        case '?' -> regex.append('.');
        case '[' -> i = set(text, i, regex);
        case '\\' -> {
          if (++i == text.length()) {
            throw new InputException("the glob '" + text + "' ends in a backslash");
          }
          regex.append(Pattern.quote(text.substring(i, i + 1)));
        }
        default -> regex.append(Pattern.quote(String.valueOf(c)));
      }
    }
    try {
      return new Glob(text, Pattern.compile(regex.toString(), Pattern.DOTALL));
    } catch (PatternSyntaxException e) {
      throw new InputException(
          "the glob '" + text + "' has a range that runs backwards in its [...]", e);
    }
  }

  /** Translates the set that begins at {@code open} and returns where it ends. */
  private static int set(String text, int open, StringBuilder regex) {
    int from = open + 1;
    boolean not = from < text.length() && (text.charAt(from) == '!' || text.charAt(from) == '^');
    from += not ? 1 : 0;
    int close = text.indexOf(']', from + 1); // a bracket that comes first stands for itself
    if (close < 0) {
      throw new InputException(
          "the glob '" + text + "' has a [ without a ]; write \\[ for a bracket");
    }
    regex.append(not ? "[^" : "[");
    for (int i = from; i < close; i++) {
      char c = text.charAt(i);
      boolean range = c == '-' && i > from && i < close - 1;
      regex.append(range || Character.isLetterOrDigit(c) ? "" : "\\").append(c);
    }
    regex.append(']');
    return close;
  }

  @Override
  public boolean test(String name) {
    return pattern.matcher(name).matches();
  }
}
