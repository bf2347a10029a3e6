package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;
import java.util.Optional;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;

/**
 * A matrix [rows, columns] of packed integers, as compressed-tensors has it: several in a word of 32 bits, the first in
 * the lowest bits, each with half of the grid added so that none is negative. A row ends with a whole word.
 *
 * @param words the tensor that holds them
 * @param bits of an integer: 4 or 8
 * @param symmetric whether 0 is stored as the middle of the grid everywhere; else zero points tell it
 */
public record PackedMatrix(TensorInfo words, int bits, long rows, long columns, boolean symmetric) {
  private static final int CHUNK = 1 << 22;

  /** What a tensor of a checkpoint holds, where it is packed and another tensor tells its shape as it can be. */
  public static Optional<PackedMatrix> of(TensorInfo words, Checkpoint checkpoint) {
    if (!LinearForm.isPacked(words.name())
        || words.dtype() != SafetensorsDtype.I32
        || words.rank() != 2) {
      return Optional.empty();
    }
    String weight = LinearForm.weightOfPacked(words.name());
    TensorInfo shape = checkpoint.tensor(LinearForm.shapeName(weight));
    if (shape == null
        || shape.dtype() != SafetensorsDtype.I64
        || !shape.shape().equals(List.of(2L))) {
      return Optional.empty();
    }
    ByteBuffer sizes = ByteBuffer.allocateDirect(16).order(ByteOrder.LITTLE_ENDIAN);
    checkpoint.fileOf(shape.name()).read(shape, 0, sizes);
    long rows = sizes.getLong(0);
    long columns = sizes.getLong(8);
    boolean symmetric = checkpoint.tensor(LinearForm.zeroPointName(weight)) == null;
    for (int bits = 4; bits <= 8; bits += 4) {
      long each = 32 / bits;
      long stored = words.shape().get(1);
      boolean fits = columns >= 0 && columns > (stored - 1) * each && columns <= stored * each;
      if (rows == words.shape().get(0) && fits) {
        return Optional.of(new PackedMatrix(words, bits, rows, columns, symmetric));
      }
    }
    return Optional.empty();
  }

  /** The number of integers. */
  public long elements() {
    return rows * columns;
  }

  /** How many integers of the file that holds them stand for 0; −1 where zero points tell it. */
  public long zeros(SafetensorsFile file) {
    if (!symmetric) {
      return -1;
    }
    long rowBytes = 4 * words.shape().get(1);
    int mask = (1 << bits) - 1;
    int middle = 1 << bits - 1;
    ByteBuffer buffer = ByteBuffer.allocateDirect(CHUNK);
    long zeros = 0;
    for (long offset = 0; offset < words.bytes(); offset += CHUNK) {
      buffer.clear().limit((int) Math.min(CHUNK, words.bytes() - offset));
      file.read(words, offset, buffer);
      buffer.flip();
      for (int i = 0; i < buffer.limit(); i++) {
        long first = (offset + i) % rowBytes * 8 / bits;
        for (int j = 0; j < 8 / bits && first + j < columns; j++) {
          zeros += (buffer.get(i) >> bits * j & mask) == middle ? 1 : 0;
        }
      }
    }
    return zeros;
  }
}
