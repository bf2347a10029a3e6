package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/**
 * Embedding tables as int8 rows with one scale a row. A look-up gathers a row of integers and its scale
 * and multiplies them. The scales are float16, rounded up before the rows are quantized with them, so
 * that nothing clips; where one is outside the normal range of float16, or training moved it, all are float32.
 */
final class EmbeddingTables {
  /** Elements of a table; smaller ones are no saving worth three nodes. */
  private static final long SMALLEST = 1 << 16;

  /** The smallest normal and the largest float16. */
  private static final float SMALLEST_HALF = 0x1p-14f;

  private static final float LARGEST_HALF = 65504;

  /** Where the look-up stands among the nodes of {@link #lookUp(OnnxModel, OnnxModel.Names, NodeProto, String, float[])}. */
  static final int GATHER = 1;

  /**
   * A table in a model.
   *
   * @param rows the integers [rows, width]
   * @param scales [rows, 1]
   * @param half whether they are float16
   * @param zeroPoint the float that stands for 0 among the integers; null where that is 0
   * @param factors what looked up rows are multiplied with [width]; null for nothing
   */
  private record Table(
      String rows, String scales, boolean half, String zeroPoint, String factors) {}

  /** The integers of a table, with one scale a row. */
  record Integers(byte[] values, float[] scales) {}

  private final OnnxModel model;
  private final OnnxModel.Names names;
  private final Map<String, Integers> given;
  private final Map<String, Table> tables = new HashMap<>();

  /**
   * Tables of a model.
   *
   * @param given by the constants that hold them; what is not among them is quantized as it is
   */
  EmbeddingTables(OnnxModel model, OnnxModel.Names names, Map<String, Integers> given) {
    this.model = model;
    this.names = names;
    this.given = given;
  }

