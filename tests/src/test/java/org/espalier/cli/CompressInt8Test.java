package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OrtException;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PyTorchInt8;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.model.OnnxModels;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.Test;

/** Whole runs of models that are int8 as they are given. */
class CompressInt8Test extends SmallClassifierRuns {
  private JsonNode run(Path out) {
    return Run.of("compress", recipe, "-o", out, "--json").json();
  }

  /** All integers of a model that are weights. */
  private static String integers(OnnxModel model) {
    StringBuilder all = new StringBuilder();
    for (OnnxInitializer i : model.initializers()) {
      if (i.type() == DataType.INT8 && i.dims().length == 2) {
        all.append(i.name()).append(' ').append(i.data()).append(' ');
        for (int k = 0; k < i.elements(); k++) {
          all.append(i.data().get(k)).append(' ');
        }
      }
    }
    return all.toString();
  }

  @Test
  void theSameFormIsWrittenAgain() throws IOException {
    makeInt8();
    Path out = folder.resolve("out");
    JsonNode report = run(out);
    assertEquals("int8", report.at("/model/weights").asText());
    assertTrue(Math.abs(report.at("/fidelity/size_ratio").asDouble() - 1) < 0.02);
    assertEquals("model-int8.onnx", report.at("/outputs/0/file").asText());
    assertEquals("int8 model for ONNX Runtime", report.at("/outputs/0/what").asText());
    assertFalse(Files.exists(out.resolve("model.onnx")));
    report.path("layers").forEach(layer -> assertEquals(8, layer.path("bits").asInt()));
    assertFalse(report.has("resting"));
    // Every pruned weight is one integer that is 0.
    double zeros = 0;
    double all = 0;
    for (JsonNode layer : report.path("layers")) {
      double elements = layer.at("/shape/0").asDouble() * layer.at("/shape/1").asDouble();
      zeros += layer.path("sparsity").asDouble() * elements;
      all += elements;
    }
    assertTrue(zeros / all >= 0.25, zeros + " zeros");
    OnnxModel before = OnnxModel.read(folder.resolve("int8.onnx"));
    OnnxModel after = OnnxModel.read(out.resolve("model-int8.onnx"));
    assertEquals(before.nodes(), after.nodes());
    assertFalse(integers(before).equals(integers(after)));
    String html = Files.readString(out.resolve("report.html"));
    assertTrue(html.contains("of the original, which is int8 too: "), html);
    assertTrue(html.contains("difference to the weights at the start"), html);
    String said = Run.of("compress", recipe, "-o", out, "--resume").done().out();
    assertTrue(said.contains("of the original, which is int8 too"), said);
    // It goes on from what it made.
    Path again = folder.resolve("again");
    Files.delete(folder.resolve("int8.onnx"));
    Files.copy(out.resolve("model-int8.onnx"), folder.resolve("int8.onnx"));
    run(again);
    assertEquals(before.nodes(), OnnxModel.read(again.resolve("model-int8.onnx")).nodes());
  }

  /**
   * 2 %: an activation, an output too, that lies between two integers may fall on either side. 5 %: floats differ by half a step of
   * each weight and, where ranges are found as the model runs, of each activation. 15 %: outputs of 7 bits are steps of 20 / 127.
   */
  @Test
  void otherFormatsAreWhatTheySay() throws IOException, OrtException {
    Libtorch.load();
    for (String form : List.of("onnx-dynamic", "onnx-qdq", "pytorch")) {
      Path int8 = folder.resolve("int8.onnx");
      Files.deleteIfExists(int8);
      if (form.equals("pytorch")) {
        PyTorchInt8.model(8).write(int8);
        examples(256, 8, 2);
      } else {
        Object calibration = folder.resolve("examples.safetensors");
        List<Object> args =
            new ArrayList<>(List.of("quantize", folder.resolve("mlp.onnx"), "-o", int8));
        args.addAll(List.of("--to", form, "--calibration", calibration));
        args.addAll(ExactProducts.options(form));
        Run.of(args.toArray()).done();
      }
      Files.writeString(
          recipe,
          RECIPE.replace("mlp.onnx", "int8.onnx").replace("kind: quantize", "kind: fine-tune"));
      Path out = folder.resolve("out-" + form);
      JsonNode report = run(out);
      assertEquals(
          "its weights before rounding, as a float32 model"
              + (form.equals("onnx-dynamic") ? "" : ", activations rounded as in the int8 model"),
          report.at("/outputs/1/what").asText());
      assertTrue(report.at("/outputs/3/what").asText().endsWith("rounded as in the int8 model"));
      OnnxModel floats = OnnxModel.read(out.resolve("model-float.onnx"));
      assertTrue(
          floats.initializers().stream()
              .noneMatch(i -> i.type() != DataType.FLOAT && i.elements() > 8),
          floats.toString());
      OnnxModel written = OnnxModel.read(out.resolve("model-int8.onnx"));
      try (PointerScope scope = new PointerScope();
          TorchScriptModel module = TorchScriptModel.read(out.resolve("model.pt"))) {
        float[] values = new float[20 * 8];
        Random random = new Random(3);
        for (int i = 0; i < values.length; i++) {
          values[i] = (float) random.nextGaussian();
        }
        Tensor x = AbstractTensor.create(values, 20, 8);
        String input = written.inputs().get(0).getName();
        Tensor expected = first(OnnxRuntime.run(written, Map.of(input, x)));
        Tensor byModule = first(module.forward(Map.of(module.inputNames().get(0), x)));
        Tensor byFloats = first(OnnxRuntime.run(floats, Map.of(input, x)));
        boolean sevenBits = form.equals("pytorch");
        assertEquals(0, error(byModule, expected), sevenBits ? 0.15 : 0.02, form);
        assertEquals(0, error(byFloats, expected), sevenBits ? 0.15 : 0.05, form);
      }
    }
  }

