package org.espalier.op;

import java.nio.DoubleBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_kd_softmax_loss_result;
import org.espalier.binding.esp_kd_softmax_loss_arguments;
import org.espalier.binding.esp_kd_softmax_loss_result;
import org.espalier.binding.esp_logits;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * The loss of distillation and its gradient, in one call. With student logits s, teacher logits t,
 * bound b (each [N, C]), labels y [N] and temperature T:
 *
 * <pre>
 *   ce    = mean over the valid rows of −log softmax(s)_y
 *   kl    = T² · mean over the rows of KL(softmax(t/T) ‖ softmax(s/T))
 *   bound = mean over the rows of Σ max(0, s − b)²
 *   loss  = alpha · ce + (1 − alpha) · kl + beta · bound
 * </pre>
 *
 * <p>Rows are all N, or those of the row mask; valid are those of them whose label is not the ignore
 * index. A mean over no rows is 0, and so is a part whose input is absent. A −inf teacher or bound
 * entry contributes 0; a row without a softmax (a NaN, +inf, −inf throughout) makes its parts and its
 * gradient row NaN. Rows outside the mask are not read and get a gradient of 0. Formulas of ce and
 * kl: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
 *
 * <p>Sums within a row have an order that only C decides, rows add up in double in one that only N
 * decides: the same bits on every instruction set and for every number of threads.
 *
 * <p>The batch is kept in native form, so a loop over batches in the same memory builds this once.
 * Thread safe; the memory must stay alive until {@link #close}.
 *
 * <p>Runs where the student is; all else lies there too. On a CUDA device the gradient has the same
 * bits, the parts of the loss are within 2⁻⁵³ · (N + 8) of the CPU's.
 */
public final class KdSoftmaxLoss implements AutoCloseable {
  /** The label of a row that has none, where nothing else is said; PyTorch's too. */
  public static final long NO_LABEL = -100;

  /**
   * @param alpha weight of the labels against the teacher, in [0, 1]
   * @param temperature in [1e-30, 1e30]
   * @param beta weight of the bound, finite and at least 0
   * @param ignoreIndex the label of rows that have none
   */
  public record Settings(double alpha, double temperature, double beta, long ignoreIndex) {
    public Settings {
      if (!(alpha >= 0 && alpha <= 1)) {
        throw new IllegalArgumentException("alpha " + alpha + "; a number in [0, 1] is needed");
      }
      if (!(temperature >= 1e-30 && temperature <= 1e30)) {
        throw new IllegalArgumentException(
            "temperature " + temperature + "; a number in [1e-30, 1e30] is needed");
      }
      if (!(beta >= 0 && beta <= Double.MAX_VALUE)) {
        throw new IllegalArgumentException(
            "beta " + beta + "; a finite number of at least 0 is needed");
      }
    }

    /** Without a bound, where rows without a label have {@link #NO_LABEL}. */
    public static Settings of(double alpha, double temperature) {
      return new Settings(alpha, temperature, 0, NO_LABEL);
    }
  }

  /**
   * Rows of logits in a tensor's memory: row i starts {@code i * stride} elements after its start.
   *
   * @param stride at least {@code columns}, or 0: every row is the same
   */
  public record Logits(Tensor memory, long rows, long columns, long stride) {
    public Logits {
      if (rows < 0 || columns < 1 || stride != 0 && stride < columns) {
        throw new IllegalArgumentException(
            rows + " rows of " + columns + " columns, " + stride + " apart");
      }
      long needed = rows == 0 ? 0 : Math.addExact(Math.multiplyExact(rows - 1, stride), columns);
      if (memory.elements() < needed) {
        throw new IllegalArgumentException(
            rows
                + " rows of "
                + columns
                + " columns, "
                + stride
                + " apart, need "
                + needed
                + " elements; "
                + memory
                + " has "
                + memory.elements());
      }
    }

    /** The rows of a tensor [N, C]. */
    public static Logits of(Tensor tensor) {
      if (tensor.rank() != 2) {
        throw new IllegalArgumentException("logits are " + tensor + "; [N, C] is needed");
      }
      return new Logits(tensor, tensor.dimension(0), tensor.dimension(1), tensor.dimension(1));
    }
  }

  /**
   * @param teacher null: no kl
   * @param labels each in [0, C) or the ignore index; checked when the loss is computed; null: no ce
   * @param bound null: the teacher's logits. Looked at where beta is positive
   * @param rowMask one bit a row, null: all rows
   * @param gradient of the student's shape, receives the gradient; null: not wanted. May be the memory
   *     of student, teacher or bound where stride and type are the same; no other overlap
   */
  public record Batch(
      Logits student,
      Logits teacher,
      LongPointer labels,
      Logits bound,
      BytePointer rowMask,
      Logits gradient) {
    public Batch {
      same("teacher", teacher, student);
      same("bound", bound, student);
      same("gradient", gradient, student);
      if (labels != null
          && labels.limit() > 0
          && labels.limit() - labels.position() < student.rows()) {
        throw new IllegalArgumentException(
            (labels.limit() - labels.position()) + " labels for " + student.rows() + " rows");
      }
      Lifetimes.requireMemory("labels", labels, student.rows());
      Bits.check("row mask", rowMask, student.rows());
      if (gradient != null) {
        gradient.memory().requireWritable("gradient");
      }
    }

    /**
     * @throws IllegalStateException where memory of it was closed
     */
    private void requireOpen() {
      student.memory().requireOpen();
      requireOpen(teacher);
      requireOpen(bound);
      requireOpen(gradient);
      Lifetimes.requireOpen("labels", labels, student.rows());
      Lifetimes.requireOpen("the row mask", rowMask, student.rows());
    }

    private static void requireOpen(Logits logits) {
      if (logits != null) {
        logits.memory().requireOpen();
      }
    }

    private static void same(String name, Logits logits, Logits student) {
      if (logits != null
          && (logits.rows() != student.rows() || logits.columns() != student.columns())) {
        throw new IllegalArgumentException(
            name
                + " has "
                + logits.rows()
                + " rows of "
                + logits.columns()
                + ", student "
                + student.rows()
                + " of "
                + student.columns());
      }
    }
  }

  /** The loss and its unweighted parts; kl has its factor T². */
  public record Result(double loss, double ce, double kl, double bound) {}

  private final Batch batch; // keeps the memory reachable
  private final Device device;
  private final esp_kd_softmax_loss_arguments arguments;
  private final esp_kd_softmax_loss_result result;
  private final DoubleBuffer parts;
  private final CudaMemory workspace; // null on the CPU, as are the next two
  private final CudaMemory found;
  private final esp_cuda_kd_softmax_loss_result queued;

  /**
   * @throws IllegalArgumentException where the batch is not all on one device
   */
  public KdSoftmaxLoss(Settings settings, Batch batch) {
    this.batch = batch;
    this.device = batch.student().memory().device();
    arguments = Natives.keep(new esp_kd_softmax_loss_arguments());
    arguments.rows(batch.student().rows()).classes(batch.student().columns());
    set(arguments.student(), batch.student());
    set(arguments.teacher(), batch.teacher());
    set(arguments.bound(), batch.bound());
    arguments.labels(batch.labels()).row_mask(batch.rowMask());
    Logits gradient = batch.gradient();
    arguments
        .gradient(gradient == null ? null : gradient.memory().pointerOn(device))
        .gradient_stride(gradient == null ? 0 : gradient.stride())
        .gradient_dtype(gradient == null ? 0 : gradient.memory().dtype().code())
        .ignore_index(settings.ignoreIndex())
        .temperature(settings.temperature())
        .alpha(settings.alpha())
        .beta(settings.beta());
    result = Natives.keep(new esp_kd_softmax_loss_result());
    // Its first four fields; reading a buffer costs no native call.
    parts = new DoublePointer(result).capacity(4).asBuffer();
    if (!device.isCuda()) {
      workspace = null;
      found = null;
      queued = null;
      return;
    }
    try (LongPointer bytes = new LongPointer(1)) {
      Status.checkCuda(espalier_cuda.esp_cuda_kd_softmax_loss_workspace(arguments, bytes));
      workspace = CudaMemory.allocate(device, bytes.get());
    }
    queued = Natives.keep(new esp_cuda_kd_softmax_loss_result());
    found = CudaMemory.allocate(device, queued.sizeof());
    CudaStream stream = CudaStream.defaultOf(device);
    workspace.zero(stream);
    stream.synchronize(); // other streams do not wait for the default one
  }

  private void set(esp_logits to, Logits logits) {
    to.data(logits == null ? null : logits.memory().pointerOn(device))
        .stride(logits == null ? 0 : logits.stride())
        .dtype(logits == null ? 0 : logits.memory().dtype().code());
  }

  /**
   * Reads the batch as it is now and writes the gradient.
   *
   * @throws IllegalArgumentException for a label outside its range (names row and value) or a beta
   *     with neither bound nor teacher; nothing is written then
   * @throws IllegalStateException after close, or where memory of the batch was closed
   */
  public synchronized Result compute() {
    if (device.isCuda()) {
      CudaStream stream = CudaStream.defaultOf(device);
      queue(stream);
      return result(stream);
    }
    requireOpen();
    batch.requireOpen();
    Status.check(espalier.esp_kd_softmax_loss(arguments, result));
    return new Result(parts.get(0), parts.get(1), parts.get(2), parts.get(3));
  }

  /**
   * Queues the loss and the gradient on a stream, for a batch on its device, and returns.
   *
   * @throws IllegalArgumentException where the batch is elsewhere, or for a beta with neither bound nor
   *     teacher
   */
  public synchronized void queue(CudaStream stream) {
    requireOpen();
    batch.requireOpen();
    DevicePlan.requireOn(device, stream);
    device.makeCurrent();
    Status.checkCuda(
        espalier_cuda.esp_cuda_kd_softmax_loss(
            arguments,
            workspace.pointer(),
            new esp_cuda_kd_softmax_loss_result(found.pointer()),
            stream.handle()));
  }

  /**
   * Waits for what was queued on a stream.
   *
   * @throws IllegalArgumentException for a label outside its range; there is no gradient then
   */
  public synchronized Result result(CudaStream stream) {
    requireOpen();
    DevicePlan.requireOn(device, stream);
    found.copyTo(queued, queued.sizeof(), stream);
    stream.synchronize();
    if (queued.bad_row() >= 0) {
      throw new IllegalArgumentException(
          "kd_softmax_loss: the label in row "
              + queued.bad_row()
              + " is outside [0, "
              + batch.student().columns()
              + ") and not the ignore index");
    }
    esp_kd_softmax_loss_result values = queued.values();
    return new Result(values.loss(), values.ce(), values.kl(), values.bound());
  }

  private void requireOpen() {
    if (arguments.isNull()) {
      throw new IllegalStateException("the loss is closed");
    }
  }

  /** What the loss was built for. */
  public Batch batch() {
    return batch;
  }

  @Override
  public synchronized void close() {
    if (workspace != null) {
      workspace.close();
      found.close();
      queued.close();
    }
    arguments.close();
    result.close();
  }
}
