package org.espalier.recipe;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Locale;

/** Pieces of HTML and numbers for people. */
final class Html {
  private Html() {}

  /** Text as the content of an element or of an attribute in double quotes. */
  static String escape(String text) {
    StringBuilder out = new StringBuilder(text.length() + 16);
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      switch (c) {
        case '&' -> out.append("&amp;");
        case '<' -> out.append("&lt;");
        case '>' -> out.append("&gt;");
        case '"' -> out.append("&quot;");
        // Not allowed in HTML, not even as references.
        default ->
            out.append(
                c < ' ' && c != '\n' && c != '\t' || Character.isSurrogate(c) && !isPaired(text, i)
                    ? '\uFFFD'
                    : c);
      }
    }
    return out.toString();
  }

  private static boolean isPaired(String text, int i) {
    char c = text.charAt(i);
    return Character.isHighSurrogate(c)
        ? i + 1 < text.length() && Character.isLowSurrogate(text.charAt(i + 1))
        : i > 0 && Character.isHighSurrogate(text.charAt(i - 1));
  }

  /** A number in a format of {@link String#format}; a dash where there is none. */
  static String number(JsonNode value, String format) {
    return value.isNumber() ? String.format(Locale.ROOT, format, value.asDouble()) : "–";
  }

  /** Bytes with a decimal unit. */
  static String bytes(JsonNode value) {
    if (!value.isNumber()) {
      return "–";
    }
    double bytes = value.asDouble();
    String[] units = {"B", "kB", "MB", "GB", "TB"};
    int unit = 0;
    while (bytes >= 999.5 && unit < units.length - 1) {
      bytes /= 1000;
      unit++;
    }
    return String.format(Locale.ROOT, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
  }

  /** Seconds as {@code 4 min 5 s}. */
  static String seconds(JsonNode value) {
    if (!value.isNumber()) {
      return "–";
    }
    double seconds = value.asDouble();
    return seconds >= 90
        ? (long) seconds / 60 + " min " + (long) seconds % 60 + " s"
        : String.format(Locale.ROOT, seconds < 10 ? "%.1f s" : "%.0f s", seconds);
  }
}
