package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.util.List;
import java.util.Map;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;

/** What of several outputs the errors are. */
class OutputErrorTest {
  /** Rounding of float32 in products of numbers below 10,000. */
  private static final double ROUNDING = 1e-6;

  private static OnnxModel factors(float large, float small) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("factors")
            .addInput(value("x", DataType.FLOAT, -1, 2))
            .addInitializer(floats("large", new float[] {large}))
            .addInitializer(floats("small", new float[] {small}))
            .addNode(node("Mul", "", List.of("x", "large"), "a"))
            .addNode(node("Mul", "", List.of("x", "small"), "b"))
            .addOutput(value("a", DataType.FLOAT, -1, 2))
            .addOutput(value("b", DataType.FLOAT, -1, 2));
    return OnnxModel.of(SmallModels.model(13, g), "factors");
  }

  /** Each counts as a share of its own norm, so a small one does not vanish beside a large one. */
  @Test
  void outputsCountAlikeWhateverTheirSize() throws OrtException {
    try (OnnxTensor x =
        OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), new float[][] {{1, -2}})) {
      ActivationSource source = new TensorActivations(List.of(Map.of("x", x)), 1);
      OnnxModel tried = factors(1030, 0.96f);
      OutputError.Made made = new OutputError(factors(1000, 1), source).made(tried);
      assertEquals((0.03 + 0.04) / 2, made.mean(), ROUNDING);
      assertEquals(0.04, made.largest(), ROUNDING);
      assertEquals("b", made.output());
      made = new OutputError(factors(1000, 1), List.of("a"), source).made(tried);
      assertEquals(0.03, made.mean(), ROUNDING);
      assertEquals("a", made.output());
      made = new OutputError(factors(1000, 1), List.of(), source).made(tried);
      assertEquals(new OutputError.Made(0, 0, null), made);
    }
  }
}
