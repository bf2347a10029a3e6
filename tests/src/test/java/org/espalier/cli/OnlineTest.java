package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineSettings;
import org.espalier.online.model.LinearHead;
import org.espalier.online.store.LearnerFiles;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class OnlineTest {
  @TempDir Path folder;
  private Path recipe;
  private Path store;

  @BeforeEach
  void write() throws IOException {
    recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            """
            loss: cross-entropy
            learning-rate: 0.3
            momentum: 0.5
            batch: 8
            window: 200
            model: {features: 3, outputs: 2}
            guard:
              spike: {factor: 4, warmup: 20, in-a-row: 5}
            drift: {action: report}
            """);
    store = folder.resolve("store");
  }

  static List<String> lines(int n, long seed) {
    Random random = new Random(seed);
    List<String> lines = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float a = (float) random.nextGaussian();
      float b = (float) random.nextGaussian();
      float c = (float) random.nextGaussian();
      lines.add(
          String.format(
              Locale.ROOT,
              "{\"id\": \"e%d\", \"features\": [%s, %s, %s], \"label\": %d}",
              i,
              a,
              b,
              c,
              a - 2 * b > 0 ? 1 : 0));
    }
    return lines;
  }

  @Test
  void learnsAFileAndPublishesVersions() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(1000, 1));
    Path report = folder.resolve("run.html");
    JsonNode json =
        Run.online(input, recipe, store, "--publish", 400, "--report", report, "--json").json();
    assertEquals(1000, json.get("seen").asInt());
    assertEquals(0, json.get("bad").asInt());
    assertEquals("[1,2,3]", json.get("versions").toString());
    assertTrue(json.get("metrics").get("accuracy_window").asDouble() > 0.93, json.toString());
    JsonNode version = Run.of("store", "show", "2", "--store", store, "--json").json();
    assertEquals(1, version.get("parent").asInt());
    assertEquals(800, version.get("data").get("to").asInt());
    assertTrue(version.get("recipe").asText().contains("cross-entropy"));
    assertTrue(version.get("metrics").has("accuracy_window"));
    JsonNode diff = Run.of("store", "diff", "1", "3", "--store", store, "--json").json();
    assertEquals(2, diff.get("layers").size());
    String html = Files.readString(report);
    assertTrue(html.startsWith("<!doctype html>") && html.contains("<svg"), html);
    assertFalse(html.contains("http"), "the report loads something");
  }

  @Test
  void aResumedRunEndsInTheSameBits() throws IOException {
    List<String> all = lines(600, 2);
    Path whole = Files.write(folder.resolve("whole.jsonl"), all);
    Path half = Files.write(folder.resolve("half.jsonl"), all.subList(0, 296));
    Path other = folder.resolve("other");
    Run.online(whole, recipe, other).done();
    Run.online(half, recipe, store).done();
    JsonNode json = Run.resume(whole, store, "--json").json();
    assertEquals(304, json.get("lines").asInt());
    assertEquals(600, json.get("seen").asInt());
    assertArrayEquals(
        Files.readAllBytes(other.resolve("versions/1/model/learner.state")),
        Files.readAllBytes(store.resolve("versions/2/model/learner.state")));
  }

  /** Stopped in the middle of a batch, a run leaves its beginning to the next one. */
  @Test
  void aRunThatWasStoppedEndsInTheSameBits() throws IOException {
    InterruptSignal.assumeHeard();
    List<String> all = new ArrayList<>(lines(600, 2));
    all.add(299, "not JSON");
    Path whole = Files.write(folder.resolve("whole.jsonl"), all);
    Path other = folder.resolve("other");
    Run.of("online", "--input", whole, "--recipe", recipe, "--store", other).done();
    CountDownLatch asked = new CountDownLatch(1);
    PrintWriter interrupting =
        new PrintWriter(new StringWriter()) {
          @Override
          public void println(String text) {
            if (text.contains("line 300: it is not JSON")) {
              InterruptSignal.raise();
              awaitHandled(asked);
            } else if (text.contains("stopping after this batch")) {
              asked.countDown();
            }
            super.println(text);
          }
        };
    StringWriter out = new StringWriter();
    int code =
        Espalier.run(
            new PrintWriter(out),
            interrupting,
            Stream.of("online", "--input", whole, "--recipe", recipe, "--store", store, "--json")
                .map(String::valueOf)
                .toArray(String[]::new));
    assertEquals(130, code);
    JsonNode stopped = new ObjectMapper().readTree(out.toString());
    assertEquals(296, stopped.get("lines").asInt());
    assertEquals(296, stopped.get("seen").asInt());
    JsonNode json =
        Run.of("online", "--input", whole, "--resume", "--store", store, "--json").json();
    assertEquals(305, json.get("lines").asInt());
    assertEquals(600, json.get("seen").asInt());
    assertArrayEquals(
        Files.readAllBytes(other.resolve("versions/1/model/learner.state")),
        Files.readAllBytes(store.resolve("versions/2/model/learner.state")));
  }

  private static void awaitHandled(CountDownLatch latch) {
    try {
      assertTrue(latch.await(1, TimeUnit.MINUTES), "the signal was not handled");
    } catch (InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  @Test
  void badLinesAreCountedAndQuarantinedAndALimitStops() throws IOException {
    List<String> lines = new ArrayList<>(lines(100, 3));
    lines.set(10, "{\"features\": [1, 2], \"label\": 0}");
    lines.set(20, "{\"features\": [1, 2, 3], \"label\": 7}");
    lines.set(30, "not JSON");
    lines.set(40, "{\"features\": [1, 2, 3]}");
    lines.set(50, "{\"features\": [1, 2, \"NaN\"], \"label\": 1}");
    lines.set(60, "");
    lines.set(70, "{\"features\": [1, 2, 3], \"label\": 0, \"label\": 1}");
    Path input = Files.write(folder.resolve("in.jsonl"), lines);
    Path quarantine = folder.resolve("bad.jsonl");
    Run run = Run.online(input, recipe, store, "--quarantine", quarantine, "--json");
    JsonNode json = run.json();
    assertEquals(5, json.get("bad").asInt());
    assertEquals(94, json.get("seen").asInt());
    assertEquals(1, json.get("events").get("non_finite").asInt());
    assertTrue(run.err().contains("line 11: features holds 2 numbers; 3 are right"), run.err());
    assertTrue(run.err().contains("line 21: the label 7 is unknown; 0 to 1"), run.err());
    List<String> bad = Files.readAllLines(quarantine);
    assertEquals(6, bad.size());
    JsonNode first = new ObjectMapper().readTree(bad.get(0));
    assertEquals(11, first.get("line").asInt());
    assertEquals(lines.get(10), first.get("text").asText());
    Run stopped = Run.online(input, recipe, folder.resolve("s2"), "--max-bad", 2);
    assertEquals(2, stopped.code());
    assertTrue(stopped.err().contains("more than 2 lines"), stopped.err());
    assertEquals(
        30,
        Run.of("store", "show", "--store", folder.resolve("s2"), "--json")
                .json()
                .get("data")
                .get("to")
                .asInt()
            - 1);
  }

  @Test
  void csvAndASafetensorsModel() throws IOException {
    List<String> rows = new ArrayList<>(List.of("a,b,c,label"));
    Random random = new Random(4);
    for (int i = 0; i < 400; i++) {
      float a = (float) random.nextGaussian();
      rows.add(a + "," + random.nextGaussian() + ",0.5," + (a > 0 ? 1 : 0));
    }
    Path input = Files.write(folder.resolve("in.csv"), rows);
    JsonNode json =
        Run.of("online", "--input", input, "--csv", "--recipe", recipe, "--store", store, "--json")
            .json();
    assertEquals(400, json.get("seen").asInt());
    assertEquals(0, json.get("bad").asInt());
    // Its weights are a model for the next run; the file's name says that it is CSV.
    JsonNode again =
        Run.online(
                input,
                recipe,
                folder.resolve("s2"),
                "--model",
                store.resolve("versions/1/model/model.safetensors"),
                "--json")
            .json();
    assertTrue(again.get("metrics").get("accuracy").asDouble() > 0.95, again.toString());
    recipe("loss: cross-entropy\nlearning-rate: 1\nmodel: {features: 4, outputs: 2}\n");
    refused(
        "has 3 features and 2 outputs; the recipe says model: {features: 4",
        "--input",
        input,
        "--recipe",
        recipe,
        "--model",
        store.resolve("versions/1/model/model.safetensors"));
  }

  /** Zeros must not replace what is served, and a stream without news makes no version. */
  @Test
  void aRunThatLearnsNothingPublishesOnlyIntoAnEmptyStore() throws IOException {
    Path good = Files.write(folder.resolve("in.jsonl"), lines(64, 1));
    Path empty = Files.writeString(folder.resolve("empty.jsonl"), "");
    Path unusable = Files.writeString(folder.resolve("bad.jsonl"), "a\nb\nc\n");
    Run.online(empty, recipe, store).done();
    Run.online(good, recipe, store).done();
    Object[] zeros = {"online", "--input", unusable, "--recipe", recipe, "--store", store};
    assertTrue(Run.of(zeros).done().err().contains("no version was published"));
    Run many = Run.online(unusable, recipe, store, "--max-bad", 2);
    assertEquals(2, many.code());
    assertTrue(many.err().contains("nothing was learned"), many.err());
    JsonNode resumed = Run.resume(good, store, "--json").json();
    assertEquals("[]", resumed.get("versions").toString());
    JsonNode list = Run.of("store", "list", "--store", store, "--json").json();
    assertEquals(2, list.get("current").asInt());
    assertEquals(2, list.get("versions").size());
  }

  @Test
  void refusesWhatItCannotUse() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(10, 1));
    refused("there is no file", "--input", folder.resolve("none"), "--recipe", recipe);
    refused("--recipe is missing", "--input", input);
    recipe("loss: cross-entropy\nlearning-rate: fast\n");
    refused("online.yaml, line 2: learning-rate is 'fast'", "--input", input, "--recipe", recipe);
    recipe("loss: cross-entropy\nlearning-rate: -1\n");
    refused(
        "line 2: learning-rate is no learning rate: rate -1.0; a number above 0",
        "--input",
        input,
        "--recipe",
        recipe);
    recipe("loss: cross-entropy\nlearning-rate: 1\nmodel: {features: 1000000, outputs: 1000}\n");
    refused("their product to 268435456, are right", "--input", input, "--recipe", recipe);
    recipe("loss: cross-entropy\nlearning-rate: 1\nmomentun: 0.9\n");
    refused("line 3: momentun is unknown", "--input", input, "--recipe", recipe);
    recipe("loss: cross-entropy\nlerning-rate: 1\n");
    refused(
        "learning-rate is missing; the keys here are 'lerning-rate', 'loss'",
        "--input",
        input,
        "--recipe",
        recipe);
    recipe("loss: cross-entropy\nlearning-rate: 1\n");
    refused("there is no model", "--input", input, "--recipe", recipe);
    recipe("loss: cross-entropy\nlearning-rate: 1\nmodel: {features: 3, outputs: 1}\n");
    refused("two outputs or more", "--input", input, "--recipe", recipe);
    recipe("loss: cross-entropy\nlearning-rate: 1\nconstraint: {target: batch-maximum, rho: 1}\n");
    refused("losses on values", "--input", input, "--recipe", recipe);
    recipe("loss: squared\nlearning-rate: 1\nguard:\n  norm: {factor: 0.5}\n");
    refused("line 4: guard.norm: factor 0.5", "--input", input, "--recipe", recipe);
    recipe("loss: squared\nlearning-rate: 1\nseed: 1.5\n");
    refused("line 3: seed is '1.5'; an integer", "--input", input, "--recipe", recipe);
    recipe("loss: squared\nloss: squared\nlearning-rate: 1\n");
    refused("line 2: loss occurs twice", "--input", input, "--recipe", recipe);
    recipe("loss: [\n");
    refused("online.yaml, line", "--input", input, "--recipe", recipe);
  }

  private void recipe(String text) throws IOException {
    Files.writeString(recipe, text);
  }

  private void refused(String word, Object... args) {
    Object[] all = new Object[args.length + 3];
    all[0] = "online";
    System.arraycopy(args, 0, all, 1, args.length);
    all[args.length + 1] = "--store";
    all[args.length + 2] = store;
    Run.refused(folder, new String[] {word}, all);
  }

  /** Outcomes that come later teach what they would have taught at once, also across a resumption. */
  @Test
  void outcomesMayComeLater() throws IOException {
    List<String> whole = lines(240, 1);
    List<String> parts = new ArrayList<>();
    List<String> late = new ArrayList<>();
    for (int i = 0; i < whole.size(); i++) {
      String line = whole.get(i);
      int cut = line.indexOf(", \"label\"");
      parts.add(line.substring(0, cut) + "}");
      late.add("{\"id\": \"e" + i + "\"" + line.substring(cut));
      if (i % 24 == 23) {
        parts.addAll(late.subList(i - 23, i + 1));
      }
    }
    parts.add(100, "{\"id\": \"nobody\", \"label\": 1}");
    parts.add(101, "{\"id\": \"e0\", \"label\": 1}"); // answered already
    parts.add(102, "{\"features\": [1, 2, 3]}");
    Path other = folder.resolve("other");
    Path all = Files.write(folder.resolve("all.jsonl"), whole);
    Run.online(all, recipe, other).done();
    // Stopped between examples and their outcomes.
    Path first = Files.write(folder.resolve("first.jsonl"), parts.subList(0, 101));
    Path second = Files.write(folder.resolve("second.jsonl"), parts);
    Run begun = Run.online(first, recipe, store).done();
    assertTrue(begun.err().contains("line 101: no prediction of the id 'nobody'"), begun.err());
    Run resumed = Run.resume(second, store).done();
    assertTrue(resumed.err().contains("line 102: no prediction of the id 'e0'"), resumed.err());
    assertTrue(resumed.err().contains("an id by which"), resumed.err());
    assertArrayEquals(
        Files.readAllBytes(other.resolve("versions/1/model/learner.state")),
        Files.readAllBytes(store.resolve("versions/2/model/learner.state")));
  }

  @Test
  void whatIsReadIsNeverWritten() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(10, 1));
    for (Path read : List.of(input, recipe)) {
      refused("the input", "--input", input, "--recipe", recipe, "--report", read);
      refused("the input", "--input", input, "--recipe", recipe, "--quarantine", read);
    }
    Path both = folder.resolve("both");
    refused(
        "the same file",
        "--input",
        input,
        "--recipe",
        recipe,
        "--report",
        both,
        "--quarantine",
        both);
    refused("is a folder", "--input", folder, "--recipe", recipe);
    Path wide = Files.writeString(folder.resolve("wide"), "{}\n", StandardCharsets.UTF_16);
    refused("iconv", "--input", wide, "--recipe", recipe);
    Path quarantine = folder.resolve("quarantine");
    refused("iconv", "--input", wide, "--recipe", recipe, "--quarantine", quarantine);
  }

  /** Another stream is learned from its first line on, and the first one is known again after it. */
  @Test
  void aStreamIsKnownByItsBeginning() throws IOException {
    List<String> all = lines(300, 1);
    Path first = Files.write(folder.resolve("first.jsonl"), all.subList(0, 100));
    Run.online(first, recipe, store).done();
    Path other = Files.write(folder.resolve("other.jsonl"), lines(150, 2));
    Run resumed = Run.resume(other, store, "--json");
    assertEquals(150, resumed.json().get("lines").asInt());
    assertTrue(resumed.err().contains("has seen nothing of"), resumed.err());
    Path grown = Files.write(folder.resolve("renamed.jsonl"), all);
    resumed = Run.resume(grown, store, "--json");
    assertEquals(200, resumed.json().get("lines").asInt());
    assertTrue(resumed.err().contains("version 1 has seen lines 1 to 100 of"), resumed.err());
    Files.write(grown, all.subList(0, 50));
    resumed = Run.resume(grown, store).done();
    assertTrue(resumed.err().contains("50 lines only, of 300"), resumed.err());
  }

  /** A wrong outcome of what waits is refused when it is read first, and again when it is recalled. */
  @Test
  void aWrongOutcomeIsNotRecalled() throws IOException {
    List<String> some =
        List.of(
            "{\"id\": \"a\", \"features\": [1, 2, 3]}",
            "{\"id\": \"a\", \"label\": 7}",
            "{\"id\": \"a\", \"label\": null, \"values\": null}");
    Path begun = Files.write(folder.resolve("begun.jsonl"), some);
    JsonNode json = Run.online(begun, recipe, store, "--json").json();
    assertEquals(2, json.get("bad").asInt());
    assertEquals(1, json.get("waiting").asInt());
    Files.writeString(begun, "{\"id\": \"a\", \"label\": 1}\n", StandardOpenOption.APPEND);
    json = Run.resume(begun, store, "--json").json();
    assertEquals(0, json.get("bad").asInt());
    assertEquals(1, json.get("seen").asInt());
    assertEquals(0, json.get("waiting").asInt());
  }

  @Test
  void aStoreThatCannotBeWrittenDoesNotEndTheLearning() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(1000, 1));
    Path report = folder.resolve("run.html");
    Run run;
    try (StoreWriter writer = ModelStore.create(store).writer(Duration.ZERO)) {
      run =
          Run.online(
              input, recipe, store, "--publish", 100, "--wait", 0, "--report", report, "--json");
    }
    assertEquals(2, run.code());
    assertTrue(run.out().contains("\"learned\" : 1000"), run.out());
    assertTrue(run.err().contains("no version could be published"), run.err());
    assertTrue(run.err().contains("what was learned last is in no version"), run.err());
    assertTrue(Files.exists(report));
  }

  /** A version that was only published is gone on from by a recipe. */
  @Test
  void resumesWhatNoLearnerMade() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(400, 1));
    Path other = folder.resolve("other");
    Run.online(input, recipe, other).done();
    Path head = other.resolve("versions/1/model/model.safetensors");
    Run.of("store", "publish", head, "--store", store).done();
    Run missing = Run.resume(input, store);
    assertEquals(2, missing.code());
    assertTrue(missing.err().contains("no learner made version 1"), missing.err());
    Path more = Files.write(folder.resolve("more.jsonl"), lines(80, 2));
    JsonNode json =
        Run.of(
                "online",
                "--input",
                more,
                "--resume",
                "--recipe",
                recipe,
                "--store",
                store,
                "--json")
            .json();
    assertEquals(80, json.get("seen").asInt());
    assertTrue(json.get("metrics").get("accuracy").asDouble() > 0.9, json.toString());
    JsonNode version = Run.of("store", "show", "2", "--store", store, "--json").json();
    assertEquals(1, version.get("parent").asInt());
  }

  /** A process that is killed while it publishes for the first time is started again as it was. */
  @Test
  void resumesWhereNothingIsCurrent() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(80, 1));
    ModelStore.create(store);
    Run.refused(
        folder,
        new String[] {"no current version: nothing was published yet"},
        "online",
        "--input",
        input,
        "--resume",
        "--store",
        store);
    Run begun = Run.resume(input, store, "--recipe", recipe).done();
    assertTrue(begun.err().contains("all lines are new: "), begun.err());
    Path other = folder.resolve("other");
    Run.online(input, recipe, other).done();
    assertArrayEquals(
        Files.readAllBytes(other.resolve("versions/1/model/model.safetensors")),
        Files.readAllBytes(store.resolve("versions/1/model/model.safetensors")));

    Path state = store.resolve("state.json");
    Files.writeString(
        state,
        Files.readString(state)
            .replace("\"current\" : 1", "\"current\" : 0")
            .replace("\"next\" : 2", "\"next\" : 1"));
    Run missing = Run.resume(input, store);
    assertEquals(2, missing.code());
    assertTrue(missing.err().contains("'store rollback 1' makes one"), missing.err());
    assertFalse(missing.err().contains("nothing was published"), missing.err());
    Run again = Run.resume(input, store, "--recipe", recipe, "--json");
    assertEquals(80, again.json().get("seen").asInt());
    assertTrue(again.err().contains("'store rollback 1' makes one"), again.err());
    assertEquals(2, ModelStore.open(store).current().getAsLong());
    Files.writeString(state, Files.readString(state).replace("\"current\" : 2", "\"current\" : 0"));
    for (int damaged : new int[] {1, 2}) {
      Files.delete(store.resolve("versions/" + damaged + "/model/model.safetensors"));
    }
    Run.refused(
        folder,
        new String[] {"none that is there is whole"},
        "serve",
        "--store",
        store,
        "--port",
        0);
  }

  /** What goes on from a version learns no other model, and says so. */
  @Test
  void aResumedRunTakesNoOtherModel() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(80, 1));
    Path other = folder.resolve("other");
    Run.online(input, recipe, other).done();
    Path head = other.resolve("versions/1/model/model.safetensors");
    Path more = Files.write(folder.resolve("more.jsonl"), lines(40, 2));
    Run.online(more, recipe, store).done();
    Object[] resume = {"--input", input, "--resume", "--model", head};
    refused("--model " + head + " has other weights than version 1", resume);
    // Its own is welcome, though it says nothing new.
    Path own = store.resolve("versions/1/model/model.safetensors");
    Run.of("online", "--input", input, "--resume", "--model", own, "--store", store).done();

    // As where no learner made the version.
    Run.of("store", "publish", head, "--store", store).done();
    refused(
        "weights than version 3", "--input", more, "--resume", "--recipe", recipe, "--model", own);
    Run.of(
            "online",
            "--input",
            more,
            "--resume",
            "--recipe",
            recipe,
            "--model",
            head,
            "--store",
            store)
        .done();
    assertEquals(4, ModelStore.open(store).ids().size());
  }

  /** What is called as a stream that was seen, and is not known to be it, is learned from its beginning. */
  @Test
  void aNameAloneIsNoStream() throws IOException {
    Path input = Files.write(folder.resolve("feedback"), lines(40, 1));
    OnlineRecipe learned = OnlineRecipe.read(recipe);
    try (LinearHead head = new LinearHead(3, 2);
        OnlineLearner learner = new OnlineLearner(head, learned.settings());
        StoreWriter writer = ModelStore.create(store).writer(Duration.ZERO)) {
      Lineage lineage =
          Lineage.NONE.withData(new Lineage.DataWindow(input.toString(), 0, 30)); // as serve has it
      LearnerFiles.publish(writer, learner, learned.text(), lineage, null, true);
    }
    JsonNode json = Run.resume(input, store, "--json").json();
    assertEquals(40, json.get("seen").asInt());
  }

  @Test
  void whoTrustsSignaturesSigns() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(10, 1));
    Path key = Files.writeString(folder.resolve("public.pem"), "");
    refused("--key", "--input", input, "--recipe", recipe, "--trust", key);
    Run.refused(
        folder, new String[] {"--key"}, "serve", "--store", store, "--port", 0, "--trust", key);
  }

  @Test
  void whatIsLearnedTwiceInPrivateAddsUp() throws IOException {
    String model = "loss: cross-entropy\nlearning-rate: 0.1\nmodel: {features: 3, outputs: 2}\n";
    recipe(model + "privacy: {epsilon: 8, delta: 1e-5, clip: 1}\n");
    Path input = Files.write(folder.resolve("in.jsonl"), lines(64, 1));
    Object[] again = {"online", "--input", input, "--recipe", recipe, "--store", store, "--json"};
    Run once = Run.of(again).done();
    assertFalse(once.err().contains("epsilon"));
    assertEquals(8, once.json().get("epsilon").asDouble(), 1e-6);
    Run twice = Run.of(again).done();
    assertTrue(twice.err().contains("version 1 has learned lines up to 64"), twice.err());
    double both = twice.json().get("epsilon").asDouble();
    assertTrue(both > 11 && both < 16, "epsilon " + both);
    assertEquals(
        both,
        Run.of("store", "show", "2", "--store", store, "--json").json().get("epsilon").asDouble());
    Run resumed = Run.resume(input, store).done();
    assertFalse(resumed.err().contains("epsilon"), resumed.err());

    // What is new of a longer stream is told once only; another noise adds what it spends.
    Files.write(input, lines(100, 1));
    Object[] resume = {"online", "--input", input, "--resume", "--store", store, "--json"};
    assertEquals(both, Run.of(resume).done().json().get("epsilon").asDouble(), 1e-9);
    recipe(model + "privacy: {epsilon: 1, delta: 1e-5, clip: 1}\n");
    double third = Run.of(again).done().json().get("epsilon").asDouble();
    assertTrue(third > both && third < both + 0.5, "epsilon " + third + " after " + both);
    // Also where the versions that tell of the first two are gone.
    Run.of("store", "gc", "--store", store, "--keep", 1).done();
    double fourth = Run.of(again).done().json().get("epsilon").asDouble();
    assertTrue(fourth > third && fourth < third + 0.5, "epsilon " + fourth + " after " + third);

    // Other lines in the same store are other examples.
    Path other = Files.write(folder.resolve("other.jsonl"), lines(64, 2));
    Object[] fresh = {"online", "--input", other, "--recipe", recipe, "--store", store, "--json"};
    assertEquals(fourth, Run.of(fresh).done().json().get("epsilon").asDouble(), 1e-9);

    // A limit of the total refuses before anything is learned.
    long versions = ModelStore.open(store).ids().size();
    recipe(model + "privacy: {epsilon: 1, delta: 1e-5, clip: 1, max-epsilon: 12}\n");
    refused("max-epsilon 12", "--input", input, "--recipe", recipe);
    assertEquals(versions, ModelStore.open(store).ids().size());
    recipe(model + "privacy: {epsilon: 1, delta: 1e-5, clip: 1, max-epsilon: 0.5}\n");
    refused("max-epsilon 0.5", "--input", input, "--recipe", recipe);
    // And learning in the open is told.
    recipe(model);
    Run.of(again).done();
    recipe(model + "privacy: {epsilon: 1, delta: 1e-5, clip: 1}\n");
    assertTrue(Run.of(again).done().err().contains("not in private"));
  }

  /** The keys that --help shows are those that there are. */
  @Test
  void theHelpShowsARecipe() {
    List<String> help = Run.of("online", "--help").done().out().lines().toList();
    int from = help.indexOf("All keys, with defaults or examples:") + 1;
    int to = from + help.subList(from, help.size()).indexOf("");
    String all = String.join("\n", help.subList(from, to));
    OnlineSettings settings = parsed(all, "privacy|momentum").settings();
    assertTrue(settings.guard().quality() != null && settings.adamW() != null, all);
    assertTrue(settings.constraint() != null && settings.replay() != null, all);
    assertEquals(
        8,
        parsed(all, "constraint|replay|guard| |drift|adamw").settings().privacy().epsilon(),
        1e-3);
    for (String key : new String[] {"loss", "learning-rate"}) {
      assertThrows(InputException.class, () -> parsed(all, key + "|privacy|momentum"));
    }
  }

  private static OnlineRecipe parsed(String recipe, String left) {
    return OnlineRecipe.parse(
        recipe
            .lines()
            .map(line -> line.substring(2))
            .filter(line -> !line.matches("(" + left + ").*"))
            .collect(Collectors.joining("\n")),
        "help");
  }
}
