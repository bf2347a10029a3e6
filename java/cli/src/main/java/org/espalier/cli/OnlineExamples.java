package org.espalier.cli;

import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.OnlineLearner;
import org.espalier.online.PendingLabels;
import org.espalier.online.Quarantine;

/** Makes examples of lines: joins outcomes with what came before them, and counts and keeps what cannot be used. */
final class OnlineExamples {
  /** Examples whose outcome may still come; older ones are forgotten. */
  private static final int WAITING = 100_000;

  private final OnlineLearner learner;
  private final boolean csv;
  private final Quarantine quarantine;
  private final Consumer<String> note;
  private final ExampleLines parser;
  private final PendingLabels waiting;
  private long bad;

  /**
   * @param learner what the examples must fit
   * @param csv whether lines are numbers with commas between, and not JSON
   * @param quarantine of lines that cannot be used; null for none
   * @param note tells the user of the first of them
   */
  OnlineExamples(OnlineLearner learner, boolean csv, Quarantine quarantine, Consumer<String> note) {
    this.learner = learner;
    this.csv = csv;
    this.quarantine = quarantine;
    this.note = note;
    this.parser = new ExampleLines(learner);
    this.waiting = new PendingLabels(PendingLabels.capacity(WAITING, learner.features()));
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
        return example(parser.part(text));
      }
      if (line.number() == 1 && ExampleLines.isCsvHeader(text)) {
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
    if (csv || line.problem() != null || outcome == text.contains("\"features\"")) {
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
