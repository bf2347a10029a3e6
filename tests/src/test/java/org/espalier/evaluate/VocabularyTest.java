package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.AtomicFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Random tokenizers of each kind: without some tokens they cut texts of the others as before, and take all texts that they took. */
class VocabularyTest {
  private static final String LETTERS = "abcdefgh";
  private static final ObjectMapper JSON = new ObjectMapper();

  @TempDir private Path folder;
  private final Random random = new Random(7);

  private String word(int most) {
    StringBuilder word = new StringBuilder();
    for (int left = 1 + random.nextInt(most); left > 0; left--) {
      word.append(LETTERS.charAt(random.nextInt(LETTERS.length())));
    }
    return word.toString();
  }

  private List<String> texts(int n) {
    List<String> texts = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      texts.add(word(9) + " " + word(9) + (random.nextInt(4) == 0 ? " é" : ""));
    }
    return texts;
  }

  private static ObjectNode object(String text) {
    try {
      return (ObjectNode) JSON.readTree(text);
    } catch (IOException e) {
      throw new IllegalArgumentException(text, e);
    }
  }

  private static ObjectNode tokenizer(String model, String special) {
    return object(
        """
        {"version": "1.0", "added_tokens": [%s], "normalizer": null,
         "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
         "padding": null, "model": %s}
        """
            .formatted(special, model));
  }

  private static String added(int id, String content) {
    return """
           {"id": %d, "content": "%s", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}
           """
        .formatted(id, content);
  }

  private static final String TEMPLATE =
      """
{"type": "TemplateProcessing",
 "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
 "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
 "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [5], "tokens": ["[CLS]"]}}}
""";

  /** [PAD] 0, four that nobody needs, [CLS] 5, [UNK] 6, then letters and pieces. */
  private ObjectNode wordPiece() {
    Set<String> tokens = new LinkedHashSet<>(List.of("[PAD]", "n1", "n2", "n3", "n4"));
    tokens.addAll(List.of("[CLS]", "[UNK]"));
    for (char letter : LETTERS.toCharArray()) {
      tokens.add(String.valueOf(letter));
      tokens.add("##" + letter);
    }
    while (tokens.size() < 300) {
      tokens.add((random.nextBoolean() ? "##" : "") + word(4));
    }
    ObjectNode root =
        tokenizer(
            """
            {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": {}}
            """,
            added(0, "[PAD]") + "," + added(5, "[CLS]") + "," + added(300, "[NEW]"));
    fill((ObjectNode) root.at("/model/vocab"), tokens);
    root.set("post_processor", object(TEMPLATE));
    root.set(
        "padding",
        object(
            """
            {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
             "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
            """));
    return root;
  }

  private static void fill(ObjectNode vocabulary, Set<String> tokens) {
    tokens.forEach(token -> vocabulary.put(token, vocabulary.size()));
  }

  /** Merges of what there is so far; the special token is the last. */
  private ObjectNode bpe(boolean pairs) {
    List<String> tokens = new ArrayList<>(List.of("<unk>"));
    for (char letter : LETTERS.toCharArray()) {
      tokens.add(String.valueOf(letter));
    }
    Set<String> all = new LinkedHashSet<>(tokens);
    ObjectNode root =
        tokenizer(
            """
{"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
 "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {}, "merges": []}
""",
            added(300, "<end>"));
    ArrayNode merges = (ArrayNode) root.at("/model/merges");
    while (all.size() < 300) {
      String first = tokens.get(1 + random.nextInt(tokens.size() - 1));
      String second = tokens.get(1 + random.nextInt(tokens.size() - 1));
      if (first.length() + second.length() > 6) {
        continue;
      }
      if (all.add(first + second)) {
        tokens.add(first + second);
      } else if (random.nextInt(3) > 0) {
        continue; // some tokens are made in several ways
      }
      if (pairs) {
        merges.addArray().add(first).add(second);
      } else {
        merges.add(first + " " + second);
      }
    }
    all.add("<end>");
    fill((ObjectNode) root.at("/model/vocab"), all);
    root.set(
        "post_processor",
        object(
            """
            {"type": "RobertaProcessing", "sep": ["<end>", 300], "cls": ["<end>", 300],
             "trim_offsets": true, "add_prefix_space": false}
            """));
    return root;
  }

  private ObjectNode unigram() {
    Set<String> tokens = new LinkedHashSet<>(List.of("<s>", "<pad>", "<unk>"));
    for (char letter : LETTERS.toCharArray()) {
      tokens.add(String.valueOf(letter));
    }
    while (tokens.size() < 300) {
      tokens.add(word(5));
    }
    ObjectNode root =
        tokenizer(
            "{\"type\": \"Unigram\", \"unk_id\": 2, \"byte_fallback\": false, \"vocab\": []}",
            added(0, "<s>") + "," + added(1, "<pad>") + "," + added(300, "<mask>"));
    ArrayNode vocabulary = (ArrayNode) root.at("/model/vocab");
    for (String token : tokens) {
      vocabulary
          .addArray()
          .add(token)
          .add(token.startsWith("<") ? 0 : -3 - 9 * random.nextDouble());
    }
    return root;
  }

  private ObjectNode made(String kind) {
    return switch (kind) {
      case "WordPiece" -> wordPiece();
      case "BPE" -> bpe(false);
      case "BPE of pairs" -> bpe(true);
      default -> unigram();
    };
  }

  private TextTokenizer open(Path file) {
    return new TextTokenizer(file, 512);
  }

  private static BitSet seen(TextTokenizer tokenizer, List<String> texts) {
    BitSet seen = new BitSet();
    for (String text : texts) {
      Arrays.stream(tokenizer.encode(text).ids()).forEach(id -> seen.set((int) id));
    }
    return seen;
  }

  private Path write(Path whole, int[] kept) {
    Path smaller = folder.resolve("smaller.json");
    try (AtomicFile file = AtomicFile.create(smaller)) {
      Vocabulary.read(whole).write(kept, file);
      file.commit();
    }
    return smaller;
  }

  @ParameterizedTest
  @ValueSource(strings = {"WordPiece", "BPE", "BPE of pairs", "Unigram"})
  void textsOfTheOthersHaveTheSameTokens(String kind) throws IOException {
    for (int round = 0; round < 20; round++) {
      ObjectNode root = made(kind);
      Path file = Files.write(folder.resolve("whole.json"), JSON.writeValueAsBytes(root));
      List<String> given = texts(4);
      try (TextTokenizer whole = open(file)) {
        BitSet seen = seen(whole, given);
        Vocabulary vocabulary = Vocabulary.read(file);
        assertEquals(301, vocabulary.size());
        int[] kept = vocabulary.keep(seen, false);
        assertTrue(kept.length < 150, kept.length + " are left");
        assertEquals(kept.length, Arrays.stream(kept).distinct().count());
        BitSet stay = new BitSet();
        Arrays.stream(kept).forEach(stay::set);
        List<String> others = texts(300);
        int same = 0;
        try (TextTokenizer smaller = open(write(file, kept))) {
          for (List<String> texts : List.of(given, others)) {
            for (String text : texts) {
              Tokens before = whole.encode(text);
              Tokens after = smaller.encode(text);
              long[] numbers = Arrays.stream(after.ids()).map(id -> kept[(int) id]).toArray();
              if (Arrays.stream(before.ids()).allMatch(id -> stay.get((int) id))) {
                assertArrayEquals(before.ids(), numbers, text);
                same++;
              }
              assertEquals(unknown(root, before.ids()), unknown(root, numbers), text);
            }
          }
        }
        assertTrue(same >= given.size(), same + " texts of tokens that stay");
      }
    }
  }

  private static long unknown(JsonNode root, long[] ids) {
    long unknown = root.at("/model/unk_id").asInt(root.at("/model/vocab/[UNK]").asInt(0));
    return Arrays.stream(ids).filter(id -> id == unknown).count();
  }

  /** Programs know the numbers of special tokens; what is added to the model's comes behind these. */
  @Test
  void specialTokensKeepTheirNumbers() throws IOException {
    Path file = Files.write(folder.resolve("whole.json"), JSON.writeValueAsBytes(wordPiece()));
    int[] kept = Vocabulary.read(file).keep(new BitSet(), false);
    // [PAD], [CLS], [UNK], [NEW] and the letters, but n1 to n4.
    assertEquals(4 + LETTERS.length() * 2, kept.length, Arrays.toString(kept));
    assertEquals(0, kept[0]);
    assertEquals(5, kept[5]);
    assertEquals(300, kept[kept.length - 1]);
    JsonNode written = JSON.readTree(write(file, kept).toFile());
    assertEquals(5, written.at("/post_processor/special_tokens/[CLS]/ids/0").asInt());
    assertEquals(kept.length - 1, written.at("/added_tokens/2/id").asInt());
    assertEquals(5, written.at("/model/vocab/[CLS]").asInt());
    assertEquals(0, written.at("/padding/pad_id").asInt());

    int[] ordered = Vocabulary.read(file).keep(new BitSet(), true);
    assertArrayEquals(Arrays.stream(kept).sorted().toArray(), ordered);
    written = JSON.readTree(write(file, ordered).toFile());
    assertEquals(1, written.at("/post_processor/special_tokens/[CLS]/ids/0").asInt());
    assertEquals(1, written.at("/added_tokens/1/id").asInt());
  }

  /** Older files do not say that these are special. */
  @Test
  void tokensAroundTextsStayThoughNobodyAddedThem() throws IOException {
    ObjectNode root = wordPiece();
    ((ArrayNode) root.get("added_tokens")).remove(1);
    Path file = Files.write(folder.resolve("whole.json"), JSON.writeValueAsBytes(root));
    assertEquals(5, Vocabulary.read(file).keep(new BitSet(), false)[5]);
    ((ArrayNode) root.at("/post_processor/special_tokens/[CLS]/ids")).set(0, IntNode.valueOf(999));
    Files.write(file, JSON.writeValueAsBytes(root));
    int[] kept = Vocabulary.read(file).keep(new BitSet(), false);
    InputException e = assertThrows(InputException.class, () -> write(file, kept));
    assertTrue(e.getMessage().contains("999 is that of no token"), e.getMessage());
  }

  /** Of BPE the last token is a special one, whose number no smaller vocabulary has. */
  @Test
  void aHighSpecialTokenStaysTheLast() throws IOException {
    Path file = Files.write(folder.resolve("whole.json"), JSON.writeValueAsBytes(bpe(false)));
    int[] kept = Vocabulary.read(file).keep(new BitSet(), false);
    assertArrayEquals(IntStream.range(0, 9).toArray(), Arrays.copyOf(kept, 9));
    assertEquals(300, kept[9]);
    assertEquals(10, kept.length);
    JsonNode written = JSON.readTree(write(file, kept).toFile());
    assertEquals(9, written.at("/post_processor/sep/1").asInt());
    assertEquals(0, written.at("/model/merges").size());
  }

  @Test
  void whatIsNoVocabularyIsRefused() throws IOException {
    ObjectNode root = bpe(false);
    ((ArrayNode) root.at("/model/merges")).insert(0, "a nowhere");
    ((ObjectNode) root.at("/model/vocab")).put("anowhere", 301);
    refused(root, "the merge a nowhere", 301);
    root = wordPiece();
    ((ObjectNode) root.at("/model/vocab")).put("two", 7);
    refused(root, "two tokens have the number 7", 0);
    root = wordPiece();
    ((ObjectNode) root.at("/model/vocab")).put("minus", -1);
    refused(root, "the number of a token is -1", 0);
    root = wordPiece();
    ((ObjectNode) root.at("/model/vocab")).put("far", Integer.MAX_VALUE);
    refused(root, "the number of a token is 2147483647; 0 to 16777215 are right", 0);
    root = wordPiece();
    root.remove("model");
    refused(root, "has no model", 0);
    root = wordPiece();
    ((ObjectNode) root.get("model")).remove("vocab");
    refused(root, "no vocab", 0);
  }

  private void refused(ObjectNode root, String why, int seen) throws IOException {
    Path file = Files.write(folder.resolve("whole.json"), JSON.writeValueAsBytes(root));
    BitSet tokens = new BitSet();
    tokens.set(seen);
    InputException e =
        assertThrows(InputException.class, () -> Vocabulary.read(file).keep(tokens, false));
    assertTrue(e.getMessage().contains(why), e.getMessage());
  }
}
