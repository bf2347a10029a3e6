package org.espalier.evaluate;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.MissingNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.JsonReason;

/**
 * Checks a {@code tokenizer.json} before the tokenizers library reads it. The library reports most of what is wrong,
 * but panics at some of it, and a panic ends the process: at what is no JSON within the decoder (where a file that
 * was not fetched whole often ends), at a charsmap that it cannot take apart, at merges without the prefix that they
 * should have, and, at a text, at nothing to prepend, at what a template names that is not there, at a charsmap that
 * it cannot follow and at patterns that match in too many ways (decoders/mod.rs, normalizers/mod.rs,
 * models/bpe/model.rs, processors/template.rs and utils/onig.rs of tokenizers 0.21.1).
 */
final class TokenizerFile {
  /** The library's parser ends at 128. */
  private static final int DEPTH = 100;

  private static final int LONGEST_STRING = 1 << 28;

  private final String where;
  private final List<String> patterns = new ArrayList<>();

  /** Whether characters may become any others before a pattern is looked for in them. */
  private boolean renames;

  /** Whether a pre_tokenizer has written characters in others. */
  private boolean rewritten;

  /** See {@link Checked#bareWords}. */
  private boolean bareWords;

  private int templates;

  /** Why pairs of texts cannot be encoded; null where they can. */
  private String pairs;

  private TokenizerFile(Path file) {
    this.where = "tokenizer " + file;
  }

  /**
   * What a file asks of texts.
   *
   * @param work what its patterns have to do with them
   * @param pairs why pairs of them cannot be encoded; null where they can
   * @param bareWords whether it is a tokenizer of bytes, for which a space is part of the word behind it, that does not put
   *     one before a text
   */
  record Checked(PatternWork work, String pairs, boolean bareWords) {}

  /**
   * Checks a file.
   *
   * @throws InputException if the library must not be given it
   */
  static Checked check(Path file) {
    TokenizerFile checked = new TokenizerFile(file);
    checked.read(file);
    return new Checked(
        new PatternWork(checked.patterns, checked.renames), checked.pairs, checked.bareWords);
  }

