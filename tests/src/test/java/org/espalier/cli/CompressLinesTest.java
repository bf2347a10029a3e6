package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Examples of numbers as JSON lines are the same as tensors. */
class CompressLinesTest {
  private static final int N = 600;

  private static final String RECIPE =
      """
      model: {file: model.onnx}
      data: {examples: FILE, validation: 100, evaluation: 100, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 60, batch: 32, learning-rate: 1e-2}
        - {kind: quantize, form: dynamic, steps: 20, batch: 32, learning-rate: 1e-3}
      report: {each-stage: false}
      """;

  @TempDir Path folder;
  private final long[] users = new long[N];
  private final float[][] points = new float[N][4];
  private final long[] clicks = new long[N];

  @BeforeEach
  void write() throws IOException {
    Random random = new Random(5);
    for (int i = 0; i < N; i++) {
      users[i] = random.nextInt(20);
      for (int k = 0; k < 4; k++) {
        points[i][k] = (float) random.nextGaussian();
      }
      clicks[i] = points[i][0] + (users[i] % 2 == 0 ? 1 : -1) > 0 ? 1 : 0;
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("clicks")
            .addInput(SmallModels.value("user", DataType.INT64, -1))
            .addInput(SmallModels.value("point", DataType.FLOAT, -1, 2, 2))
            .addInitializer(SmallModels.floats("users", random, 1, 20, 4))
            .addInitializer(SmallModels.floats("layer", random, 0.5f, 8, 16))
            .addInitializer(SmallModels.floats("head", random, 0.5f, 16, 2))
            .addInitializer(SmallModels.int64s("flat", 0, -1))
            .addNode(SmallModels.line("row Gather users user"))
            .addNode(SmallModels.line("numbers Reshape point flat"))
            .addNode(SmallModels.line("both Concat row numbers", SmallModels.attribute("axis", 1)))
            .addNode(SmallModels.line("mixed MatMul both layer"))
            .addNode(SmallModels.line("bent Relu mixed"))
            .addNode(SmallModels.line("logits MatMul bent head"))
            .addOutput(SmallModels.value("logits", DataType.FLOAT, -1, 2));
    Files.write(folder.resolve("model.onnx"), SmallModels.model(17, g).toByteArray());
    tensors();
  }

  private void tensors() throws IOException {
    ByteBuffer user = ByteBuffer.allocate(8 * N).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer point = ByteBuffer.allocate(16 * N).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer label = ByteBuffer.allocate(8 * N).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < N; i++) {
      user.putLong(users[i]);
      label.putLong(clicks[i]);
      for (float x : points[i]) {
        point.putFloat(x);
      }
    }
    long n = N;
    List<TensorSpec> specs =
        List.of(
            new TensorSpec("user", SafetensorsDtype.I64, List.of(n)),
            new TensorSpec("point", SafetensorsDtype.F32, List.of(n, 2L, 2L)),
            new TensorSpec("labels", SafetensorsDtype.I64, List.of(n)));
    try (AtomicFile file = AtomicFile.create(folder.resolve("examples.safetensors"))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      writer.append("user", user.flip());
      writer.append("point", point.flip());
      writer.append("labels", label.flip());
      writer.finish();
      file.commit();
    }
  }

  private String line(int i, boolean flat) {
    String numbers = Arrays.toString(points[i]);
    return flat
        ? "{\"features\": ["
            + users[i]
            + ", "
            + numbers.substring(1)
            + ", \"label\": "
            + clicks[i]
            + "}"
        : "{\"inputs\": {\"point\": "
            + numbers
            + ", \"user\": "
            + users[i]
            + "}, \"label\": \""
            + (clicks[i] == 1 ? "yes" : "no")
            + "\"}";
  }

  private Path lines(boolean flat) throws IOException {
    List<String> lines = new ArrayList<>();
    for (int i = 0; i < N; i++) {
      lines.add(line(i, flat));
    }
    return Files.write(folder.resolve("lines.jsonl"), lines);
  }

