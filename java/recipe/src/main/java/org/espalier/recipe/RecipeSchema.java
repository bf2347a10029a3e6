package org.espalier.recipe;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.recipe.SettingType.Choice;
import org.espalier.recipe.SettingType.Flag;
import org.espalier.recipe.SettingType.Group;
import org.espalier.recipe.SettingType.Key;
import org.espalier.recipe.SettingType.ListOf;
import org.espalier.recipe.SettingType.Real;
import org.espalier.recipe.SettingType.Text;
import org.espalier.recipe.SettingType.Variant;
import org.espalier.recipe.SettingType.Variants;
import org.espalier.recipe.SettingType.Whole;

/** The list of all keys of a recipe: what is checked, what is documented, and what stands by default. */
public final class RecipeSchema {
  /** Examples that are held out to validate, where a recipe does not say how many. */
  public static final int VALIDATION = 256;

  /** Examples that are held out for the report, where a recipe does not say how many. */
  public static final int EVALUATION = 400;

  private static final SettingType FILE =
      new Text("a path, or maven:GROUP:ARTIFACT:VERSION!/ENTRY");
  private static final SettingType SHARE = new Real(0, true, 1, true);
  private static final SettingType SHARE_BELOW_1 = new Real(0, true, 1, false);
  private static final SettingType WEIGHT = new Real(0, true, 1e6, true);
  private static final SettingType COUNT = new Whole(1, 100_000_000);
  private static final SettingType COUNT_OR_0 = new Whole(0, 100_000_000);
  private static final SettingType GLOBS = new ListOf(new Text("a glob over weight names"));

  /** What a run can write besides its report. */
  static final List<String> FORMS =
      List.of(
          "onnx", "onnx-float", "onnx-float16", "safetensors", "compressed-tensors", "torchscript");

  static final Group ROOT =
      new Group(
          List.of(
              optional(
                  "seed",
                  new Whole(0, Long.MAX_VALUE),
                  "1",
                  "Fixes every choice that chance makes."),
              required("model", model(), "What is compressed, and what results are compared with."),
              optional(
                  "teacher",
                  teacher(),
                  null,
                  "What training follows; by default the model itself, after a fine-tune stage as"
                      + " that left it."),
              optional(
                  "student",
                  student(),
                  null,
                  "What is trained in place of the model, which then is its teacher."),
              required("data", data(), "Texts or labelled examples."),
              required("stages", stages(), "What is done, in this order."),
              optional("export", export(), "", "What is written into the output folder."),
              optional("report", report(), "", "What report.html and report.json say."),
              optional("checkpoint", checkpoint(), "", "When the state of the run is kept.")));

  private RecipeSchema() {}

  private static Group model() {
    return new Group(
        List.of(
            required(
                "file",
                FILE,
                "The model, ONNX (.onnx), a folder of safetensors with its config.json, or, for"
                    + " labelled examples, TorchScript (.pt), which is read as a graph and is code:"
                    + " trusted files only. It is not changed. One that is int8 already is trained"
                    + " as that, on the scales that it has."),
            optional(
                "tokenizer",
                FILE,
                null,
                "The tokenizer.json of a text model; by default the one beside the model."),
            optional(
                "image-processor",
                FILE,
                null,
                "The preprocessor_config.json of a model that is shown files of images: how they"
                    + " are resized, cropped and scaled; by default the one beside the model."),
            optional(
                "config",
                FILE,
                null,
                "The config.json of the original checkpoint, for compressed-tensors; by default"
                    + " that in the model's folder."),
            optional(
                "pooling",
                new Choice(List.of("mean", "cls", "last")),
                null,
                "How token vectors become one: their mean, the first one (BGE) or the last one"
                    + " (Qwen3-Embedding); by default as the modules.json of sentence-transformers"
                    + " beside the model says, else mean."),
            optional(
                "max-tokens",
                new Whole(3, 1_000_000),
                "128",
                "Texts are cut after so many tokens, special ones included.")));
  }

  private static Group teacher() {
    return new Group(
        List.of(required("file", FILE, "A model with the same output, ONNX or such a folder.")));
  }

