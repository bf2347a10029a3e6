package org.espalier.op;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.espalier.InputException;
import org.espalier.binding.esp_step_noise;
import org.espalier.binding.esp_step_result;
import org.espalier.binding.global.espalier;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * An optimizer over a list of tensors that does a step in one native call, with what a compressed
 * network needs done while a weight is in the cache: the mask is held, clipped weights receive no
 * gradient, and scale, fake-quantized working copy and gate are renewed.
 *
 * <p>The list is kept in native form: a step copies nothing. The tensors must stay alive until
 * {@link #close}; a step on memory of which is known that it was closed is refused. Several threads wait for each other;
 * several objects may step at once on different tensors.
 *
 * <p>Runs where the weights are, and all else of the list lies there too. On a CUDA device the results
 * have the same bits; given scales are not checked there.
 */
public abstract sealed class FusedStep implements AutoCloseable permits FusedAdamW, FusedSgd {
  private final List<Object> parameters; // keeps the memory reachable
  private final Device device;
  private final esp_step_result result = Natives.keep(new esp_step_result());
  // On a CUDA device: the plan, the result, and what a tensor keeps from step to step.
  private DevicePlan plan;
  private CudaMemory found;
  private CudaMemory history;
  private boolean closed;

  /** What a step takes of the noise's random numbers. */
  private long noiseBlocks;

  /** Of the native options, while there is noise. */
  private esp_step_noise noise;

  /** Where the gradients are now. */
  private final Tensor[] gradients;

  FusedStep(List<?> parameters, List<Tensor> weights, List<Tensor> gradients) {
    this.parameters = new ArrayList<>(parameters);
    this.gradients = gradients.toArray(Tensor[]::new);
    this.device = weights.isEmpty() ? Device.cpu() : weights.get(0).device();
    int[] two = Overlap.among(weights, device);
    if (two != null) {
      throw new IllegalArgumentException(
          "parameter "
              + two[1]
              + ", "
              + weights.get(two[1])
              + ", is memory that parameter "
              + two[0]
              + " is too");
    }
    this.noiseBlocks = weights.stream().mapToLong(FusedStep::blocks).sum();
  }

  /** Last in a constructor: plans the list where it is on a CUDA device. */
  final void plan(DevicePlan.Planner planner, int historyBytes) {
    if (!device.isCuda()) {
      return;
    }
    history = CudaMemory.allocate(device, Math.multiplyExact(count(), (long) historyBytes));
    found = CudaMemory.allocate(device, result.sizeof());
    CudaStream stream = CudaStream.defaultOf(device);
    history.zero(stream);
    stream.synchronize(); // other streams do not wait for the default one
    plan = new DevicePlan(device, planner);
  }

  /**
   * @throws IllegalStateException where memory of a parameter, its gradient aside, was closed
   */
  abstract void requireOpen(Object parameter);

  /** One step on the CPU. */
  abstract void run(esp_step_result result);

  /** Queues one step. */
  abstract void queue(
      DevicePlan plan, CudaMemory history, esp_step_result found, CudaStream stream);

  abstract double nativeLearningRate();

  abstract void nativeLearningRate(double value);

  /** The noise of the native options. */
  abstract esp_step_noise nativeNoise();

  abstract void nativeGradient(int index, Pointer memory);

  abstract void closeNative();

  final int count() {
    return parameters.size();
  }

  final Device device() {
    return device;
  }

  /**
   * From now on the gradient of parameter {@code index} is read elsewhere in host memory.
   *
   * @throws IllegalArgumentException where it has another number of elements or another type
   * @throws UnsupportedOperationException on a CUDA device, where steps are planned ahead
   */
  public final synchronized void gradient(int index, Tensor gradient) {
    Tensor before = gradients[checked(index)];
    if (device.isCuda()) {
      throw new UnsupportedOperationException("gradients on a CUDA device stay where they are");
    }
    if (gradient.elements() != before.elements() || gradient.dtype() != before.dtype()) {
      throw new IllegalArgumentException("gradient " + gradient + "; it was " + before);
    }
    nativeGradient(index, gradient.pointerOn(device));
    gradients[index] = gradient;
  }

  /** A tensor's share of {@link #noiseBlocks}. */
  private static long blocks(Tensor weight) {
    return (weight.elements() + 1) / 2;
  }

  /** What both optimizers do where parameter {@code index} is another one from now on, before the list is written. */
  final void replace(int index, Object parameter, Tensor weight, Tensor gradient) {
    Tensor before = gradients[checked(index)];
    if (device.isCuda()) {
      throw new UnsupportedOperationException("parameters on a CUDA device stay what they are");
    }
    weight.pointerOn(device);
    noiseBlocks += blocks(weight) - blocks(before);
    parameters.set(index, parameter);
    gradients[index] = gradient;
  }

  /** The learning rate of the next steps; 0 or more. */
  public final synchronized void learningRate(double value) {
    TrainedTensor.atLeastZero("learning rate", value);
    requireOpen();
    nativeLearningRate(value);
  }

  public final synchronized double learningRate() {
    requireOpen();
    return nativeLearningRate();
  }

  /**
   * The noise of the next steps, none of which repeats that of another: a step, skipped or not, takes
   * its random numbers and the next one goes on behind them. A step with noise cannot be captured in a
   * CUDA graph.
   *
   * @param value null for no noise
   */
  public final synchronized void noise(StepNoise value) {
    requireOpen();
    esp_step_noise options = nativeNoise();
    options.sigma(value == null ? 0 : value.sigma());
    if (value != null) {
      options.divisor(value.divisor()).key(value.key()).counter(value.counter());
    }
    noise = value == null ? null : options;
  }

  /** The noise of the next step, with its counter; null for none. */
  public final synchronized StepNoise noise() {
    requireOpen();
    return noise == null
        ? null
        : new StepNoise(noise.sigma(), noise.divisor(), noise.key(), noise.counter());
  }

  private void takeNoise() {
    if (noise != null) {
      noise.counter(noise.counter() + noiseBlocks);
    }
  }

  /**
   * One step with the gradients as they are now; waits for it.
   *
   * @throws IllegalStateException after close, or where memory of the list was closed; nothing was written
   * @throws IllegalArgumentException a given scale is not positive or has no finite reciprocal; nothing
   *     was written
   * @throws InputException clipping is on, skipping is off and a gradient is not finite; nothing was
   *     written
   */
  public final synchronized StepResult step() {
    requireOpen();
    if (device.isCuda()) {
      CudaStream stream = CudaStream.defaultOf(device);
      queue(stream);
      return result(stream);
    }
    requireOpenMemory();
    run(result);
    takeNoise();
    return found();
  }

  /**
   * Queues one step on a stream, for tensors on its device, and returns. Of several steps queued one
   * after the other each sees what the one before has left.
   *
   * @throws IllegalArgumentException where the tensors are elsewhere
   */
  public final synchronized void queue(CudaStream stream) {
    requireOpen();
    DevicePlan.requireOn(device, stream);
    requireOpenMemory();
    device.makeCurrent();
    queue(plan, history, new esp_step_result(found.pointer()), stream);
    takeNoise();
  }

  /**
   * Waits for what was queued on a stream.
   *
   * @return what the last step found
   * @throws InputException clipping is on, skipping is off and a gradient is not finite; that step wrote
   *     nothing
   */
  public final synchronized StepResult result(CudaStream stream) {
    requireOpen();
    DevicePlan.requireOn(device, stream);
    found.copyTo(result, result.sizeof(), stream);
    stream.synchronize();
    if (result.skipped() == espalier.ESP_STEP_REFUSED) {
      throw new InputException(
          result.non_finite()
              + " gradient entries are NaN or infinite, so that the norm to clip by has no value;"
              + " nothing was changed");
    }
    return found();
  }

  private StepResult found() {
    return new StepResult(
        result.norm(),
        result.clip_factor(),
        result.skipped() != 0,
        result.non_finite(),
        result.non_finite_channels());
  }

  /** Copies what the device keeps of the tensors from or to the host; no step may be queued. */
  final void copyHistory(Pointer host, boolean toDevice) {
    CudaStream stream = CudaStream.defaultOf(device);
    if (toDevice) {
      history.copyFrom(host, history.bytes(), stream);
    } else {
      history.copyTo(host, history.bytes(), stream);
    }
    stream.synchronize();
  }

  /** A parameter's number, checked. */
  final int checked(int index) {
    requireOpen();
    if (index < 0 || index >= count()) {
      throw new IndexOutOfBoundsException(index + " of " + count() + " parameters");
    }
    return index;
  }

  private void requireOpenMemory() {
    for (int i = 0; i < gradients.length; i++) {
      gradients[i].requireOpen();
      requireOpen(parameters.get(i));
    }
  }

  private void requireOpen() {
    if (closed) {
      throw new IllegalStateException("the optimizer is closed");
    }
  }

  /** Frees the native list; close when nothing is queued any more. */
  @Override
  public final synchronized void close() {
    if (closed) {
      return;
    }
    closed = true;
    if (plan != null) {
      plan.close();
      found.close();
      history.close();
    }
    closeNative();
    result.close();
  }
}
