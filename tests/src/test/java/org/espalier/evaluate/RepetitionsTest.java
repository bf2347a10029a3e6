package org.espalier.evaluate;

import static java.util.stream.Collectors.joining;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.BitSet;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Patterns of tokenizers: those that are published, those that repeat groups, and those that would end this JVM. */
class RepetitionsTest {
  @TempDir Path folder;

  @ParameterizedTest
  @ValueSource(
      strings = {
        // GPT-2, CLIP
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
        "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+",
        // Llama 3, Qwen 2, and what they come from in its later, possessive form
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
            + " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+|"
            + " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s",
        // GPT-4o, Bloom, DeepSeek
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
            + "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s+",
        " ?[^(\\s|[.,!?…。，、।۔،])]+",
        "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
        // Digits from the right, words of letters with their marks, words of words
        "\\d{1,3}(?=(?:\\d{3})*\\b)",
        "(?<=\\d)(?=(\\d{3})+(?!\\d))",
        "(?:\\p{L}\\p{M}*)+!",
        "(?:[a-z]+_)+!",
        "(?:\\p{Han}|[a-z])+!",
        "(?i:[a-z][0-9]|_)*!",
        "(?:[^a]|a[^b])+!",
        "(?>a+|b)+!",
        "(?:a++|b)+!",
        "(?<word>a)+!",
        // Nothing behind it can fail.
        "(?:a+)+",
        "(?:a+)+b*(?:c|d)?",
        "x(?=(?:a|aa)+)y",
        // Not repeated
        "(a|ab)(c|bcd)?(d*)!",
        "\\(+\\)+",
        "[()]+[+]*",
      })
  void isTakenAndRun(String regex) throws IOException {
    assertNull(Repetitions.ambiguous(regex));
    for (String part : new String[] {"a", "7", "ab", " ", "漢", "_a", "é", "b7"}) {
      ids(regex, part.repeat(2000) + "?");
    }
  }

  @Test
  void whatIsTriedInAllWaysIsFound() {
    Map<String, String> patterns =
        Map.ofEntries(
            Map.entry("(a+)+$", "(a+)+"),
            Map.entry("x|(a|aa)*b", "(a|aa)*"),
            Map.entry("(?:a|ab?)+!", "(?:a|ab?)+"),
            Map.entry("(?:[a-f]|[e-z])+!", "(?:[a-f]|[e-z])+"),
            Map.entry("(?:\\w+\\s?)*:", "(?:\\w+\\s?)*"),
            Map.entry("(?:a*)*b", "(?:a*)*"),
            Map.entry("(?:a?){30}a{30}", "(?:a?){30}"),
            Map.entry("(?:a{1,3}){30}", "(?:a{1,3}){30}"),
            Map.entry("\\d{1,3}+!", "\\d{1,3}+"),
            Map.entry("(?i:x|X)+!", "(?i:x|X)+"),
            Map.entry("(?i)(?:x|X)+!", "(?:x|X)+"),
            Map.entry("(?:\\p{Han}|\\P{^Han})+!", "(?:\\p{Han}|\\P{^Han})+"),
            Map.entry("(?:(?:a+)+b)*", "(?:a+)+"),
            Map.entry("(?:b(?:a+)+){3}", "(?:a+)+"),
            Map.entry("(?:(?:a+)+)(?!b)", "(?:a+)+"),
            Map.entry("(?!(?:a+)+b)", "(?:a+)+"),
            Map.entry("(?:[[:alpha:]]|1)+!", "(?:[[:alpha:]]|1)+"),
            Map.entry("(?:[\\h]|a)+!", "(?:[\\h]|a)+"),
            Map.entry("(?:.|\\n)+!", "(?:.|\\n)+"),
            // What is not understood, where groups are repeated.
            Map.entry("(a)+\\1+b", "\\1+b"),
            Map.entry("(?:(?~ab))+b", "(?~ab))+b"),
            Map.entry("(a)+\\X", "\\X"));
    patterns.forEach(
        (regex, group) -> assertEquals(group, Repetitions.ambiguous(regex), () -> "of " + regex));
    String deep = "(".repeat(2000) + "a" + ")".repeat(2000) + "+";
    assertTrue(deep.endsWith(Repetitions.ambiguous(deep)));
    String varied = "(?:" + "a|".repeat(2400) + "b)+";
    assertEquals(varied, Repetitions.ambiguous(varied + "c"));
    String word = "(?:" + "ab".repeat(2400) + ")+c";
    assertNull(Repetitions.ambiguous(word));
    String endless = "(?:a)+" + "b".repeat(1_000_000);
    assertEquals(endless, Repetitions.ambiguous(endless));
  }

  @Test
  void longOnesTakeLittleOfTheStack() throws InterruptedException {
    AtomicReference<String> found = new AtomicReference<>("not done");
    String word = "(?:" + "ab".repeat(2400) + ")+c";
    Thread thread =
        new Thread(null, () -> found.set(Repetitions.ambiguous(word)), "small", 160 << 10);
    thread.start();
    thread.join();
    assertNull(found.get());
  }

  @Test
  void itsTokenizerIsRefused() throws IOException {
    String message =
        assertThrows(InputException.class, () -> ids("(a+)+$", "a".repeat(40) + "b")).getMessage();
    assertTrue(message.contains("(a+)+$ of its pre_tokenizer repeats (a+)+"), message);
    String normalizing =
        """
        {"version": "1.0", "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
         "normalizer": {"type": "Sequence", "normalizers": [
           {"type": "Replace", "pattern": {"Regex": "(?:a|aa)+b"}, "content": "c"}]},
         "decoder": null, "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}}
        """;
    Path file = Files.writeString(folder.resolve("tokenizer.json"), normalizing);
    message = assertThrows(InputException.class, () -> new TextTokenizer(file, 16)).getMessage();
    assertTrue(message.contains("(?:a|aa)+b of its normalizer repeats (?:a|aa)+"), message);
  }

