package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import org.espalier.format.Float8;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;

/**
 * The form that weights {@code X.weight} [out, in] of linear layers take in the compressed-tensors layout.
 *
 * <p>Of 8 bits: {@code X.weight} [out, in] and {@code X.weight_scale} [out, 1]; I8, which readers know as int-quantized, or
 * F8_E4M3, float-quantized. Of 4 bits, pack-quantized: {@code X.weight_packed} I32 [out, in / 8], {@code X.weight_scale} [out,
 * in / block], {@code X.weight_shape} I64 [2] and, where they are not symmetric, {@code X.weight_zero_point} I32 [out
 * / 8, in / block]. Scales have the weights' own type; quotients are rounded up.
 *
 * @param kind of the numbers that are stored
 * @param block input channels that share a scale; 0: all
 * @param symmetric whether 0 is stored as the middle of the grid; else zero points tell it
 */
public record LinearForm(Kind kind, int block, boolean symmetric) {
  /** What is stored for a weight. */
  public enum Kind {
    INT8,
    INT4,
    FLOAT8
  }

  /** Integers, one scale an output channel. */
  public static final LinearForm INT8 = new LinearForm(Kind.INT8, 0, true);

  /** Floats of 8 bits, one scale an output channel. */
  public static final LinearForm FLOAT8 = new LinearForm(Kind.FLOAT8, 0, true);

  /** The blocks of 4-bit weights that vLLM has kernels for, beside one for all input channels. */
  public static final List<Integer> BLOCKS = List.of(32, 64, 128);

  /** The format's smallest scale, the machine epsilon of F32 as PyTorch has it. */
  public static final float SMALLEST_SCALE = 0x1p-23f;

  /**
   * Of 4 bits so many scales are tried, from that which clips nothing down to {@link #LEAST_SHARE} of it. A hundred down to
   * a tenth would leave 0.5 to 0.8 % less of the squared error.
   */
  public static final int TRIED_SCALES = 16;

  /** The smallest scale that is tried, as a share of that which clips nothing. */
  public static final float LEAST_SHARE = 17f / 32;

  private static final String SCALE = "_scale";
  private static final String PACKED = "_packed";

  /** Integers in a word. */
  static final int PER_WORD = 8;

  // What vLLM's Marlin kernels for 4 bits take is a multiple of these.
  private static final int KERNEL_OUTPUTS = 64;
  private static final int KERNEL_INPUTS = 128;

  public LinearForm {
    boolean fits =
        kind == Kind.INT4 ? block == 0 || BLOCKS.contains(block) : block == 0 && symmetric;
    if (!fits) {
      throw new IllegalArgumentException(
          kind + " in blocks of " + block + (symmetric ? "" : " with zero points"));
    }
  }

  /** Weights of 4 bits. */
  public static LinearForm int4(int block, boolean symmetric) {
    return new LinearForm(Kind.INT4, block, symmetric);
  }

  /** Bits that are stored for a weight. */
  public int bits() {
    return isPacked() ? 4 : 8;
  }

  /** The least number that is stored. */
  public int least() {
    return isFloat() ? -(int) Float8.LARGEST : -(1 << bits() - 1);
  }

  /** The largest number that is stored. */
  public int largest() {
    return isFloat() ? (int) Float8.LARGEST : (1 << bits() - 1) - 1;
  }

  /** How many scales the largest magnitude of a block has, or, with zero points, its range. */
  public float steps() {
    return switch (kind) {
      case INT8 -> 127.5f;
      case INT4 -> symmetric ? 7 : 15;
      case FLOAT8 -> Float8.LARGEST;
    };
  }

  /** Whether weights are stored as floats. */
  public boolean isFloat() {
    return kind == Kind.FLOAT8;
  }

  /** Whether several integers lie in a word. */
  boolean isPacked() {
    return kind == Kind.INT4;
  }

  /** The weights of a row of {@code columns} that share a scale. */
  long width(long columns) {
    return block == 0 ? columns : block;
  }

  /** Why a matrix cannot have this form, if it cannot. */
  public Optional<String> misfit(TensorInfo matrix) {
    long columns = matrix.shape().get(1);
    if (columns % width(columns) == 0) {
      return Optional.empty();
    }
    String other =
        BLOCKS.stream()
            .filter(smaller -> columns % smaller == 0)
            .max(Comparator.naturalOrder())
            .map(fits -> ", but of " + fits)
            .orElse("");
    return Optional.of("its " + columns + " input channels are no multiple of " + block + other);
  }

  /** Whether vLLM's kernels for this form take a matrix; those of layers that it joins they take together. */
  public boolean isForKernels(TensorInfo matrix) {
    return !isPacked()
        || matrix.shape().get(0) % KERNEL_OUTPUTS == 0
            && matrix.shape().get(1) % KERNEL_INPUTS == 0;
  }

  /** The tensors that stand for a matrix. */
  List<TensorSpec> tensors(TensorInfo matrix) {
    String name = matrix.name();
    long rows = matrix.shape().get(0);
    long columns = matrix.shape().get(1);
    long blocks = columns / width(columns);
    List<TensorSpec> tensors = new ArrayList<>();
    tensors.add(new TensorSpec(scaleName(name), matrix.dtype(), List.of(rows, blocks)));
    if (isPacked()) {
      tensors.add(
          new TensorSpec(packedName(name), SafetensorsDtype.I32, List.of(rows, words(columns))));
      tensors.add(new TensorSpec(shapeName(name), SafetensorsDtype.I64, List.of(2L)));
      if (!symmetric) {
        tensors.add(
            new TensorSpec(
                zeroPointName(name), SafetensorsDtype.I32, List.of(words(rows), blocks)));
      }
    } else {
      SafetensorsDtype stored = isFloat() ? SafetensorsDtype.F8_E4M3 : SafetensorsDtype.I8;
      tensors.add(new TensorSpec(name, stored, matrix.shape()));
    }
    return tensors;
  }

  /** What {@link #shapeName} holds of a matrix. */
  static ByteBuffer shapeOf(TensorInfo matrix) {
    ByteBuffer shape = ByteBuffer.allocate(2 * Long.BYTES).order(ByteOrder.LITTLE_ENDIAN);
    matrix.shape().forEach(shape::putLong);
    return shape.flip();
  }

  /** The words that hold {@code integers}. */
  static long words(long integers) {
    return (integers + PER_WORD - 1) / PER_WORD;
  }

  /** The name of the scales of {@code X.weight}. */
  static String scaleName(String weight) {
    return weight + SCALE;
  }

  /** Whether a tensor holds the scales of another one that a checkpoint has as integers. */
  static boolean isScale(String name, Checkpoint checkpoint) {
    String weight = name.endsWith(SCALE) ? name.substring(0, name.length() - SCALE.length()) : null;
    return weight != null
        && (checkpoint.tensor(weight) != null || checkpoint.tensor(packedName(weight)) != null);
  }

  /** The name of the packed integers of {@code X.weight}. */
  static String packedName(String weight) {
    return weight + PACKED;
  }

  /** Whether a tensor has the name of packed integers. */
  static boolean isPacked(String name) {
    return name.endsWith(PACKED);
  }

  /** {@code X.weight} of the name of its packed integers. */
  static String weightOfPacked(String name) {
    return name.substring(0, name.length() - PACKED.length());
  }

  /** The name of what tells the shape of {@code X.weight}. */
  static String shapeName(String weight) {
    return weight + "_shape";
  }

  /** The name of the zero points of {@code X.weight}. */
  static String zeroPointName(String weight) {
    return weight + "_zero_point";
  }
}
