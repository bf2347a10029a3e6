package org.espalier.evaluate;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.IntUnaryOperator;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;

/**
 * The tokens of a Hugging Face {@code tokenizer.json}, and the same tokenizer with some of them alone. With the tokens of some
 * texts it keeps what makes these, all tokens that were added (special ones), and all of one character or byte, so that
 * every text can be written in what is left that could be before. Texts whose tokens stay are cut into the same tokens:
 *
 * <ul>
 *   <li>WordPiece takes the longest token that fits, and of those that went none was taken.
 *   <li>BPE applies the first merge that fits; the merges that make a token that stays, stay, with all tokens on the way.
 *   <li>Unigram takes the likeliest tokens; the least likely one stays, for what an unknown character costs follows from it.
 * </ul>
 *
 * <p>Not safe for several threads.
 */
public final class Vocabulary {
  /** Tokens of a vocabulary; the largest known have a quarter of a million. */
  private static final int MOST = 1 << 24;

  private static final String BYTE = "<0x[0-9A-F]{2}>";

  private final Path file;
  private final ObjectNode root;
  private final ObjectNode model;

  /** The tokens of the model, by their numbers. */
  private final Map<Integer, String> tokens = new TreeMap<>();

  private final Map<String, Integer> numbers = new HashMap<>();

  /** The numbers of tokens that were added, those of the model among them too, and of those that are put around texts. */
  private final TreeSet<Integer> added = new TreeSet<>();

  /** Two tokens that become one. */
  private record Merge(String first, String second, String made) {}

  private final List<Merge> merges = new ArrayList<>();

  private Vocabulary(Path file, ObjectNode root) {
    this.file = file;
    this.root = root;
    if (!(root.get("model") instanceof ObjectNode object)) {
      throw wrong("it has no model");
    }
    model = object;
    JsonNode vocabulary = model.path("vocab");
    if (vocabulary.isArray()) {
      for (int i = 0; i < vocabulary.size(); i++) {
        add(vocabulary.get(i).path(0).asText(), i);
      }
    } else {
      vocabulary.fields().forEachRemaining(e -> add(e.getKey(), number(e.getValue())));
    }
    for (JsonNode token : root.path("added_tokens")) {
      added.add(number(token.path("id")));
      numbers.putIfAbsent(token.path("content").asText(), number(token.path("id")));
    }
    if (tokens.isEmpty()) {
      throw wrong("its model has no vocab");
    }
    renumber(root.deepCopy(), this::addSpecial);
    String prefix = model.path("continuing_subword_prefix").asText("");
    for (JsonNode merge : model.path("merges")) {
      String text = merge.asText();
      int space = text.indexOf(' ');
      boolean pair = merge.isArray();
      String first = pair ? merge.path(0).asText() : text.substring(0, Math.max(0, space));
      String second = pair ? merge.path(1).asText() : text.substring(space + 1);
      String rest = second.startsWith(prefix) ? second.substring(prefix.length()) : second;
      merges.add(new Merge(first, second, first + rest));
    }
  }

  private void add(String token, int number) {
    if (tokens.put(number, token) != null) {
      throw wrong("two tokens have the number " + number);
    }
    numbers.put(token, number);
  }

  private int addSpecial(int number) {
    if (tokens.containsKey(number)) {
      added.add(number);
    }
    return number;
  }

  private int number(JsonNode node) {
    if (!node.isInt() || node.intValue() < 0 || node.intValue() >= MOST) {
      throw wrong("the number of a token is " + node + "; 0 to " + (MOST - 1) + " are right");
    }
    return node.intValue();
  }

  private InputException wrong(String what) {
    return new InputException("tokenizer " + file + ": " + what);
  }

  /**
   * Reads a tokenizer.
   *
   * @throws InputException if the file is missing or no tokenizer
   */
  public static Vocabulary read(Path file) {
    TokenizerFile.check(file);
    try (BufferedReader text = Files.newBufferedReader(file)) {
      return new Vocabulary(file, (ObjectNode) TokenizerFile.mapper().readTree(text));
    } catch (IOException e) {
      throw InputException.of("cannot read the tokenizer " + file, e);
    }
  }

