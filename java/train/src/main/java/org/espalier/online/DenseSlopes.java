package org.espalier.online;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.op.Activation;
import org.espalier.op.Linear;
import org.espalier.torch.onnx.DenseLayers.Layer;

/** The slopes of a batch: the loss's gradients with respect to what comes out of each layer's product. For one thread. */
final class DenseSlopes implements AutoCloseable {
  private final List<Layer> layers;
  private final DensePass pass;
  private final List<OwnedTensor> memory = new ArrayList<>();
  private final List<FloatBuffer> buffers = new ArrayList<>();

  /** By layer: writes the gradient of its weights. */
  private final List<Linear> gradients = new ArrayList<>();

  /** By layer: changes the weights; writes the slopes of the layer before it. */
  private final List<Linear> steps = new ArrayList<>();

  private final List<Linear> back = new ArrayList<>();

  /**
   * @param pass whose rows they are of
   * @param weights of each layer
   * @param biases of each layer, null where it has none
   * @param gradientOf where the gradient of each of these goes
   */
  DenseSlopes(
      List<Layer> layers,
      DensePass pass,
      List<Tensor> weights,
      List<Tensor> biases,
      Map<Tensor, Tensor> gradientOf) {
    this.layers = layers;
    this.pass = pass;
    for (int l = 0; l < layers.size(); l++) {
      Layer layer = layers.get(l);
      Tensor weight = weights.get(l);
      Tensor bias = biases.get(l);
      OwnedTensor slope = OwnedTensor.allocate(DType.F32, pass.capacity(), layer.outputs());
      gradients.add(
          new Linear(
              gradientOf.get(weight),
              gradientOf.get(bias),
              pass.input(l),
              slope,
              layer.transposed()));
      steps.add(new Linear(weight, bias, pass.input(l), slope, layer.transposed()));
      if (l > 0) {
        back.add(new Linear(weight, bias, memory.get(l - 1), slope, layer.transposed()));
      }
      memory.add(slope);
      buffers.add(Floats.of(slope));
    }
  }

  /**
   * Computes them from the gradient with respect to the outputs, for the rows that have gone through last.
   */
  void compute(float[] outer, int rows) {
    int last = layers.size() - 1;
    buffers.get(last).put(0, outer, 0, rows * layers.get(last).outputs());
    for (int l = last; l >= 0; l--) {
      Activation activation = layers.get(l).activation();
      if (activation != null) {
        activation.backward(pass.values(l), memory.get(l), (long) rows * layers.get(l).outputs());
      }
      if (l > 0) {
        back.get(l - 1).backwardRows(rows);
      }
    }
  }

  /** Writes the gradients of weights and biases. */
  void write(int rows) {
    gradients.forEach(layer -> layer.backward(rows));
  }

  /** The squared norm of each row's own gradient over all layers. */
  double[] squares(int rows) {
    double[] squares = new double[rows];
    gradients.forEach(layer -> layer.addSquares(rows, squares));
    return squares;
  }

  /** Multiplies the slopes of each row. */
  void scale(RowFactors factors) {
    for (int l = 0; l < layers.size(); l++) {
      factors.scale(buffers.get(l), layers.get(l).outputs());
    }
  }

  /** Whether it is plain that the products of the first row's with what their layers have read are finite. */
  boolean haveFiniteProducts() {
    for (int l = 0; l < layers.size(); l++) {
      int outputs = layers.get(l).outputs();
      boolean areFinite = // the model's outputs are not read by a layer
          l == layers.size() - 1 || largest(pass.valueBuffer(l), outputs) < Float.POSITIVE_INFINITY;
      if (!(largest(buffers.get(l), outputs) <= 1 && areFinite)) {
        return false;
      }
    }
    return true;
  }

  /** NaN where there is one. */
  private static float largest(FloatBuffer values, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++) {
      largest = Math.max(largest, Math.abs(values.get(i)));
    }
    return largest;
  }

  /** Takes a step of plain descent on the first row. */
  void descend(double rate) {
    steps.forEach(layer -> layer.descend(rate));
  }

  @Override
  public void close() {
    gradients.forEach(Linear::close);
    steps.forEach(Linear::close);
    back.forEach(Linear::close);
    memory.forEach(OwnedTensor::close);
  }
}
