package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleLine;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.train.Examples;

/** Numbers of JSON lines as the inputs of models, in their types and shapes. */
final class LineInputs {
  private final Path file;
  private final boolean missing;

  /**
   * @param missing whether NaN says that a value is missing, which the model knows
   */
  LineInputs(Path file, boolean missing) {
    this.file = file;
    this.missing = missing;
  }

  /**
   * The inputs that models have together.
   *
   * @return by name
   */
  static Map<String, ValueInfoProto> asked(List<OnnxModel> models) {
    Map<String, ValueInfoProto> asked = new LinkedHashMap<>();
    for (OnnxModel model : models) {
      model.inputs().forEach(input -> asked.putIfAbsent(input.getName(), input));
    }
    return asked;
  }

  /** How many values an example has for all inputs together; −1 where that is open. */
  static long features(Map<String, ValueInfoProto> asked) {
    long sum = asked.isEmpty() ? -1 : 0;
    for (ValueInfoProto input : asked.values()) {
      long size = size(input);
      sum = sum < 0 || size < 0 ? -1 : Math.addExact(sum, size);
    }
    return sum;
  }

  /**
   * The inputs of examples.
   *
   * @param lines without texts, at least one
   * @param asked the inputs of the models; empty where they are modules, which have one
   * @throws InputException that names the example
   */
  List<Examples.Input> of(List<ExampleLine> lines, Map<String, ValueInfoProto> asked) {
    List<double[][]> rows = rows(lines, List.copyOf(asked.values()));
    List<Examples.Input> inputs = new ArrayList<>();
    if (asked.isEmpty()) {
      inputs.add(
          input(null, SafetensorsDtype.F32, List.of((long) rows.get(0)[0].length), rows.get(0)));
      return inputs;
    }
    int k = 0;
    for (ValueInfoProto value : asked.values()) {
      double[][] own = rows.get(k++);
      inputs.add(input(value.getName(), type(value), shape(value, own[0].length), own));
    }
    return inputs;
  }

  private SafetensorsDtype type(ValueInfoProto input) {
    DataType type = DataType.forNumber(input.getType().getTensorType().getElemType());
    return Examples.Input.TYPES.entrySet().stream()
        .filter(e -> e.getValue() == type)
        .map(Map.Entry::getKey)
        .findAny()
        .orElseThrow(
            () ->
                new InputException(
                    file
                        + ": the input "
                        + input.getName()
                        + " is of "
                        + type
                        + ", which lines have no values of"));
  }

  private InputException wrong(int line, String what) {
    return new InputException(file + ": example " + (line + 1) + ": " + what);
  }

  /** The values of each input, one array an example. */
  private List<double[][]> rows(List<ExampleLine> lines, List<ValueInfoProto> asked) {
    int n = Math.max(1, asked.size());
    List<double[][]> rows = new ArrayList<>();
    for (int k = 0; k < n; k++) {
      rows.add(new double[lines.size()][]);
    }
    long[] sizes = n == 1 ? null : asked.stream().mapToLong(LineInputs::size).toArray();
    List<String> names = asked.stream().map(ValueInfoProto::getName).toList();
    for (int i = 0; i < lines.size(); i++) {
      ExampleLine line = lines.get(i);
      double[][] own =
          line.inputs() != null
              ? named(i, line.inputs(), names)
              : n == 1 ? new double[][] {line.features()} : parts(i, line.features(), sizes, names);
      for (int k = 0; k < n; k++) {
        rows.get(k)[i] = own[k];
        if (own[k].length != rows.get(k)[0].length || own[k].length == 0) {
          throw wrong(
              i,
              (names.isEmpty() ? "features" : "the input " + names.get(k))
                  + " holds "
                  + own[k].length
                  + " numbers"
                  + (i == 0 ? "" : ", earlier ones " + rows.get(k)[0].length));
        }
      }
    }
    return rows;
  }

  private double[][] named(int line, Map<String, double[]> given, List<String> names) {
    for (String name : given.keySet()) {
      if (!names.contains(name)) {
        throw wrong(
            line, "there is no input '" + name + "'; there are " + NearNames.list(name, names));
      }
    }
    double[][] rows = new double[names.size()][];
    for (int k = 0; k < rows.length; k++) {
      rows[k] = given.get(names.get(k));
      if (rows[k] == null) {
        throw wrong(line, "the input " + names.get(k) + " is missing");
      }
    }
    return rows;
  }

  private double[][] parts(int line, double[] all, long[] sizes, List<String> names) {
    if (LongStream.of(sizes).anyMatch(size -> size < 0)) {
      throw wrong(
          line,
          "features are of several inputs whose sizes are open; \"inputs\": {\""
              + names.get(0)
              + "\": …} is right");
    }
    long sum = LongStream.of(sizes).sum();
    if (all.length != sum) {
      throw wrong(line, "features holds " + all.length + " numbers; " + sum + " are right");
    }
    double[][] parts = new double[sizes.length][];
    int at = 0;
    for (int k = 0; k < parts.length; k++) {
      parts[k] = Arrays.copyOfRange(all, at, at + (int) sizes[k]);
      at += (int) sizes[k];
    }
    return parts;
  }

