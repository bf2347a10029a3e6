package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.choice;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.Float16Graph;
import org.espalier.format.onnx.GroupedDecoder;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.RuntimeModels;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.onnx.TaggerModel;
import org.espalier.format.onnx.TextClassifierModel;
import org.espalier.format.onnx.ValueTypes;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models of float16 run in ONNX Runtime and answer as the originals, with each value rounded between their nodes. */
class Float16ConverterTest {
  private static final int VOCABULARY = 60;
  private static final int WIDTH = 8;

  private static ActivationSource texts() {
    Random random = new Random(5);
    List<Tokens> tokens = new ArrayList<>();
    for (int length : new int[] {3, 7, 12}) {
      long[] ids = random.longs(length, 0, VOCABULARY).toArray();
      long[] mask = new long[length];
      Arrays.fill(mask, 1);
      tokens.add(new Tokens(ids, mask, new long[length], new int[length]));
    }
    return new TextActivations(1, tokens);
  }

  /** Vectors of some width, of numbers of about 1. */
  private static ActivationSource vectors(long... shape) {
    Random random = new Random(6);
    int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    List<float[]> values = new ArrayList<>();
    for (int e = 0; e < 5; e++) {
      float[] x = new float[n];
      for (int i = 0; i < n; i++) {
        x[i] = (float) random.nextGaussian();
      }
      values.add(x);
    }
    return new ExampleActivations(
        ExampleTensors.of(values, Arrays.stream(shape).boxed().toList()), 1);
  }

  private static Stream<Arguments> models() {
    Stream.Builder<Arguments> all = Stream.builder();
    all.add(Arguments.of("mlp", SmallModels.mlp(), vectors(8)));
    all.add(Arguments.of("cnn", SmallModels.cnn(), vectors(3, 16, 16)));
    all.add(Arguments.of("recurrent", SmallModels.recurrent(), vectors(3, 8)));
    all.add(Arguments.of("classifier", TextClassifierModel.of(1, VOCABULARY, WIDTH, 3), texts()));
    all.add(Arguments.of("tagger", TaggerModel.of(1, VOCABULARY, WIDTH, 3), texts()));
    all.add(Arguments.of("decoder", SmallDecoder.of(1, VOCABULARY, 16, 2), texts()));
    all.add(Arguments.of("tied", SmallDecoder.tied(1, VOCABULARY, 16, 2), texts()));
    all.add(Arguments.of("past", SmallDecoder.withPast(1, VOCABULARY, 16, 2), texts()));
    for (GroupedDecoder.Form form : GroupedDecoder.Form.values()) {
      all.add(Arguments.of("" + form, GroupedDecoder.of(form, 1, VOCABULARY, 64, 1), texts()));
    }
    for (RuntimeModels.Form form : RuntimeModels.Form.values()) {
      all.add(Arguments.of("" + form, RuntimeModels.decoder(form, 1, VOCABULARY, 1), texts()));
    }
    all.add(Arguments.of("fused", RuntimeModels.encoder(1, VOCABULARY, 1, false), texts()));
    all.add(Arguments.of("exported", RuntimeModels.exportedEncoder(1, VOCABULARY, 1), texts()));
    return all.build();
  }

  /** A converted model, and how far its outputs are from the original's with each value rounded. */
  private record Converted(OnnxModel model, double error) {
    static Converted of(ModelProto proto, ActivationSource source, boolean calibrated) {
      OnnxModel model = OnnxModel.of(proto, "model");
      OutputError error = new OutputError(model, source);
      Float16Converter converter = new Float16Converter(model, w -> true);
      if (calibrated) {
        converter.calibrate(source, error);
      }
      converter.apply();
      return new Converted(model, error.made(Float16Graph.rounding(model)).largest());
    }

