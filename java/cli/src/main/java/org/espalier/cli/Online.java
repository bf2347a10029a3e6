package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.online.Event;
import org.espalier.online.Example;
import org.espalier.online.Learnable;
import org.espalier.online.LearnerFiles;
import org.espalier.online.LinearHead;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineReport;
import org.espalier.online.PrivacyBudgetException;
import org.espalier.online.Quarantine;
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
          + " for outcomes that are values; or, in a .csv file or with --csv, the features and then"
          + " the outcome, separated by commas. An outcome may come later: {\"id\": \"a\","
          + " \"features\": [0.5, 1]}, and then, however many lines below, {\"id\": \"a\","
          + " \"label\": 0}. Lines that cannot be used are counted, go to the quarantine with their"
          + " number, and do not stop it until there are more than --max-bad.",
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
      "  constraint: {target: one-hot, factor: 4, offset: -2, rho: 0.1}",
      "                          # or identity, batch-maximum; augmented: true",
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
    })
final class Online implements Callable<Integer> {
  /** So many first lines of a stream are recorded, by which it is known again. */
  private static final int BEGINS = 16;

  /** How long it waits before it tries again to publish. */
  private static final long RETRY_NANOS = 10_000_000_000L;

  /** How often it looks what others made current. */
  private static final long LOOK_NANOS = 500_000_000L;

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
              + " or TorchScript (.pt) file with one input [batch, …], whose features a line gives"
              + " one after the other, of ONNX also one of int64 or int32, which takes features"
              + " that are whole numbers; a .pt file is code that runs: take it from nobody you do"
              + " not trust. Default: a linear model of zeros, or with --resume the version's own,"
              + " and no other then.")
  private String model;

  @Option(
      names = "--resume",
      description =
          "Go on from the store's current version, in the same stream after the lines that it has"
              + " seen.")
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

  private final Map<Event.Kind, Long> events = new EnumMap<>(Event.Kind.class);
  private final List<Long> published = new ArrayList<>();

  /** Null until lines are read. */
  private OnlineExamples examples;

  /** Digests of the stream's first lines. */
  private final List<String> begins = new ArrayList<>();

  private long read;

  /** Examples of this run; what the learner has seen goes back with a rollback. */
  private long done;

  private long lines;
  private long skip;
  private Long parent;

  /** Null until lines are read. */
  private LiveLine live;

  /** What was noted about a store that cannot be read. */
  private String complaint;

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
    try (ModelStore.Held held = resume ? store.holdCurrent() : null) {
      OnlineRecipe recipe = recipe(held);
      try (Learnable learnable = learnable(recipe, held);
          OnlineLearner learner = learner(learnable, recipe)) {
        if (held != null) {
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
          parent = held.version().id();
        }
        try (OnlineInput in = new OnlineInput(input, follow);
            Quarantine quarantine = learning.quarantine(inputs);
            Interrupts interrupts =
                new Interrupts(() -> note("stopping after this batch; again ends at once"))) {
          learner.quarantine(quarantine);
          if (held != null) {
            skip = seenLines(store, held.version(), in, interrupts);
          }
          if (store == null) {
            in.check();
            store = options.create();
          }
          run(in, learner, recipe, store, signing, quarantine, reportPath, interrupts);
          return interrupts.code();
        } catch (IOException e) {
          throw InputException.of("cannot read " + input, e);
        }
      }
    }
  }

  private void note(String text) {
    if (live != null) {
      live.clear();
    }
    common.note(text);
  }

  /** The files that are read, which no output may be. */
  private Path[] inputs() {
    List<Path> paths = new ArrayList<>();
    for (String given : new String[] {input, recipeFile, model}) {
      if (given != null && !given.equals("-") && !MavenEntry.isOne(given)) {
        paths.add(ModelSource.path(given));
      }
    }
    return paths.toArray(Path[]::new);
  }

  private static OnlineLearner learner(Learnable learnable, OnlineRecipe recipe) {
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

  private Learnable learnable(OnlineRecipe recipe, ModelStore.Held held) {
    if (model != null) {
      return LearnerFiles.readModel(ModelSource.findAny(model, this::note).path(), recipe);
    }
    if (held != null) {
      return LearnerFiles.readModel(held, recipe);
    }
    if (recipe.features() == null) {
      throw new InputException(
          "there is no model: give --model, or say model: {features: …, outputs: …} in the recipe");
    }
    return new LinearHead(recipe.features(), recipe.outputs());
  }

  /** How many lines of the stream a version, or one that it was made from, has seen. */
  private long seenLines(ModelStore store, Version from, OnlineInput in, Interrupts interrupts)
      throws IOException {
    Version version = from;
    while (version != null) {
      Lineage.DataWindow window = version.lineage().data();
      if (window != null && window.to() > 0 && in.beginsAs(window.begins(), interrupts)) {
        note(
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
    note("version " + from.id() + " has seen nothing of " + input + "; all lines are new");
    return 0;
  }

  /** Versions that learned these lines before are told: epsilon is of all private ones together. */
  private void noteRepetition(ModelStore store, OnlineLearner learner) {
    String before = null;
    String openly = null;
    for (long id : store.ids()) {
      Lineage lineage;
      try {
        lineage = store.version(id).lineage();
      } catch (InputException e) {
        continue; // of no use to anybody
      }
      Lineage.DataWindow window = lineage.data();
      int known = window == null ? 0 : Math.min(begins.size(), window.begins().size());
      if (known > 0
          && !published.contains(id)
          && window.to() > skip
          && begins.subList(0, known).equals(window.begins().subList(0, known))) {
        String text =
            "version " + id + " has learned lines up to " + window.to() + " of this stream before";
        before = lineage.epsilon() == null ? before : text;
        openly = lineage.epsilon() == null ? text : openly;
      }
    }
    if (before != null) {
      note(
          String.format(
              Locale.ROOT,
              "%s: epsilon %.4g is of all private passes over them",
              before,
              learner.epsilon()));
    }
    if (openly != null) {
      note(openly + ", and not in private: epsilon is not for who sees that version");
    }
  }

  private static Version parent(ModelStore store, Version version) {
    Long id = version.lineage().parent();
    try {
      return id == null || id >= version.id() ? null : store.version(id);
    } catch (InputException e) {
      return null; // it was collected
    }
  }

  private void run(
      OnlineInput in,
      OnlineLearner learner,
      OnlineRecipe recipe,
      ModelStore store,
      SigningKey signing,
      Quarantine quarantine,
      Path reportPath,
      Interrupts interrupts)
      throws IOException {
    OnlineReport report = new OnlineReport("espalier online: " + input);
    live = new LiveLine(common.err());
    learner.onEvent(
        event -> {
          live.clear(); // what is logged about it gets a line of its own
          events.merge(event.kind(), 1L, Long::sum);
          report.add(event);
        });
    examples = new OnlineExamples(learner, csv, quarantine, this::note);
    List<Example> batch = new ArrayList<>();
    int size = recipe.settings().batch();
    long begin = System.nanoTime();
    long lastPublished = learner.seen();
    boolean isNew = store.current().isEmpty(); // then the model is a version, whatever is learned
    long retry = begin;
    LearnerVersions versions =
        new LearnerVersions(store, learner, recipe, signing, parent, this::note);
    versions.account();
    long looked = System.nanoTime();
    boolean repetition = recipe.settings().privacy() != null; // is told, once the lines are known
    PrivacyBudgetException spent = null;
    boolean tooMany = false;
    boolean stop = false;
    boolean replaced = false;
    long learned = skip; // lines
    while (!tooMany && !stop) {
      stop = interrupts.requested();
      LineReader.Line line = in.reader().next();
      boolean atEnd = line == null && in.reader().isAtEnd();
      if (atEnd && (!follow || replaced)) {
        line = in.reader().rest();
      }
      if (line != null) {
        lines = line.number();
        if (begins.size() < BEGINS && lines == begins.size() + 1) {
          begins.add(OnlineInput.digest(line.text()));
        }
        if (lines <= skip) {
          examples.recall(line);
        } else {
          read++;
          if (!line.text().isBlank()) {
            Example example = examples.read(line);
            if (example != null) {
              batch.add(example);
            }
            tooMany = examples.bad() > maxBad;
          }
        }
      }
      boolean idle = atEnd && line == null;
      if (batch.size() == size || (idle || tooMany || stop) && !batch.isEmpty()) {
        learner.pass(begins, skip, Math.max(skip, lines));
        try {
          learner.learn(batch);
        } catch (PrivacyBudgetException e) {
          if (done == 0) {
            throw e;
          }
          spent = e;
          lines = learned;
          learner.pass(begins, skip, Math.max(skip, lines));
          break;
        }
        learned = lines;
        done += batch.size();
        batch.clear();
        if (repetition && (begins.size() == BEGINS || atEnd)) {
          noteRepetition(store, learner);
          repetition = false;
        }
        if (report.wants(learner.seen())) {
          report.add(learner.seen(), learner.metrics());
        }
        live.show(learner, done, begin, events);
        if (learner.seen() - lastPublished >= learning.publishEvery()
            && System.nanoTime() >= retry) {
          if (publish(learner, versions, report) == null) {
            lastPublished = learner.seen();
          } else {
            retry = System.nanoTime() + RETRY_NANOS;
          }
        }
      }
      if (batch.isEmpty() && System.nanoTime() - looked >= LOOK_NANOS) {
        looked = System.nanoTime();
        if (follow(versions)) {
          lastPublished = learner.seen();
        }
      }
      if (idle) {
        if (!follow) {
          break;
        }
        if (replaced) {
          // What was learned so far is of lines that no resumption could find again.
          if (learner.seen() > lastPublished && publish(learner, versions, report) == null) {
            lastPublished = learner.seen();
          }
          note(input + " is another file now; going on with its first line");
          in.reopen();
          replaced = false;
          learner.beginPass();
          repetition = recipe.settings().privacy() != null;
          begins.clear();
          lines = 0;
          learned = 0;
          skip = 0;
        } else if (in.isReplaced()) {
          replaced = true; // and what was written to the old one meanwhile is read first
        } else {
          try {
            Thread.sleep(100);
          } catch (InterruptedException e) {
            break;
          }
        }
      }
    }
    live.clear();
    if (lines < skip && !interrupts.requested()) {
      note(input + " has " + lines + " lines only, of " + skip + " that were seen: nothing is new");
    }
    InputException unpublished = null;
    // What learned nothing is no reason to replace a version; a resumed run has come further in
    // its lines.
    boolean first = published.isEmpty() && (isNew || resume && read > 0);
    if (repetition && done > 0) {
      noteRepetition(store, learner);
    }
    if (learner.seen() > lastPublished || first) {
      unpublished = publish(learner, versions, report);
    } else if (done == 0) {
      note("there was nothing to learn: no version was published");
    }
    double seconds = (System.nanoTime() - begin) * 1e-9;
    report.add(learner.seen(), learner.metrics());
    if (reportPath != null) {
      try (AtomicFile file = AtomicFile.create(reportPath, inputs())) {
        String html = report.html(summary(learner, versions, seconds));
        file.write(ByteBuffer.wrap(html.getBytes(StandardCharsets.UTF_8)));
        file.commit();
      }
    }
    print(learner, versions, seconds);
    if (quarantine != null && quarantine.lost() > 0) {
      note(quarantine.lost() + " of " + quarantine.count() + " could not be written to quarantine");
    }
    if (unpublished != null) {
      throw new InputException(
          "what was learned last is in no version: " + unpublished.getMessage(), unpublished);
    }
    if (spent != null) {
      throw new InputException(
          spent.getMessage()
              + ". Learning stopped before line "
              + (learned + 1)
              + " of "
              + input
              + (published.isEmpty()
                  ? "; no version was published"
                  : "; what was learned before is version " + published.get(published.size() - 1)),
          spent);
    }
    if (tooMany) {
      throw new InputException(
          "more than "
              + maxBad
              + " lines of "
              + input
              + " could not be used, the last of them line "
              + lines
              + (published.isEmpty()
                  ? "; nothing was learned"
                  : "; what was learned before is version " + published.get(published.size() - 1)));
    }
  }

  /** Takes over what others made current; a store that cannot be read is noted and not the end. */
  private boolean follow(LearnerVersions versions) {
    try {
      return versions.follow();
    } catch (InputException e) {
      if (!e.getMessage().equals(complaint)) {
        complaint = e.getMessage();
        note(complaint);
      }
      return false;
    }
  }

  /** Publishes; what is wrong with the store is noted, given back, and does not end the learning. */
  private InputException publish(
      OnlineLearner learner, LearnerVersions versions, OnlineReport report) {
    Lineage lineage =
        Lineage.NONE
            .withSource(input)
            .withData(new Lineage.DataWindow(input, skip, Math.max(skip, lines), begins));
    try {
      Version version = versions.publish(lineage, () -> wait.writer(versions.store()));
      published.add(version.id());
      report.published(learner.seen(), version.id(), learner.version());
      return null;
    } catch (InputException e) {
      note("no version could be published: " + e.getMessage());
      return e;
    }
  }

  private Map<String, String> summary(
      OnlineLearner learner, LearnerVersions versions, double seconds) {
    Map<String, String> map = new LinkedHashMap<>();
    map.put(
        "examples",
        done
            + " in "
            + Format.seconds(seconds)
            + String.format(Locale.ROOT, ", %.0f a second", done / seconds));
    map.put("learned", learner.learned() + ", " + learner.removed() + " taken out or back");
    map.put("lines that could not be used", Long.toString(examples.bad()));
    if (examples.waiting() > 0 || examples.expired() > 0) {
      map.put(
          "without an outcome",
          examples.waiting() + " wait for it, " + examples.expired() + " were given up");
    }
    map.put("steps", Long.toString(learner.steps()));
    learner
        .metrics()
        .forEach((name, value) -> map.put(name, String.format(Locale.ROOT, "%.4f", value)));
    if (learner.epsilon() != null) {
      map.put("epsilon", String.format(Locale.ROOT, "%.3f", learner.epsilon()));
    }
    map.put(
        "events",
        events.isEmpty()
            ? "none"
            : events.entrySet().stream()
                .map(e -> e.getValue() + " " + e.getKey().name().toLowerCase(Locale.ROOT))
                .collect(Collectors.joining(", "))
                .replace('_', ' '));
    map.put(
        "store",
        versions.store().folder()
            + (versions.current() == 0
                ? ", no version is current"
                : ", version " + versions.current() + " is current"));
    return map;
  }

  private void print(OnlineLearner learner, LearnerVersions versions, double seconds) {
    if (!common.json()) {
      Table table = new Table("", "");
      summary(learner, versions, seconds).forEach(table::add);
      table.print(common.out());
      return;
    }
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("lines", read).put("bad", examples.bad()).put("seen", learner.seen());
    json.put("waiting", examples.waiting()).put("expired", examples.expired());
    json.put("learned", learner.learned()).put("removed", learner.removed());
    json.put("steps", learner.steps()).put("seconds", seconds);
    json.put("examples_per_second", done / seconds);
    json.put("epsilon", learner.epsilon());
    ObjectNode metrics = json.putObject("metrics");
    learner.metrics().forEach((name, value) -> metrics.set(name, Json.of(value)));
    ObjectNode counts = json.putObject("events");
    events.forEach((kind, count) -> counts.put(kind.name().toLowerCase(Locale.ROOT), count));
    json.put("store", versions.store().folder().toString());
    ArrayNode ids = json.putArray("versions");
    published.forEach(ids::add);
    common.print(json);
  }
}
