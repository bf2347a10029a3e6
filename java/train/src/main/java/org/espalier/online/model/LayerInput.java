package org.espalier.online.model;

import java.nio.FloatBuffer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.torch.onnx.DenseLayers.Layer;

/**
 * What a layer reads: what comes out of the one before it, multiplied by factors and rounded where the graph says so. For one
 * thread at a time.
 */
final class LayerInput implements AutoCloseable {
  private final Opened opened = new Opened();
  private final OwnedTensor before;
  private final OwnedTensor values;

  /** Null where nothing is rounded. */
  private final RowRounding rounding;

  // Null where there are no factors.
  private final FloatBuffer factors;
  private final FloatBuffer beforeMemory;
  private final FloatBuffer scaledMemory;
  private final float[] factor;
  private final float[] row;

  /**
   * @param before [capacity, features], the values of the layer before
   * @param factors null where the layer has none
   */
  LayerInput(Layer layer, OwnedTensor before, Tensor factors) {
    this.before = before;
    boolean hasFactors = factors != null;
    OwnedTensor scaled =
        hasFactors ? opened.add(OwnedTensor.allocate(DType.F32, before.shape())) : before;
    this.factors = hasFactors ? Floats.of(factors) : null;
    beforeMemory = hasFactors ? Floats.of(before) : null;
    scaledMemory = hasFactors ? Floats.of(scaled) : null;
    factor = new float[hasFactors ? layer.features() : 0];
    row = new float[factor.length];
    rounding = layer.read() == null ? null : opened.add(new RowRounding(layer.read(), scaled));
    values = rounding == null ? scaled : rounding.values();
  }

  /** What the product reads; what came in where nothing is done to it. */
  OwnedTensor values() {
    return values;
  }

  /** What came in. */
  OwnedTensor before() {
    return before;
  }

  void forward(int count) {
    if (factors != null) {
      factors.get(0, factor);
      for (int i = 0; i < count; i++) {
        beforeMemory.get(i * row.length, row);
        multiply(row, factor);
        scaledMemory.put(i * row.length, row);
      }
    }
    if (rounding != null) {
      rounding.forward(count);
    }
  }

  private static void multiply(float[] values, float[] by) {
    for (int j = 0; j < values.length; j++) {
      values[j] *= by[j];
    }
  }

  /** Of slopes of what the product has read last makes those of what was rounded, in place. */
  void unround(Tensor slopes) {
    if (rounding != null) {
      rounding.backward(slopes);
    }
  }

  @Override
  public void close() {
    opened.close();
  }
}
