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
 * What differentially private learning does to gradients (Abadi and others, «Deep learning with
 * differential privacy», 2016), over a list of tensors:
 *
 * <pre>
 *   accumulate   sum += k · gradient,  k = min(1, bound / norm of the gradient over the whole list)
 *   noise        sum = (sum + sigma · z) / divisor,  z independent standard normal numbers
 * </pre>
 *
 * <p>accumulate is for each example, noise for each batch. z is a function of a key and a counter: Philox
 * 4x32 with 10 rounds, and the transformation of Box and Muller in double. Results have the same bits on
 * every instruction set and for every number of threads.
 *
 * <p>Holds the list in native form. The tensors must stay alive until {@link #close}. Not thread safe.
 */
public final class DpAccumulate implements AutoCloseable {
  /**
   * A tensor, F32.
   *
   * @param gradient an example's; null where only noise is added
   * @param sum as many elements
   */
  public record Parameter(Tensor gradient, Tensor sum) {
    public Parameter {
      if (sum.dtype() != DType.F32
          || gradient != null
              && (gradient.dtype() != DType.F32 || gradient.elements() != sum.elements())) {
        throw new IllegalArgumentException(
            "gradient " + gradient + ", sum " + sum + ": F32 of one size is needed");
      }
    }
  }

  private final List<Parameter> parameters; // keeps the memory reachable
  private final esp_dp_tensor list;
  private final IntPointer clipped = new IntPointer(1);
  private final boolean noiseOnly;
  private final long blocks;

  public DpAccumulate(List<Parameter> parameters) {
    this.parameters = List.copyOf(parameters);
    list = new esp_dp_tensor(Math.max(1, parameters.size()));
    noiseOnly = parameters.stream().anyMatch(p -> p.gradient() == null);
    long needed = 0;
    for (int i = 0; i < parameters.size(); i++) {
      Parameter p = parameters.get(i);
      list.getPointer(i)
          .gradient(p.gradient() == null ? null : new FloatPointer(p.gradient().pointer()))
          .sum(new FloatPointer(p.sum().pointer()))
          .n(p.sum().elements());
      needed += (p.sum().elements() + 1) / 2;
    }
    blocks = needed;
  }

  /**
   * Adds the gradient, scaled down to at most {@code bound} in norm.
   *
   * @param bound above 0
   * @return whether it was scaled down
   */
  public boolean accumulate(double bound) {
    open();
    if (noiseOnly) {
      throw new IllegalStateException("there are no gradients");
    }
    Status.check(espalier.esp_dp_accumulate(list, parameters.size(), bound, clipped));
    return clipped.get() != 0;
  }

  /**
   * Adds noise to the sums and divides them.
   *
   * @param key who knows it knows the noise
   * @param counter the first block of random numbers; {@link #blocks} are taken
   * @param sigma the noise's deviation, 0 or more
   * @param divisor above 0
   */
  public void noise(long key, long counter, double sigma, double divisor) {
    open();
    Status.check(espalier.esp_dp_noise(list, parameters.size(), key, counter, sigma, divisor));
  }

  /** How many blocks of random numbers {@link #noise} takes. */
  public long blocks() {
    return blocks;
  }

  private void open() {
    if (list.isNull()) {
      throw new IllegalStateException("the operation is closed");
    }
  }

  @Override
  public void close() {
    list.close();
    clipped.close();
  }
}
