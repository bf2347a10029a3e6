package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.compress.onnx.FloatWeights;
import org.espalier.evaluate.LanguageModelEvaluator;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.recipe.LineExamples;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeSchema;
import org.espalier.source.ModelSource;
import org.espalier.train.TrainedForm;
import org.espalier.transformers.TransformersModel;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Writes a recipe to start from. */
@Command(
    name = "init",
    description = {
      "Writes a recipe that quantizes a model and trains it to follow the original, or trains one"
          + " that is int8 already on new examples, with every other key as a comment."
    },
    footer = {
      "",
      "Examples:",
      "  espalier recipe init -o recipe.yaml --model model.onnx --texts texts.txt",
      "  espalier recipe init -o recipe.yaml --model checkpoint/ --texts texts.txt",
      "  espalier recipe init -o recipe.yaml --model resnet.onnx --examples photos/train",
    })
final class RecipeInit implements Callable<Integer> {
  /** Of fewer examples a fifth each is held out to validate and to evaluate, not what is usual. */
  private static final long FEW = 2L * (RecipeSchema.VALIDATION + RecipeSchema.EVALUATION);

  @Mixin private CommonOptions common;

  @Option(
      names = {"-o", "--output"},
      paramLabel = "RECIPE",
      required = true,
      description = "The file to write; it must not exist.")
  private String output;

  @Option(
      names = "--model",
      paramLabel = "MODEL",
      defaultValue = "model.onnx",
      description =
          "The model, ONNX or a folder of safetensors with its config.json: a path from the"
              + " recipe's folder, or maven:… Default: ${DEFAULT-VALUE}.")
  private String model;

  /** What is trained on. */
  private static final class Data {
    @Option(
        names = "--texts",
        paramLabel = "TEXTS",
        description = "A UTF-8 file with a text a line. Default: texts.txt.")
    private String texts;

    @Option(
        names = "--examples",
        paramLabel = "EXAMPLES",
        description =
            "Examples in place of texts, for models of any other kind: a .safetensors file; or a"
                + " .jsonl file of texts, words or numbers with labels, a .conll file of words with"
                + " tags, or a .csv file of numbers; or a folder of images with a folder for each"
                + " class.")
    private String examples;
  }

  @ArgGroup private Data data;

  /** Whether the model is int8 already. */
  private boolean int8;

  /** Whether it is a causal language model. */
  private boolean predicts;

