package org.espalier.online;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.InputFile;
import org.espalier.online.privacy.Privacy;
import org.espalier.op.Activation;

/**
 * The settings of online learning as YAML. Every key is checked; an error names line and key.
 *
 * <pre>
 * model: {features: 384, outputs: 2}    # a linear model of zeros, where no model is given; or with layers between,
 *                                       # hidden: [64, 32] and activation: relu, leaky-relu, sigmoid, tanh;
 *                                       # for a model of several inputs, inputs: {user: 1, dense: 13} in place of features
 * classes: [ham, spam]                  # what labels are called, in their order; they are numbers otherwise
 * loss: cross-entropy                   # binary, squared, {huber: 1}, {distillation: {alpha, temperature, beta}}
 * learning-rate: 0.1                    # {rate, half-life, power} or {rate, end, warmup, period}
 * momentum: 0.9
 * weight-decay: 0
 * adamw: {beta1: 0.9, beta2: 0.999, epsilon: 1e-8}  # instead of momentum
 * batch: 32
 * publish-every: 1                      # steps
 * replay: {capacity: 1000, per-step: 8}
 * averaging: 0.99
 * only: [bias]
 * keep-zeros: true
 * int8: true
 * sparse-rows: auto                     # always, never
 * constraint: {target: one-hot, factor: 1, offset: 0, rho: 1, augmented: true}  # identity, batch-maximum
 * guard:
 *   norm: {factor: 5, warmup: 30, clip: true, limit: 100}   # limit: from the first step on
 *   spike: {factor: 3, warmup: 30, in-a-row: 20}
 *   quality: {hold-every: 5, window: 200, check-every: 200, tolerance: 0.1}
 * drift: {delta: 0.002, slack: 0.005, threshold: 50, action: report}            # restart, reset
 * privacy: {epsilon: 8, delta: 1e-5, clip: 1, contributions: 1, max-epsilon: 16} # or noise for epsilon
 * window: 1000
 * fade: 0.995
 * seed: 1
 * </pre>
 *
 * @param settings how to learn
 * @param inputs how many values each input of the model takes, or null where it or what makes them says how many there are
 * @param outputs of the model, or null
 * @param classes what labels are called
 * @param hidden widths of the layers of a new model between these two
 * @param activation behind each of them
 * @param text what was parsed
 */
