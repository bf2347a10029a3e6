package org.espalier.transformers;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * The product of a linear layer whose weight a checkpoint of the compressed-tensors layout has as integers: a {@link
 * BlockProduct}. Words of eight integers of 4 bits are its bytes as they lie; of 8 bits it wants numbers from 0 on, which are
 * made.
 */
final class QuantizedLinear {
  private static final String PACKED = ".weight_packed";
  private static final String SCALE = ".weight_scale";
  private static final String ZERO_POINT = ".weight_zero_point";

  private static final int PER_WORD = 8;

  /** Of a layer whose inputs none divides. */
  private static final long LEAST_BLOCK = 16;

  private final GraphWriter graph;
  private final CheckpointTensors tensors;
  private final String path;
  private final long in;
  private final long out;

  /**
   * @param path of the layer
   */
  QuantizedLinear(GraphWriter graph, CheckpointTensors tensors, String path, long in, long out) {
    this.graph = graph;
    this.tensors = tensors;
    this.path = path;
    this.in = in;
    this.out = out;
  }

  /** Whether the weight of a layer is integers. */
  static boolean isOne(CheckpointTensors tensors, String path) {
    return tensors.has(path + PACKED) || tensors.has(path + ".weight", SafetensorsDtype.I8);
  }

  /**
   * Writes x·Wᵀ.
   *
   * @param place where the node stands
   * @throws InputException if tensors are missing or have other shapes
   */
  String product(String x, String place) {
    for (String other : List.of(".weight_g_idx", ".weight_global_scale")) {
      if (tensors.has(path + other)) {
        throw new InputException(
            tensors.place() + ": weights with " + path + other + " are not supported");
      }
    }
    boolean packed = tensors.has(path + PACKED);
    if (tensors.has(path + ".weight_shape")) {
      tensors.ignore(path + ".weight_shape"); // the configuration tells
    }
    long blocks = packed ? blocks() : 1;
    long block = blocks == 1 ? Math.max(LEAST_BLOCK, BlockProduct.block(in)) : in / blocks;
    BlockProduct product = new BlockProduct(in, out, packed ? 4 : 8, block);
    long parts = product.blocks() / blocks; // of a block of the checkpoint
    return product.write(
        graph,
        x,
        place,
        packed ? ofFourBits(product) : ofEightBits(product),
        scales(blocks, parts),
        tensors.has(path + ZERO_POINT) ? zeroPoints(product, blocks, parts) : null);
  }

  private OnnxInitializer ofFourBits(BlockProduct product) {
    long words = (in + PER_WORD - 1) / PER_WORD;
    boolean whole = in % product.block() == 0;
    OnnxInitializer stored =
        tensors.bytes(
            path + PACKED,
            SafetensorsDtype.I32,
            new long[] {out, words},
            DataType.UINT8,
            whole ? product.dims() : new long[] {out, words * Integer.BYTES});
    return whole ? stored : filled(stored.name(), stored.data(), product, (byte) 0x88);
  }

  private OnnxInitializer ofEightBits(BlockProduct product) {
    ByteBuffer signed =
        tensors
            .bytes(
                path + ".weight",
                SafetensorsDtype.I8,
                new long[] {out, in},
                DataType.INT8,
                new long[] {out, in})
            .data();
    ByteBuffer made = ByteBuffer.allocateDirect(signed.remaining());
    while (signed.hasRemaining()) {
      made.put((byte) (signed.get() ^ 0x80));
    }
    String name = path + ".weight";
    made.flip();
    return in % product.block() == 0
        ? OnnxInitializer.of(name, DataType.UINT8, product.dims(), made)
        : filled(name, made, product, (byte) 0x80);
  }

  /**
   * Rows whose last blocks are filled up.
   *
   * @param rows of each output the bytes of its integers
   * @param zero a byte of zeros
   */
  private OnnxInitializer filled(String name, ByteBuffer rows, BlockProduct product, byte zero) {
    product.check(tensors.place() + ": " + name);
    long[] dims = product.dims();
    int width = (int) (dims[1] * dims[2]);
    int given = (int) (rows.remaining() / out);
    ByteBuffer made = ByteBuffer.allocateDirect(Math.toIntExact(out * width));
    byte[] row = new byte[Math.max(width, given)];
    for (long o = 0; o < out; o++) {
      rows.get(row, 0, given);
      Arrays.fill(row, given, row.length, zero);
      made.put(row, 0, width);
    }
    return OnnxInitializer.of(name, DataType.UINT8, dims, made.flip());
  }

  /** How many scales an output has. */
  private long blocks() {
    long blocks = tensors.columns(path + SCALE);
    boolean fits = blocks > 0 && in % blocks == 0;
    long block = fits ? in / blocks : 0;
    if (!fits || blocks > 1 && (block < 16 || block > 256 || Long.bitCount(block) != 1)) {
      throw new InputException(
          tensors.place()
              + ": "
              + path
              + SCALE
              + " has "
              + blocks
              + " scales for "
              + in
              + " inputs; blocks of 16, 32, 64, 128 or 256, or one for all, are right");
    }
    return blocks;
  }

  /** Those of each output, each as often as it has parts. */
  private OnnxInitializer scales(long blocks, long parts) {
    OnnxInitializer stored =
        tensors.floats(path + SCALE, new long[] {out, blocks}, new long[] {out * blocks});
    if (parts == 1) {
      return stored;
    }
    FloatBuffer values = stored.floats();
    float[] repeated = new float[Math.toIntExact(out * parts)];
    for (int i = 0; i < repeated.length; i++) {
      repeated[i] = values.get((int) (i / parts));
    }
    return OnnxInitializer.floats(stored.name(), new long[] {out * parts}, repeated);
  }

  /** The checkpoint has eight outputs' in a word. */
  private OnnxInitializer zeroPoints(BlockProduct product, long blocks, long parts) {
    long words = (out + PER_WORD - 1) / PER_WORD;
    int[] packed = tensors.words(path + ZERO_POINT, words, blocks);
    return product.zeroPoints(
        path + ZERO_POINT,
        (o, b) -> packed[(int) (o / PER_WORD * blocks + b / parts)] >>> 4 * (o % PER_WORD) & 15);
  }
}
