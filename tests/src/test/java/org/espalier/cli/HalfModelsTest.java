package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
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
import org.espalier.ExactProducts;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What the commands do with models of float16, as they are published. */
class HalfModelsTest {
  private static final int N = 256;

  @TempDir Path folder;
  private Path model;
  private Path examples;

  @BeforeEach
  void inputs() throws IOException {
    model = folder.resolve("half.onnx");
    Files.write(model, HalfModels.of(SmallModels.mlp(), DataType.FLOAT16).toByteArray());
    Random random = new Random(8);
    float[] values = new float[N * 8];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    ByteBuffer data =
        OnnxInitializer.floats("x", new long[] {N, 8}, values).rounded(DataType.FLOAT16).data();
    byte[] x = new byte[data.remaining()];
    data.get(x);
    ByteBuffer labels = ByteBuffer.allocate(8 * N).order(ByteOrder.LITTLE_ENDIAN);
    while (labels.hasRemaining()) {
      labels.putLong(random.nextInt(4));
    }
    examples = folder.resolve("x.safetensors");
    RawSafetensors.write(
        examples,
        Map.of(),
        Map.of(
            new TensorSpec("x", SafetensorsDtype.F16, List.of((long) N, 8L)),
            x,
            new TensorSpec("labels", SafetensorsDtype.I64, List.of((long) N)),
            labels.array()));
  }

  private double cosine(Path candidate) {
    JsonNode json = Run.of("evaluate", model, candidate, "--examples", examples, "--json").json();
    return json.at("/outputs/0/cosine_mean").asDouble();
  }

  /** Each model is fed the type that it takes, whatever the examples have. */
  @Test
  void aModelIsComparedWithItsHalf() throws IOException {
    Path whole = folder.resolve("whole.onnx");
    Files.write(whole, SmallModels.mlp().toByteArray());
    for (boolean inHalf : new boolean[] {true, false}) {
      if (!inHalf) {
        writeFloats(1);
      }
      for (Path[] pair : new Path[][] {{whole, model}, {model, whole}}) {
        JsonNode json =
            Run.of("evaluate", pair[0], pair[1], "--examples", examples, "--json").json();
        double cosine = json.at("/outputs/0/cosine_mean").asDouble();
        assertTrue(cosine > 0.999 && cosine <= 1, json.toString());
        assertTrue(json.at("/outputs/0/relative_error").asDouble() > 0, json.toString());
      }
    }
    Path out = folder.resolve("int8.onnx");
    Run.of("quantize", model, "-o", out, "--to", "onnx-qdq", "--calibration", examples).done();
    assertTrue(cosine(out) > 0.99, "calibrated on float32");

    writeFloats(1e6f);
    Run.refused(
        folder,
        new String[] {"half.onnx: the input x of an example", "too large for its type, FLOAT16"},
        "evaluate",
        whole,
        model,
        "--examples",
        examples);
  }

  private void writeFloats(float factor) {
    ByteBuffer x = ByteBuffer.allocate(4 * 8 * N).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(8);
    while (x.hasRemaining()) {
      x.putFloat(factor * (float) random.nextGaussian());
    }
    RawSafetensors.write(
        examples,
        Map.of(),
        Map.of(new TensorSpec("x", SafetensorsDtype.F32, List.of((long) N, 8L)), x.array()));
  }

  private static void assertHalfEnds(Path file) {
    OnnxModel written = OnnxModel.read(file);
    for (ValueInfoProto v : List.of(written.inputs().get(0), written.outputs().get(0))) {
      assertEquals(DataType.FLOAT16_VALUE, v.getType().getTensorType().getElemType(), v.getName());
    }
  }

