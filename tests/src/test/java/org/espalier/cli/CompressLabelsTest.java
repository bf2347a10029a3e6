package org.espalier.cli;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OrtException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.ExactProducts;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.torch.Libtorch;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Whole runs of models whose labels are 0 and 1 for one logit, or numbers. */
class CompressLabelsTest {
  private static final int N = 900;
  private static final int WIDTH = 6;

  private static final String BINARY =
      """
      model: {file: model.onnx}
      data: {examples: examples.safetensors, validation: 100, evaluation: 300, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 400, batch: 32, learning-rate: 1e-2}
        - {kind: prune, sparsity: 0.3, steps: 60, batch: 32, learning-rate: 3e-3}
        - {kind: quantize, form: FORM, steps: 30, batch: 32, learning-rate: 1e-3}
        - kind: distil
          steps: 20
          batch: 32
          loss: {labels: 0.3, logits: 0.7, temperature: 3, bound: 0.1}
      export: {formats: [onnx, onnx-float, torchscript]}
      report: {each-stage: false}
      """;

  private static final String REGRESSION =
      """
model: {file: model.onnx}
data: {examples: examples.safetensors, validation: 100, evaluation: 300, calibration: 64}
stages:
  - {kind: fine-tune, steps: 500, batch: 32, learning-rate: 1e-2}
  - {kind: prune, sparsity: 0.2, steps: 80, batch: 32, learning-rate: 5e-3, loss: {labels: 1}}
  - {kind: quantize, form: FORM, steps: 30, batch: 32, learning-rate: 1e-3, loss: {labels: 1}}
report: {each-stage: false}
""";

  private static final String TESTED =
      """
      model: {file: model.onnx}
      data:
        examples: examples.safetensors
        evaluation-examples: test.safetensors
        validation: 100
      stages:
        - {kind: fine-tune, steps: 60, batch: 32, learning-rate: 1e-2, loss: {labels: 1}}
      report: {each-stage: false}
      """;

  @TempDir Path folder;
  private Path recipe;
  private final float[] points = new float[N * WIDTH];

  /** Whether a point lies outside a ball. */
  private final double[] outside = new double[N];

  /** Two numbers for each point. */
  private final double[] numbers = new double[2 * N];

  @BeforeEach
  void makeInputs() throws IOException {
    Random random = new Random(5);
    for (int i = 0; i < N; i++) {
      double square = 0;
      for (int j = 0; j < WIDTH; j++) {
        float x = (float) random.nextGaussian();
        points[i * WIDTH + j] = x;
        square += j < 3 ? x * x : 0;
      }
      outside[i] = square > 2.4 ? 1 : 0;
      float[] x = Arrays.copyOfRange(points, i * WIDTH, (i + 1) * WIDTH);
      numbers[2 * i] = 2 + 3 * Math.abs(x[0]) - 2 * x[1];
      numbers[2 * i + 1] = x[2] * x[2] - x[3];
    }
    recipe = Files.writeString(folder.resolve("recipe.yaml"), BINARY.replace("FORM", "dynamic"));
    examples(SafetensorsDtype.I64, outside, N);
    model(1, List.of());
  }

  private void examples(SafetensorsDtype type, double[] labels, long... shape) {
    examples("examples.safetensors", type, labels, shape);
  }

  private void examples(String name, SafetensorsDtype type, double[] labels, long... shape) {
    ByteBuffer values = ByteBuffer.allocate(8 * labels.length).order(ByteOrder.LITTLE_ENDIAN);
    for (double label : labels) {
      switch (type) {
        case I64 -> values.putLong((long) label);
        case I32 -> values.putInt((int) label);
        case F64 -> values.putDouble(label);
        case F32 -> values.putFloat((float) label);
        default -> values.put((byte) label);
      }
    }
    List<Long> dims = Arrays.stream(shape).boxed().toList();
    examples(name, WIDTH, new TensorSpec("labels", type, dims), values.flip());
  }

