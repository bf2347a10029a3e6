package org.espalier.compress;

import java.nio.ByteBuffer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.InputException;
import org.espalier.device.Device;
import org.espalier.device.Tensor;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.FakeQuantize;

/**
 * Quantizes matrices by the conventions of compressed-tensors. A row here is what shares a scale: a row of the matrix,
 * or a block of one. Integers of 8 bits have the scale that clips nothing but the largest half step, floats of 8 bits that
 * with which the largest magnitude is their largest. Of 4 bits several
 * scales are tried, and the one with the smallest squared error is taken. Scales are rounded to the type in which they
 * are stored before weights are rounded with them.
 */
final class RowQuantizer implements AutoCloseable {
  /** Elements of a piece. */
  static final int PIECE = 1 << 20;

  private static final int MAX_ROWS = 1 << 15;

  private final LinearForm form;
  private final RowLane[] lanes;
  private final FloatPointer scales = new FloatPointer(MAX_ROWS);
  private final IntPointer zeroPoints; // null: all 0
  private final Nibbles nibbles; // null where integers are not packed

  /**
   * @param device where rows are quantized; floats are made on the CPU
   * @param columns of the widest matrix
   */
  RowQuantizer(LinearForm form, Device device, long columns) {
    this.form = form;
    zeroPoints = form.symmetric() ? null : new IntPointer(MAX_ROWS);
    nibbles = form.isPacked() ? new Nibbles(PIECE) : null;
    FakeQuantize grid = grid(form).perChannel(0);
    FakeQuantize observer = grid.smallestScale(LinearForm.SMALLEST_SCALE);
    if (form.isPacked()) {
      observer = observer.mse(LinearForm.TRIED_SCALES - 1, LinearForm.LEAST_SHARE);
    }
    FakeQuantize quantizer = grid.given().rounding(FakeQuantize.Rounding.DIVIDE);
    long elements = Math.max(PIECE, form.width(columns));
    lanes = new RowLane[device.isCuda() ? 2 : 1];
    for (int i = 0; i < lanes.length; i++) {
      lanes[i] =
          device.isCuda()
              ? new DeviceLane(device, observer, quantizer, elements, MAX_ROWS, !form.symmetric())
              : new KernelLane(observer, rounding(form, quantizer));
    }
  }

  private static FakeQuantize grid(LinearForm form) {
    return switch (form.kind()) {
      case INT8 -> FakeQuantize.symmetricFull(8);
      case INT4 -> form.symmetric() ? FakeQuantize.symmetric(-8, 7, 7) : FakeQuantize.affine(-8, 7);
      case FLOAT8 -> FakeQuantize.symmetric(-128, 127, form.steps()); // finds scales alone
    };
  }

  private static KernelLane.Rounding rounding(LinearForm form, FakeQuantize quantizer) {
    return form.isFloat()
        ? (rows, scales, zeroPoints, stored) -> Float8Rows.round(rows, scales, stored)
        : (rows, scales, zeroPoints, stored) ->
            quantizer.run(FakeQuantize.Job.real(rows, stored, scales, zeroPoints));
  }

  /**
   * Writes what stands for a matrix.
   *
   * @param file where the matrix can be read
   * @param where the user has it, for messages
   * @throws InputException if a weight is not finite
   */
  void quantize(SafetensorsFile file, String name, String where, CheckpointOutput output) {
    TensorInfo tensor = file.tensor(name);
    Tensor view = file.view(tensor);
    long width = form.width(view.dimension(1));
    long rows = view.elements() / width;
    LinearTensors target = new LinearTensors(form, tensor, output, nibbles);
    long step = Math.min(MAX_ROWS, Math.max(1, PIECE / width));
    long pieces = (rows + step - 1) / step;
    int ahead = lanes.length - 1; // as many pieces have begun when one is ended
    for (long i = 0; i < pieces + ahead; i++) {
      if (i < pieces) {
        long row = i * step;
        long count = Math.min(step, rows - row);
        lane(i).start(matrix(view.slice(row * width, count * width), count, width));
      }
      if (i >= ahead) {
        long row = (i - ahead) * step;
        finish(lane(i - ahead), Math.min(step, rows - row), target, where);
      }
    }
    target.finish();
  }

  private RowLane lane(long piece) {
    return lanes[(int) (piece % lanes.length)];
  }

  private void finish(RowLane lane, long rows, LinearTensors target, String where) {
    findScales(lane, where);
    for (long i = 0; i < rows; i++) {
      scales.put(i, target.scale(scales.get(i)));
      if (zeroPoints != null) {
        target.zeroPoint(zeroPoints.get(i));
      }
    }
    lane.quantize(scales, zeroPoints, target::integers);
  }

  static Tensor matrix(Tensor flat, long rows, long columns) {
    return Tensor.ofAddress(flat.address(), flat.bytes(), flat.dtype(), rows, columns);
  }

  private void findScales(RowLane lane, String where) {
    FakeQuantize.NonFinite found;
    try {
      found = lane.observe(scales, zeroPoints);
    } catch (InputException e) {
      throw new InputException(where + ": " + e.getMessage(), e);
    }
    if (found.total() > 0) {
      throw new InputException(
          where
              + " holds "
              + found.nan()
              + " NaN and "
              + found.infinite()
              + " infinite weights among the first that were read; a scale needs finite weights");
    }
  }

  /** Writes a weight that was fitted to examples. */
  void write(TensorInfo tensor, LinearFitting.Fitted fitted, CheckpointOutput output) {
    LinearTensors target = new LinearTensors(form, tensor, output, nibbles);
    for (float scale : fitted.scales()) {
      target.scale(scale);
    }
    for (int i = 0; !form.symmetric() && i < fitted.zeroPoints().length; i++) {
      target.zeroPoint(fitted.zeroPoints()[i]);
    }
    target.integers(ByteBuffer.wrap(fitted.integers()));
    target.finish();
  }

  @Override
  public void close() {
    for (RowLane lane : lanes) {
      lane.close();
    }
    scales.close();
    if (zeroPoints != null) {
      zeroPoints.close();
    }
  }
}