  /** Like the model of float32. */
  @Test
  void theyAreRefitted() throws IOException {
    Path whole = folder.resolve("whole.onnx");
    Files.write(whole, SmallModels.mlp().toByteArray());
    Path[] refitted = {folder.resolve("a.onnx"), folder.resolve("b.onnx")};
    for (int i = 0; i < 2; i++) {
      Run run =
          Run.of(
              "prune",
              i == 0 ? whole : model,
              "-o",
              refitted[i],
              "--amount",
              "0.5",
              "--refit",
              "--calibration",
              examples);
      assertFalse(run.done().err().contains("by magnitude alone"), run.err());
    }
    assertHalfEnds(refitted[1]);
    OnnxModel half = OnnxModel.read(refitted[1]);
    for (OnnxWeight weight : OnnxWeights.of(OnnxModel.read(model))) {
      OnnxInitializer narrow = half.constant(weight.value());
      assertEquals(DataType.FLOAT16, narrow.type());
      int zeros = 0;
      for (int i = 0; i < narrow.elements(); i++) {
        zeros += narrow.floats().get(i) == 0 ? 1 : 0;
      }
      assertTrue(zeros > 0.2 * narrow.elements(), weight.name() + " " + zeros);
    }
    // Biases of 16 bits do not take up means.
    assertEquals(cosine(refitted[0]), cosine(refitted[1]), 0.01);
  }

  @Test
  void theyAreQuantizedInBothForms() {
    for (String form : List.of("onnx-dynamic", "onnx-qdq")) {
      Path out = folder.resolve(form + ".onnx");
      List<Object> args =
          new ArrayList<>(
              List.of("quantize", model, "-o", out, "--to", form, "--calibration", examples));
      args.addAll(ExactProducts.options(form));
      args.add("--json");
      Run run = Run.of(args.toArray());
      assertEquals(2, run.json().get("quantized").size(), run.err());
      assertTrue(cosine(out) > 0.999, form + " " + cosine(out));
      assertHalfEnds(out);
    }
  }

  @Test
  void theyArePrunedInTheTypeThatTheyHave() {
    Path out = folder.resolve("pruned.onnx");
    JsonNode json = Run.of("prune", model, "-o", out, "--amount", "0.25", "--json").json();
    assertEquals(18, json.get("pruned").asInt());
    assertEquals(DataType.FLOAT16, OnnxModel.read(out).initializer("w").type());
    assertTrue(cosine(out) > 0.9);
    JsonNode inspected = Run.of("inspect", model, "--json").json();
    assertEquals("matmul", inspected.at("/tensors/0/kind").asText(), inspected.toString());
    assertEquals("float16", inspected.at("/tensors/0/dtype").asText());
  }