  /**
   * Writes as many points as fit.
   *
   * @param spec of a tensor beside them
   */
  private void examples(String name, int width, TensorSpec spec, ByteBuffer values) {
    int n = N * WIDTH / width;
    ByteBuffer inputs = ByteBuffer.allocate(4 * n * width).order(ByteOrder.LITTLE_ENDIAN);
    inputs.asFloatBuffer().put(points, 0, n * width);
    List<TensorSpec> specs =
        List.of(
            new TensorSpec("inputs", SafetensorsDtype.F32, List.of((long) n, (long) width)), spec);
    try (AtomicFile file = AtomicFile.create(folder.resolve(name))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      writer.append("inputs", inputs);
      writer.append(spec.name(), values);
      writer.finish();
      file.commit();
    }
  }

  /**
   * Writes a perceptron with random weights.
   *
   * @param outputs of its last layer, z [n, outputs]
   * @param tail nodes after z, the last of which gives the output
   */
  private void model(int outputs, List<NodeProto> tail) throws IOException {
    Random random = new Random(2);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("perceptron")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(floats("w1", random, 0.4f, WIDTH, 32))
            .addInitializer(floats("b1", random, 0.4f, 32))
            .addInitializer(floats("w2", random, 0.3f, 32, outputs))
            .addInitializer(floats("b2", random, 0.1f, outputs))
            .addInitializer(floats("half", new Random(1), 0.5f, 1))
            .addNode(node("MatMul", "m1", List.of("x", "w1"), "p1"))
            .addNode(node("Add", "a1", List.of("p1", "b1"), "h1"))
            .addNode(node("Relu", "r1", List.of("h1"), "h"))
            .addNode(node("MatMul", "m2", List.of("h", "w2"), "p2"))
            .addNode(node("Add", "a2", List.of("p2", "b2"), "z"))
            .addAllNode(tail);
    String last = tail.isEmpty() ? "z" : tail.get(tail.size() - 1).getOutput(0);
    boolean flat = tail.stream().anyMatch(n -> n.getOpType().equals("Squeeze"));
    g.addOutput(flat ? value(last, DataType.FLOAT, -1) : value(last, DataType.FLOAT, -1, outputs));
    Files.write(folder.resolve("model.onnx"), SmallModels.model(12, g).toByteArray());
  }

  private static List<NodeProto> tail(String end) {
    NodeProto sigmoid = node("Sigmoid", "s", List.of("z"), "p");
    return switch (end) {
      case "logit" -> List.of();
      case "flat logit" -> List.of(node("Squeeze", "q", List.of("z"), "y", list("axes", 1)));
      case "sigmoid" -> List.of(sigmoid);
      case "softmax" -> List.of(node("Softmax", "s", List.of("z"), "p"));
      case "flat sigmoid" ->
          List.of(sigmoid, node("Squeeze", "q", List.of("p"), "y", list("axes", 1)));
      case "scaled sigmoid" -> List.of(sigmoid, node("Mul", "m", List.of("p", "half"), "y"));
      case "exponential" ->
          List.of(
              node("Exp", "e", List.of("z"), "e"),
              node("Sub", "d", List.of("e", "e"), "zero"),
              node("Add", "y", List.of("z", "zero"), "y"));
      case "logarithm" -> List.of(node("Log", "l", List.of("z"), "y"));
      default -> throw new IllegalArgumentException(end);
    };
  }

  /** What a model in the output folder gives for all points. */
  private float[] answers(Path model, int outputs) throws OrtException {
    Libtorch.load();
    try (PointerScope scope = new PointerScope()) {
      Tensor y =
          OnnxRuntime.run(
                  OnnxModel.read(model), Map.of("x", AbstractTensor.create(points, N, WIDTH)))
              .values()
              .iterator()
              .next();
      assertEquals((long) N * outputs, y.numel());
      float[] values = new float[N * outputs];
      y.contiguous().data_ptr_float().get(values);
      return values;
    }
  }

