package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A model of a table, some of whose values are missing, with a Dropout that its exporter left switched on. */
class CompressTableTest {
  private static final int COLUMNS = 6;
  private static final int N = 800;

  private static final String RECIPE =
      """
      model: {file: table.onnx}
      data: {examples: rows.safetensors, validation: 100, evaluation: 200, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 300, learning-rate: 1e-2}
        - {kind: quantize, form: static, steps: 40, learning-rate: 1e-3}
      """;

  @TempDir Path folder;
  private Path model;
  private Path rows;
  private Path recipe;

  @BeforeEach
  void makeInputs() throws IOException {
    model = folder.resolve("table.onnx");
    Files.write(model, SmallModels.model(15, graph("missing IsNaN x")).toByteArray());
    rows = folder.resolve("rows.safetensors");
    rows(Float.NaN);
    recipe = Files.writeString(folder.resolve("recipe.yaml"), RECIPE);
  }

  /**
   * @param missing makes the flags of what is missing
   */
  private static GraphProto.Builder graph(String missing) {
    Random random = new Random(4);
    return GraphProto.newBuilder()
        .setName("table")
        .addInput(SmallModels.value("x", DataType.FLOAT, -1, COLUMNS))
        .addInitializer(SmallModels.floats("means", new float[COLUMNS], COLUMNS))
        .addInitializer(SmallModels.floats("w", random, 0.4f, COLUMNS, 32))
        .addInitializer(SmallModels.floats("w2", random, 0.2f, 32, 3))
        .addInitializer(SmallModels.number("ratio", 0.5f))
        .addInitializer(SmallModels.tensor("on", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})))
        .addNode(SmallModels.line(missing))
        .addNode(SmallModels.line("known Where missing means x"))
        .addNode(SmallModels.line("h MatMul known w"))
        .addNode(SmallModels.line("r Relu h"))
        .addNode(SmallModels.line("d Dropout r ratio on"))
        .addNode(SmallModels.line("y MatMul d w2"))
        .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 3));
  }

  /** Classes that follow from the first two columns; one of the others is missing. */
  private void rows(float missing) {
    Random random = new Random(5);
    ByteBuffer x = ByteBuffer.allocate(4 * N * COLUMNS).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer labels = ByteBuffer.allocate(8 * N).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < N; i++) {
      float first = (float) random.nextGaussian();
      float second = (float) random.nextGaussian();
      x.putFloat(first).putFloat(second);
      for (int j = 2; j < COLUMNS; j++) {
        x.putFloat(j == 2 + i % 4 ? missing : (float) random.nextGaussian());
      }
      labels.putLong(first > 0.5 ? 2 : second > 0 ? 1 : 0);
    }
    Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
    tensors.put(new TensorSpec("labels", SafetensorsDtype.I64, List.of((long) N)), labels.array());
    tensors.put(
        new TensorSpec("x", SafetensorsDtype.F32, List.of((long) N, (long) COLUMNS)), x.array());
    RawSafetensors.write(rows, Map.of(), tensors);
  }

  @Test
  void aModelThatKnowsMissingValuesIsCompressedToTheSameBytesEachTime() throws IOException {
    Path first = folder.resolve("first");
    Path second = folder.resolve("second");
    Run run = Run.of("compress", recipe, "-o", first, "--json");
    JsonNode f = run.json().path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.85, f.toString());
    assertTrue(run.err().contains("Dropout '/d' was exported for training"), run.err());
    Run.of("compress", recipe, "-o", second).done();
    Path written = first.resolve("model-int8.onnx");
    assertArrayEquals(
        Files.readAllBytes(written), Files.readAllBytes(second.resolve("model-int8.onnx")));
    OnnxModel exported = OnnxModel.read(written);
    assertEquals(
        List.of(List.of("ratio")),
        exported.nodes().stream()
            .filter(n -> n.getOpType().equals("Dropout"))
            .map(n -> List.copyOf(n.getInputList().subList(1, n.getInputCount())))
            .toList());
    JsonNode evaluated = Run.of("evaluate", model, written, "--examples", rows, "--json").json();
    assertTrue(evaluated.at("/labels/accuracy").asDouble() > 0.85, evaluated.toString());
  }

  /** The first output is the class as a word, which nothing can be trained on; it follows from what is trained. */
  @Test
  void aModelThatGivesWordsFirstIsTrainedOnItsLogits() throws Exception {
    List<String> words = List.of("low", "middle", "high");
    GraphProto.Builder g = graph("missing IsNaN x");
    g.clearOutput().addOutput(SmallModels.value("word", DataType.STRING, -1));
    g.addOutput(SmallModels.value("y", DataType.FLOAT, -1, 3));
    g.addNode(
        SmallModels.line(
            "class ArgMax y",
            SmallModels.attribute("axis", 1),
            SmallModels.attribute("keepdims", 0)));
    AttributeProto.Builder values =
        AttributeProto.newBuilder()
            .setName("values_strings")
            .setType(AttributeProto.AttributeType.STRINGS);
    words.forEach(word -> values.addStrings(ByteString.copyFromUtf8(word)));
    g.addNode(
        SmallModels.line(
                "word LabelEncoder class", SmallModels.list("keys_int64s", 0, 1, 2), values.build())
            .toBuilder()
            .setDomain("ai.onnx.ml"));
    OperatorSetIdProto.Builder domain =
        OperatorSetIdProto.newBuilder().setDomain("ai.onnx.ml").setVersion(2);
    Files.write(
        model, SmallModels.model(15, g).toBuilder().addOpsetImport(domain).build().toByteArray());
    Path out = folder.resolve("out");
    JsonNode f = Run.of("compress", recipe, "-o", out, "--json").json().path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.85, f.toString());
    Path written = out.resolve("model-int8.onnx");
    JsonNode evaluated = Run.of("evaluate", model, written, "--examples", rows, "--json").json();
    assertTrue(evaluated.at("/labels/accuracy").asDouble() > 0.85, evaluated.toString());
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    float[][] row = {{1.5f, 0, 0, 0, 0, 0}, {-1, 1, 0, 0, 0, 0}, {-1, -1, 0, 0, 0, 0}};
    try (OrtSession session = environment.createSession(written.toString());
        OnnxTensor x = OnnxTensor.createTensor(environment, row);
        OrtSession.Result result = session.run(Map.of("x", x))) {
      assertArrayEquals(
          new String[] {"high", "middle", "low"}, (String[]) result.get("word").get().getValue());
    }
  }

  @Test
  void whyLabelsAreNotMeasuredIsSaid() throws IOException {
    GraphProto.Builder g = graph("missing IsNaN x").clearOutput();
    g.addNode(SmallModels.line("wide Cast y", SmallModels.attribute("to", DataType.DOUBLE_VALUE)));
    g.addOutput(SmallModels.value("wide", DataType.DOUBLE, -1, 3));
    Files.write(model, SmallModels.model(15, g).toByteArray());
    Run run = Run.of("evaluate", model, model, "--examples", rows).done();
    assertTrue(run.err().contains("with one row an example but is DOUBLE [1, 3]\n"), run.err());
  }

  @Test
  void missingValuesCalibrateToo() {
    for (String form : List.of("onnx-dynamic", "onnx-qdq")) {
      Path out = folder.resolve(form + ".onnx");
      List<Object> args =
          new ArrayList<>(
              List.of("quantize", model, "-o", out, "--to", form, "--calibration", rows));
      args.addAll(ExactProducts.options(form));
      Run.of(args.toArray()).done();
      JsonNode f = Run.of("evaluate", model, out, "--examples", rows, "--json").json();
      assertTrue(f.at("/outputs/0/cosine_mean").asDouble() > 0.99, f.toString());
    }
  }

  /** The same graph, which looks for infinities; and infinities, which are nothing that is missing. */
  @Test
  void toOtherModelsTheyAreMistakes() throws IOException {
    Path out = folder.resolve("out");
    Path other = folder.resolve("other.onnx");
    Files.write(other, SmallModels.model(15, graph("missing IsInf x")).toByteArray());
    String[] nan = {"the tensor x has the value NaN in example 1; finite numbers are right"};
    Run.refused(folder, nan, "evaluate", other, other, "--examples", rows);
    Run.refused(folder, nan, "compress", recipe, "-o", out, "--set", "model.file=other.onnx");
    rows(Float.POSITIVE_INFINITY);
    String[] infinite = {"the tensor x has the value Infinity in example 1"};
    Run.refused(folder, infinite, "evaluate", model, model, "--examples", rows);
    Run.refused(folder, infinite, "compress", recipe, "-o", out);
  }
}
