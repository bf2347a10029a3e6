package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.ClickModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchScriptModel;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Whole runs of a model that lives by its tables. */
class CompressClicksTest {
  private static final int USERS = 8192;
  private static final int ITEMS = 40;
  private static final int WIDTH = 8;
  private static final int N = 2000;

  private static final String RECIPE =
      """
model: {file: model.onnx}
data: {examples: examples.safetensors, validation: 200, evaluation: 300, calibration: 64}
stages:
  - {kind: fine-tune, steps: 300, learning-rate: 2e-2}
  - {kind: prune, sparsity: 0.2, scope: tensor, include: items, steps: 50, learning-rate: 1e-2}
  - {kind: quantize, form: FORM, steps: 50, learning-rate: 5e-3}
export: {formats: [onnx, onnx-float, safetensors, torchscript]}
report: {each-stage: false}
""";

  @TempDir Path folder;
  private Path recipe;

  @BeforeEach
  void makeInputs() throws IOException {
    byte[] model = ClickModel.of(3, USERS, ITEMS, WIDTH).toByteArray();
    Files.write(folder.resolve("model.onnx"), model);
    recipe = Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FORM", "dynamic"));
    examples(ClickModel.visits(1, N, 60, ITEMS));
  }

  private void examples(List<ClickModel.Visit> visits) {
    ByteBuffer ids = ByteBuffer.allocate(16 * N).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer labels = ByteBuffer.allocate(8 * N).order(ByteOrder.LITTLE_ENDIAN);
    for (ClickModel.Visit v : visits) {
      ids.putLong(v.user()).putLong(v.item());
      labels.putLong(v.clicks());
    }
    List<TensorSpec> specs =
        List.of(
            new TensorSpec("ids", SafetensorsDtype.I64, List.of((long) N, 2L)),
            new TensorSpec("labels", SafetensorsDtype.I64, List.of((long) N)));
    try (AtomicFile file = AtomicFile.create(folder.resolve("examples.safetensors"))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      writer.append("ids", ids.flip());
      writer.append("labels", labels.flip());
      writer.finish();
      file.commit();
    }
  }

  private static float[] floats(ByteBuffer bytes) {
    FloatBuffer buffer = bytes.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
    float[] values = new float[buffer.remaining()];
    buffer.get(values);
    return values;
  }

  @ParameterizedTest
  @ValueSource(strings = {"dynamic", "static"})
  void tablesLearnWhatOnlyTablesCan(String form) throws IOException {
    Files.writeString(recipe, RECIPE.replace("FORM", form));
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", recipe, "-o", out, "--json").json();
    JsonNode f = report.path("fidelity");
    assertTrue(f.path("accuracy").asDouble() > 0.97, f.toString());
    assertTrue(f.path("reference_accuracy").asDouble() < 0.65, f.toString());
    List<String> layers = new ArrayList<>();
    report.path("layers").forEach(l -> layers.add(l.path("name").asText()));
    assertEquals(List.of("users", "items", "head"), layers);
    assertEquals(8, report.at("/layers/0/bits").asInt());
    assertTrue(report.at("/layers/0/sparsity").asDouble() < 0.1, report.path("layers").toString());
    // The dynamic form leaves small tables float.
    assertEquals(form.equals("static") ? 8 : 32, report.at("/layers/1/bits").asInt());
    assertTrue(report.at("/layers/1/sparsity").asDouble() >= 0.2, report.path("layers").toString());
    JsonNode evaluated =
        Run.of(
                "evaluate",
                folder.resolve("model.onnx"),
                out.resolve("model-int8.onnx"),
                "--examples",
                folder.resolve("examples.safetensors"),
                "--json")
            .json();
    assertTrue(evaluated.at("/labels/accuracy").asDouble() > 0.97, evaluated.toString());

    OnnxModel dense = OnnxModel.read(out.resolve("model-float.onnx"));
    float[] users = floats(dense.constant("users").data());
    try (SafetensorsFile file = SafetensorsFile.open(out.resolve("model.safetensors"))) {
      TensorInfo tensor =
          file.tensors().stream().filter(t -> t.name().equals("users")).findFirst().orElseThrow();
      ByteBuffer bytes = ByteBuffer.allocateDirect((int) tensor.bytes());
      file.read(tensor, 0, bytes);
      assertArrayEquals(users, floats(bytes.flip()));
    }
    // TorchScript has what the integers stand for.
    OnnxModel rounded = OnnxModel.read(out.resolve("model-int8.onnx"));
    ByteBuffer integers = rounded.constant("users_quantized").data();
    FloatBuffer scales = rounded.constant("users_scale").floats();
    try (TorchScriptModel script = TorchScriptModel.read(out.resolve("model.pt"))) {
      Parameter table =
          script.parameters().stream()
              .filter(p -> p.tensor().size(0) == USERS)
              .findFirst()
              .orElseThrow();
      FloatBuffer values = table.tensor().detach().contiguous().createBuffer();
      for (int i = 0; i < USERS * WIDTH; i++) {
        assertTrue(values.get(i) == integers.get(i) * scales.get(i / WIDTH), "entry " + i);
      }
    }
  }

  @Test
  void tablesThatAreKeptLearnNothing() {
    JsonNode report =
        Run.of(
                "compress",
                recipe,
                "-o",
                folder.resolve("out"),
                "--json",
                "--set",
                "fine-tune.train-embeddings=never",
                "--set",
                "prune.train-embeddings=never",
                "--set",
                "quantize.train-embeddings=never")
            .json();
    double accuracy = report.at("/fidelity/accuracy").asDouble();
    assertTrue(accuracy < 0.65, report.path("fidelity").toString());
    // What is pruned is told, trained or not; the other table is as it was.
    assertEquals(2, report.path("layers").size(), report.path("layers").toString());
  }

  @Test
  void theKeyIsTold() {
    String schema = Run.of("recipe", "schema").done().out();
    assertTrue(schema.contains("train-embeddings: "), schema);
    assertTrue(schema.contains("auto, always, never or a glob"), schema);
    Object[] check = {"recipe", "check", recipe, "--set", "quantize.train-embeddings=yes"};
    Run.refused(
        folder, new String[] {"train-embeddings", "'yes'", "always", "[users, items]"}, check);
    check[4] = "quantize.train-embeddings=[auto, users]";
    Run.refused(folder, new String[] {"train-embeddings", "'auto'"}, check);
    check[4] = "quantize.train-embeddings=[]";
    Run.refused(folder, new String[] {"train-embeddings"}, check);
    check[4] = "quantize.train-embeddings=[user*, items]";
    Run.of(check).done();
  }

  @Test
  void anIndexThatATableDoesNotHaveIsNamed() {
    List<ClickModel.Visit> visits = new ArrayList<>(ClickModel.visits(1, N, 60, ITEMS));
    for (int at : new int[] {100, N - 1}) {
      visits.set(at, new ClickModel.Visit(5, ITEMS));
      examples(visits);
      Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
      Run.refused(folder, new String[] {"/items/Gather", "the index 40 is outside [-40, 39]"}, run);
      visits.set(at, new ClickModel.Visit(5, 1));
    }
  }
}
