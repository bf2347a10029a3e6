package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class ModelConfigTest {
  @TempDir Path folder;

  @Test
  void theQuantizationJoinsWhatWasThere() throws IOException {
    Files.writeString(
        folder.resolve("config.json"),
        "{\"model_type\":\"llama\",\"eps\":1e-05,\"big\":12345678901234567890,\"x\":[Infinity,0.10],"
            + "\"name\":\"ü\"}");
    byte[] json =
        ModelConfig.read(folder.resolve("config.json"))
            .with(CompressedTensorsConfig.of(LinearForm.INT8, List.of("lm_head", "a.b")));
    assertEquals(
        """
        {
          "model_type" : "llama",
          "eps" : 0.00001,
          "big" : 12345678901234567890,
          "x" : [ Infinity, 0.10 ],
          "name" : "ü",
          "quantization_config" : {
            "quant_method" : "compressed-tensors",
            "format" : "int-quantized",
            "quantization_status" : "compressed",
            "config_groups" : {
              "group_0" : {
                "targets" : [ "Linear" ],
                "weights" : {
                  "num_bits" : 8,
                  "type" : "int",
                  "symmetric" : true,
                  "strategy" : "channel",
                  "dynamic" : false
                },
                "input_activations" : {
                  "num_bits" : 8,
                  "type" : "int",
                  "symmetric" : true,
                  "strategy" : "token",
                  "dynamic" : true
                }
              }
            },
            "ignore" : [ "lm_head", "a.b" ],
            "sparsity_config" : { }
          }
        }
        """,
        new String(json, StandardCharsets.UTF_8));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '`',
      value = {
        "[]|not a JSON object",
        "``|not a JSON object",
        "{|not valid JSON",
        "{} {}|not valid JSON",
        "{\"a\":1,\"a\":2}|not valid JSON",
        "{\"quantization_config\":{}}|quantized already",
        "{\"compression_config\":null}|quantized already",
        "{\"model_type\":\"gpt2\"}|Conv1D",
      })
  void refusesAConfigurationThatDoesNotFit(String json, String message) throws IOException {
    Files.writeString(folder.resolve("config.json"), json);
    assertRefused(message);
  }

  @Test
  void refusesAMissingOrHugeOrDeepConfiguration() throws IOException {
    assertRefused("is missing");
    Path path = folder.resolve("config.json");
    Files.writeString(path, "[".repeat(100_000));
    assertRefused("not valid JSON");
    Files.writeString(path, " ".repeat((16 << 20) + 1));
    assertRefused("above the limit");
    Files.delete(path);
    Files.createDirectory(path);
    assertRefused("is missing");
  }

  private void assertRefused(String message) {
    InputException e =
        assertThrows(InputException.class, () -> ModelConfig.read(folder.resolve("config.json")));
    assertTrue(e.getMessage().contains(message), e.getMessage());
    assertTrue(e.getMessage().contains("config.json"), e.getMessage());
  }

  @Test
  void theSchemaTakesItsOwnFormAndNoOther() throws IOException {
    ObjectNode json = CompressedTensorsConfig.of(LinearForm.INT8, List.of("lm_head")).toJson();
    assertEquals(
        CompressedTensorsConfig.of(LinearForm.INT8, List.of("lm_head")),
        CompressedTensorsConfig.parse(json, "config.json"));
    for (String path : List.of("", "/config_groups/group_0", "/config_groups/group_0/weights")) {
      ObjectNode more = json.deepCopy();
      ((ObjectNode) more.at(path)).put("version", "1");
      assertSchemaRefuses(more, "version");
    }
    for (String path :
        List.of(
            "/format",
            "/ignore",
            "/sparsity_config",
            "/config_groups/group_0/input_activations",
            "/config_groups/group_0/weights/num_bits")) {
      ObjectNode less = json.deepCopy();
      int slash = path.lastIndexOf('/');
      ((ObjectNode) less.at(path.substring(0, slash))).remove(path.substring(slash + 1));
      assertSchemaRefuses(less, path.substring(slash + 1));
    }
    ObjectNode other = json.deepCopy();
    other.put("format", "pack-quantized");
    assertSchemaRefuses(other, "int-quantized");
    other.put("format", "int-quantized");
    ((ObjectNode) other.at("/config_groups/group_0")).remove("input_activations");
    assertSchemaRefuses(other, "input_activations");
    ObjectNode sparse = json.deepCopy();
    ((ObjectNode) sparse.get("sparsity_config")).put("format", "sparse-bitmask");
    assertSchemaRefuses(sparse, "int-quantized");
    assertSchemaRefuses(new ObjectMapper().readTree("[]"), "quantization_config");
  }

  /** Readers take a group size of groups only, and no input activations. */
  @Test
  void packedWeightsHaveASchemeOfTheirOwn() {
    for (LinearForm form :
        List.of(LinearForm.int4(128, true), LinearForm.int4(32, false), LinearForm.int4(0, true))) {
      CompressedTensorsConfig config = CompressedTensorsConfig.of(form, List.of("lm_head"));
      ObjectNode json = config.toJson();
      assertEquals(config, CompressedTensorsConfig.parse(json, "config.json"));
      assertEquals("pack-quantized", json.get("format").asText());
      JsonNode scheme = json.at("/config_groups/group_0");
      assertFalse(scheme.has("input_activations"));
      assertEquals(
          switch (form.block()) {
            case 0 ->
                "{'num_bits':4,'type':'int','symmetric':true,'strategy':'channel','dynamic':false}";
            case 32 ->
                "{'num_bits':4,'type':'int','symmetric':false,'strategy':'group','group_size':32,"
                    + "'dynamic':false}";
            default ->
                "{'num_bits':4,'type':'int','symmetric':true,'strategy':'group','group_size':128,"
                    + "'dynamic':false}";
          },
          scheme.get("weights").toString().replace('"', '\''));
      ObjectNode other = json.deepCopy();
      ((ObjectNode) other.at("/config_groups/group_0/weights")).put("group_size", 48);
      assertSchemaRefuses(other, "pack-quantized");
    }
  }

  private static void assertSchemaRefuses(JsonNode json, String message) {
    InputException e =
        assertThrows(
            InputException.class, () -> CompressedTensorsConfig.parse(json, "config.json"));
    assertTrue(e.getMessage().contains(message), e.getMessage());
  }
}