  private static Group student() {
    return new Group(
        List.of(
            optional(
                "file", FILE, null, "A smaller model with the same output, ONNX or such a folder."),
            optional(
                "layers",
                new Real(0, false, 1, false),
                null,
                "In place of a file: the model itself without this share of its layers, those that"
                    + " its outputs for calibration examples miss least."),
            optional(
                "channels",
                new Real(0, false, 1, false),
                null,
                "In place of a file, or behind layers: the model itself without this share of its"
                    + " hidden channels, of feed-forward blocks and between convolutions, and of"
                    + " its attention heads, refitted to what calibration saw."),
            optional(
                "allocation",
                new Choice(List.of("global", "uniform")),
                "global",
                "Of which sets of channels how many go. global: more where outputs change less, at"
                    + " the work that uniform would leave. uniform: the same share of each.")));
  }

  private static Group data() {
    return new Group(
        List.of(
            optional("texts", FILE, null, "Training texts."),
            optional(
                "format",
                new Choice(List.of("lines", "wordnet")),
                "lines",
                "lines: a UTF-8 file with a text a line, or .jsonl with an object a line that has"
                    + " one. wordnet: an artefact with WordNet's files; its glosses and examples"
                    + " are the texts."),
            optional(
                "examples",
                FILE,
                null,
                "Examples of one shape in place of texts: a safetensors file with inputs, or a"
                    + " tensor of its name for each input of the model (F64, F32, F16, BF16, I64,"
                    + " I32, U8 or BOOL, [N, …]), and, where a stage's loss has them, labels"
                    + " (integers, BOOL, F32 or F64: [N], or [N, …] for several an example; -100"
                    + " or, in floats, NaN where there is none). Of labels for tokens, none counts"
                    + " where an input attention_mask is 0. Or a .jsonl file with an object a line:"
                    + " {\"features\": [0.5, 2], \"label\": 1}, {\"inputs\": {\"user\": 17,"
                    + " \"dense\": [0.5, 2]}, …} or, for models with one output a text, {\"text\":"
                    + " \"…\", …}; \"labels\": [0, 1] for classes that do not exclude each other,"
                    + " \"values\": [0.5, 2] for numbers. For taggers {\"tokens\": [\"Angela\","
                    + " \"spoke\"], \"tags\": [\"B-PER\", \"O\"]}, words with a class or null each,"
                    + " or a .conll file with a word and its tag a line and a blank line between"
                    + " sentences. Or a .csv file: the features in the order of the inputs, then"
                    + " the label or the values. Or images: a folder with a folder for each class,"
                    + " or a .jsonl file of {\"image\": \"cats/1.jpg\", \"label\": \"cat\"}, whose"
                    + " paths start at its folder."),
            optional(
                "classes",
                new ListOf(new Text("a word")),
                null,
                "The words that labels and tags in lines are, in the order of the model's outputs:"
                    + " [ham, spam]. Of tags like [O, B-PER, I-PER] the F1 of whole entities is"
                    + " measured too. Of a folder of images the names of its folders. By default as"
                    + " id2label in the config.json beside the model has them, folders else in"
                    + " alphabetical order, where they are as many as the model tells apart."),
            optional(
                "task",
                new Choice(List.of("auto", "classification", "regression", "causal-lm")),
                "auto",
                "What labels are: classification: classes, 0 and 1 for a model with one output a"
                    + " label. regression: numbers, one for each output. causal-lm: of texts, whose"
                    + " model gives logits [texts, tokens, vocabulary], the next token. auto:"
                    + " numbers where they are floats other than 0 and 1; none for texts."),
            optional(
                "train", COUNT, null, "Train on so many of them; by default on all that are left."),
            optional(
                "validation",
                COUNT,
                Integer.toString(VALIDATION),
                "So many are held out to find the best state of a stage."),
            optional(
                "evaluation",
                COUNT,
                Integer.toString(EVALUATION),
                "So many are held out for the report."),
            optional(
                "calibration",
                COUNT,
                null,
                "So many of the training examples show what quantization, refitting and removed"
                    + " channels are fitted to. Default: 256; of texts 2048 where channels are"
                    + " removed or weights refitted."),
            optional(
                "evaluation-texts",
                FILE,
                null,
                "A UTF-8 file with a text a line for the report in place of held-out texts."),
            optional(
                "evaluation-examples",
                FILE,
                null,
                "A file, or a folder of images, with the same as examples, for the report in place"
                    + " of held-out examples: the test split of a data set."),
            optional(
                "augment",
                augment(),
                null,
                "How images change at random in training batches, each time otherwise: {flip:"
                    + " horizontal, shift: 0.1}. Those that validate, calibrate or are measured"
                    + " stay as they are.")));
  }

