package org.espalier.compress;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.cfg.JsonNodeFeature;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.JsonReason;

/** The {@code config.json} of a model's folder, as far as quantizing it is concerned. */
final class ModelConfig {
  /** Its name in the folder. */
  static final String FILE = "config.json";

  private static final long MAX_BYTES = 16 << 20;

  /** Architectures whose linear layers are [in, out] Conv1D modules, not Linear. */
  private static final Set<String> CONV1D =
      Set.of("decision_transformer", "gpt2", "imagegpt", "openai-gpt");

  /** What the type of weights is called, of old and of late. */
  private static final Set<String> TYPES = Set.of("torch_dtype", "dtype");

  private static final JsonMapper JSON =
      JsonMapper.builder()
          .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          // Python writes NaN and Infinity.
          .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
          .disable(JsonNodeFeature.STRIP_TRAILING_BIGDECIMAL_ZEROES)
          .build();

  private final ObjectNode root;

  private ModelConfig(ObjectNode root) {
    this.root = root;
  }

  /**
   * Reads the file and checks that the model can take the compressed-tensors layout.
   *
   * @throws InputException if the file is missing, unreadable or not a JSON object; if the model is
   *     quantized already or its linear layers are not Linear modules
   */
  static ModelConfig read(Path path) {
    if (!Files.isRegularFile(path)) {
      throw new InputException(
          path
              + " is missing; compressed-tensors is a layout of a model's folder with "
              + FILE
              + " in it");
    }
    ModelConfig config = ofFloats(path);
    String type = config.root.path("model_type").asText("");
    if (CONV1D.contains(type)) {
      throw new InputException(
          path
              + ": the linear layers of model_type "
              + type
              + " are Conv1D modules, which compressed-tensors does not reach; export the model to "
              + "ONNX and quantize that");
    }
    return config;
  }

  /**
   * Reads the file of a model that is not quantized.
   *
   * @throws InputException if it is unreadable or not a JSON object, or the model is quantized already
   */
  static ModelConfig ofFloats(Path path) {
    JsonNode json;
    try {
      if (Files.size(path) > MAX_BYTES) {
        throw new InputException(path + " is above the limit of " + MAX_BYTES + " bytes");
      }
      json = JSON.readTree(Files.readAllBytes(path));
    } catch (JsonProcessingException e) {
      throw new InputException(path + " is not valid JSON: " + JsonReason.of(e), e);
    } catch (IOException e) {
      throw new InputException("cannot read " + path + ": " + e.getMessage(), e);
    }
    if (!(json instanceof ObjectNode root)) {
      throw new InputException(path + " is not a JSON object");
    }
    for (String key : Set.of(CompressedTensorsConfig.KEY, "compression_config")) {
      if (root.has(key)) {
        throw new InputException(
            path + " has a " + key + ": the model is quantized already; take the float model");
      }
    }
    return new ModelConfig(root);
  }

  /** The file's content with another type of weights wherever it says that they are float32. */
  byte[] withType(String type) {
    ObjectNode changed = root.deepCopy();
    for (String key : TYPES) {
      for (JsonNode parent : changed.findParents(key)) {
        if (parent.path(key).asText().equals("float32")) {
          ((ObjectNode) parent).put(key, type);
        }
      }
    }
    return CheckpointOutput.json(changed);
  }

  /** The file's content with the quantization in it. */
  byte[] with(CompressedTensorsConfig quantization) {
    ObjectNode changed = root.deepCopy();
    changed.set(CompressedTensorsConfig.KEY, quantization.toJson());
    return CheckpointOutput.json(changed);
  }
}
