package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.online.Event;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.Learnable;
import org.espalier.online.LearnerFiles;
import org.espalier.online.LinearHead;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineReport;
import org.espalier.online.PendingLabels;
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
          + " for outcomes that are values; or, with --csv, the features and then the outcome,"
          + " separated by commas. An outcome may come later: {\"id\": \"a\", \"features\": [0.5,"
          + " 1]}, and then, however many lines below, {\"id\": \"a\", \"label\": 0}. Lines that"
          + " cannot be used are counted, go to the quarantine with their number, and do not stop"
          + " it until there are more than --max-bad."
    },
    footer = {
      "",
      "The recipe is YAML; the least there is:",
      "  loss: cross-entropy",
      "  learning-rate: 0.1",
      "  model: {features: 384, outputs: 2}",
      "It may have momentum or adamw, weight-decay, batch, publish-every, replay, averaging,",
      "only, keep-zeros, int8, constraint, guard, drift, privacy, window, fade, seed.",
      "",
      "Examples:",
      "  espalier online --input stream.jsonl --recipe online.yaml --store models/",
      "  tail -f log | espalier online --input - --recipe online.yaml --store models/",
      "  espalier online --input more.jsonl --store models/ --resume",
      "  espalier online --model net.onnx --input s.csv --csv --recipe r.yaml \\",
      "    --store models/ --report run.html --json",
    })
final class Online implements Callable<Integer> {
  private static final int MAX_LINE = 16 << 20;

