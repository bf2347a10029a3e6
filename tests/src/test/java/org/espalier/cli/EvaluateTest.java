package org.espalier.cli;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class EvaluateTest {
  @TempDir Path folder;

  @Test
  void refusesWhatItCannotCompare() throws IOException {
    Path onnx = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    Path texts = Files.writeString(folder.resolve("texts"), "One.\nTwo.\nThree.\n");
    Path few = Files.writeString(folder.resolve("few"), "One.\n\n\n");
    refused("--texts", onnx, onnx);
    refused("no file or folder", onnx, folder.resolve("x.onnx"), "--texts", texts);
    refused("none: there is no such file", onnx, onnx, "--texts", folder.resolve("none"));
    Path latin = Files.write(folder.resolve("latin"), new byte[] {'a', (byte) 0xe9, '\n'});
    refused("latin are not UTF-8; a text a line is right", onnx, onnx, "--texts", latin);
    // No tokenizer, then one that is none, which is not looked past.
    refused("neither m-tokenizer.json nor tokenizer.json", onnx, onnx, "--texts", texts);
    Files.writeString(folder.resolve("m-tokenizer.json"), "{}");
    refused("m-tokenizer.json", onnx, onnx, "--texts", texts);
    Files.writeString(
        folder.resolve("tokenizer.json"),
        "{\"model\":{\"type\":\"WordLevel\",\"vocab\":{\"a\":0},\"unk_token\":\"a\"}}");
    refused("m-tokenizer.json", onnx, onnx, "--texts", texts);
    refused("--max-tokens", onnx, onnx, "--texts", few, "--max-tokens", "2");
    refused("--pooling", onnx, onnx, "--texts", texts, "--pooling", "max");
    refused("evaluate is for .onnx models and folders", onnx, folder, "--texts", texts);
  }

  /** What has no end, or less of one than there is memory, is refused before memory is full. */
  @Test
  void refusesTextsThatDoNotEnd() throws Exception {
    Path onnx = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    refused("/dev/zero has a line of more than", onnx, onnx, "--texts", "/dev/zero");
    Path sparse = folder.resolve("sparse");
    try (FileChannel channel =
        FileChannel.open(sparse, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE)) {
      channel.write(ByteBuffer.allocate(1), 50L << 30);
    }
    Run run = Run.of("evaluate", onnx, onnx, "--texts", sparse);
    Files.delete(sparse);
    assertEquals(2, run.code(), run.err());
    assertTrue(run.err().contains("sparse has a line of more than"), run.err());
    refused("Is a directory", onnx, onnx, "--texts", folder);
    Path recipe = folder.resolve("recipe.yaml");
    Files.createSymbolicLink(recipe, Path.of("/dev/zero"));
    for (String[] command :
        new String[][] {
          {"recipe", "check", recipe.toString()},
          {"compress", recipe.toString(), "-o", folder.resolve("out").toString()},
          {"online", "--recipe", recipe.toString(), "--input", "-", "--store", folder + "/store"}
        }) {
      run = Run.of((Object[]) command);
      assertEquals(2, run.code(), run.err());
      assertTrue(run.err().contains("recipe.yaml has more than 1048576 bytes"), run.err());
    }
  }

  @Test
  void tellsOfModelsThatDrawRandomNumbers() throws Exception {
    ModelProto.Builder noisy = SmallModels.mlp().toBuilder();
    noisy
        .getGraphBuilder()
        .addNode(SmallModels.line("n RandomNormalLike x"))
        .addOutput(SmallModels.value("n", DataType.FLOAT, -1, 8));
    Path model = Files.write(folder.resolve("noisy.onnx"), noisy.build().toByteArray());
    for (Object[] command :
        new Object[][] {
          {"evaluate", model, model, "--examples", twoExamples()},
          {"prune", model, "-o", folder.resolve("half.onnx"), "--amount", "0.5"}
        }) {
      Run run = Run.of(command).done();
      assertTrue(run.err().contains("RandomNormalLike '/n' draws random numbers"), run.err());
    }
  }

  @Test
  void refusesOutputsOfOtherShapes() throws Exception {
    List<Path> models = new ArrayList<>();
    for (String line : List.of("y Relu x", "y Transpose x")) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .setName("one")
              .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
              .addNode(SmallModels.line(line))
              .addOutput(SmallModels.value("y", DataType.FLOAT, -1, -2));
      Path file = folder.resolve(line.charAt(2) + ".onnx");
      models.add(Files.write(file, SmallModels.model(13, g).toByteArray()));
    }
    refused(
        "T.onnx: for one of the examples the output y has the shape [8, 1], the reference's"
            + " [1, 8]; outputs",
        models.get(0),
        models.get(1),
        "--examples",
        twoExamples());
  }

  /** As the past of a decoder is at the first step. */
  @Test
  void anAxisOfAnInputMayBeEmpty() throws Exception {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("step")
            .addInput(SmallModels.value("past", DataType.FLOAT, -1, -2, 4))
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 1, 4))
            .addNode(
                SmallModels.node(
                    "Concat", "/Concat", List.of("past", "x"), "y", attribute("axis", 1)))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, -3, 4));
    Path model = Files.write(folder.resolve("step.onnx"), SmallModels.model(13, g).toByteArray());
    for (int examples : new int[] {3, 0}) {
      Path file =
          RawSafetensors.write(
              folder.resolve("step.safetensors"),
              "{\"past\":{\"dtype\":\"F32\",\"shape\":[%1$d,0,4],\"data_offsets\":[0,0]},\"x\":{\"dtype\":\"F32\",\"shape\":[%1$d,1,4],\"data_offsets\":[0,%2$d]}}"
                  .formatted(examples, 16 * examples),
              16 * examples);
      if (examples > 0) {
        Run.of("evaluate", model, model, "--examples", file).done();
      } else {
        refused("must count the examples", model, model, "--examples", file);
      }
    }
  }

  @Test
  void saysWhichExamplesATranslatorTakes() throws Exception {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("translator")
            .addInput(SmallModels.value("input_ids", DataType.INT64, -1, -2))
            .addInput(SmallModels.value("decoder_input_ids", DataType.INT64, -1, -2))
            .addNode(SmallModels.line("y Add input_ids decoder_input_ids"))
            .addOutput(SmallModels.value("y", DataType.INT64, -1, -2));
    Path model = Files.write(folder.resolve("t.onnx"), SmallModels.model(13, g).toByteArray());
    Path texts = Files.writeString(folder.resolve("texts.txt"), "a\nb\nc\n");
    Path tokenizer =
        Files.writeString(
            folder.resolve("tokenizer.json"),
            "{\"model\":{\"type\":\"WordLevel\",\"vocab\":{\"a\":0},\"unk_token\":\"a\"}}");
    Run.refused(
        folder,
        new String[] {
          "input decoder_input_ids is not one a text model takes",
          "a .safetensors file with one tensor an input"
        },
        "evaluate",
        model,
        model,
        "--texts",
        texts,
        "--tokenizer",
        tokenizer);
  }

  /** Pruned to nothing a model is as its reference in no way but its size. */
  @Test
  void theExitCodeSaysWhetherRequirementsAreMet() throws Exception {
    ModelProto.Builder two = SmallModels.mlp().toBuilder();
    String first = two.getGraph().getOutput(0).getName();
    two.getGraphBuilder()
        .addNode(SmallModels.line("same Identity x"))
        .addOutput(SmallModels.value("same", DataType.FLOAT, -1, 8));
    Path model = Files.write(folder.resolve("m.onnx"), two.build().toByteArray());
    Path none = folder.resolve("none.onnx");
    Run.of("prune", model, "-o", none, "--amount", "1").done();
    StringBuilder lines = new StringBuilder();
    for (int i = 0; i < 4; i++) {
      lines.append("{\"features\": [1, 2, 3, 4, -5, ").append(i).append(", 7, 8], \"label\": 1}\n");
    }
    Path examples = Files.writeString(folder.resolve("ex.jsonl"), lines);
    Object[] compared = {"evaluate", model, none, "--json", "--examples", examples};
    Run met = required(compared, "size_ratio <= 1.1", "accuracy <= reference + 1");
    assertEquals(0, met.code(), met.err());
    Run missed = required(compared, "size_ratio <= 1.1", "relative_error <= 0.5");
    assertEquals(3, missed.code(), missed.err());
    assertTrue(
        missed.err().contains("missed: relative_error <= 0.5 of " + first + ", measured 1.0"),
        missed.err());
    JsonNode verdicts = new ObjectMapper().readTree(missed.out()).path("requirements");
    assertEquals(3, verdicts.size(), "one for each of the two outputs of " + first);
    assertEquals(
        List.of(true, false, true),
        verdicts.findValues("met").stream().map(JsonNode::asBoolean).toList());
    assertEquals(List.of(first, "same"), verdicts.findValuesAsText("output"));
    Path negative =
        Files.writeString(folder.resolve("n.jsonl"), lines.toString().replace(": 1}", ": -1}"));
    Run labelled =
        Run.of("evaluate", model, none, "--examples", negative, "--task", "classification");
    assertEquals(2, labelled.code(), labelled.err());
    assertTrue(
        labelled.err().contains("a label is -1; classes are from 0 on, and -100 is none"),
        labelled.err());
    for (String[] wrong :
        new String[][] {
          {"perplexity <= 3", "perplexity is not measured here"},
          {"rmse <= 3", "these examples do not say what rmse is"},
          {"speed >= 2", "nothing is measured as speed; there are 'speedup'"},
        }) {
      Run run = required(compared, wrong[0]);
      assertEquals(2, run.code(), run.err());
      assertTrue(run.err().contains(wrong[1]), run.err());
    }
  }

  private static Run required(Object[] compared, String... requirements) {
    List<Object> all = new ArrayList<>(List.of(compared));
    for (String requirement : requirements) {
      all.addAll(List.of("--require", requirement));
    }
    return Run.of(all.toArray());
  }

  private Path twoExamples() throws IOException {
    return RawSafetensors.write(
        folder.resolve("ex.safetensors"),
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[0,64]}}",
        64);
  }

  @Test
  void refusesModelsThatCannotBeCompared() throws Exception {
    ModelProto.Builder mute = SmallModels.mlp().toBuilder();
    mute.getGraphBuilder().clearOutput();
    Path silent = Files.write(folder.resolve("mute.onnx"), mute.build().toByteArray());
    Path examples = twoExamples();
    refused("mute.onnx has no output", silent, silent, "--examples", examples);
    ModelProto.Builder cut = SmallModels.mlp().toBuilder();
    cut.getGraphBuilder().getInitializerBuilder(0).setDims(0, 7);
    Path small = Files.write(folder.resolve("cut.onnx"), cut.build().toByteArray());
    Path whole = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    refused("cut.onnx: the initializer w", whole, small, "--examples", examples);
    ModelProto untyped = SmallModels.withInputType(SmallModels.mlp(), 127);
    Path unknown = Files.write(folder.resolve("u.onnx"), untyped.toByteArray());
    Run.refused(
        folder,
        new String[] {"u.onnx is of the element type 127, which ONNX does not have"},
        "quantize",
        unknown,
        "-o",
        folder.resolve("o.onnx"),
        "--to",
        "onnx-qdq",
        "--calibration",
        examples);
  }

  private void refused(String word, Object... args) {
    Object[] all = new Object[args.length + 1];
    all[0] = "evaluate";
    System.arraycopy(args, 0, all, 1, args.length);
    Run.refused(folder, new String[] {word}, all);
  }
}
