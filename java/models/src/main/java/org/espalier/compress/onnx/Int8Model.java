package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
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
import org.espalier.format.NearNames;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * A model whose weights are int8, as one whose weights are floats on the same grids, which can be learned, and the way back.
 * It takes what {@link StaticQuantizer} and {@link DynamicQuantizer} write and what other quantizers write alike:
 *
 * <pre>
 *   DequantizeLinear(W, s)                                            becomes the constant s · W
 *   Mul(Cast(MatMulInteger(q, W, z)), Mul(t, s)), where q, t, z       becomes MatMul(DequantizeLinear(q, t, z), s · W)
 *     are the outputs of DynamicQuantizeLinear
 * </pre>
 *
 * <p>What activations are rounded to stays in the graph, as pairs of QuantizeLinear or DynamicQuantizeLinear and
 * DequantizeLinear. Immutable and safe for several threads.
 */
public final class Int8Model {
  /** The largest integer of a weight, and of its negative. */
  private static final int LARGEST = 127;

  private final OnnxModel model;
  private final OnnxModel floats;
  private final Map<String, Integers> integers;
  private final Map<String, String> resting;

  /**
   * The integers of a constant of floats.
   *
   * @param constant that has them in the model
   * @param type INT8, of a weight, or INT32, of a bias
   * @param axis the first or the last, along which the scales lie
   * @param scales one for each index of the axis, positive
   */
  public record Integers(String constant, DataType type, int axis, float[] scales) {}

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

  /** Whether a model computes with constants of integers. */
  public static boolean is(OnnxModel model) {
    return model.allNodes().stream()
        .anyMatch(
            n ->
                FloatWeights.INTEGER.contains(n.getOpType())
                    && n.getInputList().stream()
                        .anyMatch(v -> model.constant(v) != null && isOfBytes(model.constant(v))));
  }

  private static boolean isOfBytes(OnnxInitializer i) {
    return i.elements() > 1 && (i.type() == DataType.INT8 || i.type() == DataType.UINT8);
  }

  /**
   * Reads a model for which {@link #is} holds.
   *
   * @throws InputException where it has no weight that can be learned, or computes with integers in a way that no gradient passes
   *     through
   */
  public static Int8Model of(OnnxModel model) {
    Reading reading = new Reading(model);
    reading.run();
    return new Int8Model(model.copy(), reading.floats, reading.integers, reading.resting);
  }

  /** The model of floats. The weights of {@link #integers} are initializers of it. */
  public OnnxModel floats() {
    return floats.copy();
  }

  /** By the names of constants in {@link #floats}, in the order of the nodes that read them. */
  public Map<String, Integers> integers() {
    return integers;
  }

  /** Which constants of integers are not learned, and why: a line a reason. */
  public List<String> resting() {
    return lines(resting);
  }

  private static List<String> lines(Map<String, String> resting) {
    Map<String, List<String>> names = new TreeMap<>();
    resting.forEach((name, why) -> names.computeIfAbsent(why, w -> new ArrayList<>()).add(name));
    List<String> lines = new ArrayList<>();
    names.forEach(
        (why, list) ->
            lines.add(
                (list.size() == 1
                        ? "1 weight stays as it is: "
                        : list.size() + " weights stay as they are: ")
                    + why
                    + " ("
                    + NearNames.list("", list)
                    + ")"));
    return lines;
  }

  /**
   * The model with other weights.
   *
   * @param values by the names of constants in {@link #floats}: those that have {@link #integers} are rounded to the nearest on
   *     their grids, all others replace floats
   * @throws InputException where a bias has no integer
   */
  public OnnxModel withValues(Map<String, float[]> values) {
    List<OnnxInitializer> replaced = new ArrayList<>();
    values.forEach(
        (name, now) -> {
          long[] dims = floats.constant(name).dims();
          Integers grid = integers.get(name);
          if (grid == null) {
            replaced.add(OnnxInitializer.floats(name, dims, now));
          } else if (grid.type == DataType.INT8) {
            byte[] bytes = new byte[now.length];
            for (int i = 0; i < bytes.length; i++) {
              double nearest = Math.rint((double) now[i] / grid.scales[place(grid, dims, i)]);
              bytes[i] = (byte) Math.max(-LARGEST, Math.min(LARGEST, nearest));
            }
            replaced.add(OnnxInitializer.bytes(grid.constant, DataType.INT8, dims, bytes));
          } else {
            int[] biases = new int[now.length];
            for (int i = 0; i < biases.length; i++) {
              double nearest = Math.rint((double) now[i] / grid.scales[place(grid, dims, i)]);
              if (!(Math.abs(nearest) <= Integer.MAX_VALUE)) {
                throw new InputException(
                    model.name() + ": " + now[i] + " of the bias " + name + " has no int32");
              }
              biases[i] = (int) nearest;
            }
            replaced.add(OnnxInitializer.int32s(grid.constant, dims, biases));
          }
        });
    OnnxModel copy = model.copy();
    copy.replaceConstants(replaced);
    return copy;
  }

