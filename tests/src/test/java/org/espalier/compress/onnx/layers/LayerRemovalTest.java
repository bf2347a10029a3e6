package org.espalier.compress.onnx.layers;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.OrtSession.SessionOptions.OptLevel;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.function.IntFunction;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.Answers;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RuntimeModels;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.espalier.transformers.SmallCheckpoint;
import org.espalier.transformers.TransformersModel;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A model without some of its layers is the one that was made with fewer, of the others' weights. */
class LayerRemovalTest {
  private static final int VOCABULARY = 50;
  private static final int TOKENS = 5;
  private static final int PAST = 3;

  /** Where the names of weights say which layer they are of. */
  private static final Pattern NUMBER = Pattern.compile("(layers?\\.|^h\\.)(\\d+)\\.");

  @TempDir private Path folder;

  private static List<RepeatedLayer> layers(OnnxModel model) {
    return LayerSearch.find(model, Answers.of(model));
  }

  private static OnnxModel model(ModelProto proto) {
    return OnnxModel.of(proto, "model");
  }

  /** Removes each layer, and two at once, of four. */
  private static void check(IntFunction<ModelProto> made) throws OrtException {
    OnnxModel whole = model(made.apply(4));
    List<RepeatedLayer> layers = layers(whole);
    assertEquals(4, layers.size(), layers.toString());
    for (int[] gone :
        new int[][] {{0}, {1}, {2}, {3}, {0, 1}, {1, 2}, {2, 3}, {0, 3}, {1, 3}, {0, 1, 2}}) {
      int[] kept =
          IntStream.range(0, 4).filter(i -> Arrays.stream(gone).noneMatch(g -> g == i)).toArray();
      OnnxModel expected = model(made.apply(kept.length));
      for (OnnxInitializer weight : List.copyOf(expected.initializers())) {
        OnnxInitializer own = whole.initializer(renumbered(weight.name(), kept));
        expected.replaceInitializer(own.withName(weight.name()));
      }
      OnnxModel actual = whole.copy();
      LayerRemoval.apply(actual, Arrays.stream(gone).mapToObj(layers::get).toList());
      actual.check();
      String where = "without " + Arrays.toString(gone);
      assertEquals(ends(expected), ends(actual), where);
      assertEquals(
          expected.initializers().stream().mapToLong(OnnxInitializer::elements).sum(),
          actual.initializers().stream().mapToLong(OnnxInitializer::elements).sum(),
          where);
      Map<String, float[]> outputs = run(actual);
      run(expected).forEach((name, values) -> assertArrayEquals(values, outputs.get(name), where));
    }
  }

  private static String renumbered(String name, int[] kept) {
    Matcher number = NUMBER.matcher(name);
    return number.find()
        ? name.substring(0, number.start(2))
            + kept[Integer.parseInt(number.group(2))]
            + name.substring(number.end(2))
        : name;
  }

  private static List<List<String>> ends(OnnxModel model) {
    return List.of(
        model.inputs().stream().map(ValueInfoProto::getName).toList(),
        List.copyOf(model.outputNames()));
  }

