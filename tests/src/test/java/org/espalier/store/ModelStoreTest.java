package org.espalier.store;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.espalier.InputException;
import org.espalier.store.StoreWriter.Collected;
import org.espalier.store.StoreWriter.Rule;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class ModelStoreTest {
  @TempDir Path folder;
  private ModelStore store;

  @BeforeEach
  void create() {
    store = ModelStore.create(folder.resolve("store"));
  }

  @Test
  void whatIsPublishedIsCurrentAndComesBackWithItsLineage() throws IOException {
    assertTrue(store.current().isEmpty());
    Lineage lineage =
        Lineage.NONE
            .withSource("model.onnx")
            .withRecipe("a: 1\n")
            .withData(new Lineage.DataWindow("mails", 10, 20))
            .withMetrics(Map.of("accuracy", 0.75))
            .withEpsilon(7.5)
            .withNote("first");
    Version published = publish("one", lineage, null);
    assertEquals(1, published.id());
    ModelStore other = ModelStore.open(folder.resolve("store"));
    assertEquals(1, other.current().getAsLong());
    assertEquals(published, other.version(1));
    assertEquals(lineage, other.version(1).lineage());
    try (ModelStore.Held held = other.holdCurrent()) {
      assertEquals("one", Files.readString(held.model()));
      assertEquals("extra", Files.readString(held.file("sub/extra")));
      assertThrows(InputException.class, () -> held.file("none"));
    }
    assertEquals(List.of(), other.verify(1));
    assertEquals(8, published.bytes());
  }

  @Test
  void sharesFilesOfOtherVersions() throws IOException {
    publish("one", Lineage.NONE, null);
    try (ModelStore.Held held = store.holdCurrent();
        StoreWriter writer = writer()) {
      writer.publish(
          version -> {
            put(version, "model", "two");
            version.share(held, "sub/extra");
            assertThrows(InputException.class, () -> version.share(held, "none"));
          },
          "model",
          Lineage.NONE,
          null);
    }
    assertEquals(List.of(), store.verify(2));
    assertEquals(store.version(1).files().get(1), store.version(2).files().get(1));
    Path first = store.folder().resolve("versions/1/model/sub/extra");
    Path second = store.folder().resolve("versions/2/model/sub/extra");
    assertEquals(Files.getAttribute(first, "unix:ino"), Files.getAttribute(second, "unix:ino"));
    try (StoreWriter writer = writer()) {
      writer.rollback(2);
      writer.collect(new Rule(1, null), false);
      publishInto(writer, "three");
      writer.collect(new Rule(0, null), false);
    }
    assertEquals("extra", Files.readString(second), "the other version's stays");
  }

  @Test
  void countsWhatGoesWithSharedFilesOnce() throws IOException {
    publish("first", Lineage.NONE, null);
    try (ModelStore.Held held = store.hold(1);
        StoreWriter writer = writer()) {
      for (int i = 0; i < 3; i++) {
        writer.publish(
            version -> {
              put(version, "model", "own");
              version.share(held, "sub/extra");
            },
            "model",
            Lineage.NONE,
            null);
      }
    }
    try (StoreWriter writer = writer()) {
      writer.pin(2, true);
      for (boolean dryRun : new boolean[] {true, false}) {
        StoreWriter.Collected some = writer.collect(new Rule(2, null), dryRun);
        assertEquals(List.of(1L), some.removed());
        assertEquals("first".length(), some.bytes(), "the others keep the shared file");
      }
      writer.pin(2, false);
      publishInto(writer, "next");
      publishInto(writer, "last");
      for (boolean dryRun : new boolean[] {true, false}) {
        StoreWriter.Collected all = writer.collect(new Rule(0, null), dryRun);
        assertEquals(List.of(2L, 3L, 4L), List.copyOf(all.removed()));
        assertEquals(3 * "own".length() + "extra".length(), all.bytes());
      }
    }
  }

  @Test
  void copiesNothingThatWasChangedSinceItWasRead() throws IOException {
    Path file = Files.writeString(folder.resolve("file"), "read");
    String sum = ModelStore.sha256(file);
    StoreWriter.Content copy = version -> version.copy(file, "model", sum);
    try (StoreWriter writer = writer()) {
      writer.publish(copy, "model", Lineage.NONE, null);
      Files.writeString(file, "changed");
      String said =
          assertThrows(
                  InputException.class, () -> writer.publish(copy, "model", Lineage.NONE, null))
              .getMessage();
      assertTrue(said.contains("what is to be model was changed since it was read"), said);
    }
    assertEquals(List.of(1L), store.ids());
    assertEquals(1, store.current().getAsLong());
  }

  /** As two web applications in one server have it. */
  @Test
  void copiesOfTheLibraryInOneJvmDoNotDropEachOthersLocks() throws Exception {
    publish("one", Lineage.NONE, null);
    URL[] classPath =
        Arrays.stream(System.getProperty("java.class.path").split(File.pathSeparator))
            .map(entry -> assertDoesNotThrow(() -> Path.of(entry).toUri().toURL()))
            .toArray(URL[]::new);
    try (URLClassLoader loader =
        new URLClassLoader(classPath, ClassLoader.getPlatformClassLoader())) {
      Class<?> type = loader.loadClass(ModelStore.class.getName());
      assertNotSame(ModelStore.class, type);
      Object other = type.getMethod("open", Path.class).invoke(null, folder.resolve("store"));
      Method hold = type.getMethod("holdCurrent");
      Method write = type.getMethod("writer", Duration.class);
      try (StoreWriter writer = writer();
          ModelStore.Held held = store.holdCurrent()) {
        assertRefused(() -> hold.invoke(other), "another copy of this library");
        assertRefused(
            () -> write.invoke(other, Duration.ofMillis(30)), "another copy of this library");
        assertEquals("one", Files.readString(held.model()));
      }
      try (AutoCloseable held = (AutoCloseable) hold.invoke(other);
          AutoCloseable writer = (AutoCloseable) write.invoke(other, Duration.ofMillis(30))) {
        assertThrows(InputException.class, () -> store.holdCurrent());
        assertThrows(InputException.class, () -> store.writer(Duration.ofMillis(30)));
      }
      store.holdCurrent().close();
      writer().close();
    }
  }

  private static void assertRefused(Executable call, String message) {
    Throwable refusal = assertThrows(InvocationTargetException.class, call).getCause();
    assertEquals(InputException.class.getName(), refusal.getClass().getName());
    assertTrue(refusal.getMessage().contains(message), refusal.getMessage());
  }

  @Test
  void rollbackGoesBackStepByStepAndPublishingGoesOnWithNewNumbers() {
    for (String text : List.of("one", "two", "three", "four")) {
      publish(text, Lineage.NONE, null);
    }
    try (StoreWriter writer = writer()) {
      assertEquals(3, writer.rollback());
      assertEquals(2, writer.rollback());
    }
    assertEquals(2, store.current().getAsLong());
    assertEquals(List.of(1L), store.history());
    publish("five", Lineage.NONE, null);
    assertEquals(5, store.current().getAsLong());
    assertEquals(List.of(1L, 2L), store.history());
    try (StoreWriter writer = writer()) {
      writer.rollback(4);
      assertEquals(4, store.current().getAsLong());
      assertEquals(5, writer.rollback());
      writer.rollback(1);
      assertEquals(List.of(), store.history());
      refused("no version to go back to", writer::rollback);
      refused("no version 9: it has 5 versions from 1 to 5", () -> writer.rollback(9));
    }
    assertEquals(1, store.current().getAsLong());
  }

  @Test
  void aProposedVersionDoesNotBecomeCurrent() {
    publish("one", Lineage.NONE, null);
    try (StoreWriter writer = writer()) {
      writer.propose(content("two"), "model", Lineage.NONE, null);
    }
    assertEquals(1, store.current().getAsLong());
    assertEquals(List.of(1L, 2L), store.ids());
  }

  @Test
  void theCollectorKeepsWhatIsNeeded() {
    for (int i = 1; i <= 8; i++) {
      publish("v" + i, Lineage.NONE, null);
    }
    try (StoreWriter writer = writer();
        ModelStore.Held held = store.hold(3)) {
      assertEquals(3, held.version().id());
      writer.rollback(5); // history 1 2 3 4: 4 is where a rollback goes
      writer.pin(2, true);
      Instant now = Instant.now();
      Collected dry = writer.collect(new Rule(1, now.plusSeconds(60)), true);
      assertEquals(List.of(1L, 6L, 7L), dry.removed());
      assertEquals(List.of(3L), dry.inUse());
      assertEquals(8, store.ids().size());
      // Both conditions must hold: nothing is an hour old.
      assertEquals(List.of(), writer.collect(new Rule(1, now.minusSeconds(3600)), false).removed());
      assertEquals(dry, writer.collect(new Rule(1, null), false));
      assertEquals(List.of(2L, 3L, 4L, 5L, 8L), store.ids());
      assertEquals(List.of(2L, 3L, 4L), store.history());
      refused("no version 1", () -> writer.pin(1, true));
      writer.pin(2, false);
    }
    assertEquals(Set.of(), store.pinned());
    try (StoreWriter writer = writer()) {
      assertEquals(List.of(2L, 3L, 8L), writer.collect(new Rule(0, null), false).removed());
    }
    assertEquals(9, publish("nine", Lineage.NONE, null).id()); // 8 is not used again
  }

  @Test
  void theCollectorKeepsVersionsThatCanBeOpened() throws IOException {
    for (int i = 1; i <= 6; i++) {
      publish("v" + i, Lineage.NONE, null);
    }
    try (StoreWriter writer = writer()) {
      writer.rollback(1);
      for (int damaged : new int[] {5, 6}) {
        Files.writeString(store.folder().resolve("versions/" + damaged + "/version.json"), "{}");
      }
      assertEquals(List.of(2L), writer.collect(new Rule(2, null), true).removed());
      assertEquals(List.of(2L, 3L), writer.collect(new Rule(1, null), false).removed());
    }
    assertEquals(List.of(1L, 4L, 5L, 6L), store.ids());
  }

  @Test
  void theCollectorKeepsVersionsThatAreTrusted() throws Exception {
    KeyPair pair = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    SigningKey key = SigningKey.of(pair.getPrivate());
    publish("old", Lineage.NONE, key);
    publish("trusted", Lineage.NONE, key);
    for (int i = 3; i <= 6; i++) {
      publish("unsigned", Lineage.NONE, null);
    }
    ModelStore trusting = store.trusting(List.of(pair.getPublic()));
    Instant later = Instant.now().plusSeconds(60);
    try (StoreWriter writer = trusting.writer(Duration.ZERO)) {
      assertEquals(List.of(), writer.collect(new Rule(2, null), true).removed());
      for (Rule rule : List.of(new Rule(1, null), new Rule(0, later), new Rule(null, later))) {
        assertEquals(List.of(1L), writer.collect(rule, true).removed());
      }
      assertEquals(List.of(1L), writer.collect(new Rule(1, null), false).removed());
    }
    assertEquals(List.of(2L, 3L, 4L, 5L, 6L), store.ids());
    try (StoreWriter writer = writer()) {
      assertEquals(List.of(2L, 3L, 4L), writer.collect(new Rule(2, null), false).removed());
    }
  }

  @Test
  void aVersionThatWasTouchedIsRefused() throws IOException {
    publish("one", Lineage.NONE, null);
    publish("two", Lineage.NONE, null);
    Path model = store.folder().resolve("versions/2/model");
    Files.writeString(model.resolve("model"), "twO");
    assertTrue(store.verify(2).get(0).contains("was altered"), store.verify(2).toString());
    refused("SHA-256", () -> store.holdCurrent());
    try (StoreWriter writer = writer()) {
      assertEquals(1, writer.rollback());
      refused("was altered", () -> writer.rollback(2));
      assertEquals(1, store.current().getAsLong());
    }
    Files.writeString(model.resolve("model"), "longer");
    assertTrue(store.verify(2).get(0).contains("6 bytes; 3 were"), store.verify(2).toString());
    Files.delete(model.resolve("model"));
    assertTrue(store.verify(2).get(0).contains("is missing"), store.verify(2).toString());
    Files.createSymbolicLink(model.resolve("model"), model.resolve("sub/extra"));
    assertTrue(store.verify(2).get(0).contains("regular file"), store.verify(2).toString());
    Files.writeString(store.folder().resolve("versions/1/model/more"), "x");
    assertTrue(store.verify(1).get(0).contains("does not belong"), store.verify(1).toString());
  }

  @Test
  void onlySignedVersionsAreTrusted() throws Exception {
    KeyPair pair = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    KeyPair stranger = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    Path pem = pem("key.pem", "PRIVATE KEY", pair.getPrivate().getEncoded());
    Path publicPem = pem("public.pem", "PUBLIC KEY", pair.getPublic().getEncoded());
    assertEquals(pair.getPublic(), SigningKey.readPublic(publicPem));
    publish("unsigned", Lineage.NONE, null);
    publish("signed", Lineage.NONE, SigningKey.read(pem));
    publish("foreign", Lineage.NONE, SigningKey.of(stranger.getPrivate()));
    ModelStore trusting = store.trusting(List.of(pair.getPublic()));
    assertEquals(List.of(), trusting.verify(2));
    assertTrue(trusting.version(2).signed());
    refused("version 1", "not signed", () -> trusting.hold(1));
    refused("version 3", "not signed by a trusted key", () -> trusting.holdCurrent());
    assertEquals(List.of(), store.verify(1)); // without keys signatures do not matter
    // A record that is changed together with its file.
    Path record = store.folder().resolve("versions/2/version.json");
    Files.writeString(record, Files.readString(record).replace("\"lineage\"", " \"lineage\""));
    assertEquals(List.of(), store.verify(2));
    refused("altered", () -> trusting.hold(2));
    Files.writeString(store.folder().resolve("versions/2/version.sig"), "no base 64!");
    refused("signature of version 2", () -> trusting.hold(2));
    refused("PRIVATE KEY", () -> SigningKey.read(publicPem));
    refused("no key file", () -> SigningKey.readPublic(folder.resolve("none.pem")));
    refused("no Ed25519", () -> SigningKey.read(pem("bad.pem", "PRIVATE KEY", new byte[9])));
  }

  @Test
  void aSignedVersionUnderAnotherNumberIsRefused() throws Exception {
    KeyPair pair = KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    publish("old and weak", Lineage.NONE, SigningKey.of(pair.getPrivate()));
    publish("new", Lineage.NONE, SigningKey.of(pair.getPrivate()));
    Path versions = store.folder().resolve("versions");
    Files.move(versions.resolve("2"), folder.resolve("away"));
    Files.move(versions.resolve("1"), versions.resolve("2"));
    refused(
        "record of version 1, not of version 2",
        () -> store.trusting(List.of(pair.getPublic())).holdCurrent());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {"../x", "/etc/x", "a//b", "", ".", "a/..", "a\\b", "a\u0000b", "a\nb", "\ud800"})
  void hostilePathsAreRefused(String path) throws IOException {
    try (StoreWriter writer = writer()) {
      refused(
          "cannot publish", () -> writer.publish(v -> v.create(path), path, Lineage.NONE, null));
    }
    assertEquals(List.of(), store.ids());
    // The same in a record that somebody wrote.
    publish("one", Lineage.NONE, null);
    Path record = store.folder().resolve("versions/1/version.json");
    String json = Files.readString(record);
    String quoted = new com.fasterxml.jackson.databind.ObjectMapper().writeValueAsString(path);
    if (!path.equals("\ud800")) {
      Files.writeString(
          record,
          json.replace("\"model\",", quoted + ",")
              .replace("\"path\" : \"sub/extra\"", "\"path\" : " + quoted));
      assertThrows(InputException.class, () -> store.version(1));
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "[]",
        "{",
        "{} {}",
        "{\"format\":1,\"format\":1}",
        "{\"format\":1}",
        "{\"format\":1,\"current\":-1,\"next\":1,\"history\":[],\"pinned\":[]}",
        "{\"format\":1,\"current\":1e3,\"next\":1,\"history\":[],\"pinned\":[]}",
        "{\"format\":1,\"current\":0,\"next\":1,\"history\":[\"x\"],\"pinned\":[]}",
        "{\"format\":1,\"current\":0,\"next\":1,\"history\":{},\"pinned\":[]}",
        "{\"format\":1,\"current\":99999999999999999999,\"next\":1,\"history\":[],\"pinned\":[]}",
      })
  void aDamagedStateNamesItsFile(String state) throws IOException {
    Files.writeString(store.folder().resolve("state.json"), state);
    refused("state.json is damaged", () -> ModelStore.open(store.folder()));
  }

  @Test
  void deepJsonIsRefused() throws IOException {
    Files.writeString(
        store.folder().resolve("state.json"), "{\"format\":1,\"x\":" + "[".repeat(100_000));
    refused("state.json is damaged", () -> ModelStore.open(store.folder()));
  }

  @Test
  void aStoreOfANewerFormatIsRefused() throws IOException {
    publish("one", Lineage.NONE, null);
    Path record = store.folder().resolve("versions/1/version.json");
    Files.writeString(record, Files.readString(record).replace("\"format\" : 1", "\"format\" : 2"));
    refused("format 2", "newer espalier", () -> store.version(1));
    Files.writeString(store.folder().resolve("store.json"), "{\"format\":7}");
    refused("format 7", "newer espalier", () -> ModelStore.open(store.folder()));
  }

  @Test
  void whatIsNoStoreIsNotTouched() throws IOException {
    Path photos = Files.createDirectory(folder.resolve("photos"));
    Files.writeString(photos.resolve("one.jpg"), "x");
    refused("one.jpg", () -> ModelStore.create(photos));
    refused("not a store", () -> ModelStore.open(photos));
    refused("no such store", () -> ModelStore.open(folder.resolve("none")));
    refused("does not exist", () -> ModelStore.create(folder.resolve("none/store")));
    refused("not a folder", () -> ModelStore.create(photos.resolve("one.jpg")));
    try (var files = Files.list(photos)) {
      assertEquals(1, files.count());
    }
  }

  @Test
  void aFolderHalfMadeByAKilledProcessBecomesAStore() throws IOException {
    Path half = Files.createDirectory(folder.resolve("half"));
    Files.createFile(half.resolve("lock"));
    Files.createDirectory(half.resolve("versions"));
    Files.writeString(half.resolve(".espalier-0123456789abcdef.tmp"), "{");
    assertTrue(ModelStore.create(half).ids().isEmpty());
  }

  @Test
  void leftoversGoWhenTheNextWriterOpens() throws IOException {
    Path dead = store.folder().resolve("versions/.espalier-0123456789abcdef.tmp/model");
    Files.createDirectories(dead);
    Files.writeString(dead.resolve("model"), "half");
    Path foreign = Files.createDirectory(store.folder().resolve("versions/.espalier-mine.tmp"));
    publish("one", Lineage.NONE, null);
    assertFalse(Files.exists(dead.getParent()));
    assertTrue(Files.exists(foreign));
    assertEquals(List.of(1L), store.ids());
  }

  @Test
  void aSecondWriterIsTold() {
    try (StoreWriter writer = writer()) {
      refused("another thread", () -> store.writer(Duration.ofMillis(30)));
      // The refused attempt must not have taken the lock from the first.
      writer.publish(content("one"), "model", Lineage.NONE, null);
      assertTrue(ExclusionProbe.isLocked(store.folder()));
    }
    writer().close();
  }

  /** Another writes by then. */
  @Test
  void aClosedWriterChangesNothing() {
    publish("one", Lineage.NONE, null);
    publish("two", Lineage.NONE, null);
    StoreWriter closed = writer();
    closed.close();
    try (StoreWriter other = writer()) {
      for (Executable change :
          List.<Executable>of(
              closed::rollback,
              () -> closed.rollback(1),
              () -> closed.pin(1, true),
              () -> closed.collect(new Rule(1, null), false),
              () -> closed.publish(content("three"), "model", Lineage.NONE, null),
              () -> closed.propose(content("three"), "model", Lineage.NONE, null))) {
        assertEquals(
            "the writer of " + store.folder() + " is closed",
            assertThrows(IllegalStateException.class, change).getMessage());
      }
    }
    assertEquals(2, store.current().getAsLong());
    assertEquals(List.of(1L, 2L), store.ids());
    assertTrue(store.pinned().isEmpty());
  }

  /** It may be collected by then. */
  @Test
  void aVersionThatIsHeldNoMoreHasNoPlace() {
    publish("one", Lineage.NONE, null);
    ModelStore.Held held = store.holdCurrent();
    held.close();
    for (Executable look :
        List.<Executable>of(held::model, held::folder, () -> held.file("model"))) {
      assertEquals(
          "version 1 of " + store.folder() + " is held no more",
          assertThrows(IllegalStateException.class, look).getMessage());
    }
    assertEquals(1, held.version().id());
  }

  @Test
  void aSecondWritingProcessIsToldWhoWrites() throws Exception {
    Process process = ExclusionProbe.start(store.folder());
    try (var out = process.inputReader(StandardCharsets.UTF_8)) {
      assertEquals("writing", out.readLine());
      refused("is being written by process " + process.pid(), () -> store.writer(Duration.ZERO));
      assertTrue(store.current().isEmpty()); // readers are not kept out
      // Its lock goes with it.
      process.destroyForcibly();
      publish("one", Lineage.NONE, null);
    } finally {
      process.destroyForcibly().waitFor(30, TimeUnit.SECONDS);
    }
  }

  @Test
  void readersAlwaysFindAWholeVersion() throws Exception {
    publish("0".repeat(100), Lineage.NONE, null);
    AtomicBoolean stop = new AtomicBoolean();
    ExecutorService readers = Executors.newFixedThreadPool(3);
    List<Future<Integer>> results = new ArrayList<>();
    for (int i = 0; i < 3; i++) {
      results.add(
          readers.submit(
              () -> {
                int read = 0;
                while (!stop.get()) {
                  try (ModelStore.Held held = store.holdCurrent()) {
                    String text = Files.readString(held.model());
                    assertEquals(text.substring(0, 1).repeat(100), text);
                    read++;
                  }
                }
                return read;
              }));
    }
    for (int i = 1; i < 12; i++) {
      publish(String.valueOf(i % 10).repeat(100), Lineage.NONE, null);
      try (StoreWriter writer = writer()) {
        writer.rollback();
        writer.collect(new Rule(0, null), false);
      }
    }
    stop.set(true);
    for (Future<Integer> result : results) {
      assertTrue(result.get(30, TimeUnit.SECONDS) > 0);
    }
    readers.shutdown();
  }

  @Test
  void aFailedPublicationLeavesTheStoreAsItWas() throws IOException {
    publish("one", Lineage.NONE, null);
    try (StoreWriter writer = writer()) {
      refused(
          "no such file",
          () ->
              writer.publish(
                  v -> v.copy(folder.resolve("none"), "model"), "model", Lineage.NONE, null));
      Path file = Files.writeString(folder.resolve("file"), "x");
      refused(
          "two files",
          () ->
              writer.publish(
                  v -> {
                    v.copy(file, "model");
                    v.copy(file, "model");
                  },
                  "model",
                  Lineage.NONE,
                  null));
    }
    assertEquals(List.of(1L), store.ids());
    try (var content = Files.list(store.folder().resolve("versions"))) {
      assertEquals(1, content.count());
    }
  }

  @Test
  void aFullDiskLeavesTheStoreAsItWas() throws Exception {
    publish("one", Lineage.NONE, null);
    byte[] state = Files.readAllBytes(store.folder().resolve("state.json"));
    Process process = ExclusionProbe.startFilling(store.folder());
    try (var out = process.inputReader(StandardCharsets.UTF_8)) {
      String line = out.readLine();
      assertTrue(
          line.startsWith("InputException: cannot write") && line.contains("too large"), line);
    }
    assertTrue(process.waitFor(30, TimeUnit.SECONDS));
    assertArrayEquals(state, Files.readAllBytes(store.folder().resolve("state.json")));
    assertEquals(List.of(1L), store.ids());
    assertEquals(List.of(), store.verify(1));
    try (var content = Files.list(store.folder().resolve("versions"))) {
      assertEquals(1, content.count());
    }
  }

  @Test
  void aFolderIsPublishedWithAllItsFiles() throws IOException {
    Path checkpoint = Files.createDirectories(folder.resolve("checkpoint/sub"));
    Files.writeString(checkpoint.resolve("a"), "a");
    Files.writeString(checkpoint.getParent().resolve("b"), "b");
    try (StoreWriter writer = writer()) {
      writer.publish(v -> v.copyFolder(checkpoint.getParent()), "", Lineage.NONE, null);
    }
    try (ModelStore.Held held = store.holdCurrent()) {
      assertEquals("a", Files.readString(held.model().resolve("sub/a")));
    }
    // What was published is a copy.
    Files.move(
        checkpoint.resolve("a"), folder.resolve("moved"), StandardCopyOption.REPLACE_EXISTING);
    assertEquals(List.of(), store.verify(1));
  }

  private Path pem(String name, String kind, byte[] der) {
    try {
      return Files.writeString(
          folder.resolve(name),
          "-----BEGIN "
              + kind
              + "-----\n"
              + Base64.getMimeEncoder().encodeToString(der)
              + "\n-----END "
              + kind
              + "-----\n");
    } catch (IOException e) {
      throw new AssertionError(e);
    }
  }

  private StoreWriter writer() {
    return store.writer(Duration.ofSeconds(10));
  }

  /** Who collects versions does so to make room: that the lock cannot say who holds it is no reason to fail. */
  @Test
  void aFullDiskDoesNotKeepFromCollecting() throws IOException {
    for (int i = 0; i < 4; i++) {
      publish("number " + i, Lineage.NONE, null);
    }
    Path lock = store.folder().resolve(ModelStore.LOCK);
    Files.delete(lock);
    Files.createSymbolicLink(lock, Path.of("/dev/full"));
    try (StoreWriter writer = writer()) {
      assertEquals(List.of(1L, 2L), writer.collect(new Rule(1, null), false).removed());
    }
  }

  private Version publish(String text, Lineage lineage, SigningKey key) {
    try (StoreWriter writer = writer()) {
      return writer.publish(content(text), "model", lineage, key);
    }
  }

  private static void publishInto(StoreWriter writer, String text) {
    writer.publish(content(text), "model", Lineage.NONE, null);
  }

  static StoreWriter.Content content(String text) {
    return version -> {
      put(version, "model", text);
      put(version, "sub/extra", "extra");
    };
  }

  private static void put(StoreWriter.NewVersion version, String path, String text) {
    try (FileChannel channel = version.create(path)) {
      ByteBuffer bytes = ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8));
      while (bytes.hasRemaining()) {
        channel.write(bytes);
      }
    } catch (IOException e) {
      throw version.failure(path, e);
    }
  }

  private static void refused(String word, org.junit.jupiter.api.function.Executable call) {
    refused(word, "", call);
  }

  private static void refused(
      String word, String second, org.junit.jupiter.api.function.Executable call) {
    InputException e = assertThrows(InputException.class, call);
    assertTrue(e.getMessage().contains(word), e.getMessage());
    assertTrue(e.getMessage().contains(second), e.getMessage());
  }
}
