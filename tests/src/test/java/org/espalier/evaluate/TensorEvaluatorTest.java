package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TensorEvaluatorTest {
  private static final int N = 20;

  @TempDir Path folder;
  private Path examples;
  private Path reference;

  @BeforeEach
  void files() throws IOException {
    examples = folder.resolve("x.safetensors");
    String header =
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[" + N + ",8],\"data_offsets\":[0," + 32 * N + "]}}";
    ByteBuffer bytes =
        ByteBuffer.allocate(8 + header.length() + 32 * N).order(ByteOrder.LITTLE_ENDIAN);
    bytes.putLong(header.length()).put(header.getBytes(StandardCharsets.UTF_8));
    Random random = new Random(1);
    while (bytes.hasRemaining()) {
      bytes.putFloat((float) random.nextGaussian());
    }
    Files.write(examples, bytes.array());
    reference = write("reference.onnx", OnnxModel.of(SmallModels.mlp(), "mlp"));
  }

  private Path write(String name, OnnxModel model) {
    Path file = folder.resolve(name);
    model.write(file);
    return file;
  }

  private static TensorFidelity evaluate(Path reference, Path candidate, Path file, int count) {
    ExampleTensors source = ExampleFile.read(file, OnnxModel.read(reference), count);
    try (ModelPair pair =
        new ModelPair(MeasuredModel.of(reference), MeasuredModel.of(candidate), source)) {
      return TensorEvaluator.evaluate(pair, Progress.NONE);
    }
  }

  @Test
  void tellsHowFarItIs() {
    List<String> told = new ArrayList<>();
    Progress progress = (phase, done, total) -> told.add(phase + " " + done + " of " + total);
    ExampleTensors source = ExampleFile.read(examples, OnnxModel.read(reference), 3);
    try (ModelPair pair =
        new ModelPair(MeasuredModel.of(reference), MeasuredModel.of(reference), source)) {
      TensorEvaluator.evaluate(pair, progress);
      assertEquals(List.of("EVALUATE 0 of 3", "EVALUATE 1 of 3", "EVALUATE 2 of 3"), told);
      told.clear();
      pair.savings(progress);
      // Three rounds are the least.
      assertEquals(List.of("TIME 0 of 9", "TIME 1 of 9", "TIME 2 of 9"), told.subList(0, 3));
      assertTrue(told.contains("TIME 8 of 9"));
    }
  }

  /** A model whose second product has weights that are {@code factor} times as large, and its bias too. */
  private Path scaled(float factor) {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    for (String name : new String[] {"w2", "b2"}) {
      OnnxInitializer w = model.initializer(name);
      float[] values = SmallModels.values(model, name);
      for (int i = 0; i < values.length; i++) {
        values[i] *= factor;
      }
      model.replaceInitializer(OnnxInitializer.floats(name, w.dims(), values));
    }
    return write("scaled.onnx", model);
  }

  private static List<Float> firstOutputs(ActivationSource source, OnnxModel model) {
    List<Float> values = new ArrayList<>();
    source.run(model, List.of("y"), (name, shape, y) -> values.add(y.get(y.position())));
    return values;
  }

  @Test
  void someExamplesAreEvenlySpread() {
    OnnxModel model = OnnxModel.read(reference);
    ExampleActivations source = new ExampleActivations(ExampleFile.read(examples, model, N), 1);
    List<Float> all = firstOutputs(source, model);
    assertEquals(N, all.size());
    assertEquals(
        List.of(all.get(0), all.get(N / 3), all.get(2 * N / 3)),
        firstOutputs(source.some(3), model));
    assertEquals(all, firstOutputs(source.some(N + 1), model));
  }

  @Test
  void outputsAreCompared() {
    TensorFidelity same = evaluate(reference, reference, examples, Integer.MAX_VALUE);
    assertEquals(N, same.examples());
    assertEquals(
        new TensorFidelity.Output("y", 1, 1, 0, 0, 1), same.outputs().get(0), same.toString());

    TensorFidelity larger = evaluate(reference, scaled(1.25f), examples, 10);
    assertEquals(10, larger.examples());
    TensorFidelity.Output y = larger.outputs().get(0);
    assertEquals(1, y.cosineMin(), 1e-6);
    assertEquals(0.25, y.relativeError(), 1e-6);
    assertEquals(1, y.agreement());
    assertTrue(y.largestDifference() > 0.1, larger.toString());

    TensorFidelity opposite = evaluate(reference, scaled(-1), examples, N);
    y = opposite.outputs().get(0);
    assertEquals(-1, y.cosineMean(), 1e-6);
    assertEquals(2, y.relativeError(), 1e-6);
    assertEquals(0, y.agreement());
  }

  /** The cosine of one value is a sign: that of all examples' values together says more. */
  @Test
  void oneValueAnExampleIsComparedOverAll() {
    List<Path> models = new ArrayList<>();
    for (float shift : new float[] {0, 3}) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .setName("sum")
              .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
              .addInitializer(SmallModels.floats("w", new Random(1), 1, 8, 1))
              .addInitializer(
                  SmallModels.tensor(
                      "b",
                      DataType.FLOAT,
                      ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putFloat(0, shift),
                      1))
              .addNode(SmallModels.node("MatMul", "", List.of("x", "w"), "s"))
              .addNode(SmallModels.node("Add", "", List.of("s", "b"), "y"))
              .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 1));
      models.add(write("sum" + shift, OnnxModel.of(SmallModels.model(13, g), "sum")));
    }
    TensorFidelity.Output y = evaluate(models.get(0), models.get(1), examples, N).outputs().get(0);
    assertTrue(y.cosineMean() > -0.9 && y.cosineMean() < 0.9, y.toString());
    assertTrue(Double.isNaN(y.cosineMin()), y.toString());
    y = evaluate(models.get(0), models.get(0), examples, N).outputs().get(0);
    assertEquals(1, y.cosineMean());
  }

  /** Speech models take a state whose batch is its second dimension, and the rate as a scalar. */
  @Test
  void examplesThatHaveADimensionMoreAreFedAsTheyAre() throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("state")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 3))
            .addInput(SmallModels.value("state", DataType.FLOAT, 2, -1, 3))
            .addInput(SmallModels.value("rate", DataType.FLOAT))
            .addNode(SmallModels.node("Add", "", List.of("x", "state"), "s"))
            .addNode(SmallModels.node("Mul", "", List.of("s", "rate"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, 2, -1, 3));
    Path model = write("state.onnx", OnnxModel.of(SmallModels.model(13, g), "state"));
    String state = "\"state\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[48,144]}";
    String others =
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[4,3],\"data_offsets\":[0,48]},"
            + "\"rate\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[144,160]},";
    Path file = folder.resolve("state.safetensors");
    RawSafetensors.write(file, others + state.formatted("[4,2,1,3]") + "}", 160);
    assertEquals(4, evaluate(model, model, file, 10).examples());
    List<float[]> seen = new ArrayList<>();
    new ExampleActivations(ExampleFile.read(file, OnnxModel.read(model), 10), 1)
        .run(
            OnnxModel.read(model),
            List.of("s"),
            (name, shape, values) -> seen.add(new float[values.remaining()]));
    assertEquals(4, seen.size());
    assertEquals(6, seen.get(0).length);

    Path flat = folder.resolve("flat.safetensors");
    RawSafetensors.write(flat, others + state.formatted("[4,2,3]") + "}", 160);
    InputException e = assertThrows(InputException.class, () -> evaluate(model, model, flat, 10));
    assertTrue(e.getMessage().contains("[1, 2, 3], does not fit"), e.getMessage());
    assertTrue(e.getMessage().contains("needs a dimension more"), e.getMessage());
  }

  @Test
  void outputsOfOtherFloatingTypesAreCompared() {
    for (DataType type : List.of(DataType.FLOAT16, DataType.DOUBLE)) {
      OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
      ModelProto.Builder proto = model.toProto().toBuilder();
      proto
          .getGraphBuilder()
          .addNode(
              SmallModels.node(
                  "Cast", "", List.of("y"), "z", SmallModels.attribute("to", type.getNumber())))
          .setOutput(0, SmallModels.value("z", type, -1, 4));
      Path other = write(type + ".onnx", OnnxModel.of(proto.build(), "cast"));
      TensorFidelity.Output z = evaluate(other, other, examples, N).outputs().get(0);
      assertEquals(new TensorFidelity.Output("z", 1, 1, 0, 0, 1), z);
    }
  }

  /** Two models that fail alike do not agree. */
  @Test
  void whatIsNoNumberIsNearNothing() {
    Path broken = scaled(Float.NaN);
    for (Path first : new Path[] {reference, broken}) {
      TensorFidelity.Output y = evaluate(first, broken, examples, N).outputs().get(0);
      assertTrue(Double.isNaN(y.cosineMean()) && Double.isNaN(y.relativeError()), y.toString());
      assertEquals(0, y.agreement());
    }
  }

  @Test
  void inputsThatAreNoTensorsAreRefused() {
    TypeProto.Builder type = TypeProto.newBuilder();
    type.getSequenceTypeBuilder()
        .setElemType(SmallModels.value("", DataType.FLOAT, -1, 8).getType());
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("sequence")
            .addInput(ValueInfoProto.newBuilder().setName("x").setType(type))
            .addInitializer(SmallModels.tensor("0", DataType.INT64, ByteBuffer.allocate(8)))
            .addNode(SmallModels.node("SequenceAt", "", List.of("x", "0"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    Path model = write("sequence.onnx", OnnxModel.of(SmallModels.model(13, g), "sequence"));
    InputException e =
        assertThrows(InputException.class, () -> evaluate(model, model, examples, N));
    assertTrue(e.getMessage().contains("is a sequence, a map or optional"), e.getMessage());
  }

  @Test
  void modelsThatDoNotFitAreRefused() {
    Path other = write("cnn.onnx", OnnxModel.of(SmallModels.cnn(), "cnn"));
    for (Path[] pair : new Path[][] {{reference, other}, {other, reference}}) {
      InputException e =
          assertThrows(InputException.class, () -> evaluate(pair[0], pair[1], examples, N));
      assertTrue(e.getMessage().contains("cnn"), e.getMessage());
    }
  }
}
