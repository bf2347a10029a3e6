package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Base64;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Tokenizers at which the library would end this JVM. */
class TokenizerFileTest {
  private static final String TOKENIZER =
      """
{"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
 "pre_tokenizer": {"type": "Whitespace"},
 "post_processor": {"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
  "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
  "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}}},
 "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
 "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "[CLS]": 1, "tree": 2}}}
""";

  @TempDir Path folder;

  @Test
  void whatTheLibraryTakesIsTaken() throws IOException {
    assertArrayEquals(new long[] {1, 2, 0}, ids(TOKENIZER));
    // A trie of no words, and no text to replace one by.
    byte[] charsmap = ByteBuffer.allocate(4 + 4 * 256).order(ByteOrder.LITTLE_ENDIAN).array();
    ByteBuffer.wrap(charsmap).order(ByteOrder.LITTLE_ENDIAN).putInt(4 * 256);
    assertArrayEquals(new long[] {1, 2, 0}, ids(precompiled(charsmap)));
  }

  /** The stride of a tokenizer's own truncation may be longer than what a model takes. */
  @Test
  void truncationIsOursAlone() throws IOException {
    String truncating =
        TOKENIZER.replace(
            "{\"version\"",
            "{\"truncation\": {\"direction\": \"Right\", \"max_length\": 512,"
                + " \"strategy\": \"LongestFirst\", \"stride\": 128}, \"version\"");
    Path file = Files.writeString(folder.resolve("tokenizer.json"), truncating);
    try (TextTokenizer tokenizer = new TextTokenizer(file, 3)) {
      assertArrayEquals(new long[] {1, 2, 2}, tokenizer.encode("tree tree tree tree").ids());
    }
  }

  @Test
  void aTextThatIsNotTakenIsNamed() {
    refused(
        "does not take the text 'tree house'", TOKENIZER.replace("\"[UNK]\": 0", "\"[NEW]\": 0"));
  }

  @Test
  void filesThatEndTooEarlyAreRefused() throws IOException {
    byte[] bytes = TOKENIZER.strip().getBytes(StandardCharsets.UTF_8);
    for (int length = 0; length < bytes.length; length++) {
      Path file = folder.resolve("tokenizer.json");
      Files.write(file, Arrays.copyOf(bytes, length));
      assertThrows(InputException.class, () -> new TextTokenizer(file, 16), "of bytes " + length);
    }
  }

  @Test
  void whatEndsTheProcessIsRefused() {
    String decoder = "\"prefix\": \"##\"";
    refused("not valid JSON", TOKENIZER.replace(decoder, "\"prefix\" \"##\""));
    refused("not valid JSON: Document nesting", TOKENIZER.replace("true", "[".repeat(200)));
    refused("holds the number 1e999", TOKENIZER.replace("true", "1e999"));
    refused("half a character", TOKENIZER.replace("\"##\"", "\"\\ud800\""));
    refused("half a character", TOKENIZER.replace("\"##\"", "\"\\udc00\\ud800\""));
    refused("goes on behind", TOKENIZER + "{}");
    refused("no JSON object", "[" + TOKENIZER + "]");
    refused(
        "the special token [SEP]",
        TOKENIZER.replace("{\"id\": \"[CLS]\", \"type", "{\"id\": \"[SEP]\", \"type"));
    refused(
        "other sequences than one A",
        TOKENIZER.replace(
            "{\"id\": \"A\", \"type_id\": 0}}],\n  \"pair\"",
            "{\"id\": \"B\", \"type_id\": 0}}],\n  \"pair\""));
    int from = TOKENIZER.indexOf("{\"type\": \"TemplateProcessing\"");
    String template = TOKENIZER.substring(from, TOKENIZER.indexOf("\"decoder\"")).strip();
    template = template.substring(0, template.length() - 1);
    refused(
        "two templates",
        TOKENIZER.replace(
            template,
            "{\"type\": \"Sequence\", \"processors\": [" + template + ", " + template + "]}"));
    refused(
        "an empty 'prepend'", TOKENIZER.replace("\"Lowercase\"", "\"Prepend\", \"prepend\": \"\""));
    refused(
        "the second token of the merge \"t r\"",
        TOKENIZER.replace(
            "\"WordLevel\"",
            "\"BPE\", \"continuing_subword_prefix\": \"##\", \"merges\": [\"t ##h\", \"t r\"]"));
    refused(
        "other sequences than one A",
        TOKENIZER.replace(
            "{\"SpecialToken\": {\"id\": \"[CLS]\", \"type_id\": 0}}",
            "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}"));
    refused("precompiled_charsmap", TOKENIZER.replace("Lowercase", "Precompiled"));
    refused("precompiled_charsmap", precompiled(new byte[3]));
    refused("precompiled_charsmap", precompiled(new byte[] {8, 0, 0, 0, 0, 0, 0, 0}));
    refused("precompiled_charsmap", precompiled(new byte[] {4, 0, 0, 0, 0, 0, 0, 0, (byte) 0xff}));
  }

