package org.espalier.op;

/**
 * The noise of differentially private learning in a step of an optimizer (DP-SGD: Abadi and others,
 * «Deep learning with differential privacy», 2016). The gradient is a sum of clipped gradients of
 * examples ({@link DpAccumulate}, {@link Linear#addSquares}); on its way into the update, in
 * registers, it becomes
 *
 * <pre>
 *   d = (d + sigma · z) / divisor   where mask and gate pass, else 0
 * </pre>
 *
 * <p>after the clip factor (which clips the sum as it is: what is added is never clipped) and before
 * {@code maximize}, weight decay and moments. Norm and non-finite entries, and so whether a step is
 * skipped, are those of the sum without noise: they are not private.
 *
 * <p>z are standard normal numbers, a function of key and counter: Philox 4x32 with 10 rounds, and the
 * transformation of Box and Muller in double. A tensor of n elements takes (n + 1) / 2 blocks, masked
 * elements included. The same bits on every instruction set and device, for every number of threads.
 *
 * @param sigma the noise's deviation, above 0
 * @param divisor above 0: the number of examples of a batch
 * @param key who knows key and counter knows the noise
 * @param counter the first block of random numbers; each step goes on where the one before ended
 */
public record StepNoise(double sigma, double divisor, long key, long counter) {
  public StepNoise {
    if (!(sigma > 0 && Float.isFinite((float) sigma))
        || !((float) divisor > 0 && Float.isFinite((float) divisor))) {
      throw new IllegalArgumentException(
          "noise of deviation "
              + sigma
              + " and divisor "
              + divisor
              + "; finite numbers above 0 are needed");
    }
  }
}
