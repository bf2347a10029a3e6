package org.espalier.compress;

import java.util.Map;
import java.util.function.Consumer;
import org.espalier.format.safetensors.SafetensorsDtype;

/** Finds integers for the weights of linear layers from what these are multiplied with. */
@FunctionalInterface
public interface LinearFitting {
  /**
   * A weight in integers: of each block of inputs of an output, w ≈ scale · (q − zero point).
   *
   * @param name of the checkpoint's tensor
   * @param scales [out, blocks], positive, and as they read back from the weights' type
   * @param zeroPoints [out, blocks]; null: all 0
   * @param integers [out, in]
   */
  record Fitted(String name, float[] scales, byte[] zeroPoints, byte[] integers) {}

  /**
   * Fits weights, those that it can.
   *
   * @param form what they become
   * @param weights the types of their tensors, in which scales are stored, by their names
   * @param receiver is given each that was fitted, once
   * @throws org.espalier.InputException if a weight or what it is multiplied with is not finite
   */
  void fit(LinearForm form, Map<String, SafetensorsDtype> weights, Consumer<Fitted> receiver);
}
