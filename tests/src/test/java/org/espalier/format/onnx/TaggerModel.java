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
 * input_ids, attention_mask [n, t] → a layer over rows of a table for each token and the two before it, tanh → logits [n,
 * t, classes]. The weights are words, layer, head and bias.
 */
public final class TaggerModel {
  private TaggerModel() {}

  public static ModelProto of(long seed, int vocabulary, int width, int classes) {
    Random random = new Random(seed);
    float scale = (float) Math.sqrt(1.0 / width);
    return SmallModels.model(
        17,
        GraphProto.newBuilder()
            .setName("tagger")
            .addInput(value("input_ids", DataType.INT64, -1, -2))
            .addInput(value("attention_mask", DataType.INT64, -1, -2))
            .addInitializer(floats("words", random, 1, vocabulary, width))
            .addInitializer(floats("layer", random, scale, 3 * width, width))
            .addInitializer(floats("head", random, scale, width, classes))
            .addInitializer(floats("bias", random, scale, classes))
            .addInitializer(int64s("column", 0, -1, 1))
            .addInitializer(int64s("two", 0, 2, 0, 0, 0, 0))
            .addInitializer(int64s("begin", 0))
            .addInitializer(int64s("second", 1))
            .addInitializer(int64s("last", -1))
            .addInitializer(int64s("beforeLast", -2))
            .addInitializer(int64s("axis", 1))
            .addNode(line("found Gather words input_ids"))
            .addNode(line("there Cast attention_mask", attribute("to", DataType.FLOAT_VALUE)))
            .addNode(line("columns Reshape there column"))
            .addNode(line("read Mul found columns"))
            .addNode(line("shifted Pad read two"))
            .addNode(line("before2 Slice shifted begin beforeLast axis"))
            .addNode(line("before1 Slice shifted second last axis"))
            .addNode(line("context Concat read before1 before2", attribute("axis", 2)))
            .addNode(line("mixed MatMul context layer"))
            .addNode(line("bent Tanh mixed"))
            .addNode(line("product MatMul bent head"))
            .addNode(line("logits Add product bias"))
            .addOutput(value("logits", DataType.FLOAT, -1, -2, classes)));
  }
}