  /** What the nodes make of one text behind another. */
  private static Map<String, float[]> run(OnnxModel model) throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    boolean past = model.inputs().stream().anyMatch(i -> i.getName().startsWith("past"));
    Map<String, OnnxTensor> inputs = new HashMap<>();
    for (ValueInfoProto input : model.inputs()) {
      String name = input.getName();
      Random random = new Random(name.hashCode());
      if (name.startsWith("past")) {
        List<Long> dims =
            input.getType().getTensorType().getShape().getDimList().stream()
                .map(d -> d.getDimValue())
                .toList();
        float[] values = new float[(int) (dims.get(1) * PAST * dims.get(3))];
        for (int i = 0; i < values.length; i++) {
          values[i] = (float) random.nextGaussian();
        }
        inputs.put(
            name,
            OnnxTensor.createTensor(
                environment,
                FloatBuffer.wrap(values),
                new long[] {1, dims.get(1), PAST, dims.get(3)}));
        continue;
      }
      int before = past ? PAST : 0;
      long[] values =
          switch (name) {
            case "input_ids" -> random.longs(TOKENS, 0, VOCABULARY).toArray();
            case "attention_mask" ->
                IntStream.range(0, before + TOKENS).mapToLong(i -> 1).toArray();
            case "token_type_ids" -> new long[TOKENS];
            default -> IntStream.range(before, before + TOKENS).asLongStream().toArray();
          };
      inputs.put(
          name,
          OnnxTensor.createTensor(
              environment, LongBuffer.wrap(values), new long[] {1, values.length}));
    }
    Map<String, float[]> outputs = new TreeMap<>();
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setOptimizationLevel(OptLevel.NO_OPT);
      try (OrtSession session = environment.createSession(model.toBuffer(), options);
          OrtSession.Result result = session.run(inputs)) {
        for (Map.Entry<String, OnnxValue> output : result) {
          FloatBuffer values = ((OnnxTensor) output.getValue()).getFloatBuffer();
          float[] copy = new float[values.remaining()];
          values.get(copy);
          outputs.put(output.getKey(), copy);
        }
      }
    }
    return outputs;
  }

  /** Keys and values go with their layers; the mask is of the length of the first ones, whichever these are. */
  @Test
  void decodersLoseLayersAndTheirCaches() throws OrtException {
    check(layers -> SmallDecoder.withPast(1, VOCABULARY, 16, layers));
  }

  /** In some of these sums and their norms are made by one operator. */
  @ParameterizedTest
  @EnumSource(RuntimeModels.Form.class)
  void decodersForOnnxRuntimeLoseLayers(RuntimeModels.Form form) throws OrtException {
    check(layers -> RuntimeModels.decoder(form, 1, VOCABULARY, layers));
  }

  /** Their norms are behind the sums, and the last layer's is the output. */
  @Test
  void encodersLoseLayersWithTheirNorms() throws OrtException {
    check(layers -> RuntimeModels.encoder(1, VOCABULARY, layers, false));
    check(layers -> RuntimeModels.exportedEncoder(1, VOCABULARY, layers));
  }

  /** Those of Gemma look at parts of texts and at whole ones in turn, ModernBERT's first has a norm less. */
  @ParameterizedTest
  @CsvSource({
    "gpt2, 3", "phi3, 3", "mixtral, 3", "qwen2_moe, 3", "qwen3_moe, 3", "gemma3_text, 3",
    "deberta-v2, 2", "modernbert, 4", "mpnet, 2", "vit, 2", "dinov2, 2", "dinov2_with_registers, 2"
  })
  void checkpointsHaveTheLayersOfTheirConfiguration(String type, int count) throws IOException {
    switch (type) {
      case "deberta-v2", "modernbert", "mpnet" -> SmallCheckpoint.writeTextEncoder(folder, type);
      case "vit", "dinov2", "dinov2_with_registers" ->
          SmallCheckpoint.writeImageModel(folder, type);
      default -> SmallCheckpoint.writeLanguageModel(folder, type);
    }
    OnnxModel model = TransformersModel.read(folder, note -> {});
    List<RepeatedLayer> layers = layers(model);
    assertEquals(count, layers.size(), layers.toString());
    for (RepeatedLayer layer : layers) {
      assertNull(layer.obstacle());
      OnnxModel shallower = model.copy();
      LayerRemoval.apply(shallower, List.of(layer));
      shallower.check();
      List<RepeatedLayer> others = layers(shallower);
      assertEquals(count < 3 ? 0 : count - 1, others.size(), layer.toString());
    }
  }

  /** What an encoder gives is keys and values for each layer of its decoder, of which it knows nothing. */
  @ParameterizedTest
  @ValueSource(strings = {"t5", "bart", "marian"})
  void encodersOfDecodersKeepWhatTheyGive(String type) throws IOException {
    SmallCheckpoint.writePair(folder, type);
    OnnxModel model = TransformersModel.read(folder, TransformersModel.Part.ENCODER, note -> {});
    List<RepeatedLayer> layers = layers(model);
    assertEquals(2, layers.size(), layers.toString());
    layers.forEach(layer -> assertNull(layer.obstacle()));
    List<List<String>> ends = ends(model);
    LayerRemoval.apply(model, List.of(layers.get(0)));
    assertEquals(ends, ends(model));
  }

  /** Their encoder gives keys and values for each layer, by its number. */
  @ParameterizedTest
  @ValueSource(strings = {"t5", "bart", "whisper"})
  void decodersOfEncodersKeepTheirLayers(String type) throws IOException {
    SmallCheckpoint.writePair(folder, type);
    OnnxModel model = TransformersModel.read(folder, TransformersModel.Part.DECODER, note -> {});
    List<RepeatedLayer> layers = layers(model);
    assertEquals(3, layers.size(), layers.toString());
    for (RepeatedLayer layer : layers) {
      assertTrue(layer.obstacle().contains("an encoder gives"), layer.toString());
    }
  }

  /** x [n, 8] → layers of a sum each. */
  private static ModelProto residual(String... lines) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("residual")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    for (String line : lines) {
      g.addNode(SmallModels.line(line));
    }
    Random random = new Random(1);
    for (String weight : List.of("w1", "w2", "w3", "w4")) {
      g.addInitializer(SmallModels.floats(weight, random, 0.3f, 8, 8));
    }
    return SmallModels.model(17, g);
  }

  private static final String[] BLOCKS = {
    "a MatMul x w1", "b Add x a", "c MatMul b w2", "d Add c b", "e MatMul d w3", "y Add d e"
  };

  @Test
  void whatIsSaidOfValuesGoesWithThem() {
    ModelProto.Builder proto = residual(BLOCKS).toBuilder();
    proto.getGraphBuilder().addValueInfo(SmallModels.value("c", DataType.FLOAT, -1, 8));
    OnnxModel model = model(proto.build());
    List<RepeatedLayer> layers = layers(model);
    // The second one's sum is spelled the other way round.
    assertEquals(List.of("x", "b", "d"), layers.stream().map(RepeatedLayer::input).toList());
    LayerRemoval.apply(model, List.of(layers.get(1)));
    assertEquals(
        List.of("a", "b", "e", "y"), model.nodes().stream().map(n -> n.getOutput(0)).toList());
    assertEquals("b", model.nodes().get(2).getInput(0));
    assertNull(model.valueInfo("c"));
    assertNull(model.initializer("w2"));
  }

  /** The output keeps its name, as a copy where what it is now has a name that must stay. */
  @Test
  void theLastLayersOutputIsTheOneBefore() {
    OnnxModel model = model(residual(BLOCKS));
    List<RepeatedLayer> layers = layers(model);
    LayerRemoval.apply(model, layers.subList(1, 3));
    assertEquals(
        List.of("a", "y"), model.nodes().stream().map(n -> n.getOutput(0)).toList(), "b is y");
    OnnxModel only = model(residual("a MatMul x w1", "b Add x a", "c MatMul b w2", "y Add b c"));
    assertEquals(2, layers(only).size());
    LayerRemoval.apply(only, layers(only));
    assertEquals("Identity", only.nodes().get(0).getOpType());
    assertEquals(List.of("x"), only.nodes().get(0).getInputList());
  }

  @Test
  void layersThatOutputsShowStay() {
    ModelProto.Builder proto = residual(BLOCKS).toBuilder();
    proto.getGraphBuilder().addOutput(SmallModels.value("c", DataType.FLOAT, -1, 8));
    List<RepeatedLayer> layers = layers(model(proto.build()));
    assertTrue(layers.get(1).obstacle().contains("output c"), layers.toString());
    assertNull(layers.get(0).obstacle());
    assertNull(layers.get(2).obstacle());
  }

  @Test
  void whatHasNoSumIsNoLayer() {
    assertEquals(
        List.of(), layers(model(residual("a MatMul x w1", "b MatMul a w2", "y MatMul b w3"))));
    assertEquals(List.of(), layers(model(residual("a MatMul x w1", "y Add a x"))));
  }

  /** Values of keys that a node of no layer reads cannot be those of another layer. */
  @Test
  void keysThatOthersReadStay() {
    ModelProto.Builder proto = SmallDecoder.withPast(1, VOCABULARY, 16, 3).toBuilder();
    proto
        .getGraphBuilder()
        .addNode(SmallModels.line("seen ReduceMax past_key_values.1.key"))
        .addOutput(SmallModels.value("seen", DataType.FLOAT));
    OnnxModel model = model(proto.build());
    List<RepeatedLayer> layers = new ArrayList<>(layers(model));
    InputException e =
        assertThrows(InputException.class, () -> LayerRemoval.apply(model, List.of(layers.get(1))));
    assertTrue(e.getMessage().contains("past_key_values.1.key"), e.getMessage());
  }
}
