package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Texts that are cut into words already, by each kind of tokenizer. */
class TokenizedWordsTest {
  private static final String PROCESSOR =
      """
{"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "</s>", "type_id": 0}}],
  "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
  "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
    "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}
""";

  private static final String TOKENIZER =
      """
{"version": "1.0", "truncation": null, "padding": null,
 "added_tokens": [{"id": 2, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
   "normalized": false, "special": true}],
 "normalizer": NORMALIZER, "pre_tokenizer": SPLIT, "post_processor": PROCESSOR, "decoder": null, "model": MODEL}
""";

  private static final String WORD_PIECE =
      TOKENIZER
          .replace(
              "NORMALIZER",
              "{\"type\": \"BertNormalizer\", \"clean_text\": true, \"handle_chinese_chars\": true,"
                  + " \"strip_accents\": null, \"lowercase\": true}")
          .replace("SPLIT", "{\"type\": \"BertPreTokenizer\"}")
          .replace(
              "MODEL",
              """
{"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
 "max_input_chars_per_word": 100,
 "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "ang": 3, "##ela": 4, "mer": 5, "##kel": 6, "saw": 7,
   "u": 8, ".": 9, "s": 10, "paris": 11}}
""");

  /** Of bytes: Ġ is the space before a word. */
  private static final String BYTES =
      TOKENIZER
          .replace("NORMALIZER", "null")
          .replace(
              "MODEL",
              """
{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
 "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
 "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "Ġ": 3, "p": 4, "a": 5, "r": 6, "i": 7, "s": 8, "n": 9, ".": 10,
   "Ġp": 11, "ar": 12, "Ġpar": 13, "is": 14, "par": 15, "Ġi": 16, "Ġin": 17},
 "merges": ["Ġ p", "a r", "Ġp ar", "i s", "p ar", "Ġ i", "Ġi n"]}
""");

  private static final String UNIGRAM =
      TOKENIZER.replace(
          "MODEL",
          """
{"type": "Unigram", "unk_id": 2, "byte_fallback": false,
 "vocab": [["<s>", 0], ["</s>", 0], ["<unk>", -10], ["▁par", -2], ["is", -2], ["▁in", -2], ["▁", -3], [".", -3],
   ["▁p", -6], ["ar", -6]]}
""");

  @TempDir Path folder;

  private TextTokenizer open(String json, int maxTokens) throws IOException {
    Path file = folder.resolve("tokenizer.json");
    Files.writeString(file, json.replace("PROCESSOR", PROCESSOR));
    return new TextTokenizer(file, maxTokens);
  }

  private Tokens encode(String json, int maxTokens, String... words) throws IOException {
    try (TextTokenizer tokenizer = open(json, maxTokens)) {
      return tokenizer.encode(List.of(words));
    }
  }

  private static void assertTokens(Tokens tokens, String ids, String words) {
    assertEquals(ids, joined(tokens.ids()));
    assertEquals(words, joined(Arrays.stream(tokens.words()).mapToLong(word -> word).toArray()));
    assertTrue(Arrays.stream(tokens.mask()).allMatch(one -> one == 1));
    assertEquals(tokens.length(), tokens.mask().length);
    assertEquals(tokens.length(), tokens.types().length);
  }

  private static String joined(long[] values) {
    return Arrays.stream(values).mapToObj(String::valueOf).collect(Collectors.joining(" "));
  }

  /** A word may be of several pieces, be cut at signs, hold a space, be unknown, or be nothing at all. */
  @Test
  void pieces() throws IOException {
    assertTokens(
        encode(
            WORD_PIECE, 32, "Angela", "Merkel", "saw", "U.S.", "\u200d", "", "Paris Paris", "Rom"),
        "0 3 4 5 6 7 8 9 10 9 11 11 2 1",
        "-1 0 -1 1 -1 2 3 -1 -1 -1 6 -1 7 -1");
    assertTokens(encode(WORD_PIECE, 32), "0 1", "-1 -1");
    assertTokens(encode(WORD_PIECE, 32, "saw", "<unk>", "saw"), "0 7 2 7 1", "-1 0 1 2 -1");
    assertEquals(null, text(WORD_PIECE, "Angela saw").words());
    assertEquals("0 3 4 7 1", joined(text(WORD_PIECE, "Angela saw").ids()));
  }

  private Tokens text(String json, String text) throws IOException {
    try (TextTokenizer tokenizer = open(json, 32)) {
      return tokenizer.encode(text);
    }
  }

  /** Words have their space, whether the tokenizer puts one before a text or not. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "{'type': 'ByteLevel', 'add_prefix_space': false, 'trim_offsets': true, 'use_regex': true}",
        "{'type': 'ByteLevel', 'add_prefix_space': true, 'trim_offsets': true, 'use_regex': true}",
        "{'type': 'Sequence', 'pretokenizers': [{'type': 'Split', 'pattern': {'Regex': '"
            + " ?\\\\p{L}+| ?[^\\\\s\\\\p{L}]+'}, 'behavior': 'Isolated', 'invert': false},"
            + " {'type': 'ByteLevel', 'add_prefix_space': false, 'trim_offsets': true, 'use_regex':"
            + " false}]}"
      })
  void bytes(String split) throws IOException {
    String json = BYTES.replace("SPLIT", split.replace('\'', '"'));
    assertTokens(
        encode(json, 32, "in", "paris", ".", "pr", " in"),
        "0 17 13 14 3 10 11 6 17 1",
        "-1 0 1 -1 2 -1 3 -1 4 -1");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "null {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': true}",
        "null {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'first', 'split': true}",
        "{'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': '▁'}, {'type': "
            + "'Replace', 'pattern': {'String': ' '}, 'content': '▁'}]} null"
      })
  void unigrams(String parts) throws IOException {
    int cut = parts.startsWith("null") ? 4 : parts.length() - 5;
    String json =
        UNIGRAM
            .replace("NORMALIZER", parts.substring(0, cut).replace('\'', '"'))
            .replace("SPLIT", parts.substring(cut + 1).replace('\'', '"'));
    assertTokens(
        encode(json, 32, "in", "paris", ".", "x"), "0 5 3 4 6 7 6 2 1", "-1 0 1 -1 2 -1 3 -1 -1");
  }

  @Test
  void longTextsAreCut() throws IOException {
    String[] words = {"Angela", "Merkel", "saw", "Paris"};
    assertTokens(encode(WORD_PIECE, 6, words), "0 3 4 5 6 1", "-1 0 -1 1 -1 -1");
    assertTokens(encode(WORD_PIECE, 5, words), "0 3 4 5 1", "-1 0 -1 1 -1");
    String[] many = new String[200_000];
    Arrays.fill(many, "Angela");
    assertEquals(8, encode(WORD_PIECE, 8, many).length());
  }

  @Test
  void hostileWordsEndNothing() throws IOException {
    assertTokens(encode(WORD_PIECE, 32, "\ud800", "\u0000", "saw"), "0 7 1", "-1 2 -1");
    String half = "a".repeat(1 << 21);
    String said =
        assertThrows(InputException.class, () -> encode(WORD_PIECE, 8, half, half)).getMessage();
    assertTrue(said.contains("are the most") && said.contains("'aaa"), said);
  }
}
