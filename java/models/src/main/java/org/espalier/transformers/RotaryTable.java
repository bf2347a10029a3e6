package org.espalier.transformers;

import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * The angles by which rotary position embedding turns pairs of numbers: position · θ^(−2i / d) for pair i of d / 2 (Su et
 * al., RoFormer), with the changes for longer texts that configurations ask for.
 */
final class RotaryTable {
  /** Angles that follow from how long a text is. */
  private static final String DYNAMIC = "dynamic";

  /** What {@code rope_type} may be where angles are the same for texts of any length. */
  private static final List<String> TYPES = List.of("default", "linear", "llama3", "yarn");

  /** Tables of cosines and of sines take as much each. */
  private static final long MOST_BYTES = 1L << 30;

  private RotaryTable() {}

  /**
   * How pairs are turned.
   *
   * @param angles of each pair at position 1
   * @param factor by which turned numbers are multiplied
   * @param positions for which this is made
   */
  record Turns(double[] angles, double factor, long positions) {}

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

  /** Whether angles follow from how long a text is. */
  static boolean isDynamic(Configuration settings) {
    List<String> all = new ArrayList<>(TYPES);
    all.add(DYNAMIC);
    return type(settings, all).equals(DYNAMIC);
  }

  /**
   * How pairs are turned, where that is the same for texts of any length.
   *
   * @param settings what is said of angles, or null
   * @param theta the base where {@code settings} has none
   * @param rotated how many numbers of a head are turned, even
   * @param original how long texts of pre-training were, whatever {@code settings} say; 0 where that is not said beside them
   * @param positions how long a text may be
   * @throws InputException if the settings ask for a change that is not known here
   */
  static Turns turns(
      Configuration settings, double theta, long rotated, long original, long positions) {
    double[] angles = powers(settings, theta, rotated);
    switch (type(settings, TYPES)) {
      case "linear" -> {
        double factor = required(settings, "factor");
        for (int i = 0; i < angles.length; i++) {
          angles[i] /= factor;
        }
      }
      case "llama3" -> stretch(angles, settings);
      case "yarn" -> {
        return yarn(angles, settings, base(settings, theta), original, positions);
      }
      default -> {}
    }
    return new Turns(angles, 1, positions);
  }

  /** The angles without a change. */
  static double[] powers(Configuration settings, double theta, long rotated) {
    double base = base(settings, theta);
    double[] angles = new double[(int) (rotated / 2)];
    for (int i = 0; i < angles.length; i++) {
      angles[i] = Math.pow(base, -2.0 * i / rotated);
    }
    return angles;
  }

  static double base(Configuration settings, double theta) {
    return settings == null ? theta : settings.positive("rope_theta", theta);
  }

  /**
   * YaRN (Peng et al.): pairs that turn less than {@code beta_slow} times in a text of pre-training are stretched, those that
   * turn more than {@code beta_fast} times stay, between them it is mixed by the number of the pair; and scores are made
   * larger by a factor of queries and keys.
   */
  private static Turns yarn(
      double[] angles, Configuration scaling, double base, long original, long positions) {
    if (!(base > 1)) {
      throw scaling.wrong("rope_theta", "a number above 1");
    }
    double context =
        original > 0 ? original : scaling.positive("original_max_position_embeddings", positions);
    double factor = scaling.positive("factor", positions / context);
    double first = pairThatTurns(orElse(scaling, "beta_fast", 32), angles.length, base, context);
    double last = pairThatTurns(orElse(scaling, "beta_slow", 1), angles.length, base, context);
    if (scaling.flag("truncate", true)) {
      first = Math.floor(first);
      last = Math.ceil(last);
    }
    first = Math.max(first, 0);
    last = Math.min(last, 2.0 * angles.length - 1);
    double range = first == last ? 0.001 : last - first;
    for (int i = 0; i < angles.length; i++) {
      double stretched = Math.min(1, Math.max(0, (i - first) / range));
      angles[i] *= 1 - stretched + stretched / factor;
    }
    double all = scaling.orZero("mscale_all_dim");
    double own = scaling.orZero("mscale");
    double usual =
        own > 0 && all > 0 ? yarnScale(factor, own) / yarnScale(factor, all) : yarnScale(factor, 1);
    return new Turns(
        angles,
        scaling.positive("attention_factor", usual),
        Math.max(positions, (long) Math.min(Integer.MAX_VALUE, Math.ceil(factor * context))));
  }

  private static double orElse(Configuration scaling, String key, double otherwise) {
    double value = scaling.orZero(key);
    return value == 0 ? otherwise : value;
  }

  /** Where among pairs, between two of them as a rule, is one that turns so often in a text of pre-training. */
  private static double pairThatTurns(double times, int pairs, double base, double context) {
    return pairs * Math.log(context / (times * 2 * Math.PI)) / Math.log(base);
  }

  private static double yarnScale(double factor, double part) {
    return factor <= 1 ? 1 : 0.1 * part * Math.log(factor) + 1;
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

  static double required(Configuration scaling, String key) {
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
  static OnnxInitializer table(String name, boolean sines, Turns turns) {
    int pairs = turns.angles().length;
    float[] table = new float[size(turns.positions(), pairs)];
    fill(table, 0, sines, turns.positions(), turns.angles(), turns.factor());
    return OnnxInitializer.floats(name, new long[] {turns.positions(), pairs}, table);
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