  private static Group augment() {
    return new Group(
        List.of(
            optional(
                "flip",
                new Choice(List.of("none", "horizontal", "vertical", "both")),
                "none",
                "Half of the images are mirrored, left and right or top and bottom; both: each for"
                    + " itself."),
            optional(
                "shift",
                SHARE_BELOW_1,
                "0",
                "They move by whole pixels, up to this share of the width to either side and of the"
                    + " height up or down."),
            optional(
                "zoom",
                SHARE,
                "0",
                "They grow or shrink, as often one as the other, by a factor of up to 1 + zoom."),
            optional(
                "rotate",
                new Real(0, true, 180, true),
                "0",
                "They turn by up to so many degrees to either side."),
            optional(
                "brightness",
                SHARE,
                "0",
                "Up to this share of the deviation of an image's own values is added or taken"
                    + " away."),
            optional(
                "contrast",
                SHARE,
                "0",
                "The distance of values to the image's mean grows or shrinks by up to this"
                    + " share.")));
  }

  private static Variants stages() {
    return new Variants(
        List.of(
            new Variant(
                "prune",
                "Sets the smallest weights to zero and keeps them there.",
                keys(pruning(), training("0", "1e-4"))),
            new Variant(
                "quantize",
                "Puts weights and activations on int8 grids, or weights alone on grids of 4 bits,"
                    + " and trains them there. Not of a model that is int8 already.",
                keys(
                    quantization(), training("0", "3e-5", " By default 3e-4 for scales of int4."))),
            new Variant(
                "distil",
                "Trains what there is against the teacher.",
                keys(adaptation(), training("1000", "1e-4", " By default 3e-3 with low-rank."))),
            new Variant(
                "fine-tune",
                "Trains what there is on the labels, and teaches the stages after it.",
                keys(adaptation(), training("1000", "1e-4", " By default 3e-3 with low-rank.")))));
  }

  private static List<Key> adaptation() {
    return List.of(
        optional(
            "low-rank",
            new Whole(0, 4096),
            "0",
            "The rank of the product of two matrices (LoRA) that is trained for each weight of a"
                + " matrix product, and added to it at the end, while the weights themselves rest:"
                + " takes the memory of the model in place of seven times as much. Biases and norms"
                + " are trained as ever, tables with train-embeddings: always. 0: weights are"
                + " trained themselves."));
  }

  private static Group export() {
    return new Group(
        List.of(
            optional(
                "formats",
                new ListOf(new Choice(FORMS)),
                "[onnx, safetensors]",
                "onnx: model-int8.onnx or model-int4.onnx, or model.onnx where no stage quantizes"
                    + " and the model is not int8 already. onnx-float: model-float.onnx."
                    + " onnx-float16: model-float16.onnx, the same for GPUs, less what float16"
                    + " would spoil."
                    + " safetensors: model.safetensors, the float weights. compressed-tensors: a"
                    + " folder in the Hugging Face layout, of what a stage has quantized, int8 or 4"
                    + " bits (these with zero points, which scales below 0 take)."
                    + " torchscript: model.pt, a module for libtorch and PyTorch; after a quantize"
                    + " stage it has the weights rounded to their grids, as float32, and float32"
                    + " activations; of a model that is int8 already activations rounded as that"
                    + " does.")));
  }

  private static Group report() {
    return new Group(
        List.of(
            optional("title", new Text("a text"), null, "The heading of the report."),
            optional(
                "each-stage",
                new Flag(),
                "true",
                "Whether ONNX Runtime measures the model after each stage too."),
            optional(
                "require",
                new ListOf(new Text("a requirement")),
                "[]",
                "What the result has to keep, else the exit code of compress is 3: measures as"
                    + " report.json names them, >= or <=, and a number or the original's own:"
                    + " [cosine_mean >= 0.99, size_ratio <= 0.3, accuracy >= reference - 0.01].")));
  }

  private static Group checkpoint() {
    return new Group(
        List.of(
            optional(
                "every-seconds",
                new Real(0, true, 86_400, true),
                "60",
                "The longest training that a killed process loses.")));
  }

