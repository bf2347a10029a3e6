package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.device.TestDevice;

/**
 * One tensor of an optimizer in native memory, with mask, gate, working copy and scales, beside its
 * state in the reference. Close it.
 */
abstract class OptimizerSubject<S extends WorkingCopyReference.State> implements AutoCloseable {
  /**
   * Shapes beside Numbers.SIZES: rows of one; rows that start at any bit of a byte, of less and more
   * than a vector; rows of whole vectors; several pieces of rows; rows and columns over one piece;
   * rows too long for the cache, starting on a whole vector and not; more columns than one panel.
   */
  static final int[][] SHAPES = {
    {1, 1},
    {37, 1},
    {3, 5},
    {16, 16},
    {7, 33},
    {10, 128},
    {128, 10},
    {300, 64},
    {129, 131},
    {2, 70_000},
    {3, 66_001},
    {65, 1040},
    {0, 7},
    {4, 0}
  };

  enum Copy {
    NONE,
    F32,
    BF16,
    F16,
    INT8;

    DType dtype() {
      return this == BF16 ? DType.BF16 : this == F16 ? DType.F16 : DType.F32;
    }
  }

  /** How a subclass is made. */
  interface Factory<T> {
    T make(
        int rows,
        int cols,
        DType gradientType,
        Copy copy,
        Channel channel,
        long seed,
        boolean given,
        int offset);
  }

  /** Every size, shape, copy and channel in one list; masks, gates and offsets on some. */
  static <T> List<T> everything(DType gradientType, Factory<T> factory) {
    List<T> subjects = new ArrayList<>();
    Copy[] copies = Copy.values();
    Channel[] channels = Channel.values();
    int seed = 1;
    for (int n : Numbers.SIZES) {
      Copy copy = copies[seed % 4];
      subjects.add(factory.make(1, n, gradientType, copy, null, seed++, false, 0));
      copy = copies[seed % copies.length];
      boolean given = seed % 5 == 3;
      subjects.add(factory.make(1, n, gradientType, copy, Channel.TENSOR, seed, given, seed++ % 2));
    }
    for (int[] shape : SHAPES) {
      for (Channel channel : channels) {
        Copy copy = copies[seed % copies.length];
        boolean given = seed % 7 == 3;
        subjects.add(
            factory.make(shape[0], shape[1], gradientType, copy, channel, seed, given, seed++ % 2));
      }
    }
    return subjects;
  }

  /** Every copy and channel on one small shape, some scales given. */
  static <T> List<T> small(Factory<T> factory) {
    List<T> subjects = new ArrayList<>();
    for (Copy copy : Copy.values()) {
      for (Channel channel : Channel.values()) {
        int seed = subjects.size() + 1;
        DType gradients = DType.values()[seed % 3];
        subjects.add(factory.make(7, 33, gradients, copy, channel, seed, seed % 4 == 0, 0));
      }
    }
    return subjects;
  }

  final S state;
  final Copy copy;
  final List<OwnedTensor> owned = new ArrayList<>();
  final List<BytePointer> fields = new ArrayList<>();
  final Tensor weight;
  final Tensor gradient;
  final Tensor floats;
  final BytePointer integers;
  final BytePointer gate;
  final Tensor scales;
  final BytePointer mask;
  final WorkingCopy workingCopy;
  final Scale scale;
  private final int offset;

  /** {@code offset} elements lie between the start of the memory and the tensor. */
  OptimizerSubject(
      S state,
      int rows,
      int cols,
      DType gradientType,
      Copy copy,
      Channel channel,
      long seed,
      boolean given,
      int offset) {
    int n = rows * cols;
    this.state = state;
    this.copy = copy;
    this.offset = offset;
    float[] w = Numbers.floats(n, seed);
    float[] unread = new float[n];
    Arrays.fill(unread, Float.NaN);
    weight = tensor(DType.F32, rows, cols, w);
    gradient = tensor(gradientType, rows, cols, new float[n]);
    state.rows = rows;
    state.cols = cols;
    state.weight = toDouble(w);
    state.gradient = new float[n];
    boolean quantized = channel != null;
    state.mask = seed % 3 == 0 ? null : Numbers.randomBits(n, 0.5, seed + 1);
    state.gate = quantized && seed % 4 == 0 || given ? Numbers.randomBits(n, 0.9, seed + 2) : null;
    gate = field(state.gate);
    floats =
        copy == Copy.NONE || copy == Copy.INT8 ? null : tensor(copy.dtype(), rows, cols, unread);
    integers = copy == Copy.INT8 ? bytes(n) : null;
    mask = field(state.mask);
    workingCopy =
        floats != null
            ? WorkingCopy.of(floats)
            : integers != null ? WorkingCopy.int8(integers) : null;
    if (quantized) {
      int count = channel == Channel.TENSOR ? 1 : channel == Channel.FIRST_AXIS ? rows : cols;
      state.channel = channel;
      state.scale = new double[count];
      state.scaleGiven = given;
      state.integers = new int[n];
      float[] values = new float[count];
      Arrays.fill(values, given ? 0.01f : Float.NaN);
      for (int i = 0; i < count; i++) {
        state.scale[i] = values[i];
      }
      scales = tensor(DType.F32, 1, count, values);
      scale = new Scale(scales, channel, given);
    } else {
      scales = null;
      scale = null;
    }
  }

