package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;

/**
 * A model whose weights are int8, as one whose weights are floats on the same grids, which can be learned, and the way back.
 * It takes what {@link StaticQuantizer} and {@link DynamicQuantizer} write and what other quantizers write alike:
 *
 * <pre>
 *   DequantizeLinear(W, s, c)                                         becomes the constant s · (W − c)
 *   DequantizeLinear(QuantizeLinear(F, s, c), s, c)                   becomes what it makes of the constant F
 *   Mul(Cast(MatMulInteger(q, W, z, c)), Mul(t, s)), where q, t, z    becomes MatMul(DequantizeLinear(q, t, z), s · (W − c))
 *     are the outputs of DynamicQuantizeLinear
 * </pre>
 *
 * <p>What activations are rounded to stays in the graph, as pairs of QuantizeLinear or DynamicQuantizeLinear and
 * DequantizeLinear. Immutable and safe for several threads.
 */
public final class Int8Model {
  /** The largest integer of a weight about what 0 is. */
  private static final int LARGEST = 127;

  /** What reads zero points. */
  private static final Set<String> ROUNDING = Set.of("QuantizeLinear", "DequantizeLinear");

  /** Elements whose floats fit one tensor. */
  private static final long MOST_ELEMENTS = Integer.MAX_VALUE / 4;

  private final OnnxModel model;
  private final OnnxModel floats;
  private final Map<String, Integers> integers;
  private final Map<String, String> resting;

  /**
   * The integers of a constant of floats.
   *
   * @param constant that has them in the model, or the floats that are rounded to them
   * @param areRounded whether it has floats, which the model itself rounds, as one that was trained so and not converted
   * @param type INT8 or UINT8, of a weight, or INT32, of a bias
   * @param axis the first or the last, along which the scales lie
   * @param scales one for each index of the axis, positive
   * @param zero the integer that 0 is
   */
  public record Integers(
      String constant, boolean areRounded, DataType type, int axis, float[] scales, int zero) {
    /** The least about {@link #zero}, which is −127 or −128. */
    private int least() {
      return Math.max(Byte.MIN_VALUE, (type == DataType.UINT8 ? 0 : Byte.MIN_VALUE) - zero);
    }

    /** Whether they lie between {@link #least} and {@link #LARGEST} about zero; else they are biases, whose grid has no ends. */
    public boolean areOfBytes() {
      return type != DataType.INT32;
    }

    /** How many elements lie behind each other for each index of the axis. */
    private int inner(long[] dims) {
      return Math.toIntExact(LongStream.of(dims).skip(axis + 1L).reduce(1, (a, b) -> a * b));
    }

    /** The scale of an element. */
    private float scale(int element, int inner) {
      return scales[element / inner % scales.length];
    }

    /** The nearest integers about {@link #zero}. */
    private int[] nearest(long[] dims, float[] values) {
      int inner = inner(dims);
      int[] nearest = new int[values.length];
      for (int i = 0; i < nearest.length; i++) {
        double q = Math.rint((double) values[i] / scale(i, inner));
        nearest[i] = (int) Math.max(least(), Math.min(LARGEST, q));
      }
      return nearest;
    }
  }

  private Int8Model(
      OnnxModel model,
      OnnxModel floats,
      Map<String, Integers> integers,
      Map<String, String> resting) {
    this.model = model;
    this.floats = floats;
    this.integers = integers;
    this.resting = resting;
  }

  /** Whether a model computes with constants of integers, or makes integers of constants. */
  public static boolean is(OnnxModel model) {
    return model.allNodes().stream()
        .anyMatch(
            n ->
                isRoundedConstant(model, n)
                    || FloatWeights.INTEGER.contains(n.getOpType())
                        && n.getInputList().stream()
                            .anyMatch(
                                v -> model.constant(v) != null && isOfBytes(model.constant(v))));
  }

  /** Whether a node rounds a constant of floats. */
  private static boolean isRoundedConstant(OnnxModel model, NodeProto n) {
    return n.getOpType().equals("QuantizeLinear")
        && model.constant(n.getInput(0)) != null
        && model.constant(n.getInput(0)).elements() > 1;
  }

