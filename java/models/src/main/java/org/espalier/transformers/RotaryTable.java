package org.espalier.transformers;

import java.util.List;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * The angles by which rotary position embedding turns pairs of numbers: position · θ^(−2i / d) for pair i of d / 2 (Su et
 * al., RoFormer), with the changes for longer texts that configurations ask for.
 */
final class RotaryTable {
  /** What {@code rope_type} may be. */
  private static final List<String> TYPES = List.of("default", "linear", "llama3");

  /** Tables of cosines and of sines take as much each. */
  private static final long MOST_BYTES = 1L << 30;

  private RotaryTable() {}

  /** What a configuration says of angles; null where that is nothing. */
  static Configuration settings(Configuration config) {
    Configuration settings = config.group("rope_parameters");
    return settings == null ? config.group("rope_scaling") : settings;
  }

  /** Which change for longer texts is asked for. */
  static String type(Configuration settings, List<String> known) {
    return settings == null
        ? "default"
        : settings.choice("rope_type", settings.text("type", "default"), known);
  }

  /**
   * The angle of each pair at position 1.
   *
   * @param settings what is said of angles, or null
   * @param theta the base where {@code settings} has none
   * @param rotated how many numbers of a head are turned, even
   * @throws InputException if the settings ask for a change that is not known here
   */
  static double[] frequencies(Configuration settings, double theta, long rotated) {
    double[] angles = powers(settings, theta, rotated);
    switch (type(settings, TYPES)) {
      case "linear" -> {
        double factor = required(settings, "factor");
        for (int i = 0; i < angles.length; i++) {
          angles[i] /= factor;
        }
      }
      case "llama3" -> stretch(angles, settings);
      default -> {}
    }
    return angles;
  }

  /** The angles without a change. */
  static double[] powers(Configuration settings, double theta, long rotated) {
    double base = settings == null ? theta : settings.positive("rope_theta", theta);
    double[] angles = new double[(int) (rotated / 2)];
    for (int i = 0; i < angles.length; i++) {
      angles[i] = Math.pow(base, -2.0 * i / rotated);
    }
    return angles;
  }

  /** Llama 3.1: waves longer than the context of pre-training are stretched, short ones stay, between them it is mixed. */
  private static void stretch(double[] angles, Configuration scaling) {
    double factor = required(scaling, "factor");
    double low = required(scaling, "low_freq_factor");
    double high = required(scaling, "high_freq_factor");
    double context = required(scaling, "original_max_position_embeddings");
    if (!(low < high)) {
      throw scaling.wrong("low_freq_factor", "less than high_freq_factor");
    }
    for (int i = 0; i < angles.length; i++) {
      double waves = context * angles[i] / (2 * Math.PI);
      double kept = Math.min(1, Math.max(0, (waves - low) / (high - low)));
      angles[i] *= kept + (1 - kept) / factor;
    }
  }

  private static double required(Configuration scaling, String key) {
    if (!scaling.has(key)) {
      throw scaling.wrong(key, "a number above 0");
    }
    return scaling.positive(key, 1);
  }

  /**
   * Cosines or sines, [positions, pairs].
   *
   * @throws InputException if they take more than a gigabyte
   */
  static OnnxInitializer table(String name, boolean sines, long positions, double[] frequencies) {
    float[] table = new float[size(positions, frequencies.length)];
    fill(table, 0, sines, positions, frequencies, 1);
    return OnnxInitializer.floats(name, new long[] {positions, frequencies.length}, table);
  }

  /**
   * Cosines or sines of short texts, [ofShort, pairs], and behind them those of long texts, [ofLong, pairs].
   *
   * @param factor of all
   * @throws InputException if they take more than a gigabyte
   */
  static OnnxInitializer tables(
      String name,
      boolean sines,
      long ofShort,
      double[] shortFrequencies,
      long ofLong,
      double[] longFrequencies,
      double factor) {
    int pairs = shortFrequencies.length;
    float[] table = new float[size(ofShort + ofLong, pairs)];
    fill(table, 0, sines, ofShort, shortFrequencies, factor);
    fill(table, (int) ofShort * pairs, sines, ofLong, longFrequencies, factor);
    return OnnxInitializer.floats(name, new long[] {ofShort + ofLong, pairs}, table);
  }

  private static int size(long positions, int pairs) {
    long values = positions * pairs;
    if (values > MOST_BYTES / Float.BYTES) {
      throw new InputException(
          "max_position_embeddings = "
              + positions
              + " asks for a table of "
              + values
              + " angles; at most "
              + MOST_BYTES / Float.BYTES / pairs
              + " positions are right");
    }
    return (int) values;
  }

  private static void fill(
      float[] table, int from, boolean sines, long positions, double[] frequencies, double factor) {
    for (int p = 0; p < positions; p++) {
      for (int i = 0; i < frequencies.length; i++) {
        // Transformers multiplies in float32: at position 100,000 that is a hundredth of a turn's
        // last bits.
        float angle = (float) p * (float) frequencies[i];
        double value = sines ? Math.sin(angle) : Math.cos(angle);
        table[from + p * frequencies.length + i] = (float) (value * factor);
      }
    }
  }
}
