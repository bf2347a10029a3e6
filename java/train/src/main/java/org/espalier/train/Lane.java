package org.espalier.train;

import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.pytorch.Tensor;
import org.espalier.compress.onnx.RoundedActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.OnnxGraph;

/**
 * A graph as one thread runs it.
 *
 * @param activations what is put on grids beside the graph; null where nothing is
 */
record Lane(OnnxGraph graph, ActivationSimulation activations) implements AutoCloseable {
  /**
   * A model that is run and never trained.
   *
   * @param outputs the values that it gives
   */
  static Lane frozen(OnnxModel opened, List<String> outputs, TorchDevice device) {
    OnnxModel model = opened.withOutputs(outputs);
    ActivationSimulation activations = dynamic(model, device);
    OnnxGraph graph = OnnxGraph.frozen(model, device);
    graph.transformInputs(activations);
    return new Lane(graph, activations);
  }

  /**
   * Takes the roundings out of a model whose ranges it finds while it runs, for a batch there and for each example here: the range
   * that it has alone.
   *
   * @return what rounds in their place; null where there are none
   */
  static ActivationSimulation dynamic(OnnxModel model, TorchDevice device) {
    Set<String> rounded = RoundedActivations.takeDynamicOut(model);
    return rounded.isEmpty()
        ? null
        : new ActivationSimulation(Map.of(), rounded, new DynamicGrid(device));
  }

  /** The same for another thread, to be closed before this. */
  Lane sibling() {
    OnnxGraph sibling = graph.sibling();
    ActivationSimulation own = activations == null ? null : activations.sibling();
    sibling.transformInputs(own);
    return new Lane(sibling, own);
  }

  Tensor forward(Batch batch, String value) {
    if (activations != null) {
      activations.begin(batch);
    }
    return graph.forward(batch.inputs(graph.inputNames())).get(value);
  }

  @Override
  public void close() {
    graph.close();
    if (activations != null) {
      activations.close();
    }
  }
}