  /** As Llama 3's tokenizer has it: each of the blanks is given back before it fails. */
  @Test
  void textsAreAsLongAsPatternsTake() throws IOException {
    String pattern = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    ids(pattern, " ".repeat(TextTokenizer.LONGEST - 1) + "x");
    String longer = " ".repeat(TextTokenizer.LONGEST) + "x";
    String message = assertThrows(InputException.class, () -> ids(pattern, longer)).getMessage();
    assertTrue(message.endsWith("it has 4194305 characters; 4194304 are the most"), message);
    assertTrue(message.length() < 400, message);
  }

  /** The sets are told by a character of each. */
  @Test
  void whatIsTriedFromEachCharacterIsFound() {
    Map<String, List<String>> patterns =
        Map.ofEntries(
            Map.entry("\\s+$", List.of(" ")),
            Map.entry("\\s++$", List.of(" ")),
            Map.entry("(?>\\s+)$", List.of(" ")),
            Map.entry("\\s+(?!\\S)|x|\\d*[a-c]+y", List.of(" ", "7a")),
            Map.entry("a+b?c*d?e", List.of("ac")),
            Map.entry("a+(?:b+|c+)!", List.of("abc")),
            Map.entry("(?=a+b)c+", List.of("a")),
            Map.entry("(?:\\d+,){3}", List.of("7")),
            Map.entry("(?:ab)+!", List.of(".")),
            Map.entry("(?:a+b)+!", List.of(".")),
            Map.entry("(?:a+b)+", List.of("a")),
            Map.entry("(?:(?:a*a*b)+c)+!", List.of("..")),
            Map.entry("a{200}", List.of("a")),
            Map.entry("a{0,200}!", List.of("a")),
            Map.entry("a\\Xb", List.of(".")),
            // Nothing behind it fails, or it is short.
            Map.entry("x|\\s+", List.of()),
            Map.entry("\\p{L}+\\p{M}*d?", List.of()),
            Map.entry("(?:\\p{L}\\p{M}*)+", List.of()),
            Map.entry("a{1,3}!", List.of()));
    patterns.forEach(
        (regex, expected) -> {
          List<String> found =
              Repetitions.retried(regex).stream()
                  .map(sets -> sets.stream().map(RepetitionsTest::named).collect(joining()))
                  .toList();
          assertEquals(expected, found, () -> "of " + regex);
        });
  }

  private static String named(BitSet set) {
    return set.cardinality() > Character.MAX_CODE_POINT / 2
        ? "."
        : Stream.of("a", "b", "c", "7", " ")
            .filter(name -> set.get(name.charAt(0)))
            .findFirst()
            .orElseThrow();
  }

  /** 100,000 blanks take the library 25 seconds there, and 5,000 end the process at two repetitions of them. */
  @Test
  void textsThatWouldTakeTooLongAreRefused() throws IOException {
    String blanks = " ".repeat(100_000) + "x";
    for (String regex : new String[] {"\\s+$", "\\s++$|\\s", "(?:\\s)+y", "\\h+y"}) {
      String message = assertThrows(InputException.class, () -> ids(regex, blanks)).getMessage();
      assertTrue(message.contains("its pattern " + regex + " would be tried"), message);
      assertTrue(message.endsWith("31622 such characters in a row are possible"), message);
      ids(regex, "word ".repeat(2000));
    }
    String two = "\\s*\\s*$";
    String message =
        assertThrows(InputException.class, () -> ids(two, blanks.substring(95_000))).getMessage();
    assertTrue(message.endsWith(" 1000 such characters in a row are possible"), message);
    ids(two, " ".repeat(900) + "x");
    // Another alternative takes what one fails at.
    ids("\\s+$|\\s+", blanks);
    ids("\\d+\\s+x", "7".repeat(5000) + " ".repeat(5000));
    // What a normalizer makes of letters is not seen.
    String replacing =
        "{\"type\": \"Replace\", \"pattern\": {\"String\": \"a\"}, \"content\": \" \"}";
    String letters = "a".repeat(100_000) + "x";
    ids("\\s+$", letters);
    message =
        assertThrows(InputException.class, () -> ids(replacing, "", "\\s+$", letters)).getMessage();
    assertTrue(message.contains("would be tried"), message);
    String rewriting =
        "{\"type\": \"Metaspace\", \"replacement\": \"▁\", \"prepend_scheme\": \"never\","
            + " \"split\": false},";
    message =
        assertThrows(InputException.class, () -> ids("null", rewriting, "▁+$", blanks))
            .getMessage();
    assertTrue(message.contains("would be tried"), message);
    ids("null", rewriting, "▁+$", "a few words");
  }

  private void ids(String regex, String text) throws IOException {
    ids("null", "", regex, text);
  }

  /**
   * @param before pre_tokenizers, each with a comma
   */
  private void ids(String normalizer, String before, String regex, String text) throws IOException {
    String json =
        """
        {"version": "1.0", "added_tokens": [], "normalizer": %s, "post_processor": null,
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": [%s
           {"type": "Split", "pattern": {"Regex": %s}, "behavior": "Isolated", "invert": false}]},
         "decoder": null, "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}}
        """
            .formatted(normalizer, before, new ObjectMapper().writeValueAsString(regex));
    Path file = Files.writeString(folder.resolve("tokenizer.json"), json);
    try (TextTokenizer tokenizer = new TextTokenizer(file, 16)) {
      tokenizer.encode(text);
    }
  }
}