  /** What reads such files: as much as they may hold, and no more. */
  static ObjectMapper mapper() {
    return new ObjectMapper(
        JsonFactory.builder()
            .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES)
            .streamReadConstraints(
                StreamReadConstraints.builder()
                    .maxNestingDepth(DEPTH)
                    .maxStringLength(LONGEST_STRING)
                    .maxNameLength(LONGEST_STRING)
                    .build())
            .build());
  }

  private void read(Path file) {
    ObjectMapper mapper = mapper();
    try (BufferedReader text = Files.newBufferedReader(file);
        JsonParser parser = mapper.createParser(text)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new InputException(where + " is no JSON object, so no Hugging Face tokenizer.json");
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String key = parser.currentName();
        parser.nextToken();
        switch (key) {
          case "normalizer" -> normalizer(mapper.readTree(parser));
          case "pre_tokenizer" -> preTokenizer(mapper.readTree(parser));
          case "post_processor" -> processor(mapper.readTree(parser));
          case "model" -> model(mapper, parser);
          default -> walk(parser);
        }
      }
      if (parser.nextToken() != null) {
        throw new InputException(where + " goes on behind its JSON object");
      }
    } catch (CharacterCodingException e) {
      throw new InputException(where + " is not UTF-8", e);
    } catch (JsonProcessingException e) {
      throw new InputException(
          where
              + " is not valid JSON: "
              + JsonReason.of(e)
              + (e.getLocation() == null ? "" : " (line " + e.getLocation().getLineNr() + ")")
              + "; it may not have been fetched whole",
          e);
    } catch (IOException e) {
      throw InputException.of("cannot read the " + where, e);
    }
  }

  /** Goes through a value with all that it holds. */
  private void walk(JsonParser parser) throws IOException {
    int open = 0;
    do {
      JsonToken token = parser.currentToken();
      if (token.isStructStart()) {
        open++;
      } else if (token.isStructEnd()) {
        open--;
      } else if (token == JsonToken.VALUE_STRING || token == JsonToken.FIELD_NAME) {
        checkCharacters(parser.getText());
      } else if (token == JsonToken.VALUE_NUMBER_FLOAT
          && !Double.isFinite(parser.getDoubleValue())) {
        throw new InputException(where + " holds the number " + parser.getText());
      }
    } while (open > 0 && parser.nextToken() != null); // it throws where the file ends too early
  }

  private void checkCharacters(String text) {
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (!Character.isSurrogate(c)) {
        continue;
      }
      if (!Character.isHighSurrogate(c)
          || i + 1 == text.length()
          || !Character.isLowSurrogate(text.charAt(++i))) {
        throw new InputException(
            String.format("%s holds \\u%04x, which is half a character", where, (int) c));
      }
    }
  }

  private void model(ObjectMapper mapper, JsonParser parser) throws IOException {
    if (parser.currentToken() != JsonToken.START_OBJECT) {
      walk(parser);
      return;
    }
    String prefix = "";
    JsonNode merges = MissingNode.getInstance();
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      String key = parser.currentName();
      parser.nextToken();
      switch (key) {
        case "continuing_subword_prefix" -> {
          JsonNode given = mapper.readTree(parser);
          prefix = given.asText("");
        }
        case "merges" -> merges = mapper.readTree(parser);
        default -> walk(parser);
      }
    }
    for (JsonNode merge : merges) {
      String second =
          merge.isArray() ? merge.path(1).asText() : merge.asText().replaceFirst("^[^ ]* ", "");
      if (!second.startsWith(prefix)) {
        throw new InputException(
            where
                + ": the second token of the merge "
                + merge
                + " does not begin with the continuing_subword_prefix '"
                + prefix
                + "'");
      }
    }
  }

  private void normalizer(JsonNode normalizer) {
    for (JsonNode each : normalizer.path("normalizers")) {
      normalizer(each);
    }
    checkPattern("normalizer", normalizer);
    String type = normalizer.path("type").asText();
    renames |= type.equals("Replace") || type.equals("Precompiled");
    if (normalizer.path("prepend").asText("-").isEmpty()) {
      throw new InputException(where + ": its normalizer has an empty 'prepend'");
    }
    if (type.equals("Precompiled")
        && !Charsmap.isOne(normalizer.path("precompiled_charsmap").textValue())) {
      throw new InputException(
          where
              + ": the precompiled_charsmap of its normalizer is not what SentencePiece writes:"
              + " base64 of a length, a trie of that length, whose every way stays inside it and"
              + " ends at the begin of a text, and texts");
    }
  }

  private void preTokenizer(JsonNode preTokenizer) {
    for (JsonNode each : preTokenizer.path("pretokenizers")) {
      preTokenizer(each);
    }
    checkPattern("pre_tokenizer", preTokenizer);
    String type = preTokenizer.path("type").asText();
    rewritten |= type.equals("ByteLevel") || type.equals("Metaspace");
    bareWords |= type.equals("ByteLevel") && !preTokenizer.path("add_prefix_space").asBoolean(true);
  }

  private void checkPattern(String part, JsonNode node) {
    String regex = node.path("pattern").path("Regex").asText();
    if (!regex.isEmpty()) {
      patterns.add(regex);
      renames |= rewritten;
    }
    String ambiguous = Repetitions.ambiguous(regex);
    if (ambiguous != null) {
      throw new InputException(
          where
              + ": the pattern "
              + regex
              + " of its "
              + part
              + " repeats "
              + ambiguous
              + ", which matches one text in so many ways that the library may end the process; a"
              + " group whose rounds the next character tells apart, or an atomic one, is right");
    }
  }

  private void processor(JsonNode processor) {
    for (JsonNode each : processor.path("processors")) {
      processor(each);
    }
    if (!processor.has("single")) { // the library knows a template by its keys, whatever its type
      return;
    }
    if (++templates > 1) {
      throw new InputException(where + ": its post_processor has two templates; one is right");
    }
    int sequences = 0;
    for (JsonNode piece : processor.path("single")) {
      String sequence = piece.path("Sequence").path("id").asText();
      // Of a text that is cut, two sequences would make as many results as the square of its parts.
      if (sequence.equals("B") || sequence.equals("A") && ++sequences > 1) {
        throw new InputException(
            where + ": the template 'single' of its post_processor has other sequences than one A");
      }
    }
    StringBuilder order = new StringBuilder();
    for (JsonNode piece : processor.path("pair")) {
      order.append(piece.path("Sequence").path("id").asText());
    }
    if (!order.toString().equals("AB")) {
      pairs = "the template 'pair' of its post_processor has other sequences than A and then B";
    }
    for (String template : new String[] {"single", "pair"}) {
      for (JsonNode piece : processor.path(template)) {
        JsonNode token = piece.path("SpecialToken").path("id");
        if (token.isTextual() && !processor.path("special_tokens").has(token.textValue())) {
          throw new InputException(
              where
                  + ": the template '"
                  + template
                  + "' of its post_processor has the special token "
                  + token.textValue()
                  + ", which is not among its special_tokens");
        }
      }
    }
  }
}
