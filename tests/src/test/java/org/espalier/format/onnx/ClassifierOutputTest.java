package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.line;
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
  /** Nodes behind z and g, one a line, and what is found behind them. */
  static Stream<Arguments> tails() {
    return Stream.of(
        tail(Form.LOGITS, "y", "y Identity z"),
        tail(Form.SIGMOID, "z", "y Sigmoid z"),
        tail(Form.SIGMOID, "z", "p Sigmoid z", "r Reshape p shape", "c Clip r", "y Squeeze c"),
        tail(Form.SIGMOID, "z", "n Neg z", "e Exp n", "d Add one e", "y Div one d"),
        tail(
            Form.SIGMOID,
            "z",
            "n Mul z minus",
            "e Exp n",
            "d Add e one",
            "r Reciprocal d",
            "y Identity r"),
        tail(Form.SIGMOID, "z", "n Sub zero z", "e Exp n", "d Add e one", "y Pow d minus"),
        tail(Form.SIGMOID, "z", "e Exp z", "d Add e one", "y Div e d"),
        // Half of one is no Sigmoid but made of one; exp(g) / (1 + exp(z)) and 1 / (2 + exp(-z))
        // are neither.
        tail(Form.OTHER, null, "e Exp z", "d Add e one", "p Div e d", "y Mul p half"),
        tail(Form.LOGITS, "y", "e Exp z", "f Exp g", "d Add e one", "y Div f d"),
        tail(Form.LOGITS, "y", "n Neg z", "e Exp n", "d Add half e", "y Div one d"),
        tail(Form.SOFTMAX, "z", "y Softmax z"),
        Arguments.of(Form.SOFTMAX, "z", List.of(line("y Softmax z", attribute("axis", 1)))),
        tail(Form.OTHER, null, "p Sigmoid z", "y Mul p half"),
        tail(Form.OTHER, null, "p Sigmoid z", "q Sigmoid g", "y Mean p q"),
        Arguments.of(
            Form.OTHER,
            null,
            List.of(line("p Softmax z"), line("y Gather p shape", attribute("axis", 1)))),
        tail(Form.OTHER, null, "y HardSigmoid z"),
        // A gate is no probability of a class, nor is what a logarithm makes of one.
        tail(Form.LOGITS, "y", "p Sigmoid z", "y Mul p g"),
        tail(Form.LOGITS, "y", "p Sigmoid z", "y Log p"),
        tail(Form.LOGITS, "y", "p Sigmoid z", "y MatMul p w"));
  }

  private static Arguments tail(Form form, String logits, String... lines) {
    return Arguments.of(form, logits, Stream.of(lines).map(l -> line(l)).toList());
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
