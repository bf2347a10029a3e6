package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleFile;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.Fidelity;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.evaluate.LanguageModelEvaluator;
import org.espalier.evaluate.LanguageModelFidelity;
import org.espalier.evaluate.Measure;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.evaluate.ModelPair;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.Requirement;
import org.espalier.evaluate.Requirement.Verdict;
import org.espalier.evaluate.Savings;
import org.espalier.evaluate.TensorEvaluator;
import org.espalier.evaluate.TensorFidelity;
import org.espalier.evaluate.TextEmbedder;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.evaluate.TokenFidelity;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.Float16Graph;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RandomDraws;
import org.espalier.recipe.ClassOrder;
import org.espalier.recipe.ExamplesFile;
import org.espalier.recipe.LabelMeasures;
import org.espalier.recipe.LineExamples;
import org.espalier.recipe.Recipe;
import org.espalier.source.ModelSource;
import org.espalier.train.Labels;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Compares a compressed model with the original. */
@Command(
    name = "evaluate",
    description = {
      "Says how closely CANDIDATE follows REFERENCE, and what it saves. Both are ONNX models, or"
          + " folders of safetensors that 'export' takes, and run in ONNX Runtime on one thread:"
          + " text models embed each line of TEXTS, models of any other kind take the tensors of"
          + " EXAMPLES, and each of their outputs is compared; a tensor labels there says how right"
          + " the first one is. Causal language models predict each token of TEXTS from those"
          + " before it. Where another tokenizer lies beside a candidate that embeds, as 'prune"
          + " --vocabulary' leaves it, and --tokenizer names none for both, it reads the texts with"
          + " that. Of others that give logits for each token, as those that fill in words,"
          + " what they say of each token is compared. Which one is causal shows when it runs. Of"
          + " those that give a number for each token, as start_logits and end_logits, all of a"
          + " text's are, and which is the largest.",
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
      "  espalier evaluate checkpoint/ model-int4.onnx --texts texts.txt",
      "  espalier evaluate resnet.onnx resnet-int8.onnx --examples photos/test",
      "  espalier evaluate clf.onnx clf-int8.onnx --examples test.jsonl --classes ham,spam",
      "  espalier evaluate ner.onnx ner-int8.onnx --examples test.conll --classes O,B-PER,I-PER",
      "  espalier evaluate gpt2.onnx gpt2-int8.onnx --texts texts.txt --task causal-lm",
      "  espalier evaluate clf.onnx clf-int8.onnx --examples test.jsonl \\",
      "    --require 'accuracy >= reference - 0.01' --require 'size_ratio <= 0.3'",
    })
final class Evaluate implements Callable<Integer> {
  /** What a comparison says of labels; what else it says is said of each output. */
  private static final Set<String> RIGHTNESS =
      Measure.BY_LABELS.stream()
          .flatMap(measure -> Stream.of(measure.key(), measure.referenceKey()))
          .collect(Collectors.toUnmodifiableSet());

  @Mixin private CommonOptions common;

  @Parameters(
      index = "0",
      paramLabel = "REFERENCE",
      description = "The original: ONNX, or a folder of safetensors with its config.json.")
  private String reference;

