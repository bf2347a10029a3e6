package org.espalier.transformers;

import java.util.List;
import org.espalier.InputException;

/**
 * How the weights of linear layers lie that are not floats as others, by the {@code quantization_config} of a configuration.
 * Layers that it leaves out have plain weights, by which they are known.
 *
 * @param method who reads them so
 * @param bits of integers
 * @param group how many inputs share a scale; 0 for all
 * @param scattered whether inputs of a group may lie anywhere
 * @param zerosAreLess whether zero points are stored less one
 * @param block rows and columns of floats of 8 bits that share a scale; null where it does not say
 */
record WeightLayout(
    Method method, int bits, long group, boolean scattered, boolean zerosAreLess, Block block) {
  /** By {@code quant_method}; TENSORS is compressed-tensors, or none, and tensors tell what they are. */
  enum Method {
    TENSORS,
    FP8,
    GPTQ,
    AWQ
  }

  /** Rows and columns. */
  record Block(long rows, long columns) {}

  private static final WeightLayout PLAIN =
      new WeightLayout(Method.TENSORS, 0, 0, false, false, null);

  private static final List<String> METHODS = List.of("compressed-tensors", "fp8", "gptq", "awq");

  /** What published configurations call the layout of AutoAWQ's {@code WQLinear_GEMM}. */
  private static final List<String> GEMM = List.of("gemm", "GEMM");

  /**
   * Reads what a configuration says.
   *
   * @throws InputException if weights lie as it is not known here
   */
  static WeightLayout of(Configuration config) {
    config.refuse("compression_config");
    Configuration settings = config.group("quantization_config");
    if (settings == null) {
      return PLAIN;
    }
    return switch (settings.choice("quant_method", "", METHODS)) {
      case "fp8" -> ofFloats(settings);
      case "gptq" -> ofGptq(settings);
      case "awq" -> ofAwq(settings);
      default -> ofCompressedTensors(settings);
    };
  }

  private static WeightLayout ofCompressedTensors(Configuration settings) {
    List<String> formats = List.of("int-quantized", "float-quantized", "pack-quantized");
    String format = settings.choice("format", "", formats);
    settings.refuse("kv_cache_scheme");
    Configuration groups = settings.group("config_groups");
    for (String name : groups == null ? List.<String>of() : groups.keys()) {
      Configuration scheme = groups.group(name);
      Configuration weights = scheme == null ? null : scheme.group("weights");
      if (weights == null) {
        continue;
      }
      weights.choice("type", "int", List.of(format.equals("float-quantized") ? "float" : "int"));
      long bits = weights.size("num_bits", 8);
      if (bits != (format.equals("pack-quantized") ? 4 : 8)) {
        throw weights.wrong("num_bits", "4 in pack-quantized and else 8");
      }
    }
    return PLAIN;
  }

  /** Inputs stay as they are, so it does not matter how they would be rounded. */
  private static WeightLayout ofFloats(Configuration settings) {
    settings.choice("activation_scheme", "dynamic", List.of("dynamic", "static"));
    settings.choice("fmt", "e4m3", List.of("e4m3", "float8_e4m3fn"));
    Block block = null;
    if (settings.has("weight_block_size")) {
      double[] sizes = settings.numbers("weight_block_size");
      if (sizes.length != 2 || !isSize(sizes[0]) || !isSize(sizes[1])) {
        throw settings.wrong("weight_block_size", "a list of two whole numbers of 1 or more");
      }
      block = new Block((long) sizes[0], (long) sizes[1]);
    }
    return new WeightLayout(Method.FP8, 8, 0, false, false, block);
  }

  private static boolean isSize(double value) {
    return value >= 1 && value <= Integer.MAX_VALUE && value == Math.rint(value);
  }

  private static WeightLayout ofGptq(Configuration settings) {
    long bits = settings.size("bits");
    if (bits != 4 && bits != 8) {
      throw settings.wrong("bits", "4 or 8");
    }
    for (String other : List.of("is_marlin_format", "adapter", "rotation")) {
      settings.refuse(other);
    }
    settings.choice("pack_dtype", "int32", List.of("int32"));
    List<String> formats = List.of("gptq", "gptq_v2");
    String format =
        settings.choice("checkpoint_format", settings.choice("format", "gptq", formats), formats);
    boolean scattered = settings.flag("desc_act", false);
    long group = group(settings);
    checkExceptions(settings, bits);
    return new WeightLayout(Method.GPTQ, (int) bits, group, scattered, format.equals("gptq"), null);
  }

  private static WeightLayout ofAwq(Configuration settings) {
    if (settings.size("bits", 4) != 4) {
      throw settings.wrong("bits", "4");
    }
    settings.choice("version", "gemm", GEMM);
    settings.choice("format", "gemm", GEMM);
    settings.choice("checkpoint_format", "gemm", GEMM);
    settings.choice("backend", "auto", List.of("auto", "autoawq"));
    settings.choice("pack_dtype", "int32", List.of("int32"));
    if (!settings.flag("zero_point", true)) {
      throw settings.wrong("zero_point", "true");
    }
    long group = group(settings);
    checkExceptions(settings, 4);
    return new WeightLayout(Method.AWQ, 4, group, false, false, null);
  }

  private static long group(Configuration settings) {
    long group = settings.whole("group_size", 128, -1);
    if (group == 0) {
      throw settings.wrong("group_size", "-1, for all inputs, or a whole number of 1 or more");
    }
    return Math.max(0, group);
  }

  /** Patterns of {@code dynamic} that leave layers out have a minus before them; others must change nothing here. */
  private static void checkExceptions(Configuration settings, long bits) {
    Configuration patterns = settings.group("dynamic");
    for (String pattern : patterns == null ? List.<String>of() : patterns.keys()) {
      Configuration own = pattern.startsWith("-") ? null : patterns.group(pattern);
      if (own == null) {
        continue;
      }
      if (own.size("bits", bits) != bits) {
        throw own.wrong("bits", bits + ", as of all layers,");
      }
      long group = group(settings);
      if (own.has("group_size") && group(own) != group) {
        throw own.wrong("group_size", (group == 0 ? -1 : group) + ", as of all layers,");
      }
    }
  }

  /**
   * Checks that it is said how integers lie in words.
   *
   * @param tensor which has them, for the message
   */
  void requireWords(String tensor) {
    if (method != Method.GPTQ && method != Method.AWQ) {
      throw new InputException(
          tensor
              + " is of GPTQ or AWQ, but "
              + Configuration.FILE
              + " has no quantization_config whose quant_method is gptq or awq");
    }
  }
}
