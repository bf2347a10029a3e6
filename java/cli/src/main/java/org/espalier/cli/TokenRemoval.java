package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.VocabularyPruner;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.evaluate.Vocabulary;
import org.espalier.evaluate.VocabularyCheck;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.source.ModelSource;

/** Removes the tokens from a model and its tokenizer that no text has ({@code prune --vocabulary}). */
final class TokenRemoval {
  /** Of so many texts the outputs are compared. */
  private static final int COMPARED = 16;

  /** Compared texts are cut after so many tokens, which most models read. */
  private static final int TOKENS = 64;

  /**
   * What was counted.
   *
   * @param before how many tokens there were
   * @param after how many there are
   * @param seen how many of them the texts have
   * @param alone the share of texts with a token that stays because of them alone
   */
  private record Count(int before, int after, int seen, int texts, double alone) {}

  private final CommonOptions common;
  private final ModelSource source;
  private final Path target;
  private final long begin = System.nanoTime();

  TokenRemoval(CommonOptions common, ModelSource source, Path target) {
    this.common = common;
    this.source = source;
    this.target = target;
  }

  /**
   * Removes them.
   *
   * @param file of texts
   * @param maxTokens of one text that the model reads
   */
  void run(Path file, Path tokenizer, int maxTokens) {
    List<String> texts = FidelityEvaluator.readTexts(file);
    if (texts.isEmpty()) {
      throw new InputException(file + " holds no text");
    }
    OnnxModel model = source.onnx(common::note);
    OnnxModel original = model.copy();
    Path beside = Companions.beside(target, "tokenizer.json");
    AtomicFile.check(target, model.files().toArray(Path[]::new));
    Companions companions = new Companions(source, target);
    companions.leaveOut(Companions.TOKENIZER);
    companions.check();
    VocabularyPruner pruner = new VocabularyPruner(model);
    Vocabulary vocabulary = Vocabulary.read(tokenizer);
    Count count;
    int[] kept;
    List<Path> written;
    try (AtomicFile made = AtomicFile.create(beside, tokenizer);
        Progress progress = new Progress(common.err(), "reading texts")) {
      try (TextTokenizer whole = new TextTokenizer(tokenizer, TextTokenizer.MOST_TOKENS)) {
        int[] counts = texts(whole, texts, vocabulary.size(), progress);
        BitSet seen = new BitSet();
        IntStream.range(0, counts.length).filter(token -> counts[token] > 0).forEach(seen::set);
        BitSet always = new BitSet();
        Arrays.stream(vocabulary.keep(new BitSet(), true)).forEach(always::set);
        kept = vocabulary.keep(seen, pruner.isOrdered());
        double alone = alone(whole, texts, counts, always, progress);
        count = new Count(vocabulary.size(), kept.length, seen.cardinality(), texts.size(), alone);
        vocabulary.write(kept, made);
        try (TextTokenizer smaller = new TextTokenizer(made.path(), TextTokenizer.MOST_TOKENS)) {
          compare(whole, smaller, texts, kept, progress);
        }
      }
      pruner.prune(kept, vocabulary.size());
      progress.update("comparing", 0, 0);
      List<String> some = ActivationSource.spread(texts, COMPARED);
      int length = Math.min(TOKENS, maxTokens);
      try (TextTokenizer before = new TextTokenizer(tokenizer, length);
          TextTokenizer after = new TextTokenizer(made.path(), length)) {
        VocabularyCheck.compare(original, before, model, after, kept, some);
      }
      progress.update("writing", 0, 0);
      written = model.write(target, source.path());
      companions.write();
      made.commit();
    }
    companions.tell(common::note);
    common.note("its tokenizer as " + beside);
    report(count, FileTree.bytes(original.files()), FileTree.bytes(written));
  }

  /** In how many texts each token is. */
  private static int[] texts(TextTokenizer whole, List<String> texts, int size, Progress progress) {
    int[] counts = new int[size];
    for (int i = 0; i < texts.size(); i++) {
      progress.update("reading texts", i, texts.size());
      for (int token : tokens(whole, texts.get(i), size)) {
        counts[token]++;
      }
    }
    return counts;
  }

  /** The tokens of a text, each once. */
  private static int[] tokens(TextTokenizer whole, String text, int size) {
    return Arrays.stream(whole.encode(text).ids())
        .distinct()
        .mapToInt(token -> (int) Objects.checkIndex(token, size))
        .toArray();
  }

  /**
   * The share of texts that would be cut otherwise if they were not among those: what is to be expected of others like them.
   *
   * @param always the tokens that stay whatever texts there are
   */
  private static double alone(
      TextTokenizer whole, List<String> texts, int[] counts, BitSet always, Progress progress) {
    int alone = 0;
    for (int i = 0; i < texts.size(); i++) {
      progress.update("counting", i, texts.size());
      alone +=
          Arrays.stream(tokens(whole, texts.get(i), counts.length))
                  .anyMatch(token -> counts[token] == 1 && !always.get(token))
              ? 1
              : 0;
    }
    return (double) alone / texts.size();
  }

  /** Whether texts are cut into the same tokens as before. */
  private static void compare(
      TextTokenizer whole,
      TextTokenizer smaller,
      List<String> texts,
      int[] kept,
      Progress progress) {
    Map<Long, Long> places = new HashMap<>();
    for (int place = 0; place < kept.length; place++) {
      places.put((long) kept[place], (long) place);
    }
    for (int i = 0; i < texts.size(); i++) {
      progress.update("checking the tokenizer", i, texts.size());
      Tokens before = whole.encode(texts.get(i));
      Tokens after = smaller.encode(texts.get(i));
      boolean same = before.length() == after.length();
      for (int t = 0; same && t < before.length(); t++) {
        same = places.get(before.ids()[t]) == after.ids()[t];
      }
      if (!same) {
        throw new InputException(
            "the tokenizer "
                + whole.file()
                + " without the tokens that no text has cuts the text of line "
                + (i + 1)
                + " in another way, so it is not a kind that tokens can be taken from");
      }
    }
  }

  private void report(Count count, long inputBytes, long outputBytes) {
    double seconds = (System.nanoTime() - begin) * 1e-9;
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("output", target.toString());
      json.put("input_bytes", inputBytes).put("output_bytes", outputBytes);
      json.put("size_ratio", (double) outputBytes / inputBytes).put("seconds", seconds);
      json.putObject("vocabulary")
          .put("before", count.before())
          .put("after", count.after())
          .put("seen", count.seen())
          .put("texts", count.texts())
          .put("alone", count.alone());
      common.print(json);
      return;
    }
    Table table = new Table("", "");
    table.add(
        "left",
        count.after()
            + " of "
            + count.before()
            + " tokens, of which "
            + count.texts()
            + " texts have "
            + count.seen());
    table.add(
        "others",
        Quantity.percent(count.alone())
            + " of the texts have a token that no other has: about as many of others like them will"
            + " be read in other tokens");
    table.add("size", Format.sizes(outputBytes, inputBytes));
    table.add("time", Quantity.seconds(seconds));
    table.print(common.out());
  }
}
