package org.espalier.recipe;

import java.util.List;
import java.util.Locale;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.compress.Glob;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.op.MagnitudePrune;
import org.espalier.train.Objective;
import org.espalier.train.Optimizer;
import org.espalier.train.Pruning;
import org.espalier.train.Quantization;
import org.espalier.train.Stage;
import org.espalier.train.Training;

/** Reads what a stage of a recipe does. */
final class StageReader {
  /** The smallest batch for similarity, which compares a text with several others. */
  private static final int LEAST_SIMILAR = 3;

  /** The default learning rate where scales of int4 are trained, each of which moves a whole block of weights. */
  private static final double RATE_OF_SCALES = 3e-4;

  /** The default learning rate of matrices of low rank: what a step does to an output does not grow with the inputs. */
  private static final double RATE_OF_LOW_RANK = 3e-3;

  /** What stages can learn from. */
  enum Learned {
    /** Examples of tensors, with or without labels. */
    EXAMPLES,
    /** Texts, by the vectors that an encoder makes of them. */
    EMBEDDED,
    /** Texts, by the token that follows each of their tokens. */
    CAUSAL
  }

  private final Settings s;
  private final Learned learned;

  private StageReader(Settings stage, Learned learned) {
    this.s = stage;
    this.learned = learned;
  }

  /**
   * Reads a stage.
   *
   * @throws InputException where keys contradict each other or the data, naming the key and its line
   */
  static Stage read(Settings stage, Learned learned) {
    return new StageReader(stage, learned).stage();
  }

  private Stage stage() {
    try {
      Training training = training();
      return switch (s.text("kind")) {
        case "prune" -> new Stage.Prune(s.text("name"), pruning(), training);
        case "quantize" -> new Stage.Quantize(s.text("name"), quantization(), training);
        default ->
            new Stage.Train(
                s.text("name"), training, s.text("kind").equals("fine-tune"), s.small("low-rank"));
      };
    } catch (IllegalArgumentException e) {
      throw new InputException(s.place() + ": " + s.path() + ": " + e.getMessage(), e);
    }
  }

  private Training training() {
    double epochs = s.real("epochs");
    long steps = epochs > 0 && !s.given("steps") ? 0 : s.whole("steps");
    Training.Schedule schedule =
        new Training.Schedule(
            Training.Schedule.Shape.valueOf(s.text("rate-schedule").toUpperCase(Locale.ROOT)),
            s.real("warmup"),
            s.real("last-rate"));
    return new Training(
        steps,
        epochs,
        s.small("batch"),
        optimizer(),
        schedule,
        objective(),
        s.small("validate-every"),
        embeddings());
  }

  private Optimizer optimizer() {
    if (s.text("optimizer").equals("sgd")) {
      refuse(List.of("beta1", "beta2", "epsilon"), "it is for optimizer: adamw");
      return new Optimizer.Sgd(
          learningRate(),
          s.real("momentum"),
          s.real("weight-decay"),
          s.flag("nesterov"),
          s.real("max-norm"));
    }
    refuse(List.of("momentum", "nesterov"), "it is for optimizer: sgd");
    return new Optimizer.AdamW(
        learningRate(),
        s.real("beta1"),
        s.real("beta2"),
        s.real("epsilon"),
        s.real("weight-decay"),
        s.real("max-norm"));
  }

  private double learningRate() {
    if (s.given("learning-rate")) {
      return s.real("learning-rate");
    }
    boolean scales =
        s.text("kind").equals("quantize") && form() == Quantization.Form.INT4 && learnsScales();
    return scales
        ? RATE_OF_SCALES
        : s.has("low-rank") && s.small("low-rank") > 0 ? RATE_OF_LOW_RANK : s.real("learning-rate");
  }

  private Training.Embeddings embeddings() {
    List<String> given = s.texts("train-embeddings");
    switch (given.size() == 1 ? given.get(0) : "") {
      case "auto":
        return Training.Embeddings.AUTO;
      case "always":
        return Training.Embeddings.ALWAYS;
      case "never":
        return Training.Embeddings.NEVER;
      default:
        try {
          return Training.Embeddings.named(given.stream().map(Glob::parse).toList());
        } catch (InputException | IllegalArgumentException e) {
          throw s.wrong("train-embeddings", e.getMessage());
        }
    }
  }

  private Objective objective() {
    boolean fineTune = s.text("kind").equals("fine-tune");
    if (learned == Learned.EMBEDDED && fineTune) {
      throw s.wrong(
          "kind",
          "fine-tune trains on labels, and texts have none but the tokens that follow, for"
              + " data.task: causal-lm; distil needs none");
    }
    Settings loss = s.group("loss");
    if (loss == null) {
      return fineTune ? Objective.ofLabels() : usualObjective();
    }
    try {
      return givenObjective(loss);
    } catch (IllegalArgumentException e) {
      throw s.wrong("loss", e.getMessage());
    }
  }

  private Objective usualObjective() {
    return switch (learned) {
      case EXAMPLES -> Objective.ofLogits(0.5, 2);
      case EMBEDDED -> Objective.ofEmbeddings(1, 0, 1);
      case CAUSAL -> Objective.ofLogits(0, 1);
    };
  }