  /** How many tokens there are: one more than the highest number. */
  public int size() {
    int last = tokens.keySet().stream().mapToInt(Integer::intValue).max().orElseThrow();
    return Math.max(last, added.isEmpty() ? 0 : added.last()) + 1;
  }

  /**
   * The tokens that stay.
   *
   * @param seen the numbers of those that texts have
   * @param ordered whether one that comes after another stays so. Otherwise tokens that were added keep their numbers where these
   *     are still among the model's: programs know those of [CLS] and [SEP]
   * @return their numbers, by their new ones
   */
  public int[] keep(BitSet seen, boolean ordered) {
    BitSet kept = (BitSet) seen.clone();
    added.forEach(kept::set);
    tokens.forEach(
        (number, token) -> {
          if (isAtom(token)) {
            kept.set(number);
          }
        });
    keepUnknown(kept);
    keepMerged(kept);
    return numbered(kept, ordered);
  }

  /** The tokens, by their new numbers: first those of the model, without gaps, as the library numbers them. */
  private int[] numbered(BitSet kept, boolean ordered) {
    int[] own = kept.stream().filter(tokens::containsKey).toArray();
    int[] places = new int[own.length];
    Predicate<Integer> stays = n -> !ordered && added.contains(n) && n < own.length;
    BitSet taken = new BitSet();
    for (int number : own) {
      if (stays.test(number)) {
        places[number] = number;
        taken.set(number);
      }
    }
    int next = 0;
    for (int number : own) {
      if (!stays.test(number)) {
        next = taken.nextClearBit(next);
        places[next++] = number;
      }
    }
    return IntStream.concat(
            IntStream.of(places), kept.stream().filter(number -> !tokens.containsKey(number)))
        .toArray();
  }

  /** Whether a token is a character or a byte. */
  private boolean isAtom(String token) {
    String prefix = model.path("continuing_subword_prefix").asText("");
    String bare =
        !prefix.isEmpty() && token.startsWith(prefix) ? token.substring(prefix.length()) : token;
    return bare.codePointCount(0, bare.length()) == 1 || token.matches(BYTE);
  }

  private void keepUnknown(BitSet kept) {
    JsonNode unknown = model.path("unk_token");
    if (unknown.isTextual() && numbers.containsKey(unknown.asText())) {
      kept.set(numbers.get(unknown.asText()));
    }
    if (model.path("unk_id").isInt()) {
      kept.set(model.path("unk_id").intValue());
    }
    JsonNode list = model.path("vocab");
    if (list.isArray()) {
      int least = 0;
      for (int i = 1; i < list.size(); i++) {
        if (list.get(i).path(1).asDouble() < list.get(least).path(1).asDouble()) {
          least = i;
        }
      }
      kept.set(least);
    }
  }

  /** Of BPE what no merge makes stays, and all that those which stay are made of. */
  private void keepMerged(BitSet kept) {
    if (merges.isEmpty()) {
      return;
    }
    Map<String, List<Merge>> making = new HashMap<>();
    merges.forEach(m -> making.computeIfAbsent(m.made(), made -> new ArrayList<>()).add(m));
    tokens.forEach(
        (number, token) -> {
          if (!making.containsKey(token)) {
            kept.set(number);
          }
        });
    Deque<Integer> open = new ArrayDeque<>();
    kept.stream().forEach(open::push);
    while (!open.isEmpty()) {
      for (Merge merge : making.getOrDefault(tokens.get(open.pop()), List.of())) {
        for (String part : List.of(merge.first(), merge.second())) {
          Integer number = numbers.get(part);
          if (number == null) {
            throw wrong("the merge " + merge.first() + " " + merge.second() + " has no tokens");
          }
          if (!kept.get(number)) {
            kept.set(number);
            open.push(number);
          }
        }
      }
    }
  }

