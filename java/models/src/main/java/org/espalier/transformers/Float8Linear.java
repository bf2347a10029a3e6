package org.espalier.transformers;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.Float8;
import org.espalier.format.HalfFloats;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * The product of a linear layer whose weight a checkpoint has as floats of 8 bits. ONNX Runtime computes with none of them on a
 * CPU, so they become float16, and scales multiply what the product gives. Inputs stay as they are: rounding them is for GPUs.
 *
 * <p>Of the compressed-tensors layout there is a scale for each output, or one for all, and of fp8 one for all: float16 holds
 * each float of 8 bits exactly. Of fp8 there may also be one for each block of rows and columns, so that
 *
 * <pre>W[o][i] = weight[o][i] · weight_scale_inv[o / rows][i / columns]</pre>
 *
 * where the last blocks may be shorter. There an output's scale is the largest of its blocks', and what those of the others are
 * less is part of the weight, which is rounded to the 11 bits of float16: by at most 1/2048 of it, where FP8 rounded by up to
 * 1/16, and where it is less than an output's largest by more than 200,000 times, by 2⁻²⁸ of that. Scales that are powers of
 * two apart, up to 1024 times, round nothing. Source: {@code FP8Linear} of Transformers' {@code
 * integrations/finegrained_fp8.py}.
 */
final class Float8Linear {
  private static final String SCALE = ".weight_scale";
  private static final String BLOCK_SCALE = ".weight_scale_inv";

  /** Scales of inputs, as vLLM and as Transformers call them. */
  private static final List<String> INPUT_SCALES = List.of(".input_scale", ".activation_scale");

  /** As Transformers has it where a configuration does not say. */
  private static final WeightLayout.Block USUAL = new WeightLayout.Block(128, 128);

  /**
   * By what weights of blocks are divided: then they have magnitudes of up to 14, at which products do not overflow where they
   * are computed in 16 bits, and the smallest float of 8 bits is a normal one of 16.
   */
  private static final float DIVISOR = 32;

  private final GraphWriter graph;
  private final CheckpointTensors tensors;
  private final WeightLayout layout;
  private final String path;
  private final long in;
  private final long out;

  /**
   * @param path of the layer
   */
  Float8Linear(
      GraphWriter graph,
      CheckpointTensors tensors,
      WeightLayout layout,
      String path,
      long in,
      long out) {
    this.graph = graph;
    this.tensors = tensors;
    this.layout = layout;
    this.path = path;
    this.in = in;
    this.out = out;
  }

  /** Whether the weight of a layer is floats of 8 bits, or should be, for there are scales. */
  static boolean isOne(CheckpointTensors tensors, String path) {
    return tensors.has(path + ".weight", SafetensorsDtype.F8_E4M3)
        || tensors.has(path + SCALE)
        || tensors.has(path + BLOCK_SCALE);
  }

  /** By what the elements of a weight are multiplied, those of blocks of rows and columns by one number. */
  private record Factors(long rows, long columns, float[][] values) {}

  /**
   * Writes x·Wᵀ.
   *
   * @param place where the nodes stand
   * @throws InputException if there are no scales, or tensors have other shapes
   */
  String product(String x, String place) {
    for (String name : INPUT_SCALES) {
      if (tensors.has(path + name)) {
        tensors.ignore(path + name);
      }
    }
    OnnxInitializer stored =
        tensors.bytes(
            path + ".weight",
            SafetensorsDtype.F8_E4M3,
            new long[] {out, in},
            DataType.INT8,
            new long[] {out, in});
    if (stored.elements() > Integer.MAX_VALUE / Short.BYTES) {
      throw new InputException(
          tensors.place()
              + ": "
              + stored.name()
              + " takes more than 2 GiB as float16, the most there can be");
    }
    Factors factors = new Factors(out, in, new float[][] {{1}});
    OnnxInitializer scales;
    if (layout.method() != WeightLayout.Method.FP8) {
      scales = ofOutputs();
    } else if (layout.block() == null && tensors.isNumber(path + SCALE)) {
      scales = tensors.number(path + SCALE);
    } else if (layout.block() == null && tensors.isNumber(path + BLOCK_SCALE)) {
      scales = tensors.number(path + BLOCK_SCALE);
    } else {
      WeightLayout.Block block = layout.block() == null ? USUAL : layout.block();
      float[][] values = ofBlocks(block);
      scales = largest(block.rows(), values);
      factors = new Factors(block.rows(), block.columns(), values);
    }
    tensors.requireFinite(scales);
    String product = graph.product(x, place, graph.asFloat32(widened(stored, factors)));
    return graph.node("Mul", place, List.of(product, graph.asFloat32(scales)));
  }

  private OnnxInitializer ofOutputs() {
    String name = path + SCALE;
    return tensors.columns(name) == 1
        ? tensors.floats(name, new long[] {out, 1}, new long[] {out})
        : tensors.floats(name, 1);
  }

  private float[][] ofBlocks(WeightLayout.Block block) {
    long rows = (out + block.rows() - 1) / block.rows();
    long columns = (in + block.columns() - 1) / block.columns();
    OnnxInitializer stored = tensors.floats(path + BLOCK_SCALE, rows, columns);
    tensors.requireFinite(stored);
    FloatBuffer all = stored.floats();
    float[][] values = new float[(int) rows][(int) columns];
    for (float[] row : values) {
      all.get(row);
    }
    return values;
  }

  /** Takes the largest scale of each row of blocks out of it, with what weights are divided by, and gives each output its own. */
  private OnnxInitializer largest(long rows, float[][] blocks) {
    float[] scales = new float[(int) out];
    for (int b = 0; b < blocks.length; b++) {
      float largest = 0;
      for (float scale : blocks[b]) {
        largest = Math.max(largest, Math.abs(scale));
      }
      for (int i = 0; i < blocks[b].length; i++) {
        blocks[b][i] = largest == 0 ? 0 : blocks[b][i] / largest / DIVISOR;
      }
      Arrays.fill(scales, (int) (b * rows), (int) Math.min(out, (b + 1) * rows), DIVISOR * largest);
    }
    return OnnxInitializer.floats(path + BLOCK_SCALE, new long[] {out}, scales);
  }

  private OnnxInitializer widened(OnnxInitializer stored, Factors factors) {
    return OnnxInitializer.computed(
        stored.name(), DataType.FLOAT16, stored.dims(), () -> widened(stored.data(), factors));
  }

  private ByteBuffer widened(ByteBuffer bytes, Factors factors) {
    int columns = (int) in;
    ByteBuffer made =
        ByteBuffer.allocateDirect(Short.BYTES * bytes.limit()).order(ByteOrder.LITTLE_ENDIAN);
    ShortBuffer halves = made.asShortBuffer();
    IntStream.range(0, (int) out)
        .parallel()
        .forEach(
            o -> {
              float[] row = factors.values[(int) (o / factors.rows)];
              for (int b = 0; b < row.length; b++) {
                int end = (int) Math.min(columns, (b + 1) * factors.columns);
                for (int i = (int) (b * factors.columns); i < end; i++) {
                  int at = o * columns + i;
                  halves.put(at, HalfFloats.toFloat16(row[b] * Float8.value(bytes.get(at))));
                }
              }
            });
    return made;
  }
}
