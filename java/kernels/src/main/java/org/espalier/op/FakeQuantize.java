package org.espalier.op;

import java.lang.ref.Reference;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.InputException;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_plan;
import org.espalier.binding.esp_cuda_quantize_result;
import org.espalier.binding.esp_dequantized;
import org.espalier.binding.esp_quantized;
import org.espalier.binding.esp_quantizer;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaStream;
import org.espalier.device.DType;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * Puts tensors on an integer grid of 2 to 8 bits: fake-quantized ({@code y = s * (q - z)}), really
 * quantized ({@code q} in 8 bits), or both, with one scale a tensor or one a channel on any axis.
 *
 * <pre>{@code
 * q = clamp(rint(x * (1/s)) + z, min, max), half to even; the gradient passes where nothing was clamped
 * }</pre>
 *
 * <p>That is PyTorch's rule and its bits where {@code |x/s| < 2^31}; beyond that and at infinities q
 * saturates. {@link Rounding#DIVIDE} is ONNX Runtime's rule. NaN becomes {@code min} and does not
 * pass gradient. Scales are given, or observed in the same call; a channel of zeros gets scale 1, or the
 * {@link #smallestScale smallest scale} where there is one.
 *
 * <p>An instance is a set of options: immutable, thread safe, cheap. All results have the same bits
 * on every instruction set, for every number of threads and on CUDA devices. Bit fields hold one bit an
 * element, least significant first ({@link Bits}).
 *
 * <p>Runs where x is; all other memory of a job lies there too.
 */
public final class FakeQuantize {
  /** How x becomes a place on the grid. */
  public enum Rounding {
    /** {@code x * (1/s)}, as PyTorch. */
    MULTIPLY,
    /** {@code x / s}, as ONNX Runtime. */
    DIVIDE
  }

  /** Where scales and zero points come from. */
  public enum Observer {
    /** They are given. */
    GIVEN,
    /** From the smallest and largest value; the largest magnitude on symmetric grids. */
    MIN_MAX,
    /** From running averages of the smallest and largest value. */
    MOVING_AVERAGE,
    /** From that part of the range which gives the smallest squared error. */
    MSE
  }

  /**
   * One tensor of a call. Nothing is copied; the memory must stay valid during the call.
   *
   * @param x what is quantized
   * @param y receives it fake-quantized: of the type and shape of x or F32; x itself is allowed; or null
   * @param quantized receives q, one byte an element, signed where the grid has negative numbers; or
   *     null
   * @param gate receives the bits of the straight-through gradient; or null
   * @param scale one a channel; read where scales are given, written by observers
   * @param zeroPoint one a channel, like the scales; null where all are 0, not for affine observers
   * @param running for moving averages, kept between calls: one minimum a channel, then one maximum a
   *     channel; {@link FakeQuantize#startRunning} sets it up; else null
   */
  public record Job(
      Tensor x,
      Tensor y,
      BytePointer quantized,
      BytePointer gate,
      FloatPointer scale,
      IntPointer zeroPoint,
      FloatPointer running) {
    public Job {
      Objects.requireNonNull(x, "x");
      Objects.requireNonNull(scale, "scale");
      if (y != null && y.elements() != x.elements()) {
        throw new IllegalArgumentException("y is " + y + ", x is " + x);
      }
      if (y != null && y.dtype() != x.dtype() && y.dtype() != DType.F32) {
        throw new IllegalArgumentException(
            "y is " + y + "; the type of x, " + x + ", or F32 is needed");
      }
      if (y != null) {
        y.requireWritable("y");
      }
      requireElements("quantized", quantized, x.elements());
      Bits.check("gate", gate, x.elements());
    }

    /**
     * @param channels its number of scales
     * @throws IllegalStateException where memory of it was closed
     */
    private void requireOpen(long channels) {
      x.requireOpen();
      Lifetimes.requireOpen(y);
      Lifetimes.requireOpen("quantized", quantized, x.elements());
      Lifetimes.requireOpen("gate", gate, x.elements());
      Lifetimes.requireOpen("scale", scale, channels);
      Lifetimes.requireOpen("zeroPoint", zeroPoint, channels);
      Lifetimes.requireOpen("running", running, channels);
    }

    /** Fake-quantizes. */
    public static Job fake(
        Tensor x, Tensor y, BytePointer gate, FloatPointer scale, IntPointer zeroPoint) {
      return new Job(x, Objects.requireNonNull(y, "y"), null, gate, scale, zeroPoint, null);
    }

    /** Quantizes to 8 bits. */
    public static Job real(
        Tensor x, BytePointer quantized, FloatPointer scale, IntPointer zeroPoint) {
      return new Job(
          x, null, Objects.requireNonNull(quantized, "quantized"), null, scale, zeroPoint, null);
    }

    /** Only observes. */
    public static Job observe(Tensor x, FloatPointer scale, IntPointer zeroPoint) {
      return new Job(x, null, null, null, scale, zeroPoint, null);
    }
  }

  /**
   * What a tensor holds that is not finite. Observers leave it out.
   *
   * @param nan the number of NaN
   * @param infinite the number of infinities
   */
  public record NonFinite(long nan, long infinite) {
    public long total() {
      return nan + infinite;
    }
  }

  /**
   * The integers, and how observers scale to them.
   *
   * @param divisor of the largest magnitude; 0 on affine grids
   */
  private record Grid(int min, int max, boolean symmetric, float divisor) {
    Grid {
      boolean fitsSigned = min >= -128 && min < max && max <= 127;
      boolean fitsUnsigned = min >= 0 && min < max && max <= 255;
      if (!fitsSigned && !fitsUnsigned) {
        throw new IllegalArgumentException(
            "the grid " + min + " .. " + max + " fits neither int8 nor uint8");
      }
      if (symmetric && (min > 0 || !(divisor > 0) || Float.isInfinite(divisor))) {
        throw new IllegalArgumentException(
            "a symmetric grid needs 0 and a positive divisor; it is "
                + min
                + " .. "
                + max
                + " with divisor "
                + divisor);
      }
    }
  }

  /**
   * Where scales come from.
   *
   * @param average of {@link Observer#MOVING_AVERAGE}
   * @param clipSteps of {@link Observer#MSE}
   * @param clipSmallest of {@link Observer#MSE}
   * @param smallestScale of all observers; 0: none
   */
  private record Observation(
      Observer observer, float average, int clipSteps, float clipSmallest, float smallestScale) {
    static final Observation MIN_MAX = new Observation(Observer.MIN_MAX, 0.01f, 100, 0.2f, 0);

    Observation by(Observer other) {
      return new Observation(other, average, clipSteps, clipSmallest, smallestScale);
    }
  }

  private final Grid grid;
  private final Integer axis; // null: one scale a tensor
  private final Rounding rounding;
  private final Observation observation;

  private FakeQuantize(Grid grid, Integer axis, Rounding rounding, Observation observation) {
    this.grid = grid;
    this.axis = axis;
    this.rounding = rounding;
    this.observation = observation;
  }

  private FakeQuantize(Grid grid) {
    this(grid, null, Rounding.MULTIPLY, Observation.MIN_MAX);
  }

  /**
   * The symmetric grid that training uses: -127 .. 127 for 8 bits, scale = largest magnitude / 127.
   * One scale a tensor, observed.
   *
   * @param bits 2 to 8
   */
  public static FakeQuantize symmetric(int bits) {
    int max = (1 << (requireBits(bits) - 1)) - 1;
    return symmetric(-max, max, max);
  }

  /**
   * The symmetric grid with all numbers of the width: -128 .. 127 for 8 bits, scale = largest
   * magnitude / 127.5, as in the compressed-tensors format.
   *
   * @param bits 2 to 8
   */
  public static FakeQuantize symmetricFull(int bits) {
    int half = 1 << (requireBits(bits) - 1);
    return symmetric(-half, half - 1, half - 0.5f);
  }

  /** A symmetric grid: zero point 0, observed scale = largest magnitude / {@code divisor}. */
  public static FakeQuantize symmetric(int min, int max, float divisor) {
    return new FakeQuantize(new Grid(min, max, true, divisor));
  }

  /**
   * The affine grid of unsigned numbers: 0 .. 255 for 8 bits.
   *
   * @param bits 2 to 8
   */
  public static FakeQuantize affine(int bits) {
    return affine(0, (1 << requireBits(bits)) - 1);
  }

  /** An affine grid: observed zero points, so that the range from the minimum to the maximum fits. */
  public static FakeQuantize affine(int min, int max) {
    return new FakeQuantize(new Grid(min, max, false, 0));
  }

  private static int requireBits(int bits) {
    if (bits < 2 || bits > 8) {
      throw new IllegalArgumentException(bits + " bits; 2 to 8 are possible");
    }
    return bits;
  }

  /** One scale for each index of {@code axis}; negative axes count from the last. */
  public FakeQuantize perChannel(int axis) {
    return new FakeQuantize(grid, axis, rounding, observation);
  }

  public FakeQuantize rounding(Rounding rounding) {
    return new FakeQuantize(grid, axis, rounding, observation);
  }

  private FakeQuantize with(Observation other) {
    return new FakeQuantize(grid, axis, rounding, other);
  }

  /** Scales and zero points are given in the call. */
  public FakeQuantize given() {
    return with(observation.by(Observer.GIVEN));
  }

  /** Scales come from the smallest and largest value of the tensor itself. */
  public FakeQuantize minMax() {
    return with(observation.by(Observer.MIN_MAX));
  }

  /**
   * Scales come from running averages: {@code state += constant * (value - state)}.
   *
   * @param constant above 0, at most 1
   */
  public FakeQuantize movingAverage(float constant) {
    if (!(constant > 0 && constant <= 1)) {
      throw new IllegalArgumentException(
          "an averaging constant of " + constant + "; above 0 and at most 1 is needed");
    }
    Observation o = observation;
    return with(
        new Observation(
            Observer.MOVING_AVERAGE, constant, o.clipSteps, o.clipSmallest, o.smallestScale));
  }

  /**
   * Scales come from the part of the range that gives the smallest sum of {@code (y - x)^2}, out of
   * {@code steps + 1} parts from the whole range down to {@code smallest} times it.
   *
   * @param steps 1 to 1000
   * @param smallest between 0 and 1
   */
  public FakeQuantize mse(int steps, float smallest) {
    if (steps < 1 || steps > 1000 || !(smallest > 0 && smallest < 1)) {
      throw new IllegalArgumentException(
          steps + " steps down to " + smallest + "; 1 to 1000 down to between 0 and 1 are needed");
    }
    Observation o = observation;
    return with(new Observation(Observer.MSE, o.average, steps, smallest, o.smallestScale));
  }

  /**
   * No observed scale is below {@code smallest}, and a channel of zeros gets it. By default there is none.
   *
   * @param smallest positive and finite, as its reciprocal must be
   */
  public FakeQuantize smallestScale(float smallest) {
    if (!(smallest > 0x1p-128f) || Float.isInfinite(smallest)) {
      throw new IllegalArgumentException(
          "a smallest scale of " + smallest + "; above 2^-128 and finite is needed");
    }
    Observation o = observation;
    return with(new Observation(o.observer, o.average, o.clipSteps, o.clipSmallest, smallest));
  }

  /** The smallest number of the grid. */
  public int min() {
    return grid.min;
  }

  /** The largest number of the grid. */
  public int max() {
    return grid.max;
  }

  public boolean isSymmetric() {
    return grid.symmetric;
  }

  /** What a symmetric observer divides the largest magnitude by; 0 on affine grids. */
  public float divisor() {
    return grid.divisor;
  }

  /** Whether quantized numbers are int8; else uint8. */
  public boolean isSigned() {
    return grid.min < 0;
  }

  public Observer observer() {
    return observation.observer;
  }

  public Rounding rounding() {
    return rounding;
  }

  /**
   * The number of scales that a tensor needs.
   *
   * @throws IllegalArgumentException where it lacks the axis
   */
  public long channels(Tensor tensor) {
    return split(tensor)[1];
  }

  /** Outer, channel and inner sizes. */
  long[] split(Tensor tensor) {
    if (axis == null) {
      return new long[] {1, 1, tensor.elements()};
    }
    int channel = axis < 0 ? axis + tensor.rank() : axis;
    if (channel < 0 || channel >= tensor.rank()) {
      throw new IllegalArgumentException("axis " + axis + " of a tensor " + tensor);
    }
    long[] shape = tensor.shape();
    return new long[] {
      product(shape, 0, channel), shape[channel], product(shape, channel + 1, shape.length)
    };
  }

  private static long product(long[] shape, int from, int to) {
    return Arrays.stream(shape, from, to).reduce(1, (a, b) -> a * b);
  }

  /** Sets up running averages of {@code channels} channels that have seen nothing. */
  public static void startRunning(FloatPointer running, long channels) {
    requireElements("running", running, 2 * channels);
    for (long c = 0; c < channels; c++) {
      running.put(c, Float.POSITIVE_INFINITY);
      running.put(channels + c, Float.NEGATIVE_INFINITY);
    }
  }

  /**
   * Runs one tensor; {@link #batch} is cheaper for many, and for one that is run often.
   *
   * @throws IllegalArgumentException a given scale that is not positive and finite with a finite
   *     reciprocal, or a zero point outside the grid; nothing is written then
   * @throws org.espalier.InputException values that give such a scale; outputs are unspecified then
   */
  public NonFinite run(Job job) {
    try (Batch batch = batch(List.of(job))) {
      return batch.run().get(0);
    }
  }

  /** A list of tensors that one native call runs; it can be run often. Close it. */
  public Batch batch(List<Job> jobs) {
    return new Batch(this, jobs);
  }

  /**
   * A list of tensors in native form. Where memory of it is known to be closed, a call throws an {@link
   * IllegalStateException}, as after close. Several threads wait for each other.
   */
  public static final class Batch
      extends QuantizerList<Job, esp_quantized, esp_cuda_quantize_result> {
    private final ClipSearch search; // of the MSE observer on a CUDA device; else null

    private Batch(FakeQuantize options, List<Job> jobs) {
      this(options, jobs, jobs.isEmpty() ? Device.cpu() : jobs.get(0).x().device());
    }

    private Batch(FakeQuantize options, List<Job> jobs, Device device) {
      super(
          "the batch is closed",
          options,
          searches(options, device) ? options.given() : options,
          device,
          new esp_quantized(Math.max(1, jobs.size())),
          jobs);
      search =
          searches(options, device) ? new ClipSearch(device, options, list, jobs.size()) : null;
      if (device.isCuda()) {
        planOnDevice(new esp_cuda_quantize_result(jobs.size()));
      }
    }

    /** Whether a search of its own writes the scales, and what follows takes them as given. */
    private static boolean searches(FakeQuantize options, Device device) {
      return device.isCuda() && options.observer() == Observer.MSE;
    }

    @Override
    int plan(esp_cuda_plan plan, Pointer table) {
      return espalier_cuda.esp_cuda_fake_quantize_plan(quantizer, list, jobs().size(), plan, table);
    }

    @Override
    long[] split(Job job) {
      return options.split(job.x());
    }

    @Override
    void check(Job job, long channels) {
      requireElements("scale", job.scale(), channels);
      requireElements("zeroPoint", job.zeroPoint(), channels);
      requireElements("running", job.running(), 2 * channels);
      job.x().pointerOn(device);
    }

    @Override
    void describe(int index, Job job, long[] split) {
      list.getPointer(index)
          .x(job.x().pointerOn(device))
          .y(job.y() == null ? null : job.y().pointerOn(device))
          .q(job.quantized())
          .gate(job.gate())
          .scale(job.scale())
          .zero_point(job.zeroPoint())
          .running(job.running())
          .outer(split[0])
          .channels(split[1])
          .inner(split[2])
          .dtype(job.x().dtype().code())
          .y_dtype(job.y() == null ? job.x().dtype().code() : job.y().dtype().code());
    }

    @Override
    void requireOpen(Job job) {
      job.requireOpen(options.channels(job.x()));
    }

    /**
     * {@inheritDoc}
     *
     * @throws UnsupportedOperationException for the MSE observer on a CUDA device
     */
    @Override
    public synchronized void replace(List<Job> next) {
      requireOpen();
      if (search != null) {
        throw new UnsupportedOperationException("the MSE observer's search is of one list");
      }
      super.replace(next);
    }

    /**
     * Quantizes what the tensors hold now.
     *
     * @return what is not finite, for each tensor
     * @throws IllegalArgumentException as {@link FakeQuantize#run}, naming tensor and channel
     * @throws org.espalier.InputException as {@link FakeQuantize#run}, naming tensor and channel
     */
    public synchronized List<NonFinite> run() {
      if (device.isCuda()) {
        CudaStream stream = CudaStream.defaultOf(device);
        queue(stream);
        return result(stream);
      }
      requireOpenMemory();
      int count = jobs().size();
      Status.check(espalier.esp_fake_quantize(quantizer, list, count));
      List<NonFinite> found = new ArrayList<>(count);
      for (int i = 0; i < count; i++) {
        esp_quantized tensor = list.getPointer(i);
        found.add(new NonFinite(tensor.nan(), tensor.infinite()));
      }
      return found;
    }

    /**
     * Queues the work on a stream, for jobs on its device, and returns.
     *
     * @throws IllegalArgumentException where the jobs are elsewhere
     */
    public synchronized void queue(CudaStream stream) {
      prepare(stream);
      if (search != null) {
        search.queue(stream);
      }
      Status.checkCuda(
          espalier_cuda.esp_cuda_fake_quantize(
              plan().plan(),
              plan().table(),
              plan().workspace(),
              new esp_cuda_quantize_result(found()),
              stream.handle()));
    }

    /**
     * Waits for what was queued on a stream.
     *
     * @return what is not finite, for each tensor
     * @throws IllegalArgumentException a given scale that cannot be used; outputs of its tensor are
     *     unspecified then, unlike on the CPU
     * @throws InputException values that give such a scale
     */
    public synchronized List<NonFinite> result(CudaStream stream) {
      esp_cuda_quantize_result results = results(stream);
      List<NonFinite> all = new ArrayList<>(jobs().size());
      for (int i = 0; i < jobs().size(); i++) {
        esp_cuda_quantize_result result = results.getPointer(i);
        if (result.bad_channel() >= 0) {
          String where = "fake_quantize: tensor " + i + ", channel " + result.bad_channel() + ": ";
          String needed = " a scale that is not positive and finite, or whose reciprocal is not";
          if (options.observer() == Observer.GIVEN) {
            throw new IllegalArgumentException(where + "it has" + needed);
          }
          throw new InputException(where + "its values give" + needed);
        }
        all.add(new NonFinite(result.nan(), result.infinite()));
      }
      return all;
    }

    @Override
    public synchronized void close() {
      super.close();
      if (search != null) {
        search.close();
      }
    }
  }

  /**
   * The straight-through gradient: {@code gradX = gate ? gradY : 0}. On a CUDA device it is queued on the
   * default stream.
   *
   * @param gradX of the type of gradY; gradY itself is allowed
   */
  public static void backward(Tensor gradY, BytePointer gate, Tensor gradX) {
    requireAlike("gradX", gradX, gradY);
    gradX.requireWritable("gradX");
    Bits.check("gate", Objects.requireNonNull(gate, "gate"), gradY.elements());
    if (gradY.device().isCuda()) {
      backward(gradY, gate, gradX, CudaStream.defaultOf(gradY.device()));
      return;
    }
    Status.check(
        espalier.esp_fake_quantize_backward(
            gradY.pointer(), gate, gradX.pointer(), gradY.elements(), gradY.dtype().code()));
    Reference.reachabilityFence(gradY);
    Reference.reachabilityFence(gradX);
  }

  /**
   * Queues the straight-through gradient on a stream, for tensors and gate on its device.
   *
   * @throws IllegalArgumentException where they are elsewhere
   */
  public static void backward(Tensor gradY, BytePointer gate, Tensor gradX, CudaStream stream) {
    requireAlike("gradX", gradX, gradY);
    Bits.check("gate", Objects.requireNonNull(gate, "gate"), gradY.elements());
    Device device = stream.device();
    device.makeCurrent();
    Status.checkCuda(
        espalier_cuda.esp_cuda_fake_quantize_backward(
            gradY.pointerOn(device),
            gate,
            gradX.pointerOn(device),
            gradY.elements(),
            gradY.dtype().code(),
            stream.handle()));
    Reference.reachabilityFence(gradY);
    Reference.reachabilityFence(gradX);
  }

  /**
   * The gradients of learned scales (Esser et al., Learned Step Size Quantization, 2020) and zero
   * points (Bhalgat et al., LSQ+, 2020), and the straight-through gradient of x. Returns when they are done;
   * {@link #scaleGradients} is cheaper for many tensors, and for those of a CUDA device that come often.
   *
   * @param gradX of the type of x, or null; gradY itself is allowed
   * @param zeroPoint null: all 0
   * @param gradScale one a channel, written
   * @param gradZeroPoint one a channel, written, or null
   * @param factor multiplies both; {@link #scaleGradientFactor} is the paper's
   * @throws IllegalArgumentException a scale that is not positive and finite with a finite
   *     reciprocal, or a zero point outside the grid; nothing is written then, outputs are unspecified then
   *     on a CUDA device
   */
  public void scaleGradient(
      Tensor x,
      Tensor gradY,
      Tensor gradX,
      FloatPointer scale,
      IntPointer zeroPoint,
      FloatPointer gradScale,
      FloatPointer gradZeroPoint,
      float factor) {
    ScaleGradients.Job job =
        new ScaleGradients.Job(x, gradY, gradX, scale, zeroPoint, gradScale, gradZeroPoint, factor);
    try (ScaleGradients gradients = scaleGradients(List.of(job))) {
      gradients.run();
    }
  }

  /**
   * The gradients of the scales of a list of tensors that lie together, which can be computed often. Close
   * it.
   *
   * @throws IllegalArgumentException where a job's memory is elsewhere than the first's, or known to be too
   *     short
   */
  public ScaleGradients scaleGradients(List<ScaleGradients.Job> jobs) {
    return new ScaleGradients(this, jobs);
  }

  /**
   * {@code 1 / sqrt(elements a channel * max)}: the step size of LSQ. Of a grid without numbers above 0, whose size is below
   * it, {@code -min} takes the place of {@code max}.
   */
  public float scaleGradientFactor(Tensor x) {
    long[] split = split(x);
    int largest = grid.max > 0 ? grid.max : -grid.min;
    return (float) (1 / Math.sqrt((double) Math.max(1, split[0] * split[2]) * largest));
  }

  /**
   * {@code y = s * (q - z)}. On a CUDA device it is queued on the default stream, and scales are not checked.
   *
   * @param quantized one byte an element of y, signed where the grid is
   * @param y written
   * @param zeroPoint null: all 0
   * @throws IllegalArgumentException a scale that is not positive and finite with a finite
   *     reciprocal, or a zero point that its type cannot hold; nothing is written then
   */
  public void dequantize(
      BytePointer quantized, Tensor y, FloatPointer scale, IntPointer zeroPoint) {
    long[] split = split(y);
    y.requireWritable("y");
    requireElements("quantized", quantized, y.elements());
    requireElements("scale", scale, split[1]);
    requireElements("zeroPoint", zeroPoint, split[1]);
    try (esp_dequantized tensor = new esp_dequantized()) {
      tensor
          .q(quantized)
          .y(y.pointerOn(y.device()))
          .scale(scale)
          .zero_point(zeroPoint)
          .outer(split[0])
          .channels(split[1])
          .inner(split[2])
          .dtype(y.dtype().code())
          .is_signed(isSigned() ? 1 : 0);
      if (y.device().isCuda()) {
        y.device().makeCurrent();
        Status.checkCuda(espalier_cuda.esp_cuda_dequantize(tensor, null));
      } else {
        Status.check(espalier.esp_dequantize(tensor));
      }
    }
    Reference.reachabilityFence(quantized);
    Reference.reachabilityFence(y);
    Reference.reachabilityFence(scale);
    Reference.reachabilityFence(zeroPoint);
  }

  esp_quantizer quantizer() {
    return new esp_quantizer()
        .qmin(grid.min)
        .qmax(grid.max)
        .rounding(rounding.ordinal())
        .observer(observation.observer.ordinal())
        .symmetric(grid.symmetric ? 1 : 0)
        .divisor(grid.divisor)
        .average(observation.average)
        .clip_steps(observation.clipSteps)
        .clip_smallest(observation.clipSmallest)
        .smallest_scale(observation.smallestScale);
  }

  static void requireAlike(String name, Tensor tensor, Tensor other) {
    if (tensor.dtype() != other.dtype() || tensor.elements() != other.elements()) {
      throw new IllegalArgumentException(name + " is " + tensor + ", " + other + " is needed");
    }
  }

  /** Refuses memory that is known to be too short; a limit of 0 means that its size is unknown. */
  static void requireElements(String name, Pointer pointer, long n) {
    Lifetimes.requireMemory(name, pointer, n);
    if (pointer != null && pointer.limit() > 0 && pointer.limit() - pointer.position() < n) {
      throw new IllegalArgumentException(
          name
              + " holds "
              + (pointer.limit() - pointer.position())
              + " elements, "
              + n
              + " are needed");
    }
  }

  @Override
  public String toString() {
    return (grid.symmetric ? "symmetric " : "affine ")
        + grid.min
        + " .. "
        + grid.max
        + (axis == null ? "" : " on axis " + axis)
        + ", "
        + observation.observer;
  }
}
