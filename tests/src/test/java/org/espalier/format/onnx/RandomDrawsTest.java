package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;

class RandomDrawsTest {
  private static Optional<String> told(NodeProto... nodes) {
    GraphProto.Builder g = GraphProto.newBuilder().setName("noise");
    g.addInput(SmallModels.value("x", DataType.FLOAT, -1, 8));
    g.addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    g.addAllNode(List.of(nodes));
    return RandomDraws.of(OnnxModel.of(SmallModels.model(15, g), "noise"));
  }

  @Test
  void nodesThatDrawAreTold() {
    NodeProto noise = SmallModels.line("n RandomNormalLike x");
    NodeProto sum = SmallModels.line("y Add x n");
    String one = told(noise, sum).orElseThrow();
    assertTrue(one.startsWith("RandomNormalLike '/n' draws random numbers"), one);
    String two = told(noise, SmallModels.line("b Bernoulli n"), sum).orElseThrow();
    assertTrue(two.startsWith("RandomNormalLike '/n' and 1 other draw random numbers"), two);
  }

  @Test
  void whatIsSeededIsTheSameInEachRun() {
    NodeProto seeded =
        SmallModels.line("n RandomNormalLike x").toBuilder()
            .addAttribute(
                AttributeProto.newBuilder()
                    .setName("seed")
                    .setType(AttributeProto.AttributeType.FLOAT)
                    .setF(1))
            .build();
    assertEquals(Optional.empty(), told(seeded, SmallModels.line("y Add x n")));
    assertEquals(Optional.empty(), told(SmallModels.line("y Relu x")));
  }
}