  private static List<Key> pruning() {
    return List.of(
        optional("sparsity", SHARE_BELOW_1, "0.5", "The share of zeros at the end of the stage."),
        optional(
            "scope",
            new Choice(List.of("global", "tensor")),
            "global",
            "Whether the smallest weights are sought among all tensors or in each."),
        optional(
            "pattern",
            new Text("n:m, as 2:4"),
            null,
            "Keep the n largest of each m weights in place of a sparsity."),
        optional(
            "schedule",
            new Choice(List.of("one-shot", "cubic")),
            "one-shot",
            "All at once, or rising over the steps of the stage."),
        optional(
            "refit",
            new Flag(),
            "false",
            "Of a one-shot: prune what calibration misses least, and refit the weights that stay to"
                + " it, before the stage trains."),
        optional("update-every", COUNT, "10", "Steps between two prunings of a cubic schedule."),
        optional(
            "until",
            new Real(0, false, 1, true),
            "0.75",
            "The share of the steps after which a cubic schedule ends."),
        optional(
            "include",
            GLOBS,
            null,
            "Prune these weights only. Embedding tables are pruned where they are named here."),
        optional("exclude", GLOBS, null, "Leave these weights as they are."));
  }

  private static List<Key> quantization() {
    return List.of(
        optional(
            "form",
            new Choice(List.of("dynamic", "static", "int4")),
            "dynamic",
            "dynamic: activations find their range as they come. static: fixed ranges (QDQ). int4:"
                + " weights of 4 bits, activations float."),
        optional(
            "block",
            new Whole(16, 256),
            "32",
            "Input channels that share a scale of int4: 16, 32, 64, 128 or 256."),
        optional(
            "size",
            new Real(0, false, 1, false),
            null,
            "Of int4 the share of the bytes of the float model, or of the student where there is"
                + " one, that the result may take: the weights whose 4 bits change the outputs most"
                + " have 8, as many as fit. By default all have 4."),
        optional(
            "reduce-range",
            new Flag(),
            "false",
            "Weights of 7 bits, for processors whose 8-bit products saturate."),
        optional(
            "unsigned-weights",
            new Flag(),
            "false",
            "Weights of uint8 about 128 instead of int8: exact on processors whose 8-bit products"
                + " saturate, a third slower on others."),
        optional("embeddings", new Flag(), "true", "Whether embedding tables are quantized."),
        optional(
            "fit",
            new Flag(),
            "true",
            "Whether calibration evens out activations and rounds weights with compensation"
                + " first."),
        optional(
            "clip",
            new Text("auto, minmax, mse or percentile:P"),
            "auto",
            "How static ranges follow from calibration. auto: of these the one that costs the"
                + " outputs least, where data.examples are fitted; else mse."),
        optional(
            "observer-momentum",
            SHARE,
            "0",
            "How far a step moves a static range towards the batch's; 0 keeps calibration's."),
        optional(
            "freeze-observers-at",
            SHARE,
            "0.5",
            "The share of the steps after which static ranges stay as they are."),
        optional(
            "learn-scales",
            new Flag(),
            null,
            "Whether weight scales are trained: with 8 bits beside the weights (LSQ; false by"
                + " default), with int4 in their place (true by default)."),
        optional(
            "learn-ranges",
            new Flag(),
            "false",
            "Whether static ranges are trained too (LSQ), once they no longer follow batches."),
        optional("include", GLOBS, null, "Quantize these weights only."),
        optional("exclude", GLOBS, null, "Leave these weights as they are."));
  }

  private static List<Key> training(String steps, String rate) {
    return training(steps, rate, "");
  }

