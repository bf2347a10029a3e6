package org.espalier.op;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_gradient;
import org.espalier.binding.esp_gradient_norm_result;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * The Euclidean norm and the finiteness of the gradients that an update would see, over a list of
 * tensors: {@code sqrt(sum((mask * gate * g)^2))}, added in double in a fixed order.
 *
 * <p>Holds the list in native form, so that a training loop builds it once. Thread safe;
 * the gradients must not change during {@link #compute}.
 *
 * <p>Runs where the gradients are: masks and gates lie on the same device, and the result has the same
 * bits.
 */
public final class GradientNorm implements AutoCloseable {
  /**
   * One gradient with its optional bit fields (one bit an element, least significant first).
   *
   * @param mask 1 = kept, or null
   * @param gate 1 = passes, or null
   */
  public record Gradient(Tensor gradient, BytePointer mask, BytePointer gate) {
    public Gradient {
      Bits.check("mask", mask, gradient.elements());
      Bits.check("gate", gate, gradient.elements());
    }

    /**
     * @throws IllegalStateException where memory of it was closed
     */
    private void requireOpen() {
      gradient.requireOpen();
      Lifetimes.requireOpen("mask", mask, gradient.elements());
      Lifetimes.requireOpen("gate", gate, gradient.elements());
    }
  }

  /**
   * @param norm the norm; not finite where {@code nonFinite > 0}
   * @param nonFinite NaN and infinite entries among those that mask and gate let through
   */
  public record Result(double norm, long nonFinite) {}

  private final List<Gradient> gradients; // keeps the memory reachable
  private final esp_gradient list;
  // Held, because allocating a native struct a call costs 0.8 us and a lock that all threads share.
  private final esp_gradient_norm_result result = Natives.keep(new esp_gradient_norm_result());

  private final Device device;
  private final DevicePlan plan; // null on the CPU, as is `found`
  private final CudaMemory found;

  /**
   * @throws IllegalArgumentException where the gradients are not all on one device
   */
  public GradientNorm(List<Gradient> gradients) {
    this.gradients = new ArrayList<>(gradients);
    this.device = gradients.isEmpty() ? Device.cpu() : gradients.get(0).gradient().device();
    this.list = Natives.keep(new esp_gradient(Math.max(1, gradients.size())));
    for (int i = 0; i < gradients.size(); i++) {
      describe(i, gradients.get(i));
    }
    long count = gradients.size();
    plan =
        !device.isCuda()
            ? null
            : new DevicePlan(
                device,
                (plan, table) ->
                    espalier_cuda.esp_cuda_gradient_norm_plan(list, count, plan, table));
    found = plan == null ? null : CudaMemory.allocate(device, result.sizeof());
  }

  private void describe(int index, Gradient g) {
    list.getPointer(index)
        .gradient(g.gradient().pointerOn(device))
        .mask(g.mask())
        .gate(g.gate())
        .n(g.gradient().elements())
        .dtype(g.gradient().dtype().code());
  }

  /**
   * From now on gradient {@code index} is another one in host memory, of any size.
   *
   * @throws UnsupportedOperationException on a CUDA device, where the work is planned ahead
   */
  public synchronized void gradient(int index, Gradient gradient) {
    checkMovable();
    gradients.set(index, gradient);
    describe(index, gradient);
  }

  private void requireOpen() {
    if (list.isNull()) {
      throw new IllegalStateException("the norm is closed");
    }
  }

  private void checkMovable() {
    requireOpen();
    if (device.isCuda()) {
      throw new UnsupportedOperationException("gradients on a CUDA device stay where they are");
    }
  }

  /**
   * From now on gradient {@code index} is read elsewhere in host memory.
   *
   * @throws IllegalArgumentException where it has another number of elements or another type
   * @throws UnsupportedOperationException on a CUDA device, where the work is planned ahead
   */
  public synchronized void gradient(int index, Tensor gradient) {
    Gradient before = gradients.get(index);
    checkMovable();
    if (gradient.elements() != before.gradient().elements()
        || gradient.dtype() != before.gradient().dtype()) {
      throw new IllegalArgumentException("gradient " + gradient + "; it was " + before.gradient());
    }
    list.getPointer(index).gradient(gradient.pointerOn(device));
    gradients.set(index, new Gradient(gradient, before.mask(), before.gate()));
  }

  /**
   * Reads the gradients as they are now.
   *
   * @throws IllegalStateException after close, or where memory of a gradient was closed
   */
  public synchronized Result compute() {
    requireOpen();
    gradients.forEach(Gradient::requireOpen);
    if (plan != null) {
      return compute(CudaStream.defaultOf(device));
    }
    Status.check(espalier.esp_gradient_norm(list, gradients.size(), result));
    return new Result(result.norm(), result.non_finite());
  }

  /**
   * The same after what is queued on a stream, for gradients on its device; waits for it.
   *
   * @throws IllegalArgumentException where the gradients are elsewhere
   */
  public synchronized Result compute(CudaStream stream) {
    requireOpen();
    gradients.forEach(Gradient::requireOpen);
    DevicePlan.requireOn(device, stream);
    device.makeCurrent();
    Status.checkCuda(
        espalier_cuda.esp_cuda_gradient_norm(
            plan.plan(),
            plan.table(),
            plan.workspace(),
            new esp_gradient_norm_result(found.pointer()),
            stream.handle()));
    found.copyTo(result, result.sizeof(), stream);
    stream.synchronize();
    return new Result(result.norm(), result.non_finite());
  }

  @Override
  public synchronized void close() {
    if (plan != null) {
      plan.close();
      found.close();
    }
    list.close();
    result.close();
  }
}
