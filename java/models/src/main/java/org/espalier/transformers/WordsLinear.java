package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.util.List;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * The product of a linear layer whose weight lies in words of 32 bits as GPTQ and AWQ publish it: a {@link BlockProduct} of the
 * same integers, turned to the outputs. Of b bits a word holds n = 32 / b of them, the first in the lowest bits, and
 *
 * <pre>W[o][i] = scales[g][o] · (q[i][o] − z[g][o])</pre>
 *
 * <p>GPTQ: g = g_idx[i]; q[i][o] is integer i mod n of {@code qweight[i / n][o]}; z[g][o] is integer o mod n of {@code
 * qzeros[g][o / n]}, to whose integers one is added as to a whole word in the older format, which has them less one. Where g_idx
 * is not in order, a Gather in front of the product brings the inputs of a group together. Sources: {@code QuantLinear.pack} of
 * AutoGPTQ's {@code nn_modules/qlinear/qlinear_cuda.py}, {@code convert_gptq_v1_to_v2_format_module} of GPTQModel's {@code
 * utils/model.py}.
 *
 * <p>AWQ: g = i / group_size; q[i][o] is integer p(o mod 8) of {@code qweight[i][o / 8]}, z[g][o] the same of {@code qzeros[g][o /
 * 8]}, with p = 0, 4, 1, 5, 2, 6, 3, 7: words hold the outputs 0, 2, 4, 6, 1, 3, 5, 7. Source: {@code WQLinear_GEMM.from_linear}
 * of AutoAWQ's {@code modules/linear/gemm.py}.
 */
final class WordsLinear {
  private static final String INTEGERS = ".qweight";
  private static final String ZEROS = ".qzeros";
  private static final String SCALES = ".scales";
  private static final String GROUPS = ".g_idx";

  /** Where in a word AWQ has each of eight outputs. */
  private static final int[] INTERLEAVED = {0, 4, 1, 5, 2, 6, 3, 7};

  /** Outputs that one thread turns at once, which fill words. */
  private static final int TILE = 64;

  private final GraphWriter graph;
  private final CheckpointTensors tensors;
  private final WeightLayout layout;
  private final boolean interleaved;
  private final String path;
  private final int in;
  private final int out;
  private final int bits;
  private final int perWord;
  private final long group;
  private final int groups;

  /**
   * @param path of the layer
   * @throws InputException if the configuration does not say how its weight lies
   */
  WordsLinear(
      GraphWriter graph,
      CheckpointTensors tensors,
      WeightLayout layout,
      String path,
      long in,
      long out) {
    layout.requireWords(tensors.place() + ": " + path + INTEGERS);
    this.graph = graph;
    this.tensors = tensors;
    this.layout = layout;
    this.path = path;
    if (Math.max(in, out) > Integer.MAX_VALUE) {
      throw new InputException(called("") + " has " + in + " inputs and " + out + " outputs");
    }
    this.in = (int) in;
    this.out = (int) out;
    interleaved = layout.method() == WeightLayout.Method.AWQ;
    bits = layout.bits();
    perWord = Integer.SIZE / bits;
    group = layout.group() == 0 ? in : layout.group();
    groups = (int) ((in + group - 1) / group);
  }

  /** Whether the weight of a layer is integers in words. */
  static boolean isOne(CheckpointTensors tensors, String path) {
    return tensors.has(path + INTEGERS);
  }

  /**
   * Writes x·Wᵀ.
   *
   * @param place where the nodes stand
   * @throws InputException if tensors are missing, have other shapes or hold what is no weight
   */
  String product(String x, String place) {
    if (out % perWord != 0 || !interleaved && in % perWord != 0) {
      throw new InputException(
          called("")
              + " has "
              + in
              + " inputs and "
              + out
              + " outputs, which fill no words of "
              + perWord
              + " integers");
    }
    long block = BlockProduct.block(groups == 1 ? (group + 15) / 16 * 16 : group);
    if (block == 0) {
      throw new InputException(
          called("") + " has groups of " + group + " inputs; multiples of 16 are right");
    }
    BlockProduct product = new BlockProduct(in, out, bits, block);
    long[] dims = interleaved ? dims(in, out / perWord) : dims(in / perWord, out);
    OnnxInitializer words =
        tensors.bytes(path + INTEGERS, SafetensorsDtype.I32, dims, DataType.INT32, dims);
    OnnxInitializer factors = tensors.floats(path + SCALES, groups, out);
    product.check(called(INTEGERS));
    OnnxInitializer zeros = zeros(product);
    OnnxInitializer scales = scales(product, factors);
    int[] order = order();
    if (order != null) {
      OnnxInitializer places = OnnxInitializer.int32s(path + GROUPS, new long[] {in}, order);
      List<String> inputs = List.of(x, graph.constant(places));
      x = graph.node("Gather", place, inputs, attribute("axis", -1L));
    }
    int rowBytes = (int) (product.blocks() * block * bits / 8);
    OnnxInitializer integers =
        OnnxInitializer.computed(
            path + INTEGERS,
            DataType.UINT8,
            product.dims(),
            () -> turned(words.data(), order, rowBytes));
    return product.write(graph, x, place, integers, scales, zeros);
  }

