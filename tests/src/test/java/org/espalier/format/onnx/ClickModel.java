package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;

/**
 * A model that says whether a user clicks on an item: ids [n, 2] int64, a user and an item, to a logit z [n, 1] = (u ∘
 * v) · head + bias, where u and v are looked up in the tables users and items. What it knows it has in the tables: with
 * random ones no head is better than chance.
 */
public final class ClickModel {
  private ClickModel() {}

  /** A model with random tables. */
  public static ModelProto of(long seed, int users, int items, int width) {
    return SmallModels.model(13, graph(seed, users, items, width));
  }

  /** The graph of the model, for more nodes. */
  public static GraphProto.Builder graph(long seed, int users, int items, int width) {
    Random random = new Random(seed);
    return GraphProto.newBuilder()
        .setName("clicks")
        .addInput(value("ids", DataType.INT64, -1, 2))
        .addInitializer(floats("users", random, 0.3f, users, width))
        .addInitializer(floats("items", random, 0.3f, items, width))
        .addInitializer(floats("head", random, 0.5f, width, 1))
        .addInitializer(floats("bias", new float[1], 1))
        .addInitializer(OnnxInitializer.int64s("first", new long[0], 0).message())
        .addInitializer(OnnxInitializer.int64s("second", new long[0], 1).message())
        .addNode(node("Gather", "", List.of("ids", "first"), "user", attribute("axis", 1)))
        .addNode(node("Gather", "", List.of("ids", "second"), "item", attribute("axis", 1)))
        .addNode(node("Gather", "/users/Gather", List.of("users", "user"), "u"))
        .addNode(node("Gather", "/items/Gather", List.of("items", "item"), "v"))
        .addNode(node("Mul", "/Mul", List.of("u", "v"), "both"))
        .addNode(node("MatMul", "/head/MatMul", List.of("both", "head"), "p"))
        .addNode(node("Add", "/head/Add", List.of("p", "bias"), "z"))
        .addOutput(value("z", DataType.FLOAT, -1, 1));
  }

  /** A visit, whose user clicks where item and user are of the same half of their kinds. */
  public record Visit(long user, long item) {
    public int clicks() {
      return half(user) == half(item) ? 1 : 0;
    }

    private static long half(long id) {
      return (id * 2_654_435_761L >> 7) & 1;
    }
  }

  /**
   * Random visits.
   *
   * @param users how many of the users come
   */
  public static List<Visit> visits(long seed, int n, int users, int items) {
    Random random = new Random(seed);
    return Stream.generate(() -> new Visit(random.nextInt(users), random.nextInt(items)))
        .limit(n)
        .toList();
  }
}