  private Objective givenObjective(Settings loss) {
    Objective objective =
        new Objective(
            loss.real("labels"),
            loss.real("logits"),
            loss.real("temperature"),
            loss.real("bound"),
            loss.real("output"),
            loss.real("embedding"),
            loss.real("similarity"),
            loss.real("similarity-temperature"),
            loss.real("hidden"));
    if (objective.similarity() > 0 && s.whole("batch") < LEAST_SIMILAR) {
      throw s.wrong(
          "batch",
          "similarity compares a text with the others of its batch; "
              + LEAST_SIMILAR
              + " or more are needed");
    }
    String fitting =
        switch (learned) {
          case EXAMPLES ->
              "embedding, similarity and hidden need texts; for data.examples there are labels,"
                  + " logits, bound and output";
          case EMBEDDED ->
              "labels, logits, bound and output need data.examples; for texts there are"
                  + " embedding, similarity and hidden, and with data.task: causal-lm labels,"
                  + " logits and bound";
          case CAUSAL -> "for data.task: causal-lm there are labels, logits and bound";
        };
    boolean fits =
        objective.isForEmbeddings()
            ? learned == Learned.EMBEDDED
            : learned == Learned.EXAMPLES || learned == Learned.CAUSAL && objective.output() == 0;
    if (!fits) {
      throw s.wrong("loss", fitting);
    }
    return objective;
  }

  private Pruning pruning() {
    if (s.text("schedule").equals("one-shot")) {
      refuse(List.of("update-every", "until"), "it is for schedule: cubic");
    } else if (s.flag("refit")) {
      throw s.wrong("refit", "it is for schedule: one-shot");
    }
    Pruning.Pattern pattern = null;
    if (s.given("pattern")) {
      try {
        MagnitudePrune.Pattern parsed = MagnitudePrune.Pattern.parse(s.text("pattern"));
        pattern = new Pruning.Pattern(parsed.keep(), parsed.group());
      } catch (InputException | IllegalArgumentException e) {
        throw s.wrong("pattern", e.getMessage());
      }
      if (s.given("sparsity")) {
        throw s.wrong(
            "sparsity", "the pattern says how many weights are kept; leave one of them out");
      }
    }
    return new Pruning(
        s.real("sparsity"),
        s.text("scope").equals("tensor") ? Pruning.Scope.TENSOR : Pruning.Scope.GLOBAL,
        pattern,
        s.text("schedule").equals("cubic") ? Pruning.Schedule.CUBIC : Pruning.Schedule.ONE_SHOT,
        s.small("update-every"),
        s.real("until"),
        names(),
        s.given("include"),
        s.flag("refit"));
  }

  private Quantization.Form form() {
    return Quantization.Form.valueOf(s.text("form").toUpperCase(Locale.ROOT));
  }

  private boolean learnsScales() {
    return s.given("learn-scales") ? s.flag("learn-scales") : form() == Quantization.Form.INT4;
  }

  private Quantization quantization() {
    Quantization.Form form = form();
    if (form != Quantization.Form.STATIC) {
      refuse(
          List.of("clip", "observer-momentum", "freeze-observers-at", "learn-ranges"),
          "it is for form: static");
    }
    if (form == Quantization.Form.INT4) {
      refuse(List.of("reduce-range", "unsigned-weights"), "it is for 8 bits");
      try {
        BlockQuantizer.requireBlock(s.small("block"));
      } catch (InputException e) {
        throw s.wrong("block", e.getMessage());
      }
      if (s.given("size") && !s.flag("fit")) {
        throw s.wrong(
            "size", "which weights it gives 8 bits calibration tells; fit: true is needed");
      }
    } else {
      refuse(List.of("block", "size"), "it is for form: int4");
    }
    Clipping clipping;
    try {
      clipping = s.text("clip").equals("auto") ? null : Clipping.parse(s.text("clip"));
    } catch (InputException e) {
      throw s.wrong("clip", e.getMessage() + "; auto is right too");
    }
    return new Quantization(
        form,
        new Quantization.Weights(
            integers(),
            s.small("block"),
            s.given("size") ? s.real("size") : 0,
            s.flag("embeddings"),
            learnsScales()),
        new Quantization.Ranges(
            clipping,
            s.real("observer-momentum"),
            s.real("freeze-observers-at"),
            s.flag("learn-ranges")),
        s.flag("fit"),
        names());
  }

  private WeightIntegers integers() {
    if (s.flag("reduce-range") && s.flag("unsigned-weights")) {
      throw s.wrong("unsigned-weights", "weights of 7 bits, which reduce-range makes, have a sign");
    }
    return s.flag("reduce-range")
        ? WeightIntegers.INT7
        : s.flag("unsigned-weights") ? WeightIntegers.UINT8 : WeightIntegers.INT8;
  }

  /** Refuses keys that have no effect beside the others. */
  private void refuse(List<String> keys, String why) {
    for (String key : keys) {
      if (s.given(key)) {
        throw s.wrong(key, why);
      }
    }
  }

  private Predicate<String> names() {
    try {
      List<Glob> include = s.texts("include").stream().map(Glob::parse).toList();
      List<Glob> exclude = s.texts("exclude").stream().map(Glob::parse).toList();
      return new NameGlobs(s, include, exclude);
    } catch (InputException e) {
      throw s.wrong("include", e.getMessage());
    }
  }
}
