package org.espalier.cli;

import static org.espalier.cli.Client.post;
import static org.espalier.cli.Client.start;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Classes that have names. */
class OnlineClassesTest {
  private static final String RECIPE =
      "classes: [no, yes]\nloss: cross-entropy\nlearning-rate: 0.3\nbatch: 8\n"
          + "model: {features: 3}\n";

  @TempDir Path folder;
  private Path recipe;
  private Path store;

  @BeforeEach
  void write() throws IOException {
    recipe = Files.writeString(folder.resolve("online.yaml"), RECIPE);
    store = folder.resolve("store");
  }

  private static List<String> named(List<String> lines) {
    return lines.stream()
        .map(line -> line.replace("\"label\": 1", "\"label\": \"yes\""))
        .map(line -> line.replace("\"label\": 0", "\"label\": \"no\""))
        .toList();
  }

  private static byte[] model(Path store) throws IOException {
    return Files.readAllBytes(store.resolve("versions/1/model/model.safetensors"));
  }

  /** Words are what numbers are, in JSON and CSV. */
  @Test
  void learnsTheSameFromWords() throws IOException {
    List<String> lines = OnlineTest.lines(200, 1);
    Path input = Files.write(folder.resolve("in.jsonl"), lines);
    Run.online(input, recipe, folder.resolve("numbers")).done();
    Files.write(input, named(lines));
    Run.online(input, recipe, store).done();
    byte[] first = model(folder.resolve("numbers"));
    assertArrayEquals(first, model(store));
    Path csv =
        Files.write(
            folder.resolve("in.csv"),
            named(lines).stream()
                .map(line -> line.replaceAll(".*\\[(.*)\\], \"label\": (.*)}", "$1, $2"))
                .toList());
    JsonNode json = Run.online(csv, recipe, folder.resolve("csv"), "--json").json();
    assertEquals(0, json.get("bad").asInt());
    assertArrayEquals(first, model(folder.resolve("csv")));
  }

  @Test
  void answersAndExportsNames() throws Exception {
    Path input = Files.write(folder.resolve("in.jsonl"), named(OnlineTest.lines(200, 1)));
    Run.online(input, recipe, store).done();
    Path onnx = folder.resolve("model.onnx");
    Run.of("store", "export", "--store", store, "-o", onnx).done();
    assertEquals("[\"no\",\"yes\"]", OnnxModel.read(onnx).metadata("classes"));
    try (Service service =
        new Service(
            ModelStore.open(store),
            new Service.Limits(10_000, 1e6, 100, 1000, true),
            null,
            null,
            null,
            null)) {
      int port = start(service);
      JsonNode answer = post(200, port, "/predict", "{\"id\": 1, \"features\": [2, -2, 0]}");
      assertEquals(1, answer.get("label").asInt());
      assertEquals("yes", answer.get("class").asText());
      double no = answer.get("outputs").get(0).asDouble();
      double yes = answer.get("outputs").get(1).asDouble();
      assertEquals(1 / (1 + Math.exp(no - yes)), answer.get("probability").asDouble(), 1e-6);
      String said =
          post(400, port, "/feedback", "{\"id\": 1, \"label\": \"yse\"}").get("error").asText();
      assertTrue(said.contains("'yse' is no class; there are 'yes', 'no'"), said);
      assertTrue(
          post(200, port, "/feedback", "{\"id\": 1, \"label\": \"yes\"}")
              .get("accepted")
              .asBoolean());
    }
  }

  @Test
  void withoutNamesWordsAreNoLabels() throws Exception {
    Files.writeString(
        recipe,
        RECIPE
            .replace("classes: [no, yes]\n", "")
            .replace("features: 3", "features: 3, outputs: 2"));
    List<String> lines = OnlineTest.lines(40, 1);
    Path input = Files.write(folder.resolve("in.jsonl"), lines);
    Run.online(input, recipe, folder.resolve("other")).done();
    Path onnx = folder.resolve("o.onnx");
    Run.of("store", "export", "--store", folder.resolve("other"), "-o", onnx).done();
    assertNull(OnnxModel.read(onnx).metadata("classes"));
    Files.write(input, named(lines));
    Run run = Run.online(input, recipe, store, "--json");
    assertEquals(40, run.json().get("bad").asInt());
    assertTrue(run.err().contains("is a word; classes are integers from 0 on"), run.err());
  }

  /** Of a binary loss one output is for two classes. */
  @Test
  void namesTheClassesOfOneOutput() throws IOException {
    Files.writeString(recipe, RECIPE.replace("cross-entropy", "binary"));
    Path input = Files.write(folder.resolve("in.jsonl"), named(OnlineTest.lines(100, 1)));
    Run.online(input, recipe, store).done();
    Files.writeString(
        recipe,
        RECIPE
            .replace("cross-entropy", "binary")
            .replace("classes: [no, yes]\n", "")
            .replace("features: 3", "features: 3, outputs: 1"));
    Files.write(input, OnlineTest.lines(100, 1));
    Path other = folder.resolve("other");
    Run.online(input, recipe, other).done();
    assertArrayEquals(model(store), model(other));
  }

  @ParameterizedTest
  @CsvSource({
    "'[no, yes]','[no]','line 1: classes','two or more'",
    "'[no, yes]','[no, no]','line 1: classes','twice'",
    "'[no, yes]','[no, 1]','line 1: classes','is no word'",
    "'[no, yes]','no','line 1: classes','is not a list'",
    "'features: 3','features: 3, outputs: 3','line 5: model.outputs','2 classes are named'",
    "'cross-entropy','squared','line 1: classes','outcomes that are values'"
  })
  void refusesNamesThatAreNone(String of, String with, String place, String word)
      throws IOException {
    Files.writeString(recipe, RECIPE.replace(of, with));
    Path input = Files.write(folder.resolve("in.jsonl"), OnlineTest.lines(4, 1));
    Run.refused(
        folder,
        new String[] {place, word},
        "online",
        "--input",
        input,
        "--recipe",
        recipe,
        "--store",
        store);
  }
}
