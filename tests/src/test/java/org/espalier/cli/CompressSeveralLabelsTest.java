package org.espalier.cli;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
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
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
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
import org.junit.jupiter.params.provider.ValueSource;

/** Whole runs of models that give several answers an example: for its tokens, its pixels, or several classes. */
class CompressSeveralLabelsTest {
  private static final int N = 600;
  private static final int TOKENS = 7;
  private static final int IDS = 12;
  private static final int CLASSES = 3;
  private static final int SIDE = 6;
  private static final int WIDTH = 5;

  private static final String RECIPE =
      """
      model: {file: model.onnx}
      data: {examples: examples.safetensors, validation: 64, evaluation: 128, calibration: 64}
      stages:
        - {kind: fine-tune, steps: STEPS, batch: 32, learning-rate: 1e-2}
        - {kind: quantize, form: FORM, steps: 20, batch: 32, learning-rate: 1e-3}
      export: {formats: [onnx, onnx-float]}
      report: {each-stage: false}
      """;

  @TempDir Path folder;
  private Path recipe;
  private final Random random = new Random(7);

  @BeforeEach
  void begin() throws IOException {
    recipe = recipe("dynamic", 150);
    Libtorch.load();
  }

  private Path recipe(String form, int steps) throws IOException {
    String text = RECIPE.replace("FORM", form).replace("STEPS", String.valueOf(steps));
    return Files.writeString(folder.resolve("recipe.yaml"), text);
  }

  /** A tensor of a file of examples. */
  private record Data(String name, SafetensorsDtype type, ByteBuffer bytes, List<Long> shape) {
    static Data of(String name, float[] values, long... shape) {
      ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
      bytes.asFloatBuffer().put(values);
      return new Data(name, SafetensorsDtype.F32, bytes, list(shape));
    }

    static Data of(String name, long[] values, long... shape) {
      ByteBuffer bytes = ByteBuffer.allocate(8 * values.length).order(ByteOrder.LITTLE_ENDIAN);
      bytes.asLongBuffer().put(values);
      return new Data(name, SafetensorsDtype.I64, bytes, list(shape));
    }

    private static List<Long> list(long[] shape) {
      return Arrays.stream(shape).boxed().toList();
    }
  }