  /** Training is in float32; what comes out has the types of what went in. */
  @Test
  void recipesTrainThem() throws IOException {
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: half.onnx}
            data: {examples: x.safetensors, validation: 32, evaluation: 64, calibration: 32}
            stages:
              - {kind: prune, sparsity: 0.25, steps: 8, batch: 16, learning-rate: 1e-3}
              - {kind: quantize, steps: 8, batch: 16, learning-rate: 1e-3}
            export: {formats: [onnx, onnx-float, safetensors]}
            """);
    Path out = folder.resolve("int8");
    JsonNode report = Run.of("compress", recipe, "-o", out, "--json").json();
    assertTrue(report.at("/fidelity/cosine_mean").asDouble() > 0.9, report.toString());
    assertHalfEnds(out.resolve("model-int8.onnx"));

    String stages = Files.readString(recipe);
    int quantize = stages.indexOf("  - {kind: quantize");
    Files.writeString(
        recipe, stages.substring(0, quantize) + stages.substring(stages.indexOf("export")));
    Path pruned = folder.resolve("pruned");
    Run.of("compress", recipe, "-o", pruned).done();
    OnnxModel given = OnnxModel.read(model);
    OnnxModel trained = OnnxModel.read(pruned.resolve("model.onnx"));
    assertEquals(given.nodes(), trained.nodes());
    assertEquals(DataType.FLOAT16, trained.initializer("w").type());
    assertTrue(!given.initializer("w").data().equals(trained.initializer("w").data()));
    assertHalfEnds(pruned.resolve("model.onnx"));

    Path refitted = folder.resolve("refitted");
    Run.of("compress", recipe, "-o", refitted, "--set", "prune.refit=true").done();
    OnnxModel half = OnnxModel.read(refitted.resolve("model.onnx"));
    assertEquals(given.nodes(), half.nodes());
    assertTrue(!half.initializer("w").data().equals(trained.initializer("w").data()));
    assertHalfEnds(refitted.resolve("model.onnx"));
  }

  @Test
  void examplesThatAreNotFiniteAreNamed() throws IOException {
    byte[] x = new byte[2 * 8 * N];
    x[2 * 8 * 3 + 1] = 0x7c; // infinity
    RawSafetensors.write(
        examples,
        Map.of(),
        Map.of(new TensorSpec("x", SafetensorsDtype.F16, List.of((long) N, 8L)), x));
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: half.onnx}
            data: {examples: x.safetensors, validation: 32}
            stages:
              - {kind: quantize, steps: 8, batch: 16}
            """);
    Run.refused(
        folder,
        new String[] {"the tensor x has the value Infinity in example 4"},
        "compress",
        recipe,
        "-o",
        folder.resolve("out"));
    String[] said = {examples + ": the tensor x has the value Infinity in example 4"};
    Run.refused(folder, said, "evaluate", model, model, "--examples", examples);
    Object[] quantize = {
      "quantize", model, "-o", folder.resolve("out.onnx"), "--calibration", examples, "--to"
    };
    for (String form : List.of("onnx-dynamic", "onnx-qdq")) {
      Object[] command = Arrays.copyOf(quantize, quantize.length + 1);
      command[quantize.length] = form;
      Run.refused(folder, said, command);
    }
  }

  /** ONNX Runtime does not run the model, so there is no speed to compare with; the rest is done. */
  @Test
  void bfloat16IsCompressedWhereOnnxRuntimeDoesNotRunIt() throws IOException {
    Files.write(model, HalfModels.inside(SmallModels.mlp(), DataType.BFLOAT16).toByteArray());
    writeFloats(1);
    Path out = folder.resolve("out.onnx");
    List<List<String>> commands =
        List.of(
            List.of("quantize", "--to", "onnx-dynamic"),
            List.of("quantize", "--to", "onnx-qdq"),
            List.of("prune", "--channels", "0.5"));
    for (List<String> command : commands) {
      List<Object> all = new ArrayList<>(command);
      all.addAll(List.of(model, "-o", out, "--calibration", examples, "--json"));
      Run run = Run.of(all.toArray());
      JsonNode json = run.json();
      assertTrue(run.err().contains("does not run " + model + " itself"), run.err());
      assertTrue(json.path("speedup").isMissingNode(), json.toString());
      assertEquals(Files.size(out), json.path("output_bytes").asLong());
      Files.delete(out);
    }
  }

  /** ONNX Runtime has no Relu for bfloat16 on CPUs; that is said before a stage trains. */
  @Test
  void whatOnnxRuntimeDoesNotRunIsRefusedBeforeItIsTrained() throws IOException {
    Files.write(folder.resolve("float.onnx"), SmallModels.mlp().toByteArray());
    Files.write(
        folder.resolve("bfloat16.onnx"),
        HalfModels.inside(SmallModels.mlp(), DataType.BFLOAT16).toByteArray());
    RawSafetensors.write(
        examples,
        Map.of(),
        Map.of(
            new TensorSpec("x", SafetensorsDtype.F32, List.of((long) N, 8L)), new byte[4 * N * 8]));
    Path recipe = folder.resolve("recipe.yaml");
    for (String models :
        new String[] {
          "model: {file: bfloat16.onnx}",
          "model: {file: float.onnx}\nstudent: {file: bfloat16.onnx}"
        }) {
      Files.writeString(
          recipe,
          models
              + """

data: {examples: x.safetensors, validation: 32, evaluation: 64}
stages:
  - {kind: prune, sparsity: 0.25, steps: 8, batch: 16}
""");
      String[] said = {"bfloat16.onnx: ONNX Runtime cannot load it", "Relu"};
      Run.refused(folder, said, "recipe", "check", recipe);
      Run.refused(folder, said, "compress", recipe, "-o", folder.resolve("out"));
    }
  }
}
