package org.espalier.format;

import java.util.Locale;

/** Numbers for people. */
public final class Quantity {
  private Quantity() {}

  /** Bytes with a decimal unit and three digits or more: {@code 90.3 MB}. */
  public static String bytes(double bytes) {
    return scaled(bytes, "B", "kB", "MB", "GB", "TB", "PB");
  }

  /** A count in words: {@code 22.7 million}. */
  public static String count(long count) {
    return scaled(count, "", "thousand", "million", "billion", "trillion");
  }

  /** A share as a percentage: {@code 49.98 %}. */
  public static String percent(double share) {
    return String.format(Locale.ROOT, "%.2f %%", 100 * share);
  }

  /** Seconds: {@code 0.041 s}, {@code 3.2 s}, {@code 2 min 5 s}. */
  public static String seconds(double seconds) {
    if (seconds >= 90) {
      return (long) seconds / 60 + " min " + (long) seconds % 60 + " s";
    }
    return String.format(Locale.ROOT, seconds < 1 ? "%.3f s" : "%.1f s", seconds);
  }

  private static String scaled(double value, String... units) {
    int unit = 0;
    while (value >= 999.5 && unit < units.length - 1) {
      value /= 1000;
      unit++;
    }
    String number =
        String.format(Locale.ROOT, unit == 0 ? "%.0f" : value < 99.95 ? "%.1f" : "%.0f", value);
    return units[unit].isEmpty() ? number : number + " " + units[unit];
  }
}
