package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.function.IntBinaryOperator;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * ONNX Runtime's {@code MatMulNBits}: x·Wᵀ of integers, of which a block of each output's inputs shares a scale. It rounds
 * activations to 8 bits, a block of a row at a time.
 *
 * @param bits of an integer, 4 or 8
 * @param block how many inputs share a scale; the last block may be shorter
 */
record BlockProduct(long in, long out, int bits, long block) {
  /** Blocks that ONNX Runtime has kernels for, from those that cost least on. */
  private static final long[] BLOCKS = {128, 64, 32, 16};

  /** ONNX Runtime's number for activations of 8 bits. */
  private static final long INT8_ACTIVATIONS = 4;

  /**
   * The largest block that kernels take and groups of inputs are made of; 0 where there is none.
   *
   * @param group how many inputs share a scale in the checkpoint
   */
  static long block(long group) {
    if (group == 256) {
      return group;
    }
    for (long block : BLOCKS) {
      if (group % block == 0) {
        return block;
      }
    }
    return 0;
  }

  /** How many blocks an output has. */
  long blocks() {
    return (in + block - 1) / block;
  }

  /** The bytes of all integers. */
  long[] dims() {
    return new long[] {out, blocks(), block * bits / 8};
  }

  /**
   * Refuses integers that no constant can hold.
   *
   * @param tensor what they are called, with the place of the checkpoint before it
   */
  void check(String tensor) {
    if (Math.multiplyExact(out, blocks()) > Integer.MAX_VALUE / (block * bits / 8)) {
      throw new InputException(tensor + " takes more than 2 GiB, the most there can be");
    }
  }

  /**
   * Zero points, each output's from a byte of its own on.
   *
   * @param value of an output and a block
   * @return null where all are the middle of the range, which is what the product takes where it has none
   */
  OnnxInitializer zeroPoints(String name, IntBinaryOperator value) {
    int blocks = (int) blocks();
    int bytes = (blocks * bits + 7) / 8;
    ByteBuffer made = ByteBuffer.allocateDirect(Math.toIntExact(out * bytes));
    boolean middle = true;
    for (int o = 0; o < out; o++) {
      for (int b = 0; b < blocks; b++) {
        int zero = value.applyAsInt(o, b);
        middle &= zero == 1 << bits - 1;
        int at = o * bytes + b * bits / 8;
        made.put(at, (byte) (made.get(at) | zero << b * bits % 8));
      }
    }
    return middle ? null : OnnxInitializer.of(name, DataType.UINT8, new long[] {out * bytes}, made);
  }

  /**
   * Writes the product.
   *
   * @param place where the node stands
   * @param integers of {@link #dims()}, from 0 on
   * @param scales of each output, block by block
   * @param zeros null for the middle of the range
   */
  String write(
      GraphWriter graph,
      String x,
      String place,
      OnnxInitializer integers,
      OnnxInitializer scales,
      OnnxInitializer zeros) {
    String weight = graph.constant(integers);
    String factors = graph.asFloat32(scales);
    String product = place + "/MatMulNBits";
    graph.runtimeNode(
        "MatMulNBits",
        place,
        zeros == null
            ? List.of(x, weight, factors)
            : List.of(x, weight, factors, graph.constant(zeros)),
        List.of(product),
        attribute("K", in),
        attribute("N", out),
        attribute("bits", (long) bits),
        attribute("block_size", block),
        attribute("accuracy_level", INT8_ACTIVATIONS));
    return product;
  }
}
