package org.espalier.online;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;

/**
 * A linear model: outputs = weight · features + bias, with weight [outputs, features]. Needs no
 * autograd and no libtorch: its gradient is the outer product of the outputs' gradient and the
 * features.
 *
 * <p>All sums have a fixed order: the same bits everywhere.
 */
public final class LinearHead implements Learnable {
  private final int features;
  private final int outputs;
  private final OwnedTensor[] owned = new OwnedTensor[6];
  private final List<Weight> weights;
  private final FloatBuffer weightMemory;
  private final FloatBuffer biasMemory;
  private final FloatBuffer weightGradientMemory;
  private final FloatBuffer biasGradientMemory;
  private final float[] weight;
  private final float[] bias;
  private final float[] weightGradient;
  private final float[] biasGradient;
  private float[][] seen;

  /** A head of zeros. */
  public LinearHead(int features, int outputs) {
    if (features < 1 || outputs < 1 || (long) features * outputs > 1 << 28) {
      throw new IllegalArgumentException(features + " features, " + outputs + " outputs");
    }
    this.features = features;
    this.outputs = outputs;
    for (int i = 0; i < 3; i++) {
      owned[i] = OwnedTensor.allocate(DType.F32, outputs, features);
      owned[3 + i] = OwnedTensor.allocate(DType.F32, outputs);
    }
    weights =
        List.of(
            new Weight("weight", owned[0], owned[1], owned[2], 0),
            new Weight("bias", owned[3], owned[4], owned[5], -1));
    weightMemory = buffer(owned[1]);
    weightGradientMemory = buffer(owned[2]);
    biasMemory = buffer(owned[4]);
    biasGradientMemory = buffer(owned[5]);
    weight = new float[outputs * features];
    bias = new float[outputs];
    weightGradient = new float[outputs * features];
    biasGradient = new float[outputs];
  }

  /** The F32 elements of a tensor, for bulk copies. */
  static FloatBuffer buffer(Tensor tensor) {
    return new FloatPointer(tensor.pointer()).capacity(tensor.elements()).asBuffer();
  }

  /**
   * Sets the weights, before learning begins.
   *
   * @param newWeight [outputs, features], row by row
   */
  public void set(float[] newWeight, float[] newBias) {
    if (newWeight.length != weight.length || newBias.length != outputs) {
      throw new IllegalArgumentException(
          newWeight.length + " weights and " + newBias.length + " biases for " + features
              + " features and " + outputs + " outputs");
    }
    for (int i : new int[] {0, 1}) {
      buffer(owned[i]).put(0, newWeight);
      buffer(owned[3 + i]).put(0, newBias);
    }
  }

  @Override
  public int features() {
    return features;
  }

  @Override
  public int outputs() {
    return outputs;
  }

  @Override
  public List<Weight> weights() {
    return weights;
  }

  @Override
  public void forward(float[][] rows, int count, float[] out) {
    weightMemory.get(0, weight);
    biasMemory.get(0, bias);
    multiply(weight, bias, rows, count, out);
    seen = rows;
  }

  private static void multiply(
      float[] weight, float[] bias, float[][] rows, int count, float[] out) {
    int outputs = bias.length;
    for (int i = 0; i < count; i++) {
      float[] x = rows[i];
      for (int c = 0; c < outputs; c++) {
        out[i * outputs + c] = dot(weight, c * x.length, x) + bias[c];
      }
    }
  }

  /** Eight sums, because one would wait for each addition. */
  private static float dot(float[] w, int at, float[] x) {
    float a = 0;
    float b = 0;
    float c = 0;
    float d = 0;
    float e = 0;
    float f = 0;
    float g = 0;
    float h = 0;
    int end = x.length & ~7;
    for (int j = 0; j < end; j += 8) {
      a += w[at + j] * x[j];
      b += w[at + j + 1] * x[j + 1];
      c += w[at + j + 2] * x[j + 2];
      d += w[at + j + 3] * x[j + 3];
      e += w[at + j + 4] * x[j + 4];
      f += w[at + j + 5] * x[j + 5];
      g += w[at + j + 6] * x[j + 6];
      h += w[at + j + 7] * x[j + 7];
    }
    for (int j = end; j < x.length; j++) {
      a += w[at + j] * x[j];
    }
    return ((a + b) + (c + d)) + ((e + f) + (g + h));
  }

  @Override
  public void backward(float[] gradient, int rows) {
    Arrays.fill(weightGradient, 0);
    Arrays.fill(biasGradient, 0);
    for (int i = 0; i < rows; i++) {
      add(gradient, i, 1);
    }
    weightGradientMemory.put(0, weightGradient);
    biasGradientMemory.put(0, biasGradient);
  }

  /** The norm of a row's gradient is the norm of its outputs' gradient times that of (features, 1). */
  @Override
  public int backwardClipped(float[] gradient, int rows, double bound) {
    Arrays.fill(weightGradient, 0);
    Arrays.fill(biasGradient, 0);
    int clipped = 0;
    for (int i = 0; i < rows; i++) {
      double outer = 0;
      for (int c = 0; c < outputs; c++) {
        outer += (double) gradient[i * outputs + c] * gradient[i * outputs + c];
      }
      double inner = 1;
      for (float x : seen[i]) {
        inner += (double) x * x;
      }
      double norm = Math.sqrt(outer * inner);
      // Rounded down, so that the sum of rounded products cannot exceed the bound by it.
      float scale = norm > bound ? (float) (bound / norm * (1 - 0x1p-22)) : 1;
      clipped += norm > bound ? 1 : 0;
      add(gradient, i, scale);
    }
    weightGradientMemory.put(0, weightGradient);
    biasGradientMemory.put(0, biasGradient);
    return clipped;
  }

  private void add(float[] gradient, int row, float scale) {
    float[] x = seen[row];
    for (int c = 0; c < outputs; c++) {
      float g = scale * gradient[row * outputs + c];
      biasGradient[c] += g;
      addScaled(weightGradient, c * features, g, x);
    }
  }

  private static void addScaled(float[] sum, int at, float factor, float[] x) {
    for (int j = 0; j < x.length; j++) {
      sum[at + j] += factor * x[j];
    }
  }

  @Override
  public Predictor predictor() {
    return new Copy(features, outputs);
  }

  @Override
  public void close() {
    for (OwnedTensor tensor : owned) {
      tensor.close();
    }
  }

  /** A copy on the Java heap. */
  private static final class Copy implements Predictor {
    private final float[] weight;
    private final float[] bias;

    Copy(int features, int outputs) {
      weight = new float[outputs * features];
      bias = new float[outputs];
    }

    @Override
    public void load(List<Weight> weights) {
      buffer(weights.get(0).working()).get(0, weight);
      buffer(weights.get(1).working()).get(0, bias);
    }

    @Override
    public void predict(float[][] features, int rows, float[] outputs) {
      multiply(weight, bias, features, rows, outputs);
    }

    @Override
    public void close() {}
  }
}
