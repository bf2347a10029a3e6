package org.espalier.online.model;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;

/** Perceptrons of int8 in all forms that are learned without libtorch, drawn at random. */
final class Int8Perceptrons {
  static final int OUTPUTS = 3;

  private final Random random;
  private final boolean isDynamic;
  private final GraphProto.Builder graph = GraphProto.newBuilder().setName("int8");
  private String value = "x";

  /** Whether all weights are, where one in four is else. */
  private final boolean isUnsigned;

  private Int8Perceptrons(long seed, boolean isDynamic, boolean isUnsigned) {
    random = new Random(seed);
    this.isDynamic = isDynamic;
    this.isUnsigned = isUnsigned;
  }

  /**
   * x [batch, features] to y [batch, {@link #OUTPUTS}], of one to four layers.
   *
   * @param isDynamic whether ranges of activations are found while it runs; else they are fixed
   */
  static OnnxModel drawn(long seed, boolean isDynamic) {
    return new Int8Perceptrons(seed, isDynamic, false).model(seed);
  }

  /** The same, with weights of which products are exact in ONNX Runtime on this machine. */
  static OnnxModel exact(long seed, boolean isDynamic) {
    return new Int8Perceptrons(seed, isDynamic, !ExactProducts.areHere()).model(seed);
  }

  private OnnxModel model(long seed) {
    int width = features(seed);
    graph
        .addInput(SmallModels.value("x", DataType.FLOAT, -1, width))
        .addOutput(SmallModels.value("y", DataType.FLOAT, -1, OUTPUTS));
    if (random.nextBoolean()) {
      graph.addInitializer(SmallModels.floats("mean", random, 0.3f, width));
      add("Sub", "centred", "mean");
    }
    int layers = 1 + random.nextInt(4);
    for (int l = 1; l <= layers; l++) {
      int outputs = l == layers ? OUTPUTS : 4 + random.nextInt(40);
      layer("l" + l, width, outputs, l == layers);
      width = outputs;
    }
    graph.addNode(SmallModels.line("y Identity " + value));
    return OnnxModel.of(SmallModels.model(17, graph), "int8 " + seed);
  }

  static int features(long seed) {
    return 3 + (int) (seed * 7 % 40);
  }

  private void add(String type, String output, String other) {
    graph.addNode(SmallModels.line(output + " " + type + " " + value + " " + other));
    value = output;
  }

  private void layer(String name, int in, int out, boolean isLast) {
    if (random.nextInt(3) == 0) {
      float[] factors = new float[in];
      for (int j = 0; j < in; j++) {
        factors[j] = 0.5f + random.nextFloat();
      }
      graph.addInitializer(SmallModels.floats(name + ".factor", factors, in));
      add("Mul", name + ".scaled", name + ".factor");
    }
    if (isDynamic) {
      dynamic(name, in, out);
    } else {
      fixed(name, in, out);
    }
    if (isLast) {
      return;
    }
    List<String> activations = List.of("Relu", "Tanh", "Sigmoid", "LeakyRelu", "");
    String activation = activations.get(random.nextInt(5));
    if (!activation.isEmpty()) {
      graph.addNode(SmallModels.line(name + ".active " + activation + " " + value));
      value = name + ".active";
    }
  }

  private void dynamic(String name, int in, int out) {
    String q = name + ".q";
    graph.addNode(
        SmallModels.line(q + " DynamicQuantizeLinear " + value).toBuilder()
            .addOutput(name + ".t")
            .addOutput(name + ".z"));
    String weight = integers(name, in, out, in, random.nextBoolean());
    String scale = weight.split(" ")[1];
    String zero = weight.split(" ").length > 2 ? weight.split(" ")[2] : "";
    String w = weight.split(" ")[0];
    graph
        .addNode(
            SmallModels.line(name + ".i MatMulInteger " + q + " " + w + " " + name + ".z " + zero))
        .addNode(
            SmallModels.line(
                name + ".c Cast " + name + ".i",
                SmallModels.attribute("to", DataType.FLOAT.getNumber())))
        .addNode(SmallModels.line(name + ".m Mul " + scale + " " + name + ".t"))
        .addNode(SmallModels.line(name + ".p Mul " + name + ".c " + name + ".m"));
    value = name + ".p";
    if (random.nextInt(4) > 0) {
      graph.addInitializer(SmallModels.floats(name + ".bias", random, 0.2f, out));
      add("Add", name + ".sum", name + ".bias");
    }
  }

