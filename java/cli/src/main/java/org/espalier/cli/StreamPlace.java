package org.espalier.cli;

import java.util.ArrayList;
import java.util.List;
import org.espalier.online.OnlineLearner;
import org.espalier.store.Lineage;

/** Where a run is in the stream that it learns, and by what the stream is known again. */
final class StreamPlace {
  /** So many first lines of a stream are recorded, by which it is known again. */
  private static final int BEGINS = 16;

  private final String stream;

  /** Digests of the stream's first lines. */
  private final List<String> begins = new ArrayList<>();

  /** Lines that were learned before this run. */
  private long skip;

  /** The number of the newest line. */
  private long lines;

  /** The number of the last line that all was learned up to. */
  private long learned;

  /** Lines that were new, those of files that were replaced included. */
  private long read;

  /**
   * @param stream the name that it is given
   * @param seen how many of its lines are not learned again
   */
  StreamPlace(String stream, long seen) {
    this.stream = stream;
    this.skip = seen;
    this.learned = seen;
  }

  /** The name of the stream. */
  String stream() {
    return stream;
  }

  /** Goes to a line; whether it is to be learned, and none that was seen before this run. */
  boolean enter(LineReader.Line line) {
    lines = line.number();
    if (begins.size() < BEGINS && lines == begins.size() + 1) {
      begins.add(OnlineInput.digest(line.text()));
    }
    if (lines <= skip) {
      return false;
    }
    read++;
    return true;
  }

  /** All lines up to here are learned now. */
  void learned() {
    learned = lines;
  }

  /** What was entered since the last line that was learned is not learned in this run. */
  void goBack() {
    lines = learned;
  }

  /** What was entered since the last line that was learned is as if it had not been read. */
  void leaveUnread() {
    read -= lines - learned;
    lines = learned;
  }

  /** Another file has the name now; its lines are all new. */
  void beginAnew() {
    begins.clear();
    lines = 0;
    learned = 0;
    skip = 0;
  }

  /** The number of the newest line. */
  long line() {
    return lines;
  }

  /** The number of the first line that is not learned. */
  long firstNotLearned() {
    return learned + 1;
  }

  /** Lines that were new in this run. */
  long read() {
    return read;
  }

  /** Lines that were seen before this run. */
  long skipped() {
    return skip;
  }

  /** Whether as many first lines are known as are ever recorded. */
  boolean isKnown() {
    return begins.size() == BEGINS;
  }

  /** The lines that are learned, those before this run included. */
  Lineage.DataWindow window() {
    return new Lineage.DataWindow(stream, skip, Math.max(skip, lines), begins);
  }

  /** Tells a learner which lines the examples are from that it learns next, or has learned last. */
  void tell(OnlineLearner learner) {
    learner.pass(begins, skip, Math.max(skip, lines));
  }

  /** Whether a version with this window has learned lines that this run learns. */
  boolean repeats(Lineage.DataWindow window) {
    int known = window == null ? 0 : Math.min(begins.size(), window.begins().size());
    return known > 0
        && window.to() > skip
        && begins.subList(0, known).equals(window.begins().subList(0, known));
  }
}
