package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.stream.Stream;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.op.Activation;
import org.espalier.op.Linear;
import org.espalier.torch.onnx.DenseLayers.Layer;

/** The slopes of a batch: the loss's gradients with respect to what comes out of each layer's product. For one thread. */
final class DenseSlopes implements AutoCloseable {
  private final List<Layer> layers;
  private final DensePass pass;
  private final Opened opened = new Opened();
  private final List<OwnedTensor> memory = new ArrayList<>();
  private final List<FloatBuffer> buffers = new ArrayList<>();

  /** By layer: writes the gradient of its weights. */
  private final List<Linear> gradients = new ArrayList<>();

  /** By layer: changes the weights. */
  private final List<Linear> steps = new ArrayList<>();

  /** By layer: writes the slopes of what it reads; null for the first where nobody asks. */
  private final List<Linear> back = new ArrayList<>();

  /** By layer: those of its factors; null where it has none. */
  private final List<FactorSlopes> factors = new ArrayList<>();

  /**
   * @param pass whose rows they are of
   * @param tensors of each layer
   * @param gradientsOf where their gradients go
   */
  DenseSlopes(
      List<Layer> layers,
      DensePass pass,
      List<LayerTensors> tensors,
      List<LayerTensors> gradientsOf) {
    this.layers = layers;
    this.pass = pass;
    for (int l = 0; l < layers.size(); l++) {
      boolean transposed = layers.get(l).transposed();
      LayerTensors own = tensors.get(l);
      LayerTensors gradient = gradientsOf.get(l);
      OwnedTensor slope =
          opened.add(OwnedTensor.allocate(DType.F32, pass.capacity(), layers.get(l).outputs()));
      OwnedTensor read = pass.input(l).values();
      gradients.add(
          opened.add(new Linear(gradient.weight(), gradient.bias(), read, slope, transposed)));
      steps.add(opened.add(new Linear(own.weight(), own.bias(), read, slope, transposed)));
      FactorSlopes ofFactors =
          own.factors() == null
              ? null
              : opened.add(
                  new FactorSlopes(pass.input(l).before(), own.factors(), gradient.factors()));
      OwnedTensor to = ofFactors != null ? ofFactors.slopes() : l == 0 ? null : memory.get(l - 1);
      back.add(
          to == null
              ? null
              : opened.add(new Linear(own.weight(), own.bias(), to, slope, transposed)));
      factors.add(ofFactors);
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
      pass.unround(l, memory.get(l));
      FactorSlopes ofFactors = factors.get(l);
      if (back.get(l) != null) {
        back.get(l).backwardRows(rows);
        pass.input(l).unround(ofFactors != null ? ofFactors.slopes() : memory.get(l - 1));
      }
      if (ofFactors != null && l > 0) {
        ofFactors.passOn(rows, buffers.get(l - 1));
      }
    }
  }

  /** Writes the gradients of weights and biases. */
  void write(int rows) {
    gradients.forEach(layer -> layer.backward(rows));
    ofFactors().forEach(own -> own.write(rows));
  }

  /** The squared norm of each row's own gradient over all layers. */
  double[] squares(int rows) {
    double[] squares = new double[rows];
    gradients.forEach(layer -> layer.addSquares(rows, squares));
    ofFactors().forEach(own -> own.addSquares(rows, squares));
    return squares;
  }

  /** Multiplies the slopes of each row. */
  void scale(RowFactors by) {
    for (int l = 0; l < layers.size(); l++) {
      by.scale(buffers.get(l), layers.get(l).outputs());
      if (factors.get(l) != null) {
        by.scale(factors.get(l).memory(), layers.get(l).features());
      }
    }
  }

  private Stream<FactorSlopes> ofFactors() {
    return factors.stream().filter(Objects::nonNull);
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
    opened.close();
  }
}