  /**
   * The tables of a model that can be quantized, by the outputs of the Gathers that look up in them.
   *
   * @param include which weights are wanted
   * @param wanted whether tables are
   * @param elsewhere look-ups that are replaced elsewhere
   * @param skipped receives the name of each included table that is not found, with the reason
   */
  static Map<String, OnnxWeight> find(
      OnnxModel model,
      Predicate<OnnxWeight> include,
      boolean wanted,
      Predicate<String> elsewhere,
      Map<String, String> skipped) {
    Map<String, OnnxWeight> tables = new LinkedHashMap<>();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (!include.test(weight)) {
        continue;
      }
      for (Use use : weight.uses()) {
        if (use.kind() == Kind.EMBEDDING && !elsewhere.test(use.node())) {
          String reason =
              !wanted
                  ? "embeddings are left as they are"
                  : model.constant(weight.value()).elements() < SMALLEST
                      ? "the table is small"
                      : obstacle(model, weight, use);
          if (reason == null) {
            tables.put(use.node(), weight);
          } else {
            skipped.put(weight.name(), reason);
          }
        }
      }
    }
    return tables;
  }

  /** Why the use of a weight is no look-up in a table that can be quantized; null if it is. */
  static String obstacle(OnnxModel model, OnnxWeight weight, Use use) {
    OnnxInitializer w = model.constant(weight.value());
    return weight.isEmbedding()
            && weight.otherUses() == 0
            && use.isDirect()
            && w.type() == DataType.FLOAT
            && w.dims().length == 2
        ? null
        : "it is no table of float32 rows that is only looked up in";
  }

  /**
   * The nodes that take the place of a Gather.
   *
   * @param gather the look-up
   * @param name what an error calls the table
   */
  List<NodeProto> lookUp(NodeProto gather, String name) {
    return lookUp(gather, tables.computeIfAbsent(gather.getInput(0), value -> store(name, value)));
  }

  /** The same for a table that {@link #share} stored. */
  List<NodeProto> lookUpShared(NodeProto gather, String value) {
    return lookUp(gather, tables.get(value));
  }

  private List<NodeProto> lookUp(NodeProto gather, Table table) {
    List<NodeProto> nodes = new ArrayList<>();
    String rows = names.unique("rows");
    String scales = names.unique("row_scale");
    nodes.add(gather.toBuilder().setInput(0, table.rows()).setOutput(0, rows).build());
    nodes.add(
        gather.toBuilder().clearName().setInput(0, table.scales()).setOutput(0, scales).build());
    String realRows = toFloat(nodes, "row_real", rows);
    if (table.zeroPoint() != null) {
      String about = names.unique("row_about_zero");
      nodes.add(Nodes.node("Sub", about, realRows, table.zeroPoint()).clearName().build());
      realRows = about;
    }
    String realScales = table.half() ? toFloat(nodes, "row_scale_real", scales) : scales;
    String output = gather.getOutput(0);
    String scaled = table.factors() == null ? output : names.unique("row_scaled");
    nodes.add(Nodes.node("Mul", scaled, realRows, realScales).clearName().build());
    if (table.factors() != null) {
      nodes.add(Nodes.node("Mul", output, scaled, table.factors()).clearName().build());
    }
    return nodes;
  }

  /**
   * Stores a table whose integers a product reads too.
   *
   * @param value what it is called
   * @param kind what the integers become
   * @param columns its integers as the product has them [width, scales]
   * @param scales one a row
   * @param factors what looked up rows are divided by; null for nothing
   * @return the name of the integers [scales, width]
   */
  String share(String value, WeightIntegers kind, byte[] columns, float[] scales, float[] factors) {
    int count = scales.length;
    ByteBuffer rows = ByteBuffer.allocateDirect(columns.length);
    for (int row = 0; row < count; row++) {
      for (int at = row; at < columns.length; at += count) {
        rows.put(columns[at]);
      }
    }
    String inverse = factors == null ? null : reciprocals(model, names, value, factors);
    Table made =
        new Table(
            names.unique(value + "_quantized"),
            names.unique(value + "_row_scale"),
            false,
            zeroPoint(kind),
            inverse);
    long[] dims = {count, columns.length / count};
    model.addInitializer(
        OnnxInitializer.of(made.rows(), kind.type(), dims, kind.stored(rows.flip())));
    model.addInitializer(OnnxInitializer.floats(made.scales(), new long[] {count, 1}, scales));
    tables.put(value, made);
    return made.rows();
  }

  private String zeroPoint(WeightIntegers kind) {
    int zero = Byte.toUnsignedInt(kind.zeroPoint());
    if (zero == 0) {
      return null;
    }
    String name = names.unique("row_zero_point");
    model.addInitializer(OnnxInitializer.floats(name, new long[0], zero));
    return name;
  }

  /**
   * The nodes that take the place of a Gather and read what a product reads, W [width, rows].
   *
   * @param factors what looked up rows are divided by; null for nothing
   */
  static List<NodeProto> lookUp(
      OnnxModel model, OnnxModel.Names names, NodeProto gather, String weight, float[] factors) {
    String output = gather.getOutput(0);
    String rows = names.unique(weight + "_rows");
    String found = factors == null ? output : names.unique(output + "_scaled");
    List<NodeProto> nodes = new ArrayList<>();
    nodes.add(Nodes.node("Transpose", rows, weight).addAttribute(Nodes.swap()).build());
    nodes.add(gather.toBuilder().setInput(0, rows).setOutput(0, found).build());
    if (factors != null) {
      String inverse = reciprocals(model, names, output, factors);
      nodes.add(Nodes.node("Mul", output, found, inverse).clearName().build());
    }
    return nodes;
  }

  /** Adds a vector of 1 / factor, and gives its name. */
  static String reciprocals(OnnxModel model, OnnxModel.Names names, String value, float[] factors) {
    float[] inverse = new float[factors.length];
    for (int c = 0; c < inverse.length; c++) {
      inverse[c] = 1 / factors[c];
    }
    String name = names.unique(value + "_factor");
    model.addInitializer(OnnxInitializer.floats(name, new long[] {inverse.length}, inverse));
    return name;
  }

  private String toFloat(List<NodeProto> nodes, String name, String value) {
    String real = names.unique(name);
    nodes.add(
        Nodes.node("Cast", real, value)
            .clearName()
            .addAttribute(Attributes.attribute("to", DataType.FLOAT_VALUE))
            .build());
    return real;
  }

  /**
   * Replaces tables by the values that their integers stand for; quantizing them again gives the same.
   *
   * @param names of the tables, by the constants that hold them
   */
  static void round(OnnxModel model, Map<String, String> names) {
    names.forEach((value, name) -> round(model, name, value));
  }

  private static void round(OnnxModel model, String name, String value) {
    OnnxInitializer table = model.constant(value);
    Int8Weights q = quantize(name, table);
    int width = Math.toIntExact(table.dims()[1]);
    float[] values = new float[q.values().remaining()];
    for (int i = 0; i < values.length; i++) {
      values[i] = q.scales()[i / width] * q.values().get(i);
    }
    model.replaceConstant(OnnxInitializer.floats(value, table.dims(), values));
  }

  private static Int8Weights quantize(String name, OnnxInitializer table) {
    int largest = Int8Weights.MAX_8_BIT;
    Int8Weights q = Int8Weights.of(name, table.floats(), table.dims(), 0, largest, null);
    float[] halves = halvesAbove(q.scales());
    return halves == null
        ? q
        : Int8Weights.of(name, table.floats(), table.dims(), 0, largest, halves);
  }

  /**
   * Tables with the integers that they have in the file if they are not trained.
   *
   * @param names of the tables, by the constants that hold them
   */
  static List<QuantizedTable> nearest(OnnxModel model, Map<String, String> names) {
    List<QuantizedTable> result = new ArrayList<>();
    names.forEach(
        (value, name) -> {
          Integers q = integers(quantize(name, model.constant(value)));
          result.add(
              new QuantizedTable(
                  name,
                  value,
                  WeightGrid.channels(Int8Weights.MAX_8_BIT, 0),
                  q.values(),
                  q.scales()));
        });
    return result;
  }

  /**
   * What is given for a table.
   *
   * @param names of the tables, by the constants that hold them
   * @throws IllegalArgumentException where it is for none of them, or does not fit the table
   */
  static Integers checked(
      OnnxModel model, Map<String, String> names, String value, byte[] integers, float[] scales) {
    if (!names.containsKey(value)) {
      throw new IllegalArgumentException("no table of integers is made of " + value);
    }
    long[] dims = model.constant(value).dims();
    if (integers.length != dims[0] * dims[1] || scales.length != dims[0]) {
      throw new IllegalArgumentException(
          value
              + " has "
              + dims[0]
              + " rows of "
              + dims[1]
              + "; given are "
              + integers.length
              + " integers and "
              + scales.length
              + " scales");
    }
    return new Integers(integers.clone(), scales.clone());
  }

  private static Integers integers(Int8Weights q) {
    return new Integers(q.integers(), q.scales());
  }

  private Table store(String name, String value) {
    OnnxInitializer table = model.constant(value);
    long[] dims = table.dims();
    Integers q = given.containsKey(value) ? given.get(value) : integers(quantize(name, table));
    boolean half = Arrays.equals(halvesAbove(q.scales()), q.scales());
    Table made =
        new Table(
            names.unique(value + "_quantized"), names.unique(value + "_scale"), half, null, null);
    ByteBuffer rows = ByteBuffer.allocateDirect(q.values().length).put(q.values()).flip();
    model.addInitializer(OnnxInitializer.of(made.rows(), DataType.INT8, dims, rows));
    long[] scaleDims = {dims[0], 1};
    model.addInitializer(
        half
            ? OnnxInitializer.of(made.scales(), DataType.FLOAT16, scaleDims, bits(q.scales()))
            : OnnxInitializer.floats(made.scales(), scaleDims, q.scales()));
    return made;
  }

  /** The next float16 that is not smaller, of each; null where one has none among the normal ones. */
  private static float[] halvesAbove(float[] scales) {
    float[] halves = new float[scales.length];
    for (int i = 0; i < scales.length; i++) {
      // A float16 has 13 bits fewer of fraction; a carry into the exponent is right.
      halves[i] = Float.intBitsToFloat((Float.floatToRawIntBits(scales[i]) + 0x1fff) & ~0x1fff);
      if (halves[i] < SMALLEST_HALF || halves[i] > LARGEST_HALF) {
        return null;
      }
    }
    return halves;
  }

  private static ByteBuffer bits(float[] halves) {
    ByteBuffer bits = ByteBuffer.allocateDirect(2 * halves.length).order(ByteOrder.LITTLE_ENDIAN);
    for (float half : halves) {
      // From a bias of 127 to one of 15.
      bits.putShort((short) ((Float.floatToRawIntBits(half) - (112 << 23)) >> 13));
    }
    return bits.flip();
  }
}
