package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.StringStringEntryProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import org.espalier.InputException;

/** What a tensor message may say: element sizes, data lengths, and data in files of its own. */
final class OnnxTensors {
  private OnnxTensors() {}

  /** Bits of an element; 0 for strings, which have no fixed size. */
  static int bits(DataType type) {
    return switch (type) {
      case UINT4, INT4 -> 4;
      case UINT8, INT8, BOOL, FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ -> 8;
      case UINT16, INT16, FLOAT16, BFLOAT16 -> 16;
      case FLOAT, INT32, UINT32 -> 32;
      case DOUBLE, INT64, UINT64, COMPLEX64 -> 64;
      case COMPLEX128 -> 128;
      case STRING -> 0;
      default -> throw new IllegalArgumentException(type.toString());
    };
  }

  /**
   * The product of {@code dims}; throws {@link ArithmeticException} where a long cannot hold it.
   */
  static long elements(long[] dims) {
    long n = 1;
    boolean zero = false;
    for (long d : dims) {
      if (d < 0) {
        throw new IllegalArgumentException("dimension " + d);
      }
      zero |= d == 0;
    }
    for (long d : dims) {
      n = zero ? 0 : Math.multiplyExact(n, d);
    }
    return n;
  }

  static long bytes(DataType type, long elements) {
    int bits = bits(type);
    return bits == 4 ? elements / 2 + elements % 2 : Math.multiplyExact(elements, bits / 8);
  }

  /** The bytes of a tensor that was checked. */
  static long bytes(TensorProto t) {
    return bytes(type(t), elements(t.getDimsList().stream().mapToLong(Long::longValue).toArray()));
  }

  static DataType type(TensorProto t) {
    return DataType.forNumber(t.getDataType());
  }

  static StringStringEntryProto entry(String key, String value) {
    return StringStringEntryProto.newBuilder().setKey(key).setValue(value).build();
  }

  /**
   * Checks type, dimensions and data length of {@code t}.
   *
   * @param where the start of an error message: the file and the tensor
   */
  static void check(TensorProto t, String where) {
    DataType type = type(t);
    if (type == null || type == DataType.UNDEFINED) {
      throw new InputException(where + " has the unknown data type " + t.getDataType());
    }
    for (long d : t.getDimsList()) {
      if (d < 0) {
        throw new InputException(where + " has the negative dimension " + d);
      }
    }
    long elements;
    long bytes;
    try {
      elements = elements(t.getDimsList().stream().mapToLong(Long::longValue).toArray());
      bytes = bytes(type, elements);
    } catch (ArithmeticException e) {
      throw new InputException(where + " has dimensions beyond 64 bits: " + t.getDimsList(), e);
    }
    if (t.hasSegment()) {
      throw new InputException(where + " is stored in segments, which no runtime reads");
    }
    int forms =
        (t.hasRawData() ? 1 : 0)
            + (t.getFloatDataCount() > 0 ? 1 : 0)
            + (t.getInt32DataCount() > 0 ? 1 : 0)
            + (t.getInt64DataCount() > 0 ? 1 : 0)
            + (t.getDoubleDataCount() > 0 ? 1 : 0)
            + (t.getUint64DataCount() > 0 ? 1 : 0)
            + (t.getStringDataCount() > 0 ? 1 : 0);
    if (t.getDataLocation() == DataLocation.EXTERNAL) {
      if (forms > 0) {
        throw new InputException(where + " has data in the model and in a file of its own");
      }
      if (type == DataType.STRING) {
        throw new InputException(where + " has strings in a file of its own");
      }
    } else if (forms > 1) {
      throw new InputException(where + " has data of more than one kind");
    } else if (t.hasRawData()) {
      checkRaw(t, bytes, where);
    } else {
      checkTyped(t, elements, bytes, forms > 0, where);
    }
  }

  private static void checkRaw(TensorProto t, long bytes, String where) {
    DataType type = type(t);
    if (type == DataType.STRING) {
      throw new InputException(where + " has strings as raw data");
    }
    if (t.getRawData().size() != bytes) {
      throw new InputException(
          where
              + " has "
              + t.getRawData().size()
              + " bytes of data where its dimensions "
              + t.getDimsList()
              + " of "
              + type
              + " take "
              + bytes);
    }
  }

  /**
   * @param hasAny whether it has values of some type
   */
  private static void checkTyped(
      TensorProto t, long elements, long bytes, boolean hasAny, String where) {
    DataType type = type(t);
    long given = typedCount(t, type);
    long wanted =
        switch (type) {
          case COMPLEX64, COMPLEX128 -> Math.multiplyExact(2, elements);
          case UINT4, INT4 -> bytes;
          default -> elements;
        };
    if (given != wanted || given == 0 && hasAny) {
      throw new InputException(
          where
              + " has "
              + given
              + " values of "
              + type
              + " where its dimensions "
              + t.getDimsList()
              + " take "
              + wanted);
    }
  }

  private static int typedCount(TensorProto t, DataType type) {
    return switch (type) {
      case FLOAT, COMPLEX64 -> t.getFloatDataCount();
      case DOUBLE, COMPLEX128 -> t.getDoubleDataCount();
      case INT64 -> t.getInt64DataCount();
      case UINT32, UINT64 -> t.getUint64DataCount();
      case STRING -> t.getStringDataCount();
      default -> t.getInt32DataCount();
    };
  }