  private Path compress(String examples) throws IOException {
    Path recipe =
        Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FILE", examples));
    Path out = folder.resolve("out" + examples.replaceAll("[^a-z]", ""));
    Run.of("compress", recipe, "-o", out).done();
    return out.resolve("model-int8.onnx");
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void linesAreTrainedOnAsTensorsAre(boolean flat) throws IOException {
    Path first = compress("examples.safetensors");
    lines(flat);
    Path second = compress(flat ? "lines.jsonl" : "lines.jsonl, classes: [no, yes]");
    assertEquals(-1, Files.mismatch(first, second));
  }

  /** The features in the order of the inputs, and then a label, which may be a word. */
  private Path cells(String yes) throws IOException {
    List<String> lines =
        new ArrayList<>(List.of("\"who, if any\",a,b,c,d" + (yes == null ? "" : ",click")));
    for (int i = 0; i < N; i++) {
      String numbers = Arrays.toString(points[i]).replaceAll("[\\[\\]]", "");
      String label = clicks[i] == 1 ? ", \"" + yes + "\"" : ",no";
      lines.add(users[i] + ", " + numbers + (yes == null ? "" : label));
    }
    return Files.write(folder.resolve("cells.csv"), lines);
  }

  @Test
  void cellsAreTrainedOnAsTensorsAre() throws IOException {
    Path first = compress("examples.safetensors");
    cells("yes, it was");
    Path second = compress("cells.csv, classes: [no, 'yes, it was']");
    assertEquals(-1, Files.mismatch(first, second));
  }

  @Test
  void refusesCellsThatDoNotFit() throws IOException {
    refusedCells("example 2: there are 5 columns, and 6 before", "1,2,3,4,5,1", "1,2,3,4,5");
    refusedCells("there are 4 columns; 5 features, and a label or values, are right", "1,2,3,4");
    refusedCells("column 2 is no number: 'x'", "1,x,3,4,5,1");
    refusedCells("a double quote does not end", "1,2,3,4,5,\"a");
    refusedCells("the label 'a' is a word", "1,2,3,4,5,a");
    refusedCells("the input point holds null or NaN", "1,2,,4,5,1");
    refusedCells("holds no example", "a,b,c,d,e,f");
  }

  private void refusedCells(String word, String... lines) throws IOException {
    Path recipe =
        Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FILE", "cells.csv"));
    Files.write(folder.resolve("cells.csv"), List.of(lines));
    Run.refused(folder, new String[] {"cells.csv", word}, "recipe", "check", recipe);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void linesAreComparedAndCalibratedOnAsTensorsAre(boolean csv) throws IOException {
    Path model = folder.resolve("model.onnx");
    Path lines = csv ? cells("yes") : lines(true);
    List<JsonNode> results = new ArrayList<>();
    List<byte[]> written = new ArrayList<>();
    for (Path examples : List.of(folder.resolve("examples.safetensors"), lines)) {
      Path out = folder.resolve("quantized.onnx");
      Run.of("quantize", model, "-o", out, "--to", "onnx-qdq", "--calibration", examples).done();
      written.add(Files.readAllBytes(out));
      List<Object> compared =
          new ArrayList<>(List.of("evaluate", model, out, "--examples", examples, "--json"));
      if (csv && examples.equals(lines)) {
        compared.addAll(List.of("--classes", "no,yes"));
      }
      JsonNode json = Run.of(compared.toArray()).json();
      ((ObjectNode) json).remove(List.of("reference_ms", "ms", "speedup"));
      results.add(json);
    }
    assertTrue(Arrays.equals(written.get(0), written.get(1)), "the same ranges");
    assertEquals(results.get(0), results.get(1));
    assertTrue(results.get(0).get("labels").has("accuracy"), results.toString());
    Path out = folder.resolve("unlabelled.onnx");
    Path cells = cells(null);
    Run.of("quantize", model, "-o", out, "--to", "onnx-qdq", "--calibration", cells).done();
    assertTrue(Arrays.equals(written.get(0), Files.readAllBytes(out)), "labels are not needed");
  }

  @Test
  void refusesNumbersThatDoNotFit() throws IOException {
    refused("there is none of text, tokens, image, features and inputs", "{\"label\": 1}");
    refused(
        "example 2: it has a text, and earlier ones have numbers",
        line(0, true),
        "{\"text\": \"a\"}");
    refused(
        "there is no input 'usr'; there are 'user', 'point'",
        line(0, false).replace("user", "usr").replaceAll(", .label.*", "}"));
    refused("the input user is missing", "{\"inputs\": {\"point\": [1, 2, 3, 4]}, \"label\": 1}");
    refused("features holds 4 numbers; 5 are right", "{\"features\": [1, 2, 3, 4], \"label\": 1}");
    refused(
        "the input user holds 0.5; I64 takes whole numbers of its range",
        "{\"features\": [0.5, 2, 3, 4, 5], \"label\": 1}");
    refused(
        "the input point holds null or NaN", "{\"features\": [1, 2, 3, 4, null], \"label\": 1}");
    refused(
        "holds 1.0E300, which is too large for float32",
        "{\"features\": [1, 2, 3, 4, 1e300], \"label\": 1}");
    refused(
        "the input point holds 3 numbers an example, which are not of the shape [2, 2]",
        "{\"inputs\": {\"user\": 1, \"point\": [1, 2, 3]}, \"label\": 1}");
    refused(
        "example 2: the input point holds 3 numbers, earlier ones 4",
        line(0, false).replace("\"yes\"", "1").replace("\"no\"", "0"),
        "{\"inputs\": {\"user\": 1, \"point\": [1, 2, 3]}, \"label\": 1}");
    refused(
        "point holds something that is no number",
        "{\"inputs\": {\"user\": 1, \"point\": [\"1\"]}}");
    refused(
        "there are several of text, tokens, image, features and inputs",
        "{\"features\": [1], \"text\": \"a\"}");
  }

  private void refused(String word, String... lines) throws IOException {
    Path recipe =
        Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FILE", "lines.jsonl"));
    Files.write(folder.resolve("lines.jsonl"), List.of(lines));
    Run.refused(folder, new String[] {"lines.jsonl", word}, "recipe", "check", recipe);
  }
}
