package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.util.Base64;
import java.util.stream.Stream;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class StoreTest {
  private static final String HEADER =
      "{\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
          + "\"b.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}";

  @TempDir Path folder;
  private Path model;
  private Path store;

  @BeforeEach
  void write() throws IOException {
    model = Files.write(folder.resolve("m.safetensors"), RawSafetensors.bytes(HEADER, 12));
    store = folder.resolve("store");
  }

  @Test
  void publishListShowRollback() throws IOException {
    Path recipe = Files.writeString(folder.resolve("recipe.yaml"), "stages: []\n");
    JsonNode first =
        Run.of(
                "store",
                "publish",
                model,
                "--store",
                store,
                "--json",
                "--note",
                "first",
                "--recipe",
                recipe,
                "--metric",
                "accuracy=0.5")
            .json();
    assertEquals(1, first.get("id").asInt());
    assertTrue(first.get("current").asBoolean());
    assertEquals("stages: []\n", first.get("recipe").asText());
    Path onnx = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    assertEquals(
        "version 2, ",
        Run.of("store", "publish", onnx, "--store", store, "--parent", "1")
            .done()
            .out()
            .substring(0, 11));
    Run.of("store", "publish", model, "--store", store, "--stay").done();

    JsonNode list = Run.of("store", "list", "--store", store, "--json").json();
    assertEquals(2, list.get("current").asInt());
    assertEquals(3, list.get("versions").size());
    assertEquals(0.5, list.get("versions").get(0).get("metrics").get("accuracy").asDouble());
    assertEquals(1, list.get("versions").get(1).get("parent").asInt());
    assertTrue(list.get("versions").get(1).get("current").asBoolean());
    assertFalse(list.get("versions").get(2).get("current").asBoolean());
    String table = Run.of("store", "list", "--store", store).done().out();
    assertTrue(table.contains("first; accuracy 0.5"), table);

    assertEquals(
        1, Run.of("store", "rollback", "--store", store, "--json").json().get("current").asInt());
    String shown = Run.of("store", "show", "--store", store).done().out();
    assertTrue(shown.contains("m.safetensors") && shown.contains("stages: []"), shown);
    Run.of("store", "rollback", "3", "--store", store).done();
    assertEquals(3, Run.of("store", "show", "--store", store, "--json").json().get("id").asInt());
    Run.refused(folder, new String[] {"no version 9"}, "store", "rollback", "9", "--store", store);
    Run.refused(folder, new String[] {"'x' is no version"}, "store", "show", "x", "--store", store);
  }

  @Test
  void pinAndGc() {
    for (int i = 0; i < 5; i++) {
      Run.of("store", "publish", model, "--store", store).done();
    }
    Run.of("store", "pin", "1", "--store", store).done();
    JsonNode dry =
        Run.of("store", "gc", "--keep", "1", "--dry-run", "--store", store, "--json").json();
    assertEquals("[2,3]", dry.get("removed").toString()); // 4 is where a rollback goes
    assertEquals(5, list().size());
    String younger = Run.of("store", "gc", "--older-than", "1d", "--store", store).done().out();
    assertTrue(younger.startsWith("removed 0 versions"), younger);
    Run.of("store", "gc", "--keep", "1", "--older-than", "0s", "--store", store).done();
    assertEquals(3, list().size());
    Run.of("store", "pin", "1", "--remove", "--store", store).done();
    Run.of("store", "gc", "--keep", "1", "--store", store).done();
    assertEquals(2, list().size());
    Run.refused(folder, new String[] {"--keep N"}, "store", "gc", "--store", store);
    Run.refused(
        folder,
        new String[] {"s, m, h, d or w"},
        "store",
        "gc",
        "--older-than",
        "1y",
        "--store",
        store);
  }

  @Test
  void verifyFindsWhatWasTouched() throws IOException {
    Run.of("store", "publish", model, "--store", store).done();
    Run.of("store", "publish", model, "--store", store).done();
    assertTrue(Run.of("store", "verify", "--store", store, "--json").json().get("ok").asBoolean());
    Path file = store.resolve("versions/2/model/m.safetensors");
    byte[] bytes = Files.readAllBytes(file);
    bytes[bytes.length - 1] ^= 1;
    Files.write(file, bytes);
    Run run = Run.of("store", "verify", "--store", store);
    assertEquals(2, run.code());
    assertTrue(run.out().contains("version 1: ok") && run.out().contains("altered"), run.out());
    assertTrue(run.err().contains("1 of 2 versions"), run.err());
    Run.refused(folder, new String[] {"was altered"}, "store", "diff", "1", "2", "--store", store);
    assertEquals(
        1, Run.of("store", "rollback", "--store", store, "--json").json().get("current").asInt());
  }

  /** What a terminal would obey is shown, not printed. */
  @Test
  void textsCannotCommandTheTerminal() throws IOException {
    Path recipe = Files.writeString(folder.resolve("recipe"), "a:\tb\n\u001b[2Jc\n");
    Run.of(
            "store",
            "publish",
            model,
            "--store",
            store,
            "--note",
            "red \u001b[31m\n",
            "--recipe",
            recipe)
        .done();
    for (Object[] command : new Object[][] {{"list"}, {"show"}}) {
      String out = Run.of("store", command[0], "--store", store).done().out();
      assertFalse(out.contains("\u001b"), out);
      assertTrue(out.contains("red \\u001b[31m\\u000a"), out);
    }
    String shown = Run.of("store", "show", "--store", store).done().out();
    assertTrue(shown.contains("a:    b") && shown.contains("\\u001b[2Jc"), shown);
  }

  @Test
  void whatIsMissingIsNamed() throws IOException {
    Run.of("store", "publish", model, "--store", store).done();
    Files.createDirectory(store.resolve("versions/2"));
    Run.refused(
        folder,
        new String[] {"version 2", "no version.json"},
        "store",
        "show",
        "2",
        "--store",
        store);
    Run.refused(
        folder, new String[] {"has no version 9"}, "store", "verify", "9", "--store", store);
    Path state = store.resolve("state.json");
    Files.writeString(state, Files.readString(state).replace("\"current\" : 1", "\"current\" : 7"));
    Run run = Run.of("store", "verify", "--store", store, "--json");
    assertEquals(2, run.code());
    assertTrue(run.out().contains("\"current_missing\" : true"), run.out());
    assertTrue(run.err().contains("version 7 is missing"), run.err());
    Files.delete(store.resolve("leases"));
    run = Run.of("store", "rollback", "1", "--store", store);
    assertEquals(2, run.code());
    assertTrue(run.err().contains("leases is missing"), run.err());
  }

  @Test
  void aFileInPlaceOfItsFolderIsSaidToBeNone() throws IOException {
    Run.of("store", "publish", model, "--store", store).done();
    Files.move(store.resolve("versions"), folder.resolve("moved"));
    Files.writeString(store.resolve("versions"), "");
    for (String command : new String[] {"list", "rollback"}) {
      Run run = Run.of("store", command, "--store", store);
      assertEquals(2, run.code());
      assertTrue(run.err().contains("versions: it is not a folder"), run.err());
    }
  }

  @Test
  void signaturesAreChecked() throws Exception {
    KeyPair pair = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    Path key = pem("key.pem", "PRIVATE KEY", pair.getPrivate().getEncoded());
    Path trust = pem("public.pem", "PUBLIC KEY", pair.getPublic().getEncoded());
    Run.of("store", "publish", model, "--store", store).done();
    Run.of("store", "publish", model, "--store", store, "--key", key).done();
    Run.of("store", "verify", "2", "--store", store, "--trust", trust).done();
    Run.refused(
        folder,
        new String[] {"version 1", "not signed"},
        "store",
        "show",
        "1",
        "--store",
        store,
        "--trust",
        trust);
    JsonNode versions =
        Run.of("store", "list", "--store", store, "--trust", trust, "--json")
            .json()
            .get("versions");
    assertTrue(versions.get(0).get("problem").asText().contains("not signed"));
    assertTrue(versions.get(1).get("signed").asBoolean());
  }

  @Test
  void whoTrustsKeysPublishesWhatTheySign() throws Exception {
    KeyPair one = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    KeyPair two = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    Path key = pem("key.pem", "PRIVATE KEY", one.getPrivate().getEncoded());
    Path other = pem("other.pem", "PRIVATE KEY", two.getPrivate().getEncoded());
    Path trust = pem("public.pem", "PUBLIC KEY", one.getPublic().getEncoded());
    Object[] publish = {"store", "publish", model, "--store", store, "--trust", trust};
    Run.refused(folder, new String[] {"--trust", "--key"}, publish);
    String[] words = {"--trust refuses", "other.pem", "public.pem"};
    Run.refused(folder, words, with(publish, "--key", other));
    Object[] learning = {"--store", store, "--trust", trust, "--key", other};
    Run.refused(
        folder,
        words,
        with(new Object[] {"online", "--input", "in.jsonl", "--recipe", "r.yaml"}, learning));
    assertFalse(Files.exists(store));
    Run.of(with(publish, "--key", key)).done();
    Run.refused(folder, words, with(new Object[] {"serve", "--port", 0}, learning));
    assertEquals(1, ModelStore.open(store).ids().size());
    Run.of(
            with(
                publish,
                "--key",
                other,
                "--trust",
                pem("second.pem", "PUBLIC KEY", two.getPublic().getEncoded())))
        .done();
  }

  private static Object[] with(Object[] arguments, Object... more) {
    return Stream.concat(Stream.of(arguments), Stream.of(more)).toArray();
  }

  @Test
  void diffNamesTheLayers() throws IOException {
    Run.of("store", "publish", model, "--store", store).done();
    byte[] bytes = RawSafetensors.bytes(HEADER, 12);
    bytes[bytes.length - 1] ^= (byte) 0x80; // another sign
    Files.write(model, bytes);
    Run.of("store", "publish", model, "--store", store).done();
    JsonNode diff = Run.of("store", "diff", "1", "current", "--store", store, "--json").json();
    assertEquals(1, diff.get("layers").size());
    assertEquals("b.weight", diff.get("layers").get(0).get("name").asText());
    assertEquals(2, diff.get("layers").get(0).get("relative").asDouble());
    String text = Run.of("store", "diff", "1", "2", "--store", store, "--all").done().out();
    assertTrue(text.contains("a.weight") && text.contains("f32[1]"), text);
  }

  @Test
  void refusesWhatIsNoModelOrNoStore() throws IOException {
    Path text = Files.writeString(folder.resolve("bad.onnx"), "hello");
    Run.refused(
        folder, new String[] {"not an ONNX model"}, "store", "publish", text, "--store", store);
    Run.refused(folder, new String[] {"no such store"}, "store", "list", "--store", store);
    Run.refused(
        folder,
        new String[] {"name a new or an empty folder"},
        "store",
        "publish",
        model,
        "--store",
        folder);
    Run none = Run.of("store");
    assertEquals(2, none.code());
    assertTrue(none.err().contains("list, show, publish"), none.err());
  }

  @ParameterizedTest
  @ValueSource(strings = {"", "list", "show", "publish", "rollback", "pin", "verify", "gc", "diff"})
  void everyCommandTeachesWithExamples(String command) {
    Run run =
        command.isEmpty()
            ? Run.of("store", "--help").done()
            : Run.of("store", command, "--help").done();
    assertTrue(run.out().contains("Examples:"), run.out());
    assertTrue(run.out().lines().allMatch(line -> line.length() <= 80), run.out());
  }

  private JsonNode list() {
    return Run.of("store", "list", "--store", store, "--json").json().get("versions");
  }

  private Path pem(String name, String kind, byte[] der) throws IOException {
    return Files.writeString(
        folder.resolve(name),
        "-----BEGIN "
            + kind
            + "-----\n"
            + Base64.getMimeEncoder().encodeToString(der)
            + "\n-----END "
            + kind
            + "-----\n");
  }
}
