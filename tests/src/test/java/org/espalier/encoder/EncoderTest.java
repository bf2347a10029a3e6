package org.espalier.encoder;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.model;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import org.espalier.InputException;
import org.espalier.cli.SmallLanguage;
import org.espalier.evaluate.Pooling;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class EncoderTest {
  private static final int WIDTH = 48;
  private static final int POSITIONS = 30;

  @TempDir Path folder;

  @BeforeEach
  void write() throws IOException {
    SmallLanguage.write(folder);
  }

  /**
   * input_ids, attention_mask [n, t] → rows of a table [n, t, 48] as a type; with {@code placed} plus rows of a table for
   * position_ids and one for token_type_ids.
   */
  private Path encoder(int opset, DataType type, boolean placed) throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(value("input_ids", DataType.INT64, -1, -2))
            .addInput(value("attention_mask", DataType.INT64, -1, -2))
            .addInitializer(floats("weight", new Random(1), 1, SmallLanguage.VOCABULARY, WIDTH))
            .addNode(line("found Gather weight input_ids"));
    if (placed) {
      g.addInput(value("position_ids", DataType.INT64, -1, -2))
          .addInput(value("token_type_ids", DataType.INT64, -1, -2))
          .addInitializer(floats("places", new Random(2), 1, POSITIONS, WIDTH))
          .addInitializer(floats("parts", new Random(3), 1, 2, WIDTH))
          .addNode(line("place Gather places position_ids"))
          .addNode(line("part Gather parts token_type_ids"))
          .addNode(line("moved Add found place"))
          .addNode(line("hidden Add moved part"));
    } else {
      g.addNode(line("hidden Identity found"));
    }
    g.addNode(line("outputs Cast hidden", attribute("to", type.getNumber())))
        .addOutput(value("outputs", type, -1, -2, WIDTH));
    return Files.write(folder.resolve("encoder.onnx"), model(opset, g).toByteArray());
  }

  private Encoder open(Path model, Pooling pooling) {
    return Encoder.ofTexts(model, folder.resolve("tokenizer.json"), POSITIONS, pooling);
  }

  /** x [n, 48], or of another shape, → [n, 2] by the nodes of a kind; its names are those of the encoder. */
  private OnnxModel head(String kind, int opset) {
    Random random = new Random(5);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("head")
            .addInput(
                kind.equals("planes")
                    ? value("x", DataType.FLOAT, -1, 4, 12)
                    : value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(floats("weight", random, 0.3f, WIDTH, 2))
            .addInitializer(floats("bias", random, 0.3f, 2));
    switch (kind) {
      case "layers" ->
          g.addInitializer(floats("outputs_1", random, 0.3f, WIDTH, WIDTH))
              .addNode(line("hidden MatMul x outputs_1"))
              .addNode(line("found Relu hidden"))
              .addNode(line("outputs Gemm found weight bias"));
      case "shares" ->
          g.addNode(line("found Gemm x weight bias"))
              .addNode(line("outputs Softmax found", attribute("axis", 1)));
      case "bent" ->
          g.addNode(line("found Gemm x weight bias"))
              .addNode(line("hidden Erf found"))
              .addNode(line("outputs Mul hidden found"));
      case "planes" ->
          g.addInitializer(floats("input_ids", random, 0.3f, 12, 2))
              .addInitializer(int64s("rows", 0, 8))
              .addInitializer(floats("last", random, 0.3f, 8, 2))
              .addNode(line("hidden MatMul x input_ids"))
              .addNode(line("found Reshape hidden rows"))
              .addNode(line("outputs Gemm found last bias"));
      case "branches" ->
          // A branch has a value of the name that the head's own one would have behind the
          // encoder's.
          g.addInitializer(floats("some", random, 0.1f, 1))
              .addNode(line("found Gemm x weight bias"))
              .addNode(line("sum ReduceSum x", attribute("keepdims", 0)))
              .addNode(line("is Greater sum some"))
              .addNode(
                  NodeProto.newBuilder()
                      .setOpType("If")
                      .addInput("is")
                      .addOutput("outputs")
                      .addAttribute(branch("then_branch", "found_1 Exp found"))
                      .addAttribute(branch("else_branch", "found_1 Neg found"))
                      .build());
      default -> throw new IllegalArgumentException(kind);
    }
    g.addOutput(value("outputs", DataType.FLOAT, -1, 2));
    return OnnxModel.of(model(opset, g), "head.onnx");
  }

  /** A branch that adds what a node makes to what is found outside. */
  private static AttributeProto branch(String name, String node) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeType.GRAPH)
        .setG(
            GraphProto.newBuilder()
                .setName(name)
                .addNode(line(node))
                .addNode(line(name + "_sum Add found found_1"))
                .addOutput(value(name + "_sum", DataType.FLOAT, -1, 2)))
        .build();
  }

  /** What the head gives for the features of each text, and what the joined model gives for the padded texts. */
  private void assertJoined(Encoder encoder, OnnxModel head, double tolerance) throws OrtException {
    List<String> texts = SmallLanguage.texts(4, 9);
    float[] features = new float[texts.size() * WIDTH];
    for (int i = 0; i < texts.size(); i++) {
      System.arraycopy(encoder.features(texts.get(i)), 0, features, i * WIDTH, WIDTH);
    }
    Path own = folder.resolve("head.onnx");
    head.write(own);
    Path joined = folder.resolve("joined.onnx");
    encoder.requireCanBeFollowedBy(head);
    encoder.followedBy(head).write(joined);
    long[] shape =
        head.inputs().get(0).getType().getTensorType().getShape().getDimCount() == 2
            ? new long[] {texts.size(), WIDTH}
            : new long[] {texts.size(), 4, 12};
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    float[][] wanted;
    try (OrtSession session = environment.createSession(own.toString());
        OnnxTensor x = OnnxTensor.createTensor(environment, FloatBuffer.wrap(features), shape);
        OrtSession.Result result = session.run(Map.of("x", x))) {
      wanted = (float[][]) result.get(0).getValue();
    }
    float[][] given = SmallLanguage.run(joined, texts).get("outputs_1");
    for (int i = 0; i < wanted.length; i++) {
      assertArrayEquals(wanted[i], given[i], (float) tolerance, "text " + i);
    }
  }

  // What is summed in float64 here is summed in float32 there: 48 values of length 1.
  private static final double ROUNDING = 1e-5;

  @ParameterizedTest
  @ValueSource(ints = {9, 10, 11, 12, 13, 17, 18, 20, 21, 23, 24, 25, 26})
  void isFollowedByHeadsOfOtherOperatorSets(int opset) throws Exception {
    for (Pooling pooling : Pooling.values()) {
      try (Encoder encoder = open(encoder(opset, DataType.FLOAT, false), pooling)) {
        for (int own : new int[] {11, 13, 21}) {
          assertJoined(encoder, head("layers", own), ROUNDING);
        }
      }
    }
  }

  @ParameterizedTest
  @CsvSource({
    "shares,13,17",
    "shares,11,17",
    "bent,17,13",
    "bent,9,18",
    "bent,12,11",
    "planes,17,13",
    "planes,14,21",
    "branches,17,17",
    "branches,17,13",
    "branches,13,20"
  })
  void isFollowedByHeadsOfAllKinds(String kind, int opset, int own) throws Exception {
    try (Encoder encoder = open(encoder(opset, DataType.FLOAT, true), Pooling.MEAN)) {
      assertJoined(encoder, head(kind, own), ROUNDING);
    }
  }

  @Test
  void takesStatesOf16Bits() throws Exception {
    for (DataType type : List.of(DataType.FLOAT16, DataType.BFLOAT16)) {
      try (Encoder encoder = open(encoder(17, type, true), Pooling.MEAN)) {
        assertJoined(encoder, head("layers", 17), ROUNDING);
      }
    }
    InputException e =
        assertThrows(
            InputException.class, () -> open(encoder(17, DataType.DOUBLE, false), Pooling.MEAN));
    assertTrue(e.getMessage().contains("must be float32, float16 or bfloat16"), e.getMessage());
  }

  /** Of an encoder that takes no attention mask all tokens count, so it is for texts of one length. */
  @ParameterizedTest
  @ValueSource(ints = {9, 17})
  void averagesAllTokensWithoutAMask(int opset) throws Exception {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(value("input_ids", DataType.INT64, -1, -2))
            .addInitializer(floats("weight", new Random(1), 1, SmallLanguage.VOCABULARY, WIDTH))
            .addNode(line("outputs Gather weight input_ids"))
            .addOutput(value("outputs", DataType.FLOAT, -1, -2, WIDTH));
    Path own = Files.write(folder.resolve("encoder.onnx"), model(opset, g).toByteArray());
    GraphProto.Builder same =
        GraphProto.newBuilder()
            .setName("same")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addNode(line("y Identity x"))
            .addOutput(value("y", DataType.FLOAT, -1, WIDTH));
    Path joined = folder.resolve("joined.onnx");
    try (Encoder encoder = open(own, Pooling.MEAN)) {
      encoder.followedBy(OnnxModel.of(model(17, same), "same")).write(joined);
      float[][] given = SmallLanguage.run(joined, List.of("w1 w2 w3", "w7 w2 w9")).get("y");
      assertArrayEquals(encoder.features("w1 w2 w3"), given[0], (float) ROUNDING);
      assertArrayEquals(encoder.features("w7 w2 w9"), given[1], (float) ROUNDING);
    }
  }

  @Test
  void refusesHeadsWhoseOperatorsMayBeOthers() throws Exception {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("head")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(floats("scale", new Random(1), 1, WIDTH))
            .addNode(line("outputs LayerNormalization x scale"))
            .addOutput(value("outputs", DataType.FLOAT, -1, WIDTH));
    OnnxModel head = OnnxModel.of(model(17, g), "head.onnx");
    try (Encoder encoder = open(encoder(13, DataType.FLOAT, false), Pooling.MEAN)) {
      InputException e =
          assertThrows(InputException.class, () -> encoder.requireCanBeFollowedBy(head));
      assertEquals(
          e.getMessage(),
          assertThrows(InputException.class, () -> encoder.followedBy(head)).getMessage());
      assertTrue(
          e.getMessage().contains("in which [LayerNormalization] may be others"), e.getMessage());
    }
    try (Encoder encoder = open(encoder(17, DataType.FLOAT, false), Pooling.MEAN)) {
      encoder.requireCanBeFollowedBy(head);
    }
  }

  @Test
  void saysThatPositionsEnd() throws Exception {
    Path model = encoder(17, DataType.FLOAT, true);
    open(model, Pooling.MEAN).close();
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                Encoder.ofTexts(
                    model, folder.resolve("tokenizer.json"), POSITIONS + 1, Pooling.MEAN));
    assertTrue(e.getMessage().contains("(for a text of 31 tokens"), e.getMessage());
  }

  @Test
  void refusesTextsWithoutTokens() throws Exception {
    try (Encoder encoder = open(encoder(17, DataType.FLOAT, false), Pooling.MEAN)) {
      for (String text : List.of("", " \t\n")) {
        InputException e = assertThrows(InputException.class, () -> encoder.features(text));
        assertEquals("the text has no tokens", e.getMessage());
      }
      assertEquals(WIDTH, encoder.features("x").length, "an unknown word is a token");
    }
  }

  private Version publish(ModelStore store, StoreWriter.Content content) {
    try (StoreWriter writer = store.writer(Duration.ofSeconds(10))) {
      return writer.publish(content, "", Lineage.NONE, null);
    }
  }

  @Test
  void versionsOfSettingsThatSomebodyWroteStayTheSame() throws Exception {
    Path model = encoder(17, DataType.FLOAT, false);
    ModelStore store = ModelStore.create(folder.resolve("store"));
    Version first =
        publish(store, versionOf(model, "{ \"pooling\": \"CLS\",\n \"max_tokens\": 7 }"));
    try (Encoder encoder = Encoder.of(store, first)) {
      assertTrue(encoder.isOf(first));
      Version second = publish(store, encoder::write);
      assertTrue(encoder.isOf(second));
      assertEquals(first.files(), second.files());
      assertArrayEquals(encoder.features("w1 w2"), encoder.features("w1"), "the first token's");
    }
  }

  private StoreWriter.Content versionOf(Path model, String settings) throws IOException {
    Path file = Files.writeString(folder.resolve("settings.json"), settings);
    return files -> {
      files.copy(model, "encoder.onnx");
      files.copy(folder.resolve("tokenizer.json"), "encoder-tokenizer.json");
      files.copy(file, "encoder.json");
    };
  }

  @Test
  void refusesSettingsThatAreNone() throws Exception {
    Path model = encoder(17, DataType.FLOAT, false);
    ModelStore store = ModelStore.create(folder.resolve("store"));
    List<String> wrong = new ArrayList<>(List.of("", "[]", "null", "{", "{\"pooling\": \"mean\"}"));
    for (String tokens : List.of("2", "1000001", "1e99", "7.5", "\"7\"", "null", "-1")) {
      wrong.add("{\"max_tokens\": " + tokens + ", \"pooling\": \"mean\"}");
    }
    for (String pooling : List.of("5", "\"max\"", "null", "\"mean\", \"more\": 1")) {
      wrong.add("{\"max_tokens\": 7, \"pooling\": " + pooling + "}");
    }
    for (String settings : wrong) {
      Version version = publish(store, versionOf(model, settings));
      InputException e =
          assertThrows(InputException.class, () -> Encoder.of(store, version), settings);
      assertTrue(e.getMessage().contains("encoder.json"), settings + ": " + e.getMessage());
    }
  }

  @Test
  void closesAfterTheTextsThatItReads() throws Exception {
    Encoder encoder = open(encoder(17, DataType.FLOAT, false), Pooling.MEAN);
    String text = "w1 ".repeat(200_000);
    CountDownLatch begun = new CountDownLatch(1);
    CompletableFuture<Void> reading =
        CompletableFuture.runAsync(
            () -> {
              while (true) {
                try {
                  assertEquals(WIDTH, encoder.features(text).length);
                } catch (IllegalStateException e) {
                  return; // it is closed
                }
                begun.countDown();
              }
            });
    begun.await();
    encoder.close();
    assertThrows(IllegalStateException.class, () -> encoder.features("w1"));
    reading.join();
    encoder.close(); // a second time
  }
}
