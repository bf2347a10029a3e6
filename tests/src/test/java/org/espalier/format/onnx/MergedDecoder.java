package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Predicate;

/** Decoders as exporters merge them: a branch for texts that begin, another for those that go on. */
public final class MergedDecoder {
  private MergedDecoder() {}

  /**
   * A decoder whose nodes are those of another, in both branches, which share its weights.
   *
   * @param decoder with inputs for what was read before
   */
  public static ModelProto of(ModelProto decoder) {
    return of(decoder, t -> false);
  }

  /** The same whose branches have each the matrices that their products read, which are equal. */
  public static ModelProto ofCopies(ModelProto decoder) {
    Set<String> read = new HashSet<>();
    decoder.getGraph().getNodeList().stream()
        .filter(n -> Set.of("MatMul", "Transpose").contains(n.getOpType()))
        .forEach(n -> read.addAll(n.getInputList()));
    return of(decoder, t -> read.contains(t.getName()));
  }

  /**
   * @param copied the tensors that each branch has
   */
  private static ModelProto of(ModelProto decoder, Predicate<TensorProto> copied) {
    GraphProto.Builder graph = decoder.getGraph().toBuilder();
    List<TensorProto> tensors = graph.getInitializerList();
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addAllNode(graph.getNodeList())
            .addAllInitializer(tensors.stream().filter(copied).toList())
            .addAllOutput(graph.getOutputList());
    NodeProto.Builder choice =
        SmallModels.choice("/choice", PastInput.BRANCH, "", branch).toBuilder().clearOutput();
    graph.getOutputList().forEach(v -> choice.addOutput(v.getName()));
    graph
        .clearNode()
        .addNode(choice)
        .clearInitializer()
        .addAllInitializer(tensors.stream().filter(copied.negate()).toList())
        .addInput(value(PastInput.BRANCH, DataType.BOOL, 1));
    return decoder.toBuilder().setGraph(graph).build();
  }
}
