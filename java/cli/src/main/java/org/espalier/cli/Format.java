package org.espalier.cli;

import java.util.Locale;

/** Numbers for people. */
final class Format {
  private Format() {}

  /** Bytes with a decimal unit and three digits or more: {@code 90.3 MB}. */
  static String bytes(double bytes) {
    return scaled(bytes, 1000, "B", "kB", "MB", "GB", "TB", "PB");
  }

  /** A count in words: {@code 22.7 million}. */
  static String count(long count) {
    return scaled(count, 1000, "", "thousand", "million", "billion", "trillion");
  }

  /** A share as a percentage: {@code 49.98 %}. */
  static String percent(double share) {
    return String.format(Locale.ROOT, "%.2f %%", 100 * share);
  }

  /** Seconds: {@code 0.041 s}, {@code 3.2 s}, {@code 2 min 5 s}. */
  static String seconds(double seconds) {
    if (seconds >= 90) {
      return (long) seconds / 60 + " min " + (long) seconds % 60 + " s";
    }
    return String.format(Locale.ROOT, seconds < 1 ? "%.3f s" : "%.1f s", seconds);
  }

  private static String scaled(double value, double base, String... units) {
    int unit = 0;
    while (value >= 999.5 && unit < units.length - 1) {
      value /= base;
      unit++;
    }
    String number =
        String.format(Locale.ROOT, unit == 0 ? "%.0f" : value < 99.95 ? "%.1f" : "%.0f", value);
    return units[unit].isEmpty() ? number : number + " " + units[unit];
  }

  /** The size of a file that was made of another. */
  static String sizes(long output, long input) {
    return String.format(
        Locale.ROOT,
        "%s from %s, ratio %.3f",
        bytes(output),
        bytes(input),
        (double) output / input);
  }

  /** How much faster than the original a model is. */
  static String speedup(double times) {
    return String.format(
        Locale.ROOT, "%.2f times the original's in ONNX Runtime, one thread", times);
  }
}
