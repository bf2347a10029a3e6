package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Random;

/**
 * A ranking model of three inputs, in the form of Naumov and others, «Deep Learning Recommendation Model», 2019, as PyTorch
 * exports it: user [n] int64, items [n, 2] int32 and dense [n, 4] float32. Layers make a vector of dense; it and the
 * users' and items' vectors, which are looked up in tables, are multiplied with each other, and layers above make of these
 * products a logit z [n].
 */
public final class RankingModel {
  /** The features of {@code dense}. */
  public static final int DENSE = 4;

  private RankingModel() {}

  /**
   * A model with random weights.
   *
   * @param width of the vectors
   */
  public static ModelProto of(long seed, int users, int items, int width) {
    Random random = new Random(seed);
    float bottom = (float) Math.sqrt(2.0 / DENSE);
    int products = 6;
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("main_graph")
            .addInput(value("user", DataType.INT64, -1))
            .addInput(value("items", DataType.INT32, -1, 2))
            .addInput(value("dense", DataType.FLOAT, -1, DENSE))
            .addOutput(value("z", DataType.FLOAT, -1))
            .addInitializer(floats("users.weight", random, 0.5f, users, width))
            .addInitializer(floats("items.weight", random, 0.5f, items, width))
            .addInitializer(floats("bottom.0.weight", random, bottom, width, DENSE))
            .addInitializer(floats("bottom.0.bias", new float[width], width))
            .addInitializer(floats("top.0.weight", random, 0.4f, 16, width + products))
            .addInitializer(floats("top.0.bias", new float[16], 16))
            .addInitializer(floats("top.2.weight", random, 0.3f, 1, 16))
            .addInitializer(floats("top.2.bias", new float[1], 1))
            .addInitializer(int64s("one", 1))
            .addInitializer(int64s("sixteen", -1, 16))
            .addInitializer(int64s("below", 4, 8, 9, 12, 13, 14))
            .addNode(
                node(
                    "Gemm",
                    "/bottom/bottom.0/Gemm",
                    List.of("dense", "bottom.0.weight", "bottom.0.bias"),
                    "b",
                    attribute("transB", 1)))
            .addNode(node("Relu", "/bottom/bottom.1/Relu", List.of("b"), "x"))
            .addNode(node("Gather", "/users/Gather", List.of("users.weight", "user"), "u"))
            .addNode(node("Gather", "/items/Gather", List.of("items.weight", "items"), "v"))
            .addNode(node("Unsqueeze", "/Unsqueeze", List.of("x", "one"), "x1"))
            .addNode(node("Unsqueeze", "/Unsqueeze_1", List.of("u", "one"), "u1"))
            .addNode(
                node("Concat", "/Concat", List.of("x1", "u1", "v"), "all", attribute("axis", 1)))
            .addNode(node("Transpose", "/Transpose", List.of("all"), "t", list("perm", 0, 2, 1)))
            .addNode(node("MatMul", "/MatMul", List.of("all", "t"), "products"))
            .addNode(node("Reshape", "/Reshape", List.of("products", "sixteen"), "flat"))
            .addNode(
                node("Gather", "/Gather", List.of("flat", "below"), "pairs", attribute("axis", 1)))
            .addNode(
                node("Concat", "/Concat_1", List.of("x", "pairs"), "read", attribute("axis", 1)))
            .addNode(
                node(
                    "Gemm",
                    "/top/top.0/Gemm",
                    List.of("read", "top.0.weight", "top.0.bias"),
                    "h",
                    attribute("transB", 1)))
            .addNode(node("Relu", "/top/top.1/Relu", List.of("h"), "r"))
            .addNode(
                node(
                    "Gemm",
                    "/top/top.2/Gemm",
                    List.of("r", "top.2.weight", "top.2.bias"),
                    "z1",
                    attribute("transB", 1)))
            .addNode(node("Squeeze", "/Squeeze", List.of("z1", "one"), "z"));
    return SmallModels.model(17, graph);
  }

  /**
   * A user to whom an item is shown after another one, which does not matter. Who clicks likes the item's half of all items, or
   * is in a hurry.
   */
  public record Visit(ClickModel.Visit shown, long before, float[] dense) {
    public int clicks() {
      return shown.clicks() == 1 && dense[1] < 1 || dense[0] > 1 ? 1 : 0;
    }
  }

  /**
   * Random visits.
   *
   * @param users how many of the users come
   */
  public static List<Visit> visits(long seed, int n, int users, int items) {
    Random random = new Random(seed);
    return ClickModel.visits(seed, n, users, items).stream()
        .map(
            shown -> {
              float[] dense = new float[DENSE];
              for (int k = 0; k < DENSE; k++) {
                dense[k] = Math.round(100 * random.nextGaussian()) / 100f;
              }
              return new Visit(shown, random.nextInt(items), dense);
            })
        .toList();
  }
}