  /** A trie whose only word is t; at 256 the units of what may follow begin, the first of which is the value. */
  private static byte[] charsmap(String texts, int value) {
    byte[] utf8 = texts.getBytes(StandardCharsets.UTF_8);
    ByteBuffer map = ByteBuffer.allocate(4 + 4 * 512 + utf8.length).order(ByteOrder.LITTLE_ENDIAN);
    map.putInt(4 * 512);
    unit(map, 't', 't' | 1 << 8 | ('t' ^ 256) << 10);
    unit(map, 256, value | 1 << 31);
    map.position(4 + 4 * 512);
    return map.put(utf8).array();
  }

  private static void unit(ByteBuffer map, int place, int value) {
    map.putInt(4 + 4 * place, value);
  }

  @Test
  void aCharsmapIsFollowedToItsEnds() throws IOException {
    assertArrayEquals(new long[] {1, 2, 0}, ids(precompiled(charsmap("t\0", 0))));
    assertArrayEquals(new long[] {1, 0, 0}, ids(precompiled(charsmap("t\0d\0", 2))));
    // An end without a 0, and nothing at all.
    assertArrayEquals(new long[] {1, 2, 0}, ids(precompiled(charsmap("ä\0t", 3))));
    assertArrayEquals(new long[] {1, 0, 0}, ids(precompiled(charsmap("ä\0t", 4))));
    // A way back to units that were gone through; only a text ends it.
    byte[] ring = charsmap("t\0", 0);
    unit(wrap(ring), 256 ^ 'r', 'r' | ('r' ^ 256 ^ 256) << 10);
    assertArrayEquals(new long[] {1, 2, 0}, ids(precompiled(ring)));
    // Far offsets are written in units of 256.
    byte[] far = charsmap("t\0", 0);
    unit(wrap(far), 't', 't' | 1 << 9 | 1 << 10);
    assertArrayEquals(new long[] {1, 2, 0}, ids(precompiled(far)));

    refused("every way", precompiled(charsmap("t\0", 3)));
    refused("precompiled_charsmap", precompiled(charsmap("ä\0t", 1)));
    refused("precompiled_charsmap", precompiled(charsmap("t\0", Integer.MAX_VALUE)));
    for (int place : new int[] {0, 't', 256 ^ 'r'}) {
      byte[] beyond = charsmap("t\0", 0);
      unit(wrap(beyond), place, place & 0xff | 512 << 10);
      refused("precompiled_charsmap", precompiled(beyond));
      unit(wrap(beyond), place, place & 0xff | 1 << 9 | 0x1fffff << 10);
      refused("precompiled_charsmap", precompiled(beyond));
    }
    // The trie ends amid what may follow the first byte.
    byte[] cut = Arrays.copyOf(charsmap("", 0), 4 + 4 * 500);
    unit(wrap(cut), -1, 4 * 500);
    refused("precompiled_charsmap", precompiled(cut));
  }

  private static ByteBuffer wrap(byte[] map) {
    return ByteBuffer.wrap(map).order(ByteOrder.LITTLE_ENDIAN);
  }

  private static String precompiled(byte[] charsmap) {
    return TOKENIZER.replace(
        "{\"type\": \"Lowercase\"}",
        "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Precompiled\","
            + " \"precompiled_charsmap\": \""
            + Base64.getEncoder().encodeToString(charsmap)
            + "\"}]}");
  }

  private long[] ids(String json) throws IOException {
    try (TextTokenizer tokenizer =
        new TextTokenizer(Files.writeString(folder.resolve("tokenizer.json"), json), 16)) {
      return tokenizer.encode("tree house").ids();
    }
  }

  private void refused(String word, String json) {
    String message = assertThrows(InputException.class, () -> ids(json)).getMessage();
    assertTrue(message.contains(word) && message.contains("tokenizer.json"), message);
  }
}