  /** The dimensions of an input behind the batch's; −1 for one that is open. */
  private static long[] dims(ValueInfoProto input) {
    TensorShapeProto shape = input.getType().getTensorType().getShape();
    return shape.getDimList().stream()
        .skip(1)
        .mapToLong(d -> d.hasDimValue() ? d.getDimValue() : -1)
        .toArray();
  }

  /** How many values an example has; −1 where that is open. */
  private static long size(ValueInfoProto input) {
    long[] dims = dims(input);
    return LongStream.of(dims).anyMatch(d -> d < 0)
        ? -1
        : LongStream.of(dims).reduce(1, Math::multiplyExact);
  }

  /** The shape of an example of so many values, in which one dimension may be open. */
  private List<Long> shape(ValueInfoProto input, int values) {
    long[] dims = dims(input);
    long known = 1;
    int open = -1;
    for (int d = 0; d < dims.length; d++) {
      if (dims[d] >= 0) {
        known = Math.multiplyExact(known, dims[d]);
      } else if (open >= 0) {
        throw new InputException(
            file
                + ": the input "
                + input.getName()
                + " leaves several dimensions open; examples in a .safetensors file say their"
                + " shape");
      } else {
        open = d;
      }
    }
    if (open >= 0) {
      dims[open] = known == 0 ? 0 : values / known;
      known *= dims[open];
    }
    if (known != values) {
      throw new InputException(
          file
              + ": the input "
              + input.getName()
              + " holds "
              + values
              + " numbers an example, which are not of the shape "
              + Arrays.toString(dims(input)).replace("-1", "?"));
    }
    return Arrays.stream(dims).boxed().toList();
  }

  private Examples.Input input(
      String name, SafetensorsDtype type, List<Long> shape, double[][] rows) {
    List<byte[]> bytes = new ArrayList<>(rows.length);
    for (int i = 0; i < rows.length; i++) {
      bytes.add(bytes(i, name, type, rows[i]));
      rows[i] = null; // there may be many
    }
    return new Examples.Input(name, type, shape, bytes);
  }

  private byte[] bytes(int line, String name, SafetensorsDtype type, double[] row) {
    String what = name == null ? "features" : "the input " + name;
    ByteBuffer to =
        ByteBuffer.allocate((int) type.bytes(row.length)).order(ByteOrder.LITTLE_ENDIAN);
    for (double value : row) {
      boolean real = type == SafetensorsDtype.F32 || type == SafetensorsDtype.F64 || isHalf(type);
      if (real
          ? !Double.isFinite(value) && !(missing && Double.isNaN(value))
          : !isWhole(type, value)) {
        throw wrong(
            line,
            what
                + " holds "
                + (Double.isNaN(value) ? "null or NaN" : Double.toString(value))
                + "; "
                + (real ? "finite numbers are right" : type + " takes whole numbers of its range"));
      }
      switch (type) {
        case F64 -> to.putDouble(value);
        case F32 -> to.putFloat(finite(line, what, value));
        case I64 -> to.putLong((long) value);
        case I32 -> to.putInt((int) value);
        case U8, BOOL -> to.put((byte) (long) value);
        default -> {} // below
      }
    }
    if (isHalf(type)) {
      float[] floats = new float[row.length];
      for (int i = 0; i < row.length; i++) {
        floats[i] = finite(line, what, row[i]);
      }
      DataType half = type == SafetensorsDtype.F16 ? DataType.FLOAT16 : DataType.BFLOAT16;
      to.put(OnnxInitializer.floats("", new long[] {row.length}, floats).rounded(half).data());
    }
    return to.array();
  }

  private float finite(int line, String what, double value) {
    if (Float.isInfinite((float) value)) {
      throw wrong(line, what + " holds " + value + ", which is too large for float32");
    }
    return (float) value;
  }

  private static boolean isHalf(SafetensorsDtype type) {
    return type == SafetensorsDtype.F16 || type == SafetensorsDtype.BF16;
  }

  private static boolean isWhole(SafetensorsDtype type, double value) {
    double least =
        switch (type) {
          case I64 -> -0x1p53;
          case I32 -> Integer.MIN_VALUE;
          default -> 0;
        };
    double most =
        switch (type) {
          case I64 -> 0x1p53;
          case I32 -> Integer.MAX_VALUE;
          case BOOL -> 1;
          default -> 255;
        };
    return value == Math.rint(value) && value >= least && value <= most;
  }
}