  @Parameters(index = "1", paramLabel = "CANDIDATE", description = "The model to judge, the same.")
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
        paramLabel = "EXAMPLES",
        required = true,
        description =
            "A .safetensors file with a tensor an input, of its name and type, whose first"
                + " dimension counts the examples. One example has 1 there or, of a tensor with a"
                + " dimension more than the input, not that dimension. Or a .jsonl file of such"
                + " numbers, of texts for models with one output a text, {\"text\": \"...\","
                + " \"label\": 1} a line, of words for taggers, {\"tokens\": [...], \"tags\":"
                + " [...]}, or of images, {\"image\": \"1.jpg\", \"label\": 1}, as data.examples of"
                + " recipes; or a .conll file of words and tags; or a .csv file of numbers; or a"
                + " folder of images, with a folder for each class.")
    private String examples;
  }

  @ArgGroup(multiplicity = "1")
  private Data data;

  @Option(
      names = "--task",
      paramLabel = "auto|classification|regression|causal-lm|none",
      defaultValue = "auto",
      description =
          "What the first output says, as data.task in a recipe: how right both models are is"
              + " measured by it. classification, regression: the labels of EXAMPLES."
              + " causal-lm: the next token of TEXTS. none: nothing; texts are embedded. auto: by"
              + " labels where they fit, causal-lm where the first output is called logits, has"
              + " three dimensions and does not look ahead. Default: ${DEFAULT-VALUE}.")
  private Task task;

  @Option(
      names = "--classes",
      paramLabel = "WORD",
      split = ",",
      description =
          "The words that labels and tags of examples in lines are, in the order of the first"
              + " output's classes: ham,spam. Default: as the config.json beside REFERENCE says,"
              + " id2label; of folders else in alphabetical order, where they are as many as the"
              + " classes. Where they are O, B-PER, I-PER and the like, the F1 of whole entities is"
              + " measured too.")
  private List<String> classes = List.of();

  /** What labels are taken for. */
  private enum Task {
    AUTO(Recipe.Task.AUTO),
    CLASSIFICATION(Recipe.Task.CLASSIFICATION),
    REGRESSION(Recipe.Task.REGRESSION),
    CAUSAL_LM(Recipe.Task.CAUSAL_LM),
    NONE(null);

    private final Recipe.Task ofRecipe;

    Task(Recipe.Task ofRecipe) {
      this.ofRecipe = ofRecipe;
    }

    /** What the option takes. */
    @Override
    public String toString() {
      return ofRecipe == null ? "none" : ofRecipe.key();
    }
  }

  @Mixin private TokenizerOptions tokenizer;
  @Mixin private ImageOptions images;

  @Option(
      names = "--pooling",
      paramLabel = "mean|cls|last",
      description =
          "How token vectors become one: their mean over the attention mask, the first one (BGE),"
              + " or the last one (Qwen3-Embedding). Default: as the modules.json of"
              + " sentence-transformers beside REFERENCE says, STEM-modules.json too; else mean.")
  private Pooling pooling;

  @Option(
      names = "--require",
      paramLabel = "REQUIREMENT",
      description =
          "What CANDIDATE has to keep, else the exit code is 3: a measure as --json names it, >= or"
              + " <=, and a number or the reference's own: 'cosine_mean >= 0.99', 'size_ratio <="
              + " 0.3', 'accuracy >= reference - 0.01'. What is measured of each output, each has"
              + " to keep. Repeatable.")
  private List<String> require = List.of();

  @Option(
      names = "--round-float16",
      description =
          "Round what each node of a float16 CANDIDATE gives to float16, as a GPU does and ONNX"
              + " Runtime on a CPU does not. The speed is then that of a CPU that rounds.")
  private boolean roundFloat16;

  @Override
  public Integer call() {
    List<Requirement> required = require.stream().map(Requirement::of).toList();
    ModelSource original = ModelSource.find(reference, common::note).asOnnx("evaluate");
    ModelSource judged = ModelSource.find(candidate, common::note).asOnnx("evaluate");
    MeasuredModel model = judged.measured(common::note);
    boolean half = Float16Graph.isOne(model.graph());
    if (roundFloat16) {
      if (!half) {
        throw new InputException(
            "--round-float16 is for models that compute in 16 bits; "
                + judged.given()
                + " does not");
      }
      model = MeasuredModel.of(Float16Graph.rounding(model.graph()));
    }
    Models models = new Models(original, original.measured(common::note), judged, model);
    int code = compare(models, required);
    if (half && !roundFloat16) {
      common.note(
          judged.given()
              + " computes in 16 bits, which ONNX Runtime does in 32 on a CPU: what a GPU rounds"
              + " between nodes is not in these numbers; --round-float16 tells");
    }
    return code;
  }

  /** The two, as they were named and as they are measured. */
  private record Models(
      ModelSource original, MeasuredModel reference, ModelSource judged, MeasuredModel candidate) {}

  private int compare(Models models, List<Requirement> required) {
    Map<String, Object> values =
        data.examples == null ? compareTexts(models, required) : compareTensors(models, required);
    List<Verdict> verdicts = verdicts(required, values);
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("reference", models.original.given()).put("candidate", models.judged.given());
      if (!verdicts.isEmpty()) {
        values.put("requirements", verdicts.stream().map(Verdict::toMap).toList());
      }
      common.print(json.setAll(Json.of(values)));
    }
    return common.exitCode(
        verdicts.stream().filter(verdict -> !verdict.isMet()).map(Verdict::toString).toList());
  }

  /** Compares what is required with what was measured. */
  private static List<Verdict> verdicts(List<Requirement> required, Map<String, Object> values) {
    List<Verdict> verdicts = new ArrayList<>();
    for (Requirement requirement : required) {
      if (values.get("outputs") instanceof List<?> outputs
          && Measure.OF_OUTPUTS.contains(requirement.measure())) {
        for (Object output : outputs) {
          Map<?, ?> numbers = (Map<?, ?>) output;
          String name = outputs.size() == 1 ? null : (String) numbers.get("name");
          verdicts.add(verdict(requirement, name, numbers));
        }
      } else if (Measure.BY_LABELS.contains(requirement.measure())
          && values.get("labels") instanceof Map<?, ?> byLabels) {
        verdicts.add(verdict(requirement, null, byLabels));
      } else {
        verdicts.add(verdict(requirement, null, values));
      }
    }
    return verdicts;
  }

  private static Verdict verdict(Requirement requirement, String output, Map<?, ?> measured) {
    String key = requirement.measure().key();
    if (!measured.containsKey(key)) {
      throw new InputException(
          "--require '" + requirement + "': these examples do not say what " + key + " is");
    }
    return requirement.verdict(
        output,
        name -> measured.get(name) instanceof Number number ? number.doubleValue() : Double.NaN);
  }

  private static void check(List<Requirement> required, Set<Measure> measured) {
    required.forEach(requirement -> requirement.requireAmong(measured));
  }

  private Map<String, Object> compareTensors(Models models, List<Requirement> required) {
    ModelSource original = models.original;
    Set<Measure> measured = EnumSet.copyOf(Measure.OF_TENSORS);
    if (task != Task.NONE) {
      measured.addAll(Measure.BY_LABELS);
    }
    check(required, measured);
    if (task == Task.CAUSAL_LM) {
      throw new InputException("--task causal-lm takes --texts");
    }
    Path file = ModelSource.path(data.examples);
    TensorFidelity fidelity;
    Map<String, Object> byLabels;
    Savings savings;
    try (Progress progress = new Progress(common.err(), "evaluating")) {
      OnnxModel model = models.reference.graph();
      RandomDraws.of(model).ifPresent(common::note);
      LineExamples lines = LineExamples.areIn(file) ? lines(file, original, model) : null;
      if (lines == null && !classes.isEmpty()) {
        throw new InputException(
            "--classes is for --examples in lines, a .jsonl or .csv file, or a folder of images");
      }
      List<Tokens> tokens = lines != null && lines.areTexts() ? tokens(original, lines) : null;
      ExampleTensors examples =
          lines == null
              ? ExampleFile.read(file, model, Integer.MAX_VALUE)
              : tokens != null
                  ? ExampleTensors.ofTexts(tokens)
                  : lines.fed(model, () -> images.open(original, common::note), progress::update);
      try (ModelPair pair = new ModelPair(models.reference, models.candidate, examples)) {
        fidelity = TensorEvaluator.evaluate(pair, progress::update);
        byLabels = compareLabels(pair, model, file, lines, tokens, progress);
        savings = pair.savings(progress::update);
      }
    }
    Map<String, Object> values = new LinkedHashMap<>(fidelity.toMap());
    values.putAll(savings.toMap());
    if (!byLabels.isEmpty()) {
      values.put("labels", byLabels);
    }
    if (!common.json()) {
      print(fidelity, byLabels, savings);
    }
    return values;
  }

  private LineExamples lines(Path file, ModelSource original, OnnxModel model) {
    if (task == Task.NONE) {
      return LineExamples.unlabelled(file, LineExamples.asked(model));
    }
    LineExamples lines =
        LineExamples.read(
            file,
            task.ofRecipe,
            new ClassOrder(classes, original::classes),
            LineExamples.asked(model));
    Optional.ofNullable(lines.origin(classes)).ifPresent(common::note);
    return lines;
  }

  private List<Tokens> tokens(ModelSource original, LineExamples texts) {
    try (TextTokenizer open = tokenizer.open(original, common::note)) {
      return texts.tokens(open);
    }
  }

  /**
   * How right both models are; empty where no labels say it.
   *
   * @param lines of the file; null where it is one of tensors
   * @param tokens of the lines; null where they are no texts
   */
  private Map<String, Object> compareLabels(
      ModelPair pair,
      OnnxModel model,
      Path file,
      LineExamples lines,
      List<Tokens> tokens,
      Progress progress) {
    if (task == Task.NONE) {
      return Map.of();
    }
    try {
      if (lines != null) {
        lines.requireClasses(LineExamples.classesOf(model), classes);
      }
      Labels labels =
          lines != null
              ? lines.labels(tokens, common::note)
              : ExamplesFile.labels(file, pair.size(), task.ofRecipe);
      if (labels != null) {
        Map<String, Object> all =
            LabelMeasures.of(
                pair,
                labels,
                lines == null ? List.of() : lines.classes(),
                (phase, done, total) -> progress.update("comparing with labels", done, total));
        all.keySet().retainAll(RIGHTNESS);
        return all;
      }
      if (task != Task.AUTO) {
        throw new InputException(file + " has no labels, which --task is about");
      }
    } catch (InputException e) {
      if (task != Task.AUTO) {
        throw e;
      }
      common.note("the labels are not measured: " + e.getMessage());
    }
    return Map.of();
  }

  private Map<String, Object> compareTexts(Models models, List<Requirement> required) {
    if (task == Task.CLASSIFICATION || task == Task.REGRESSION) {
      throw new InputException("--task " + task + " takes --examples with labels");
    }
    List<String> lines = FidelityEvaluator.readTexts(ModelSource.path(data.texts));
    boolean words =
        task == Task.CAUSAL_LM
            || task == Task.AUTO && LanguageModelEvaluator.isOne(models.reference.graph());
    try (TextTokenizer open = tokenizer.open(models.original, common::note)) {
      if (task == Task.AUTO && TextEmbedder.marksTokens(models.reference.graph())) {
        check(required, Measure.OF_TENSORS);
        return compareMarks(open, models, lines);
      }
      if (!words) {
        check(required, Measure.OF_EMBEDDINGS);
        return compareEmbeddings(open, models, lines);
      }
      if (task == Task.CAUSAL_LM
          || LanguageModelEvaluator.isCausal(open, models.reference, lines)) {
        check(required, Measure.OF_LANGUAGE_MODELS);
        return compareLanguageModels(open, models, lines);
      }
      check(required, Measure.OF_TOKENS);
      return compareTokens(open, models, lines);
    }
  }

  private Map<String, Object> compareEmbeddings(
      TextTokenizer open, Models models, List<String> lines) {
    Fidelity fidelity;
    try (TextTokenizer other = candidatesTokenizer(models, open);
        Progress progress = new Progress(common.err(), "evaluating")) {
      FidelityEvaluator evaluator =
          new FidelityEvaluator(open, other == null ? open : other, pooling(models));
      fidelity = evaluator.evaluate(models.reference, models.candidate, lines, progress::update);
    }
    if (!common.json()) {
      print(fidelity);
    }
    return fidelity.toMap();
  }

  /** The tokenizer of a candidate that has another than the reference; null where it has none. */
  private TextTokenizer candidatesTokenizer(Models models, TextTokenizer open) {
    Path own = models.judged.own("tokenizer.json");
    try {
      if (own == null || tokenizer.given() || Files.mismatch(own, open.file()) < 0) {
        return null;
      }
    } catch (IOException e) {
      throw InputException.of("cannot read the tokenizer " + own, e);
    }
    common.note("the tokenizer of " + models.judged.given() + " is another: " + own);
    return new TextTokenizer(own, tokenizer.maxTokens());
  }

  private Map<String, Object> compareLanguageModels(
      TextTokenizer open, Models models, List<String> lines) {
    LanguageModelFidelity fidelity;
    try (Progress progress = new Progress(common.err(), "evaluating")) {
      fidelity =
          LanguageModelEvaluator.evaluate(
              open, models.reference, models.candidate, lines, progress::update);
    }
    if (!common.json()) {
      print(fidelity);
    }
    return fidelity.toMap();
  }

  private Map<String, Object> compareTokens(TextTokenizer open, Models models, List<String> lines) {
    common.note(
        models.original.given()
            + " sees the whole of a text: what both models say of each token is compared");
    TokenFidelity fidelity;
    try (Progress progress = new Progress(common.err(), "evaluating")) {
      fidelity =
          LanguageModelEvaluator.compareTokens(
              open, models.reference, models.candidate, lines, progress::update);
    }
    if (!common.json()) {
      print(fidelity);
    }
    return fidelity.toMap();
  }

  private Map<String, Object> compareMarks(TextTokenizer open, Models models, List<String> lines) {
    common.note(
        models.original.given()
            + " gives a number for each token: all of a text's are compared, and where the largest"
            + " is");
    List<Tokens> tokens =
        lines.stream().map(open::encode).filter(text -> text.length() > 0).toList();
    if (tokens.isEmpty()) {
      throw new InputException("none of the texts has a token");
    }
    TensorFidelity fidelity;
    Savings savings;
    try (Progress progress = new Progress(common.err(), "evaluating");
        ModelPair pair =
            new ModelPair(models.reference, models.candidate, ExampleTensors.ofTexts(tokens))) {
      fidelity = TensorEvaluator.evaluate(pair, progress::update);
      savings = pair.savings(progress::update);
    }
    Map<String, Object> values = new LinkedHashMap<>(fidelity.toMap());
    values.putAll(savings.toMap());
    if (!common.json()) {
      print(fidelity, Map.of(), savings);
    }
    return values;
  }

  /** How states of tokens are pooled, as the reference is made for; the candidate may be made for another pooling. */
  private Pooling pooling(Models models) {
    Set<String> said = new HashSet<>();
    Pooling taken =
        models.original.pooling(
            models.reference.graph(),
            pooling,
            "--pooling",
            note -> {
              said.add(note);
              common.note(note);
            });
    models.judged.pooling(
        models.candidate.graph(),
        taken,
        "--pooling",
        note -> {
          if (said.add(note)) {
            common.note(note);
          }
        });
    return taken;
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
    addSavings(table, f.savings());
    table.add(
        "batch",
        String.format(
            Locale.ROOT, "mean cosine %.4f to itself in batches of 32", f.batchCosineMean()));
    table.print(common.out());
  }

  private void print(LanguageModelFidelity f) {
    Table table = new Table("", "");
    table.add("texts", f.texts() + ", " + f.tokens() + " tokens predicted");
    table.add("perplexity", besideReference(f.perplexity(), f.referencePerplexity()));
    table.add(
        "next token", besideReference(f.accuracy(), f.referenceAccuracy()) + " of them right");
    table.add("same token", String.format(Locale.ROOT, "%.4f of places", f.agreement()));
    table.add("divergence", String.format(Locale.ROOT, "%.3g nats", f.divergence()));
    addSavings(table, f.savings());
    table.print(common.out());
  }

  private static String besideReference(Object value, Object reference) {
    return String.format(Locale.ROOT, "%.4g, the reference %.4g", value, reference);
  }

  private void print(TokenFidelity f) {
    Table table = new Table("", "");
    table.add("texts", f.texts() + ", " + f.tokens() + " tokens");
    table.add("same answer", String.format(Locale.ROOT, "%.4f of tokens", f.agreement()));
    table.add("divergence", String.format(Locale.ROOT, "%.3g nats", f.divergence()));
    addSavings(table, f.savings());
    table.print(common.out());
  }

  private void print(TensorFidelity f, Map<String, Object> byLabels, Savings savings) {
    Table outputs =
        new Table("OUTPUT", ">COSINE", ">SMALLEST", ">ERROR", ">LARGEST", ">SAME CLASS");
    for (TensorFidelity.Output o : f.outputs()) {
      outputs.add(
          o.name(),
          String.format(Locale.ROOT, "%.5f", o.cosineMean()),
          Double.isNaN(o.cosineMin()) ? "" : String.format(Locale.ROOT, "%.5f", o.cosineMin()),
          Quantity.percent(o.relativeError()),
          String.format(Locale.ROOT, "%.3g", o.largestDifference()),
          Double.isNaN(o.agreement()) ? "" : Quantity.percent(o.agreement()));
    }
    outputs.print(common.out());
    Table sums = new Table("", "");
    sums.add("examples", Integer.toString(f.examples()));
    byLabels.forEach(
        (key, value) -> {
          if (byLabels.containsKey("reference_" + key)) {
            sums.add(
                key.replace('_', ' '), besideReference(value, byLabels.get("reference_" + key)));
          }
        });
    addSavings(sums, savings);
    sums.print(common.out());
  }

  private static void addSavings(Table table, Savings s) {
    table.add("size", String.format(Locale.ROOT, "%.3f of the reference", s.sizeRatio()));
    table.add("speed", String.format(Locale.ROOT, "%.2fx the reference, one thread", s.speedup()));
  }
}
