package org.espalier.op;

import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_dp_tensor;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * What differentially private learning does to the gradient of each example (Abadi and others, «Deep
 * learning with differential privacy», 2016), over a list of tensors:
 *
 * <pre>
 *   sum += k · gradient,  k = min(1, bound / norm of the gradient over the whole list)
 * </pre>
 *
 * <p>The step of an optimizer adds the noise: {@link StepNoise}. Results have the same bits on every
 * instruction set and for every number of threads.
 *
 * <p>Holds the list in native form. The tensors must stay alive until {@link #close}. Several threads wait for each other.
 */
public final class DpAccumulate implements AutoCloseable {
  /**
   * A tensor, F32.
   *
   * @param gradient an example's
   * @param sum as many elements
   */
  public record Parameter(Tensor gradient, Tensor sum) {
    public Parameter {
      if (sum.dtype() != DType.F32
          || gradient.dtype() != DType.F32
          || gradient.elements() != sum.elements()) {
        throw new IllegalArgumentException(
            "gradient " + gradient + ", sum " + sum + ": F32 of one size is needed");
      }
      sum.requireWritable("sum");
    }
  }

  private final List<Parameter> parameters; // keeps the memory reachable
  private final esp_dp_tensor list;
  private final IntPointer clipped = Natives.keep(new IntPointer(1));

  public DpAccumulate(List<Parameter> parameters) {
    this.parameters = List.copyOf(parameters);
    list = Natives.keep(new esp_dp_tensor(Math.max(1, parameters.size())));
    for (int i = 0; i < parameters.size(); i++) {
      Parameter p = parameters.get(i);
      list.getPointer(i)
          .gradient(new FloatPointer(p.gradient().pointer()))
          .sum(new FloatPointer(p.sum().pointer()))
          .n(p.sum().elements());
    }
  }

  /**
   * Adds the gradient, scaled down to at most {@code bound} in norm.
   *
   * @param bound above 0
   * @return whether it was scaled down
   * @throws IllegalStateException after close, or where memory of a parameter was closed
   */
  public synchronized boolean accumulate(double bound) {
    if (list.isNull()) {
      throw new IllegalStateException("the operation is closed");
    }
    for (Parameter p : parameters) {
      p.gradient().requireOpen();
      p.sum().requireOpen();
    }
    Status.check(espalier.esp_dp_accumulate(list, parameters.size(), bound, clipped));
    return clipped.get() != 0;
  }

  @Override
  public synchronized void close() {
    list.close();
    clipped.close();
  }
}
