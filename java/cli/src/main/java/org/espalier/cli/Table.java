package org.espalier.cli;

import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** A table of text with columns as wide as their content. */
final class Table {
  private final boolean[] right;
  private final List<String[]> rows = new ArrayList<>();

  /**
   * @param headers the names of the columns, all empty for none; a leading {@code >} aligns a column
   *     to the right
   */
  Table(String... headers) {
    right = new boolean[headers.length];
    String[] names = headers.clone();
    for (int i = 0; i < names.length; i++) {
      right[i] = names[i].startsWith(">");
      names[i] = right[i] ? names[i].substring(1) : names[i];
    }
    if (!String.join("", names).isEmpty()) {
      rows.add(names);
    }
  }

  void add(String... cells) {
    if (cells.length != right.length) {
      throw new IllegalArgumentException(cells.length + " cells for " + right.length + " columns");
    }
    rows.add(Arrays.stream(cells).map(Table::visible).toArray(String[]::new));
  }

  /** The text without characters that a terminal obeys: names and notes come from anywhere. */
  static String visible(String text) {
    StringBuilder shown = new StringBuilder();
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (Character.isISOControl(c) || Character.getType(c) == Character.FORMAT) {
        shown.append(String.format("\\u%04x", (int) c));
      } else {
        shown.append(c);
      }
    }
    return shown.toString();
  }

  void print(PrintWriter out) {
    int[] widths = new int[right.length];
    for (String[] row : rows) {
      for (int i = 0; i < widths.length; i++) {
        widths[i] = Math.max(widths[i], row[i].length());
      }
    }
    for (String[] row : rows) {
      StringBuilder line = new StringBuilder();
      for (int i = 0; i < widths.length; i++) {
        String padding = " ".repeat(widths[i] - row[i].length());
        line.append(right[i] ? padding + row[i] : row[i] + padding).append("  ");
      }
      out.println(line.toString().stripTrailing());
    }
  }
}
