package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.compress.CompressedTensorsFolder;
import org.espalier.compress.CompressedTensorsFolder.Integers;
import org.espalier.compress.CompressedTensorsFolder.Weight;
import org.espalier.compress.LinearForm;
import org.espalier.compress.WeightNames;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.GraphParameters;

/** The integers and scales of an exported ONNX model in the compressed-tensors layout. */
final class CompressedWeights {
  /** Zero points: of a block as it is, and of one whose integers were turned around. */
  private static final byte PLAIN = 0;

  private static final byte TURNED = -1;

  private CompressedWeights() {}

  /**
   * Writes a folder. The output head stays float, as readers want it.
   *
   * @param dense the float model, whose names and order are used
   * @param exported the same model quantized
   * @param config the {@code config.json} of the original
   * @param form what a quantize stage made
   * @param modules of sentence-transformers, whose parameters are left out
   */
  static void write(
      OnnxModel dense,
      OnnxModel exported,
      Path config,
      LinearForm form,
      List<String> modules,
      Path target) {
    Map<String, Integers> quantized = new HashMap<>();
    if (form.bits() == 4) {
      quantized.putAll(blocks(exported));
    } else {
      quantized.putAll(dynamic(exported));
      quantized.putAll(fixed(exported));
    }
    Map<String, List<NodeProto>> consumers = dense.consumers();
    List<Weight> weights = new ArrayList<>();
    for (GraphParameters.Entry e : GraphParameters.of(dense).parameters()) {
      if (DenseWeights.moduleOf(e.name(), modules) != null) {
        continue;
      }
      OnnxInitializer tensor = dense.constant(e.constant());
      long[] dims = tensor.dims();
      boolean linear = e.kind() == Parameter.Kind.LINEAR;
      String name = DenseWeights.plain(e.name());
      Integers q =
          linear && e.nodes().size() == 1 && name.endsWith(".weight") && !WeightNames.isHead(name)
              ? integers(quantized, consumers, e.nodes().get(0))
              : null;
      ByteBuffer floats = q == null ? DenseWeights.bytes(tensor, e) : null;
      weights.add(new Weight(name, DenseWeights.shape(e, dims), floats, q, linear));
    }
    CompressedTensorsFolder.write(target, config, form, weights);
  }

  /** Those of a product, which the quantized model may have made one with the addition of its bias; null for none. */
  private static Integers integers(
      Map<String, Integers> quantized, Map<String, List<NodeProto>> consumers, String product) {
    NodeProto sum = quantized.containsKey(product) ? null : only(consumers, product, "Add");
    return quantized.get(sum == null ? product : sum.getOutput(0));
  }

  /**
   * MatMulNBits of 4 bits, whose bytes are the words of this layout. Scales of this layout are positive: where one is
   * negative, s·(q − 8) of the stored q from 0 to 15 is |s|·((15 − q) − 7).
   */
  private static Map<String, Integers> blocks(OnnxModel model) {
    Map<String, Integers> found = new HashMap<>();
    for (NodeProto n : model.nodes()) {
      if (!n.getOpType().equals("MatMulNBits")
          || Attributes.integer(n, "bits", 4) != 4
          || Attributes.integer(n, "K", 0) % Attributes.integer(n, "block_size", 1) != 0
          || model.initializer(n.getInput(1)) == null) {
        continue; // of 8 bits, no whole blocks, or a table that is the last product too
      }
      ByteBuffer stored = model.initializer(n.getInput(1)).data();
      FloatBuffer scales = model.initializer(n.getInput(2)).floats();
      int blocks = scales.remaining();
      int bytes = stored.remaining() / blocks;
      ByteBuffer values = ByteBuffer.allocate(stored.remaining());
      ByteBuffer positive =
          ByteBuffer.allocate(Float.BYTES * blocks).order(ByteOrder.LITTLE_ENDIAN);
      byte[] zeroPoints = new byte[blocks];
      for (int b = 0; b < blocks; b++) {
        boolean turn = scales.get(b) < 0;
        for (int i = 0; i < bytes; i++) {
          values.put((byte) (turn ? ~stored.get() : stored.get()));
        }
        positive.putFloat(Math.abs(scales.get(b)));
        zeroPoints[b] = turn ? TURNED : PLAIN;
      }
      found.put(n.getOutput(0), new Integers(values.flip(), positive.flip(), zeroPoints));
    }
    return found;
  }

