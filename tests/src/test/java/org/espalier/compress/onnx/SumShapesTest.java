package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class SumShapesTest {
  private static final String[] SPELLED = {
    "m ReduceMean s",
    "d Sub s m",
    "p Pow d two",
    "v ReduceMean p",
    "e Add v tiny",
    "r Sqrt e",
    "q Div d r",
    "g Mul gamma q",
    "n Add g beta"
  };

  /** x [n, 3, 8], of which nodes make s, and of that the norm n and y. */
  private static ModelProto model(String... lines) {
    Random random = new Random(3);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("norm")
            .addInput(value("x", DataType.FLOAT, -1, 3, 8))
            .addInitializer(floats("gamma", random, 1, 8))
            .addInitializer(floats("beta", random, 1, 8))
            .addInitializer(floats("w", random, 1, 8, 8))
            .addInitializer(floats("row", random, 1, 3, 8))
            .addInitializer(number("two", 2))
            .addInitializer(number("tiny", 1e-3f))
            .addOutput(value("y", DataType.FLOAT, -1, 3, 8));
    for (String text : lines) {
      NodeProto n = line(text);
      graph.addNode(
          n.getOpType().equals("ReduceMean")
              ? line(text, list("axes", -1), attribute("keepdims", 1))
              : n);
    }
    return SmallModels.model(17, graph);
  }

  private static String[] lines(String[] middle, String... around) {
    List<String> all = new ArrayList<>(List.of(around).subList(0, around.length - 1));
    all.addAll(List.of(middle));
    all.add(around[around.length - 1]);
    return all.toArray(String[]::new);
  }

  private static float[] run(OnnxModel model) throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    float[] x = new float[2 * 3 * 8];
    Random random = new Random(4);
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian();
    }
    try (OrtSession session = environment.createSession(model.toBuffer());
        OnnxTensor t =
            OnnxTensor.createTensor(environment, FloatBuffer.wrap(x), new long[] {2, 3, 8});
        OrtSession.Result r = session.run(Map.of("x", t))) {
      FloatBuffer y = ((OnnxTensor) r.get(0)).getFloatBuffer();
      float[] values = new float[y.remaining()];
      y.get(values);
      return values;
    }
  }

  /** What is said of the shapes of values, in a model whose answers stay. */
  private static Map<String, String> said(ModelProto proto) throws OrtException {
    OnnxModel model = OnnxModel.of(proto, "norm");
    SumShapes.say(model);
    model.check();
    assertArrayEquals(run(OnnxModel.of(proto, "norm")), run(model), 2e-6f);
    return said(model);
  }

  private static Map<String, String> said(OnnxModel model) {
    Map<String, String> said = new TreeMap<>();
    model
        .toProto()
        .getGraph()
        .getValueInfoList()
        .forEach(
            v ->
                said.put(
                    v.getName(),
                    v.getType().getTensorType().getShape().getDimList().stream()
                        .map(d -> d.hasDimValue() ? "" + d.getDimValue() : d.getDimParam())
                        .collect(Collectors.joining(" "))));
    return said;
  }

  @Test
  void operandsBeforeNormsGetTheirShape() throws OrtException {
    String[] spelled = lines(SPELLED, "a MatMul x w", "b Tanh x", "s Add a b", "y Relu n");
    String name = said(model(spelled)).get("a").split(" ")[0];
    assertEquals(Map.of("a", name + " 3 8", "b", name + " 3 8"), said(model(spelled)));
    String norm = "n LayerNormalization s gamma beta";
    // x is an input, whose shape the model says.
    assertEquals(
        Map.of("a", name + " 3 8"), said(model("a MatMul x w", "s Add x a", norm, "y Add n s")));
  }

  @ParameterizedTest
  @CsvSource({
    "s Add a x, n LayerNormalization s gamma beta, 1",
    "s Add x row, n LayerNormalization s gamma beta, 0",
    "s Mul a x, n LayerNormalization s gamma beta, 0",
    "s Add a x, n SimplifiedLayerNormalization s gamma, 0"
  })
  void nothingIsSaidOfOthers(String sum, String norm, int expected) throws OrtException {
    assertEquals(expected, said(model("a MatMul x w", sum, norm, "y Relu n")).size());
  }

  /** Shapes come with a type, which of other norms is another. */
  @Test
  void nothingIsSaidOfDoubles() throws OrtException {
    ModelProto.Builder model =
        model(
            "c Cast x",
            "a Tanh c",
            "s Add a c",
            "n LayerNormalization s gamma64 beta64",
            "y Cast n")
            .toBuilder();
    for (int i : new int[] {0, 4}) {
      model
          .getGraphBuilder()
          .getNodeBuilder(i)
          .addAttribute(attribute("to", (i == 0 ? DataType.DOUBLE : DataType.FLOAT).getNumber()));
    }
    ByteBuffer ones = ByteBuffer.allocate(64).order(ByteOrder.LITTLE_ENDIAN);
    ones.asDoubleBuffer().put(new double[] {1, 1, 1, 1, 1, 1, 1, 1});
    for (String name : List.of("gamma64", "beta64")) {
      model
          .getGraphBuilder()
          .addInitializer(SmallModels.tensor(name, DataType.DOUBLE, ones.duplicate(), 8));
    }
    assertEquals(Map.of(), said(model.build()));
  }

  /** What may be stretched has another shape. */
  @Test
  void nothingIsSaidOfOtherShapes() throws OrtException {
    String norm = "n LayerNormalization s gamma beta";
    assertEquals(Map.of(), said(model("a ReduceMean x", "s Add x a", norm, "y Relu n")));
  }

  /** Lengths of two inputs are equal where they have one name. */
  @ParameterizedTest
  @CsvSource({"-1, 2", "-2, 0"})
  void namesOfLengthsTell(long length, int expected) {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("two")
            .addInput(value("x", DataType.FLOAT, -1, 3, 8))
            .addInput(value("z", DataType.FLOAT, length, 3, 8))
            .addInitializer(floats("gamma", new Random(1), 1, 8))
            .addInitializer(floats("beta", new Random(2), 1, 8))
            .addNode(line("a Tanh x"))
            .addNode(line("b Tanh z"))
            .addNode(line("s Add a b"))
            .addNode(line("y LayerNormalization s gamma beta"))
            .addOutput(value("y", DataType.FLOAT, -1, 3, 8));
    OnnxModel model = OnnxModel.of(SmallModels.model(17, graph), "two");
    SumShapes.say(model);
    assertEquals(expected, said(model).size());
  }
}