  private static List<Key> training(String steps, String rate, String more) {
    return List.of(
        optional(
            "steps",
            COUNT_OR_0,
            steps,
            "Optimizer steps; 0 for no training or where epochs say it."),
        optional(
            "epochs",
            new Real(0, true, 1e6, true),
            "0",
            "Passes over the examples in place of steps."),
        optional("batch", new Whole(1, 65_536), "32", "Examples a step."),
        optional("optimizer", new Choice(List.of("adamw", "sgd")), "adamw", "The update rule."),
        optional("learning-rate", new Real(0, true, 100, true), rate, "At its highest." + more),
        optional(
            "rate-schedule",
            new Choice(List.of("constant", "linear", "cosine")),
            "cosine",
            "The course of the learning rate after the warm-up."),
        optional(
            "warmup", SHARE_BELOW_1, "0.05", "The share of the steps over which the rate rises."),
        optional(
            "last-rate",
            SHARE,
            "0",
            "The share of the rate that its course reaches one step after the last."),
        optional("weight-decay", new Real(0, true, 100, true), "0", "Of the optimizer."),
        optional("momentum", SHARE_BELOW_1, "0.9", "Of sgd."),
        optional("nesterov", new Flag(), "false", "Of sgd."),
        optional("beta1", SHARE_BELOW_1, "0.9", "Of adamw."),
        optional("beta2", SHARE_BELOW_1, "0.999", "Of adamw."),
        optional("epsilon", new Real(0, false, 1, true), "1e-8", "Of adamw."),
        optional(
            "max-norm",
            new Real(0, true, 1e6, true),
            "0",
            "Gradients are cut to this norm; 0 for none."),
        optional(
            "train-embeddings",
            new ListOf(new Text("auto, always, never or a glob over names of tables")),
            "auto",
            "Which embedding tables are trained, which takes a gradient and the optimizer's state"
                + " of their size. auto: all where the loss has labels or the teacher is another"
                + " model. A table that is the last product too is trained always."),
        optional(
            "validate-every",
            COUNT_OR_0,
            "0",
            "Steps between two looks at the validation examples; 0 for start and end only."),
        optional(
            "loss",
            loss(),
            null,
            "What is minimised; by default embedding and hidden states for texts, logits at"
                + " temperature 1 for causal-lm, half labels and half logits for classes, half"
                + " labels and half output for numbers, output for examples without labels; labels"
                + " alone in a fine-tune stage."));
  }

  private static Group loss() {
    return new Group(
        List.of(
            optional("embedding", WEIGHT, "0", "Of 1 - cosine to the teacher's embedding (texts)."),
            optional(
                "similarity",
                WEIGHT,
                "0",
                "Of the divergence of the similarities within a batch (texts)."),
            optional(
                "similarity-temperature",
                new Real(0, false, 1e6, true),
                "0.05",
                "Similarities are divided by it."),
            optional("hidden", WEIGHT, "0", "Of the squared error of the hidden states (texts)."),
            optional(
                "labels",
                WEIGHT,
                "0",
                "Of the cross entropy with the labels (classes, causal-lm) or the mean"
                    + " squared error to them as a share of their variance (numbers)."),
            optional(
                "logits",
                WEIGHT,
                "0",
                "Of the divergence from the teacher's logits (classes, causal-lm)."),
            optional("temperature", new Real(0, false, 1e6, true), "2", "Of the logits."),
            optional(
                "bound",
                WEIGHT,
                "0",
                "Of what exceeds the teacher's logits, squared (classes, causal-lm)."),
            optional(
                "output",
                WEIGHT,
                "0",
                "Of the squared error of the first output, of any shape, to the teacher's"
                    + " (numbers, and data.examples without labels).")));
  }

  private static List<Key> keys(List<Key> first, List<Key> second) {
    List<Key> all = new ArrayList<>();
    all.add(
        optional(
            "name",
            new Text("a word"),
            null,
            "What reports and --set call the stage; by default its kind."));
    all.addAll(first);
    all.addAll(second);
    return List.copyOf(all);
  }

  /** All keys with what they take, for people. */
  public static String describe() {
    return SchemaText.of(ROOT);
  }

  /** The same as a JSON Schema, draft 2020-12. */
  public static ObjectNode toJsonSchema() {
    return JsonSchema.of(ROOT);
  }

  /**
   * A recipe to start from: one stage, all other keys as comments.
   *
   * @param model as the recipe names it
   * @param kind of the data: texts or examples
   * @param data as the recipe names them
   * @param stage the kind of the stage
   * @param more values of other keys, by {@code data.validation} and the like; of stages, those of this one alone
   */
  public static String template(
      String model, String kind, String data, String stage, Map<String, String> more) {
    return RecipeTemplate.of(model, kind, data, stage, more);
  }

  private static Key required(String name, SettingType type, String description) {
    return new Key(name, type, null, true, description);
  }

  private static Key optional(String name, SettingType type, String fallback, String description) {
    return new Key(name, type, fallback, false, description);
  }
}
