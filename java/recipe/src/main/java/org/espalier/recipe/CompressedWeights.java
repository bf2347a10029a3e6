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
import org.espalier.compress.CompressedTensorsFolder.Weight;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.GraphParameters;

/** The integers and scales of an exported ONNX model in the compressed-tensors layout. */
final class CompressedWeights {
  /** The integers of a product, and whether they lie as [in, out]. */
  private record Integers(String values, String scales, boolean transposed) {}

  private CompressedWeights() {}

  /**
   * Writes a folder.
   *
   * @param dense the float model, whose names and order are used
   * @param exported the same model quantized
   * @param config the {@code config.json} of the original
   */
  static void write(OnnxModel dense, OnnxModel exported, Path config, Path target) {
    Map<String, Integers> quantized = new HashMap<>(dynamic(exported));
    quantized.putAll(fixed(exported));
    List<Weight> weights = new ArrayList<>();
    for (GraphParameters.Entry e : GraphParameters.of(dense).parameters()) {
      OnnxInitializer tensor = dense.constant(e.constant());
      long[] dims = tensor.dims();
      boolean linear = e.kind() == Parameter.Kind.LINEAR;
      String name = DenseWeights.plain(e.name());
      Integers q =
          linear && e.nodes().size() == 1 && name.endsWith(".weight")
              ? quantized.get(e.nodes().get(0))
              : null;
      List<Long> shape = DenseWeights.shape(e, dims);
      if (q == null) {
        weights.add(new Weight(name, shape, DenseWeights.bytes(tensor, e), null, null, linear));
      } else {
        weights.add(
            new Weight(
                name,
                shape,
                null,
                rows(exported.constant(q.values()), q.transposed()),
                scales(exported.constant(q.scales())),
                true));
      }
    }
    CompressedTensorsFolder.write(target, config, weights);
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
          found.put(mul.getOutput(0), new Integers(n.getInput(1), input, true));
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
      if (values == null || values.type() != DataType.INT8 || values.dims().length != 2) {
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
              product.getOutput(0), new Integers(n.getInput(0), n.getInput(1), !(gemm && transB)));
        }
      }
    }
    return found;
  }

  private static ByteBuffer rows(OnnxInitializer tensor, boolean transposed) {
    ByteBuffer data = tensor.data();
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

  private static ByteBuffer scales(OnnxInitializer tensor) {
    FloatBuffer values = tensor.floats();
    ByteBuffer bytes = ByteBuffer.allocate(4 * values.remaining()).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(values);
    return bytes;
  }
}
