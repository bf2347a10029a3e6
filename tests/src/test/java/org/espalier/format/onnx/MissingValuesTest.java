package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class MissingValuesTest {
  @ParameterizedTest
  @CsvSource({
    "'', IsNaN, true", "'', IsInf, false", "ai.onnx.ml, Imputer, true",
    "ai.onnx.ml, TreeEnsembleRegressor, true", "ai.onnx.ml, IsNaN, false", "mine, Imputer, false"
  })
  void areKnownToModelsThatAskForThem(String domain, String operator, boolean known) {
    NodeProto node = SmallModels.line("a " + operator + " x").toBuilder().setDomain(domain).build();
    GraphProto.Builder plain = graph().addNode(node);
    assertEquals(known, MissingValues.areKnownTo(model(plain)));
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(node)
            .addOutput(SmallModels.value("a", DataType.FLOAT, -1));
    GraphProto.Builder within = graph().addNode(SmallModels.choice("/if", "yes", "y", branch));
    assertEquals(known, MissingValues.areKnownTo(model(within)));
  }

  private static GraphProto.Builder graph() {
    return GraphProto.newBuilder()
        .setName("g")
        .addInput(SmallModels.value("x", DataType.FLOAT, -1))
        .addInput(SmallModels.value("yes", DataType.BOOL));
  }

  private static OnnxModel model(GraphProto.Builder graph) {
    return OnnxModel.of(SmallModels.model(13, graph), "model");
  }
}