    /** The types of what nodes of an operator give first. */
    List<DataType> types(String operator) {
      ValueTypes types = ValueTypes.of(model);
      return model.allNodes().stream()
          .filter(n -> n.getOpType().equals(operator))
          .map(n -> n.getOutputList().stream().filter(v -> !v.isEmpty()).findFirst().orElseThrow())
          .map(types::of)
          .toList();
    }
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("models")
  void modelsOfManyKindsAnswerAlike(String name, ModelProto proto, ActivationSource source) {
    for (boolean calibrated : new boolean[] {false, true}) {
      Converted converted = Converted.of(proto, source, calibrated);
      assertTrue(converted.error < 0.02, "calibrated: " + calibrated + ", " + converted.error);
      OnnxModel original = OnnxModel.of(proto, "model");
      assertEquals(types(original.inputs()), types(converted.model.inputs()));
      assertEquals(types(original.outputs()), types(converted.model.outputs()));
      for (String operator : List.of("MatMul", "Gemm", "Conv", "LSTM", "Attention")) {
        assertEquals(
            Set.of(),
            converted.types(operator).stream()
                .filter(type -> type != DataType.FLOAT16)
                .collect(Collectors.toSet()),
            operator);
      }
      double bytes = converted.model.initializerBytes();
      assertTrue(bytes < 0.62 * original.initializerBytes(), bytes + " bytes");
    }
  }

  /** The types of inputs or outputs; those of caches, which alone change, as they become. */
  private static List<String> types(List<ValueInfoProto> values) {
    return values.stream()
        .map(
            v -> {
              boolean cache = PastInput.isOne(v.getName()) || PastInput.isNext(v.getName());
              int type = v.getType().getTensorType().getElemType();
              return v.getName() + " " + (cache ? DataType.FLOAT16_VALUE : type);
            })
        .toList();
  }

  private static ModelProto graph(int opset, GraphProto.Builder graph) {
    return SmallModels.model(
        opset,
        graph
            .setName("graph")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(floats("w", new Random(3), 0.3f, WIDTH, WIDTH))
            .addOutput(value("y", DataType.FLOAT, -1, WIDTH)));
  }

  /** Numbers of 10⁶ in the middle, which calibration sees. */
  @Test
  void whatGoesBeyondFloat16Stays() {
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(number("thousand", 1000))
                .addInitializer(number("thousandth", 1e-3f))
                .addNode(line("h MatMul x w"))
                .addNode(line("a Mul h thousand"))
                .addNode(line("b Mul a thousand"))
                .addNode(line("c Mul b thousandth"))
                .addNode(line("d Mul c thousandth"))
                .addNode(line("y MatMul d w")));
    assertFalse(Converted.of(proto, vectors(WIDTH), false).error < 1);
    Converted seen = Converted.of(proto, vectors(WIDTH), true);
    assertTrue(seen.error < 0.01, "error " + seen.error);
    assertEquals(
        List.of(DataType.FLOAT16, DataType.FLOAT, DataType.FLOAT, DataType.FLOAT16),
        seen.types("Mul"));
    assertEquals(List.of(DataType.FLOAT16, DataType.FLOAT16), seen.types("MatMul"));
  }

