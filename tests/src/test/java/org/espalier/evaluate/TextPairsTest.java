package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Two texts that are encoded as one. */
class TextPairsTest {
  private static final String TOKENIZER =
      """
{"version": "1.0", "truncation": {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 2},
 "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
 "post_processor": {"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
  "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
    {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
  "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
    "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
 "decoder": null,
 "model": {"type": "WordLevel", "unk_token": "[UNK]",
  "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6, "e": 7}}}
""";

  @TempDir Path folder;

  private TextTokenizer open(String json, int maxTokens) throws IOException {
    return new TextTokenizer(Files.writeString(folder.resolve("tokenizer.json"), json), maxTokens);
  }

  @Test
  void theSecondTextHasItsOwnType() throws IOException {
    try (TextTokenizer tokenizer = open(TOKENIZER, 64)) {
      Tokens pair = tokenizer.encode("a b", "c d e a b c d");
      assertArrayEquals(new long[] {1, 3, 4, 2, 5, 6, 7, 3, 4, 5, 6, 2}, pair.ids());
      assertArrayEquals(new long[] {0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}, pair.types());
      assertArrayEquals(new long[] {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, pair.mask());
      assertArrayEquals(tokenizer.encode("a b").ids(), tokenizer.encode("a b", null).ids());
      assertArrayEquals(new long[] {1, 2, 3, 2}, tokenizer.encode("", "a").ids());
      assertArrayEquals(new long[] {1, 2, 2}, tokenizer.encode("", "").ids());
    }
  }

  /** As the library cuts pairs, the longer one first. */
  @ParameterizedTest
  @CsvSource({
    "a b c d e, a b, 8, 1 3 4 5 2 3 4 2",
    "a b, a b c d e, 8, 1 3 4 2 3 4 5 2",
    "a b c d e, a b c d e, 8, 1 3 4 2 3 4 5 2",
    "a b c d e, a b c d, 8, 1 3 4 5 2 3 4 2",
    "a b c d e, a b c d e, 5, 1 3 2 3 2",
    "a b c d e, '', 5, 1 3 4 2 2",
    "a, b, 5, 1 3 2 4 2",
  })
  void theLongerTextIsCutFirst(String first, String second, int maxTokens, String ids)
      throws IOException {
    try (TextTokenizer tokenizer = open(TOKENIZER, maxTokens)) {
      long[] expected = Arrays.stream(ids.split(" ")).mapToLong(Long::parseLong).toArray();
      assertArrayEquals(expected, tokenizer.encode(first, second).ids());
    }
  }

  /** The library would keep each part of one with each part of the other. */
  @Test
  void longTextsTakeNoMemoryOfTheirProduct() throws IOException {
    try (TextTokenizer tokenizer = open(TOKENIZER, 8)) {
      String many = "a b c d ".repeat(50_000);
      assertEquals(8, tokenizer.encode(many, many).length());
    }
  }

  @Test
  void whatCannotBeIsRefused() throws IOException {
    try (TextTokenizer tokenizer = open(TOKENIZER, 4)) {
      String said =
          assertThrows(InputException.class, () -> tokenizer.encode("a", "b")).getMessage();
      assertTrue(said.contains("of 4 tokens at most none is left"), said);
    }
    String other = TOKENIZER.replace("\"B\", \"type_id\": 1", "\"A\", \"type_id\": 1");
    try (TextTokenizer tokenizer = open(other, 8)) {
      assertEquals(2, tokenizer.encode("a").length());
      String said =
          assertThrows(InputException.class, () -> tokenizer.encode("a", "b")).getMessage();
      assertTrue(said.contains("other sequences than A and then B"), said);
    }
  }
}
