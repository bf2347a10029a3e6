package org.espalier.format;

import java.util.Collection;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;

/** Suggests existing names that are near one that does not exist. */
public final class NearNames {
  private static final int SHOWN = 3;

  /** Longer names are compared by their first characters: the comparison is quadratic. */
  private static final int COMPARED = 120;

  private NearNames() {}

  /** The names nearest to {@code wanted}, quoted, with the number of those left out. */
  public static String list(String wanted, Collection<String> names) {
    if (names.isEmpty()) {
      return "none";
    }
    List<String> nearest =
        names.stream()
            .sorted(
                Comparator.comparingInt((String name) -> distance(wanted, name))
                    .thenComparing(Names.ORDER))
            .limit(SHOWN)
            .map(Names::quote)
            .toList();
    int others = names.size() - nearest.size();
    return String.join(", ", nearest)
        + (others == 0 ? "" : " and " + others + (others == 1 ? " other" : " others"));
  }

  /**
   * Levenshtein's distance without regard to case, wildcards counting as nothing, less what speaks for
   * the name.
   */
  private static int distance(String wanted, String name) {
    String a = cut(wanted.toLowerCase(Locale.ROOT).replaceAll("[*?\\[\\]]", ""));
    String b = cut(name.toLowerCase(Locale.ROOT));
    int[] row = new int[b.length() + 1];
    for (int j = 0; j <= b.length(); j++) {
      row[j] = j;
    }
    for (int i = 1; i <= a.length(); i++) {
      int diagonal = row[0];
      row[0] = i;
      for (int j = 1; j <= b.length(); j++) {
        int substituted = diagonal + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
        diagonal = row[j];
        row[j] = Math.min(substituted, Math.min(row[j], row[j - 1]) + 1);
      }
    }
    // Names share long beginnings, and a part of one is a better guess than another of its length.
    int common = 0;
    while (common < Math.min(a.length(), b.length()) && a.charAt(common) == b.charAt(common)) {
      common++;
    }
    return row[b.length()] - 2 * common - (b.contains(a) ? b.length() : 0);
  }

  private static String cut(String text) {
    return text.substring(0, Math.min(text.length(), COMPARED));
  }
}
