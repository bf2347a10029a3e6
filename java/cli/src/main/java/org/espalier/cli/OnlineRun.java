package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.format.Quantity;
import org.espalier.online.Event;
import org.espalier.online.Example;
import org.espalier.online.OnlineLearner;
import org.espalier.online.privacy.PrivacyBudgetException;
import org.espalier.online.report.OnlineReport;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;

/**
 * A learner that goes through a stream: examples are learned batch by batch, versions are published meanwhile, and what
 * others make current in the store is taken over. What ended it early is {@linkplain #requireComplete told} when
 * everything that was learned has been published and reported.
 */
final class OnlineRun {
  /** How long it waits before it tries again to publish. */
  private static final long RETRY_NANOS = 10_000_000_000L;

  /** How often it looks what others made current. */
  private static final long LOOK_NANOS = 500_000_000L;

  /** How long it waits for more of a file that is followed. */
  private static final long WAIT_MILLIS = 100;

  /**
   * How far a run goes.
   *
   * @param follow whether it waits for more at the end of the file
   * @param maxBad more lines than this that cannot be used end it
   * @param publishEvery examples from one version to the next
   */
  record Limits(boolean follow, long maxBad, long publishEvery) {}

  private final Limits limits;
  private final OnlineInput in;
  private final StreamPlace place;
  private final OnlineExamples examples;
  private final OnlineLearner learner;
  private final LearnerVersions versions;
  private final Supplier<StoreWriter> writers;
  private final Interrupts interrupts;
  private final LiveLine live;

  private final OnlineReport report;
  private final Map<Event.Kind, Long> events = new EnumMap<>(Event.Kind.class);
  private final List<Long> published = new ArrayList<>();
  private final List<Example> batch = new ArrayList<>();
  private final long begin = System.nanoTime();
  private double seconds;

  /** Examples of this run; what the learner has seen goes back with a rollback. */
  private long done;

  /** What the learner had seen when it was a version last. */
  private long lastPublished;

  /** Before this time it does not try again to publish. */
  private long retry = begin;

  /** When it looked last what others made current. */
  private long looked;

  /** What was noted about a store that cannot be read. */
  private String complaint;

  /** Whether the user is to be told, once its lines are known, who has learned this stream before. */
  private boolean repetitionUntold;

  /** Whether another file has taken the stream's name; what was written to the old one meanwhile is read first. */
  private boolean replaced;

  /** What the budget of privacy said when it was spent; null while it is not. */
  private PrivacyBudgetException spent;

  /** Why what was learned last is in no version; null where it is in one. */
  private InputException unpublished;

  /**
   * @param writers gives access to the store of the versions
   */
  OnlineRun(
      Limits limits,
      OnlineInput in,
      StreamPlace place,
      OnlineExamples examples,
      OnlineLearner learner,
      LearnerVersions versions,
      Supplier<StoreWriter> writers,
      Interrupts interrupts,
      LiveLine live) {
    this.limits = limits;
    this.in = in;
    this.place = place;
    this.examples = examples;
    this.learner = learner;
    this.versions = versions;
    this.writers = writers;
    this.interrupts = interrupts;
    this.live = live;
    report = new OnlineReport("espalier online: " + place.stream());
    lastPublished = learner.seen();
    repetitionUntold = learner.settings().privacy() != null;
    learner.onEvent(
        event -> {
          live.clear(); // what is logged about it gets a line of its own
          events.merge(event.kind(), 1L, Long::sum);
          report.add(event);
        });
  }

  /**
   * Learns until the stream ends, or the user, the budget of privacy or lines that cannot be used end it. What was
   * learned is a version then, where the store could be written.
   *
   * @param resumed whether the store has a version that these lines are learned after
   */
  void learn(boolean resumed) throws IOException {
    boolean isNew = versions.store().current().isEmpty();
    versions.account();
    looked = System.nanoTime();
    boolean goesOn = true;
    while (goesOn) {
      goesOn = advance();
    }
    live.clear();
    if (place.line() < place.skipped() && !interrupts.requested()) {
      live.note(
          place.stream()
              + " has "
              + place.line()
              + " lines only, of "
              + place.skipped()
              + " that were seen: nothing is new");
    }
    if (repetitionUntold && done > 0) {
      noteRepetition();
    }
    // A model is a version of a new store, whatever is learned. What learned nothing is no reason
    // to
    // replace another version; a resumed run has come further in its lines.
    boolean first = published.isEmpty() && (isNew || resumed && place.read() > 0);
    if (learner.seen() > lastPublished || first) {
      unpublished = publish();
    } else if (done == 0) {
      live.note("there was nothing to learn: no version was published");
    }
    seconds = (System.nanoTime() - begin) * 1e-9;
    report.add(learner.seen(), learner.metrics());
  }

  /** Goes one line on, with what it is time for then; false where that was the last. */
  private boolean advance() throws IOException {
    boolean stop = interrupts.requested();
    LineReader.Line line = in.reader().next();
    boolean atEnd = line == null && in.reader().isAtEnd();
    if (atEnd && (!limits.follow() || replaced)) {
      line = in.reader().rest();
    }
    if (line != null) {
      gather(line);
    }
    boolean isFull = batch.size() == learner.settings().batch();
    if (stop && !hasTooManyBad() && in.isReadAgain() && !batch.isEmpty() && !isFull) {
      // Left for --resume, whose batches are then those of a run that was not stopped.
      place.leaveUnread();
      batch.clear();
    }
    boolean idle = atEnd && line == null;
    boolean ends = stop || hasTooManyBad();
    if (isFull || (idle || ends) && !batch.isEmpty()) {
      if (!learnBatch()) {
        return false;
      }
      if (repetitionUntold && (place.isKnown() || atEnd)) {
        noteRepetition();
        repetitionUntold = false;
      }
      show();
      publishWhereDue();
    }
    if (batch.isEmpty() && System.nanoTime() - looked >= LOOK_NANOS) {
      looked = System.nanoTime();
      followStore();
    }
    return (!idle || awaitMore()) && !ends;
  }

