package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;

/** Decoders as exporters merge them: a branch for texts that begin, another for those that go on. */
public final class MergedDecoder {
  private MergedDecoder() {}

  /**
   * A decoder whose nodes are those of another, in both branches.
   *
   * @param decoder with inputs for what was read before
   */
  public static ModelProto of(ModelProto decoder) {
    GraphProto.Builder graph = decoder.getGraph().toBuilder();
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addAllNode(graph.getNodeList())
            .addAllOutput(graph.getOutputList());
    NodeProto.Builder choice =
        SmallModels.choice("/choice", PastInput.BRANCH, "", branch).toBuilder().clearOutput();
    graph.getOutputList().forEach(v -> choice.addOutput(v.getName()));
    graph.clearNode().addNode(choice).addInput(value(PastInput.BRANCH, DataType.BOOL, 1));
    return decoder.toBuilder().setGraph(graph).build();
  }
}