  /**
   * Writes the tokenizer with some of its tokens.
   *
   * @param kept their numbers, by their new ones, as {@link #keep} gives them
   * @param target is not committed
   */
  public void write(int[] kept, AtomicFile target) {
    Map<Integer, Integer> places = new HashMap<>();
    for (int place = 0; place < kept.length; place++) {
      places.put(kept[place], place);
    }
    ObjectNode smaller = root.deepCopy();
    smaller.set("model", smallerModel(places, kept));
    TreeMap<Integer, JsonNode> tokensAdded = new TreeMap<>();
    for (JsonNode token : smaller.path("added_tokens")) {
      int place = place(places, token.path("id"));
      tokensAdded.put(place, ((ObjectNode) token).put("id", place));
    }
    if (smaller.has("added_tokens")) {
      smaller.putArray("added_tokens").addAll(tokensAdded.values());
    }
    renumber(smaller, number -> place(places, IntNode.valueOf(number)));
    try {
      target.stream().write(TokenizerFile.mapper().writeValueAsBytes(smaller));
    } catch (IOException e) {
      throw target.failure(e);
    }
  }

  private int place(Map<Integer, Integer> places, JsonNode number) {
    Integer place = places.get(number(number));
    if (place == null) {
      throw wrong("the number " + number + " is that of no token");
    }
    return place;
  }

  private ObjectNode smallerModel(Map<Integer, Integer> places, int[] kept) {
    ObjectNode smaller = model.deepCopy();
    JsonNode vocabulary = model.path("vocab");
    if (vocabulary.isArray()) {
      ArrayNode list = smaller.putArray("vocab");
      IntStream.of(kept).filter(tokens::containsKey).forEach(n -> list.add(vocabulary.get(n)));
      if (model.path("unk_id").isInt()) {
        smaller.put("unk_id", place(places, model.path("unk_id")));
      }
    } else {
      ObjectNode map = smaller.putObject("vocab");
      for (int number : kept) {
        if (tokens.containsKey(number)) {
          map.put(tokens.get(number), places.get(number));
        }
      }
    }
    if (model.path("merges").isArray()) {
      ArrayNode list = smaller.putArray("merges");
      for (int m = 0; m < merges.size(); m++) {
        Merge merge = merges.get(m);
        if (stays(merge.first(), places)
            && stays(merge.second(), places)
            && stays(merge.made(), places)) {
          list.add(model.path("merges").get(m));
        }
      }
    }
    return smaller;
  }

  private boolean stays(String token, Map<Integer, Integer> places) {
    return numbers.containsKey(token) && places.containsKey(numbers.get(token));
  }

  /** Gives the tokens that are put around texts other numbers, that which texts are padded with too. */
  private void renumber(ObjectNode tokenizer, IntUnaryOperator numbered) {
    renumberProcessor(tokenizer.path("post_processor"), numbered);
    if (tokenizer.path("padding") instanceof ObjectNode padding && padding.has("pad_id")) {
      padding.put("pad_id", numbered.applyAsInt(number(padding.path("pad_id"))));
    }
  }

  private void renumberProcessor(JsonNode processor, IntUnaryOperator numbered) {
    for (JsonNode each : processor.path("processors")) {
      renumberProcessor(each, numbered);
    }
    for (JsonNode token : processor.path("special_tokens")) {
      if (token.path("ids") instanceof ArrayNode ids) {
        for (int i = 0; i < ids.size(); i++) {
          ids.set(i, IntNode.valueOf(numbered.applyAsInt(number(ids.get(i)))));
        }
      }
    }
    for (String end : List.of("sep", "cls")) { // as those for BERT and RoBERTa have them
      if (processor.path(end) instanceof ArrayNode pair && pair.size() == 2) {
        pair.set(1, IntNode.valueOf(numbered.applyAsInt(number(pair.get(1)))));
      }
    }
  }
}
