package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.InputException;
import org.espalier.device.DType;
import org.espalier.device.Device;
import org.espalier.device.Tensor;
import org.espalier.format.safetensors.Names;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.FakeQuantize;

/** Quantizes matrices to int8, one scale a row, by the convention of compressed-tensors. */
final class RowQuantizer implements AutoCloseable {
  /** Elements of a piece. */
  static final int PIECE = 1 << 20;

  private static final int MAX_ROWS = 1 << 15;

  private static final float LEVELS = 127.5f;

  /** The format's smallest scale, the machine epsilon of F32 as PyTorch has it. */
  private static final float SMALLEST = 0x1p-23f;

  /**
   * The observer gives magnitude / divisor and refuses what has no reciprocal. We want the magnitude
   * of any row, and a power of two keeps the digits and brings the smallest number into range.
   */
  private static final float UNIT = 0x1p-22f;

  private final FakeQuantize observer = FakeQuantize.symmetric(-128, 127, UNIT).perChannel(0);
  private final FakeQuantize quantizer =
      FakeQuantize.symmetricFull(8).perChannel(0).rounding(FakeQuantize.Rounding.DIVIDE).given();
  private final RowLane[] lanes;
  private final FloatPointer scales = new FloatPointer(MAX_ROWS);
  private final ByteBuffer stored =
      ByteBuffer.allocateDirect(4 * MAX_ROWS).order(ByteOrder.LITTLE_ENDIAN);

  /**
   * @param device where rows are quantized
   * @param columns of the widest matrix
   */
  RowQuantizer(Device device, long columns) {
    lanes = new RowLane[device.isCuda() ? 2 : 1];
    for (int i = 0; i < lanes.length; i++) {
      lanes[i] =
          device.isCuda()
              ? new DeviceLane(device, observer, quantizer, Math.max(PIECE, columns), MAX_ROWS)
              : new KernelLane(observer, quantizer);
    }
  }

  /** The name of the scales of {@code X.weight}. */
  static String scaleName(String weight) {
    return weight + "_scale";
  }

  /**
   * Writes the integers and the scales of a matrix.
   *
   * @param file where the matrix can be read
   * @throws InputException if a weight is not finite
   */
  void quantize(SafetensorsFile file, String name, CheckpointOutput output) {
    TensorInfo tensor = file.tensor(name);
    String where = file.path() + ": tensor " + Names.quote(name);
    Tensor view = file.view(tensor);
    long rows = view.dimension(0);
    long columns = view.dimension(1);
    long step = Math.min(MAX_ROWS, Math.max(1, PIECE / columns));
    long pieces = (rows + step - 1) / step;
    int ahead = lanes.length - 1; // as many pieces have begun when one is ended
    for (long i = 0; i < pieces + ahead; i++) {
      if (i < pieces) {
        long row = i * step;
        long count = Math.min(step, rows - row);
        lane(i).start(matrix(view.slice(row * columns, count * columns), count, columns));
      }
      if (i >= ahead) {
        long row = (i - ahead) * step;
        finish(lane(i - ahead), Math.min(step, rows - row), view.dtype(), name, where, output);
      }
    }
  }

  private RowLane lane(long piece) {
    return lanes[(int) (piece % lanes.length)];
  }

  private void finish(
      RowLane lane, long rows, DType dtype, String name, String where, CheckpointOutput output) {
    findScales(lane, where);
    for (long i = 0; i < rows; i++) {
      // For a row of zeros the observer says 1; that magnitude too has the smallest scale.
      float magnitude = scales.get(i) * UNIT;
      scales.put(i, store(Math.max(magnitude / LEVELS, SMALLEST), dtype));
    }
    output.append(scaleName(name), stored.flip());
    stored.clear();
    lane.quantize(scales, integers -> output.append(name, integers));
  }

  static Tensor matrix(Tensor flat, long rows, long columns) {
    return Tensor.ofAddress(flat.address(), flat.bytes(), flat.dtype(), rows, columns);
  }

  private void findScales(RowLane lane, String where) {
    FakeQuantize.NonFinite found;
    try {
      found = lane.observe(scales);
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

  /** Adds the scale to what is stored and returns it as it reads back. */
  private float store(float scale, DType dtype) {
    int bits = Float.floatToRawIntBits(scale);
    switch (dtype) {
      case F32 -> {
        stored.putFloat(scale);
        return scale;
      }
      case BF16 -> {
        int rounded = bits + 0x7fff + (bits >> 16 & 1) >> 16;
        stored.putShort((short) rounded);
        return Float.intBitsToFloat(rounded << 16);
      }
      default -> {
        // Scales lie between 2^-23 and 65504 / 127.5; below 2^-14 an F16 is a multiple of 2^-24.
        if (scale < 0x1p-14f) {
          float units = (float) Math.rint(scale * 0x1p24f);
          stored.putShort((short) units);
          return units * 0x1p-24f;
        }
        int rounded = bits + 0xfff + (bits >> 13 & 1) >> 13;
        stored.putShort((short) (rounded - (127 - 15 << 10)));
        return Float.intBitsToFloat(rounded << 13);
      }
    }
  }

  @Override
  public void close() {
    for (RowLane lane : lanes) {
      lane.close();
    }
    scales.close();
  }
}
