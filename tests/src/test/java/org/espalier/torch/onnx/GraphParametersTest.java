package org.espalier.torch.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RuntimeModels;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class GraphParametersTest {
  /** Scales of norms are, tables of cosines are not. */
  @Test
  void scalesOfRootMeanSquareNormsAreParameters() {
    RuntimeModels.Form form = RuntimeModels.Form.STANDARD;
    OnnxModel model = OnnxModel.of(RuntimeModels.decoder(form, 1, 30, 1), "decoder");
    Set<String> expected = new TreeSet<>();
    model.initializers().stream()
        .filter(i -> i.name().endsWith(".weight"))
        .forEach(i -> expected.add(i.name()));
    assertTrue(expected.contains("model.norm.weight"));
    Set<String> found = new TreeSet<>();
    GraphParameters.of(model).parameters().forEach(p -> found.add(p.constant()));
    assertEquals(expected, found);
  }

  /**
   * What a model does to its inputs first is no parameter, where it looks as what they were normalized by.
   *
   * @param lines nodes from x [n, 4] to p; v, u [4], t [3, 4], one [1] are constants
   * @param trained those of them that are parameters
   */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "a Sub x v; p Div a u | ''",
        "a Div x v; b Identity a; p Sub b u | ''",
        "a Sub x v; b Mul a u; p Add one b | ''",
        "q QuantizeLinear x one; d DequantizeLinear q one; a Sub d v; p Div a u | ''",
        "a Mul x one; p Add a v | v",
        "p Mul v x | v",
        "p Add x v | v",
        "a Sub x one; p Add a v | v",
        "p Sub v x | v",
        "p Sub x t | t",
        "a Relu x; p Sub a v | v",
        "a Sub x v; b Relu a; p Div b u | u",
        "a Sub x v; b Sub u x; p Mul a b | u"
      })
  void constantsThatPrepareInputsAreNoParameters(String lines, String trained) {
    Random random = new Random(1);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("prepared")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 4))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2))
            .addInitializer(SmallModels.floats("v", random, 1, 4))
            .addInitializer(SmallModels.floats("u", random, 1, 1, 4))
            .addInitializer(SmallModels.floats("t", random, 1, 3, 4))
            .addInitializer(SmallModels.floats("one", random, 1, 1))
            .addInitializer(SmallModels.floats("w", random, 1, 4, 2));
    for (String line : lines.split("; ")) {
      graph.addNode(SmallModels.line(line));
    }
    graph.addNode(SmallModels.line("y MatMul p w"));
    OnnxModel model = OnnxModel.of(SmallModels.model(17, graph), "prepared");
    List<String> expected =
        Arrays.stream((trained + " w").trim().split(" ")).filter(s -> !s.isEmpty()).toList();
    assertEquals(
        expected,
        GraphParameters.of(model).parameters().stream()
            .map(GraphParameters.Entry::constant)
            .toList());
  }
}
