package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.fail;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;

/**
 * Configurations with one setting changed to what it should not be: they are read or refused, and never crash. Each configuration
 * tries a third of the values for a setting, others another third.
 */
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

  private static final int SHARES = 3;

  private HostileConfigs() {}

  /** Tries them on a folder, whose configuration is then as it was. */
  static void areRefusedOrRead(Path folder) throws IOException {
    areRefusedOrRead(folder, "config.json", null);
  }

  /**
   * Tries them on a file of settings in the folder.
   *
   * @param part which is read
   */
  static void areRefusedOrRead(Path folder, String name, TransformersModel.Part part)
      throws IOException {
    Path file = folder.resolve(name);
    String config = Files.readString(file);
    for (ObjectNode changed : changed((ObjectNode) JSON.readTree(config), true)) {
      Files.writeString(file, changed.toString());
      try {
        TransformersModel.read(folder, part, note -> {});
      } catch (InputException e) {
        assertFalse(e.getMessage().isBlank());
      } catch (RuntimeException | OutOfMemoryError e) {
        fail(changed.toString(), e);
      }
    }
    Files.writeString(file, config);
  }

  /**
   * The settings with each changed in turn.
   *
   * @param groups whether those of groups are changed too
   */
  private static List<ObjectNode> changed(ObjectNode root, boolean groups) throws IOException {
    List<String> keys = new ArrayList<>();
    root.fieldNames().forEachRemaining(keys::add);
    List<ObjectNode> all = new ArrayList<>();
    for (String key : keys) {
      int first = Math.floorMod((root + key).hashCode(), SHARES);
      for (int i = first; i < VALUES.length; i += SHARES) {
        all.add(root.deepCopy().set(key, JSON.readTree(VALUES[i])));
      }
      if (groups && root.get(key) instanceof ObjectNode group) {
        for (ObjectNode inner : changed(group, false)) {
          all.add(root.deepCopy().set(key, inner));
        }
      }
      all.add(root.deepCopy().without(key));
    }
    for (String more : MORE) {
      all.add(root.deepCopy().setAll((ObjectNode) JSON.readTree("{" + more + "}")));
    }
    return all;
  }
}
