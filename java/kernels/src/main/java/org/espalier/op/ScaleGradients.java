package org.espalier.op;

import java.util.List;
import java.util.Objects;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_plan;
import org.espalier.binding.esp_cuda_scale_gradient_result;
import org.espalier.binding.esp_scale_gradient;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * The gradients of learned scales and zero points of a list of tensors, made by {@link
 * FakeQuantize#scaleGradients}. It can be run often: what the memory holds then is read. The same bits on
 * every instruction set, for every number of threads and on CUDA devices. Several threads wait for each other.
 */
public final class ScaleGradients
    extends QuantizerList<ScaleGradients.Job, esp_scale_gradient, esp_cuda_scale_gradient_result> {
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

  ScaleGradients(FakeQuantize options, List<Job> jobs) {
    super(
        "the gradients are closed",
        options,
        options,
        jobs.isEmpty() ? Device.cpu() : jobs.get(0).x().device(),
        new esp_scale_gradient(Math.max(1, jobs.size())),
        jobs);
    if (device.isCuda()) {
      planOnDevice(new esp_cuda_scale_gradient_result(jobs.size()));
    }
  }

  @Override
  int plan(esp_cuda_plan plan, Pointer table) {
    return espalier_cuda.esp_cuda_fake_quantize_scale_gradient_plan(
        quantizer, list, jobs().size(), plan, table);
  }

  @Override
  long[] split(Job job) {
    return options.split(job.x());
  }

  @Override
  void check(Job job, long channels) {
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

  @Override
  void describe(int index, Job job, long[] split) {
    list.getPointer(index)
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

  @Override
  void requireOpen(Job job) {
    job.requireOpen(options.channels(job.x()));
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
    for (int i = 0; i < jobs().size(); i++) {
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
    prepare(stream);
    Status.checkCuda(
        espalier_cuda.esp_cuda_fake_quantize_scale_gradient(
            plan().plan(),
            plan().table(),
            plan().workspace(),
            new esp_cuda_scale_gradient_result(found()),
            stream.handle()));
  }

  /**
   * Waits for what was queued on a stream. Who knows the scales to be good need not ask.
   *
   * @throws IllegalArgumentException a scale or zero point that cannot be used; the outputs of its tensor are
   *     unspecified then
   */
  public synchronized void check(CudaStream stream) {
    esp_cuda_scale_gradient_result results = results(stream);
    for (int i = 0; i < jobs().size(); i++) {
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
}
