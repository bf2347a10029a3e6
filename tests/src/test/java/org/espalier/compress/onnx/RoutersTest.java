package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.transformers.SmallCheckpoint;
import org.espalier.transformers.TransformersModel;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What chooses experts stays float in each form of integers, and nothing else does for that. */
class RoutersTest {
  @TempDir private Path folder;

  @ParameterizedTest
  @CsvSource({
    "mixtral, block_sparse_moe.gate.weight",
    "qwen2_moe, mlp.gate.weight",
    "qwen3_moe, mlp.gate.weight"
  })
  void routersStayFloat(String type, String name) throws IOException {
    SmallCheckpoint.writeLanguageModel(folder, type);
    Set<String> routers = new TreeSet<>();
    for (int n = 0; n < 3; n++) {
      routers.add("model.layers." + n + "." + name);
    }
    BlockQuantizer.Options blocks = new BlockQuantizer.Options(4, 16, true, w -> true);
    for (TrainableQuantizer quantizer :
        List.of(
            new DynamicQuantizer(read(), DynamicQuantizer.Options.defaults()),
            new BlockQuantizer(read(), blocks),
            new StaticQuantizer(read(), StaticQuantizer.Options.defaults()))) {
      Set<String> left = new TreeSet<>();
      quantizer
          .skipped()
          .forEach(
              (weight, reason) -> {
                if (reason.equals(Routers.REASON)) {
                  left.add(weight);
                }
              });
      assertEquals(routers, left, quantizer.getClass().getSimpleName());
      assertFalse(quantizer.quantized().stream().anyMatch(routers::contains));
    }
  }

  private OnnxModel read() {
    return TransformersModel.read(folder, note -> {});
  }

  /** The best classes that a classifier gives out choose nothing. */
  @Test
  void aClassifierThatGivesItsBestIsNone() {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("best")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addOutput(SmallModels.value("scores", DataType.FLOAT, -1, 2))
            .addOutput(SmallModels.value("classes", DataType.INT64, -1, 2))
            .addInitializer(SmallModels.floats("w", new Random(1), 1, 8, 5))
            .addInitializer(SmallModels.int64s("k", 2));
    graph.addNode(SmallModels.node("MatMul", "product", List.of("x", "w"), "logits"));
    NodeProto best = SmallModels.node("TopK", "best", List.of("logits", "k"), "scores");
    graph.addNode(best.toBuilder().addOutput("classes"));
    OnnxModel model = OnnxModel.of(SmallModels.model(17, graph), "best.onnx");
    DynamicQuantizer quantizer = new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
    assertEquals(Map.of(), quantizer.skipped());
    assertEquals(List.of("w"), quantizer.quantized());
  }
}
