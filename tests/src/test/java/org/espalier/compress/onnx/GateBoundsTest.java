package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OrtException;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Where the image of a Conv is cut off, and that answers stay. */
class GateBoundsTest {
  private final Random random = new Random(5);

  /** x to 30 and more, both ways, through a Conv and a gate, to a second Conv. */
  private ModelProto model(String... gate) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, 1, 4, 8, 8))
            .addOutput(value("y", DataType.FLOAT, 1, 4, 8, 8))
            .addInitializer(floats("w", random, 6, 8, 4, 1, 1))
            .addInitializer(floats("v", random, 0.3f, 4, 8, 1, 1))
            .addInitializer(number("three", 3))
            .addInitializer(number("zero", 0))
            .addInitializer(number("half", 0.5f))
            .addInitializer(number("minus", -1))
            .addInitializer(number("six", 6))
            .addNode(node("Conv", "/a", List.of("x", "w"), "a"));
    for (String line : gate) {
      g.addNode(
          line.split(" ")[1].equals("HardSigmoid") ? line(line, real("alpha", 0.25f)) : line(line));
    }
    return SmallModels.model(14, g.addNode(node("Conv", "/y", List.of("h", "v"), "y")));
  }

  private TensorActivations example() throws OrtException {
    return new TensorActivations(List.of(Map.of("x", RuntimeRuns.normal(random, 1, 4, 8, 8))), 1);
  }

  private float least(ModelProto proto, double tolerance) throws OrtException {
    OnnxModel model = OnnxModel.of(proto, "test");
    TensorActivations source = example();
    OutputError error = new OutputError(OnnxModel.of(proto, "float"), source);
    StaticQuantizer quantizer = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    model.check();
    assertTrue(error.of(model) <= tolerance, "error " + error.of(model));
    ActivationRange range = quantizer.ranges(source, new Clipping.MinMax()).get("a");
    quantizer.setRanges(quantizer.ranges(source, new Clipping.MinMax()));
    assertTrue(error.of(quantizer.quantizedCopy(copy -> {})) < 0.05);
    return range.min();
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "h HardSwish a",
        "c HardSigmoid a;h Mul a c",
        "s Add a three;c Clip s zero six;p Mul c a;h Div p six",
        "s Add three a;c Clip s zero six;d Div c six;h Mul a d",
        "d Div a six;s Add d half;c Clip s zero;h Mul c a"
      })
  void cutsWhereAHardGateIsZero(String gate) throws OrtException {
    float expected = gate.contains("HardSigmoid") ? -2 : -3;
    assertEquals(expected, least(model(gate.split(";")), 1e-6), 0.2);
  }

  @Test
  void examplesReachFurther() throws OrtException {
    assertTrue(least(model("h Add a a"), 0) < -12);
  }

  @Test
  void cutsWhereSiluIsAsGoodAsZero() throws OrtException {
    assertEquals(-10, least(model("c Sigmoid a", "h Mul a c"), 1e-4), 0.3);
  }

  /** Something else reads the image or the gate, or the gate is 0 elsewhere. */
  @ParameterizedTest
  @CsvSource({
    "c Sigmoid a;p Mul a c;h Add p a",
    "c HardSigmoid a;p Mul a c;h Add p c",
    "n Mul a minus;c HardSigmoid n;h Mul a c",
    "n Mul a minus;s Add n three;c Clip s zero six;h Mul a c",
    "s Add a three;c Clip s half six;h Mul a c",
    "t Tanh a;c Sigmoid t;h Mul a c",
    "s Sub three a;c Clip s zero six;h Mul a c",
    "s Div six a;c Clip s zero six;h Mul a c",
  })
  void leavesTheRest(String gate) throws OrtException {
    OnnxModel model = OnnxModel.of(model(gate.split(";")), "test");
    GateBounds.apply(model);
    List<String> before = List.of(gate.split(";")).stream().map(l -> l.split(" ")[1]).toList();
    List<String> after = model.nodes().stream().map(NodeProto::getOpType).toList();
    assertEquals(before, after.subList(1, after.size() - 1));
  }

  @Test
  void leavesAnOutput() {
    ModelProto.Builder proto = model("c Sigmoid a", "h Mul a c").toBuilder();
    proto.getGraphBuilder().addOutput(value("a", DataType.FLOAT, 1, 8, 8, 8));
    OnnxModel model = OnnxModel.of(proto.build(), "test");
    GateBounds.apply(model);
    assertEquals(4, model.nodes().size());
  }
}
