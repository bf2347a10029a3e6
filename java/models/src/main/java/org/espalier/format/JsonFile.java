package org.espalier.format;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.io.IOException;
import java.nio.file.Path;
import org.espalier.InputException;

/** Small files of JSON from outside, in which no key is there twice and nothing follows the value. */
public final class JsonFile {
  private static final JsonMapper STRICT =
      JsonMapper.builder()
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .build();

  private JsonFile() {}

  /**
   * Reads a file.
   *
   * @param most bytes that it may have
   * @throws InputException that says why it cannot be read, or is not JSON
   */
  public static JsonNode read(Path file, int most) {
    return read(file, most, STRICT);
  }

  /** The same by a mapper of one's own, for files of others that keep other rules. */
  public static JsonNode read(Path file, int most, JsonMapper mapper) {
    try {
      return mapper.readTree(InputFile.bytes(file, most));
    } catch (JsonProcessingException e) {
      throw new InputException(file + " is not JSON: " + JsonReason.of(e), e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }
}