  private void examples(Data... data) {
    List<TensorSpec> specs = new ArrayList<>();
    for (Data d : data) {
      specs.add(new TensorSpec(d.name, d.type, d.shape));
    }
    try (AtomicFile file = AtomicFile.create(folder.resolve("examples.safetensors"))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      for (Data d : data) {
        writer.append(d.name, d.bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN));
      }
      writer.finish();
      file.commit();
    }
  }

  private void write(int opset, GraphProto.Builder graph) throws IOException {
    Files.write(folder.resolve("model.onnx"), SmallModels.model(opset, graph).toByteArray());
  }

  /** What a model gives for some inputs. */
  private static float[] answers(Path model, Map<String, Tensor> inputs) {
    try (PointerScope scope = new PointerScope()) {
      Tensor y = OnnxRuntime.run(OnnxModel.read(model), inputs).values().iterator().next();
      float[] values = new float[(int) y.numel()];
      y.contiguous().data_ptr_float().get(values);
      return values;
    } catch (ai.onnxruntime.OrtException e) {
      throw new AssertionError(e);
    }
  }

  /** Of token ids [n, TOKENS] logits [n, TOKENS, CLASSES], for each from the token and its sequence's mean. */
  private GraphProto.Builder tagger(List<NodeProto> tail) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("tagger")
            .addInput(value("input_ids", DataType.INT64, -1, TOKENS))
            .addInput(value("attention_mask", DataType.INT64, -1, TOKENS))
            .addInitializer(floats("table", random, 1, IDS, 8))
            .addInitializer(floats("hidden", random, 0.4f, 8, 16))
            .addInitializer(floats("head", random, 0.4f, 16, CLASSES))
            .addNode(node("Gather", "", List.of("table", "input_ids"), "rows"))
            .addNode(node("Cast", "", List.of("attention_mask"), "kept", attribute("to", 1)))
            .addInitializer(SmallModels.int64s("shape", 0, 0, 1))
            .addNode(node("Reshape", "", List.of("kept", "shape"), "column"))
            .addNode(node("Mul", "", List.of("rows", "column"), "present"))
            .addNode(node("MatMul", "", List.of("present", "hidden"), "h"))
            .addNode(node("Relu", "", List.of("h"), "r"))
            .addNode(node("MatMul", "", List.of("r", "head"), "z"))
            .addAllNode(tail);
    String last = tail.isEmpty() ? "z" : tail.get(tail.size() - 1).getOutput(0);
    return g.addOutput(value(last, DataType.FLOAT, -1, TOKENS, CLASSES));
  }

  /**
   * A token's class is its id modulo CLASSES. Padding, which is id 0, has class 1: a model that learned or was
   * measured there could not be right.
   */
  private long[][] sentences(boolean labelled) {
    long[] ids = new long[N * TOKENS];
    long[] mask = new long[N * TOKENS];
    long[] labels = new long[N * TOKENS];
    for (int i = 0; i < N; i++) {
      int length = 2 + random.nextInt(TOKENS - 2);
      for (int t = 0; t < TOKENS; t++) {
        int at = i * TOKENS + t;
        ids[at] = t < length ? random.nextInt(IDS) : 0;
        mask[at] = t < length ? 1 : 0;
        labels[at] = t >= length ? 1 : t == 0 ? -100 : ids[at] % CLASSES;
      }
    }
    Data[] data = {
      Data.of("input_ids", ids, N, TOKENS),
      Data.of("attention_mask", mask, N, TOKENS),
      Data.of("labels", labels, N, TOKENS)
    };
    examples(labelled ? data : Arrays.copyOf(data, 2));
    return new long[][] {ids, mask, labels};
  }

  @ParameterizedTest
  @CsvSource({"logits, dynamic", "softmax, static"})
  void tokensAreClassified(String end, String form) throws IOException {
    boolean softmax = end.equals("softmax");
    write(
        12,
        tagger(
            softmax
                ? List.of(node("Softmax", "", List.of("z"), "p", attribute("axis", 2)))
                : List.of()));
    long[][] data = sentences(true);
    recipe(form, 150);
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", recipe, "-o", out, "--json").json();
    JsonNode f = report.path("fidelity");
    assertEquals("classification", report.at("/data/task").asText());
    assertTrue(f.path("accuracy").asDouble() > 0.97, f.toString());
    assertTrue(f.path("f1").asDouble() > 0.97, f.toString());
    assertTrue(f.path("reference_f1").asDouble() < 0.7, f.toString());
    assertTrue(f.path("log_loss").asDouble() < 0.2 && !f.has("auc"), f.toString());
    assertTrue(report.at("/stages/1/after/quality").asDouble() > 0.97, report.toString());
    try (PointerScope scope = new PointerScope()) {
      float[] y =
          answers(
              out.resolve("model-int8.onnx"),
              Map.of(
                  "input_ids", AbstractTensor.create(data[0], N, TOKENS),
                  "attention_mask", AbstractTensor.create(data[1], N, TOKENS)));
      int right = 0;
      int known = 0;
      for (int i = 0; i < N * TOKENS; i++) {
        if (data[1][i] == 1 && data[2][i] >= 0) {
          known++;
          int best = 0;
          for (int c = 1; c < CLASSES; c++) {
            best = y[i * CLASSES + c] > y[i * CLASSES + best] ? c : best;
          }
          right += best == data[2][i] ? 1 : 0;
        }
      }
      assertEquals(f.path("accuracy").asDouble(), (double) right / known, 0.03);
    }
    String page = Files.readString(out.resolve("report.html"));
    assertTrue(page.contains("F1") && page.contains("accuracy"));
    measuredAgain(out.resolve("model-int8.onnx"), f);
    // Without labels its logits are followed, token by token.
    sentences(false);
    Files.copy(out.resolve("model-float.onnx"), folder.resolve("teacher.onnx"));
    JsonNode taught =
        Run.of(
                "compress",
                recipe,
                "-o",
                folder.resolve("taught"),
                "--json",
                "--set",
                "teacher.file=teacher.onnx",
                "--set",
                "fine-tune.kind=distil",
                "--set",
                "distil.loss={logits: 1}",
                "--set",
                "quantize.loss={logits: 1}")
            .json();
    assertTrue(taught.at("/stages/0/after/quality").asDouble() > 0.9, taught.toString());
  }

  /** 'evaluate' measures by the labels of all examples what a run measured by those that it held out. */
  private void measuredAgain(Path model, JsonNode held) {
    Object[] evaluate = {
      "evaluate",
      folder.resolve("model.onnx"),
      model,
      "--examples",
      folder.resolve("examples.safetensors"),
      "--task",
      "classification",
      "--json"
    };
    JsonNode labels = Run.of(evaluate).json().path("labels");
    for (String key : List.of("accuracy", "f1", "reference_accuracy", "reference_f1")) {
      assertEquals(held.path(key).asDouble(), labels.path(key).asDouble(), 0.1, key);
    }
    String table = Run.of(Arrays.copyOf(evaluate, evaluate.length - 1)).done().out();
    assertTrue(table.contains("accuracy") && table.contains(", the reference 0."), table);
    evaluate[6] = "none";
    assertTrue(Run.of(evaluate).json().path("labels").isMissingNode());
    // As numbers they do not fit the output; without a task that is said and no more.
    evaluate[6] = "regression";
    Run.refused(folder, new String[] {"first output has 21 values", "labels have 7"}, evaluate);
  }

  @ParameterizedTest
  @ValueSource(ints = {1, -1})
  void pixelsAreClassified(int axis) throws IOException {
    int pixels = SIDE * SIDE;
    float[] images = new float[N * pixels];
    long[] labels = new long[N * pixels];
    for (int i = 0; i < images.length; i++) {
      images[i] = (float) random.nextGaussian();
      labels[i] = images[i] < -0.5 ? 0 : images[i] < 0.5 ? 1 : 2;
    }
    examples(Data.of("inputs", images, N, 1, SIDE, SIDE), Data.of("labels", labels, N, SIDE, SIDE));
    NodeProto turned =
        node("Transpose", "", List.of("z"), "y", SmallModels.list("perm", 0, 2, 3, 1));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("map")
            .addInput(value("x", DataType.FLOAT, -1, 1, SIDE, SIDE))
            .addInitializer(floats("w1", random, 0.5f, 8, 1, 3, 3))
            .addInitializer(floats("b1", random, 0.5f, 8))
            .addInitializer(floats("w2", random, 0.5f, CLASSES, 8, 1, 1))
            .addInitializer(floats("b2", random, 0.5f, CLASSES))
            .addNode(
                node("Conv", "", List.of("x", "w1", "b1"), "c1", attribute("pads", 1, 1, 1, 1)))
            .addNode(node("Relu", "", List.of("c1"), "r"))
            .addNode(node("Conv", "", List.of("r", "w2", "b2"), axis == 1 ? "y" : "z"));
    if (axis == 1) {
      g.addOutput(value("y", DataType.FLOAT, -1, CLASSES, SIDE, SIDE));
    } else {
      g.addNode(turned).addOutput(value("y", DataType.FLOAT, -1, SIDE, SIDE, CLASSES));
    }
    write(13, g);
    recipe("static", 200);
    JsonNode f =
        Run.of("compress", recipe, "-o", folder.resolve("out"), "--json").json().path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.85, f.toString());
    assertTrue(f.path("f1").asDouble() > 0.8, f.toString());
    assertTrue(f.path("reference_accuracy").asDouble() < 0.7, f.toString());
  }

  /** Labels [N, 3] of 0 and 1, some of them unknown. */
  private void classesThatDoNotExcludeEachOther(boolean numbers, String end) throws IOException {
    float[] x = new float[N * WIDTH];
    long[] labels = new long[N * CLASSES];
    float[] floats = new float[N * CLASSES];
    for (int i = 0; i < N; i++) {
      for (int j = 0; j < WIDTH; j++) {
        x[i * WIDTH + j] = (float) random.nextGaussian();
      }
      labels[i * CLASSES] = x[i * WIDTH] > 0.3 ? 1 : 0;
      labels[i * CLASSES + 1] = x[i * WIDTH + 1] * x[i * WIDTH + 1] > 1 ? 1 : 0;
      labels[i * CLASSES + 2] = i % 5 == 0 ? -100 : x[i * WIDTH + 2] > 1 ? 1 : 0;
    }
    for (int i = 0; i < floats.length; i++) {
      floats[i] = labels[i] < 0 ? Float.NaN : labels[i];
    }
    examples(
        Data.of("inputs", x, N, WIDTH),
        numbers ? Data.of("labels", floats, N, CLASSES) : Data.of("labels", labels, N, CLASSES));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("tags")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(floats("w1", random, 0.5f, WIDTH, 16))
            .addInitializer(floats("b1", random, 0.5f, 16))
            .addInitializer(floats("w2", random, 0.4f, 16, CLASSES))
            .addNode(node("MatMul", "", List.of("x", "w1"), "p1"))
            .addNode(node("Add", "", List.of("p1", "b1"), "h"))
            .addNode(node("Relu", "", List.of("h"), "r"))
            .addNode(node("MatMul", "", List.of("r", "w2"), "z"))
            .addNode(node(end, "", List.of("z"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, CLASSES));
    write(13, g);
  }

  @ParameterizedTest
  @CsvSource({"false, Sigmoid, dynamic", "true, Identity, static"})
  void classesThatDoNotExcludeEachOtherAreLearned(boolean numbers, String end, String form)
      throws IOException {
    classesThatDoNotExcludeEachOther(numbers, end);
    recipe(form, 200);
    JsonNode f =
        Run.of("compress", recipe, "-o", folder.resolve("out"), "--json").json().path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.88, f.toString());
    assertTrue(f.path("f1").asDouble() > 0.75, f.toString());
    assertTrue(f.path("auc").asDouble() > 0.9, f.toString());
    assertTrue(f.path("reference_auc").asDouble() < 0.75, f.toString());
  }

  @Test
  void labelsThatDoNotFitAreRefusedBeforeAnythingIsWritten() throws IOException {
    Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
    classesThatDoNotExcludeEachOther(false, "Softmax");
    Run.refused(
        folder, new String[] {"the output z", "a Softmax", "numbers of the right classes"}, run);
    write(13, tagger(List.of(node("Softmax", "", List.of("z"), "p", attribute("axis", 1)))));
    sentences(true);
    Run.refused(folder, new String[] {"a Softmax along axis 1", "classes are along axis 2"}, run);
    write(12, tagger(List.of(node("Softmax", "", List.of("z"), "p", attribute("axis", 1)))));
    Run.refused(folder, new String[] {"along axis 1 and all after it"}, run);
    write(13, tagger(List.of()));
    long[] ids = new long[N * TOKENS];
    long[] labels = new long[N * TOKENS];
    Data[] data = {
      Data.of("input_ids", ids, N, TOKENS),
      Data.of("attention_mask", ids, N, TOKENS),
      Data.of("labels", labels, N, TOKENS)
    };
    examples(data);
    Run.refused(folder, new String[] {"attention_mask is 0 for all of the training"}, run);
    Arrays.fill(ids, 1);
    data[1] = Data.of("attention_mask", ids, N, TOKENS);
    labels[3 * TOKENS] = CLASSES;
    data[2] = Data.of("labels", labels, N, TOKENS);
    examples(data);
    Run.refused(folder, new String[] {"the output z has 3 classes", "a label 3", "0 to 2"}, run);
    data[2] = Data.of("labels", new long[N * (TOKENS - 1)], N, TOKENS - 1);
    examples(data);
    Run.refused(
        folder,
        new String[] {"[1, 7, 3] for an example with 6 labels", "[examples, labels, classes]"},
        run);
  }
}
