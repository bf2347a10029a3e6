package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxModel;

/**
 * Rewrites a quantizer's model for training: products read weights of their own, look-ups read them as rows, and biases
 * take up the error of calibration.
 */
final class TrainingForm {
  /**
   * What a node reads from now on.
   *
   * @param input which of its inputs that is
   */
  record Latent(int input, String weight) {}

  private TrainingForm() {}

  /**
   * Has products read weights of their own, look-ups in the weights of products read those as rows, and biases take up what
   * calibration found.
   *
   * @param latents what nodes read, by the outputs of the nodes
   * @param biasChanges what is added to the vectors of nodes, by the outputs of the nodes
   * @param weight of a product that is looked up in
   * @param factors what its rows were multiplied with, or null
   * @return the look-ups as they are now
   */
  static <P> TiedLookUps<P> apply(
      OnnxModel model,
      OnnxModel.Names names,
      Map<String, Latent> latents,
      Map<String, double[]> biasChanges,
      TiedLookUps<P> tied,
      Function<P, String> weight,
      Function<P, float[]> factors) {
    List<NodeProto> nodes = new ArrayList<>();
    TiedLookUps<P> now = new TiedLookUps<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      Latent latent = latents.get(output);
      if (tied.contains(output)) {
        P product = tied.product(output);
        List<NodeProto> lookUp =
            EmbeddingTables.lookUp(model, names, n, weight.apply(product), factors.apply(product));
        now.add(lookUp.get(EmbeddingTables.GATHER), product);
        nodes.addAll(lookUp);
      } else if (latent != null) {
        nodes.add(n.toBuilder().setInput(latent.input(), latent.weight()).build());
      } else if (biasChanges.containsKey(output)) {
        nodes.add(ConstantVector.changed(model, names, n, biasChanges.get(output)));
      } else {
        nodes.add(n);
      }
    }
    model.setNodes(nodes);
    return now;
  }
}
