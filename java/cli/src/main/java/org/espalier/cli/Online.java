package org.espalier.cli;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.encoder.Encoder;
import org.espalier.evaluate.Pooling;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.ExampleLines;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.Quarantine;
import org.espalier.online.model.NewModel;
import org.espalier.online.store.LearnerFiles;
import org.espalier.online.store.ModelFiles;
import org.espalier.source.MavenEntry;
import org.espalier.source.ModelSource;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.espalier.store.Version;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Learns from a stream. */
@Command(
    name = "online",
    description = {
      "Learns from a stream of examples, one after the other: each is predicted and measured first,"
          + " then learned. Versions are published to a store as it goes.",
      "",
      "A line is JSON, {\"id\": \"a\", \"features\": [0.5, 1], \"label\": 0} or \"values\": [0.5]"
          + " for outcomes that are values; with --encoder \"text\": \"...\" in place of features,"
          + " and \"text_pair\": \"...\" for a second text that is read with it; or, in a .csv file"
          + " or with --csv, the features and then the outcome, separated by commas. A model of"
          + " several inputs takes {\"inputs\": {\"user\": 17, \"dense\": [0.5, 1]}, \"label\": 0},"
          + " all of its inputs by name, or their values one after the other as features. An"
          + " outcome may come later: {\"id\": \"a\", \"features\": [0.5, 1]}, and then, however"
          + " many lines below, {\"id\": \"a\", \"label\": 0}. Lines that cannot be used are"
          + " counted, go to the quarantine with their number, and do not stop it until there are"
          + " more than --max-bad. A feature that is missing is NaN, which an ONNX model learns"
          + " that asks for it (IsNaN).",
      "",
      "With --resume, a stream that begins as one that the store's current version has seen is gone"
          + " on with after the lines that were seen; of any other all lines are new. With"
          + " --follow, a file that is replaced or emptied, as logs are, is read anew.",
      "",
      "With privacy, epsilon is of the weights and what they predict, of all private runs in the"
          + " store together: runs over the same lines add up, and learning stops before the sum is"
          + " above max-epsilon. Streams whose first lines differ are taken for other examples. The"
          + " store's metrics and learner.state are exact: give away what 'store export' writes,"
          + " not the store."
    },
    footer = {
      "",
      "The recipe is YAML; the least there is:",
      "  loss: cross-entropy",
      "  learning-rate: 0.1",
      "  model: {features: 384, outputs: 2}",
      "",
      "All keys, with defaults or examples:",
      "  model: {features: 384, hidden: [64, 32], outputs: 2, activation: relu}",
      "                          # without hidden a linear model of zeros; leaky-relu,",
      "                          # sigmoid, tanh; of a --model it says the sizes,",
      "                          # with inputs: {user: 1, dense: 13} for features",
      "                          # where that has several inputs; with an --encoder",
      "                          # features follow from it",
      "  classes: [ham, spam]    # what labels are called, in their order; numbers",
      "                          # from 0 on are right too",
      "  loss: cross-entropy     # binary, squared, {huber: 1}, or",
      "                          # {distillation: {alpha: 0.5, temperature: 2}}",
      "  learning-rate: 0.1      # {rate: 1, half-life: 1000, power: 0.5}, or",
      "                          # {rate: 1, end: 0, warmup: 100, period: 10000}",
      "  momentum: 0",
      "  adamw: {beta1: 0.9, beta2: 0.999, epsilon: 1e-8}  # instead of momentum",
      "  weight-decay: 0",
      "  batch: 32               # examples of a step",
      "  publish-every: 1        # steps until predictions see new weights",
      "  replay: {capacity: 1000, per-step: 8}",
      "  averaging: 0            # 0.99: predictions see the weights' fading mean",
      "  only: [bias]            # the other weights stay as they are",
      "  keep-zeros: false       # true: what was pruned stays pruned",
      "  int8: false             # true: learned and served on the int8 grid",
      "  sparse-rows: auto       # a step touches of tables of embeddings the rows",
      "                          # that it reads, where all would end the same:",
      "                          # without momentum, adamw, weight-decay; always:",
      "                          # these wait for the row; never: whole tables",
      "  constraint: {target: one-hot, factor: 4, offset: -2, rho: 0.1}",
      "                          # or identity, batch-maximum; augmented: true;",
      "                          # distance, among the metrics, is of the last batch",
      "  guard:                  # what is not finite is always taken out",
      "    norm: {factor: 5, warmup: 30, clip: true, limit: 100}",
      "    spike: {factor: 3, warmup: 30, in-a-row: 20}",
      "    quality: {hold-every: 5, window: 200, check-every: 200, tolerance: 0.1}",
      "  drift: {delta: 0.002, slack: 0.005, threshold: 50, action: report}",
      "                          # or restart, reset",
      "  privacy: {epsilon: 8, delta: 1e-5, clip: 1, contributions: 1, max-epsilon: 16}",
      "                          # or noise: 0.5 for epsilon",
      "  window: 1000            # of the metrics",
      "  fade: 0.995             # of the fading metrics",
      "  seed: 1",
      "",
      "Examples:",
      "  espalier online --input stream.jsonl --recipe online.yaml --store models/",
      "  tail -f log | espalier online --input - --recipe online.yaml --store models/",
      "  espalier online --input more.jsonl --store models/ --resume",
      "  espalier online --model net.onnx --input s.csv --csv --recipe r.yaml \\",
      "    --store models/ --report run.html --json",
      "  espalier online --encoder minilm-int8.onnx --input mails.jsonl --recipe r.yaml \\",
      "    --store models/",
    })
