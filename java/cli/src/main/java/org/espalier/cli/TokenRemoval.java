package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
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

  /** Compared texts are cut after so many tokens, which all models read. */
  private static final int TOKENS = 64;

  /** How many tokens there were, are and were seen in how many texts. */
  private record Count(int before, int after, int seen, int texts) {}

  private final CommonOptions common;
  private final ModelSource source;
  private final Path target;
  private final long begin = System.nanoTime();

  TokenRemoval(CommonOptions common, ModelSource source, Path target) {
    this.common = common;
    this.source = source;
    this.target = target;
  }

  void run(Path file, Path tokenizer) {
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
    int seen;
    int[] kept;
    List<Path> written;
    try (AtomicFile made = AtomicFile.create(beside, tokenizer);
        Progress progress = new Progress(common.err(), "reading texts")) {
      try (TextTokenizer whole = new TextTokenizer(tokenizer, TextTokenizer.MOST_TOKENS)) {
        BitSet tokens = seen(whole, texts, vocabulary, progress);
        seen = tokens.cardinality();
        kept = vocabulary.keep(tokens, pruner.isOrdered());
        vocabulary.write(kept, made);
        try (TextTokenizer smaller = new TextTokenizer(made.path(), TextTokenizer.MOST_TOKENS)) {
          compare(whole, smaller, texts, kept, progress);
        }
      }
      pruner.prune(kept, vocabulary.size());
      progress.update("comparing", 0, 0);
      List<String> some = ActivationSource.spread(texts, COMPARED);
      try (TextTokenizer before = new TextTokenizer(tokenizer, TOKENS);
          TextTokenizer after = new TextTokenizer(made.path(), TOKENS)) {
        VocabularyCheck.compare(original, before, model, after, kept, some);
      }
      progress.update("writing", 0, 0);
      written = model.write(target, source.path());
      companions.write();
      made.commit();
    }
    companions.tell(common::note);
    common.note("its tokenizer as " + beside);
    report(
        new Count(vocabulary.size(), kept.length, seen, texts.size()),
        FileTree.bytes(original.files()),
        FileTree.bytes(written));
  }

  private BitSet seen(
      TextTokenizer whole, List<String> texts, Vocabulary vocabulary, Progress progress) {
    BitSet seen = new BitSet();
    for (int i = 0; i < texts.size(); i++) {
      progress.update("reading texts", i, texts.size());
      for (long token : whole.encode(texts.get(i)).ids()) {
        if (token >= vocabulary.size()) {
          throw new InputException("the tokenizer gives the token " + token + ", which it has not");
        }
        seen.set((int) token);
      }
    }
    return seen;
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
          .put("texts", count.texts());
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
    table.add("size", Format.sizes(outputBytes, inputBytes));
    table.add("time", Quantity.seconds(seconds));
    table.print(common.out());
  }
}