  private String called(String tensor) {
    return tensors.place() + ": " + path + tensor;
  }

  private static long[] dims(long... dims) {
    return dims;
  }

  /** The inputs as groups have them, one behind the other; null where they lie so. */
  private int[] order() {
    if (interleaved || !layout.scattered() && !tensors.has(path + GROUPS)) {
      return null;
    }
    int[] groupOf = tensors.words(path + GROUPS, in);
    int[] next = new int[groups];
    int[] order = new int[in];
    boolean inOrder = true;
    for (int i = 0; i < in; i++) {
      int g = groupOf[i];
      if (g < 0 || g >= groups) {
        throw new InputException(
            called(GROUPS)
                + " has the group "
                + g
                + "; 0 to "
                + (groups - 1)
                + " are right for "
                + in
                + " inputs in groups of "
                + group);
      }
      long at = g * group + next[g]++;
      if (next[g] > group || at >= in) {
        throw new InputException(
            called(GROUPS) + " has too many inputs in group " + g + " for group_size " + group);
      }
      order[(int) at] = i;
      inOrder &= at == i;
    }
    return inOrder ? null : order;
  }

  /** The integers of each output one behind the other, from a byte of its own on. */
  private ByteBuffer turned(ByteBuffer stored, int[] order, int rowBytes) {
    IntBuffer words = stored.order(ByteOrder.LITTLE_ENDIAN).asIntBuffer();
    ByteBuffer made = ByteBuffer.allocateDirect(out * rowBytes);
    IntStream.range(0, (out + TILE - 1) / TILE)
        .parallel()
        .forEach(tile -> made.put(tile * TILE * rowBytes, rows(words, order, rowBytes, tile)));
    return made;
  }

  private byte[] rows(IntBuffer words, int[] order, int rowBytes, int tile) {
    int first = tile * TILE;
    int count = Math.min(TILE, out - first);
    int mask = (1 << bits) - 1;
    byte[] rows = new byte[count * rowBytes];
    int[] line = new int[interleaved ? count / perWord : count];
    for (int i = 0; i < in; i++) {
      int from = order == null ? i : order[i];
      words.get(
          interleaved ? from * (out / perWord) + first / perWord : from / perWord * out + first,
          line);
      int low = from % perWord * bits;
      int shift = i % (8 / bits) * bits;
      int at = i / (8 / bits);
      for (int o = 0; o < count; o++) {
        int integer =
            interleaved ? line[o / perWord] >>> bits * INTERLEAVED[o % perWord] : line[o] >>> low;
        rows[o * rowBytes + at] |= (byte) ((integer & mask) << shift);
      }
    }
    return rows;
  }

  /** Those of each output, those of a group as often as it has blocks. */
  private OnnxInitializer scales(BlockProduct product, OnnxInitializer stored) {
    tensors.requireFinite(stored);
    FloatBuffer values = stored.floats();
    int blocks = (int) product.blocks();
    float[] made = new float[out * blocks];
    for (int o = 0; o < out; o++) {
      for (int b = 0; b < blocks; b++) {
        made[o * blocks + b] = values.get((int) (b * product.block() / group) * out + o);
      }
    }
    return OnnxInitializer.floats(
        stored.name(), stored.type(), new long[] {(long) out * blocks}, made);
  }

  private OnnxInitializer zeros(BlockProduct product) {
    int perGroup = out / perWord;
    int[] words = tensors.words(path + ZEROS, groups, perGroup);
    if (layout.zerosAreLess()) {
      int ones = bits == 4 ? 0x11111111 : 0x01010101;
      for (int i = 0; i < words.length; i++) {
        words[i] += ones;
      }
    }
    return product.zeroPoints(
        path + ZEROS,
        (o, b) -> {
          int word = words[(int) (b * product.block() / group) * perGroup + o / perWord];
          int place = interleaved ? INTERLEAVED[o % perWord] : o % perWord;
          return word >>> bits * place & (1 << bits) - 1;
        });
  }
}
