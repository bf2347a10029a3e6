package org.espalier.cli;

import static org.espalier.cli.SmallLanguage.VOCABULARY;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.transformers.SmallCheckpoint;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What sentence-transformers writes of how a model's embeddings are made, as the default of commands. */
class SentencePoolingTest {
  private static final String MODULES =
      """
[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
 {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
 {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
""";

  private static final String LAST =
      "{\"pooling_mode_lasttoken\": true, \"pooling_mode_mean_tokens\": false}";

  @TempDir private static Path shared;
  @TempDir private Path folder;
  private Path checkpoint;
  private Path texts;

  @BeforeEach
  void makeCheckpoint() throws IOException {
    Libtorch.load();
    checkpoint = Files.createDirectory(folder.resolve("checkpoint"));
    SmallLanguage.write(checkpoint);
    texts = Files.write(folder.resolve("texts.txt"), SmallLanguage.texts(20, 8));
    SmallCheckpoint.writeLanguageModel(checkpoint, VOCABULARY);
    pools(LAST);
  }

  private void pools(String config) throws IOException {
    pools(checkpoint, config);
  }

  private static void pools(Path checkpoint, String config) throws IOException {
    Files.writeString(checkpoint.resolve("modules.json"), MODULES);
    Files.createDirectories(checkpoint.resolve("1_Pooling"));
    Files.writeString(checkpoint.resolve("1_Pooling/config.json"), config);
  }

  /** Near the checkpoint, so that the two are as close as their pooling makes them; of a folder without faults, and alone. */
  private Path other() throws IOException {
    Path made = shared.resolve("other.onnx");
    if (!Files.exists(made)) {
      Path sound = Files.createDirectory(shared.resolve("sound"));
      SmallLanguage.write(sound);
      SmallCheckpoint.writeLanguageModel(sound, VOCABULARY);
      pools(sound, LAST);
      Run.of("quantize", sound, "-o", made, "--to", "onnx-int4", "--calibration", texts).done();
    }
    Path other = folder.resolve("other.onnx");
    if (!Files.exists(other)) {
      Files.copy(made, other);
    }
    return other;
  }

  private Run evaluate(Path reference, Object... more) throws IOException {
    List<Object> all = new ArrayList<>(List.of("evaluate", reference, other(), "--texts", texts));
    all.addAll(List.of(more));
    all.add("--json");
    return Run.of(all.toArray()).done();
  }

  private double cosine(Path reference, Object... more) throws IOException {
    return evaluate(reference, more).json().path("cosine_mean").asDouble();
  }

