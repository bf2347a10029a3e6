package org.espalier.format;

import java.util.Comparator;

/** Tensor names as they come from outside: ordering, encoding, and quoting for messages. */
public final class Names {
  private static final int SHOWN = 200;

  /** The order of the names' UTF-8 bytes, which is the order of their code points. */
  public static final Comparator<String> ORDER = Names::compare;

  private Names() {}

  /** The name in single quotes, control characters escaped and cut when very long. */
  public static String quote(String name) {
    StringBuilder text = new StringBuilder("'");
    for (int i = 0; i < Math.min(name.length(), SHOWN); i++) {
      char c = name.charAt(i);
      if (Character.isISOControl(c) || Character.getType(c) == Character.FORMAT) {
        text.append(String.format("\\u%04x", (int) c));
      } else {
        text.append(c);
      }
    }
    return text.append(name.length() > SHOWN ? "…'" : "'").toString();
  }

  /** Whether UTF-8 can hold the name, that is, it has no lone surrogate. */
  public static boolean isEncodable(String name) {
    return name.codePoints()
        .noneMatch(c -> c >= Character.MIN_SURROGATE && c <= Character.MAX_SURROGATE);
  }

  private static int compare(String a, String b) {
    int common = Math.min(a.length(), b.length());
    for (int i = 0; i < common; i++) {
      char x = a.charAt(i);
      char y = b.charAt(i);
      if (x != y) {
        // Surrogates stand for code points above all other characters.
        boolean high = Character.isSurrogate(x);
        return high == Character.isSurrogate(y) ? Character.compare(x, y) : high ? 1 : -1;
      }
    }
    return Integer.compare(a.length(), b.length());
  }
}
