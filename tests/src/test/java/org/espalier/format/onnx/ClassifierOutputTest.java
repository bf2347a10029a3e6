package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.espalier.format.onnx.ClassifierOutput.Form;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** What is found behind the output y of graphs that begin with two logits, z and g, of x. */
class ClassifierOutputTest {
  static Stream<Arguments> tails() {
    NodeProto sigmoid = node("Sigmoid", "", List.of("z"), "p");
    NodeProto other = node("Sigmoid", "", List.of("g"), "q");
    return Stream.of(
        Arguments.of(Form.LOGITS, "y", List.of(node("Identity", "", List.of("z"), "y"))),
        Arguments.of(Form.SIGMOID, "z", List.of(node("Sigmoid", "", List.of("z"), "y"))),
        Arguments.of(
            Form.SIGMOID,
            "z",
            List.of(
                sigmoid,
                node("Reshape", "", List.of("p", "shape"), "r"),
                node("Clip", "", List.of("r"), "c"),
                node("Squeeze", "", List.of("c"), "y"))),
        Arguments.of(
            Form.SIGMOID,
            "z",
            List.of(
                node("Neg", "", List.of("z"), "n"),
                node("Exp", "", List.of("n"), "e"),
                node("Add", "", List.of("one", "e"), "d"),
                node("Div", "", List.of("one", "d"), "y"))),
        Arguments.of(
            Form.SIGMOID,
            "z",
            List.of(
                node("Mul", "", List.of("z", "minus"), "n"),
                node("Exp", "", List.of("n"), "e"),
                node("Add", "", List.of("e", "one"), "d"),
                node("Reciprocal", "", List.of("d"), "r"),
                node("Identity", "", List.of("r"), "y"))),
        Arguments.of(
            Form.SIGMOID,
            "z",
            List.of(
                node("Sub", "", List.of("zero", "z"), "n"),
                node("Exp", "", List.of("n"), "e"),
                node("Add", "", List.of("e", "one"), "d"),
                node("Pow", "", List.of("d", "minus"), "y"))),
        Arguments.of(
            Form.SIGMOID,
            "z",
            List.of(
                node("Exp", "", List.of("z"), "e"),
                node("Add", "", List.of("e", "one"), "d"),
                node("Div", "", List.of("e", "d"), "y"))),
        // Half of one is no Sigmoid but made of one; exp(g) / (1 + exp(z)) and 1 / (2 + exp(-z))
        // are neither.
        Arguments.of(
            Form.OTHER,
            null,
            List.of(
                node("Exp", "", List.of("z"), "e"),
                node("Add", "", List.of("e", "one"), "d"),
                node("Div", "", List.of("e", "d"), "p"),
                node("Mul", "", List.of("p", "half"), "y"))),
        Arguments.of(
            Form.LOGITS,
            "y",
            List.of(
                node("Exp", "", List.of("z"), "e"),
                node("Exp", "", List.of("g"), "f"),
                node("Add", "", List.of("e", "one"), "d"),
                node("Div", "", List.of("f", "d"), "y"))),
        Arguments.of(
            Form.LOGITS,
            "y",
            List.of(
                node("Neg", "", List.of("z"), "n"),
                node("Exp", "", List.of("n"), "e"),
                node("Add", "", List.of("half", "e"), "d"),
                node("Div", "", List.of("one", "d"), "y"))),
        Arguments.of(Form.SOFTMAX, "z", List.of(node("Softmax", "", List.of("z"), "y"))),
        Arguments.of(
            Form.SOFTMAX,
            "z",
            List.of(node("Softmax", "", List.of("z"), "y", attribute("axis", 1)))),
        Arguments.of(
            Form.OTHER, null, List.of(sigmoid, node("Mul", "", List.of("p", "half"), "y"))),
        Arguments.of(
            Form.OTHER, null, List.of(sigmoid, other, node("Mean", "", List.of("p", "q"), "y"))),
        Arguments.of(
            Form.OTHER,
            null,
            List.of(
                node("Softmax", "", List.of("z"), "p"),
                node("Gather", "", List.of("p", "shape"), "y", attribute("axis", 1)))),
        Arguments.of(Form.OTHER, null, List.of(node("HardSigmoid", "", List.of("z"), "y"))),
        // A gate is no probability of a class, nor is what a logarithm makes of one.
        Arguments.of(Form.LOGITS, "y", List.of(sigmoid, node("Mul", "", List.of("p", "g"), "y"))),
        Arguments.of(Form.LOGITS, "y", List.of(sigmoid, node("Log", "", List.of("p"), "y"))),
        Arguments.of(
            Form.LOGITS, "y", List.of(sigmoid, node("MatMul", "", List.of("p", "w"), "y"))));
  }

  @ParameterizedTest
  @MethodSource("tails")
  void logitsAreFoundBehindWhatEndsTheGraph(Form form, String logits, List<NodeProto> tail) {
    Random random = new Random(1);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, -1, 3))
            .addInitializer(SmallModels.floats("w", random, 1, 3, 3))
            .addInitializer(SmallModels.floats("half", random, 1, 1))
            .addInitializer(OnnxInitializer.floats("one", new long[0], 1).message())
            .addInitializer(OnnxInitializer.floats("zero", new long[0], 0).message())
            .addInitializer(OnnxInitializer.floats("minus", new long[] {1}, -1).message())
            .addInitializer(OnnxInitializer.int64s("shape", new long[] {1}, 1).message())
            .addNode(node("MatMul", "", List.of("x", "w"), "z"))
            .addNode(node("Relu", "", List.of("z"), "g"))
            .addAllNode(tail)
            .addOutput(value("y", DataType.FLOAT, -1, 3));
    ClassifierOutput found = ClassifierOutput.of(OnnxModel.of(SmallModels.model(13, g), "g"));
    assertEquals("y", found.output());
    assertEquals(form, found.form());
    assertEquals(logits, found.logits());
  }

  /** Where a Softmax names no axis, its operator set says which it is. */
  @ParameterizedTest
  @CsvSource({"12, , 1", "13, , -1", "12, 2, 2", "13, 0, 0"})
  void theAxisOfASoftmaxIsFound(int opset, Long named, long axis) {
    NodeProto softmax =
        named == null
            ? node("Softmax", "", List.of("z"), "y")
            : node("Softmax", "", List.of("z"), "y", attribute("axis", named));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("z", DataType.FLOAT, -1, 3, 4))
            .addNode(softmax)
            .addOutput(value("y", DataType.FLOAT, -1, 3, 4));
    OnnxModel model = OnnxModel.of(SmallModels.model(opset, g), "g");
    assertEquals(new ClassifierOutput("y", Form.SOFTMAX, "z", axis), ClassifierOutput.of(model));
  }
}
