package org.espalier.cli;

import java.io.IOException;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.format.CsvLine;
import org.espalier.online.ClassNames;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.OnlineLearner;
import org.espalier.online.PendingLabels;
import org.espalier.online.Quarantine;

/**
 * Makes examples of lines: joins outcomes with what came before them, and counts and keeps what cannot be used. Features of
 * texts and images are made several lines ahead, on as many threads as there are processors.
 */
final class OnlineExamples implements AutoCloseable {
  /** Lines that are read ahead for each thread. */
  private static final int AHEAD = 8;

  /** No line is read ahead behind so many characters. */
  private static final int MOST_AHEAD = 1 << 24;

  /** Examples whose outcome may still come; older ones are forgotten. */
  private static final int WAITING = 100_000;

  private final OnlineLearner learner;
  private final boolean csv;
  private final Quarantine quarantine;
  private final Consumer<String> note;
  private final ExampleLines parser;
  private final PendingLabels waiting;

  /** Under which key lines have what features are made of; null where they have features. */
  private final String key;

  /** Make features; null where lines have them. */
  private final ExecutorService readers;

  /** What is read ahead, by the line's number. */
  private final Map<Long, Future<ExampleLines.Parsed>> ahead = new HashMap<>();

  private long bad;

  /**
   * @param learner what the examples must fit
   * @param csv whether lines are numbers with commas between, and not JSON
   * @param names what labels may be called
   * @param encoded what features are made of; null where lines have them
   * @param quarantine of lines that cannot be used; null for none
   * @param note tells the user of the first of them
   */
  OnlineExamples(
      OnlineLearner learner,
      boolean csv,
      ClassNames names,
      ExampleLines.Encoded encoded,
      Quarantine quarantine,
      Consumer<String> note) {
    this.learner = learner;
    this.csv = csv;
    this.quarantine = quarantine;
    this.note = note;
    this.parser = new ExampleLines(learner, names, encoded);
    this.key = encoded == null ? null : encoded.key();
    this.readers =
        key != null ? Executors.newFixedThreadPool(CpuThreads.get(), OnlineExamples::daemon) : null;
    this.waiting = new PendingLabels(PendingLabels.capacity(WAITING, learner.features()));
  }

  private static Thread daemon(Runnable task) {
    Thread thread = new Thread(task, "espalier-features");
    thread.setDaemon(true);
    return thread;
  }

  /** Has the features made of lines that come next and can be read without waiting. */
  void lookAhead(LineReader reader) throws IOException {
    long characters = 0;
    for (int i = 0; key != null && i < AHEAD * CpuThreads.get() && characters < MOST_AHEAD; i++) {
      LineReader.Line line = reader.peek(i, false, () -> true);
      if (line == null) {
        return;
      }
      characters += line.text().length();
      if (line.problem() == null && !line.text().isBlank()) {
        ahead.computeIfAbsent(
            line.number(), number -> readers.submit(() -> parser.part(line.text())));
      }
    }
  }

  private ExampleLines.Parsed parsed(LineReader.Line line) {
    Future<ExampleLines.Parsed> begun = ahead.remove(line.number());
    if (begun == null) {
      return parser.part(line.text());
    }
    try {
      return begun.get();
    } catch (ExecutionException e) {
      if (e.getCause() instanceof RuntimeException cause) {
        throw cause;
      }
      throw new IllegalStateException("a line could not be read", e.getCause());
    } catch (InterruptedException e) {
      throw new IllegalStateException("nobody interrupts who reads lines", e);
    }
  }

  /** Leaves what is read ahead; closing the encoder waits for what it has begun. */
  @Override
  public void close() {
    if (readers != null) {
      ahead.values().forEach(line -> line.cancel(false));
      readers.shutdown();
    }
  }

  /** How many lines could not be used. */
  long bad() {
    return bad;
  }

  /** How many examples wait for their outcome. */
  int waiting() {
    return waiting.waiting();
  }

  /** How many examples were given up before their outcome came. */
  long expired() {
    return waiting.expired();
  }

  /** The example of a line; null where its outcome comes later, or it cannot be used. */
  Example read(LineReader.Line line) {
    String text = line.text();
    try {
      if (line.problem() != null) {
        throw new InputException(line.problem());
      }
      if (!csv) {
        return example(parsed(line));
      }
      if (line.number() == 1 && CsvLine.isHeader(text)) {
        return null;
      }
      Example example = parser.csv(text);
      learner.check(example);
      return example;
    } catch (InputException e) {
      bad++;
      if (bad <= 5) {
        note.accept("line " + line.number() + ": " + e.getMessage());
      } else if (bad == 6) {
        note.accept("more lines cannot be used; --quarantine keeps all of them");
      }
      if (quarantine != null) {
        quarantine.addLine(
            line.number(), e.getMessage(), text.substring(0, Math.min(10_000, text.length())));
      }
      return null;
    }
  }

  /** The example of a line; null where its outcome comes later. */
  private Example example(ExampleLines.Parsed line) {
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
  void recall(LineReader.Line line) {
    String text = line.text();
    boolean outcome = text.contains("\"label\"") || text.contains("\"values\"");
    boolean input =
        text.contains("\"features\"")
            || text.contains("\"inputs\"")
            || key != null && text.contains("\"" + key + "\"");
    if (csv || line.problem() != null || outcome == input) {
      return;
    }
    try {
      example(parser.part(text));
    } catch (InputException e) {
      // It was counted when it was read first.
      return;
    }
  }
}