  /** The index of an element's scale. */
  private static int place(Integers grid, long[] dims, int element) {
    long inner = LongStream.of(dims).skip(grid.axis + 1L).reduce(1, (a, b) -> a * b);
    return (int) (element / inner % dims[grid.axis]);
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

    /** The float constants of integers and scales. */
    private final Map<List<String>, String> constants = new HashMap<>();

    /** What values of nodes are called that became constants. */
    private final Map<String, String> renamed = new HashMap<>();

    private final Map<String, String> activations = new HashMap<>();
    private final Set<String> replaced = new HashSet<>();

    Reading(OnnxModel model) {
      this.model = model;
      floats = model.copy();
      producers = model.producers();
      consumers = model.consumers();
      names = floats.names();
    }

    void run() {
      List<NodeProto> out = new ArrayList<>();
      Set<String> outputs = model.outputNames();
      for (NodeProto n : model.nodes()) {
        if (n.getOpType().equals("DequantizeLinear") && model.constant(n.getInput(0)) != null) {
          String constant = outputs.contains(n.getOutput(0)) ? null : dequantized(n);
          if (constant != null) {
            renamed.put(n.getOutput(0), constant);
            continue;
          }
        }
        if (n.getOpType().equals("Mul") && multiply(n, out)) {
          continue;
        }
        out.add(n);
      }
      out.removeIf(n -> replaced.contains(n.getOutput(0)));
      out.replaceAll(this::reread);
      floats.setNodes(out);
      RuntimeForm.removeUnused(floats);
      floats.check();
      floats.allNodes().forEach(this::refuseProducts);
      floats.allNodes().forEach(this::refuseReaders);
      for (NodeProto n : floats.allNodes()) {
        OnnxInitializer table =
            n.getOpType().equals("Gather") ? floats.constant(n.getInput(0)) : null;
        if (table != null && isOfBytes(table)) {
          resting.put(table.name(), "rows are looked up in it");
        }
      }
      if (integers.values().stream().noneMatch(i -> i.type == DataType.INT8)) {
        throw new InputException(
            model.name()
                + " has no int8 weights that can be learned"
                + (resting.isEmpty() ? "" : ": " + String.join("; ", lines(resting))));
      }
    }

    private NodeProto reread(NodeProto n) {
      NodeProto.Builder b = n.toBuilder();
      for (int i = 0; i < n.getInputCount(); i++) {
        b.setInput(i, renamed.getOrDefault(n.getInput(i), n.getInput(i)));
      }
      return b.build();
    }

    /** The constant that a DequantizeLinear of integers becomes; null where it stays. */
    private String dequantized(NodeProto n) {
      OnnxInitializer values = model.constant(n.getInput(0));
      long axis = Attributes.integer(n, "axis", 1);
      int rank = values.dims().length;
      return constant(
          n.getInput(0),
          n.getInput(1),
          n.getInputCount() > 2 ? n.getInput(2) : "",
          (int) (axis < 0 ? axis + rank : axis));
    }

    /**
     * Rewrites a product of integers.
     *
     * @return false where {@code mul} ends none
     */
    private boolean multiply(NodeProto mul, List<NodeProto> out) {
      for (int i = 0; i < 2; i++) {
        NodeProto cast = producer(mul.getInput(i), "Cast");
        NodeProto product = cast == null ? null : producer(cast.getInput(0), "MatMulInteger");
        NodeProto scale = producer(mul.getInput(1 - i), "Mul");
        if (product == null
            || scale == null
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
            || product.getInputCount() < 3
            || !dynamic.getOutput(2).equals(product.getInput(2))) {
          continue;
        }
        int step = scale.getInput(0).equals(dynamic.getOutput(1)) ? 0 : 1;
        if (!scale.getInput(step).equals(dynamic.getOutput(1))) {
          continue;
        }
        String zero = product.getInputCount() > 3 ? product.getInput(3) : "";
        String constant = constant(product.getInput(1), scale.getInput(1 - step), zero, 1);
        if (constant == null) {
          return false;
        }
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
        for (NodeProto n : List.of(cast, product, scale)) {
          replaced.add(n.getOutput(0));
        }
        out.add(
            NodeProto.newBuilder()
                .setOpType("MatMul")
                .setName(mul.getName())
                .addInput(x)
                .addInput(constant)
                .addOutput(mul.getOutput(0))
                .build());
        return true;
      }
      return false;
    }

    private NodeProto producer(String value, String type) {
      NodeProto n = producers.get(value);
      return n != null && n.getOpType().equals(type) && OnnxModel.isOwn(n) ? n : null;
    }

    private boolean isReadOnce(String value) {
      return consumers.getOrDefault(value, List.of()).size() == 1
          && !model.outputNames().contains(value);
    }

    /** The name of the constant s · (W − z), which is made where there is none yet; null where the integers rest. */
    private String constant(String values, String scale, String zero, int axis) {
      List<String> key = List.of(values, scale);
      if (constants.containsKey(key)) {
        return constants.get(key);
      }
      OnnxInitializer w = model.constant(values);
      float[] scales = scales(w, model.constant(scale), axis);
      int place = scales == null || scales.length != 1 ? axis : 0;
      String why = problem(w, scales, zero, place);
      String name = null;
      if (why != null) {
        if (w.elements() > 1) {
          resting.put(values, why);
        }
      } else {
        name = names.unique(values.replaceFirst("_quantized$", ""));
        if (scales.length == 1) {
          float one = scales[0];
          scales = new float[Math.toIntExact(w.dims()[0])];
          Arrays.fill(scales, one);
        }
        Integers grid = new Integers(values, w.type(), place, scales);
        floats.addInitializer(OnnxInitializer.floats(name, w.dims(), multiplied(w, grid)));
        integers.put(name, grid);
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
          scale.dims().length == 1 && axis < w.dims().length && scale.elements() == w.dims()[axis];
      if (scale.elements() != 1 && !along) {
        return null;
      }
      float[] scales = new float[(int) scale.elements()];
      scale.floats().get(scales);
      return scales;
    }

    private String problem(OnnxInitializer w, float[] scales, String zero, int axis) {
      int rank = w.dims().length;
      if (w.type() != DataType.INT8 && w.type() != DataType.INT32) {
        return "integers of type " + w.type() + " in place of INT8";
      }
      if (scales == null) {
        return "scales that are no floats, or neither one nor one for each output";
      }
      if (rank == 0 || w.elements() == 0 || axis != 0 && axis != rank - 1) {
        return "scales along an axis that is neither the first nor the last";
      }
      for (float s : scales) {
        if (!(s > 0) || !Float.isFinite(1 / s)) {
          return "a scale of " + s;
        }
      }
      if (!zero.isEmpty() && !isZero(model.constant(zero))) {
        return "zero points other than 0";
      }
      if (w.type() == DataType.INT8) {
        ByteBuffer data = w.data();
        for (int i = data.position(); i < data.limit(); i++) {
          if (data.get(i) < -LARGEST) {
            return "integers of -128, beyond the grid";
          }
        }
      }
      return null;
    }

    private static boolean isZero(OnnxInitializer zero) {
      if (zero == null) {
        return false;
      }
      ByteBuffer data = zero.data();
      for (int i = data.position(); i < data.limit(); i++) {
        if (data.get(i) != 0) {
          return false;
        }
      }
      return true;
    }

    private static float[] multiplied(OnnxInitializer w, Integers grid) {
      ByteBuffer data = w.data();
      float[] values = new float[Math.toIntExact(w.elements())];
      for (int i = 0; i < values.length; i++) {
        int q =
            w.type() == DataType.INT8
                ? data.get(data.position() + i)
                : data.getInt(data.position() + 4 * i);
        values[i] = q * grid.scales[place(grid, w.dims(), i)];
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
                + " computes with integers in another way than what `quantize --to onnx-qdq` and"
                + " `--to onnx-dynamic` write; the float model can be learned, and quantized again"
                + (resting.isEmpty() ? "" : "; " + String.join("; ", lines(resting))));
      }
    }

    /** Refuses integers of activations that something else reads than what makes floats of them. */
    private void refuseReaders(NodeProto n) {
      if (!n.getOpType().equals("QuantizeLinear")
          && !n.getOpType().equals("DynamicQuantizeLinear")) {
        return;
      }
      for (NodeProto reader : floats.consumers().getOrDefault(n.getOutput(0), List.of())) {
        if (!reader.getOpType().equals("DequantizeLinear")) {
          throw new InputException(
              model.name()
                  + ": "
                  + reader.getOpType()
                  + " reads the integers "
                  + n.getOutput(0)
                  + ", so no gradient passes; the float model can be learned, and quantized again");
        }
      }
    }
  }
}