  BytePointer there(TestDevice there, BytePointer bits) {
    return there.of(bits, Bits.bytes(weight.elements()));
  }

  WorkingCopy copyOn(TestDevice there) {
    return floats != null
        ? WorkingCopy.of(there.of(floats))
        : integers != null ? WorkingCopy.int8(there.of(integers, weight.elements())) : null;
  }

  Scale scaleOn(TestDevice there) {
    return scale == null ? null : new Scale(there.of(scales), scale.channel(), scale.given());
  }

  /** What the first step must not read: NaN. */
  Tensor unreadState() {
    float[] unread = new float[state.weight.length];
    Arrays.fill(unread, Float.NaN);
    return tensor(DType.F32, state.rows, state.cols, unread);
  }

  private Tensor tensor(DType dtype, int rows, int cols, float[] values) {
    OwnedTensor memory = OwnedTensor.allocate(dtype, rows * cols + offset);
    owned.add(memory);
    Tensor flat = memory.slice(offset, rows * cols);
    Tensor shaped = Tensor.of(flat.pointer(), dtype, rows, cols);
    Numbers.write(shaped, values);
    return shaped;
  }

  private BytePointer field(boolean[] values) {
    if (values == null) {
      return null;
    }
    try (BytePointer packed = Numbers.bits(values)) {
      BytePointer memory = new BytePointer(Math.max(1, Bits.bytes(values.length)) + offset);
      fields.add(memory);
      for (long i = 0; i < Bits.bytes(values.length); i++) {
        memory.put(i + offset, packed.get(i));
      }
      return memory.position(offset);
    }
  }

  private BytePointer bytes(int n) {
    BytePointer memory = new BytePointer(Math.max(1, n) + offset);
    fields.add(memory);
    return memory.position(offset);
  }

  void gradients(long seed) {
    float[] g = Numbers.rounded(gradient.dtype(), Numbers.floats(state.weight.length, seed));
    Numbers.write(gradient, g);
    state.gradient = g;
  }

  /** Every bit of every output is the reference's. */
  void check(String what) {
    assertBits(state.weight, Numbers.read(weight), what + " weight");
    if (state.scale != null) {
      assertBits(state.scale, Numbers.read(scales), what + " scale");
    }
    int n = state.weight.length;
    if (state.gate != null) {
      byte[] expected = new byte[(int) Bits.bytes(n)];
      byte[] actual = new byte[expected.length];
      try (BytePointer packed = Numbers.bits(state.gate)) {
        packed.get(expected);
      }
      gate.get(actual, 0, actual.length);
      assertArrayEquals(expected, actual, what + " gate");
    }
    if (copy == Copy.INT8) {
      byte[] expected = new byte[n];
      for (int i = 0; i < n; i++) {
        expected[i] = (byte) state.integers[i];
      }
      assertArrayEquals(expected, bytes(integers, n), what + " integers");
    } else if (copy != Copy.NONE) {
      float[] values = new float[n];
      for (int i = 0; i < n; i++) {
        values[i] =
            state.scale == null
                ? (float) state.weight[i]
                : state.integers[i] * (float) state.scale[state.channelOf(i)];
      }
      assertBits(
          toDouble(Numbers.rounded(copy.dtype(), values)),
          Numbers.read(floats),
          what + " working copy");
    }
  }

  @Override
  public void close() {
    owned.forEach(OwnedTensor::close);
    fields.forEach(BytePointer::close);
  }

  static double[] toDouble(float[] values) {
    double[] wide = new double[values.length];
    for (int i = 0; i < wide.length; i++) {
      wide[i] = values[i];
    }
    return wide;
  }

  static void assertBits(double[] expected, float[] actual, String what) {
    for (int i = 0; i < expected.length; i++) {
      if (Float.floatToIntBits((float) expected[i]) != Float.floatToIntBits(actual[i])) {
        throw new AssertionError(
            what
                + " "
                + i
                + " of "
                + expected.length
                + ": expected "
                + (float) expected[i]
                + ", was "
                + actual[i]);
      }
    }
  }

  static int firstIndex(boolean[] values, boolean wanted) {
    for (int i = 0; i < values.length; i++) {
      if (values[i] == wanted) {
        return i;
      }
    }
    throw new AssertionError("no " + wanted);
  }

  static byte[] bytes(BytePointer pointer, long n) {
    byte[] values = new byte[(int) n];
    pointer.get(values);
    return values;
  }
}
