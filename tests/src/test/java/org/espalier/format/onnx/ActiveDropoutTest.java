package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.List;
import org.junit.jupiter.api.Test;

class ActiveDropoutTest {
  private static OnnxModel model(String... lines) {
    GraphProto.Builder g = GraphProto.newBuilder().setName("dropouts");
    g.addInput(SmallModels.value("x", DataType.FLOAT, -1, 8));
    g.addInput(SmallModels.value("asked", DataType.BOOL));
    g.addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    g.addInitializer(SmallModels.number("ratio", 0.5f));
    for (String flag : List.of("on", "off")) {
      ByteBuffer value = ByteBuffer.wrap(new byte[] {(byte) (flag.equals("on") ? 1 : 0)});
      g.addInitializer(SmallModels.tensor(flag, DataType.BOOL, value));
    }
    for (String line : lines) {
      g.addNode(SmallModels.line(line));
    }
    return OnnxModel.of(SmallModels.model(15, g), "dropouts");
  }

  @Test
  void whatWasExportedForTrainingDropsNothing() {
    OnnxModel model =
        model("a Dropout x ratio on", "b Dropout a ratio off", "c Dropout b - on", "y Relu c");
    assertEquals(
        "Dropout '/a' and 1 other were exported for training (training_mode is true); nothing is"
            + " dropped here, nor by what is written",
        ActiveDropout.evaluate(model));
    assertEquals(
        List.of(List.of("x", "ratio"), List.of("a", "ratio", "off"), List.of("b", "")),
        model.nodes().subList(0, 3).stream()
            .map(NodeProto::getInputList)
            .map(List::copyOf)
            .toList());
    assertNull(model.initializer("on"));
    assertNotNull(model.initializer("off"));
    assertNull(ActiveDropout.evaluate(model));
    assertNull(ActiveDropout.evaluate(model("y Dropout x ratio ratio"))); // which is no flag
  }

  @Test
  void whatOthersReadOrDecideStays() {
    OnnxModel model =
        model("a Dropout x ratio on", "n Not on", "b Dropout a ratio asked", "y Relu b");
    assertEquals(
        "Dropout '/a' was exported for training (training_mode is true); nothing is dropped here,"
            + " nor by what is written",
        ActiveDropout.evaluate(model));
    assertNotNull(model.initializer("on"));
    assertEquals("asked", model.nodes().get(2).getInput(2));
  }
}
