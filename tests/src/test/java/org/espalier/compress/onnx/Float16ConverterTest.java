package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.choice;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.text;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.Float16Graph;
import org.espalier.format.onnx.GroupedDecoder;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.MergedDecoder;
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
    return vectors(1f, shape);
  }

  private static ActivationSource vectors(float deviation, long... shape) {
    Random random = new Random(6);
    int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    List<float[]> values = new ArrayList<>();
    for (int e = 0; e < 5; e++) {
      float[] x = new float[n];
      for (int i = 0; i < n; i++) {
        x[i] = deviation * (float) random.nextGaussian();
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
    ModelProto past = SmallDecoder.withPast(1, VOCABULARY, 16, 2);
    all.add(Arguments.of("past", past, texts()));
    all.add(Arguments.of("merged", MergedDecoder.of(past), texts()));
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
      assertEquals(
          List.of(),
          OnnxWeights.of(converted.model).stream()
              .filter(w -> converted.model.constant(w.value()).type() != DataType.FLOAT16)
              .map(OnnxWeight::name)
              .toList());
      assertFalse(converted.types("Attention").contains(DataType.FLOAT));
      double bytes = converted.model.initializerBytes();
      assertTrue(bytes < 0.62 * original.initializerBytes(), bytes + " bytes");
    }
  }

  /** Examples run one branch, and nodes of the same names in the other one stay as well. */
  @Test
  void whatGoesBeyondFloat16InBranchesStays() {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(line("a Mul h thousand"))
            .addNode(line("b Mul a thousand"))
            .addNode(line("c Mul b thousandth"))
            .addNode(line("z Mul c thousandth"))
            .addOutput(value("z", DataType.FLOAT, -1, WIDTH));
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(number("thousand", 1000))
                .addInitializer(number("thousandth", 1e-3f))
                .addInitializer(
                    SmallModels.tensor("yes", DataType.BOOL, ByteBuffer.wrap(new byte[] {1}), 1))
                .addNode(line("always Identity yes"))
                .addNode(line("h MatMul x w"))
                .addNode(choice("/choice", "always", "chosen", branch))
                .addNode(line("y MatMul chosen w")));
    assertFalse(Converted.of(proto, vectors(WIDTH), false).error < 1);
    Converted seen = Converted.of(proto, vectors(WIDTH), true);
    assertTrue(seen.error < 0.01, "error " + seen.error);
    DataType half = DataType.FLOAT16;
    DataType wide = DataType.FLOAT;
    assertEquals(List.of(half, wide, wide, half, half, wide, wide, half), seen.types("Mul"));
  }

  /** ONNX Runtime joins sums with the norms behind them where it knows their shapes, and types must be right there. */
  @Test
  void theShapesOfSumsAreSaid() {
    ModelProto proto =
        SmallModels.model(
            17,
            GraphProto.newBuilder()
                .setName("sum")
                .addInput(value("x", DataType.FLOAT, -1, 3, WIDTH))
                .addInitializer(floats("w", new Random(3), 0.3f, WIDTH, WIDTH))
                .addInitializer(floats("gamma", new Random(4), 1, WIDTH))
                .addNode(line("h MatMul x w"))
                .addNode(line("t Tanh h"))
                .addNode(line("s Add h t"))
                .addNode(line("y LayerNormalization s gamma"))
                .addOutput(value("y", DataType.FLOAT, -1, 3, WIDTH)));
    Converted converted = Converted.of(proto, vectors(3, WIDTH), true);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    for (String operand : List.of("h", "t")) {
      TypeProto.Tensor type = converted.model.valueInfo(operand).getType().getTensorType();
      assertEquals(DataType.FLOAT16_VALUE, type.getElemType());
      assertEquals(3, type.getShape().getDimCount());
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

  /** Graphs of x and w in which float16 would spoil something that examples need not show. */
  private static Stream<Arguments> hazards() {
    Map<String, GraphProto.Builder> all = new LinkedHashMap<>();
    GraphProto.Builder g = all.computeIfAbsent("operator of another domain", k -> begun());
    g.addNode(
        line("y Normalizer h", text("norm", "L2")).toBuilder().setDomain("ai.onnx.ml").build());
    g = all.computeIfAbsent("int8 amid floats", k -> begun());
    g.addInitializer(number("scale", 0.01f))
        .addNode(line("q QuantizeLinear h scale"))
        .addNode(line("f Cast q", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(line("y MatMul f w"));
    g = all.computeIfAbsent("sums of scattered numbers", k -> begun());
    g.addInitializer(OnnxInitializer.int64s("first", new long[] {1, 1}, 0).message())
        .addNode(line("s ScatterND h first h", text("reduction", "add")))
        .addNode(line("y MatMul s w"));
    g = all.computeIfAbsent("means of a norm", k -> begun());
    g.addInitializer(floats("gamma", new Random(9), 1, WIDTH))
        .addNode(line("n LayerNormalization h gamma").toBuilder().addOutput("mean").build())
        .addNode(line("s Add n mean"))
        .addNode(line("y MatMul s w"));
    g = all.computeIfAbsent("squares in a branch", k -> begun());
    g.addInitializer(number("zero", 0))
        .addInitializer(number("hundreds", 700))
        .addInitializer(OnnxInitializer.int64s("two", new long[0], 2).message())
        .addInitializer(number("root", -0.5f))
        .addNode(line("top ReduceMax h", attribute("keepdims", 0)))
        .addNode(line("up Greater top zero"))
        .addNode(
            choice(
                "/choice",
                "up",
                "chosen",
                GraphProto.newBuilder()
                    .setName("branch")
                    .addNode(line("m Mul h hundreds"))
                    .addNode(line("square Pow m two"))
                    .addNode(line("mean ReduceMean square", list("axes", -1)))
                    .addNode(line("inverse Pow mean root"))
                    .addNode(line("z Mul m inverse"))
                    .addOutput(value("z", DataType.FLOAT, -1, WIDTH))))
        .addNode(line("y MatMul chosen w"));
    g = all.computeIfAbsent("sum of a long text", k -> begun());
    g.addInitializer(int64s("long", 30_000, WIDTH))
        .addInitializer(int64s("axis", 0))
        .addInitializer(number("length", 30_000))
        .addInitializer(number("five", 5))
        .addNode(line("h5 Mul h five"))
        .addNode(line("words Expand h5 long"))
        .addNode(line("sum ReduceSum words axis"))
        .addNode(line("mean Div sum length"))
        .addNode(line("y MatMul mean w"));
    g = all.computeIfAbsent("the angles of a product", k -> begun());
    g.addInitializer(floats("waves", new Random(9), 60, WIDTH, WIDTH))
        .addNode(line("angle MatMul x waves"))
        .addNode(line("sine Sin angle"))
        .addNode(line("y Add h sine"));
    g = all.computeIfAbsent("places times frequencies", k -> begun());
    g.addInitializer(int64s("place", 4090, 4091, 4092, 4093, 4094, 4095, 4096, 4097))
        .addInitializer(floats("frequencies", new Random(9), 0.3f, WIDTH, 1))
        .addInitializer(int64s("row", 1, WIDTH))
        .addNode(line("real Cast place", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(line("places Reshape real row"))
        .addNode(line("angle MatMul frequencies places"))
        .addNode(line("sine Sin angle"))
        .addNode(line("y MatMul h sine"));
    g = all.computeIfAbsent("integers that weights take", k -> begun());
    g.addInitializer(int64s("counts", 4097, 1, 1, 1, 1, 1, 1, 1))
        .addInitializer(number("half", 0.5f))
        .addNode(line("real Cast counts", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(line("less Mul real half"))
        .addNode(line("sum Einsum less w", text("equation", "i,ij->j")))
        .addNode(line("y Add h sum"));
    g = all.computeIfAbsent("words that are compared", k -> begun());
    g.addInitializer(int64s("words", 4096, 4097, 1, 2, 3, 4, 5, 6))
        .addInitializer(number("padding", 4096))
        .addNode(line("real Cast words", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(line("same Equal real padding"))
        .addNode(line("mask Cast same", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(line("y Add h mask"));
    g = all.computeIfAbsent("the end of a range", k -> begun());
    g.addInitializer(OnnxInitializer.int64s("length", new long[0], 2049).message())
        .addInitializer(number("zero", 0))
        .addInitializer(number("one", 1))
        .addInitializer(int64s("column", 2049, 1))
        .addNode(line("end Cast length", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(line("range Range zero end one"))
        .addNode(line("places Reshape range column"))
        .addNode(line("mean ReduceMean places", attribute("keepdims", 0)))
        .addNode(line("y Mul h mean"));
    g = all.computeIfAbsent("an index like another", k -> begun());
    g.addInitializer(number("place", 4099))
        .addInitializer(number("half", 0.5f))
        .addInitializer(int64s("like", 0))
        .addInitializer(floats("table", new Random(9), 1, 2100, WIDTH))
        .addNode(line("middle Mul place half"))
        .addNode(line("index CastLike middle like"))
        .addNode(line("row Gather table index"))
        .addNode(line("y Add h row"));
    g = all.computeIfAbsent("a float like another", k -> begun());
    g.addNode(line("same CastLike h x")).addNode(line("y MatMul same w"));
    g = all.computeIfAbsent("a shape filled with millions", k -> begun());
    g.addInitializer(int64s("shape", 1))
        .addInitializer(number("millionth", 1e-6f))
        .addNode(
            line(
                "million ConstantOfShape shape",
                AttributeProto.newBuilder()
                    .setName("value")
                    .setType(AttributeType.TENSOR)
                    .setT(OnnxInitializer.floats("", new long[] {1}, 1e6f).message())
                    .build()))
        .addNode(line("large Mul h million"))
        .addNode(line("z Mul large millionth"))
        .addNode(line("y MatMul z w"));
    g = all.computeIfAbsent("tiny weights", k -> begun());
    g.addInitializer(floats("tiny", new Random(9), 1e-6f, WIDTH, WIDTH))
        .addInitializer(number("thousand", 1000))
        .addNode(line("small MatMul h tiny"))
        .addNode(line("z Mul small thousand"))
        .addNode(line("y Mul z thousand"));
    g = all.computeIfAbsent("a mask that is an output", k -> begun());
    g.addInitializer(number("zero", 0))
        .addInitializer(number("lowest", -1e9f))
        .addNode(line("dark Less x zero"))
        .addNode(line("masked Where dark lowest h"))
        .addNode(line("s Softmax masked"))
        .addNode(line("y MatMul s w"))
        .addOutput(value("lowest", DataType.FLOAT));
    return all.entrySet().stream().map(e -> Arguments.of(e.getKey(), e.getValue()));
  }

  /** A graph whose first node is h, the product of x and w. */
  private static GraphProto.Builder begun() {
    return GraphProto.newBuilder().addNode(line("h MatMul x w"));
  }

  @ParameterizedTest(name = "{0}")
  @MethodSource("hazards")
  void whatFloat16WouldSpoilStays(String name, GraphProto.Builder graph) {
    ModelProto proto =
        graph(17, graph).toBuilder()
            .addOpsetImport(OperatorSetIdProto.newBuilder().setDomain("ai.onnx.ml").setVersion(2))
            .build();
    for (boolean calibrated : new boolean[] {false, true}) {
      Converted converted = Converted.of(proto, vectors(WIDTH), calibrated);
      assertTrue(converted.error < 0.01, "calibrated: " + calibrated + ", " + converted.error);
      assertEquals(DataType.FLOAT16, converted.types("MatMul").get(0));
    }
  }

  /** Biases of keys, which have no gradient, end next to nothing, and may become that. */
  @Test
  void tinyBiasesAreConverted() {
    ModelProto proto =
        graph(
            13,
            begun()
                .addInitializer(floats("tiny", new Random(9), 1e-9f, WIDTH))
                .addNode(line("y Add h tiny")));
    assertEquals(List.of(DataType.FLOAT16), Converted.of(proto, vectors(WIDTH), true).types("Add"));
  }

  /** Tables of incomes and the like. */
  @Test
  void inputsBeyondFloat16StayWhereCalibrationSeesThem() {
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addInitializer(number("thousandth", 1e-3f))
                .addNode(line("h MatMul x w"))
                .addNode(line("s Mul h thousandth"))
                .addNode(line("y MatMul s w")));
    Converted seen = Converted.of(proto, vectors(1e6f, WIDTH), true);
    assertTrue(seen.error < 0.01, "error " + seen.error);
    assertEquals(List.of(DataType.FLOAT, DataType.FLOAT16), seen.types("MatMul"));
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

  /** What stands for −∞ in masks, written in many ways; float16's own −∞ times 0 would be NaN. */
  @ParameterizedTest
  @ValueSource(strings = {"Where", "Mul", "ConstantOfShape", "If", "Cast"})
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
      case "If" ->
          g.addNode(line("top ReduceMax x", attribute("keepdims", 0)))
              .addNode(line("up Greater top zero"))
              .addNode(
                  choice(
                      "/choice",
                      "up",
                      "low",
                      GraphProto.newBuilder()
                          .setName("branch")
                          .addInitializer(number("inner", -Float.MAX_VALUE))
                          .addOutput(value("inner", DataType.FLOAT))))
              .addNode(line("m Mul ones low"))
              .addNode(line("masked Add h m"));
      case "Cast" ->
          g.addInitializer(
                  SmallModels.tensor(
                      "double",
                      DataType.DOUBLE,
                      ByteBuffer.allocate(8)
                          .order(ByteOrder.LITTLE_ENDIAN)
                          .putDouble(-Float.MAX_VALUE)
                          .flip()))
              .addNode(line("low Cast double", attribute("to", DataType.FLOAT_VALUE)))
              .addNode(line("m Mul ones low"))
              .addNode(line("masked Add h m"));
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

  /** A body is fed and gives float16, whether it says its types or not; one that gives what has no known type stays whole. */
  @ParameterizedTest
  @ValueSource(strings = {"typed", "untyped", "sequences inside", "a sequence's end"})
  void bodiesAreConverted(String how) {
    boolean typed = how.equals("typed") || how.equals("sequences inside");
    boolean ends = how.equals("a sequence's end");
    GraphProto.Builder body =
        GraphProto.newBuilder()
            .setName("body")
            .addInput(value("i", DataType.INT64))
            .addInput(value("on", DataType.BOOL))
            .addInput(typed ? value("before", DataType.FLOAT, -1, WIDTH) : untyped("before"))
            .addNode(line("go Identity on"))
            .addNode(line("p MatMul before w"));
    if (how.contains("sequence")) {
      body.addNode(line("list SequenceConstruct p")).addNode(line("q SequenceAt list i"));
    } else {
      body.addNode(line("q Tanh p"));
    }
    body.addNode(line("after Add q h"))
        .addOutput(value("go", DataType.BOOL))
        .addOutput(typed ? value("after", DataType.FLOAT, -1, WIDTH) : untyped("after"));
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
                .addNode(line("y MatMul z w"))
                .addOutput(value("z", DataType.FLOAT, -1, WIDTH)));
    Converted converted = Converted.of(proto, vectors(WIDTH), true);
    assertTrue(converted.error < 0.01, "error " + converted.error);
    assertEquals(List.of(ends ? DataType.FLOAT : DataType.FLOAT16), converted.types("Loop"));
  }

  private static ValueInfoProto untyped(String name) {
    return ValueInfoProto.newBuilder().setName(name).build();
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

  /** The rows that are looked up are exact then, whatever the product of the same table is. */
  @Test
  void aTableThatAProductReadsHasBothForms() {
    OnnxModel model = OnnxModel.of(SmallDecoder.tied(1, VOCABULARY, 16, 2), "tied");
    OnnxWeight table =
        OnnxWeights.of(model).stream()
            .filter(w -> w.uses().stream().map(OnnxWeight.Use::kind).distinct().count() > 1)
            .findFirst()
            .orElseThrow();
    Float16Converter converter = new Float16Converter(model, false, w -> true);
    assertTrue(converter.names().contains(table.name()), converter.names().toString());
    converter.apply();
    assertEquals(DataType.FLOAT, model.constant(table.value()).type());
    List<DataType> types =
        model.initializers().stream()
            .filter(i -> Arrays.equals(i.dims(), model.constant(table.value()).dims()))
            .map(OnnxInitializer::type)
            .toList();
    assertTrue(types.contains(DataType.FLOAT16), types.toString());
  }

  @Test
  void modelsWithNothingToConvertAreRefused() {
    OnnxModel half = OnnxModel.of(HalfModels.of(SmallModels.mlp(), DataType.FLOAT16), "half");
    String none =
        assertThrows(InputException.class, () -> new Float16Converter(half, w -> true))
            .getMessage();
    assertTrue(none.contains("half computes in 16 bits already"), none);
    OnnxModel int8 = OnnxModel.of(SmallModels.perceptron(new Random(1), 8, 16, 4, "y"), "int8");
    new DynamicQuantizer(int8, DynamicQuantizer.Options.defaults()).apply();
    String integer =
        assertThrows(InputException.class, () -> new Float16Converter(int8, w -> true))
            .getMessage();
    assertTrue(integer.contains("is int8 already, with"), integer);
  }

  @ParameterizedTest
  @ValueSource(strings = {"If", "Loop", "Scan", "CastLike"})
  void nodesThatLackWhatTheyNeedHaveNoKnownType(String operator) {
    ModelProto proto =
        graph(
            13,
            GraphProto.newBuilder()
                .addNode(line("y MatMul x w"))
                .addNode(line("z " + operator + " x")));
    OnnxModel model = OnnxModel.of(proto, "model");
    assertNull(ValueTypes.of(model).of("z"));
    new Float16Converter(model, w -> true).apply();
    assertEquals(DataType.FLOAT16, model.initializer("w").type());
  }

  /** An int8 model keeps the scales of a table in 16 bits, and computes in 32. */
  @Test
  void aModelThatComputesInSixteenBitsIsTold() {
    OnnxModel model = OnnxModel.of(SmallDecoder.of(1, 2000, 64, 1), "decoder");
    assertFalse(Float16Graph.isOne(model));
    OnnxModel int8 = model.copy();
    new DynamicQuantizer(int8, DynamicQuantizer.Options.defaults()).apply();
    assertTrue(int8.initializers().stream().anyMatch(i -> i.type() == DataType.FLOAT16));
    assertFalse(Float16Graph.isOne(int8));
    new Float16Converter(model, w -> true).apply();
    assertTrue(Float16Graph.isOne(model));
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
