package org.espalier.torch.onnx;

import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OrtException;
import com.google.protobuf.ByteString;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** QuantizeLinear and behind it DequantizeLinear: the runtime's values, and a gradient where nothing is clipped. */
class RoundingTest {
  @BeforeEach
  void load() {
    Libtorch.load();
  }

  private static OnnxModel model(DataType type, NodeProto... nodes) {
    return model(13, type, nodes);
  }

  private static OnnxModel model(int opset, DataType type, NodeProto... nodes) {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("rounding")
            .addInput(value("x", DataType.FLOAT, 8))
            .addInitializer(SmallModels.int64s("sizes", 2, 4))
            .addInitializer(SmallModels.int64s("size", 8))
            .addOutput(value("y", DataType.FLOAT, 8))
            .addAllNode(List.of(nodes));
    if (type != null) {
      graph
          .addInitializer(SmallModels.floats("step", new float[] {0.5f}))
          .addInitializer(SmallModels.floats("other", new float[] {2}))
          .addInitializer(
              TensorProto.newBuilder()
                  .setName("zero")
                  .setDataType(type.getNumber())
                  .setRawData(
                      ByteString.copyFrom(
                          type == DataType.UINT16 ? new byte[] {3, 0} : new byte[] {3})));
    }
    return OnnxModel.of(SmallModels.model(opset, graph), "rounding");
  }

  /**
   * @param passes 1 where the gradient passes
   */
  private static void check(OnnxModel model, float[] x, float... passes) throws OrtException {
    try (PointerScope scope = new PointerScope();
        Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      Tensor given = AbstractTensor.create(x);
      float[] expected = values(OnnxRuntime.run(model, Map.of("x", given)).get("y"));
      Tensor leaf = given.clone().requires_grad_(true);
      Tensor y = program.run(Map.of("x", leaf), false).get("y");
      assertArrayEquals(expected, values(y));
      assertArrayEquals(expected, values(program.run(Map.of("x", given), false).get("y")));
      List<Tensor> written =
          GraphScriptConformanceTest.run(GraphScript.module(model), List.of(given), 1);
      assertArrayEquals(expected, values(written.get(0)));
      y.sum().backward();
      assertArrayEquals(passes, values(leaf.grad()));
    }
  }

  private static float[] values(Tensor t) {
    float[] values = new float[(int) t.numel()];
    new FloatPointer(t.detach().contiguous().data_ptr_float()).get(values);
    return values;
  }

  /** The grid of uint8 with a zero point of 3 ends at −1.5 and 126, that of int8 at −65.5 and 62; half a step more rounds to it. */
  @Test
  void theGradientPassesWhereNothingIsClipped() throws OrtException {
    NodeProto q = node("QuantizeLinear", "", List.of("x", "step", "zero"), "q");
    NodeProto y = node("DequantizeLinear", "", List.of("q", "step", "zero"), "y");
    float[] x = {0, 0.3f, -1.7f, -1.8f, 126.2f, 126.3f, -65.8f, 70};
    check(model(DataType.UINT8, q, y), x, 1, 1, 1, 0, 1, 0, 0, 1);
    check(model(DataType.INT8, q, y), x, 1, 1, 1, 1, 0, 0, 0, 0);
    OnnxModel few = model(DataType.UINT8, q, y);
    few.replaceConstant(OnnxInitializer.floats("step", new long[0], Float.MIN_VALUE));
    check(few, x, 1, 0, 0, 0, 0, 0, 0, 0);
  }

  /** The grid of uint16 with a zero point of 3 ends at −1.5 and 32,766. */
  @Test
  void gridsOfSixteenBitsToo() throws OrtException {
    OnnxModel model =
        model(
            21,
            DataType.UINT16,
            node("QuantizeLinear", "", List.of("x", "step", "zero"), "q"),
            node("DequantizeLinear", "", List.of("q", "step", "zero"), "y"));
    float[] x = {0, 0.3f, -1.7f, -1.8f, 32_766.2f, 32_766.3f, -65.8f, 70};
    check(model, x, 1, 1, 1, 0, 1, 0, 0, 1);
  }

  @Test
  void whatIsTransposedToo() throws OrtException {
    NodeProto q = node("QuantizeLinear", "", List.of("turned", "step", "zero"), "q");
    OnnxModel model =
        model(
            DataType.UINT8,
            SmallModels.line("table Reshape x sizes"),
            SmallModels.line("turned Transpose table", SmallModels.attribute("perm", 1, 0)),
            q,
            node("DequantizeLinear", "", List.of("q", "step", "zero"), "back"),
            SmallModels.line("y Reshape back size"));
    float[] x = {0, 0.3f, -1.7f, -1.8f, 126.2f, 126.3f, -65.8f, 70};
    check(model, x, 1, 1, 1, 0, 1, 0, 0, 1);
  }

  /** Numbers so far apart that their range is infinite, and so near 0 that its step has no reciprocal. */
  @Test
  void rangesWithoutAStepForKernels() {
    NodeProto q =
        node("DynamicQuantizeLinear", "", List.of("x"), "q").toBuilder()
            .addOutput("step")
            .addOutput("zero")
            .build();
    OnnxModel model =
        model(null, q, node("DequantizeLinear", "", List.of("q", "step", "zero"), "y"));
    try (PointerScope scope = new PointerScope();
        Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      for (float far : new float[] {3e38f, Float.POSITIVE_INFINITY, Float.NaN}) {
        Tensor x = AbstractTensor.create(new float[] {far, -3e38f, 0, 1, 2, 3, 4, 5});
        float[] y = values(program.run(Map.of("x", x), false).get("y"));
        assertTrue(Float.isNaN(y[0]), Arrays.toString(y));
      }
      Tensor x = AbstractTensor.create(new float[] {1e-39f, -1e-39f, 0, 0, 0, 0, 0, 0});
      float[] y = values(program.run(Map.of("x", x), false).get("y"));
      assertEquals(1e-39f, y[0], 1e-41f);
      assertEquals(-1e-39f, y[1], 1e-41f);
    }
  }

  @Test
  void ofARangeThatIsFoundAllPasses() throws OrtException {
    NodeProto q =
        node("DynamicQuantizeLinear", "", List.of("x"), "q").toBuilder()
            .addOutput("step")
            .addOutput("zero")
            .build();
    NodeProto y = node("DequantizeLinear", "", List.of("q", "step", "zero"), "y");
    check(model(null, q, y), new float[] {0, 0.3f, -1.7f, 5, 1, 2, 3, 4}, 1, 1, 1, 1, 1, 1, 1, 1);
  }

  /** Other steps behind than before are no rounding: they are computed one by one, and no gradient passes. */
  @Test
  void otherStepsAreNoRounding() throws OrtException {
    OnnxModel model =
        model(
            DataType.UINT8,
            node("QuantizeLinear", "", List.of("x", "step", "zero"), "q"),
            node("DequantizeLinear", "", List.of("q", "other", "zero"), "y"));
    try (PointerScope scope = new PointerScope();
        Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      Tensor leaf =
          AbstractTensor.create(new float[] {1, 2, 3, 4, 5, 6, 7, 8}).requires_grad_(true);
      Tensor y = program.run(Map.of("x", leaf), false).get("y");
      assertArrayEquals(new float[] {4, 8, 12, 16, 20, 24, 28, 32}, values(y));
      assertEquals(false, y.requires_grad());
    }
  }
}
