package org.espalier.op;

import java.util.List;
import java.util.Objects;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_plan;
import org.espalier.binding.esp_cuda_scale_gradient_result;
import org.espalier.binding.esp_quantizer;
import org.espalier.binding.esp_scale_gradient;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * The gradients of learned scales and zero points of a list of tensors, made by {@link
 * FakeQuantize#scaleGradients}. It can be run often: what the memory holds then is read. The same bits on
 * every instruction set, for every number of threads and on CUDA devices. Several threads wait for each other.
 */
public final class ScaleGradients implements AutoCloseable {
  /**
   * One tensor. Nothing is copied; all of it lies where x is, and must stay valid until the work is done.
   *
   * @param x what was quantized
   * @param gradY the gradient of what it became, of its type
   * @param gradX receives the straight-through gradient of x, of its type; gradY itself is allowed; or null
   * @param scale one a channel
   * @param zeroPoint one a channel; null: all 0
   * @param gradScale one a channel, written
   * @param gradZeroPoint one a channel, written, or null
   * @param factor multiplies the gradients of scales and zero points; {@link
   *     FakeQuantize#scaleGradientFactor} is the paper's
   */
  public record Job(
      Tensor x,
      Tensor gradY,
      Tensor gradX,
      FloatPointer scale,
      IntPointer zeroPoint,
      FloatPointer gradScale,
      FloatPointer gradZeroPoint,
      float factor) {
    public Job {
      FakeQuantize.requireAlike("gradY", gradY, x);
      if (gradX != null) {
        FakeQuantize.requireAlike("gradX", gradX, x);
        gradX.requireWritable("gradX");
      }
      Objects.requireNonNull(scale, "scale");
      Objects.requireNonNull(gradScale, "gradScale");
    }

    /**
     * @param channels its number of scales
     * @throws IllegalStateException where memory of it was closed
     */
    private void requireOpen(long channels) {
      x.requireOpen();
      gradY.requireOpen();
      Lifetimes.requireOpen(gradX);
      Lifetimes.requireOpen("scale", scale, channels);
      Lifetimes.requireOpen("zeroPoint", zeroPoint, channels);
      Lifetimes.requireOpen("gradScale", gradScale, channels);
      Lifetimes.requireOpen("gradZeroPoint", gradZeroPoint, channels);
    }
  }

  private final FakeQuantize options;
  private final Device device;
  private List<Job> jobs; // keeps the memory reachable
  private final esp_quantizer quantizer;
  private final esp_scale_gradient list;
  private final DevicePlan plan; // null on the CPU, as are the next two
  private final CudaMemory found;
  private final esp_cuda_scale_gradient_result results;

  ScaleGradients(FakeQuantize options, List<Job> jobs) {
    this.options = options;
    this.device = jobs.isEmpty() ? Device.cpu() : jobs.get(0).x().device();
    jobs.forEach(this::require);
    quantizer = Natives.keep(options.quantizer());
    list = Natives.keep(new esp_scale_gradient(Math.max(1, jobs.size())));
    fill(jobs);
    if (!device.isCuda()) {
      plan = null;
      found = null;
      results = null;
      return;
    }
    plan = new DevicePlan(device, this::plan);
    results = Natives.keep(new esp_cuda_scale_gradient_result(jobs.size()));
    found = CudaMemory.allocate(device, (long) jobs.size() * results.sizeof());
  }

  private void require(Job job) {
    long channels = options.channels(job.x());
    FakeQuantize.requireElements("scale", job.scale(), channels);
    FakeQuantize.requireElements("zeroPoint", job.zeroPoint(), channels);
    FakeQuantize.requireElements("gradScale", job.gradScale(), channels);
    FakeQuantize.requireElements("gradZeroPoint", job.gradZeroPoint(), channels);
    job.x().pointerOn(device);
    job.gradY().pointerOn(device);
    if (job.gradX() != null) {
      job.gradX().pointerOn(device);
    }
  }

  private void fill(List<Job> jobs) {
    this.jobs = List.copyOf(jobs);
    for (int i = 0; i < jobs.size(); i++) {
      Job job = jobs.get(i);
      long[] split = options.split(job.x());
      list.getPointer(i)
          .x(job.x().pointerOn(device))
          .grad_y(job.gradY().pointerOn(device))
          .grad_x(job.gradX() == null ? null : job.gradX().pointerOn(device))
          .scale(job.scale())
          .zero_point(job.zeroPoint())
          .grad_scale(job.gradScale())
          .grad_zero_point(job.gradZeroPoint())
          .outer(split[0])
          .channels(split[1])
          .inner(split[2])
          .dtype(job.x().dtype().code())
          .factor(job.factor());
    }
  }

  private int plan(esp_cuda_plan plan, Pointer table) {
    return espalier_cuda.esp_cuda_fake_quantize_scale_gradient_plan(
        quantizer, list, jobs.size(), plan, table);
  }

  /**
   * Puts other tensors in the place of all, as {@link FakeQuantize.Batch#replace} does.
   *
   * @param next as many as before, on the same device
   */
  public synchronized void replace(List<Job> next) {
    requireOpen();
    if (next.size() != jobs.size()) {
      throw new IllegalArgumentException(next.size() + " tensors in the place of " + jobs.size());
    }
    next.forEach(this::require);
    fill(next);
    if (plan != null) {
      plan.replan(this::plan);
    }
  }

  /**
   * Computes the gradients and returns when they are done.
   *
   * @throws IllegalStateException after close, or where memory of a job was closed
   * @throws IllegalArgumentException a scale or zero point that cannot be used. On the CPU nothing of its
   *     tensor and those after it is written then; on a CUDA device the outputs of its tensor are unspecified
   */
  public synchronized void run() {
    if (device.isCuda()) {
      CudaStream stream = CudaStream.defaultOf(device);
      queue(stream);
      check(stream);
      return;
    }
    requireOpenMemory();
    for (int i = 0; i < jobs.size(); i++) {
      Status.check(espalier.esp_fake_quantize_scale_gradient(quantizer, list.getPointer(i)));
    }
  }

  /**
   * Queues the work on a stream, for jobs on its device, and returns. It allocates nothing and may be part of
   * a CUDA graph.
   *
   * @throws IllegalArgumentException where the jobs are elsewhere
   */
  public synchronized void queue(CudaStream stream) {
    requireOpenMemory();
    DevicePlan.requireOn(device, stream);
    device.makeCurrent();
    plan.prepare(stream);
    Status.checkCuda(
        espalier_cuda.esp_cuda_fake_quantize_scale_gradient(
            plan.plan(),
            plan.table(),
            plan.workspace(),
            new esp_cuda_scale_gradient_result(found.pointer()),
            stream.handle()));
  }

  /**
   * Waits for what was queued on a stream. Who knows the scales to be good need not ask.
   *
   * @throws IllegalArgumentException a scale or zero point that cannot be used; the outputs of its tensor are
   *     unspecified then
   */
  public synchronized void check(CudaStream stream) {
    requireOpen();
    DevicePlan.requireOn(device, stream);
    found.copyTo(results, found.bytes(), stream);
    stream.synchronize();
    for (int i = 0; i < jobs.size(); i++) {
      long channel = results.getPointer(i).bad_channel();
      if (channel >= 0) {
        throw new IllegalArgumentException(
            "fake_quantize_scale_gradient: tensor "
                + i
                + ", channel "
                + channel
                + ": it has a scale that is not positive and finite, or whose reciprocal is not, or"
                + " a zero point outside the grid");
      }
    }
  }

  private void requireOpen() {
    if (list.isNull()) {
      throw new IllegalStateException("the gradients are closed");
    }
  }

  private void requireOpenMemory() {
    requireOpen();
    for (int i = 0; i < jobs.size(); i++) {
      jobs.get(i).requireOpen(list.getPointer(i).channels());
    }
  }

  @Override
  public synchronized void close() {
    if (plan != null) {
      plan.close();
      found.close();
      results.close();
    }
    quantizer.close();
    list.close();
  }
}