  /** DynamicQuantizeLinear, MatMulInteger, Cast, and a Mul with the product of the scales. */
  private static Map<String, Integers> dynamic(OnnxModel model) {
    Map<String, Integers> found = new HashMap<>();
    Map<String, List<NodeProto>> consumers = model.consumers();
    Map<String, NodeProto> producers = model.producers();
    for (NodeProto n : model.nodes()) {
      if (!n.getOpType().equals("MatMulInteger") || model.constant(n.getInput(1)) == null) {
        continue;
      }
      NodeProto cast = only(consumers, n.getOutput(0), "Cast");
      NodeProto mul = cast == null ? null : only(consumers, cast.getOutput(0), "Mul");
      if (mul == null) {
        continue;
      }
      boolean first = mul.getInput(0).equals(cast.getOutput(0));
      NodeProto scale = producers.get(mul.getInput(first ? 1 : 0));
      if (scale == null || !scale.getOpType().equals("Mul")) {
        continue;
      }
      for (String input : scale.getInputList()) {
        if (model.constant(input) != null) {
          found.put(mul.getOutput(0), ofRows(model, n.getInput(1), input, true));
        }
      }
    }
    return found;
  }

  private static NodeProto only(
      Map<String, List<NodeProto>> consumers, String value, String operator) {
    List<NodeProto> nodes = consumers.getOrDefault(value, List.of());
    return nodes.size() == 1 && nodes.get(0).getOpType().equals(operator) ? nodes.get(0) : null;
  }

  /** DequantizeLinear in front of a MatMul or a Gemm. */
  private static Map<String, Integers> fixed(OnnxModel model) {
    Map<String, Integers> found = new HashMap<>();
    Map<String, List<NodeProto>> consumers = model.consumers();
    for (NodeProto n : model.nodes()) {
      OnnxInitializer values =
          n.getOpType().equals("DequantizeLinear") ? model.constant(n.getInput(0)) : null;
      if (values == null || values.dims().length != 2 || !isOfBytes(values)) {
        continue;
      }
      for (NodeProto product : consumers.getOrDefault(n.getOutput(0), List.of())) {
        boolean gemm = product.getOpType().equals("Gemm");
        if ((gemm || product.getOpType().equals("MatMul"))
            && product.getInput(1).equals(n.getOutput(0))) {
          boolean transB = false;
          for (AttributeProto a : product.getAttributeList()) {
            transB |= a.getName().equals("transB") && a.getI() != 0;
          }
          found.put(
              product.getOutput(0), ofRows(model, n.getInput(0), n.getInput(1), !(gemm && transB)));
        }
      }
    }
    return found;
  }

  /**
   * Integers of 8 bits.
   *
   * @param transposed whether they lie as [in, out]
   */
  private static Integers ofRows(
      OnnxModel model, String values, String scales, boolean transposed) {
    return new Integers(
        rows(model.constant(values), transposed), scales(model.constant(scales)), null);
  }

  private static ByteBuffer rows(OnnxInitializer tensor, boolean transposed) {
    ByteBuffer data = tensor.type() == DataType.UINT8 ? signed(tensor.data()) : tensor.data();
    if (!transposed) {
      return data;
    }
    int in = Math.toIntExact(tensor.dims()[0]);
    int out = Math.toIntExact(tensor.dims()[1]);
    ByteBuffer rows = ByteBuffer.allocate(in * out);
    for (int o = 0; o < out; o++) {
      for (int i = 0; i < in; i++) {
        rows.put(data.get(data.position() + i * out + o));
      }
    }
    return rows.flip();
  }

  private static boolean isOfBytes(OnnxInitializer tensor) {
    return tensor.type() == DataType.INT8 || tensor.type() == DataType.UINT8;
  }

  /** Integers about 128, as quantize stages make uint8, about 0. */
  private static ByteBuffer signed(ByteBuffer data) {
    ByteBuffer signed = ByteBuffer.allocate(data.remaining());
    while (data.hasRemaining()) {
      signed.put((byte) (data.get() - 128));
    }
    return signed.flip();
  }

  private static ByteBuffer scales(OnnxInitializer tensor) {
    FloatBuffer values = tensor.floats();
    ByteBuffer bytes = ByteBuffer.allocate(4 * values.remaining()).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(values);
    return bytes;
  }
}
