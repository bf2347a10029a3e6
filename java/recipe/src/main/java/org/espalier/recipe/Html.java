package org.espalier.recipe;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Locale;
import org.espalier.format.Quantity;

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

  /** Bytes with a decimal unit; a dash where there are none. */
  static String bytes(JsonNode value) {
    return value.isNumber() ? Quantity.bytes(value.asDouble()) : "–";
  }

  /** Seconds as {@code 4 min 5 s}; a dash where there are none. */
  static String seconds(JsonNode value) {
    return value.isNumber() ? Quantity.seconds(value.asDouble()) : "–";
  }
}