  /** What stands for −∞ in masks, written three ways; float16's own −∞ times 0 would be NaN. */
  @ParameterizedTest
  @ValueSource(strings = {"Where", "Mul", "ConstantOfShape"})
  void masksAreNumbersOfFloat16(String how) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInitializer(number("zero", 0))
            .addInitializer(number("lowest", -Float.MAX_VALUE))
            .addInitializer(int64s("shape", 1))
            .addNode(line("h MatMul x w"))
            .addNode(line("dark Less x zero"))
            .addNode(line("ones Cast dark", attribute("to", DataType.FLOAT_VALUE)));
    AttributeProto.Builder lowest =
        AttributeProto.newBuilder().setName("value").setType(AttributeType.TENSOR);
    lowest.setT(OnnxInitializer.floats("", new long[] {1}, -Float.MAX_VALUE).message());
    switch (how) {
      case "Where" -> g.addNode(line("masked Where dark lowest h"));
      case "Mul" -> g.addNode(line("m Mul ones lowest")).addNode(line("masked Add h m"));
      default ->
          g.addNode(line("full ConstantOfShape shape", lowest.build()))
              .addNode(line("m Mul ones full"))
              .addNode(line("masked Add h m"));
    }
    g.addNode(line("s Softmax masked")).addNode(line("y MatMul s w"));
    for (boolean calibrated : new boolean[] {false, true}) {
      Converted converted = Converted.of(graph(13, g.clone()), vectors(WIDTH), calibrated);
      assertTrue(converted.error < 0.01, "error " + converted.error);
      assertEquals(List.of(DataType.FLOAT16), converted.types("Softmax"));
    }
  }

  /** A mask that is no mask: what it is added to is what comes out. */
  @Test
  void aConstantThatIsNotAMaskStays() {
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(number("low", -3e6f))
                .addNode(line("h MatMul x w"))
                .addNode(line("y Add h low")));
    Converted seen = Converted.of(proto, vectors(WIDTH), true);
    assertTrue(seen.error < 1e-4, "error " + seen.error);
    assertEquals(List.of(DataType.FLOAT), seen.types("Add"));
  }

  /** Positions of some thousands times a frequency, as angles; and numbers that become indices. */
  @Test
  void anglesAndIndicesStayExact() {
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(int64s("position", 4097))
                .addInitializer(number("frequency", 1.0001f))
                .addInitializer(number("half", 0.5f))
                .addInitializer(floats("table", new Random(4), 1, 2100, WIDTH))
                .addNode(line("real Cast position", attribute("to", DataType.FLOAT_VALUE)))
                .addNode(line("angle Mul real frequency"))
                .addNode(line("sine Sin angle"))
                .addNode(line("place Mul real half"))
                .addNode(line("index Cast place", attribute("to", DataType.INT64_VALUE)))
                .addNode(line("row Gather table index"))
                .addNode(line("h MatMul x w"))
                .addNode(line("turned Mul h sine"))
                .addNode(line("y Add turned row")));
    Converted converted = Converted.of(proto, vectors(WIDTH), false);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    assertEquals(List.of(DataType.FLOAT), converted.types("Sin"));
    assertEquals(List.of(DataType.FLOAT16), converted.types("Gather"));
  }

  /** The norm of the Llama kind, of numbers of some hundreds, with a small ε. */
  @Test
  void sumsOfSquaresStay() {
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(number("hundreds", 700))
                .addInitializer(number("two", 2))
                .addInitializer(number("epsilon", 1e-6f))
                .addNode(line("m MatMul x w"))
                .addNode(line("h Mul m hundreds"))
                .addNode(line("square Pow h two"))
                .addNode(line("mean ReduceMean square", list("axes", -1)))
                .addNode(line("sum Add mean epsilon"))
                .addNode(line("root Sqrt sum"))
                .addNode(line("n Div h root"))
                .addNode(line("y MatMul n w")));
    Converted converted = Converted.of(proto, vectors(WIDTH), false);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    assertEquals(List.of(DataType.FLOAT), converted.types("Sqrt"));
    assertEquals(List.of(DataType.FLOAT16), converted.types("Div"));
  }

  /** Branches are converted too, and see what is around them; what a branch keeps in float32 is cast in it. */
  @Test
  void branchesAreConverted() {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(floats("inner", new Random(8), 0.3f, WIDTH, WIDTH))
            .addNode(line("p MatMul h inner"))
            .addNode(line("q Sin p"))
            .addNode(line("z Add q h"))
            .addOutput(value("z", DataType.FLOAT, -1, WIDTH));
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(number("zero", 0))
                .addNode(line("h MatMul x w"))
                .addNode(line("top ReduceMax h", attribute("keepdims", 0)))
                .addNode(line("up Greater top zero"))
                .addNode(choice("/choice", "up", "chosen", branch))
                .addNode(line("y MatMul chosen w")));
    Converted converted = Converted.of(proto, vectors(WIDTH), true);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    assertEquals(4, converted.types("MatMul").size());
    assertEquals(Set.of(DataType.FLOAT16), Set.copyOf(converted.types("MatMul")));
    assertEquals(Set.of(DataType.FLOAT), Set.copyOf(converted.types("Sin")));
    assertEquals(Set.of(DataType.FLOAT16), Set.copyOf(converted.types("If")));
  }

  /** A body is fed and gives float16; one with a value of no known type stays whole. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void bodiesAreConverted(boolean sequences) {
    GraphProto.Builder body =
        GraphProto.newBuilder()
            .setName("body")
            .addInput(value("i", DataType.INT64))
            .addInput(value("on", DataType.BOOL))
            .addInput(value("before", DataType.FLOAT, -1, WIDTH))
            .addNode(line("go Identity on"))
            .addNode(line("p MatMul before w"));
    if (sequences) {
      body.addNode(line("list SequenceConstruct p")).addNode(line("q SequenceAt list i"));
    } else {
      body.addNode(line("q Tanh p"));
    }
    body.addNode(line("after Add q h"))
        .addOutput(value("go", DataType.BOOL))
        .addOutput(value("after", DataType.FLOAT, -1, WIDTH));
    NodeProto.Builder loop = line("z Loop trips always h").toBuilder();
    loop.addAttribute(
        AttributeProto.newBuilder().setName("body").setType(AttributeType.GRAPH).setG(body));
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(OnnxInitializer.int64s("trips", new long[0], 1).message())
                .addInitializer(
                    SmallModels.tensor("always", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})))
                .addNode(line("h MatMul x w"))
                .addNode(loop)
                .addNode(line("y MatMul z w")));
    Converted converted = Converted.of(proto, vectors(WIDTH), true);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    assertEquals(List.of(DataType.FLOAT16), converted.types("Loop"));
  }

  @Test
  void theScalesOfImagesStay() {
    ModelProto proto =
        SmallModels.model(
            13,
            GraphProto.newBuilder()
                .setName("images")
                .addInput(value("x", DataType.FLOAT, -1, 2, 4, 4))
                .addInitializer(floats("w", new Random(3), 0.3f, 2, 2, 1, 1))
                .addInitializer(floats("roi", new float[0], 0))
                .addInitializer(floats("scales", new float[] {1, 1, 2, 2}, 4))
                .addNode(line("h Conv x w"))
                .addNode(line("r Resize h roi scales"))
                .addNode(line("y Conv r w"))
                .addOutput(value("y", DataType.FLOAT, -1, 2, 8, 8)));
    Converted converted = Converted.of(proto, vectors(2, 4, 4), true);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    assertEquals(DataType.FLOAT, converted.model.initializer("scales").type());
    assertEquals(List.of(DataType.FLOAT16), converted.types("Resize"));
  }

  @Test
  void weightsThatAreNotChosenStay() {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    List<String> names = OnnxWeights.of(model).stream().map(OnnxWeight::name).toList();
    Float16Converter converter = new Float16Converter(model, w -> !w.name().equals(names.get(0)));
    assertEquals(names.subList(1, 2), converter.names());
    assertEquals(Map.of(names.get(0), "it is not chosen"), converter.skipped());
    converter.apply();
    assertEquals(DataType.FLOAT, model.initializer("w").type());
    assertEquals(DataType.FLOAT16, model.initializer("w2").type());
    assertThrows(IllegalStateException.class, converter::apply);
  }

  @Test
  void modelsWithNothingToConvertAreRefused() {
    OnnxModel half = OnnxModel.of(HalfModels.of(SmallModels.mlp(), DataType.FLOAT16), "half");
    String none =
        assertThrows(InputException.class, () -> new Float16Converter(half, w -> true))
            .getMessage();
    assertTrue(none.contains("half has no weights"), none);
    OnnxModel int8 = OnnxModel.of(SmallModels.perceptron(new Random(1), 8, 16, 4, "y"), "int8");
    new DynamicQuantizer(int8, DynamicQuantizer.Options.defaults()).apply();
    String integer =
        assertThrows(InputException.class, () -> new Float16Converter(int8, w -> true))
            .getMessage();
    assertTrue(integer.contains("is int8 already, with"), integer);
  }

  /** Weights of 4 bits stay as they are, with scales and activations of float16. */
  @Test
  void weightsOfFourBitsAreMultipliedInFloat16() {
    OnnxModel model = OnnxModel.of(SmallModels.perceptron(new Random(1), 64, 64, 4, "y"), "int4");
    new BlockQuantizer(model, BlockQuantizer.Options.of(4)).apply();
    Converted converted = Converted.of(model.toProto(), vectors(64), true);
    assertTrue(converted.error < 0.02, "error " + converted.error);
    assertEquals(List.of(DataType.FLOAT16, DataType.FLOAT16), converted.types("MatMulNBits"));
  }
}