  /** Qwen3-Embedding says that it predicts words, and is used for the state of its last token. */
  @Test
  void theHeadIsLeftOutAndTheLastTokenTaken() throws IOException {
    Path onnx = folder.resolve("model.onnx");
    Run run = Run.of("export", checkpoint, "-o", onnx).done();
    assertTrue(run.err().contains("without the head that LlamaForCausalLM has"), run.err());
    assertTrue(run.err().contains("what LlamaModel computes"), run.err());
    OnnxModel exported = OnnxModel.read(onnx);
    assertEquals(List.of("last_hidden_state"), List.copyOf(exported.outputNames()));
    assertEquals(
        -1,
        Files.mismatch(
            checkpoint.resolve("1_Pooling/config.json"), folder.resolve("model-pooling.json")));
    assertEquals(
        -1,
        Files.mismatch(checkpoint.resolve("modules.json"), folder.resolve("model-modules.json")));
    double last = cosine(onnx, "--pooling", "last");
    double mean = cosine(onnx, "--pooling", "mean");
    assertNotEquals(last, mean);
    assertEquals(last, cosine(onnx));
    assertEquals(last, cosine(checkpoint));
    String said = evaluate(checkpoint).err();
    assertTrue(
        said.contains("pooled by last, as " + checkpoint.resolve("1_Pooling/config.json")), said);
    said = evaluate(checkpoint, "--pooling", "mean").err();
    assertTrue(said.contains("pooled by mean; the model is made for another pooling"), said);
    Files.delete(checkpoint.resolve("modules.json"));
    Run.of("export", checkpoint, "-o", folder.resolve("words.onnx")).done();
    assertEquals("logits", OnnxModel.read(folder.resolve("words.onnx")).outputs().get(0).getName());
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "{\"pooling_mode\": \"lasttoken\", \"embedding_dimension\": 64} | last | as ",
        "{\"pooling_mode\": [\"cls\"], \"pooling_mode_lasttoken\": true} | cls | as ",
        "{\"pooling_mode_cls_token\": true, \"pooling_mode_mean_tokens\": false} | cls | as ",
        "{\"pooling_mode_mean_sqrt_len_tokens\": true} | mean | as ",
        "{\"pooling_mode_mean_tokens\": true, \"include_prompt\": true} | mean | as ",
        "{} | mean | as ",
        "{\"pooling_mode\": \"max\"} | mean | max, which is not computed here",
        "{\"pooling_mode_weightedmean_tokens\": true} | mean | weightedmean, which is not",
        "{\"pooling_mode\": [\"mean\", \"cls\"]} | mean | cls and mean, which is not computed here",
        "{\"pooling_mode_cls_token\": true, \"pooling_mode_max_tokens\": true} | mean | cls and"
            + " max, which"
      })
  void modesAreReadAsTheyAreWritten(String config, String pooling, String said) throws IOException {
    pools(config);
    Run run = evaluate(checkpoint);
    assertTrue(run.err().contains("pooled by " + pooling), run.err());
    assertTrue(run.err().contains(said), run.err());
    assertEquals(
        cosine(checkpoint, "--pooling", pooling), run.json().path("cosine_mean").asDouble());
  }

  @Test
  void modulesBehindThePoolingAreTold() throws IOException {
    Files.writeString(
        checkpoint.resolve("modules.json"),
        MODULES.replace("models.Normalize", "models.LayerNorm").replace("2_Normalize", "2_Norm"));
    String said = evaluate(checkpoint).err();
    assertTrue(said.contains("modules that are not computed here (LayerNorm)"), said);
    assertTrue(said.contains("pooled by last"), said);
  }

  /** A repository has its ONNX files in a folder of their own. */
  @Test
  void isFoundAboveAFolderCalledOnnx() throws IOException {
    Path onnx = Files.createDirectory(checkpoint.resolve("onnx")).resolve("model.onnx");
    Run.of("export", checkpoint, "-o", onnx).done();
    for (String name : List.of("model-modules.json", "model-pooling.json")) {
      Files.delete(onnx.resolveSibling(name));
    }
    String said = evaluate(onnx).err();
    assertTrue(said.contains("pooled by last"), said);
    Files.writeString(onnx.resolveSibling("model-modules.json"), MODULES);
    Run run = Run.of("evaluate", onnx, onnx, "--texts", texts);
    assertEquals(2, run.code(), run.err());
    assertTrue(run.err().contains("there is no model-pooling.json"), run.err());
  }

  @Test
  void theCandidateMayBeMadeForAnother() throws IOException {
    Path onnx = folder.resolve("model.onnx");
    Run.of("export", checkpoint, "-o", onnx).done();
    Path other = other();
    Files.writeString(folder.resolve("other-modules.json"), MODULES);
    Files.writeString(folder.resolve("other-pooling.json"), "{\"pooling_mode\": \"cls\"}");
    String said = Run.of("evaluate", onnx, other, "--texts", texts).done().err();
    assertTrue(said.contains("pooled by last, as " + folder.resolve("model-pooling.json")), said);
    assertTrue(said.contains("made for another pooling, cls"), said);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "modules.json | {} | is no list of modules",
        "modules.json | nothing | is not JSON",
        "modules.json | [1] | module 0 has no texts as its type and path",
        "modules.json | [{\"type\": 3, \"path\": \"\"}] | module 0 has no texts",
        "modules.json | [{\"type\": \"a.Pooling\", \"path\": \"../1_Pooling\"}] | a folder beside"
            + " the file",
        "modules.json | [{\"type\": \"a.Pooling\", \"path\": \"/etc\"}] | a folder beside the file",
        "modules.json | [{\"type\": \"a.Pooling\", \"path\": \"none\"}] | there is no"
            + " none/config.json",
        "1_Pooling/config.json | [] | is not a JSON object",
        "1_Pooling/config.json | {\"pooling_mode_cls_token\": 1} | '1'; true or false is right",
        "1_Pooling/config.json | {\"pooling_mode_max_tokens\": \"true\"} | true or false is right",
        "1_Pooling/config.json | {\"pooling_mode\": \"median\"} | pooling_mode is 'median'; one or"
            + " several of cls",
        "1_Pooling/config.json | {\"pooling_mode\": [3]} | pooling_mode is '3'",
        "1_Pooling/config.json | {\"pooling_mode\": null} | pooling_mode is"
      })
  void refusesWhatIsNone(String file, String content, String said) throws IOException {
    Path onnx = other();
    Files.writeString(checkpoint.resolve(file), content);
    Run.refused(
        folder, new String[] {said}, "export", checkpoint, "-o", folder.resolve("model.onnx"));
    Files.createDirectories(folder.resolve("1_Pooling"));
    for (String name : List.of("tokenizer.json", "modules.json", "1_Pooling/config.json")) {
      Files.copy(checkpoint.resolve(name), folder.resolve(name));
    }
    Run.refused(
        folder,
        new String[] {said, "--pooling says how"},
        "evaluate",
        onnx,
        onnx,
        "--texts",
        texts);
    String told = Run.of("evaluate", onnx, onnx, "--texts", texts, "--pooling", "cls").done().err();
    assertTrue(told.contains("pooled by cls; ") && told.contains(said), told);
    Path recipe = recipe("other.onnx", "");
    Run.refused(folder, new String[] {said, "model.pooling says how"}, "recipe", "check", recipe);
  }

  private Path recipe(String model, String more) throws IOException {
    return Files.writeString(
        folder.resolve("recipe.yaml"),
        """
        model: {file: %s%s}
        data: {texts: checkpoint/texts.txt, train: 120, validation: 16, evaluation: 24}
        stages:
          - kind: quantize
            steps: 8
            batch: 16
        """
            .formatted(model, more));
  }

  /** A recipe trains what the model is used for, and what it writes says so again. */
  @Test
  void recipesTakeItAndPassItOn() throws IOException {
    Path out = folder.resolve("out");
    Run run = Run.of("compress", recipe("checkpoint", ""), "-o", out).done();
    assertTrue(run.err().contains("pooled by last, as "), run.err());
    JsonNode report = new ObjectMapper().readTree(out.resolve("report.json").toFile());
    assertEquals("last", report.path("model").path("pooling").asText());
    String page = Files.readString(out.resolve("report.html"));
    assertTrue(page.contains("<dt>pooling</dt><dd>last</dd>"), page);
    assertEquals(
        -1,
        Files.mismatch(
            checkpoint.resolve("1_Pooling/config.json"), out.resolve("1_Pooling/config.json")));
    Path int8 = out.resolve("model-int8.onnx");
    String said = Run.of("evaluate", int8, int8, "--texts", texts).done().err();
    assertTrue(said.contains("pooled by last, as " + out.resolve("1_Pooling")), said);
    Path mean = folder.resolve("mean");
    run = Run.of("compress", recipe("checkpoint", ", pooling: mean"), "-o", mean).done();
    assertTrue(run.err().contains("made for another pooling, lasttoken"), run.err());
    assertFalse(Files.exists(mean.resolve("modules.json")));
    assertNotEquals(-1, Files.mismatch(int8, mean.resolve("model-int8.onnx")));
    Path given = folder.resolve("given");
    Files.delete(checkpoint.resolve("modules.json"));
    Files.writeString(
        checkpoint.resolve("config.json"),
        Files.readString(checkpoint.resolve("config.json"))
            .replace("LlamaForCausalLM", "LlamaModel"));
    Run.of("compress", recipe("checkpoint", ", pooling: last"), "-o", given).done();
    assertEquals(-1, Files.mismatch(int8, given.resolve("model-int8.onnx")));
  }

  /** A folder in front of what learns is one ONNX file in each version, with its pooling. */
  @Test
  void onlineTakesAFolder() throws IOException {
    List<String> lines = new ArrayList<>();
    for (String text : SmallLanguage.texts(60, 5)) {
      lines.add("{\"text\": \"%s\", \"label\": %d}".formatted(text, text.length() % 2));
    }
    Path input = Files.write(folder.resolve("in.jsonl"), lines);
    Path recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\nlearning-rate: 1\nmodel: {outputs: 2}\n");
    Path store = folder.resolve("store");
    Run run = Run.online(input, recipe, store, "--encoder", checkpoint, "--max-tokens", 40).done();
    assertTrue(run.err().contains("pooled by last"), run.err());
    Path version = store.resolve("versions/1/model");
    Path onnx = folder.resolve("model.onnx");
    Run.of("export", checkpoint, "-o", onnx).done();
    assertEquals(-1, Files.mismatch(onnx, version.resolve("encoder.onnx")));
    assertEquals(
        "{\"max_tokens\":40,\"pooling\":\"last\"}",
        Files.readString(version.resolve("encoder.json")));
    Path other = folder.resolve("store-of-file");
    Run.online(input, recipe, other, "--encoder", onnx, "--max-tokens", 40).done();
    assertEquals(
        -1,
        Files.mismatch(
            version.resolve("learner.state"), other.resolve("versions/1/model/learner.state")));
    Run.resume(input, store, "--encoder", checkpoint, "--max-tokens", 40).done();
    run =
        Run.resume(input, store, "--encoder", checkpoint, "--max-tokens", 40, "--pooling", "mean");
    assertEquals(2, run.code(), run.err());
    assertTrue(run.err().contains("has another encoder"), run.err());
  }

  /** Linear layers behind the pooling are part of each graph that is made of the folder, and of what a recipe puts back. */
  @Test
  void linearLayersBehindThePoolingAreComputed() throws IOException {
    Files.writeString(
        checkpoint.resolve("modules.json"),
        MODULES.replace(
            "\"2_Normalize\", \"type\"",
            "\"2_Dense\", \"type\": \"sentence_transformers.models.Dense\"},"
                + " {\"path\": \"3_Normalize\", \"type\""));
    SmallCheckpoint.writeDense(checkpoint.resolve("2_Dense"), 64, 24);
    Path onnx = folder.resolve("model.onnx");
    Path int8 = folder.resolve("int8.onnx");
    Run run = Run.of("export", checkpoint, "-o", onnx).done();
    assertFalse(run.out().contains("pooling"), run.out());
    assertFalse(Files.exists(folder.resolve("model-modules.json")));
    assertEquals(List.of("sentence_embedding"), List.copyOf(OnnxModel.read(onnx).outputNames()));
    Run.of("quantize", checkpoint, "-o", int8, "--to", "onnx-dynamic", "--calibration", texts)
        .done();
    assertTrue(
        OnnxModel.read(int8).initializer("2_Dense/linear.weight") == null, "is still a float");
    run = Run.of("evaluate", checkpoint, int8, "--texts", texts, "--json").done();
    assertFalse(run.err().contains("pooled"), run.err());
    double cosine = run.json().path("cosine_mean").asDouble();
    assertTrue(cosine > 0.99 && cosine < 1, run.out());

    Path small = folder.resolve("small");
    Run.of("quantize", checkpoint, "-o", small, "--to", "compressed-tensors").done();
    run = Run.of("evaluate", checkpoint, small, "--texts", texts, "--json").done();
    assertTrue(run.json().path("cosine_mean").asDouble() > 0.99, run.out());

    Path init = folder.resolve("init.yaml");
    Run.of("recipe", "init", "-o", init, "--model", "checkpoint", "--texts", "checkpoint/texts.txt")
        .done();
    assertTrue(Files.readString(init).contains("\n    loss: {embedding: 1}  # "), "no loss");
    List<String> few = List.of("data.train=120", "data.validation=16", "data.evaluation=24");
    Run.of("recipe", "check", init, "--set", few.get(0), "--set", few.get(1), "--set", few.get(2))
        .done();

    Path out = folder.resolve("out");
    Path recipe =
        Files.writeString(
            recipe("checkpoint", ""),
            "    fit: false\n"
                + "    loss: {embedding: 1, similarity: 1}\n"
                + "export: {formats: [onnx-float, safetensors, compressed-tensors]}\n",
            StandardOpenOption.APPEND);
    Run.of("compress", recipe, "-o", out).done();
    Path again = Files.createDirectory(folder.resolve("again"));
    for (String name :
        List.of("config.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json")) {
      Files.createDirectories(again.resolve(name).getParent());
      Files.copy(checkpoint.resolve(name), again.resolve(name));
    }
    Files.copy(checkpoint.resolve("tokenizer.json"), again.resolve("tokenizer.json"));
    for (String name : List.of("model.safetensors", "2_Dense/model.safetensors")) {
      Files.copy(out.resolve(name), again.resolve(name));
    }
    String[] same = {"evaluate", "--texts", texts.toString(), "--json"};
    double put =
        Run.of(same[0], out.resolve("model-float.onnx"), again, same[1], same[2], same[3])
            .json()
            .path("cosine_min")
            .asDouble();
    assertTrue(put > 0.99999, "put back: " + put);
    assertEquals(
        -1,
        Files.mismatch(
            out.resolve("2_Dense/model.safetensors"),
            out.resolve("compressed-tensors/2_Dense/model.safetensors")));
  }

  /** What is made of a folder as a folder has its modules too. */
  @Test
  void foldersKeepTheirModules() throws IOException {
    Path small = folder.resolve("small");
    Run.of("quantize", checkpoint, "-o", small, "--to", "compressed-tensors").done();
    String said = evaluate(small).err();
    assertTrue(said.contains("pooled by last, as " + small.resolve("1_Pooling")), said);
  }
}