  /** The typed fields of a checked tensor as raw data. */
  static ByteBuffer typedData(TensorProto t) {
    DataType type = type(t);
    int n = typedCount(t, type);
    int bits =
        switch (type) {
          case COMPLEX64 -> 32;
          case COMPLEX128 -> 64;
          case UINT4, INT4 -> 8;
          case STRING ->
              throw new InputException("the tensor " + t.getName() + " holds strings, not numbers");
          default -> bits(type);
        };
    ByteBuffer out =
        ByteBuffer.allocateDirect(Math.multiplyExact(n, bits / 8)).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      switch (type) {
        case FLOAT, COMPLEX64 -> out.putFloat(t.getFloatData(i));
        case DOUBLE, COMPLEX128 -> out.putDouble(t.getDoubleData(i));
        case INT64 -> out.putLong(t.getInt64Data(i));
        case UINT64 -> out.putLong(t.getUint64Data(i));
        case UINT32 -> out.putInt((int) inRange(t, t.getUint64Data(i), 0, 0xFFFFFFFFL));
        case INT32 -> out.putInt(t.getInt32Data(i));
        case INT16 -> out.putShort((short) inRange(t, t.getInt32Data(i), -32768, 32767));
        case UINT16, FLOAT16, BFLOAT16 ->
            out.putShort((short) inRange(t, t.getInt32Data(i), 0, 65535));
        case INT8 -> out.put((byte) inRange(t, t.getInt32Data(i), -128, 127));
        case BOOL -> out.put((byte) inRange(t, t.getInt32Data(i), 0, 1));
        default -> out.put((byte) inRange(t, t.getInt32Data(i), 0, 255));
      }
    }
    return out.flip();
  }

  private static long inRange(TensorProto t, long value, long min, long max) {
    if (value < min || value > max) {
      throw new InputException(
          "the tensor " + t.getName() + " holds " + value + ", which is no " + type(t));
    }
    return value;
  }

  /** Where the data of a tensor lies outside its model. */
  record External(Path file, long offset, long length) {}

  /**
   * Finds the data of an external tensor.
   *
   * @param model the model's file, null for a model that is none
   * @throws InputException if the location leaves the folder, or the file lacks the data
   */
  static External external(TensorProto t, Path model, String where) {
    Map<String, String> entries = new HashMap<>();
    for (StringStringEntryProto e : t.getExternalDataList()) {
      if (entries.put(e.getKey(), e.getValue()) != null) {
        throw new InputException(where + " names '" + e.getKey() + "' of its external data twice");
      }
    }
    String location = entries.get("location");
    if (location == null || location.isEmpty()) {
      throw new InputException(where + " has external data without a location");
    }
    if (model == null) {
      throw new InputException(
          where + " has external data in " + location + ", but the model is not a file");
    }
    Path file = inside(model, location, where);
    long bytes = bytes(t);
    long offset = number(entries.getOrDefault("offset", "0"), "offset", where);
    if (entries.containsKey("length")) {
      long length = number(entries.get("length"), "length", where);
      if (length != bytes) {
        throw new InputException(
            where
                + " names "
                + length
                + " bytes of external data where its dimensions "
                + t.getDimsList()
                + " of "
                + type(t)
                + " take "
                + bytes);
      }
    }
    long size;
    try {
      size = Files.size(file);
    } catch (IOException e) {
      throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
    }
    if (offset > size || bytes > size - offset) {
      throw new InputException(
          where
              + " has its data at bytes "
              + offset
              + " to "
              + offset
              + "+"
              + bytes
              + " of "
              + file
              + ", which has only "
              + size);
    }
    return new External(file, offset, bytes);
  }

  /**
   * A file in the model's folder. It may be a link where the model is one too, as caches of the hub have both: then it lies in the
   * folder of the file that the model is a link to.
   */
  private static Path inside(Path model, String location, String where) {
    Path folder = model.toAbsolutePath().getParent();
    Path relative;
    try {
      relative = Path.of(location);
    } catch (InvalidPathException e) {
      throw new InputException(where + " has external data in no valid path: " + location, e);
    }
    boolean leaves = relative.isAbsolute();
    for (Path part : relative) {
      leaves |= part.toString().equals("..");
    }
    if (leaves) {
      throw new InputException(
          where
              + " points to "
              + location
              + ": external data must lie in the model's folder, and its path have no '..'");
    }
    Path file = folder.resolve(relative);
    if (!Files.exists(file)) {
      throw new InputException(
          where + " needs the external data file " + file + ", which is missing");
    }
    try {
      Path real = file.toRealPath();
      if (!real.startsWith(folder.toRealPath())
          && !real.startsWith(model.toRealPath().getParent())) {
        throw new InputException(
            where
                + " points to "
                + file
                + ", a link to "
                + real
                + ": external data must lie in the model's folder");
      }
    } catch (IOException e) {
      throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
    }
    if (!Files.isRegularFile(file) || !Files.isReadable(file)) {
      throw new InputException(where + " points to " + file + ", which is not a readable file");
    }
    return file;
  }

  private static long number(String text, String key, String where) {
    if (text.length() > 18 || !text.chars().allMatch(c -> c >= '0' && c <= '9') || text.isEmpty()) {
      throw new InputException(
          where + " has external data with the " + key + " '" + text + "', not a number of bytes");
    }
    return Long.parseLong(text);
  }
}
