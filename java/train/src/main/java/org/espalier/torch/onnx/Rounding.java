package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import org.espalier.compress.onnx.RoundedActivations;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.FakeQuantize;

/**
 * What activations are rounded to by QuantizeLinear or DynamicQuantizeLinear and the DequantizeLinear behind it: one grid of 8 bits for
 * a whole tensor, as {@code fake_quantize} has it.
 *
 * @param grid gives the scale where the tensor's own range does
 * @param scale of the grid; 0 where the tensor's own range gives it
 * @param zero the integer that 0 is; likewise
 */
public record Rounding(FakeQuantize grid, float scale, int zero) {
  /** The grid of a type of 8 bits with the range of what is rounded. */
  static final FakeQuantize TO_RANGE = grid(0, 255);

  private static final Rounding TO_OWN_RANGE = new Rounding(TO_RANGE, 0, 0);

  /** Up to here a scale has no reciprocal. */
  private static final float LEAST_SCALE = 0x1p-128f;

  private static FakeQuantize grid(int least, int most) {
    return FakeQuantize.affine(least, most).rounding(FakeQuantize.Rounding.DIVIDE);
  }

  /**
   * A grid with a given scale.
   *
   * @return null where the kernels have none
   */
  static Rounding fixed(int least, int most, float scale, int zero) {
    boolean isOfBytes = least >= -128 && most <= (least < 0 ? 127 : 255) && least < most;
    return isOfBytes
            && least <= zero
            && zero <= most
            && scale > LEAST_SCALE
            && Float.isFinite(scale)
        ? new Rounding(grid(least, most).given(), scale, zero)
        : null;
  }

  /** Whether all values of a batch together give its range. */
  public boolean isToOwnRange() {
    return grid.observer() != FakeQuantize.Observer.GIVEN;
  }

  /**
   * What a QuantizeLinear or DynamicQuantizeLinear does, behind which a DequantizeLinear takes it back.
   *
   * @return null where the grid is another than the kernels have
   */
  static Rounding of(OnnxModel model, RoundedActivations.Rounded rounded) {
    NodeProto source = rounded.source();
    if (source.getOpType().equals("DynamicQuantizeLinear")) {
      return TO_OWN_RANGE;
    }
    OnnxInitializer scale = model.constant(source.getInput(1));
    boolean hasZero = source.getInputCount() > 2 && !source.getInput(2).isEmpty();
    OnnxInitializer zero = hasZero ? model.constant(source.getInput(2)) : null;
    long asked = Attributes.integer(source, "output_dtype", 0);
    DataType type =
        hasZero ? zero.type() : asked == 0 ? DataType.UINT8 : DataType.forNumber((int) asked);
    boolean isSigned = type == DataType.INT8;
    if (!isSigned && type != DataType.UINT8
        || scale.type() != DataType.FLOAT
        || Attributes.integer(source, "block_size", 0) != 0) {
      return null;
    }
    int code = hasZero ? zero.data().get(0) : 0;
    return fixed(
        rounded.least() != null ? rounded.least() : isSigned ? -128 : 0,
        rounded.most() != null ? rounded.most() : isSigned ? 127 : 255,
        scale.floats().get(0),
        isSigned ? code : code & 0xff);
  }
}
