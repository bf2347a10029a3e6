package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.espalier.device.DType;
import org.espalier.format.HalfFloats;
import org.espalier.format.safetensors.TensorInfo;

/**
 * Writes the tensors that stand for one matrix in a {@link LinearForm}: scales, zero points and integers, each block by block
 * of the matrix's rows, and then {@link #finish}.
 */
final class LinearTensors {
  /** Scales that are held before they are written. */
  private static final int HELD = 1 << 15;

  private final LinearForm form;
  private final TensorInfo matrix;
  private final DType type;
  private final long width;
  private final CheckpointOutput output;
  private final Nibbles nibbles;
  private final ZeroPointWords zeroPoints;
  private final ByteBuffer scales = ByteBuffer.allocate(4 * HELD).order(ByteOrder.LITTLE_ENDIAN);

  /**
   * @param nibbles packs integers; null where these are not packed
   */
  LinearTensors(LinearForm form, TensorInfo matrix, CheckpointOutput output, Nibbles nibbles) {
    this.form = form;
    this.matrix = matrix;
    this.type = matrix.dtype().computable();
    this.output = output;
    this.nibbles = nibbles;
    long columns = matrix.shape().get(1);
    width = form.width(columns);
    String name = LinearForm.zeroPointName(matrix.name());
    zeroPoints =
        form.symmetric()
            ? null
            : new ZeroPointWords(columns / width, words -> output.append(name, words));
  }

  /** Writes the next scale, rounded to the matrix's type, and returns it as it reads back. */
  float scale(float scale) {
    if (!scales.hasRemaining()) {
      writeScales();
    }
    float rounded = HalfFloats.rounded(scale, type);
    switch (type) {
      case F32 -> scales.putFloat(rounded);
      case BF16 -> scales.putShort(HalfFloats.toBfloat16(rounded));
      default -> scales.putShort(HalfFloats.toFloat16(rounded));
    }
    return rounded;
  }

  private void writeScales() {
    output.append(LinearForm.scaleName(matrix.name()), scales.flip());
    scales.clear();
  }

  /** Writes the next zero point, of a form that has them. */
  void zeroPoint(int zeroPoint) {
    zeroPoints.add(zeroPoint);
  }

  /** Writes the next integers, one a byte, whole blocks. */
  void integers(ByteBuffer integers) {
    if (nibbles == null) {
      output.append(matrix.name(), integers);
    } else {
      String name = LinearForm.packedName(matrix.name());
      nibbles.pack(integers, width, words -> output.append(name, words));
    }
  }

  /** Writes what is left. */
  void finish() {
    writeScales();
    if (zeroPoints != null) {
      zeroPoints.finish();
    }
    if (form.isPacked()) {
      output.append(LinearForm.shapeName(matrix.name()), LinearForm.shapeOf(matrix));
    }
  }
}
