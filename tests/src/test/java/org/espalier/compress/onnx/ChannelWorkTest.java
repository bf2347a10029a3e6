package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.compress.onnx.channels.ChannelSearch;
import org.espalier.compress.onnx.channels.HiddenChannels;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;

class ChannelWorkTest {
  /** A 3 x 3 Conv of stride 2, a depthwise one, one of 1 x 1 into a second set, which a product reads. */
  @Test
  void productsAndWhatLiesBetweenThemAreCounted() throws OrtException {
    Random random = new Random(1);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("images")
            .addInput(value("x", DataType.FLOAT, 1, 3, 8, 8))
            .addOutput(value("y", DataType.FLOAT, 1, 5))
            .addInitializer(floats("conv1", random, 0.4f, 16, 3, 3, 3))
            .addInitializer(floats("deep", random, 0.4f, 16, 1, 3, 3))
            .addInitializer(floats("point", random, 0.2f, 24, 16, 1, 1))
            .addInitializer(floats("fc", random, 0.2f, 24, 5))
            .addNode(
                line("a Conv x conv1", attribute("pads", 1, 1, 1, 1), attribute("strides", 2, 2)))
            .addNode(line("d Conv a deep", attribute("pads", 1, 1, 1, 1), attribute("group", 16)))
            .addNode(line("p Conv d point"))
            .addNode(line("g GlobalAveragePool p"))
            .addNode(line("f Flatten g"))
            .addNode(line("y MatMul f fc"));
    OnnxModel model = OnnxModel.of(SmallModels.model(16, g), "model");
    float[] x = new float[192];
    TensorActivations one =
        new TensorActivations(
            List.of(
                Map.of(
                    "x",
                    OnnxTensor.createTensor(
                        OrtEnvironment.getEnvironment(),
                        FloatBuffer.wrap(x),
                        new long[] {1, 3, 8, 8}))),
            1);
    List<HiddenChannels> sets = new ChannelSearch(model, false).all();
    assertEquals(List.of(16, 24), sets.stream().map(HiddenChannels::size).toList());
    ChannelWork work = new ChannelWork(model, sets, one);
    for (int[] counts : new int[][] {{16, 24}, {8, 24}, {16, 4}, {5, 7}}) {
      long a = counts[0];
      long b = counts[1];
      long products = 16 * 27 * a + 16 * 9 * a + 16 * a * b + 5 * b;
      long between = 2 * 16 * a + (16 + 1 + 1) * b;
      assertEquals(products + 16 * between, work.of(counts), 1e-6);
    }
  }
}
