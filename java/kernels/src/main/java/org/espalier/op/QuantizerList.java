package org.espalier.op;

import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.esp_cuda_plan;
import org.espalier.binding.esp_quantizer;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;

/**
 * A list of jobs of one quantizer in native form, planned once where it is on a CUDA device: what {@link FakeQuantize.Batch}
 * and {@link ScaleGradients} do alike.
 *
 * @param <J> a job
 * @param <N> its native struct
 * @param <R> what a job's work on a device leaves
 */
abstract class QuantizerList<J, N extends Pointer, R extends Pointer> implements AutoCloseable {
  final FakeQuantize options;
  final Device device;
  final esp_quantizer quantizer;
  final N list;
  private final String closed;
  private List<J> jobs; // keeps the memory reachable
  private DevicePlan plan; // null on the CPU, as are the next two
  private CudaMemory found;
  private R results;

  /**
   * @param closed what a call says after close
   * @param applied the options that the native side gets
   * @param list room for all jobs, and for one where there are none
   */
  QuantizerList(
      String closed,
      FakeQuantize options,
      FakeQuantize applied,
      Device device,
      N list,
      List<J> jobs) {
    this.closed = closed;
    this.options = options;
    this.device = device;
    this.quantizer = Natives.keep(applied.quantizer());
    this.list = Natives.keep(list);
    fill(jobs);
  }

  /**
   * Refuses a job whose memory is elsewhere or known to be too short.
   *
   * @param channels its number of scales
   */
  abstract void check(J job, long channels);

  /**
   * Writes a job into the native list.
   *
   * @param split outer, channel and inner sizes
   */
  abstract void describe(int index, J job, long[] split);

  /**
   * @throws IllegalStateException where memory of a job was closed
   */
  abstract void requireOpen(J job);

  /** The shape that decides how many scales a job has. */
  abstract long[] split(J job);

  /** The native plan function. */
  abstract int plan(esp_cuda_plan plan, Pointer table);

  private void fill(List<J> next) {
    next.forEach(job -> check(job, split(job)[1]));
    jobs = List.copyOf(next);
    for (int i = 0; i < jobs.size(); i++) {
      describe(i, jobs.get(i), split(jobs.get(i)));
    }
  }

  /** Last in a constructor: plans the list where it is on a CUDA device. */
  final void planOnDevice(R results) {
    plan = new DevicePlan(device, this::plan);
    this.results = Natives.keep(results);
    found = CudaMemory.allocate(device, (long) jobs.size() * results.sizeof());
  }

  final List<J> jobs() {
    return jobs;
  }

  final DevicePlan plan() {
    return plan;
  }

  /** Where a call on the device leaves its results. */
  final Pointer found() {
    return found.pointer();
  }

  /** The results of what was queued on a stream, for which it waits. */
  final R results(CudaStream stream) {
    requireOpen();
    DevicePlan.requireOn(device, stream);
    found.copyTo(results, found.bytes(), stream);
    stream.synchronize();
    return results;
  }

  /** Before work is queued on a stream. */
  final void prepare(CudaStream stream) {
    requireOpenMemory();
    DevicePlan.requireOn(device, stream);
    device.makeCurrent();
    plan.prepare(stream);
  }

  /**
   * Puts other tensors in the place of all, for what changes from call to call. On a CUDA device nothing is
   * allocated and nothing waits where the earlier tensors needed no less; what is queued already still
   * works on those. Such a change cannot be captured in a CUDA graph.
   *
   * @param next as many as before, on the same device
   */
  public synchronized void replace(List<J> next) {
    requireOpen();
    if (next.size() != jobs.size()) {
      throw new IllegalArgumentException(next.size() + " tensors in the place of " + jobs.size());
    }
    fill(next);
    if (plan != null) {
      plan.replan(this::plan);
    }
  }

  final void requireOpen() {
    if (list.isNull()) {
      throw new IllegalStateException(closed);
    }
  }

  final void requireOpenMemory() {
    requireOpen();
    jobs.forEach(this::requireOpen);
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