  /** Examples whose outcome may still come; older ones are forgotten. */
  private static final int WAITING = 100_000;

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
      description = "How to learn. With --resume the version's own is the default.")
  private String recipeFile;

  @Option(
      names = "--model",
      paramLabel = "MODEL",
      description =
          "What to learn: a .safetensors file with weight [outputs, features] and bias, or an .onnx"
              + " or TorchScript (.pt) file with one input [batch, features]; a .pt file is code"
              + " that runs: take it from nobody you do not trust. Default: a linear model of"
              + " zeros.")
  private String model;

  @Option(
      names = "--resume",
      description =
          "Go on where the store's current version was published, after the lines that it has"
              + " seen.")
  private boolean resume;

  @Option(names = "--csv", description = "Lines are comma-separated numbers.")
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
  private final PendingLabels waiting = new PendingLabels(WAITING);
  private long bad;
  private long lines;
  private long skip;
  private Long parent;

  @Override
  public Integer call() {
    learning.publishEvery(); // checks
    if (maxBad < 0) {
      throw new InputException("--max-bad " + maxBad + "; 0 or more is right");
    }
    if (follow && input.equals("-")) {
      throw new InputException("--follow is for files; standard input is read to its end anyway");
    }
    SigningKey signing = learning.signingKey();
    Path reportPath = reportFile == null ? null : AtomicFile.check(ModelSource.path(reportFile));
    ModelStore store = resume ? options.open() : null;
    try (ModelStore.Held held = resume ? store.holdCurrent() : null) {
      OnlineRecipe recipe = recipe(held);
      try (Learnable learnable = learnable(recipe, held);
          OnlineLearner learner = learner(learnable, recipe);
          Quarantine quarantine = learning.quarantine()) {
        if (held != null) {
          LearnerFiles.load(learner, held);
          parent = held.version().id();
          Lineage.DataWindow window = held.version().lineage().data();
          skip = window == null ? 0 : window.to();
        }
        learner.quarantine(quarantine);
        try (InputStream in = open();
            Interrupts interrupts =
                new Interrupts(
                    () -> common.note("stopping after this batch; again ends at once"))) {
          if (store == null) {
            store = options.create();
          }
          run(in, learner, recipe, store, signing, quarantine, reportPath, interrupts);
          return interrupts.code();
        } catch (IOException e) {
          throw new InputException("cannot read " + input + ": " + e.getMessage(), e);
        }
      }
    }
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
      return LearnerFiles.recipe(held);
    }
    return OnlineRecipe.read(ModelSource.path(recipeFile));
  }

  private Learnable learnable(OnlineRecipe recipe, ModelStore.Held held) {
    if (model != null) {
      return LearnerFiles.readModel(ModelSource.findAny(model, common::note).path(), recipe);
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

  private InputStream open() throws IOException {
    if (input.equals("-")) {
      return System.in;
    }
    Path file = ModelSource.path(input);
    if (!Files.exists(file)) {
      throw new InputException("there is no file " + file);
    }
    return Files.newInputStream(file);
  }

  private void run(
      InputStream in,
      OnlineLearner learner,
      OnlineRecipe recipe,
      ModelStore store,
      SigningKey signing,
      Quarantine quarantine,
      Path reportPath,
      Interrupts interrupts)
      throws IOException {
    OnlineReport report = new OnlineReport("espalier online: " + input);
    learner.onEvent(
        event -> {
          events.merge(event.kind(), 1L, Long::sum);
          report.add(event);
        });
    ExampleLines parser = new ExampleLines(learner);
    LineReader reader = new LineReader(in, MAX_LINE);
    List<Example> batch = new ArrayList<>();
    int size = recipe.settings().batch();
    long begin = System.nanoTime();
    long before = learner.seen();
    long lastPublished = before;
    LearnerVersions versions =
        new LearnerVersions(store, learner, recipe, signing, parent, common::note);
    long looked = System.nanoTime();
    boolean tooMany = false;
    LiveLine live = new LiveLine(common.err());
    boolean stop = false;
    while (!tooMany && !stop) {
      stop = interrupts.requested();
      String line = reader.next();
      boolean atEnd = line == null;
      if (atEnd && !follow) {
        line = reader.rest();
      }
      if (line != null) {
        lines = reader.number();
        if (lines <= skip) {
          recall(parser, line);
        } else if (!line.isBlank()) {
          Example example = parse(parser, learner, reader, line, quarantine);
          if (example != null) {
            batch.add(example);
          }
          tooMany = bad > maxBad;
        }
      }
      boolean idle = atEnd && line == null;
      if (batch.size() == size || (idle || tooMany || stop) && !batch.isEmpty()) {
        learner.learn(batch);
        batch.clear();
        if (report.wants(learner.seen())) {
          report.add(learner.seen(), learner.metrics());
        }
        live.show(learner, learner.seen() - before, begin, events);
        if (learner.seen() - lastPublished >= learning.publishEvery()) {
          publish(learner, versions, report);
          lastPublished = learner.seen();
        }
      }
      if (batch.isEmpty() && System.nanoTime() - looked >= LOOK_NANOS) {
        looked = System.nanoTime();
        if (versions.follow()) {
          lastPublished = learner.seen();
        }
      }
      if (idle) {
        if (!follow) {
          break;
        }
        try {
          Thread.sleep(100);
        } catch (InterruptedException e) {
          break;
        }
      }
    }
    live.clear();
    if (learner.seen() > lastPublished || published.isEmpty()) {
      publish(learner, versions, report);
    }
    double seconds = (System.nanoTime() - begin) * 1e-9;
    report.add(learner.seen(), learner.metrics());
    if (reportPath != null) {
      try (AtomicFile file = AtomicFile.create(reportPath)) {
        String html = report.html(summary(learner, versions, seconds, before));
        file.write(ByteBuffer.wrap(html.getBytes(StandardCharsets.UTF_8)));
        file.commit();
      }
    }
    print(learner, versions, seconds, before);
    if (tooMany) {
      throw new InputException(
          "more than "
              + maxBad
              + " lines of "
              + input
              + " could not be used, the last of them line "
              + lines
              + "; what was learned before is version "
              + published.get(published.size() - 1));
    }
  }

  private Example parse(
      ExampleLines parser,
      OnlineLearner learner,
      LineReader reader,
      String line,
      Quarantine quarantine) {
    try {
      if (reader.wasTooLong()) {
        throw new InputException("the line has more than " + MAX_LINE + " bytes");
      }
      if (csv) {
        Example example = parser.csv(line);
        learner.check(example);
        return example;
      }
      return example(parser.part(line), learner);
    } catch (InputException e) {
      if (csv && reader.number() == 1 && line.matches(".*[A-Za-z_].*")) {
        return null; // names of columns
      }
      bad++;
      if (bad <= 5) {
        common.note("line " + reader.number() + ": " + e.getMessage());
      } else if (bad == 6) {
        common.note("more lines cannot be used; --quarantine keeps all of them");
      }
      if (quarantine != null) {
        quarantine.addLine(
            reader.number(), e.getMessage(), line.substring(0, Math.min(10_000, line.length())));
      }
      return null;
    }
  }

  /** The example of a line; null where its outcome comes later. */
  private Example example(ExampleLines.Parsed line, OnlineLearner learner) {
    if (line.label() == null && line.values() == null) {
      waiting.remember(line.id(), line.features(), learner.version());
      return null;
    }
    int label = line.label() == null ? -1 : line.label();
    boolean whole = line.features() != null;
    float[] features = whole ? line.features() : new float[learner.features()];
    Example example = new Example(line.id(), features, label, line.values());
    learner.check(example); // before a case is taken out, so that a wrong label can be sent again
    return whole
        ? example
        : new Example(line.id(), waiting.join(line.id()).features(), label, line.values());
  }

  /** A line that was read before the version that is gone on with: what it waits for may still come. */
  private void recall(ExampleLines parser, String line) {
    boolean outcome = line.contains("\"label\"") || line.contains("\"values\"");
    if (csv || outcome == line.contains("\"features\"")) {
      return;
    }
    try {
      ExampleLines.Parsed part = parser.part(line);
      if (part.features() == null) {
        waiting.join(part.id());
      } else if (part.label() == null && part.values() == null) {
        waiting.remember(part.id(), part.features(), 0);
      }
    } catch (InputException e) {
      // It was counted when it was read first.
      return;
    }
  }

  private void publish(OnlineLearner learner, LearnerVersions versions, OnlineReport report) {
    Lineage lineage =
        Lineage.NONE
            .withSource(input)
            .withData(new Lineage.DataWindow(input, skip, Math.max(skip, lines)));
    Version version = versions.publish(lineage, () -> wait.writer(versions.store()));
    published.add(version.id());
    report.published(learner.seen(), version.id(), learner.version());
  }

  private Map<String, String> summary(
      OnlineLearner learner, LearnerVersions versions, double seconds, long before) {
    Map<String, String> map = new LinkedHashMap<>();
    long done = learner.seen() - before;
    map.put(
        "examples",
        done
            + " in "
            + Format.seconds(seconds)
            + String.format(Locale.ROOT, ", %.0f a second", done / seconds));
    map.put("learned", learner.learned() + ", " + learner.removed() + " taken out or back");
    map.put("lines that could not be used", Long.toString(bad));
    map.put("steps", Long.toString(learner.steps()));
    learner
        .metrics()
        .forEach((name, value) -> map.put(name, String.format(Locale.ROOT, "%.4f", value)));
    if (learner.epsilon() != null) {
      map.put("epsilon", String.format(Locale.ROOT, "%.3f", learner.epsilon()));
    }
    map.put("events", events.isEmpty() ? "none" : events.toString().toLowerCase(Locale.ROOT));
    map.put("store", versions.store().folder() + ", version " + versions.current() + " is current");
    return map;
  }

  private void print(OnlineLearner learner, LearnerVersions versions, double seconds, long before) {
    if (!common.json()) {
      Table table = new Table("", "");
      summary(learner, versions, seconds, before).forEach(table::add);
      table.print(common.out());
      return;
    }
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("lines", Math.max(0, lines - skip)).put("bad", bad).put("seen", learner.seen());
    json.put("learned", learner.learned()).put("removed", learner.removed());
    json.put("steps", learner.steps()).put("seconds", seconds);
    json.put("examples_per_second", (learner.seen() - before) / seconds);
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
