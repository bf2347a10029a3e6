package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
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
  static final FakeQuantize UNSIGNED =
      FakeQuantize.affine(8).rounding(FakeQuantize.Rounding.DIVIDE);

  static final FakeQuantize SIGNED =
      FakeQuantize.affine(-128, 127).rounding(FakeQuantize.Rounding.DIVIDE);

  /** Up to here a scale has no reciprocal. */
  static final float LEAST_SCALE = 0x1p-128f;

  private static final Rounding TO_OWN_RANGE = new Rounding(UNSIGNED, 0, 0);

  /** Whether all values of a batch together give its range. */
  public boolean isToOwnRange() {
    return grid.observer() != FakeQuantize.Observer.GIVEN;
  }

  /**
   * What a node does, behind which a DequantizeLinear takes it back.
   *
   * @param source which {@link org.espalier.compress.onnx.RoundedActivations} has found
   * @return null where the grid is another than the kernels have
   */
  static Rounding of(OnnxModel model, NodeProto source) {
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
    float step = scale.floats().get(0);
    if (!(step > LEAST_SCALE) || !Float.isFinite(step)) {
      return null;
    }
    int code = hasZero ? zero.data().get(0) : 0;
    return new Rounding(
        (isSigned ? SIGNED : UNSIGNED).given(), step, isSigned ? code : code & 0xff);
  }
}
