package org.espalier.store;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.time.DateTimeException;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.JsonReason;

/** The store's JSON files. Whoever can write to the folder may have changed them. */
final class Records {
  private static final int MAX_BYTES = 64 << 20;
  private static final int MAX_DEPTH = 32;

  private static final ObjectMapper JSON =
      new ObjectMapper(
              JsonFactory.builder()
                  .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                  .streamReadConstraints(
                      StreamReadConstraints.builder()
                          .maxNestingDepth(MAX_DEPTH)
                          .maxStringLength(MAX_BYTES)
                          .build())
                  .build())
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .enable(SerializationFeature.INDENT_OUTPUT);

  private Records() {}

  static ObjectNode object() {
    return JsonNodeFactory.instance.objectNode();
  }

  static byte[] bytes(JsonNode json) {
    try {
      return (JSON.writeValueAsString(json) + "\n").getBytes(StandardCharsets.UTF_8);
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("a tree of JSON cannot be written", e);
    }
  }

  /**
   * The bytes of a small file.
   *
   * @throws NoSuchFileException if there is none
   */
  static byte[] read(Path file) throws IOException {
    if (!Files.isRegularFile(file, LinkOption.NOFOLLOW_LINKS)) {
      if (!Files.exists(file, LinkOption.NOFOLLOW_LINKS)) {
        throw new NoSuchFileException(file.toString());
      }
      throw new InputException(file + " is not a regular file");
    }
    try (InputStream in = Files.newInputStream(file)) {
      byte[] bytes = in.readNBytes(MAX_BYTES + 1);
      if (bytes.length > MAX_BYTES) {
        throw new InputException(file + " has more than " + MAX_BYTES + " bytes");
      }
      return bytes;
    }
  }

  /** Parses a record and checks that its format is one that this code knows. */
  static JsonNode parse(byte[] bytes, Path file) {
    JsonNode json;
    try (JsonParser parser = JSON.createParser(new String(bytes, StandardCharsets.UTF_8))) {
      json = JSON.readTree(parser);
    } catch (IOException e) {
      String reason = e instanceof JsonProcessingException p ? JsonReason.of(p) : e.getMessage();
      throw new InputException(file + " is damaged: " + reason, e);
    }
    if (json == null || !json.isObject()) {
      throw new InputException(file + " is damaged: it is not a JSON object");
    }
    long format = integer(json, "format", file, 1);
    if (format > ModelStore.FORMAT) {
      throw new InputException(
          file
              + " is of format "
              + format
              + ", which a newer espalier wrote; this one knows formats"
              + " up to "
              + ModelStore.FORMAT);
    }
    return json;
  }

  static long integer(JsonNode json, String key, Path file, long least) {
    JsonNode value = json.get(key);
    if (value == null
        || !value.isIntegralNumber()
        || !value.canConvertToLong()
        || value.asLong() < least) {
      throw new InputException(
          file + " is damaged: " + key + " is " + value + ", not an integer from " + least + " on");
    }
    return value.asLong();
  }

  static List<Long> integers(JsonNode json, String key, Path file) {
    JsonNode value = json.get(key);
    List<Long> list = new ArrayList<>();
    if (value != null && value.isArray()) {
      for (JsonNode item : value) {
        if (!item.isIntegralNumber() || !item.canConvertToLong() || item.asLong() < 1) {
          throw new InputException(file + " is damaged: " + key + " holds " + item);
        }
        list.add(item.asLong());
      }
      return list;
    }
    throw new InputException(file + " is damaged: " + key + " is not a list");
  }

  private static String text(JsonNode json, String key, Path file) {
    JsonNode value = json.get(key);
    if (value == null || value.isNull()) {
      return null;
    }
    if (!value.isTextual()) {
      throw new InputException(file + " is damaged: " + key + " is " + value + ", not a string");
    }
    return value.asText();
  }

  /** A list of strings that may be missing. */
  private static List<String> texts(JsonNode json, String key, Path file) {
    JsonNode value = json.get(key);
    List<String> list = new ArrayList<>();
    if (value == null) {
      return list;
    }
    if (!value.isArray()) {
      throw new InputException(file + " is damaged: " + key + " is not a list");
    }
    for (JsonNode item : value) {
      if (!item.isTextual()) {
        throw new InputException(file + " is damaged: " + key + " holds " + item);
      }
      list.add(item.asText());
    }
    return list;
  }

