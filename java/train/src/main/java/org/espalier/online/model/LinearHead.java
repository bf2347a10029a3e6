package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.List;
import java.util.Map;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.ExampleInput;
import org.espalier.online.Loss;
import org.espalier.online.Predictor;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.op.Linear;

/**
 * A linear model: outputs = weight · features + bias, with weight [outputs, features]. Needs no
 * autograd and no libtorch: its gradient is the outer product of the outputs' gradient and the
 * features.
 *
 * <p>All sums have a fixed order: the same bits everywhere.
 */
public final class LinearHead extends DenseModel {
  private final int features;
  private final int outputs;
  private final FloatBuffer[] memory = new FloatBuffer[6];
  private final List<Weight> weights;

  // Of the batch: its features, and its outputs or their gradient.
  private FloatBuffer rowMemory;
  private FloatBuffer resultMemory;
  private Linear working;
  private Linear gradient;

  /** Whether the working weights are ahead of the latent ones; see {@link #settle}. */
  private boolean ahead;

  /** A head of zeros. */
  public LinearHead(int features, int outputs) {
    if (features < 1 || outputs < 1 || (long) features * outputs > 1 << 28) {
      throw new IllegalArgumentException(features + " features, " + outputs + " outputs");
    }
    this.features = features;
    this.outputs = outputs;
    OwnedTensor[] owned = new OwnedTensor[6];
    for (int i = 0; i < 3; i++) {
      owned[i] = own(outputs, features);
      owned[3 + i] = own(outputs);
    }
    for (int i = 0; i < owned.length; i++) {
      memory[i] = Floats.of(owned[i]);
    }
    weights =
        List.of(
            new Weight("weight", owned[0], owned[1], owned[2], true, 0),
            new Weight("bias", owned[3], owned[4], owned[5], false, -1));
    reserve(1);
  }

  @Override
  void makeRoom(int count, Opened opened) {
    OwnedTensor rows = opened.add(OwnedTensor.allocate(DType.F32, count, features));
    OwnedTensor results = opened.add(OwnedTensor.allocate(DType.F32, count, outputs));
    rowMemory = Floats.of(rows);
    resultMemory = Floats.of(results);
    Weight weight = weights.get(0);
    Weight bias = weights.get(1);
    working = opened.add(new Linear(weight.working(), bias.working(), rows, results));
    gradient = opened.add(new Linear(weight.gradient(), bias.gradient(), rows, results));
  }

  /**
   * Sets the weights, before learning begins.
   *
   * @param newWeight [outputs, features], row by row
   */
  public void set(float[] newWeight, float[] newBias) {
    checkOpen();
    if (newWeight.length != outputs * features || newBias.length != outputs) {
      throw new IllegalArgumentException(
          newWeight.length
              + " weights and "
              + newBias.length
              + " biases for "
              + features
              + " features and "
              + outputs
              + " outputs");
    }
    for (int i : new int[] {0, 1}) {
      memory[i].put(0, newWeight);
      memory[3 + i].put(0, newBias);
    }
  }

  /** The input is called as in {@link #toOnnx}. */
  @Override
  public List<ExampleInput> inputs() {
    return List.of(ExampleInput.floats(LinearGraph.INPUT, features()));
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
  public void forward(float[][] batch, int count, float[] out) {
    reserve(count);
    for (int i = 0; i < count; i++) {
      rowMemory.put(i * features, batch[i]);
    }
    working.forward(count);
    resultMemory.get(0, out, 0, count * outputs);
  }

  @Override
  public void backward(float[] slope, int count) {
    checkOpen();
    resultMemory.put(0, slope, 0, count * outputs);
    gradient.backward(count);
  }

  /** The norm of a row's gradient is the norm of its outputs' gradient times that of (features, 1). */
  @Override
  public int backwardClipped(float[] slope, int count, double bound) {
    checkOpen();
    resultMemory.put(0, slope, 0, count * outputs);
    double[] squares = new double[count];
    gradient.addSquares(count, squares);
    RowFactors factors = RowFactors.of(squares, bound);
    factors.scale(resultMemory, outputs);
    gradient.backward(count);
    return factors.clipped();
  }

  @Override
  public boolean descendsAlone() {
    return true;
  }

  @Override
  public boolean outputsTell() {
    return true;
  }

  /** Finite outputs had finite features, whose products with what is at most 1 are finite. */
  @Override
  public boolean isFinite(float[] slope) {
    float largest = 0;
    for (int c = 0; c < outputs; c++) {
      largest = Math.max(largest, Math.abs(slope[c]));
    }
    return largest <= 1;
  }

  @Override
  public void descend(float[] slope, double rate) {
    resultMemory.put(0, slope, 0, outputs);
    working.descend(rate);
    ahead = true;
  }

  @Override
  public void settle() {
    if (ahead) {
      for (int i : new int[] {0, 3}) {
        memory[i].put(0, memory[i + 1], 0, memory[i].capacity());
      }
      ahead = false;
    }
  }

  @Override
  public String identity() {
    return "";
  }

  @Override
  public OnnxModel toOnnx(Map<String, float[]> values, Loss loss) {
    return LinearGraph.of(values.get("weight"), values.get("bias"), loss);
  }

  @Override
  public Predictor predictor() {
    return new Copy(features, outputs);
  }

  /** A copy on the Java heap. */
  private static final class Copy implements Predictor {
    private final float[] weight;
    private final float[] bias;

    // Where they were taken from the last time: making a buffer costs more than a prediction.
    private final Tensor[] source = new Tensor[2];
    private final FloatBuffer[] memory = new FloatBuffer[2];

    Copy(int features, int outputs) {
      weight = new float[outputs * features];
      bias = new float[outputs];
    }

    @Override
    public void load(List<Weight> weights) {
      for (int i = 0; i < source.length; i++) {
        Tensor working = weights.get(i).working();
        if (source[i] != working) {
          source[i] = working;
          memory[i] = Floats.of(working);
        }
        memory[i].get(0, i == 0 ? weight : bias);
      }
    }

    @Override
    public void predict(float[][] features, int rows, float[] outputs) {
      int columns = bias.length;
      for (int i = 0; i < rows; i++) {
        float[] x = features[i];
        for (int c = 0; c < columns; c++) {
          outputs[i * columns + c] = dot(weight, c * x.length, x) + bias[c];
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
    public void close() {}
  }
}
