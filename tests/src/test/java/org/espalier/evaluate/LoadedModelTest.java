package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.Map;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Models that are given to ONNX Runtime in one message and in parts. */
class LoadedModelTest {
  private static final int WIDTH = 192;

  @TempDir Path folder;

  private static OnnxModel model() {
    Random random = new Random(1);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("wide")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, WIDTH))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, WIDTH))
            .addInitializer(SmallModels.floats("w", random, 0.1f, WIDTH, WIDTH))
            .addInitializer(SmallModels.floats("b", random, 0.1f, WIDTH))
            .addInitializer(SmallModels.floats("v", random, 0.1f, WIDTH, WIDTH))
            .addNode(SmallModels.line("h MatMul x w"))
            .addNode(SmallModels.line("i Add h b"))
            .addNode(SmallModels.line("r Relu i"))
            .addNode(SmallModels.line("t Transpose v"))
            .addNode(SmallModels.line("y MatMul r t"));
    return OnnxModel.of(SmallModels.model(17, graph), "wide");
  }

  /**
   * @param most bytes of one message
   */
  private static float[] run(OnnxModel model, long most) throws OrtException {
    Random random = new Random(2);
    float[] x = new float[2 * WIDTH];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian();
    }
    try (LoadedModel loaded = LoadedModel.of(model, 1, most)) {
      System.gc(); // the session reads memory that nobody else may have a reference to
      try (OnnxTensor input =
              OnnxTensor.createTensor(
                  OnnxRuntime.environment(), FloatBuffer.wrap(x), new long[] {2, WIDTH});
          OrtSession.Result result = loaded.session().run(Map.of("x", input))) {
        float[] y = new float[x.length];
        ((OnnxTensor) result.get(0)).getFloatBuffer().get(y);
        return y;
      }
    }
  }

  /** Of weights of floats and of integers; mapped from a file where the model was read from one. */
  @Test
  void partsAreTheSameModel() throws OrtException {
    OnnxModel whole = model();
    Path file = folder.resolve("wide.onnx");
    whole.write(file);
    float[] expected = run(whole, Long.MAX_VALUE);
    assertArrayEquals(expected, run(whole, 0));
    assertArrayEquals(expected, run(OnnxModel.read(file), 0));
    OnnxModel.Parts parts = whole.toParts(i -> i.byteLength() >= 1 << 16);
    assertEquals(2, parts.tensors().size());
    assertTrue(parts.message().remaining() < 4096, parts.message() + "");

    OnnxModel integers = model();
    new DynamicQuantizer(integers, DynamicQuantizer.Options.defaults()).apply();
    assertArrayEquals(run(integers, Long.MAX_VALUE), run(integers, 0));
  }

  @Test
  void whatTheRuntimeRefusesIsTold() {
    OnnxModel model = model();
    model.replaceConstant(
        OnnxInitializer.floats("w", new long[] {WIDTH / 2, WIDTH * 2}, new float[WIDTH * WIDTH]));
    for (long most : new long[] {0, Long.MAX_VALUE}) {
      assertThrows(InputException.class, () -> run(model, most));
    }
  }
}