  @ParameterizedTest
  @CsvSource({
    "logit, I64, 1, dynamic",
    "flat logit, F32, 1, static",
    "sigmoid, F32, 2, dynamic",
    "flat sigmoid, BOOL, 1, static",
    "sigmoid, F64, 1, static",
    "logit, I32, 2, static",
    "flat logit, U8, 1, dynamic",
    "softmax, I64, 1, dynamic",
  })
  void aClassifierOfOneLogitIsCompressed(String end, SafetensorsDtype type, int rank, String form)
      throws Exception {
    int outputs = end.equals("softmax") ? 2 : 1;
    model(outputs, tail(end));
    examples(type, outside, rank == 1 ? new long[] {N} : new long[] {N, 1});
    Files.writeString(recipe, BINARY.replace("FORM", form));
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", recipe, "-o", out, "--json").json();
    JsonNode f = report.path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.85, f.toString());
    assertTrue(f.path("auc").asDouble() > 0.93, f.toString());
    assertTrue(f.path("log_loss").asDouble() < 0.4, f.toString());
    assertTrue(f.path("reference_auc").asDouble() < 0.8, f.toString());
    assertTrue(f.path("reference_log_loss").asDouble() > 0.5, f.toString());
    assertEquals(outputs == 2, f.has("cosine_mean"), "of one value it is a sign: " + f);
    assertEquals("classification", report.at("/data/task").asText());
    // The validation's quality is the accuracy of what the runtime gives.
    double quality = report.at("/stages/3/after/quality").asDouble();
    assertTrue(quality > 0.8, report.at("/stages/3").toString());
    assertFalse(report.at("/stages/0").has("taught_by"), "by labels alone");
    for (int stage = 1; stage < 4; stage++) {
      assertEquals(
          "{\"stage\":\"fine-tune\"}",
          report.path("stages").get(stage).path("taught_by").toString());
    }
    // What is written still ends as the original does, and is as right on the points as reported.
    float[] all = answers(out.resolve("model-int8.onnx"), outputs);
    boolean probabilities = !end.endsWith("logit");
    int right = 0;
    for (int i = 0; i < N; i++) {
      float y = all[(i + 1) * outputs - 1];
      assertTrue(!probabilities || y >= 0 && y <= 1);
      right += y > (probabilities ? 0.5 : 0) == (outside[i] == 1) ? 1 : 0;
    }
    assertEquals(f.path("accuracy").asDouble(), (double) right / N, 0.07);
    assertEquals(1, OnnxModel.read(out.resolve("model-float.onnx")).outputs().size());
    String page = Files.readString(out.resolve("report.html"));
    for (String word : List.of("AUC", "log loss", "accuracy", "what fine-tune left")) {
      assertTrue(page.contains(word), word);
    }
    String shown = Run.of("compress", recipe, "-o", out, "--resume").done().out();
    assertTrue(shown.contains("AUC 0.") && shown.contains(", the original 0."), shown);
  }

  /** It says what a model with two logits says of which one is 0. */
  @Test
  void endingInASigmoidTrainsTheVeryWeightsOfTheLogit() throws Exception {
    Path logit = folder.resolve("logit");
    Run.of("compress", recipe, "-o", logit).done();
    model(1, tail("sigmoid"));
    Path sigmoid = folder.resolve("sigmoid");
    Run.of("compress", recipe, "-o", sigmoid).done();
    float[] z = answers(logit.resolve("model-float.onnx"), 1);
    float[] p = answers(sigmoid.resolve("model-float.onnx"), 1);
    for (int i = 0; i < N; i++) {
      assertEquals(1 / (1 + Math.exp(-z[i])), p[i], 1e-6);
    }
    // A sigmoid may be taught by logits.
    Files.copy(logit.resolve("model-float.onnx"), folder.resolve("teacher.onnx"));
    Run.of(
            "compress",
            recipe,
            "-o",
            folder.resolve("taught"),
            "--set",
            "teacher.file=teacher.onnx",
            "--set",
            "prune.loss={logits: 1}")
        .done();
  }

  @Test
  void theExitCodeSaysWhetherRequirementsAreMet() throws Exception {
    Files.writeString(
        recipe,
        TESTED.replace(
            "report: {",
            "report: {require: ['accuracy>=reference + 1e-3', size_ratio <= 0.5, auc >= .1], "));
    examples("test.safetensors", SafetensorsDtype.I64, outside, N);
    Path out = folder.resolve("out");
    Run run = Run.of("compress", recipe, "-o", out, "--json");
    assertEquals(3, run.code(), run.err());
    assertTrue(run.err().contains("missed: size_ratio <= 0.5, measured "), run.err());
    assertFalse(run.err().contains("accuracy"), run.err());
    JsonNode verdicts = new ObjectMapper().readTree(run.out()).path("requirements");
    assertEquals("accuracy >= reference + 0.001", verdicts.at("/0/requirement").asText());
    assertEquals(
        List.of(true, false, true),
        verdicts.findValues("met").stream().map(JsonNode::asBoolean).toList());
    assertTrue(verdicts.at("/0/bound").asDouble() < verdicts.at("/0/measured").asDouble());
    assertEquals(0.5, verdicts.at("/1/bound").asDouble());
    assertTrue(Files.readString(out.resolve("report.html")).contains("<td>missed</td>"));
    // What is complete says the same again.
    assertEquals(3, Run.of("compress", recipe, "-o", out, "--resume").code());
    // What cannot be measured is told before anything is trained.
    for (String[] wrong :
        new String[][] {
          {
            "[rmse <= 1]",
            "rmse is not measured here; measured are cosine_mean, agreement, accuracy"
          },
          {"[entity_f1 >= 0.1]", "entity_f1 is not measured here"},
          {"[acuracy >= 1]", "nothing is measured as acuracy; there are 'accuracy'"},
          {"[accuracy > 0.9]", "«accuracy > 0.9» is no requirement; one is a measure, >= or <=,"},
        }) {
      run = Run.of("recipe", "check", recipe, "--set", "report.require=" + wrong[0]);
      assertEquals(2, run.code(), run.err());
      assertTrue(run.err().contains("report.require: ") && run.err().contains(wrong[1]), run.err());
    }
  }

  @Test
  void examplesWithoutALabelCountInNoMetric() throws Exception {
    double[] some = outside.clone();
    for (int i = 0; i < N; i += 3) {
      some[i] = i % 2 == 0 ? Double.NaN : -100;
    }
    examples(SafetensorsDtype.F32, some, N);
    JsonNode report = Run.of("compress", recipe, "-o", folder.resolve("out"), "--json").json();
    JsonNode f = report.path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.8, f.toString());
    assertTrue(f.path("auc").asDouble() > 0.9, f.toString());
  }

  /** What is trained has half of the hidden channels, and follows the whole. */
  @Test
  void channelsAreRemovedBeforeTheStages() throws Exception {
    String narrow =
        BINARY
            .replace("FORM", ExactProducts.form("dynamic"))
            .replace("stages:", "student: {channels: 0.5}\nstages:");
    Files.writeString(recipe, narrow);
    Path out = folder.resolve("out");
    Run run = Run.of("compress", recipe, "-o", out);
    run.done();
    assertTrue(run.err().contains("16 of 32 channels are left"), run.err());
    OnnxModel written = OnnxModel.read(out.resolve("model-float.onnx"));
    assertEquals(
        List.of(List.of(6L, 16L), List.of(16L, 1L)),
        OnnxWeights.of(written).stream().map(w -> dims(written, w.value())).toList());
    JsonNode report = Run.of("compress", recipe, "-o", out, "--resume", "--json").json();
    assertTrue(report.at("/fidelity/accuracy").asDouble() > 0.8, report.at("/fidelity").toString());
    assertEquals(0.5, report.at("/model/channels_removed").asDouble());
    assertEquals("model.onnx", report.at("/stages/1/taught_by/file").asText());
    assertTrue(
        Files.readString(out.resolve("report.html")).contains("50 % of its hidden channels"));

    Path none = folder.resolve("none");
    Files.writeString(recipe, narrow.replace("0.5}\n", "0.5, file: model.onnx}\n"));
    Run.refused(
        folder,
        new String[] {"recipe.yaml:3: student.channels", "not both"},
        "compress",
        recipe,
        "-o",
        none);
    Files.writeString(
        recipe, narrow.replace("channels: 0.5", "file: model.onnx, allocation: uniform"));
    Run.refused(
        folder,
        new String[] {"recipe.yaml:3: student.allocation", "for channels"},
        "compress",
        recipe,
        "-o",
        none);
    Files.writeString(recipe, narrow.replace("{channels: 0.5}", "{}"));
    Run.refused(
        folder,
        new String[] {"student.file", "layers or channels"},
        "compress",
        recipe,
        "-o",
        none);
    Files.writeString(recipe, narrow.replace("channels: 0.5", "channels: 1"));
    Run.refused(folder, new String[] {"recipe.yaml:3", "channels"}, "compress", recipe, "-o", none);
  }

  private static List<Long> dims(OnnxModel model, String constant) {
    return Arrays.stream(model.constant(constant).dims()).boxed().toList();
  }

  @Test
  void aFileOfItsOwnIsMeasuredToTheLastExample() throws Exception {
    // Alone they would be classes: what labels are is told by those that are trained on.
    double[] first = new double[N];
    for (int i = 0; i < N; i++) {
      first[i] = numbers[2 * i];
    }
    examples(SafetensorsDtype.F32, first, N);
    double[] ones = new double[N];
    Arrays.fill(ones, 1);
    examples("test.safetensors", SafetensorsDtype.F32, ones, N);
    Files.writeString(recipe, TESTED);
    JsonNode report = Run.of("compress", recipe, "-o", folder.resolve("out"), "--json").json();
    assertEquals(N, report.at("/data/evaluation").asInt());
    assertEquals(N - 100, report.at("/data/training").asInt());
    assertEquals("test.safetensors", report.at("/data/evaluation_source").asText());
    assertTrue(Files.readString(folder.resolve("out/report.html")).contains("test.safetensors"));
    float[] answers = answers(folder.resolve("out/model.onnx"), 1);
    double squares = 0;
    for (float y : answers) {
      squares += (y - 1.0) * (y - 1);
    }
    assertEquals(Math.sqrt(squares / N), report.at("/fidelity/rmse").asDouble(), 1e-5);
    // Two classes, of which the other file has one.
    examples(SafetensorsDtype.I64, outside, N);
    report = Run.of("compress", recipe, "-o", folder.resolve("classes"), "--json").json();
    answers = answers(folder.resolve("classes/model.onnx"), 1);
    int right = 0;
    for (float z : answers) {
      right += z > 0 ? 1 : 0;
    }
    assertEquals((double) right / N, report.at("/fidelity/accuracy").asDouble(), 1e-9);
    assertTrue(right > N / 4 && right < N, right + " of " + N);
  }

  @Test
  void aFileOfItsOwnThatIsNotLikeTheExamplesIsRefused() throws Exception {
    Files.writeString(recipe, TESTED);
    Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
    Run.refused(folder, new String[] {"test.safetensors"}, run);
    ByteBuffer none = ByteBuffer.allocate(8 * N);
    TensorSpec labels = new TensorSpec("labels", SafetensorsDtype.I64, List.of((long) N / 2));
    examples("test.safetensors", 2 * WIDTH, labels, none.duplicate().limit(4 * N));
    Run.refused(folder, new String[] {"inputs F32 [12]", "inputs F32 [6]", "is right"}, run);
    labels = new TensorSpec("label", SafetensorsDtype.I64, List.of((long) N));
    examples("test.safetensors", WIDTH, labels, none.duplicate());
    Run.refused(folder, new String[] {"no labels; 1 label an example, as in examples.saf"}, run);
    examples("test.safetensors", SafetensorsDtype.I64, new double[2 * N], N, 2);
    Run.refused(
        folder, new String[] {"2 labels an example; 1 label an example, as in examples.saf"}, run);
    double[] classes = outside.clone();
    classes[3] = 2;
    examples("test.safetensors", SafetensorsDtype.I64, classes, N);
    Run.refused(folder, new String[] {"z is one logit", "a label 2"}, run);
    Files.writeString(recipe, TESTED.replace("evaluation-examples", "evaluation-texts"));
    Run.refused(folder, new String[] {"recipe.yaml", "evaluation-examples takes them"}, run);
    Files.writeString(recipe, TESTED.replace("examples: ex", "texts: ex"));
    Run.refused(folder, new String[] {"recipe.yaml", "evaluation-texts takes them"}, run);
  }

  /** What 'recipe init' writes needs no other key, whatever the labels are. */
  @ParameterizedTest
  @CsvSource({"1, reference_log_loss", "2, reference_r2"})
  void aRecipeFromInitRuns(int outputs, String measured) throws Exception {
    if (outputs == 2) {
      model(2, List.of());
      examples(SafetensorsDtype.F32, numbers, N, 2);
    }
    Path made = folder.resolve("made.yaml");
    String data = "examples.safetensors";
    Run.of("recipe", "init", "-o", made, "--model", "model.onnx", "--examples", data).done();
    JsonNode report =
        Run.of("compress", made, "-o", folder.resolve("out"), "--json", "--set", "quantize.steps=4")
            .json();
    assertTrue(report.path("fidelity").has(measured), report.toString());
  }

  @Test
  void labelsAndModelsThatDoNotFitAreRefusedBeforeAnythingIsWritten() throws Exception {
    Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
    double[] labels = outside.clone();
    labels[7] = 2;
    examples(SafetensorsDtype.I64, labels, N);
    Run.refused(folder, new String[] {"z is one logit", "a label 2", "0 to 1", "-100"}, run);
    labels[7] = -1;
    examples(SafetensorsDtype.I64, labels, N);
    Run.refused(folder, new String[] {"z is one logit", "a label -1"}, run);
    examples(SafetensorsDtype.I64, new double[N], N);
    Run.refused(folder, new String[] {"all labels of the training examples are 0"}, run);
    labels[7] = Double.POSITIVE_INFINITY;
    examples(SafetensorsDtype.F32, labels, N);
    Run.refused(folder, new String[] {"example 8", "Infinity"}, run);
    Arrays.fill(labels, Double.NaN);
    examples(SafetensorsDtype.F32, labels, N);
    Run.refused(folder, new String[] {"none of the training examples has one"}, run);
    examples(SafetensorsDtype.I64, new double[N - 1], N - 1);
    Run.refused(folder, new String[] {"labels [899]", "900"}, run);
    examples(SafetensorsDtype.I64, outside, 1, N);
    Run.refused(folder, new String[] {"labels [1, 900]", "900"}, run);
    examples(SafetensorsDtype.I64, outside, N);
    model(1, tail("scaled sigmoid"));
    Run.refused(
        folder, new String[] {"the output y of", "model.onnx", "probabilities", "Sigmoid"}, run);
    model(1, tail("softmax"));
    Run.refused(folder, new String[] {"the output z", "Softmax alone", "Sigmoid"}, run);
    model(1, tail("logarithm"));
    Run.refused(folder, new String[] {"model.onnx", "the output y", "NaN"}, run);
    // Of one example alone, wherever it is: trained on, validated with or measured.
    model(1, tail("exponential"));
    String text = BINARY.replace("FORM", "dynamic");
    String taught = text.replaceFirst("  - \\{kind: fine-tune.*\n", "");
    // Where nothing but labels is learned, the step that comes to it sees it.
    String untaught = text.replaceAll("(?s)  - \\{kind: prune.*(?=export)", "");
    for (String stages : new String[] {taught, untaught}) {
      Files.writeString(recipe, stages);
      for (int example : new int[] {100, 500, 700}) {
        points[WIDTH * example] = 1e30f;
        examples(SafetensorsDtype.I64, outside, N);
        Run.refused(folder, new String[] {"for one of the", "examples"}, run);
        points[WIDTH * example] = 0;
      }
    }
  }

  @Test
  void numbersWithoutASquareAreRefused() throws Exception {
    Files.writeString(recipe, REGRESSION.replace("FORM", "dynamic"));
    model(2, List.of());
    double[] labels = numbers.clone();
    Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
    for (int example = 0; example < 8; example++) {
      labels[2 * example] = -1e20;
    }
    examples(SafetensorsDtype.F32, labels, N, 2);
    Run.refused(folder, new String[] {"learns numbers", "the label -1.0E20", "1.0E18"}, run);
  }

  private static double[] every(int step, double[] values) {
    double[] some = new double[values.length / step];
    Arrays.setAll(some, i -> values[step * i]);
    return some;
  }

  @ParameterizedTest
  @CsvSource({
    "flat logit, F32, 1, dynamic",
    "logit, F64, 1, static",
    "logit, F32, 2, dynamic",
    "two, F32, 2, static",
  })
  void aModelOfNumbersIsCompressed(String end, SafetensorsDtype type, int rank, String form)
      throws Exception {
    int outputs = end.equals("two") ? 2 : 1;
    double[] labels = outputs == 2 ? numbers : every(2, numbers);
    model(outputs, end.equals("two") ? List.of() : tail(end));
    examples(type, labels, rank == 1 ? new long[] {N} : new long[] {N, outputs});
    Files.writeString(recipe, REGRESSION.replace("FORM", ExactProducts.form(form)));
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", recipe, "-o", out, "--json").json();
    JsonNode f = report.path("fidelity");
    assertEquals("regression", report.at("/data/task").asText());
    assertTrue(f.path("r2").asDouble() > 0.85, f.toString());
    assertTrue(f.path("reference_r2").asDouble() < 0.2, f.toString());
    assertTrue(f.path("mae").asDouble() < f.path("rmse").asDouble(), f.toString());
    assertTrue(f.path("relative_error").asDouble() > 0 && f.has("cosine"), f.toString());
    // The loss of labels is what R² leaves to 1, nearly: of the validation examples.
    JsonNode after = report.at("/stages/2/after");
    assertEquals(1 - after.path("loss").asDouble(), after.path("quality").asDouble(), 1e-6);
    assertEquals(f.path("r2").asDouble(), after.path("quality").asDouble(), 0.1);
    float[] y = answers(out.resolve("model-int8.onnx"), outputs);
    double squares = 0;
    for (int i = 0; i < y.length; i++) {
      squares += (y[i] - labels[i]) * (y[i] - labels[i]) / y.length;
    }
    assertEquals(Math.sqrt(squares), f.path("rmse").asDouble(), 0.3 * Math.sqrt(squares));
    Path model = folder.resolve("model.onnx");
    JsonNode all =
        Run.of(
                "evaluate",
                model,
                out.resolve("model-int8.onnx"),
                "--examples",
                folder.resolve("examples.safetensors"),
                "--json")
            .json()
            .path("labels");
    assertEquals(f.path("rmse").asDouble(), all.path("rmse").asDouble(), 0.3 * Math.sqrt(squares));
    assertTrue(all.path("r2").asDouble() > 0.85 && all.has("reference_mae"), all.toString());
    String page = Files.readString(out.resolve("report.html"));
    for (String word : List.of("RMSE", "MAE", "R²", "cosine")) {
      assertTrue(page.contains(word), word);
    }
    String shown = Run.of("compress", recipe, "-o", out, "--resume").done().out();
    assertTrue(shown.contains("RMSE 0.") && shown.contains("R² 0.9"), shown);
  }

  /** The teacher alone, labels alone and both: a good teacher helps where labels are few. */
  @Test
  void numbersMayBeUnknownAndATeacherFillsIn() throws Exception {
    model(1, List.of());
    double[] labels = every(2, numbers);
    examples(SafetensorsDtype.F32, labels, N);
    Files.writeString(recipe, REGRESSION.replace("FORM", "dynamic"));
    Path good = folder.resolve("good");
    Run.of("compress", recipe, "-o", good, "--set", "export.formats=onnx-float").done();
    Files.copy(good.resolve("model-float.onnx"), folder.resolve("teacher.onnx"));
    for (int i = 0; i < N; i++) {
      labels[i] = i % 4 == 0 ? labels[i] : Double.NaN;
    }
    examples(SafetensorsDtype.F32, labels, N);
    JsonNode f =
        Run.of(
                "compress",
                recipe,
                "-o",
                folder.resolve("taught"),
                "--json",
                "--set",
                "teacher.file=teacher.onnx",
                "--set",
                "fine-tune.loss={labels: 0.5, output: 0.5}",
                "--set",
                "prune.loss=",
                "--set",
                "quantize.loss={output: 1}")
            .json()
            .path("fidelity");
    assertTrue(f.path("r2").asDouble() > 0.8, f.toString());
  }

  @Test
  void numbersThatDoNotFitAreRefusedBeforeAnythingIsWritten() throws Exception {
    Files.writeString(recipe, REGRESSION.replace("FORM", "dynamic"));
    Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
    double[] one = every(2, numbers);
    examples(SafetensorsDtype.F32, numbers, N, 2);
    Run.refused(folder, new String[] {"z has 1 value", "labels have 2 (numbers"}, run);
    model(2, List.of());
    examples(SafetensorsDtype.F32, one, N);
    Run.refused(
        folder, new String[] {"z has 2 values", "labels have 1 (numbers", "classification"}, run);
    model(1, List.of());
    for (double bad : new double[] {Double.NEGATIVE_INFINITY, 1e39}) {
      double[] labels = one.clone();
      labels[20] = bad;
      examples(SafetensorsDtype.F64, labels, N);
      Run.refused(folder, new String[] {"label of example 21", String.valueOf(bad)}, run);
    }
    double[] same = new double[N];
    Arrays.fill(same, 3.5);
    examples(SafetensorsDtype.F32, same, N);
    Run.refused(folder, new String[] {"stage fine-tune", "all labels", "equal"}, run);
    Arrays.fill(same, Double.NaN);
    same[3] = 2.5;
    examples(SafetensorsDtype.F32, same, N);
    Run.refused(folder, new String[] {"examples"}, run);
    double[] flags = new double[2 * N];
    flags[4] = 1;
    examples(SafetensorsDtype.F32, flags, N, 2);
    Run.refused(folder, new String[] {"the output z", "[1, 1] for an example with 2 labels"}, run);
    examples(SafetensorsDtype.F32, one, N, 1, 1);
    Run.refused(folder, new String[] {"labels [900, 1, 1]", "[N, values]"}, run);
    examples(SafetensorsDtype.F32, one, N);
    Object[] set = {"recipe", "check", recipe, "--set", ""};
    set[4] = "prune.loss={labels: 1, logits: 1}";
    Run.refused(folder, new String[] {"stage prune", "for classes", "output: 0.5"}, set);
    set[4] = "data.task=classification";
    Run.refused(folder, new String[] {"label of example 1", "whole numbers"}, set);
    examples(SafetensorsDtype.I64, outside, N);
    set[4] = "prune.loss={labels: 1, output: 1}";
    Run.refused(folder, new String[] {"stage prune", "numbers", "logits: 0.5"}, set);
    // Integers are numbers where the recipe says so.
    for (int i = 0; i < N; i++) {
      outside[i] = i % 9;
    }
    examples(SafetensorsDtype.I32, outside, N);
    set[4] = "seed=1";
    Run.refused(folder, new String[] {"one logit", "data.task: regression"}, set);
    set[4] = "data.task=regression";
    Run.of(set).done();
  }
}