public record OnlineRecipe(
    OnlineSettings settings,
    InputSizes inputs,
    Integer outputs,
    ClassNames classes,
    List<Integer> hidden,
    Activation activation,
    String text) {
  private static final int MAX_CHARACTERS = 1 << 20;

  private static final int MOST_VALUES = 1 << 28;

  /**
   * Reads a recipe.
   *
   * @throws InputException if the file cannot be read, or as {@link #parse} does
   */
  public static OnlineRecipe read(Path file) {
    try {
      return parse(InputFile.text(file, MAX_CHARACTERS), file.toString());
    } catch (CharacterCodingException e) {
      throw new InputException(file + " is not UTF-8 text", e);
    } catch (IOException e) {
      throw InputException.of("cannot read the recipe " + file, e);
    }
  }

  /**
   * Parses a recipe.
   *
   * @param where what to call it in messages
   * @throws InputException that names line and key
   */
  public static OnlineRecipe parse(String text, String where) {
    if (text.length() > MAX_CHARACTERS) {
      throw new InputException(where + " has more than " + MAX_CHARACTERS + " characters");
    }
    RecipeSection top = RecipeSection.of(text, where);
    Loss loss = loss(top);
    OnlineSettings.Builder builder =
        OnlineSettings.builder(loss, rate(top))
            .momentum(top.share("momentum", 0))
            .weightDecay(decay(top))
            .batch(top.count("batch", 32, OnlineSettings.MOST_BATCH))
            .publishEvery(top.count("publish-every", 1, Integer.MAX_VALUE))
            .averaging(top.share("averaging", 0))
            .only(new HashSet<>(top.texts("only")))
            .keepZeros(top.flag("keep-zeros", false))
            .int8(top.flag("int8", false))
            .sparseRows(top.choice("sparse-rows", OnlineSettings.SparseRows.class, "auto"))
            .window(top.count("window", 1000, OnlineSettings.MOST_WINDOW))
            .fade(fade(top))
            .seed(top.wide("seed", 1))
            .guard(guard(top));
    addOptional(builder, top);
    RecipeSection model = top.section("model");
    InputSizes inputs = model == null ? null : inputs(model);
    ClassNames classes = classes(top, loss);
    Integer outputs = model == null ? null : (Integer) outputs(model, loss, classes);
    List<Integer> hidden = model == null ? List.of() : model.integers("hidden");
    Activation activation = model == null ? Activation.RELU : activation(model, hidden);
    if (model != null) {
      checkSizes(model, inputs == null ? InputSizes.ofOnly(1, "") : inputs, hidden, outputs);
    }
    top.finish();
    return new OnlineRecipe(
        top.checked(builder::build), inputs, outputs, classes, hidden, activation, text);
  }

  private static double decay(RecipeSection top) {
    double decay = top.number("weight-decay", 0);
    if (!(decay >= 0 && decay <= Float.MAX_VALUE)) {
      throw top.wrongKey("weight-decay", "is " + decay + "; 0 or more is right");
    }
    return decay;
  }

  private static double fade(RecipeSection top) {
    double fade = top.share("fade", 0.995);
    if (fade == 0) {
      throw top.wrongKey("fade", "is 0; above 0 and below 1 is right");
    }
    return fade;
  }

  private static ClassNames classes(RecipeSection top, Loss loss) {
    if (!top.has("classes")) {
      return ClassNames.NONE;
    }
    if (!loss.isForClasses()) {
      throw top.wrongKey("classes", "are named, and the loss is for outcomes that are values");
    }
    try {
      return new ClassNames(top.texts("classes"));
    } catch (IllegalArgumentException e) {
      throw top.wrongKey("classes", "are wrong: " + e.getMessage());
    }
  }

  /** How many outputs a model for named classes has. */
  private static int outputs(Loss loss, ClassNames classes) {
    return loss instanceof Loss.Binary ? 1 : classes.names().size();
  }

  private static int outputs(RecipeSection model, Loss loss, ClassNames classes) {
    if (!classes.isEmpty() && !model.has("outputs")) {
      return outputs(loss, classes);
    }
    int outputs = model.integer("outputs");
    if (!classes.isEmpty() && Math.max(2, outputs) != classes.names().size()) {
      throw model.wrongKey(
          "outputs", "is " + outputs + ", and " + classes.names().size() + " classes are named");
    }
    return outputs;
  }

  private static InputSizes inputs(RecipeSection model) {
    if (!model.has("inputs") && !model.has("features")) {
      return null;
    }
    if (!model.has("inputs")) {
      return InputSizes.ofOnly(model.integer("features"), model.place("features"));
    }
    if (model.has("features")) {
      throw model.wrongKey("features", "is beside inputs; one of the two is right");
    }
    for (String key : List.of("hidden", "activation")) {
      if (model.has(key)) {
        throw model.wrongKey(key, "is of a new model, which has features and no inputs");
      }
    }
    RecipeSection inputs = model.section("inputs");
    Map<String, Integer> sizes = new LinkedHashMap<>();
    Map<String, String> places = new LinkedHashMap<>();
    for (String name : inputs.keys()) {
      sizes.put(name, inputs.integer(name));
      places.put(name, inputs.place(name));
      if (sizes.get(name) < 1 || sizes.get(name) > MOST_VALUES) {
        throw inputs.wrongKey(
            name, "is " + sizes.get(name) + "; 1 to " + MOST_VALUES + " is right");
      }
    }
    if (sizes.isEmpty()) {
      throw model.wrongKey(
          "inputs", "names no input; {user: 1, dense: 13}, for instance, is right");
    }
    return InputSizes.ofNamed(sizes, model.place("inputs"), places);
  }

  /**
   * The recipe for examples of so many features, which it need not say where something makes them.
   *
   * @throws InputException where it says another number
   */
  public OnlineRecipe withFeatures(int made) {
    if (inputs != null && (inputs.isNamed() || inputs.features() != made)) {
      throw new InputException(
          "the recipe says model: {"
              + (inputs.isNamed() ? "inputs: …" : "features: " + inputs.features())
              + "}; the encoder makes "
              + made
              + " features of a text, which need not be said");
    }
    Integer wanted =
        outputs == null && !classes.isEmpty()
            ? (Integer) outputs(settings.loss(), classes)
            : outputs;
    return wanted == null
        ? this
        : new OnlineRecipe(
            settings, InputSizes.ofOnly(made, "model"), wanted, classes, hidden, activation, text);
  }

  private static Activation activation(RecipeSection model, List<Integer> hidden) {
    if (hidden.isEmpty() && model.has("activation")) {
      throw model.wrongKey("activation", "is of the layers in hidden: […], which is missing");
    }
    String name = model.text("activation", "relu");
    return switch (name) {
      case "relu" -> Activation.RELU;
      case "leaky-relu" -> Activation.leakyRelu(0.01f);
      case "sigmoid" -> Activation.SIGMOID;
      case "tanh" -> Activation.TANH;
      default ->
          throw model.wrongKey(
              "activation", "is '" + name + "'; relu, leaky-relu, sigmoid or tanh is right");
    };
  }

  private static void checkSizes(
      RecipeSection model, InputSizes inputs, List<Integer> hidden, int outputs) {
    List<Long> widths = new ArrayList<>();
    widths.add(inputs.features());
    hidden.forEach(width -> widths.add((long) width));
    widths.add((long) outputs);
    for (int l = 1; l < widths.size(); l++) {
      long in = widths.get(l - 1);
      long out = widths.get(l);
      if (in < 1 || out < 1 || in > MOST_VALUES / out) {
        throw model.wrong(
            "features and outputs are "
                + inputs.features()
                + " and "
                + outputs
                + (hidden.isEmpty()
                    ? "; both from 1, and their product to "
                    : ", hidden is "
                        + hidden
                        + "; all from 1, and the product of two that follow each other to ")
                + MOST_VALUES
                + ", are right");
      }
    }
  }

  /**
   * How many features a new model takes.
   *
   * @throws InputException where the recipe does not say of what sizes one is
   */
  public int features() {
    if (inputs == null || inputs.isNamed()) {
      throw new InputException(
          "there is no model: give --model, or say model: {features: …, outputs: …} in the recipe");
    }
    return Math.toIntExact(inputs.features());
  }

  /** The sections that there need not be. */
  private static void addOptional(OnlineSettings.Builder builder, RecipeSection top) {
    RecipeSection adamW = top.section("adamw");
    if (adamW != null) {
      builder.adamW(
          adamW.checked(
              () ->
                  new OnlineSettings.AdamW(
                      adamW.number("beta1", OnlineSettings.AdamW.DEFAULTS.beta1()),
                      adamW.number("beta2", OnlineSettings.AdamW.DEFAULTS.beta2()),
                      adamW.number("epsilon", OnlineSettings.AdamW.DEFAULTS.epsilon()))));
    }
    RecipeSection replay = top.section("replay");
    if (replay != null) {
      builder.replay(
          replay.checked(
              () ->
                  new OnlineSettings.Replay(
                      replay.integer("capacity"), replay.integer("per-step"))));
    }
    RecipeSection constraint = top.section("constraint");
    if (constraint != null) {
      builder.constraint(constraint.checked(() -> constraint(constraint)));
    }
    RecipeSection drift = top.section("drift");
    if (drift != null) {
      builder.drift(
          drift.checked(
              () ->
                  new OnlineSettings.Drift(
                      drift.number("delta", 0.002),
                      drift.number("slack", 0.005),
                      drift.number("threshold", 50),
                      drift.choice("action", OnlineSettings.Drift.Action.class, "report"))));
    }
    RecipeSection privacy = top.section("privacy");
    if (privacy != null) {
      builder.privacy(privacy.checked(() -> privacy(privacy)));
    }
  }

  private static Loss loss(RecipeSection top) {
    String name = top.textOrNull("loss");
    if (name != null) {
      return switch (name) {
        case "cross-entropy" -> new Loss.CrossEntropy();
        case "binary" -> new Loss.Binary();
        case "squared" -> new Loss.Squared();
        default ->
            throw top.wrongKey(
                "loss",
                "is '"
                    + name
                    + "'; cross-entropy, binary, squared, {huber: …} or {distillation: …}"
                    + " is right");
      };
    }
    RecipeSection section = top.section("loss");
    if (section == null) {
      throw top.missing("loss");
    }
    if (section.has("huber")) {
      return section.checked(() -> new Loss.Huber(section.number("huber")));
    }
    RecipeSection distillation = section.section("distillation");
    if (distillation == null) {
      throw section.wrong("huber or distillation is right here");
    }
    return distillation.checked(
        () ->
            new Loss.Distillation(
                distillation.number("alpha"),
                distillation.number("temperature", 1),
                distillation.number("beta", 0)));
  }

  private static LearningRate rate(RecipeSection top) {
    if (top.isScalar("learning-rate")) {
      double rate = top.number("learning-rate");
      try {
        return new LearningRate.Constant(rate);
      } catch (IllegalArgumentException e) {
        throw top.wrongKey("learning-rate", "is no learning rate: " + e.getMessage());
      }
    }
    RecipeSection rate = top.section("learning-rate");
    if (rate == null) {
      throw top.missing("learning-rate");
    }
    return rate.checked(
        () ->
            rate.has("period")
                ? new LearningRate.Cosine(
                    rate.number("rate"),
                    rate.number("end", 0),
                    rate.integer("warmup", 0),
                    rate.integer("period"))
                : new LearningRate.Inverse(
                    rate.number("rate"), rate.number("half-life"), rate.number("power", 0.5)));
  }

  private static ZeroDistance constraint(RecipeSection section) {
    String name = section.text("target");
    ZeroDistance.Target target =
        switch (name) {
          case "identity" -> ZeroDistance.IDENTITY;
          case "one-hot" -> ZeroDistance.ONE_HOT;
          case "batch-maximum" -> ZeroDistance.BATCH_MAXIMUM;
          default ->
              throw section.wrongKey(
                  "target", "is '" + name + "'; identity, one-hot or batch-maximum is right");
        };
    float factor = (float) section.number("factor", 1);
    float offset = (float) section.number("offset", 0);
    if (factor != 1 || offset != 0) {
      target = ZeroDistance.scaled(target, factor, offset);
    }
    return new ZeroDistance(target, section.number("rho"), section.flag("augmented", false));
  }

  private static Guard guard(RecipeSection top) {
    RecipeSection guard = top.section("guard");
    if (guard == null) {
      return Guard.MINIMAL;
    }
    RecipeSection norm = guard.section("norm");
    RecipeSection spike = guard.section("spike");
    RecipeSection quality = guard.section("quality");
    return new Guard(
        norm == null
            ? null
            : norm.checked(
                () ->
                    new Guard.Norm(
                        norm.number("factor"),
                        norm.integer("warmup", 30),
                        norm.flag("clip", true),
                        norm.number("limit", Double.MAX_VALUE))),
        spike == null
            ? null
            : spike.checked(
                () ->
                    new Guard.Spike(
                        spike.number("factor"),
                        spike.integer("warmup", 30),
                        spike.integer("in-a-row", 20))),
        quality == null
            ? null
            : quality.checked(
                () ->
                    new Guard.Quality(
                        quality.integer("hold-every"),
                        quality.integer("window"),
                        quality.integer("check-every"),
                        quality.number("tolerance"))));
  }

  private static Privacy privacy(RecipeSection section) {
    if (section.has("noise") && section.has("epsilon")) {
      throw section.wrongKey(
          "noise", "is beside epsilon, which follows from it; one of the two is right");
    }
    double delta = section.number("delta");
    double clip = section.number("clip");
    int contributions = section.integer("contributions", 1);
    double most = section.number("max-epsilon", Double.POSITIVE_INFINITY);
    Privacy privacy =
        section.has("noise")
            ? new Privacy(clip, section.number("noise"), delta, contributions)
            : Privacy.forEpsilon(section.number("epsilon"), delta, clip, contributions);
    return privacy.withMaxEpsilon(most);
  }
}
