package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.nio.LongBuffer;
import java.util.Arrays;
import java.util.Map;
import java.util.Random;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models of 20 tokens, of which seven stay. */
class VocabularyPrunerTest {
  private static final int TOKENS = 20;
  private static final int WIDTH = 4;
  private static final int[] KEPT = {0, 1, 9, 4, 5, 12, 19};

  private final Random random = new Random(3);

  /** input_ids [1, t] → what the lines make of them → y. */
  private OnnxModel model(String... lines) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("reader")
            .addInput(SmallModels.value("input_ids", DataType.INT64, 1, -1))
            .addOutput(SmallModels.value("y", DataType.FLOAT))
            .addInitializer(SmallModels.floats("words", random, 1, TOKENS, WIDTH))
            .addInitializer(SmallModels.floats("scales", random, 1, TOKENS, 1))
            .addInitializer(SmallModels.floats("square", random, 1, WIDTH, WIDTH))
            .addInitializer(SmallModels.floats("head", random, 1, WIDTH, TOKENS))
            .addInitializer(SmallModels.floats("bias", random, 1, TOKENS))
            .addInitializer(SmallModels.floats("few", random, 1, 6, WIDTH))
            .addInitializer(SmallModels.int64s("pad", 1))
            .addInitializer(SmallModels.int64s("gone", 2))
            .addInitializer(SmallModels.int64s("none", -100))
            .addInitializer(SmallModels.int64s("row", 1, -1));
    for (String line : lines) {
      AttributeProto[] attributes =
          switch (line.split(" ")[1]) {
            case "Cast" ->
                new AttributeProto[] {
                  SmallModels.attribute("to", line.startsWith("ids") ? 6 : DataType.FLOAT_VALUE)
                };
            case "Transpose" -> new AttributeProto[] {SmallModels.list("perm", 1, 0)};
            case "ArgMax" -> new AttributeProto[] {SmallModels.attribute("axis", 1)};
            default -> new AttributeProto[0];
          };
      g.addNode(SmallModels.line(line, attributes));
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(17, g), "reader");
    model.removeUnusedInitializers();
    return model;
  }

  private static Map<String, OnnxTensor> ids(long... ids) throws OrtException {
    return Map.of(
        "input_ids",
        OnnxTensor.createTensor(
            OrtEnvironment.getEnvironment(), LongBuffer.wrap(ids), new long[] {1, ids.length}));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "y Gather words input_ids",
        "ids Cast input_ids; y Gather words ids",
        "flat Reshape input_ids row; y Gather words flat",
        "w Gather words input_ids; s Gather scales input_ids; y Mul w s",
        "w Gather words input_ids; l Shape input_ids; k Cast l; s ReduceSum k; y Add w s",
        "w Gather words input_ids; e Equal input_ids pad; f Cast e; s ReduceSum f; y Mul w s",
        "w Gather words input_ids; e Equal gone input_ids; f Cast e; s ReduceSum f; y Add w s",
        "w Gather words input_ids; e Equal input_ids none; f Cast e; s ReduceSum f; y Add w s",
        "w Gather words input_ids; m ArgMax input_ids; f Cast m; y Add w f",
      })
  void tokensThatStayGiveWhatTheyGave(String lines) throws OrtException {
    OnnxModel model = model(lines.split("; "));
    OnnxModel before = model.copy();
    VocabularyPruner pruner = new VocabularyPruner(model);
    assertEquals(lines.contains("ArgMax"), pruner.isOrdered());
    int[] kept = KEPT.clone();
    if (pruner.isOrdered()) {
      Arrays.sort(kept);
    }
    pruner.prune(kept, TOKENS);
    assertEquals(kept.length, model.initializer("words").dims()[0]);
    long[] now = {2, 1, 0, 6, 5, 1, 3};
    long[] then = LongStream.of(now).map(i -> kept[(int) i]).toArray();
    assertArrayEquals(RuntimeRuns.first(before, ids(then)), RuntimeRuns.first(model, ids(now)));
    assertThrows(IllegalStateException.class, () -> pruner.prune(kept, TOKENS));
  }

  /** What is said of each token is said of those that stay. */
  @ParameterizedTest
  @CsvSource({
    "w Gather words input_ids; t Transpose words; y MatMul w t",
    "w Gather words input_ids; p MatMul w head; y Add p bias",
    "w Gather words input_ids; s MatMul w square; p MatMul s head; y Add bias p"
  })
  void headsSayOfTheOthersWhatTheySaid(String lines) throws OrtException {
    ModelProto.Builder proto = model(lines.split("; ")).toProto().toBuilder();
    proto
        .getGraphBuilder()
        .setOutput(0, SmallModels.value("y", DataType.FLOAT, 1, -1, TOKENS))
        .addValueInfo(SmallModels.value("p", DataType.FLOAT, 1, -1, TOKENS));
    OnnxModel model = OnnxModel.of(proto.build(), "reader");
    OnnxModel before = model.copy();
    new VocabularyPruner(model).prune(KEPT, TOKENS);
    assertEquals(
        KEPT.length,
        model.outputs().get(0).getType().getTensorType().getShape().getDim(2).getDimValue());
    assertNull(model.valueInfo("p"));
    float[] all = RuntimeRuns.first(before, ids(9, 1, 12));
    float[] some = RuntimeRuns.first(model, ids(2, 1, 5));
    float[] expected = new float[some.length];
    for (int i = 0; i < expected.length; i++) {
      expected[i] = all[i / KEPT.length * TOKENS + KEPT[i % KEPT.length]];
    }
    assertArrayEquals(expected, some, 1e-5f);
  }

  @ParameterizedTest
  @CsvSource({
    "y Cast input_ids, Cast",
    "f Gather words input_ids; m ReduceMax input_ids; g Cast m; y Mul f g, ReduceMax",
    "w Gather words input_ids; e Equal input_ids input_ids; f Cast e; y Mul w f, Equal",
    "w Gather words input_ids; d Mul input_ids pad; f Cast d; y Mul w f, Mul",
    "w Gather words input_ids; s Softmax bias; y Add w s, 'Softmax, which reads it'",
    "w Gather words input_ids; v Gather few input_ids; y Mul w v, the table few has 6 rows",
    "y Identity square, no table in which it looks up"
  })
  void whatIsNotKnownIsRefused(String lines, String why) {
    InputException e =
        assertThrows(
            InputException.class,
            () -> new VocabularyPruner(model(lines.split("; "))).prune(KEPT, TOKENS));
    assertTrue(e.getMessage().contains(why), e.getMessage());
  }

  @Test
  void tokensThatTheTableHasNotAreRefused() {
    OnnxModel model = model("y Gather words input_ids");
    InputException e =
        assertThrows(
            InputException.class, () -> new VocabularyPruner(model).prune(KEPT, TOKENS + 1));
    assertTrue(e.getMessage().contains("20 rows, but the tokenizer knows 21"), e.getMessage());
    OnnxModel other = OnnxModel.of(SmallModels.mlp(), "mlp");
    e = assertThrows(InputException.class, () -> new VocabularyPruner(other));
    assertTrue(e.getMessage().contains("no input input_ids"), e.getMessage());
    assertFalse(new VocabularyPruner(model("y Gather words input_ids")).isOrdered());
  }
}
