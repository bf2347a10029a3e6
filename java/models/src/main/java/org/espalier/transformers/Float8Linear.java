package org.espalier.transformers;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.ShortBuffer;
import java.util.List;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.Float8;
import org.espalier.format.HalfFloats;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * The product of a linear layer whose weight a checkpoint of the compressed-tensors layout has as floats of 8 bits with a scale
 * for each output, or one for all. ONNX Runtime computes with none of them on a CPU, so they become float16, which holds each
 * exactly, and scales multiply what the product gives. Inputs stay as they are: rounding them is for GPUs.
 */
final class Float8Linear {
  private static final String SCALE = ".weight_scale";

  /** Elements that one thread converts at once. */
  private static final int PART = 1 << 16;

  private Float8Linear() {}

  /** Whether the weight of a layer is floats of 8 bits. */
  static boolean isOne(CheckpointTensors tensors, String path) {
    return tensors.has(path + ".weight", SafetensorsDtype.F8_E4M3);
  }

  /**
   * Writes x·Wᵀ.
   *
   * @param path of the layer
   * @param place where the nodes stand
   * @throws InputException if there are no scales, or tensors have other shapes
   */
  static String product(
      GraphWriter graph,
      CheckpointTensors tensors,
      String x,
      String path,
      String place,
      long in,
      long out) {
    if (tensors.has(path + ".input_scale")) {
      tensors.ignore(path + ".input_scale");
    }
    OnnxInitializer wide =
        widened(
            tensors.place(),
            tensors.bytes(
                path + ".weight",
                SafetensorsDtype.F8_E4M3,
                new long[] {out, in},
                DataType.INT8,
                new long[] {out, in}));
    String product = graph.product(x, place, graph.asFloat32(wide));
    return graph.node("Mul", place, List.of(product, graph.asFloat32(scales(tensors, path, out))));
  }

  private static OnnxInitializer scales(CheckpointTensors tensors, String path, long out) {
    String name = path + SCALE;
    return tensors.columns(name) == 1
        ? tensors.floats(name, new long[] {out, 1}, new long[] {out})
        : tensors.floats(name, 1);
  }

  private static OnnxInitializer widened(String place, OnnxInitializer stored) {
    if (stored.elements() > Integer.MAX_VALUE / Short.BYTES) {
      throw new InputException(
          place
              + ": "
              + stored.name()
              + " takes more than 2 GiB as float16, the most there can be");
    }
    int count = (int) stored.elements();
    ByteBuffer bytes = stored.data();
    int first = bytes.position();
    ByteBuffer made = ByteBuffer.allocateDirect(Short.BYTES * count).order(ByteOrder.LITTLE_ENDIAN);
    ShortBuffer halves = made.asShortBuffer();
    IntStream.range(0, (count + PART - 1) / PART)
        .parallel()
        .forEach(
            part -> {
              for (int i = part * PART; i < Math.min(count, (part + 1) * PART); i++) {
                halves.put(i, HalfFloats.toFloat16(Float8.value(bytes.get(first + i))));
              }
            });
    return OnnxInitializer.of(stored.name(), DataType.FLOAT16, stored.dims(), made);
  }
}
