package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class CheckpointTest {
  private static final String ONE = "model-00001-of-00002.safetensors";
  private static final String TWO = "model-00002-of-00002.safetensors";

  @TempDir Path folder;
  private Path index;

  @BeforeEach
  void shards() throws IOException {
    write(ONE, "b", "c");
    write(TWO, "a");
    index = folder.resolve(Checkpoint.INDEX);
    index(Map.of("a", TWO, "b", ONE, "c", ONE));
  }

  private void write(String file, String... tensors) {
    Map<TensorSpec, byte[]> content = new LinkedHashMap<>();
    for (String name : tensors) {
      content.put(
          new TensorSpec(name, SafetensorsDtype.U8, List.of(1L)),
          new byte[] {(byte) name.charAt(0)});
    }
    RawSafetensors.write(folder.resolve(file), Map.of(), content);
  }

  private void index(Map<String, String> weightMap) throws IOException {
    StringBuilder map = new StringBuilder();
    weightMap.forEach(
        (k, v) ->
            map.append(map.isEmpty() ? "" : ",")
                .append('"')
                .append(k)
                .append("\":\"")
                .append(v)
                .append('"'));
    Files.writeString(index, "{\"metadata\":{\"total_size\":3},\"weight_map\":{" + map + "}}");
  }

  @Test
  void readsShardsInTheOrderOfNames() {
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      assertTrue(checkpoint.isSharded());
      assertEquals(
          List.of("a", "b", "c"), checkpoint.tensors().stream().map(TensorInfo::name).toList());
      assertEquals(2, checkpoint.files().size());
      assertEquals(folder.resolve(TWO), checkpoint.fileOf("a").path());
      assertEquals('c', RawSafetensors.read(checkpoint.fileOf("c"), "c")[0]);
      assertNull(checkpoint.tensor("d"));
      assertThrows(IllegalArgumentException.class, () -> checkpoint.fileOf("d"));
    }
  }

  @Test
  void readsOneFileByItsNameOrItsFolder() throws IOException {
    try (Checkpoint checkpoint = Checkpoint.open(folder.resolve(ONE))) {
      assertFalse(checkpoint.isSharded());
      assertEquals(2, checkpoint.tensors().size());
    }
    Files.delete(index);
    assertRefused("neither model.safetensors nor");
    Files.move(folder.resolve(ONE), folder.resolve(Checkpoint.SINGLE));
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      assertFalse(checkpoint.isSharded());
      assertEquals(2, checkpoint.tensors().size());
    }
  }

  @Test
  void readsShardsThatAreLinks() throws IOException {
    Path blob = folder.resolveSibling(folder.getFileName() + "-blob");
    Files.move(folder.resolve(ONE), blob);
    Files.createSymbolicLink(folder.resolve(ONE), blob);
    try (Checkpoint checkpoint = Checkpoint.open(folder)) {
      assertEquals(3, checkpoint.tensors().size());
    } finally {
      Files.delete(blob);
    }
  }

  @Test
  void refusesAFolderWithBoth() throws IOException {
    Files.copy(folder.resolve(ONE), folder.resolve(Checkpoint.SINGLE));
    assertRefused("both");
  }

  @Test
  void refusesAnIndexThatDoesNotAgreeWithTheShards() throws IOException {
    index(Map.of("a", TWO, "b", ONE, "c", ONE, "d", TWO));
    assertRefused("'d'", TWO, "where the index puts it");
    index(Map.of("a", TWO, "b", ONE));
    assertRefused("'c'", ONE, "not named in");
    index(Map.of("a", TWO, "b", ONE, "c", ONE));
    write(TWO, "a", "b");
    assertRefused("'b'", ONE, TWO, "too");
    Files.delete(folder.resolve(TWO));
    assertRefused("'a'", TWO, "missing");
    Files.write(folder.resolve(TWO), new byte[3]);
    assertRefused(TWO, "3 bytes");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\\\model.safetensors",
        ".safetensors",
        "..",
        "",
        "model.bin",
        "a\\u0000.safetensors"
      })
  void refusesShardNamesThatLeaveTheFolder(String name) throws IOException {
    index(Map.of("a", name));
    assertRefused(index.toString(), "not the name of a shard");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "[]",
        "{}",
        "{\"weight_map\":{}}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":null}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"model-00002-of-00002.safetensors\"}",
        "{\"weight_map\":{\"a\":\"model-00002-of-00002.safetensors\"}} {}",
        "{\"weight_map\":{},\"weight_map\":{}}",
        "{\"metadata\":[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}",
      })
  void refusesABadIndex(String json) throws IOException {
    Files.writeString(index, json);
    assertRefused(index.toString());
  }

  @Test
  void refusesAnIndexThatIsNotUtf8OrNotAFile() throws IOException {
    Files.write(index, new byte[] {'{', '"', (byte) 0xff, '"', ':', '1', '}'});
    assertRefused("not UTF-8");
    Files.delete(index);
    Files.createDirectory(index);
    assertRefused("not a regular file");
  }

  @Test
  void refusesAPathThatIsNotThere() {
    InputException e =
        assertThrows(InputException.class, () -> Checkpoint.open(folder.resolve("none")));
    assertTrue(e.getMessage().contains("no such file or folder"), e.getMessage());
  }

  private void assertRefused(String... messages) {
    InputException e = assertThrows(InputException.class, () -> Checkpoint.open(folder));
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
  }
}
