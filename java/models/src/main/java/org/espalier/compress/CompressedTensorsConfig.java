package org.espalier.compress;

import com.fasterxml.jackson.annotation.JsonInclude;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.annotation.JsonPropertyOrder;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.JsonReason;

/**
 * The {@code quantization_config} of a model in the compressed-tensors layout, in the forms that
 * we write. int-quantized: 8-bit integers, weights symmetric per output channel, inputs symmetric per token
 * when the model runs; float-quantized: the same in floats of 8 bits. pack-quantized: weights of 4 bits by groups of a channel or by channel, inputs as they are. Readers
 * refuse fields that they do not know, so this has the known ones only, and {@link #parse} refuses others as
 * they do.
 *
 * <p>Source: the QuantizationConfig of the compressed-tensors package and its readers in
 * transformers and vLLM.
 *
 * @param quantMethod always {@code compressed-tensors}
 * @param format {@code int-quantized}, {@code float-quantized} or {@code pack-quantized}
 * @param quantizationStatus always {@code compressed}
 * @param configGroups the schemes by the name of their group
 * @param ignore modules of a target class that stay float
 * @param sparsityConfig always empty: readers look for it, none supports a content
 */
@JsonPropertyOrder({
  "quant_method",
  "format",
  "quantization_status",
  "config_groups",
  "ignore",
  "sparsity_config"
})
record CompressedTensorsConfig(
    @JsonProperty(value = "quant_method", required = true) String quantMethod,
    @JsonProperty(value = "format", required = true) String format,
    @JsonProperty(value = "quantization_status", required = true) String quantizationStatus,
    @JsonProperty(value = "config_groups", required = true) Map<String, Scheme> configGroups,
    @JsonProperty(value = "ignore", required = true) List<String> ignore,
    @JsonProperty(value = "sparsity_config", required = true) Map<String, Object> sparsityConfig) {

  /** The key in {@code config.json}. */
  static final String KEY = "quantization_config";

  private static final JsonMapper JSON =
      JsonMapper.builder()
          .enable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .build();

  /**
   * How the modules of some classes are quantized.
   *
   * @param targets names of module classes
   * @param weights how weights are
   * @param inputActivations how inputs are, which readers of the forms of 8 bits ask for; null in pack-quantized
   */
  @JsonInclude(JsonInclude.Include.NON_NULL)
  @JsonPropertyOrder({"targets", "weights", "input_activations"})
  record Scheme(
      @JsonProperty(value = "targets", required = true) List<String> targets,
      @JsonProperty(value = "weights", required = true) Arguments weights,
      @JsonProperty("input_activations") Arguments inputActivations) {}

  /**
   * The numbers of one quantization.
   *
   * @param bits that are stored
   * @param type {@code int} or {@code float}
   * @param symmetric whether the zero point is 0
   * @param strategy what shares a scale: {@code channel}, {@code group} or {@code token}
   * @param groupSize of groups; else null
   * @param dynamic whether the scale is found when the model runs
   */
  @JsonInclude(JsonInclude.Include.NON_NULL)
  @JsonPropertyOrder({"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"})
  record Arguments(
      @JsonProperty(value = "num_bits", required = true) int bits,
      @JsonProperty(value = "type", required = true) String type,
      @JsonProperty(value = "symmetric", required = true) boolean symmetric,
      @JsonProperty(value = "strategy", required = true) String strategy,
      @JsonProperty("group_size") Integer groupSize,
      @JsonProperty(value = "dynamic", required = true) boolean dynamic) {}

  CompressedTensorsConfig {
    configGroups = Map.copyOf(configGroups);
    ignore = List.copyOf(ignore);
    sparsityConfig = Map.copyOf(sparsityConfig);
    Set<Scheme> schemes = Set.copyOf(configGroups.values());
    if (!quantMethod.equals("compressed-tensors")
        || !quantizationStatus.equals("compressed")
        || schemes.size() != 1
        || !isOurs(format, schemes.iterator().next())
        || !sparsityConfig.isEmpty()) {
      throw new IllegalArgumentException(
          "not the int-quantized or float-quantized scheme of Linear modules, which have"
              + " input_activations, nor pack-quantized of 4 bits");
    }
  }

  private static boolean isOurs(String format, Scheme scheme) {
    Arguments weights = scheme.weights();
    int block = weights.groupSize() == null ? 0 : weights.groupSize();
    return switch (format) {
      case "int-quantized" -> scheme.equals(scheme(LinearForm.INT8));
      case "float-quantized" -> scheme.equals(scheme(LinearForm.FLOAT8));
      case "pack-quantized" ->
          (block == 0 || LinearForm.BLOCKS.contains(block))
              && scheme.equals(scheme(LinearForm.int4(block, weights.symmetric())));
      default -> false;
    };
  }

  private static String format(LinearForm form) {
    return switch (form.kind()) {
      case INT8 -> "int-quantized";
      case INT4 -> "pack-quantized";
      case FLOAT8 -> "float-quantized";
    };
  }

  private static Scheme scheme(LinearForm form) {
    boolean grouped = form.block() > 0;
    String type = form.isFloat() ? "float" : "int";
    Arguments weights =
        new Arguments(
            form.bits(),
            type,
            form.symmetric(),
            grouped ? "group" : "channel",
            grouped ? form.block() : null,
            false);
    Arguments inputs = new Arguments(8, type, true, "token", null, true);
    return new Scheme(List.of("Linear"), weights, form.isPacked() ? null : inputs);
  }

  /** The configuration of a model whose Linear modules, except some, have a form. */
  static CompressedTensorsConfig of(LinearForm form, List<String> ignore) {
    return new CompressedTensorsConfig(
        "compressed-tensors",
        format(form),
        "compressed",
        Map.of("group_0", scheme(form)),
        ignore,
        Map.of());
  }

  /** The JSON object. */
  ObjectNode toJson() {
    return JSON.valueToTree(this);
  }

  /**
   * Reads a configuration of this form.
   *
   * @param where the file, for messages
   * @throws InputException if a field is missing, unknown or has another value than we support
   */
  static CompressedTensorsConfig parse(JsonNode json, String where) {
    try {
      return JSON.treeToValue(json, CompressedTensorsConfig.class);
    } catch (JsonProcessingException e) {
      throw new InputException(where + ": " + KEY + ": " + JsonReason.of(e), e);
    }
  }
}
