package org.espalier.source;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.espalier.InputException;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class MavenFilesTest {
  /** Of the bytes "model". */
  private static final String SHA256 =
      "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4";

  private static final String MODEL = "maven:org.example:some-model:1.0!/nets/m.onnx";

  @TempDir Path folder;
  private Path cache;
  private final List<String> notes = new ArrayList<>();
  private MavenFiles files;

  @BeforeEach
  void repository() throws IOException {
    cache = folder.resolve("cache");
    Path artifact = folder.resolve("repository/org/example/some-model/1.0");
    Files.createDirectories(artifact);
    try (ZipOutputStream zip =
        new ZipOutputStream(Files.newOutputStream(artifact.resolve("some-model-1.0.jar")))) {
      for (String name : List.of("nets/m.onnx", "nets/m-tokenizer.json", "../evil.onnx")) {
        zip.putNextEntry(new ZipEntry(name));
        zip.write(
            name.equals("nets/m.onnx") ? "model".getBytes(StandardCharsets.UTF_8) : new byte[1]);
      }
    }
    files = new MavenFiles(cache, List.of(folder.resolve("repository")), notes::add);
  }

  @Test
  void takesAnEntryFromTheLocalRepositoryAndKeepsIt() throws IOException {
    Path file = files.file(MavenEntry.parse(MODEL));
    assertEquals("model", Files.readString(file));
    assertTrue(file.startsWith(cache) && file.endsWith("m.onnx"), file.toString());
    assertEquals(1, notes.size());
    assertTrue(notes.get(0).contains("some-model"), notes.toString());
    Object key = Files.getAttribute(file, "unix:ino");
    files.file(MavenEntry.parse(MODEL));
    assertEquals(key, Files.getAttribute(file, "unix:ino"), "extracted again");
    // A file that something cut short is replaced.
    Files.writeString(file, "mod");
    assertEquals("model", Files.readString(files.file(MavenEntry.parse(MODEL))));
  }

  @Test
  void saysThatItCannotWriteItsCache() throws IOException {
    Files.createFile(cache);
    for (String entry : List.of(MODEL, "maven:org.example:other:1.0!/m.onnx")) {
      InputException e =
          assertThrows(InputException.class, () -> files.file(MavenEntry.parse(entry)));
      assertTrue(e.getMessage().startsWith("cannot make the folder " + cache), e.getMessage());
      assertTrue(e.getMessage().contains("XDG_CACHE_HOME"), e.getMessage());
    }
  }

  @Test
  void saysWhatMavenSaid() {
    String cause = "Failed to execute goal g:p:1:copy: m:1.0 was not found in central";
    assertEquals(
        cause,
        MavenFiles.firstError(
            "\u001b[0m\u001b[0m[ERROR] "
                + cause
                + " -> [Help 1]\n[ERROR] \n[ERROR] Re-run with -e"));
    assertEquals("it says nothing", MavenFiles.firstError("\u001b[0m\n"));
    assertEquals("killed", MavenFiles.firstError("killed\n"));
  }

  @Test
  void checksTheSum() {
    files.file(MavenEntry.parse(MODEL + "#sha256=" + SHA256));
    files.file(MavenEntry.parse(MODEL + "#sha256=" + SHA256.toUpperCase(Locale.ROOT)));
    String wrong = MODEL + "#sha256=" + "0".repeat(64);
    // Both from the cache and from the artefact.
    for (MavenFiles some :
        List.of(
            files,
            new MavenFiles(
                folder.resolve("other"), List.of(folder.resolve("repository")), notes::add))) {
      InputException e =
          assertThrows(InputException.class, () -> some.file(MavenEntry.parse(wrong)));
      assertTrue(e.getMessage().contains(SHA256), e.getMessage());
    }
    assertFalse(
        Files.exists(folder.resolve("other/entries/org/example/some-model/1.0/nets/m.onnx")));
  }

  @Test
  void saysWhichEntriesThereAre() {
    InputException e =
        assertThrows(
            InputException.class,
            () -> files.file(MavenEntry.parse("maven:org.example:some-model:1.0!/nets/n.onnx")));
    assertTrue(e.getMessage().contains("'nets/m.onnx'"), e.getMessage());
  }

  @Test
  void findsTheTokenizerOfTheSameFolder() {
    MavenEntry entry = MavenEntry.parse(MODEL);
    ModelSource source =
        new ModelSource(files.file(entry), MODEL, entry, ModelSource.Kind.ONNX, files);
    assertTrue(source.tokenizer("--tokenizer").endsWith("nets/m-tokenizer.json"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "maven:a:b:1",
        "maven:a:b!/x.onnx",
        "maven:a:b:1!/",
        "maven:a:b:1!/../x.onnx",
        "maven:a:b:1!/x/./y.onnx",
        "maven:a:b:1!//x.onnx",
        "maven:a:b:1!/x\\y.onnx",
        "maven:a:../b:1!/x.onnx",
        "maven:a:b:..!/x.onnx",
        "maven:a:b:1..2!/x.onnx",
        "maven:-Dx:b:1!/x.onnx",
        "maven:a:b:1!/x.onnx#sha256=12",
        "maven:a:b:1!/x.onnx#md5=12",
      })
  void refusesWhatIsNoReference(String text) {
    InputException e = assertThrows(InputException.class, () -> MavenEntry.parse(text));
    assertTrue(e.getMessage().contains(text), e.getMessage());
  }
}
