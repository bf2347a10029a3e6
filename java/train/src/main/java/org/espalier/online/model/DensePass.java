package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.op.Linear;
import org.espalier.torch.onnx.DenseLayers;
import org.espalier.torch.onnx.DenseLayers.Layer;
import org.espalier.torch.onnx.DenseLayers.Scaling;

/** Rows on their way through dense layers, with room for some number of them. For one thread at a time. */
final class DensePass implements AutoCloseable {
  private final List<Layer> layers;
  private final List<Scaling> scalings;
  private final int capacity;
  private final OwnedTensor features;
  private final FloatBuffer featureMemory;

  private final Opened opened = new Opened();
  private final List<LayerInput> inputs = new ArrayList<>();

  /** Of each layer what comes out of it. */
  private final List<OwnedTensor> values = new ArrayList<>();

  /** Of each layer what rounds its sums; null where nothing does. */
  private final List<RowRounding> roundings = new ArrayList<>();

  private final List<Linear> products = new ArrayList<>();
  private final List<FloatBuffer> valueBuffers = new ArrayList<>();

  /**
   * @param tensors of each layer
   * @param capacity rows; their features or values must fit a buffer
   */
  DensePass(DenseLayers dense, List<LayerTensors> tensors, int capacity) {
    this.layers = dense.layers();
    this.scalings = dense.scalings();
    this.capacity = capacity;
    features = opened.add(OwnedTensor.allocate(DType.F32, capacity, layers.get(0).features()));
    featureMemory = Floats.of(features);
    OwnedTensor before = features;
    for (int l = 0; l < layers.size(); l++) {
      Layer layer = layers.get(l);
      LayerTensors own = tensors.get(l);
      LayerInput input = opened.add(new LayerInput(layer, before, own.factors()));
      OwnedTensor sums = opened.add(OwnedTensor.allocate(DType.F32, capacity, layer.outputs()));
      RowRounding rounding =
          layer.sums() == null ? null : opened.add(new RowRounding(layer.sums(), sums));
      products.add(
          opened.add(
              new Linear(own.weight(), own.bias(), input.values(), sums, layer.transposed())));
      before = rounding == null ? sums : rounding.values();
      inputs.add(input);
      roundings.add(rounding);
      values.add(before);
      valueBuffers.add(Floats.of(before));
    }
  }

  int capacity() {
    return capacity;
  }

  /** What a layer reads. */
  LayerInput input(int layer) {
    return inputs.get(layer);
  }

  /** Of slopes of what a layer's activation reads makes those of its sums, in place. */
  void unround(int layer, OwnedTensor slopes) {
    if (roundings.get(layer) != null) {
      roundings.get(layer).backward(slopes);
    }
  }

  /** What comes out of a layer, its activation behind it. */
  OwnedTensor values(int layer) {
    return values.get(layer);
  }

  /** The same as a buffer. */
  FloatBuffer valueBuffer(int layer) {
    return valueBuffers.get(layer);
  }

  /**
   * Runs rows {@code from} to {@code from + count}.
   *
   * @param out receives outputs of each row, at its place
   */
  void run(float[][] rows, int from, int count, float[] out) {
    int width = layers.get(0).features();
    for (int i = 0; i < count; i++) {
      featureMemory.put(i * width, scaled(rows[from + i]));
    }
    for (int l = 0; l < layers.size(); l++) {
      Layer layer = layers.get(l);
      inputs.get(l).forward(count);
      products.get(l).forward(count);
      if (roundings.get(l) != null) {
        roundings.get(l).forward(count);
      }
      if (layer.activation() != null) {
        layer.activation().forward(values.get(l), (long) count * layer.outputs());
      }
    }
    int last = layers.size() - 1;
    int outputs = layers.get(last).outputs();
    valueBuffers.get(last).get(0, out, from * outputs, count * outputs);
  }

  private float[] scaled(float[] row) {
    if (scalings.isEmpty()) {
      return row;
    }
    float[] features = row.clone();
    scalings.forEach(scaling -> scaling.apply(features));
    return features;
  }

  @Override
  public void close() {
    opened.close();
  }
}
