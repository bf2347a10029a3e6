package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.fail;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;

/** Configurations with one setting changed to what it should not be: they are read or refused, and never crash. */
final class HostileConfigs {
  private static final ObjectMapper JSON = new ObjectMapper();

  private static final String[] VALUES = {
    "null",
    "true",
    "-1",
    "0",
    "1",
    "7",
    "2.5",
    "2147483647",
    "9223372036854775808",
    "1e300",
    "\"\"",
    "\"x\"",
    "[]",
    "[0]",
    "[\"x\", 1]",
    "{}",
    "{\"x\": {}}"
  };

  /** Beside those that a configuration has: what groups hold. */
  private static final String[] MORE = {
    "\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 1e300}",
    "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
        + " \"high_freq_factor\": 1, \"original_max_position_embeddings\": 8}",
    "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1], \"long_factor\": []}",
    "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"yarn\"}}",
    "\"rope_parameters\": []",
    "\"layer_types\": [\"sliding_attention\"]",
    "\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\":"
        + " \"pack-quantized\", \"config_groups\": {\"g\": {\"weights\": {\"num_bits\": \"x\"}}}}"
  };

  private HostileConfigs() {}

  /** Tries them on a folder, whose configuration is then as it was. */
  static void areRefusedOrRead(Path folder) throws IOException {
    Path file = folder.resolve("config.json");
    String config = Files.readString(file);
    ObjectNode root = (ObjectNode) JSON.readTree(config);
    List<String> keys = new ArrayList<>();
    root.fieldNames().forEachRemaining(keys::add);
    for (String key : keys) {
      for (String value : VALUES) {
        ObjectNode changed = root.deepCopy();
        changed.set(key, JSON.readTree(value));
        tryOne(folder, changed);
      }
      ObjectNode without = root.deepCopy();
      without.remove(key);
      tryOne(folder, without);
    }
    for (String more : MORE) {
      JsonNode settings = JSON.readTree("{" + more + "}");
      ObjectNode changed = root.deepCopy();
      changed.setAll((ObjectNode) settings);
      tryOne(folder, changed);
    }
    Files.writeString(file, config);
  }

  private static void tryOne(Path folder, ObjectNode config) throws IOException {
    Files.writeString(folder.resolve("config.json"), config.toString());
    try {
      TransformersModel.read(folder, note -> {});
    } catch (InputException e) {
      assertFalse(e.getMessage().isBlank());
    } catch (RuntimeException | OutOfMemoryError e) {
      fail(config.toString(), e);
    }
  }
}
