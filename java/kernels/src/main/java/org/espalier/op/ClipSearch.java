package org.espalier.op;

import org.bytedeco.javacpp.FloatPointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_quantize_result;
import org.espalier.binding.esp_quantized;
import org.espalier.binding.esp_quantizer;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;

/** What finds scales and zero points by the MSE observer on a CUDA device: ranges, then the search. */
final class ClipSearch implements AutoCloseable {
  private final CudaMemory running; // minima and maxima of the channels, tensor by tensor
  private final CudaMemory empty; // what they start from
  private final CudaMemory found; // nobody asks for what the ranges leave out
  private final DevicePlan ranges;
  private final DevicePlan search;

  ClipSearch(Device device, FakeQuantize options, esp_quantized tensors, long count) {
    long channels = 0;
    for (long i = 0; i < count; i++) {
      channels += tensors.getPointer(i).channels();
    }
    running = CudaMemory.allocate(device, 2 * Float.BYTES * channels);
    empty = CudaMemory.allocate(device, running.bytes());
    try (esp_quantizer average = options.movingAverage(1).quantizer();
        esp_quantizer quantizer = options.quantizer();
        esp_quantized observed = new esp_quantized(Math.max(1, count));
        esp_cuda_quantize_result result = new esp_cuda_quantize_result();
        FloatPointer start = new FloatPointer(Math.max(1, 2 * channels))) {
      long first = 0;
      for (long i = 0; i < count; i++) {
        esp_quantized tensor = tensors.getPointer(i);
        observed
            .getPointer(i)
            .x(tensor.x())
            .y(null)
            .q(null)
            .gate(null)
            .scale(tensor.scale())
            .zero_point(tensor.zero_point())
            .running(running.asFloats().getPointer(first))
            .outer(tensor.outer())
            .channels(tensor.channels())
            .inner(tensor.inner())
            .dtype(tensor.dtype())
            .y_dtype(tensor.dtype());
        FakeQuantize.startRunning(start.getPointer(first), tensor.channels());
        first += 2 * tensor.channels();
      }
      ranges =
          new DevicePlan(
              device,
              (plan, table) ->
                  espalier_cuda.esp_cuda_fake_quantize_plan(average, observed, count, plan, table));
      search =
          new DevicePlan(
              device,
              (plan, table) ->
                  espalier_cuda.esp_cuda_fake_quantize_clip_plan(
                      quantizer, observed, count, plan, table));
      found = CudaMemory.allocate(device, count * result.sizeof());
      CudaStream stream = CudaStream.defaultOf(device);
      empty.copyFrom(start, empty.bytes(), stream);
      stream.synchronize();
    }
  }

  void queue(CudaStream stream) {
    running.copyFrom(empty.pointer(), running.bytes(), stream);
    Status.checkCuda(
        espalier_cuda.esp_cuda_fake_quantize(
            ranges.plan(),
            ranges.table(),
            ranges.workspace(),
            new esp_cuda_quantize_result(found.pointer()),
            stream.handle()));
    Status.checkCuda(
        espalier_cuda.esp_cuda_fake_quantize_clip(
            search.plan(), search.table(), search.workspace(), stream.handle()));
  }

  @Override
  public void close() {
    running.close();
    empty.close();
    found.close();
    ranges.close();
    search.close();
  }
}
