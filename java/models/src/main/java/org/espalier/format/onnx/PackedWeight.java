package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxWeight.Kind;

/**
 * A weight whose integers lie several in a byte, the first in the lowest bits, as ONNX Runtime's MatMulNBits and GatherBlockQuantized
 * read it. The tensor itself is of bytes, of which these operators alone tell what they hold.
 *
 * @param bits of an integer: 2, 4 or 8
 * @param rows the output channels of a product, the rows of a table
 * @param columns integers of a row
 * @param symmetric whether zero is the middle of the range everywhere; else zero points tell it
 * @param kinds what it is used for
 */
public record PackedWeight(int bits, long rows, long columns, boolean symmetric, Set<Kind> kinds) {
  private static final int CHUNK = 1 << 22;

  /** The packed weights of a model by the names of the tensors. */
  public static Map<String, PackedWeight> of(OnnxModel model) {
    Map<String, NodeProto> producers = model.allProducers();
    Map<String, PackedWeight> found = new LinkedHashMap<>();
    for (NodeProto n : model.allNodes()) {
      boolean product = n.getOpType().equals("MatMulNBits");
      if (!FusedNodes.isRuntimes(n) || !product && !n.getOpType().equals("GatherBlockQuantized")) {
        continue;
      }
      if (n.getInputCount() < 3) {
        continue;
      }
      String value = n.getInput(product ? 1 : 0);
      NodeProto turned = producers.get(value);
      if (turned != null && turned.getOpType().equals("Reshape")) {
        value = turned.getInput(0);
      }
      OnnxInitializer tensor = model.constant(value);
      PackedWeight weight = tensor == null ? null : of(n, product, tensor);
      if (weight != null) {
        found.merge(value, weight, PackedWeight::joined);
      }
    }
    return found;
  }

  /** Null where the tensor is not packed, or not as the node says. */
  private static PackedWeight of(NodeProto n, boolean product, OnnxInitializer tensor) {
    long bits = Attributes.integer(n, "bits", 4);
    long[] dims = tensor.dims();
    if (tensor.type() != DataType.UINT8 || bits != 2 && bits != 4 && bits != 8 || dims.length < 2) {
      return null;
    }
    long stored = tensor.elements() / Math.max(1, dims[0]) * (8 / bits);
    long rows = product ? Attributes.integer(n, "N", 0) : dims[0];
    long columns = product ? Attributes.integer(n, "K", 0) : stored;
    if (rows != dims[0] || columns < 0 || columns > stored) {
      return null;
    }
    boolean symmetric = n.getInputCount() < 4 || n.getInput(3).isEmpty();
    Kind kind = product ? Kind.MATMUL : Kind.EMBEDDING;
    return new PackedWeight((int) bits, rows, columns, symmetric, EnumSet.of(kind));
  }

  private PackedWeight joined(PackedWeight other) {
    Set<Kind> both = EnumSet.copyOf(kinds);
    both.addAll(other.kinds);
    long fewest = Math.min(columns, other.columns); // the others fill up a block
    return new PackedWeight(bits, rows, fewest, symmetric && other.symmetric, both);
  }

  public long elements() {
    return rows * columns;
  }

  /** How many weights of {@code tensor}, which holds them, are zero; −1 where zero points tell it. */
  public long zeros(OnnxInitializer tensor) {
    if (!symmetric) {
      return -1;
    }
    int perByte = 8 / bits;
    int mask = (1 << bits) - 1;
    int middle = 1 << bits - 1;
    long bytes = tensor.byteLength();
    long rowBytes = bytes / Math.max(1, rows);
    long zeros = 0;
    for (long offset = 0; offset < bytes; offset += CHUNK) {
      ByteBuffer part = tensor.data(offset, (int) Math.min(CHUNK, bytes - offset));
      for (int i = 0; i < part.limit(); i++) {
        long first = (offset + i) % rowBytes * perByte;
        for (int j = 0; j < perByte && first + j < columns; j++) {
          zeros += (part.get(i) >> bits * j & mask) == middle ? 1 : 0;
        }
      }
    }
    return zeros;
  }
}