  static byte[] encode(Version version) {
    ObjectNode json = object();
    json.put("format", ModelStore.FORMAT).put("id", version.id());
    json.put("created", version.created().toString()).put("model", version.model());
    ArrayNode files = json.putArray("files");
    for (Version.StoredFile file : version.files()) {
      files
          .addObject()
          .put("path", file.path())
          .put("bytes", file.bytes())
          .put("sha256", file.sha256());
    }
    json.set("lineage", encode(version.lineage()));
    return bytes(json);
  }

  private static ObjectNode encode(Lineage lineage) {
    ObjectNode json = object();
    if (lineage.parent() != null) {
      json.put("parent", lineage.parent());
    }
    put(json, "source", lineage.source());
    put(json, "recipe", lineage.recipe());
    if (lineage.data() != null) {
      ObjectNode data = json.putObject("data");
      put(data, "source", lineage.data().source());
      data.put("from", lineage.data().from()).put("to", lineage.data().to());
      if (!lineage.data().begins().isEmpty()) {
        ArrayNode begins = data.putArray("begins");
        lineage.data().begins().forEach(begins::add);
      }
    }
    ObjectNode metrics = json.putObject("metrics");
    lineage.metrics().forEach(metrics::put);
    if (lineage.epsilon() != null) {
      json.put("epsilon", lineage.epsilon());
    }
    put(json, "note", lineage.note());
    return json;
  }

  private static void put(ObjectNode json, String key, String value) {
    if (value != null) {
      json.put(key, value);
    }
  }

  /**
   * A version's record.
   *
   * @param id what the folder is called, which the record must agree with
   */
  static Version version(byte[] bytes, Path file, long id, boolean signed) {
    JsonNode json = parse(bytes, file);
    long recorded = integer(json, "id", file, 1);
    if (recorded != id) {
      throw new InputException(
          file + " is the record of version " + recorded + ", not of version " + id);
    }
    try {
      JsonNode listed = json.get("files");
      if (listed == null || !listed.isArray()) {
        throw new InputException(file + " is damaged: files is not a list");
      }
      List<Version.StoredFile> files = new ArrayList<>();
      Set<String> paths = new HashSet<>();
      for (JsonNode f : listed) {
        String path = required(f, "path", file);
        files.add(
            new Version.StoredFile(
                path, integer(f, "bytes", file, 0), required(f, "sha256", file)));
        if (!paths.add(path)) {
          throw new InputException(file + " is damaged: it names " + path + " twice");
        }
      }
      return new Version(
          id,
          Instant.parse(required(json, "created", file)),
          required(json, "model", file),
          files,
          lineage(json.get("lineage"), file),
          signed);
    } catch (IllegalArgumentException | DateTimeException e) {
      throw new InputException(file + " is damaged: " + e.getMessage(), e);
    }
  }

  private static String required(JsonNode json, String key, Path file) {
    String value = text(json, key, file);
    if (value == null) {
      throw new InputException(file + " is damaged: " + key + " is missing");
    }
    return value;
  }

  private static Lineage lineage(JsonNode json, Path file) {
    if (json == null || !json.isObject()) {
      throw new InputException(file + " is damaged: lineage is not an object");
    }
    Lineage.DataWindow data = null;
    JsonNode window = json.get("data");
    if (window != null) {
      data =
          new Lineage.DataWindow(
              text(window, "source", file),
              integer(window, "from", file, 0),
              integer(window, "to", file, 0),
              texts(window, "begins", file));
    }
    Map<String, Double> metrics = new LinkedHashMap<>();
    JsonNode measured = json.get("metrics");
    if (measured != null) {
      for (Map.Entry<String, JsonNode> metric : measured.properties()) {
        if (!metric.getValue().isNumber()) {
          throw new InputException(
              file + " is damaged: the metric " + metric.getKey() + " is no number");
        }
        metrics.put(metric.getKey(), metric.getValue().asDouble());
      }
    }
    JsonNode epsilon = json.get("epsilon");
    if (epsilon != null && !epsilon.isNumber()) {
      throw new InputException(file + " is damaged: epsilon is no number");
    }
    return new Lineage(
        json.has("parent") ? integer(json, "parent", file, 1) : null,
        text(json, "source", file),
        text(json, "recipe", file),
        data,
        metrics,
        epsilon == null ? null : epsilon.asDouble(),
        text(json, "note", file));
  }
}