  /** Makes an example of a line, where it is new. */
  private void gather(LineReader.Line line) throws IOException {
    if (!place.enter(line)) {
      examples.recall(line);
    } else if (!line.text().isBlank()) {
      examples.lookAhead(in.reader());
      Example example = examples.read(line);
      if (example != null) {
        batch.add(example);
      }
    }
  }

  private boolean hasTooManyBad() {
    return examples.bad() > limits.maxBad();
  }

  /** Learns what was gathered; false where privacy does not allow it. */
  private boolean learnBatch() {
    place.tell(learner);
    try {
      learner.learn(batch);
    } catch (PrivacyBudgetException e) {
      if (done == 0) {
        throw e;
      }
      spent = e;
      place.goBack();
      place.tell(learner);
      return false;
    }
    place.learned();
    done += batch.size();
    batch.clear();
    return true;
  }

  private void show() {
    if (report.wants(learner.seen())) {
      report.add(learner.seen(), learner.metrics());
    }
    live.show(learner, done, begin, events);
  }

  private void publishWhereDue() {
    if (learner.seen() - lastPublished >= limits.publishEvery() && System.nanoTime() >= retry) {
      if (publish() != null) {
        retry = System.nanoTime() + RETRY_NANOS;
      }
    }
  }

  /** Takes over what others made current; a store that cannot be read is noted and not the end. */
  private void followStore() {
    try {
      if (versions.follow()) {
        lastPublished = learner.seen();
      }
    } catch (InputException e) {
      if (!e.getMessage().equals(complaint)) {
        complaint = e.getMessage();
        live.note(complaint);
      }
    }
  }

  /** Where there is nothing to read now; false where nothing will come. */
  private boolean awaitMore() throws IOException {
    if (!limits.follow()) {
      return false;
    }
    if (replaced) {
      goOnWithAnotherFile();
    } else if (in.isReplaced()) {
      replaced = true;
    } else {
      try {
        Thread.sleep(WAIT_MILLIS);
      } catch (InterruptedException e) {
        return false;
      }
    }
    return true;
  }

  private void goOnWithAnotherFile() throws IOException {
    // What was learned so far is of lines that no resumption could find again.
    if (learner.seen() > lastPublished) {
      publish();
    }
    live.note(place.stream() + " is another file now; going on with its first line");
    in.reopen();
    replaced = false;
    learner.beginPass();
    repetitionUntold = learner.settings().privacy() != null;
    place.beginAnew();
  }

  /** Publishes; what is wrong with the store is noted, given back, and does not end the learning. */
  private InputException publish() {
    Lineage lineage = Lineage.NONE.withSource(place.stream()).withData(place.window());
    try {
      Version version = versions.publish(lineage, writers);
      published.add(version.id());
      report.published(learner.seen(), version.id(), learner.version());
      lastPublished = learner.seen();
      return null;
    } catch (InputException e) {
      live.note("no version could be published: " + e.getMessage());
      return e;
    }
  }

  /** Versions that learned these lines before are told: epsilon is of all private ones together. */
  private void noteRepetition() {
    ModelStore store = versions.store();
    String before = null;
    String openly = null;
    for (long id : store.ids()) {
      Lineage lineage;
      try {
        lineage = store.version(id).lineage();
      } catch (InputException e) {
        continue; // of no use to anybody
      }
      if (!published.contains(id) && place.repeats(lineage.data())) {
        String text =
            "version "
                + id
                + " has learned lines up to "
                + lineage.data().to()
                + " of this stream before";
        before = lineage.epsilon() == null ? before : text;
        openly = lineage.epsilon() == null ? text : openly;
      }
    }
    if (before != null) {
      live.note(
          String.format(
              Locale.ROOT,
              "%s: epsilon %.4g is of all private passes over them",
              before,
              learner.epsilon()));
    }
    if (openly != null) {
      live.note(openly + ", and not in private: epsilon is not for who sees that version");
    }
  }

  /**
   * Tells what ended the run before the stream did.
   *
   * @throws InputException that says why, and what became of what was learned
   */
  void requireComplete() {
    if (unpublished != null) {
      throw new InputException(
          "what was learned last is in no version: " + unpublished.getMessage(), unpublished);
    }
    if (spent != null) {
      throw new InputException(
          spent.getMessage()
              + ". Learning stopped before line "
              + place.firstNotLearned()
              + " of "
              + place.stream()
              + learnedBefore("no version was published"),
          spent);
    }
    if (hasTooManyBad()) {
      throw new InputException(
          "more than "
              + limits.maxBad()
              + " lines of "
              + place.stream()
              + " could not be used, the last of them line "
              + place.line()
              + learnedBefore("nothing was learned"));
    }
  }

  private String learnedBefore(String nothing) {
    return published.isEmpty()
        ? "; " + nothing
        : "; what was learned before is version " + published.get(published.size() - 1);
  }

  /** The report of the run as a page. */
  String html() {
    return report.html(summary());
  }

  /** The run in a few lines, by what each tells. */
  Map<String, String> summary() {
    Map<String, String> map = new LinkedHashMap<>();
    map.put(
        "examples",
        done
            + " in "
            + Quantity.seconds(seconds)
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

  /** The run for programs. */
  ObjectNode json() {
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("lines", place.read()).put("bad", examples.bad()).put("seen", learner.seen());
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
    return json;
  }
}
