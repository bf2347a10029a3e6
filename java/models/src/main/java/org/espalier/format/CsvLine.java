package org.espalier.format;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.regex.Pattern;
import org.espalier.InputException;

/** A line of values with commas between; a value may be in double quotes, in which a quote is written twice. */
public final class CsvLine {
  private static final Pattern NUMBER =
      Pattern.compile("[+-]?(\\d++(\\.\\d*+)?|\\.\\d++)([eE][+-]?\\d++)?");

  private CsvLine() {}

  /**
   * The values of a line, without the quotes around them and the spaces beside them.
   *
   * @throws InputException where a quote does not end
   */
  public static String[] cells(String line) {
    if (line.indexOf('"') < 0) {
      String[] cells = line.split(",", -1);
      for (int i = 0; i < cells.length; i++) {
        cells[i] = cells[i].strip();
      }
      return cells;
    }
    List<String> cells = new ArrayList<>();
    for (int at = 0; at <= line.length(); ) {
      int end = end(line, at);
      cells.add(unquoted(line.substring(at, end).strip()));
      at = end + 1;
    }
    return cells.toArray(String[]::new);
  }

  /** Where the value that begins at a place ends. */
  private static int end(String line, int begin) {
    boolean quoted = false;
    for (int i = begin; i < line.length(); i++) {
      char c = line.charAt(i);
      if (c == '"') {
        quoted = !quoted;
      } else if (c == ',' && !quoted) {
        return i;
      }
    }
    if (quoted) {
      throw new InputException("a double quote does not end");
    }
    return line.length();
  }

  private static String unquoted(String cell) {
    boolean quoted = cell.length() >= 2 && cell.startsWith("\"") && cell.endsWith("\"");
    return quoted ? cell.substring(1, cell.length() - 1).replace("\"\"", "\"").strip() : cell;
  }

  /**
   * A number as C and Python write it, in the word that Java reads.
   *
   * @param cell a value of a line
   * @throws NumberFormatException where it is none, as {@code 1d} and {@code 0x1p3}, which Java would read too
   */
  public static String number(String cell) {
    return switch (cell.toLowerCase(Locale.ROOT)) {
      case "nan" -> "NaN";
      case "inf", "+inf", "infinity" -> "Infinity";
      case "-inf", "-infinity" -> "-Infinity";
      default -> {
        if (!NUMBER.matcher(cell).matches()) {
          throw new NumberFormatException();
        }
        yield cell;
      }
    };
  }

  /** Whether a value is a number. */
  public static boolean isNumber(String cell) {
    try {
      number(cell);
      return true;
    } catch (NumberFormatException e) {
      return false;
    }
  }

  /** Whether a line names columns: it has names, and no number. */
  public static boolean isHeader(String line) {
    boolean named = false;
    for (String cell : cells(line)) {
      if (isNumber(cell)) {
        return false;
      }
      named |= !cell.isEmpty();
    }
    return named;
  }
}