  private static boolean isOfBytes(OnnxInitializer i) {
    return i.elements() > 1 && isOfBytes(i.type());
  }

  static boolean isOfBytes(DataType type) {
    return type == DataType.INT8 || type == DataType.UINT8;
  }

  /**
   * An integer of a constant.
   *
   * @param type INT8, UINT8 or INT32
   */
  static int integer(DataType type, ByteBuffer data, int i) {
    return switch (type) {
      case INT8 -> data.get(i);
      case UINT8 -> Byte.toUnsignedInt(data.get(i));
      default -> data.getInt(4 * i);
    };
  }

  /**
   * Reads a model for which {@link #is} holds.
   *
   * @throws InputException where it has no weight that can be learned, or computes with integers in a way that no gradient passes
   *     through
   */
  public static Int8Model of(OnnxModel model) {
    Reading reading = new Reading(withPlainConstants(model));
    reading.run();
    return new Int8Model(model.copy(), reading.floats, reading.integers, reading.resting);
  }

  /** The model where roundings read constants themselves, not Identities, nor Casts of zero points, which PyTorch may write. */
  private static OnnxModel withPlainConstants(OnnxModel model) {
    OnnxModel copy = model.copy();
    OnnxModel.Names names = copy.names();
    Map<String, List<NodeProto>> consumers = model.consumers();
    Map<String, String> renamed = new HashMap<>();
    List<NodeProto> others = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutput(0);
      OnnxInitializer from = n.getInputCount() == 1 ? model.constant(n.getInput(0)) : null;
      boolean isForRoundings =
          from != null
              && OnnxModel.isOwn(n)
              && !model.outputNames().contains(output)
              && consumers.getOrDefault(output, List.of()).stream()
                  .allMatch(reader -> ROUNDING.contains(reader.getOpType()));
      boolean isZero =
          isForRoundings
              && consumers.getOrDefault(output, List.of()).stream()
                  .allMatch(reader -> !reader.getInput(0).equals(output));
      byte[] cast = isZero && n.getOpType().equals("Cast") ? bytes(from, castType(n)) : null;
      if (isForRoundings && n.getOpType().equals("Identity")) {
        renamed.put(output, n.getInput(0));
      } else if (cast != null) {
        String name = names.unique(output);
        copy.addInitializer(OnnxInitializer.bytes(name, castType(n), from.dims(), cast));
        renamed.put(output, name);
      } else {
        others.add(Nodes.reading(n, renamed));
      }
    }
    copy.setNodes(others);
    return copy;
  }

  private static DataType castType(NodeProto cast) {
    return DataType.forNumber((int) Attributes.integer(cast, "to", 0));
  }

  /** Constant integers in 8 bits; null where they do not fit, or are none. */
  private static byte[] bytes(OnnxInitializer from, DataType to) {
    if (!isOfBytes(to) || from.type() != DataType.INT32 && from.type() != DataType.INT64) {
      return null;
    }
    ByteBuffer data = from.data();
    byte[] bytes = new byte[Math.toIntExact(from.elements())];
    for (int i = 0; i < bytes.length; i++) {
      long value = from.type() == DataType.INT32 ? data.getInt(4 * i) : data.getLong(8 * i);
      bytes[i] = (byte) value;
      if (value != (to == DataType.INT8 ? bytes[i] : Byte.toUnsignedInt(bytes[i]))) {
        return null;
      }
    }
    return bytes;
  }

  /** The model of floats. The weights of {@link #integers} are initializers of it. */
  public OnnxModel floats() {
    return floats.copy();
  }

  /** By the names of constants in {@link #floats}, in the order of the nodes that read them. */
  public Map<String, Integers> integers() {
    return integers;
  }

  /** The integers of a constant in {@link #floats} of which they are the grid; null where it has none, or one without ends. */
  public Integers grid(String constant) {
    Integers grid = integers.get(constant);
    return grid != null && grid.areOfBytes() ? grid : null;
  }

  /** Which constants of integers are not learned, and why: a line a reason. */
  public List<String> resting() {
    return lines(resting);
  }

  private static List<String> lines(Map<String, String> resting) {
    return FloatWeights.lines(resting, "stays as it is", "stay as they are");
  }

  /**
   * The model with other weights.
   *
   * @param values as {@link #constants} takes them
   * @throws InputException where a bias has no integer
   */
  public OnnxModel withValues(Map<String, float[]> values) {
    OnnxModel copy = model.copy();
    copy.replaceConstants(constants(values));
    return copy;
  }

  /**
   * The constants of the model that other weights are, by its own names for them.
   *
   * @param values by the names of constants in {@link #floats}: those that have {@link #integers} are rounded to the nearest on
   *     their grids, as floats where the model itself rounds them; all others are floats
   * @throws InputException where a bias has no integer
   */
  public List<OnnxInitializer> constants(Map<String, float[]> values) {
    List<OnnxInitializer> replaced = new ArrayList<>();
    values.forEach(
        (name, now) -> {
          long[] dims = floats.constant(name).dims();
          Integers grid = integers.get(name);
          if (grid == null) {
            replaced.add(OnnxInitializer.floats(name, dims, now));
            return;
          }
          int inner = grid.inner(dims);
          if (grid.areRounded) {
            int[] nearest = grid.nearest(dims, now);
            float[] rounded = new float[now.length];
            for (int i = 0; i < rounded.length; i++) {
              rounded[i] = nearest[i] * grid.scale(i, inner);
            }
            replaced.add(OnnxInitializer.floats(grid.constant, dims, rounded));
          } else if (grid.areOfBytes()) {
            int[] nearest = grid.nearest(dims, now);
            byte[] bytes = new byte[now.length];
            for (int i = 0; i < bytes.length; i++) {
              bytes[i] = (byte) (nearest[i] + grid.zero);
            }
            replaced.add(OnnxInitializer.bytes(grid.constant, grid.type, dims, bytes));
          } else {
            int[] biases = new int[now.length];
            for (int i = 0; i < biases.length; i++) {
              double nearest = Math.rint((double) now[i] / grid.scale(i, inner));
              if (!(Math.abs(nearest) <= Integer.MAX_VALUE)) {
                throw new InputException(
                    model.name() + ": " + now[i] + " of the bias " + name + " has no int32");
              }
              biases[i] = (int) nearest;
            }
            replaced.add(OnnxInitializer.int32s(grid.constant, dims, biases));
          }
        });
    return replaced;
  }

  /** One pass over the nodes. */
  private static final class Reading {
    private final OnnxModel model;
    final OnnxModel floats;
    final Map<String, Integers> integers = new LinkedHashMap<>();
    final Map<String, String> resting = new TreeMap<>();
    private final Map<String, NodeProto> producers;
    private final Map<String, List<NodeProto>> consumers;
    private final OnnxModel.Names names;

    /** How many nodes read the same integers in the same way. */
    private final Map<Key, Integer> readers = new HashMap<>();

    /** The float constants of integers; null where these rest. */
    private final Map<Key, String> constants = new HashMap<>();

    /** What values of nodes are called that became constants. */
    private final Map<String, String> renamed = new HashMap<>();

    private final Map<String, String> activations = new HashMap<>();
    private final Set<String> replaced = new HashSet<>();

    /**
     * Integers, and what makes floats of them.
     *
     * @param values the constant of integers, or of floats that are rounded to them
     * @param zero the name of the zero points; empty where they are 0
     * @param rounded to what type the floats are rounded; null where they are integers
     */
    private record Key(String values, String scale, String zero, int axis, DataType rounded) {}

    /** A product of integers from its end, which is a float again, to what found the range of its input. */
    private record Product(
        NodeProto dynamic, NodeProto product, NodeProto cast, NodeProto scale, Key weight) {}

    /**
     * A node.
     *
     * @param product that it ends; null where it ends none
     * @param key the integers of it, or that it makes floats of; null where there are none
     */
    private record Part(NodeProto node, Product product, Key key) {}

    Reading(OnnxModel model) {
      this.model = model;
      floats = model.copy();
      producers = model.producers();
      consumers = model.consumers();
      names = floats.names();
    }

    void run() {
      List<Part> parts = new ArrayList<>();
      for (NodeProto n : model.nodes()) {
        Product product = product(n);
        Part part = new Part(n, product, product == null ? dequantized(n) : product.weight);
        parts.add(part);
        if (part.key != null) {
          readers.merge(part.key, 1, Integer::sum);
        }
      }
      List<NodeProto> out = new ArrayList<>();
      for (Part part : parts) {
        String constant = part.key == null ? null : constant(part.key);
        if (constant == null) {
          out.add(part.node);
        } else if (part.product == null) {
          renamed.put(part.node.getOutput(0), constant);
        } else {
          multiply(part, constant, out);
        }
      }
      out.removeIf(n -> replaced.contains(n.getOutput(0)));
      out.replaceAll(n -> Nodes.reading(n, renamed));
      floats.setNodes(out);
      RuntimeForm.removeUnused(floats);
      floats.check();
      floats.allNodes().forEach(this::refuseProducts);
      refuseReaders();
      for (NodeProto n : floats.allNodes()) {
        OnnxInitializer table =
            n.getOpType().equals("Gather") ? floats.constant(n.getInput(0)) : null;
        if (table != null && isOfBytes(table)) {
          resting.put(table.name(), "rows that are looked up");
        }
        if (isRoundedConstant(floats, n)) {
          resting.putIfAbsent(
              n.getInput(0), "floats that the model itself rounds to integers in another way");
        }
      }
      if (integers.values().stream().noneMatch(Integers::areOfBytes)
          && OnnxWeights.of(floats).isEmpty()) {
        throw new InputException(
            model.name()
                + " has no int8 weights that can be learned"
                + (resting.isEmpty() ? "" : ": " + String.join("; ", lines(resting))));
      }
    }

    /** What a DequantizeLinear makes a constant of; null for other nodes, and where a constant has no place for it. */
    private Key dequantized(NodeProto n) {
      if (!n.getOpType().equals("DequantizeLinear") || !OnnxModel.isOwn(n)) {
        return null;
      }
      NodeProto rounding = model.constant(n.getInput(0)) == null ? rounding(n) : null;
      String name = rounding == null ? n.getInput(0) : rounding.getInput(0);
      OnnxInitializer values = model.constant(name);
      if (values == null) {
        return null;
      }
      String floatsOf = n.getOutput(0);
      if (model.outputNames().contains(floatsOf)
          || consumers.getOrDefault(floatsOf, List.of()).stream()
              .anyMatch(reader -> !InnerGraphs.of(reader).isEmpty())) {
        resting.put(name, "the model gives its floats away, or a branch reads its floats");
        return null;
      }
      long rank = values.dims().length;
      long axis = Attributes.integer(n, "axis", 1);
      long place = axis < 0 ? axis + rank : axis;
      return new Key(
          name,
          n.getInput(1),
          input(n, 2),
          place < 0 || place >= rank ? -1 : (int) place,
          rounding == null ? null : roundedType(rounding));
    }

    /** What rounds a constant of floats to the integers that a DequantizeLinear takes back with the same steps; else null. */
    private NodeProto rounding(NodeProto n) {
      NodeProto q = producer(n.getInput(0), "QuantizeLinear");
      return q != null
              && isRoundedConstant(model, q)
              && model.constant(q.getInput(0)).type() == DataType.FLOAT
              && RoundedActivations.isSame(model, q, n, 1)
              && RoundedActivations.isSame(model, q, n, 2)
              && Attributes.integer(q, "axis", 1) == Attributes.integer(n, "axis", 1)
              && Attributes.integer(q, "block_size", 0) == 0
              && Attributes.integer(q, "precision", 0) == 0
              && Attributes.integer(n, "output_dtype", 0) == 0
          ? q
          : null;
    }

    private DataType roundedType(NodeProto q) {
      OnnxInitializer zero = model.constant(input(q, 2));
      long asked = Attributes.integer(q, "output_dtype", 0);
      return zero != null
          ? zero.type()
          : asked == 0 ? DataType.UINT8 : DataType.forNumber((int) asked);
    }

    private static String input(NodeProto n, int i) {
      return i < n.getInputCount() ? n.getInput(i) : "";
    }

    /** The product of integers that a node ends; null where it ends none. */
    private Product product(NodeProto mul) {
      if (!mul.getOpType().equals("Mul") || !OnnxModel.isOwn(mul)) {
        return null;
      }
      for (int i = 0; i < 2; i++) {
        NodeProto cast = producer(mul.getInput(i), "Cast");
        NodeProto product = cast == null ? null : producer(cast.getInput(0), "MatMulInteger");
        NodeProto scale = producer(mul.getInput(1 - i), "Mul");
        if (product == null
            || scale == null
            || Attributes.integer(cast, "to", 0) != DataType.FLOAT.getNumber()
            || !isReadOnce(cast.getOutput(0))
            || !isReadOnce(product.getOutput(0))
            || !isReadOnce(scale.getOutput(0))) {
          continue;
        }
        NodeProto dynamic = producer(product.getInput(0), "DynamicQuantizeLinear");
        OnnxInitializer w = model.constant(product.getInput(1));
        if (dynamic == null
            || w == null
            || w.dims().length != 2
            || !dynamic.getOutput(2).equals(input(product, 2))) {
          continue;
        }
        int step = scale.getInput(0).equals(dynamic.getOutput(1)) ? 0 : 1;
        if (scale.getInput(step).equals(dynamic.getOutput(1))) {
          Key weight =
              new Key(product.getInput(1), scale.getInput(1 - step), input(product, 3), 1, null);
          return new Product(dynamic, product, cast, scale, weight);
        }
      }
      return null;
    }

    /** Writes a product of floats where one of integers ends. */
    private void multiply(Part part, String constant, List<NodeProto> out) {
      Product product = part.product;
      NodeProto dynamic = product.dynamic;
      String x =
          activations.computeIfAbsent(
              dynamic.getOutput(0),
              quantized -> {
                String value = names.unique("dequantized");
                out.add(
                    Nodes.node(
                            "DequantizeLinear",
                            value,
                            quantized,
                            dynamic.getOutput(1),
                            dynamic.getOutput(2))
                        .build());
                return value;
              });
      for (NodeProto n : List.of(product.cast, product.product, product.scale)) {
        replaced.add(n.getOutput(0));
      }
      out.add(
          NodeProto.newBuilder()
              .setOpType("MatMul")
              .setName(part.node.getName())
              .addInput(x)
              .addInput(constant)
              .addOutput(part.node.getOutput(0))
              .build());
    }

    private NodeProto producer(String value, String type) {
      NodeProto n = producers.get(value);
      return n != null && OnnxModel.isOwn(n, type) ? n : null;
    }

    private boolean isReadOnce(String value) {
      return consumers.getOrDefault(value, List.of()).size() == 1
          && !model.outputNames().contains(value);
    }

    /** The name of the constant s · (W − z), which is made where there is none yet; null where the integers rest. */
    private String constant(Key key) {
      if (constants.containsKey(key)) {
        return constants.get(key);
      }
      OnnxInitializer w = model.constant(key.values);
      float[] scales = scales(w, model.constant(key.scale), key.axis);
      int place = scales == null || scales.length != 1 ? key.axis : 0;
      Integer zero = key.zero.isEmpty() ? Integer.valueOf(0) : zero(model.constant(key.zero));
      DataType type = key.rounded == null ? w.type() : key.rounded;
      String why = problem(w, type, scales, zero, place);
      String name = null;
      if (why == null) {
        if (scales.length == 1) {
          float one = scales[0];
          scales = new float[Math.toIntExact(w.dims()[0])];
          Arrays.fill(scales, one);
        }
        Integers grid = new Integers(key.values, key.rounded != null, type, place, scales, zero);
        OnnxInitializer data = grid.areRounded ? rounded(w, grid) : w;
        why = data == null ? "floats that are not finite" : problem(key, data, zero);
        if (why == null) {
          float[] values = multiplied(data, grid);
          if (grid.areRounded) {
            name = key.values;
            floats.replaceConstant(OnnxInitializer.floats(name, w.dims(), values));
          } else {
            name = names.unique(key.values.replaceFirst("_quantized$", ""));
            floats.addInitializer(OnnxInitializer.floats(name, w.dims(), values));
          }
          integers.put(name, grid);
        }
      }
      if (why != null && w.elements() > 1) {
        resting.put(key.values, why);
      }
      constants.put(key, name);
      return name;
    }

    /** One scale, or one for each index of the axis; null where they lie otherwise. */
    private static float[] scales(OnnxInitializer w, OnnxInitializer scale, int axis) {
      if (scale == null || scale.type() != DataType.FLOAT) {
        return null;
      }
      boolean along =
          scale.dims().length == 1
              && axis >= 0
              && axis < w.dims().length
              && scale.elements() == w.dims()[axis];
      if (scale.elements() != 1 && !along) {
        return null;
      }
      float[] scales = new float[(int) scale.elements()];
      scale.floats().get(scales);
      return scales;
    }

    /** Why a constant does not lie on a grid; null where it does. */
    private static String problem(
        OnnxInitializer w, DataType type, float[] scales, Integer zero, int axis) {
      int rank = w.dims().length;
      if (!isOfBytes(type) && type != DataType.INT32) {
        return "integers of type " + type + " in place of INT8";
      }
      if (w.elements() > MOST_ELEMENTS) {
        return "more than " + MOST_ELEMENTS + " elements";
      }
      if (scales == null) {
        return "scales that are no floats, or neither one nor one for each output";
      }
      if (rank == 0 || w.elements() == 0 || axis != 0 && axis != rank - 1) {
        return "scales along an axis that is neither the first nor the last";
      }
      for (float s : scales) {
        if (!(s > 0) || !Float.isFinite(s) || !Float.isFinite(1 / s)) {
          return "a scale of " + s;
        }
      }
      if (zero == null) {
        return "zero points that differ, or are not constant";
      }
      if (type == DataType.INT32 && zero != 0) {
        return "a zero point of " + zero + " in place of 0";
      }
      int least = type == DataType.UINT8 ? 0 : Byte.MIN_VALUE;
      if (isOfBytes(type) && (zero - LARGEST < least || zero + LARGEST > least + 255)) {
        return "a zero point of "
            + zero
            + " in place of "
            + (type == DataType.UINT8 ? "127 or 128" : "0");
      }
      return null;
    }

    /** Why integers cannot be others; null where they can. */
    private String problem(Key key, OnnxInitializer integers, int zero) {
      ByteBuffer data = integers.data();
      for (int i = 0; isOfBytes(integers.type()) && i < integers.elements(); i++) {
        int q = integer(integers.type(), data, i);
        if (q - zero > LARGEST) {
          return "integers of " + q + ", beyond the grid";
        }
      }
      if (readers.get(key) != readings(key) || model.outputNames().contains(key.values)) {
        return key.rounded == null
            ? "other nodes read the integers in another way"
            : "other nodes read the floats or their integers in another way";
      }
      return null;
    }

    /** How many nodes read integers. */
    private int readings(Key key) {
      List<NodeProto> own = consumers.get(key.values);
      if (key.rounded == null) {
        return own.size();
      }
      int all = 0;
      for (NodeProto n : own) {
        String rounded = n.getOutput(0);
        boolean isRead =
            n.getOpType().equals("QuantizeLinear") && !model.outputNames().contains(rounded);
        all += isRead ? consumers.getOrDefault(rounded, List.of()).size() : 1;
      }
      return all;
    }

    /** The integers that the model rounds floats to: rint(w / s) + zero within the type; null where they are not finite. */
    private static OnnxInitializer rounded(OnnxInitializer w, Integers grid) {
      FloatBuffer values = w.floats();
      byte[] integers = new byte[values.capacity()];
      int inner = grid.inner(w.dims());
      int least = grid.type == DataType.UINT8 ? 0 : Byte.MIN_VALUE;
      for (int i = 0; i < integers.length; i++) {
        double q = Math.rint(values.get(i) / grid.scale(i, inner)) + grid.zero;
        if (!Double.isFinite(values.get(i))) {
          return null;
        }
        integers[i] = (byte) Math.max(least, Math.min(least + 255, q));
      }
      return OnnxInitializer.bytes(w.name(), grid.type, w.dims(), integers);
    }

    /** The value that all zero points have; null where there is no one. */
    private static Integer zero(OnnxInitializer zero) {
      if (zero == null
          || zero.elements() == 0
          || !isOfBytes(zero.type()) && zero.type() != DataType.INT32) {
        return null;
      }
      ByteBuffer data = zero.data();
      int first = integer(zero.type(), data, 0);
      for (int i = 1; i < zero.elements(); i++) {
        if (integer(zero.type(), data, i) != first) {
          return null;
        }
      }
      return first;
    }

    private static float[] multiplied(OnnxInitializer w, Integers grid) {
      ByteBuffer data = w.data();
      float[] values = new float[Math.toIntExact(w.elements())];
      int inner = grid.inner(w.dims());
      for (int i = 0; i < values.length; i++) {
        values[i] = (integer(w.type(), data, i) - grid.zero) * grid.scale(i, inner);
      }
      return values;
    }

    private void refuseProducts(NodeProto n) {
      if (FloatWeights.INTEGER.contains(n.getOpType())
          && !n.getOpType().equals("DequantizeLinear")) {
        throw new InputException(
            model.name()
                + ": "
                + n.getOpType()
                + " "
                + (n.getName().isEmpty() ? n.getOutput(0) : n.getName())
                + (isTiedHead(n)
                    ? " multiplies with the integers of a table that rows are looked up in too,"
                        + " turned, which cannot be learned"
                    : " computes with integers in another way than what `quantize --to onnx-qdq`"
                        + " and `--to onnx-dynamic` write")
                + "; the float model can be learned, and quantized again"
                + (resting.isEmpty() ? "" : "; " + String.join("; ", lines(resting))));
      }
    }

    /** Whether a product of integers takes those of a table, as the head of a language model may. */
    private boolean isTiedHead(NodeProto n) {
      NodeProto turned =
          n.getOpType().equals("MatMulInteger") ? producer(n.getInput(1), "Transpose") : null;
      return turned != null
          && consumers.get(turned.getInput(0)).stream()
              .anyMatch(reader -> reader.getOpType().equals("Gather"));
    }

    /** Refuses integers of activations that something else reads than what makes floats of them with the same steps. */
    private void refuseReaders() {
      Map<String, List<NodeProto>> readersOf = floats.consumers();
      Map<String, NodeProto> producersOf = floats.producers();
      for (NodeProto n : floats.allNodes()) {
        boolean rounds =
            n.getOpType().equals("QuantizeLinear") || n.getOpType().equals("DynamicQuantizeLinear");
        if (!rounds || isRoundedConstant(floats, n)) {
          continue;
        }
        for (NodeProto reader : behindClips(readersOf, n.getOutput(0))) {
          RoundedActivations.Rounded rounded = RoundedActivations.of(floats, producersOf, reader);
          if (rounded == null || rounded.source() != n) {
            throw new InputException(
                model.name()
                    + ": "
                    + reader.getOpType()
                    + " reads the integers "
                    + n.getOutput(0)
                    + (reader.getOpType().equals("DequantizeLinear")
                        ? " with other steps than the one that they were made with"
                        : "")
                    + ", so no gradient passes; the float model can be learned, and quantized"
                    + " again");
          }
        }
      }
    }

    /** The nodes that read a value, those that read what a Clip keeps of it in place of the Clip. */
    private static List<NodeProto> behindClips(
        Map<String, List<NodeProto>> readersOf, String value) {
      List<NodeProto> readers = new ArrayList<>();
      for (NodeProto reader : readersOf.getOrDefault(value, List.of())) {
        if (OnnxModel.isOwn(reader, "Clip")) {
          readers.addAll(readersOf.getOrDefault(reader.getOutput(0), List.of()));
        } else {
          readers.add(reader);
        }
      }
      return readers;
    }
  }
}
