package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.Random;

/**
 * input_ids, attention_mask [n, t] → a layer over rows of a table, tanh, the mean over tokens → logits [n, outputs]. The
 * weights are words, layer, head and bias.
 */
public final class TextClassifierModel {
  private TextClassifierModel() {}

  public static ModelProto of(long seed, int vocabulary, int width, int outputs) {
    Random random = new Random(seed);
    float scale = (float) Math.sqrt(1.0 / width);
    return SmallModels.model(
        17,
        GraphProto.newBuilder()
            .setName("classifier")
            .addInput(value("input_ids", DataType.INT64, -1, -2))
            .addInput(value("attention_mask", DataType.INT64, -1, -2))
            .addInitializer(floats("words", random, 1, vocabulary, width))
            .addInitializer(floats("layer", random, scale, width, width))
            .addInitializer(floats("head", random, scale, width, outputs))
            .addInitializer(floats("bias", random, scale, outputs))
            .addInitializer(int64s("row", 0, 1, -1))
            .addInitializer(int64s("column", 0, -1, 1))
            .addInitializer(int64s("flat", 0, -1))
            .addNode(line("found Gather words input_ids"))
            .addNode(line("mixed MatMul found layer"))
            .addNode(line("bent Tanh mixed"))
            .addNode(line("there Cast attention_mask", attribute("to", DataType.FLOAT_VALUE)))
            .addNode(line("rows Reshape there row"))
            .addNode(line("columns Reshape there column"))
            .addNode(line("sums MatMul rows bent"))
            .addNode(line("counts MatMul rows columns"))
            .addNode(line("means Div sums counts"))
            .addNode(line("pooled Reshape means flat"))
            .addNode(line("product MatMul pooled head"))
            .addNode(line("logits Add product bias"))
            .addOutput(value("logits", DataType.FLOAT, -1, outputs)));
  }
}
