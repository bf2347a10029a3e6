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
import org.espalier.evaluate.TensorEvaluator;
import org.espalier.evaluate.TensorFidelity;
import org.espalier.evaluate.TextTokenizer;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Compares a compressed model with the original. */
@Command(
    name = "evaluate",
    description = {
      "Says how closely CANDIDATE follows REFERENCE, and what it saves. Both are ONNX models and"
          + " run in ONNX Runtime on one thread: text models embed each line of TEXTS, models of"
          + " any other kind take the tensors of EXAMPLES, and each of their outputs is compared.",
      "",
      "For texts, the batch line compares the candidate with itself: a text alone and the same text"
          + " in a padded batch of 32. Dynamic int8 chooses its steps from the whole batch, so its"
          + " answers depend on it."
    },
    footer = {
      "",
      "Examples:",
      "  espalier evaluate model.onnx model-int8.onnx --texts sentences.txt \\",
      "    --tokenizer tokenizer.json",
      "  espalier evaluate bge-small.onnx bge-small-int8.onnx --texts sentences.txt \\",
      "    --pooling cls --json",
      "  espalier evaluate resnet.onnx resnet-int8.onnx --examples images.safetensors",
    })
final class Evaluate implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Parameters(index = "0", paramLabel = "REFERENCE", description = "The original ONNX model.")
  private String reference;

  @Parameters(index = "1", paramLabel = "CANDIDATE", description = "The ONNX model to judge.")
  private String candidate;

  /** What both models run on. */
  private static final class Data {
    @Option(
        names = "--texts",
        paramLabel = "TEXTS",
        required = true,
        description = "A UTF-8 file with a text a line; at least three.")
    private String texts;

    @Option(
        names = "--examples",
        paramLabel = "EXAMPLES.safetensors",
        required = true,
        description =
            "A tensor an input, of its name and type, whose first dimension counts the examples. One"
                + " example has 1 there or, of a tensor with a dimension more than the input, not"
                + " that dimension.")
    private String examples;
  }

  @ArgGroup(multiplicity = "1")
  private Data data;

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
    Map<String, Object> values =
        data.examples == null ? compareTexts(original, judged) : compareTensors(original, judged);
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("reference", original.given()).put("candidate", judged.given());
      common.print(json.setAll(Json.of(values)));
    }
    return 0;
  }

  private Map<String, Object> compareTensors(ModelSource original, ModelSource judged) {
    TensorFidelity fidelity;
    try (Progress progress = new Progress(common.err(), "evaluating")) {
      fidelity =
          TensorEvaluator.evaluate(
              original.path(), judged.path(), ModelSource.path(data.examples), Integer.MAX_VALUE);
    }
    if (!common.json()) {
      print(fidelity);
    }
    return fidelity.toMap();
  }

  private Map<String, Object> compareTexts(ModelSource original, ModelSource judged) {
    List<String> lines = FidelityEvaluator.readTexts(ModelSource.path(data.texts));
    Fidelity fidelity;
    try (TextTokenizer open = tokenizer.open(original, common::note);
        Progress progress = new Progress(common.err(), "evaluating")) {
      fidelity =
          new FidelityEvaluator(open, pooling).evaluate(original.path(), judged.path(), lines);
    }
    if (!common.json()) {
      print(fidelity);
    }
    return fidelity.toMap();
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
    addSavings(table, f.sizeRatio(), f.speedup());
    table.add(
        "batch",
        String.format(
            Locale.ROOT, "mean cosine %.4f to itself in batches of 32", f.batchCosineMean()));
    table.print(common.out());
  }

  private void print(TensorFidelity f) {
    Table outputs =
        new Table("OUTPUT", ">COSINE", ">SMALLEST", ">ERROR", ">LARGEST", ">SAME CLASS");
    for (TensorFidelity.Output o : f.outputs()) {
      outputs.add(
          o.name(),
          String.format(Locale.ROOT, "%.5f", o.cosineMean()),
          Double.isNaN(o.cosineMin()) ? "" : String.format(Locale.ROOT, "%.5f", o.cosineMin()),
          Format.percent(o.relativeError()),
          String.format(Locale.ROOT, "%.3g", o.largestDifference()),
          Double.isNaN(o.agreement()) ? "" : Format.percent(o.agreement()));
    }
    outputs.print(common.out());
    Table sums = new Table("", "");
    sums.add("examples", Integer.toString(f.examples()));
    addSavings(sums, f.sizeRatio(), f.speedup());
    sums.print(common.out());
  }

  private static void addSavings(Table table, double sizeRatio, double speedup) {
    table.add("size", String.format(Locale.ROOT, "%.3f of the reference", sizeRatio));
    table.add("speed", String.format(Locale.ROOT, "%.2fx the reference, one thread", speedup));
  }
}
