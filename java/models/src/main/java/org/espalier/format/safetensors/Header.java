package org.espalier.format.safetensors;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import org.espalier.InputException;
import org.espalier.format.Names;

/**
 * The JSON of a safetensors file.
 *
 * @param tensors by name, in the order of {@link Names#ORDER}
 * @param metadata what {@code __metadata__} holds; empty where there is none
 * @param dataBytes the number of bytes that the tensors fill
 */
record Header(SortedMap<String, TensorInfo> tensors, Map<String, String> metadata, long dataBytes) {
  static final String METADATA = "__metadata__";

  /** The longest header, in bytes, that the format allows. */
  static final int MAX_BYTES = 100_000_000;

  /** A bound on what a hostile header of 100 MB can make us hold; real ones have some 100,000. */
  private static final int MAX_TENSORS = 1_000_000;

  private static final int MAX_RANK = 64;

  /** The root, a tensor in it and a list in that. */
  private static final int MAX_DEPTH = 3;

  /**
   * Parses and checks the JSON.
   *
   * @param json the header without its length
   * @param where the file, for messages
   * @throws InputException if anything is not as the format demands
   */
  static Header parse(byte[] json, String where) {
    if (json.length == 0 || json[0] != '{') {
      throw new InputException(where + ": the header does not begin with '{'; " + NOT_SAFETENSORS);
    }
    Map<String, TensorInfo> tensors = new LinkedHashMap<>();
    Map<String, String> metadata = Map.of();
    boolean metadataSeen = false;
    try (JsonParser parser = StrictJson.parser(json, MAX_DEPTH)) {
      parser.nextToken();
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String name = parser.currentName();
        if (!Names.isEncodable(name)) {
          throw new InputException(
              where + ": the name " + Names.quote(name) + " holds a lone surrogate");
        }
        if (name.equals(METADATA)) {
          if (metadataSeen) {
            throw new InputException(where + ": " + METADATA + " occurs twice; once is right");
          }
          metadataSeen = true;
          metadata = metadata(parser, where);
          continue;
        }
        if (tensors.size() == MAX_TENSORS) {
          throw new InputException(
              where + ": the header names more than " + MAX_TENSORS + " tensors");
        }
        String tensor = where + ": tensor " + Names.quote(name);
        if (tensors.put(name, tensor(parser, name, tensor)) != null) {
          throw new InputException(tensor + " occurs twice; names are unique");
        }
      }
      if (parser.nextToken() != null) {
        throw new InputException(where + ": the header goes on after its JSON object");
      }
    } catch (CharacterCodingException e) {
      throw new InputException(where + ": the header is not UTF-8", e);
    } catch (JsonProcessingException e) {
      throw new InputException(where + ": the header is not valid: " + StrictJson.reason(e), e);
    } catch (IOException e) {
      throw new InputException(where + ": the header cannot be read: " + e.getMessage(), e);
    }
    long dataBytes = checkCover(tensors.values(), where);
    SortedMap<String, TensorInfo> sorted = new TreeMap<>(Names.ORDER);
    sorted.putAll(tensors);
    return new Header(sorted, metadata, dataBytes);
  }

  static final String NOT_SAFETENSORS = "it is not a safetensors file or it is damaged";

  private static Map<String, String> metadata(JsonParser parser, String where) throws IOException {
    String place = where + ": " + METADATA;
    if (parser.nextToken() != JsonToken.START_OBJECT) {
      throw new InputException(place + " is " + StrictJson.kind(parser) + ", not an object");
    }
    Map<String, String> metadata = new LinkedHashMap<>();
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      String key = parser.currentName();
      if (parser.nextToken() != JsonToken.VALUE_STRING) {
        throw new InputException(
            place
                + ": the value of "
                + Names.quote(key)
                + " is "
                + StrictJson.kind(parser)
                + "; only strings are allowed");
      }
      String value = parser.getText();
      if (!Names.isEncodable(key) || !Names.isEncodable(value)) {
        throw new InputException(place + ": " + Names.quote(key) + " holds a lone surrogate");
      }
      if (metadata.put(key, value) != null) {
        throw new InputException(place + ": " + Names.quote(key) + " occurs twice");
      }
    }
    return metadata;
  }

  private static TensorInfo tensor(JsonParser parser, String name, String where)
      throws IOException {
    if (parser.nextToken() != JsonToken.START_OBJECT) {
      throw new InputException(
          where
              + " is "
              + StrictJson.kind(parser)
              + "; an object with dtype, shape and data_offsets is right");
    }
    SafetensorsDtype dtype = null;
    List<Long> shape = null;
    List<Long> offsets = null;
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      String key = parser.currentName();
      boolean twice =
          switch (key) {
            case "dtype" -> dtype != null;
            case "shape" -> shape != null;
            case "data_offsets" -> offsets != null;
            default ->
                throw new InputException(
                    where
                        + " has the unknown key "
                        + Names.quote(key)
                        + "; dtype, shape and data_offsets are right");
          };
      if (twice) {
        throw new InputException(where + " has " + key + " twice");
      }
      parser.nextToken();
      switch (key) {
        case "dtype" -> dtype = dtype(parser, where);
        case "shape" -> shape = integers(parser, where, "shape", MAX_RANK);
        default -> offsets = integers(parser, where, "data_offsets", 2);
      }
    }
    if (dtype == null || shape == null || offsets == null) {
      throw new InputException(
          where
              + " has no "
              + (dtype == null ? "dtype" : shape == null ? "shape" : "data_offsets"));
    }
    return tensor(name, dtype, shape, offsets, where);
  }

  /** Checks what a header says of a tensor. */
  private static TensorInfo tensor(
      String name, SafetensorsDtype dtype, List<Long> shape, List<Long> offsets, String where) {
    if (offsets.size() != 2) {
      throw new InputException(
          where + ": data_offsets has " + offsets.size() + " numbers; [begin, end] is right");
    }
    long begin = offsets.get(0);
    long end = offsets.get(1);
    if (end < begin) {
      throw new InputException(where + ": data_offsets end before they begin: " + offsets);
    }
    long bytes;
    try {
      bytes = dtype.bytes(TensorInfo.elements(shape));
    } catch (ArithmeticException e) {
      throw new InputException(
          where + ": shape " + shape + " of " + dtype + " cannot be: " + e.getMessage(), e);
    }
    if (bytes != end - begin) {
      throw new InputException(
          where
              + ": shape "
              + shape
              + " of "
              + dtype
              + " is "
              + bytes
              + " bytes, but data_offsets "
              + offsets
              + " hold "
              + (end - begin));
    }
    return new TensorInfo(name, dtype, shape, begin, end);
  }

  private static SafetensorsDtype dtype(JsonParser parser, String where) throws IOException {
    if (parser.currentToken() != JsonToken.VALUE_STRING) {
      throw new InputException(where + ": dtype is " + StrictJson.kind(parser) + ", not a string");
    }
    String name = parser.getText();
    for (SafetensorsDtype dtype : SafetensorsDtype.values()) {
      if (dtype.name().equals(name)) {
        return dtype;
      }
    }
    throw new InputException(
        where
            + ": unknown dtype "
            + Names.quote(name)
            + "; known are "
            + List.of(SafetensorsDtype.values()));
  }

  private static List<Long> integers(JsonParser parser, String where, String key, int most)
      throws IOException {
    if (parser.currentToken() != JsonToken.START_ARRAY) {
      throw new InputException(
          where + ": " + key + " is " + StrictJson.kind(parser) + ", not a list of integers");
    }
    List<Long> values = new ArrayList<>(4);
    while (parser.nextToken() != JsonToken.END_ARRAY) {
      if (values.size() == most) {
        throw new InputException(where + ": " + key + " has more than " + most + " numbers");
      }
      if (parser.currentToken() != JsonToken.VALUE_NUMBER_INT) {
        throw new InputException(
            where + ": " + key + " holds " + StrictJson.kind(parser) + "; integers are right");
      }
      String text = parser.getText();
      if (text.startsWith("-")) {
        throw new InputException(where + ": " + key + " holds the negative number " + text);
      }
      if (parser.getNumberType() == JsonParser.NumberType.BIG_INTEGER) {
        throw new InputException(where + ": " + key + " holds " + text + ", above 2^63 - 1");
      }
      values.add(parser.getLongValue());
    }
    return values;
  }

  /** Checks that the tensors fill the data from 0 without a hole or an overlap. */
  private static long checkCover(Iterable<TensorInfo> tensors, String where) {
    List<TensorInfo> ordered = new ArrayList<>();
    tensors.forEach(ordered::add);
    ordered.sort(Comparator.comparingLong(TensorInfo::begin).thenComparingLong(TensorInfo::end));
    long position = 0;
    String before = null;
    for (TensorInfo tensor : ordered) {
      if (tensor.begin() != position) {
        boolean hole = tensor.begin() > position;
        throw new InputException(
            where
                + ": tensor "
                + Names.quote(tensor.name())
                + " begins at byte "
                + tensor.begin()
                + (hole ? " and leaves a hole after " : " and overlaps ")
                + (before == null ? "the header" : Names.quote(before))
                + ", which ends at "
                + position);
      }
      position = tensor.end();
      before = tensor.name();
    }
    return position;
  }

  /**
   * Lays the tensors out by the width of their elements, the widest first, then by name: so every
   * tensor begins at a multiple of its element size.
   */
  static List<TensorInfo> layOut(List<TensorSpec> specs) {
    List<TensorSpec> ordered = new ArrayList<>(specs);
    ordered.sort(
        Comparator.comparingInt((TensorSpec spec) -> spec.dtype().bits())
            .reversed()
            .thenComparing(TensorSpec::name, Names.ORDER));
    List<TensorInfo> tensors = new ArrayList<>(ordered.size());
    long position = 0;
    for (TensorSpec spec : ordered) {
      long end = Math.addExact(position, spec.bytes());
      tensors.add(new TensorInfo(spec.name(), spec.dtype(), spec.shape(), position, end));
      position = end;
    }
    return tensors;
  }

  /** The length and the JSON, padded with spaces to a multiple of 8, metadata sorted by key. */
  static ByteBuffer encode(List<TensorInfo> tensors, Map<String, String> metadata) {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    bytes.writeBytes(new byte[Long.BYTES]);
    try (JsonGenerator json = new JsonFactory().createGenerator(bytes)) {
      json.writeStartObject();
      if (!metadata.isEmpty()) {
        json.writeObjectFieldStart(METADATA);
        SortedMap<String, String> sorted = new TreeMap<>(Names.ORDER);
        sorted.putAll(metadata);
        for (Map.Entry<String, String> entry : sorted.entrySet()) {
          json.writeStringField(entry.getKey(), entry.getValue());
        }
        json.writeEndObject();
      }
      for (TensorInfo tensor : tensors) {
        json.writeObjectFieldStart(tensor.name());
        json.writeStringField("dtype", tensor.dtype().name());
        json.writeArrayFieldStart("shape");
        for (long size : tensor.shape()) {
          json.writeNumber(size);
        }
        json.writeEndArray();
        json.writeArrayFieldStart("data_offsets");
        json.writeNumber(tensor.begin());
        json.writeNumber(tensor.end());
        json.writeEndArray();
        json.writeEndObject();
      }
      json.writeEndObject();
    } catch (IOException e) {
      throw new IllegalStateException("a header cannot be written to memory", e);
    }
    while (bytes.size() % 8 != 0) {
      bytes.write(' ');
    }
    int length = bytes.size() - Long.BYTES;
    if (length > MAX_BYTES) {
      throw new InputException(
          "a header of " + length + " bytes is too long; the format allows " + MAX_BYTES);
    }
    ByteBuffer header = ByteBuffer.wrap(bytes.toByteArray()).order(ByteOrder.LITTLE_ENDIAN);
    return header.putLong(0, length);
  }
}
