package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class WordNetSentencesTest {
  private static final String NOUNS =
      """
  1 This licence | is no gloss: "it must not become a sentence of this sample"
00001740 03 n 01 entity 0 000 | that which is perceived to have its own existence; "the cat sat on the mat"; "too short"
00001741 03 n 01 other 0 000 | short one; "did the dog bark at night?"
""";

  private static Path jar(Path folder, String... parts) throws IOException {
    Path jar = folder.resolve("wordnet.jar");
    try (OutputStream out = Files.newOutputStream(jar);
        ZipOutputStream zip = new ZipOutputStream(out)) {
      for (String part : parts) {
        zip.putNextEntry(new ZipEntry("any/folder/data." + part));
        if (part.equals("noun")) {
          zip.write(NOUNS.getBytes(StandardCharsets.ISO_8859_1));
        }
      }
    }
    return jar;
  }

  @Test
  void examplesAndDefinitionsBecomeSentences(@TempDir Path folder) throws IOException {
    Path jar = jar(folder, "noun", "verb", "adj", "adv");
    assertEquals(
        Set.of("The cat sat on the mat.", "That which is perceived to have its own existence."),
        Set.copyOf(
            WordNetSentences.sample(jar, 2).stream()
                .map(s -> s.replace("Did the dog bark at night?", "The cat sat on the mat."))
                .toList()));
    assertEquals(WordNetSentences.sample(jar, 2), WordNetSentences.sample(jar, 2));
  }

  @Test
  void tooFewSentencesAreRefused(@TempDir Path folder) throws IOException {
    Path jar = jar(folder, "noun", "verb", "adj", "adv");
    InputException e = assertThrows(InputException.class, () -> WordNetSentences.sample(jar, 100));
    assertTrue(e.getMessage().contains("2 examples and 1 definitions"), e.getMessage());
  }

  @Test
  void whatIsNotWordNetIsRefused(@TempDir Path folder) throws IOException {
    Path jar = jar(folder, "noun", "verb");
    InputException missing =
        assertThrows(InputException.class, () -> WordNetSentences.sample(jar, 2));
    assertTrue(missing.getMessage().contains("data.adj"), missing.getMessage());
    Path text = Files.writeString(folder.resolve("text"), "no zip");
    assertThrows(InputException.class, () -> WordNetSentences.sample(text, 2));
    assertThrows(InputException.class, () -> WordNetSentences.sample(folder.resolve("absent"), 2));
  }
}
