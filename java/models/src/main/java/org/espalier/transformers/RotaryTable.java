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

  /**
   * The angle of each pair at position 1.
   *
   * @param rotated how many numbers of a head are turned, even
   * @throws InputException if the configuration asks for a change that is not known here
   */
  static double[] frequencies(ModelConfig config, long rotated) {
    ModelConfig scaling = config.group("rope_parameters");
    if (scaling == null) {
      scaling = config.group("rope_scaling");
    }
    double theta = config.positive("rope_theta", 10000);
    double[] angles = new double[(int) (rotated / 2)];
    if (scaling != null) {
      theta = scaling.positive("rope_theta", theta);
    }
    for (int i = 0; i < angles.length; i++) {
      angles[i] = Math.pow(theta, -2.0 * i / rotated);
    }
    String type =
        scaling == null
            ? "default"
            : scaling.choice("rope_type", scaling.text("type", "default"), TYPES);
    switch (type) {
      case "linear" -> {
        double factor = required(scaling, "factor");
        for (int i = 0; i < angles.length; i++) {
          angles[i] /= factor;
        }
      }
      case "llama3" -> stretch(angles, scaling);
      default -> {}
    }
    return angles;
  }

  /** Llama 3.1: waves longer than the context of pre-training are stretched, short ones stay, between them it is mixed. */
  private static void stretch(double[] angles, ModelConfig scaling) {
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

  private static double required(ModelConfig scaling, String key) {
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
    long values = positions * frequencies.length;
    if (values > MOST_BYTES / Float.BYTES) {
      throw new InputException(
          "max_position_embeddings = "
              + positions
              + " asks for a table of "
              + values
              + " angles; at most "
              + MOST_BYTES / Float.BYTES / frequencies.length
              + " positions are right");
    }
    float[] table = new float[(int) values];
    for (int p = 0; p < positions; p++) {
      for (int i = 0; i < frequencies.length; i++) {
        // Transformers multiplies in float32: at position 100,000 that is a hundredth of a turn's
        // last bits.
        double angle = (float) p * (float) frequencies[i];
        table[p * frequencies.length + i] =
            (float) (sines ? Math.sin((float) angle) : Math.cos((float) angle));
      }
    }
    return OnnxInitializer.floats(name, new long[] {positions, frequencies.length}, table);
  }
}