  private static Tensor first(Map<String, Tensor> outputs) {
    return outputs.values().iterator().next();
  }

  /** The norm of the difference as a share of what is expected. */
  private static double error(Tensor found, Tensor expected) {
    return found.sub(expected).norm().item_double() / expected.norm().item_double();
  }

  @Test
  void whatDoesNotGoIsRefused() throws IOException {
    makeInt8();
    String text = Files.readString(recipe);
    Files.writeString(recipe, text.replaceFirst("kind: fine-tune", "kind: quantize"));
    Object[] check = {"recipe", "check", recipe};
    Run.refused(
        folder,
        new String[] {"stage quantize", "int8.onnx is int8 already", "leave the stage out"},
        check);
    Files.writeString(recipe, text.replace("schedule: cubic", "refit: true\n    include: ['*']"));
    Run.refused(folder, new String[] {"refit solves for floats", "by magnitude"}, check);
    Files.writeString(
        recipe,
        text.replace("file: int8.onnx", "file: int8.onnx\n  config: config.json")
            .replace("safetensors, torch", "compressed-tensors, torch"));
    Run.refused(
        folder, new String[] {"no stage quantizes", "int8 before is written as ONNX"}, check);
    Files.writeString(recipe, text.replace("schedule: cubic", "include: [fc9]"));
    Run.refused(folder, new String[] {"fc9"}, check);
    Files.writeString(recipe, text.replace("data:", "student: {channels: 0.3}\ndata:"));
    Run.refused(folder, new String[] {"student.channels", "quantized already"}, check);
    OnnxModels.perceptron(64, 64, 4).write(folder.resolve("wide.onnx"));
    Run.of(
            "quantize",
            folder.resolve("wide.onnx"),
            "-o",
            folder.resolve("int4.onnx"),
            "--to",
            "onnx-int4",
            "--calibration",
            "none")
        .done();
    Files.writeString(recipe, text.replace("int8.onnx", "int4.onnx"));
    examples(256, 64, 4);
    String[] said = {"int4.onnx", "MatMulNBits", "the float model can be learned"};
    Run.refused(folder, said, check);
    Object[] init = {
      "recipe",
      "init",
      "-o",
      folder.resolve("made.yaml"),
      "--model",
      "int4.onnx",
      "--examples",
      "examples.safetensors"
    };
    Run.refused(folder, said, init);
  }

  @Test
  void whatStaysIsTold() throws IOException {
    makeInt8();
    OnnxModel model = PyTorchInt8.model(8);
    float[] scales = SmallModels.values(model, "net.0.weight_scale");
    scales[1] = 1e-42f; // of no reciprocal
    model.replaceConstant(
        OnnxInitializer.floats("net.0.weight_scale", new long[] {scales.length}, scales));
    model.write(folder.resolve("int8.onnx"));
    examples(256, 8, 2);
    Run done = Run.of("compress", recipe, "-o", folder.resolve("out"), "--json").done();
    String line = "1 weight stays as it is: a scale of ";
    assertTrue(done.err().contains(line), done.err());
    assertTrue(done.json().at("/resting/0").asText().startsWith(line));
    String html = Files.readString(folder.resolve("out").resolve("report.html"));
    assertTrue(html.contains(line), html);
  }

  @Test
  void initWritesARecipeThatTrains() throws IOException {
    makeInt8();
    Path made = folder.resolve("made.yaml");
    Object[] init = {
      "recipe", "init", "-o", made, "--model", "int8.onnx", "--examples", "examples.safetensors"
    };
    Run.of(init).done();
    Run.of("recipe", "check", made).done();
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", made, "-o", out, "--json").json();
    assertEquals("fine-tune", report.at("/stages/0/name").asText());
    assertEquals(200, report.at("/stages/0/steps_done").asInt());
    assertTrue(Files.exists(out.resolve("model-int8.onnx")));
  }
}
