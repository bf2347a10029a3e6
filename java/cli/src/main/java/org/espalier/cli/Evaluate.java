package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.evaluate.Fidelity;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextTokenizer;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Compares a compressed text model with the original. */
@Command(
    name = "evaluate",
    description = {
      "Says how closely CANDIDATE follows REFERENCE, and what it saves. Both are ONNX text models;"
          + " each line of TEXTS is embedded with both in ONNX Runtime on one thread.",
      "",
      "The batch line compares the candidate with itself: a text alone and the same text in a"
          + " padded batch of 32. Dynamic int8 chooses its steps from the whole batch, so its"
          + " answers depend on it."
    },
    footer = {
      "",
      "Examples:",
      "  espalier evaluate model.onnx model-int8.onnx --texts sentences.txt \\",
      "    --tokenizer tokenizer.json",
      "  espalier evaluate bge-small.onnx bge-small-int8.onnx --texts sentences.txt \\",
      "    --pooling cls --json",
    })
final class Evaluate implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Parameters(index = "0", paramLabel = "REFERENCE", description = "The original ONNX model.")
  private String reference;

  @Parameters(index = "1", paramLabel = "CANDIDATE", description = "The ONNX model to judge.")
  private String candidate;

  @Option(
      names = "--texts",
      paramLabel = "TEXTS",
      required = true,
      description = "A UTF-8 file with a text a line; at least three.")
  private String texts;

  @Mixin private TokenizerOptions tokenizer;

  @Option(
      names = "--pooling",
      paramLabel = "mean|cls",
      defaultValue = "mean",
      description =
          "How token vectors become one: their mean over the attention mask, or the first one"
              + " (BGE). Default: ${DEFAULT-VALUE}.")
  private Pooling pooling;

  @Override
  public Integer call() {
    ModelSource original = onnx(reference);
    ModelSource judged = onnx(candidate);
    List<String> lines = FidelityEvaluator.readTexts(ModelSource.path(texts));
    Fidelity fidelity;
    try (TextTokenizer open = tokenizer.open(original, common::note);
        Progress progress = new Progress(common.err(), "evaluating")) {
      fidelity =
          new FidelityEvaluator(open, pooling).evaluate(original.path(), judged.path(), lines);
    }
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("reference", original.given()).put("candidate", judged.given());
      for (Map.Entry<String, Object> entry : fidelity.toMap().entrySet()) {
        json.set(entry.getKey(), Json.of((Number) entry.getValue()));
      }
      common.print(json);
    } else {
      print(fidelity);
    }
    return 0;
  }

  private ModelSource onnx(String given) {
    ModelSource source = ModelSource.find(given, common::note);
    if (source.kind() != ModelSource.Kind.ONNX) {
      throw new InputException(given + " is not an .onnx model; evaluate runs ONNX models");
    }
    return source;
  }

  private void print(Fidelity f) {
    Table table = new Table("", "");
    table.add("texts", Integer.toString(f.texts()));
    table.add(
        "cosine",
        String.format(
            Locale.ROOT,
            "mean %.4f, 5th percentile %.4f, minimum %.4f",
            f.cosineMean(),
            f.cosineP5(),
            f.cosineMin()));
    table.add("pairs", String.format(Locale.ROOT, "Spearman %.4f", f.pairSpearman()));
    table.add(
        "neighbours",
        String.format(
            Locale.ROOT,
            "%.3f agree (95 %% of chance: %.3f to %.3f)",
            f.neighbourAgreement(),
            f.neighbourLow(),
            f.neighbourHigh()));
    table.add("size", String.format(Locale.ROOT, "%.3f of the reference", f.sizeRatio()));
    table.add("speed", String.format(Locale.ROOT, "%.2fx the reference, one thread", f.speedup()));
    table.add(
        "batch",
        String.format(
            Locale.ROOT, "mean cosine %.4f to itself in batches of 32", f.batchCosineMean()));
    table.print(common.out());
  }
}