  @Override
  public Integer call() {
    Path target = ModelSource.path(output);
    if (Files.exists(target)) {
      throw new InputException(target + " exists; name another file");
    }
    boolean examples = data != null && data.examples != null;
    String given = examples ? data.examples : data == null ? "texts.txt" : data.texts;
    noteMissing(target, model);
    noteMissing(target, given);
    OnnxModel onnx = model(target);
    Path examplesFile = examples ? target.resolveSibling(given) : null;
    String stage = stage(onnx, examplesFile);
    String text =
        RecipeSchema.template(
            model,
            examples ? "examples" : "texts",
            given,
            stage,
            examples ? fittingExamples(onnx, examplesFile) : fittingTexts(onnx, stage));
    try (AtomicFile made = AtomicFile.create(target)) {
      made.write(ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8)));
      made.commit();
    }
    if (common.json()) {
      common.print(JsonNodeFactory.instance.objectNode().put("recipe", output));
    } else {
      common
          .out()
          .println("wrote " + target + "; 'espalier recipe check " + target + "' checks it");
    }
    return 0;
  }

  /** What is not there says nothing of what fits it. */
  private void noteMissing(Path recipe, String given) {
    Path file = given.startsWith("maven:") ? null : recipe.resolveSibling(given);
    if (file != null && !Files.exists(file)) {
      common.note(
          "there is no "
              + file
              + " yet, where the recipe looks for it (paths in a recipe start at its folder); what"
              + " is written may not fit it");
    }
  }

  /** The model, where it is there; else null. */
  private OnnxModel model(Path recipe) {
    Path file = model.startsWith("maven:") ? null : recipe.resolveSibling(model);
    boolean isFile = file != null && model.endsWith(".onnx") && Files.isRegularFile(file);
    if (!isFile && (file == null || !TransformersModel.isOne(file))) {
      return null;
    }
    ModelSource source = ModelSource.find(file.toString(), common::note);
    OnnxModel onnx = source.onnx(common::note);
    predicts = LanguageModelEvaluator.isOne(onnx) && predicts(source);
    int8 = TrainedForm.of(onnx).isInt8();
    Optional<String> quantized = FloatWeights.quantized(onnx);
    if (!int8
        && quantized.isPresent()
        && OnnxWeights.of(onnx).stream().noneMatch(RecipeInit::isProduct)) {
      throw new InputException(
          file
              + " has no float weights of products or convolutions: "
              + quantized.get()
              + "; a recipe takes the model that it was made of");
    }
    return onnx;
  }

  /** Whether logits do not depend on what follows; where the model does not run so, nobody knows. */
  private static boolean predicts(ModelSource source) {
    try {
      return LanguageModelEvaluator.isCausal(source.measured(text -> {}));
    } catch (InputException e) {
      return true;
    }
  }

  private static boolean isProduct(OnnxWeight weight) {
    return switch (weight.uses().get(0).kind()) {
      case CONV, MATMUL, GEMM -> true;
      default -> false;
    };
  }

  /**
   * What is done to the model: one that is int8 already learns from labels or, where there are none, follows a teacher.
   *
   * @param examples null where there are texts
   */
  private String stage(OnnxModel onnx, Path examples) {
    if (!int8) {
      return "quantize";
    }
    boolean labelled = examples == null ? predicts : hasLabels(examples);
    if (!labelled) {
      common.note(
          "the model is int8 already, and there are no labels: teacher: {file: …} names what it"
              + " shall follow, its float original say; by default it follows itself");
    }
    return labelled ? "fine-tune" : "distil";
  }

  /** Whether examples have labels, as far as the names of tensors tell. */
  private static boolean hasLabels(Path examples) {
    if (!Files.isRegularFile(examples) || LineExamples.areIn(examples)) {
      return true;
    }
    try (SafetensorsFile open = SafetensorsFile.open(examples)) {
      return open.tensors().stream().anyMatch(tensor -> tensor.name().equals("labels"));
    }
  }

  /** What the model asks for: a language model learns the next token, and an embedding has no states of tokens. */
  private Map<String, String> fittingTexts(OnnxModel onnx, String stage) {
    if (predicts) {
      return Map.of("data.task", Recipe.Task.CAUSAL_LM.key());
    }
    boolean embeds =
        onnx != null && TransformersModel.EMBEDDINGS.contains(onnx.mainOutput().getName());
    return embeds ? Map.of(stage + ".loss", "{embedding: 1}") : Map.of();
  }

  /**
   * What the files ask for, where they are there: static ranges for convolutions, and fewer examples
   * held out of few.
   */
  private Map<String, String> fittingExamples(OnnxModel onnx, Path examples) {
    Map<String, String> settings = new HashMap<>();
    if (onnx != null && !int8) {
      long convolved = 0;
      long others = 0;
      for (OnnxWeight weight : OnnxWeights.of(onnx)) {
        long elements = onnx.constant(weight.value()).elements();
        switch (weight.uses().get(0).kind()) {
          case CONV -> convolved += elements;
          case MATMUL, GEMM -> others += elements;
          default -> {}
        }
      }
      if (convolved > others) {
        settings.put("quantize.form", "static");
      }
    }
    if (Files.exists(examples)) {
      long count = count(examples);
      if (count < FEW) {
        String share = Long.toString(Math.max(1, count / 5));
        settings.put("data.validation", share);
        settings.put("data.evaluation", share);
      }
    }
    return settings;
  }

  private static long count(Path examples) {
    if (LineExamples.areIn(examples)) {
      return LineExamples.unlabelled(examples, Map.of()).lines().size();
    }
    try (SafetensorsFile open = SafetensorsFile.open(examples)) {
      return open.tensors().stream()
          .filter(tensor -> tensor.rank() > 0)
          .mapToLong(tensor -> tensor.shape().get(0))
          .min()
          .orElse(0);
    }
  }
}