  private void fixed(String name, int in, int out) {
    if (random.nextInt(4) > 0) {
      round(name + ".read");
    }
    boolean isGemm = random.nextBoolean();
    boolean isTurned = !isGemm && random.nextBoolean();
    boolean outputsFirst = isGemm || isTurned;
    boolean isFloat = random.nextInt(5) == 0;
    String weight = name + ".weight";
    if (isFloat) {
      long[] dims = outputsFirst ? new long[] {out, in} : new long[] {in, out};
      graph.addInitializer(SmallModels.floats(weight, random, (float) Math.sqrt(1.0 / in), dims));
    } else {
      String integers =
          outputsFirst
              ? integers(name, out, in, in, random.nextBoolean())
              : integers(name, in, out, in, random.nextBoolean());
      boolean isOne = !integers.contains(".scales");
      NodeProto.Builder node =
          SmallModels.line(weight + " DequantizeLinear " + integers).toBuilder();
      if (!isOne) {
        node.addAttribute(SmallModels.attribute("axis", 1));
      }
      graph.addNode(node);
    }
    if (isGemm) {
      graph
          .addInitializer(
              SmallModels.tensor(name + ".bias_quantized", DataType.INT32, ints(out), out))
          .addInitializer(SmallModels.number(name + ".bias_scale", 1e-4f))
          .addNode(
              SmallModels.line(
                  name
                      + ".bias DequantizeLinear "
                      + name
                      + ".bias_quantized "
                      + name
                      + ".bias_scale"))
          .addNode(
              SmallModels.line(
                  name + ".sum Gemm " + value + " " + weight + " " + name + ".bias",
                  SmallModels.attribute("transB", 1)));
      value = name + ".sum";
    } else {
      if (isTurned) {
        graph.addNode(SmallModels.line(name + ".turned Transpose " + weight));
        weight = name + ".turned";
      }
      add("MatMul", name + ".product", weight);
      if (random.nextBoolean()) {
        graph.addInitializer(SmallModels.floats(name + ".bias", random, 0.2f, out));
        add("Add", name + ".sum", name + ".bias");
      }
    }
    if (random.nextInt(3) == 0) {
      round(name + ".sums");
    }
  }

  /** To some 100 steps for values of some units, of which a few are clipped; more where a Clip keeps 120 of them. */
  private void round(String name) {
    boolean isSigned = random.nextBoolean();
    DataType type = isSigned ? DataType.INT8 : DataType.UINT8;
    int zero = isSigned ? random.nextInt(21) - 10 : 118 + random.nextInt(21);
    graph.addInitializer(SmallModels.number(name + ".scale", 0.02f));
    integer(name + ".zero", type, zero);
    String grid = name + ".scale " + name + ".zero";
    graph.addNode(SmallModels.line(name + ".q QuantizeLinear " + value + " " + grid));
    String integers = name + ".q";
    if (random.nextInt(4) == 0) {
      integer(name + ".least", type, zero - 60);
      integer(name + ".most", type, zero + 60);
      integers = name + ".kept";
      graph.addNode(
          SmallModels.line(integers + " Clip " + name + ".q " + name + ".least " + name + ".most"));
    }
    graph.addNode(SmallModels.line(name + ".d DequantizeLinear " + integers + " " + grid));
    value = name + ".d";
  }

  private void integer(String name, DataType type, int number) {
    graph.addInitializer(
        SmallModels.tensor(name, type, ByteBuffer.wrap(new byte[] {(byte) number})));
  }

  private ByteBuffer ints(int n) {
    ByteBuffer data = ByteBuffer.allocate(4 * n).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      data.putInt(4 * i, random.nextInt(4000) - 2000);
    }
    return data;
  }

  /**
   * A weight whose floats have a deviation of some 1 / √in: its integers, scales and, about 128, zero point by name.
   *
   * @param perColumn whether it has scales along its last axis; else one
   */
  private String integers(String name, int rows, int columns, int in, boolean perColumn) {
    boolean isUnsigned = random.nextInt(4) == 0 || this.isUnsigned;
    byte[] data = new byte[rows * columns];
    for (int i = 0; i < data.length; i++) {
      double q = Math.max(-127, Math.min(127, 40 * random.nextGaussian()));
      data[i] = (byte) (Math.rint(q) + (isUnsigned ? 128 : 0));
    }
    DataType type = isUnsigned ? DataType.UINT8 : DataType.INT8;
    String integers = name + ".weight_quantized";
    graph.addInitializer(SmallModels.tensor(integers, type, ByteBuffer.wrap(data), rows, columns));
    float step = (float) (1 / Math.sqrt(in) / 40);
    String scale = name + (perColumn ? ".scales" : ".scale");
    float[] scales = new float[perColumn ? columns : 1];
    for (int c = 0; c < scales.length; c++) {
      scales[c] = step * (0.5f + random.nextFloat());
    }
    graph.addInitializer(
        perColumn
            ? SmallModels.floats(scale, scales, columns)
            : SmallModels.number(scale, scales[0]));
    if (!isUnsigned) {
      return integers + " " + scale;
    }
    String zero = name + ".weight_zero";
    byte[] zeros = new byte[perColumn ? columns : 1];
    Arrays.fill(zeros, (byte) 128);
    graph.addInitializer(
        perColumn
            ? SmallModels.tensor(zero, type, ByteBuffer.wrap(zeros), columns)
            : SmallModels.tensor(zero, type, ByteBuffer.wrap(zeros)));
    return integers + " " + scale + " " + zero;
  }
}