final class Online implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;
  @Mixin private StoreOptions.Wait wait;
  @Mixin private LearnerOptions learning = new LearnerOptions(10_000);

  @Option(
      names = "--input",
      paramLabel = "FILE|-",
      required = true,
      description = "The stream; - is standard input.")
  private String input;

  @Option(
      names = "--recipe",
      paramLabel = "FILE",
      description =
          "How to learn. With --resume the version's own is the default, where a learner made it.")
  private String recipeFile;

  @Option(
      names = "--model",
      paramLabel = "MODEL",
      description =
          "What to learn: a .safetensors file with weight [outputs, features] and bias, or an .onnx"
              + " or TorchScript (.pt) file with inputs [batch, …], whose values are an example's"
              + " features one after the other, of ONNX also of int64 or int32, which take features"
              + " that are whole numbers; an int8 one, as 'quantize --to onnx-dynamic' or onnx-qdq"
              + " or a recipe makes it, stays int8; of images, with --image-processor, lines have"
              + " \"image\"; a .pt file is code that runs: take it from"
              + " nobody you do not trust. Default: a new one, as the recipe says, or with --resume"
              + " the version's own, and no other then.")
  private String model;

  @Option(
      names = "--encoder",
      paramLabel = "MODEL",
      description =
          "An encoder of texts or images that stays as it is, in front of what learns: an .onnx"
              + " file that takes token ids or pixels and gives hidden states or embeddings, of"
              + " images also maps; one that 'quantize' made too; or a folder of safetensors that"
              + " 'export' makes such a file of. Lines have \"text\" then, or"
              + " \"image\", a path from the input's folder or a URL with its data (data:image/"
              + "jpeg;base64,...), and what is learned reads their embeddings, of length 1. Each"
              + " version has the encoder: --resume, 'serve' and 'store export' find it"
              + " there.")
  private String encoderModel;

  @Mixin private TokenizerOptions tokenizer;
  @Mixin private ImageOptions images;

  @Option(
      names = "--pooling",
      paramLabel = "mean|cls|last",
      description =
          "How the encoder's token vectors become one: their mean, of texts over the attention"
              + " mask, the first one (BGE, ViT), or of texts the last one (Qwen3-Embedding)."
              + " Default: as the modules.json of sentence-transformers beside the encoder says,"
              + " STEM-modules.json too; else mean.")
  private Pooling pooling;

  @Option(
      names = "--resume",
      description =
          "Go on from the store's current version, in the same stream after the lines that it has"
              + " seen. With --recipe, all lines are learned where no version is current, as after"
              + " a kill before the first was whole.")
  private boolean resume;

  @Option(
      names = "--csv",
      description =
          "Lines are comma-separated numbers; a first line of names is left out. So are those of a"
              + " file whose name ends with .csv.")
  private boolean csv;

  @Option(names = "--follow", description = "Wait for more at the end of the file, until Ctrl-C.")
  private boolean follow;

  @Option(
      names = "--max-bad",
      paramLabel = "N",
      description = "Stop when more lines than this cannot be used. Default: 1000.")
  private long maxBad = 1000;

  @Option(names = "--report", paramLabel = "FILE", description = "Write an HTML report of the run.")
  private String reportFile;

  @Override
  public Integer call() {
    learning.publishEvery(); // checks
    if (maxBad < 0) {
      throw new InputException("--max-bad " + maxBad + "; 0 or more is right");
    }
    if (follow && input.equals("-")) {
      throw new InputException("--follow is for files; standard input is read to its end anyway");
    }
    csv |= input.toLowerCase(Locale.ROOT).endsWith(".csv");
    SigningKey signing = learning.signingKey(options);
    Path[] inputs = inputs();
    Path reportPath =
        reportFile == null ? null : AtomicFile.check(ModelSource.path(reportFile), inputs);
    if (reportPath != null && learning.quarantines(reportPath)) {
      throw new InputException("--report and --quarantine are the same file; name two");
    }
    ModelStore store = resume ? options.open() : null;
    try (ModelStore.Held held = resume ? resumed(store) : null) {
      OnlineRecipe said = recipe(held);
      try (EncoderFile file = encoderFile();
          Encoder encoder = encoder(store, held, file)) {
        boolean makesFeatures = encoder != null && !encoder.isOfPixels();
        OnlineRecipe recipe = makesFeatures ? said.withFeatures(encoder.width()) : said;
        return learn(store, held, encoder, recipe, signing, inputs, reportPath);
      }
    }
  }

  /** The version to go on from; null where there is none, and a recipe says how to begin. */
  private ModelStore.Held resumed(ModelStore store) {
    if (recipeFile == null || store.current().isPresent()) {
      return store.holdCurrent();
    }
    common.note("all lines are new: " + store.withoutCurrent());
    return null;
  }

  private int learn(
      ModelStore opened,
      ModelStore.Held held,
      Encoder encoder,
      OnlineRecipe recipe,
      SigningKey signing,
      Path[] inputs,
      Path reportPath) {
    ModelStore store = opened;
    try (Learnable learnable = learnable(recipe, held, encoder);
        OnlineLearner learner = learner(learnable, recipe)) {
      if (held != null) {
        load(learner, recipe, held);
      }
      if (encoderModel != null) {
        noteExport(encoder, learner);
      }
      LiveLine live = new LiveLine(common);
      try (OnlineInput in = new OnlineInput(input, follow);
          Interrupts interrupts =
              new Interrupts(() -> live.note("stopping after this batch; again ends at once"));
          Quarantine quarantine = quarantine(in, inputs);
          OnlineExamples examples =
              new OnlineExamples(
                  learner, csv, recipe.classes(), encoded(encoder), quarantine, live::note)) {
        learner.quarantine(quarantine);
        long seen = held == null ? 0 : seenLines(store, held.version(), in, interrupts);
        if (store == null) {
          store = options.create();
        }
        if (encoder != null) {
          encoder.findIn(store);
        }
        Long parent = held == null ? null : held.version().id();
        LearnerVersions versions =
            new LearnerVersions(store, learner, recipe, signing, encoder, parent, live::note);
        OnlineRun run =
            new OnlineRun(
                new OnlineRun.Limits(follow, maxBad, learning.publishEvery()),
                in,
                new StreamPlace(input, seen),
                examples,
                learner,
                versions,
                () -> wait.writer(versions.store()),
                interrupts,
                live);
        run.learn(held != null);
        tell(run, reportPath, inputs);
        if (quarantine != null && quarantine.lost() > 0) {
          common.note(
              quarantine.lost()
                  + " of "
                  + quarantine.count()
                  + " could not be written to quarantine");
        }
        run.requireComplete();
        return interrupts.code();
      } catch (IOException e) {
        throw InputException.of("cannot read " + input, e);
      }
    }
  }

  /** What lines have in place of features; null where they have these. */
  private ExampleLines.Encoded encoded(Encoder encoder) {
    if (encoder == null) {
      return null;
    }
    Path folder = input.equals("-") ? null : ModelSource.path(input).toAbsolutePath().getParent();
    return encoder.encoded(folder == null ? Path.of("") : folder);
  }

  /** Says beforehand where {@link StoreExport} will not make one graph of a version. */
  private void noteExport(Encoder encoder, OnlineLearner learner) {
    try {
      encoder.requireCanBeFollowedBy(learner.toOnnx());
    } catch (InputException e) {
      common.note("'store export' will make no graph of encoder and answers: " + e.getMessage());
    }
  }

  /** The quarantine, null without one; opened, and so made, where there is something to read. */
  private Quarantine quarantine(OnlineInput in, Path[] inputs) throws IOException {
    in.check();
    return learning.quarantine(inputs);
  }

  /** Writes the report, where one is wanted, and prints the result. */
  private void tell(OnlineRun run, Path reportPath, Path[] inputs) throws IOException {
    if (reportPath != null) {
      try (AtomicFile file = AtomicFile.create(reportPath, inputs)) {
        file.write(ByteBuffer.wrap(run.html().getBytes(StandardCharsets.UTF_8)));
        file.commit();
      }
    }
    if (common.json()) {
      common.print(run.json());
    } else {
      Table table = new Table("", "");
      run.summary().forEach(table::add);
      table.print(common.out());
    }
  }

  /** The files that are read, which no output may be. */
  private Path[] inputs() {
    List<Path> paths = new ArrayList<>();
    for (String given :
        new String[] {input, recipeFile, model, encoderModel, tokenizer.named(), images.named()}) {
      if (given != null && !given.equals("-") && !MavenEntry.isOne(given)) {
        paths.add(ModelSource.path(given));
      }
    }
    return paths.toArray(Path[]::new);
  }

  private static OnlineLearner learner(Learnable learnable, OnlineRecipe recipe) {
    recipe.classes().requireFor(learnable.outputs());
    try {
      return new OnlineLearner(learnable, recipe.settings());
    } catch (IllegalArgumentException e) {
      throw new InputException("the recipe does not fit the model: " + e.getMessage(), e);
    }
  }

  private OnlineRecipe recipe(ModelStore.Held held) {
    if (recipeFile == null) {
      if (held == null) {
        throw new InputException("--recipe is missing; --help shows the least there is");
      }
      if (!LearnerFiles.isLearned(held)) {
        throw new InputException(
            "no learner made version "
                + held.version().id()
                + ": --recipe says how it is to learn");
      }
      return LearnerFiles.recipe(held);
    }
    return OnlineRecipe.read(ModelSource.path(recipeFile));
  }

  /** Takes all that a version's learner knew, where one made it, and refuses another --model than the version's. */
  private void load(OnlineLearner learner, OnlineRecipe recipe, ModelStore.Held held) {
    Map<String, float[]> given = learner.weights();
    if (LearnerFiles.isLearned(held)) {
      LearnerFiles.load(learner, held);
      checkModel(given, learner.weights(), held);
    } else if (model != null) {
      try (Learnable own = LearnerFiles.readModel(held, recipe);
          OnlineLearner other = learner(own, recipe)) {
        checkModel(given, other.weights(), held);
      }
    }
  }

  /** A resumed run goes on from the version: it would not learn a model with other weights. */
  private void checkModel(
      Map<String, float[]> given, Map<String, float[]> own, ModelStore.Held held) {
    boolean same = given.keySet().equals(own.keySet());
    for (Map.Entry<String, float[]> weight : given.entrySet()) {
      same = same && Arrays.equals(weight.getValue(), own.get(weight.getKey()));
    }
    if (model != null && !same) {
      throw new InputException(
          "--model "
              + model
              + " has other weights than version "
              + held.version().id()
              + ", from which --resume goes on: without --model the version is learned on, without"
              + " --resume the model is");
    }
  }

  private Learnable learnable(OnlineRecipe recipe, ModelStore.Held held, Encoder encoder) {
    Learnable learnable = learnable(recipe, held);
    try {
      if (encoder != null) {
        encoder.requireFits(learnable);
      }
      return learnable;
    } catch (InputException e) {
      learnable.close();
      throw e;
    }
  }

  private Learnable learnable(OnlineRecipe recipe, ModelStore.Held held) {
    if (model != null) {
      return ModelFiles.read(ModelSource.findAny(model, common::note).path(), recipe);
    }
    if (held != null) {
      return LearnerFiles.readModel(held, recipe);
    }
    return NewModel.of(recipe);
  }

  /** The file of the encoder that is given; null where none is. */
  private EncoderFile encoderFile() {
    return encoderModel == null
        ? null
        : EncoderFile.of(
            ModelSource.find(encoderModel, common::note).asOnnx("--encoder"), common::note);
  }

  /**
   * The encoder that is given or that the version has; null where there is none.
   *
   * @param file of the one that is given; null where none is
   */
  private Encoder encoder(ModelStore store, ModelStore.Held held, EncoderFile file) {
    if (file == null) {
      if (tokenizer.anyGiven() || pooling != null) {
        throw new InputException(
            "--tokenizer, --max-tokens and --pooling are of an --encoder, which is missing");
      }
      if (images.given()) {
        return pixels(held);
      }
      return checked(held == null ? null : Encoder.of(store, held.version()));
    }
    Encoder encoder = open(file);
    boolean learned = held != null && LearnerFiles.isLearned(held);
    if (learned && !encoder.isOf(held.version())) {
      encoder.close();
      throw new InputException(
          "version "
              + held.version().id()
              + ", from which --resume goes on, has "
              + (Encoder.isIn(held.version()) ? "another encoder" : "learned from features")
              + "; it goes on without --encoder");
    }
    return checked(encoder);
  }

  private Encoder open(EncoderFile file) {
    ModelSource source = file.source();
    OnnxModel model = OnnxModel.read(file.model());
    if (Encoder.takesTexts(model)) {
      if (images.given()) {
        throw new InputException("--image-processor is of images; the encoder takes texts");
      }
      int maxTokens = tokenizer.maxTokens();
      Path texts = tokenizer.file(source, common::note);
      Pooling taken = source.pooling(model, pooling, "--pooling", common::note);
      return Encoder.ofTexts(file.model(), texts, maxTokens, taken);
    }
    if (tokenizer.anyGiven()) {
      throw new InputException(
          "--tokenizer and --max-tokens are of texts; the encoder has no input_ids");
    }
    return Encoder.ofImages(
        file.model(),
        images.open(source, common::note).file(),
        pooling == null ? Pooling.MEAN : pooling);
  }

  /** How images become what the model takes that is learned. */
  private Encoder pixels(ModelStore.Held held) {
    if (model == null && held == null) {
      throw new InputException(
          "--image-processor is of an --encoder, or of a --model that takes images; both are"
              + " missing");
    }
    ModelSource learned =
        ModelSource.findAny(model == null ? held.model().toString() : model, common::note);
    Encoder pixels = Encoder.ofPixels(learned.path(), images.open(learned, common::note).file());
    if (held != null && !pixels.isBefore(held.version())) {
      pixels.close();
      throw new InputException(
          "version "
              + held.version().id()
              + ", from which --resume goes on, makes other values of images, or has an encoder; it"
              + " goes on without --image-processor");
    }
    return pixels;
  }

  private Encoder checked(Encoder encoder) {
    if (encoder != null && csv && !encoder.isOfPixels()) {
      encoder.close();
      throw new InputException(
          "texts and images come as lines of JSON, {\"text\": \"...\", ...}, not as CSV");
    }
    return encoder;
  }

  /** How many lines of the stream a version, or one that it was made from, has seen. */
  private long seenLines(ModelStore store, Version from, OnlineInput in, Interrupts interrupts)
      throws IOException {
    Version version = from;
    while (version != null) {
      Lineage.DataWindow window = version.lineage().data();
      if (window != null && window.to() > 0 && in.beginsAs(window.begins(), interrupts)) {
        common.note(
            "version "
                + version.id()
                + " has seen lines 1 to "
                + window.to()
                + " of "
                + input
                + "; going on after them");
        return window.to();
      }
      version = parent(store, version);
    }
    common.note("version " + from.id() + " has seen nothing of " + input + "; all lines are new");
    return 0;
  }

  private static Version parent(ModelStore store, Version version) {
    Long id = version.lineage().parent();
    try {
      return id == null || id >= version.id() ? null : store.version(id);
    } catch (InputException e) {
      return null; // it was collected
    }
  }
}
