package org.espalier.evaluate;

import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Bounds the work of a tokenizer's patterns on a text. A pattern as {@code \s+$} is tried at each character of a run of
 * blanks, and each time goes through the rest of the run: n² steps for n blanks, and n³ where two repetitions of the
 * same characters follow each other. The tokenizers library cannot be stopped meanwhile, and ends the process where one
 * match takes ten million steps. So texts with runs that are too long are refused.
 *
 * <p>An alternative that fails does no harm where another one takes the run, as in {@code \s*[\r\n]+|\s+}. Whether it
 * does is found by Java's own regular expressions, which try alternatives in the same order, on a text that counts the
 * characters that are read.
 *
 * <p>Safe for use by several threads.
 */
final class PatternWork {
  /** Steps that take seconds. */
  private static final double MOST = 1e9;

  /** Characters that Java's expressions look at in about that time. */
  private static final long MOST_LOOKED_AT = 100_000_000;

  /** In one alternative of a pattern, repetitions that have characters in common. */
  private record Retried(BitSet characters, int repetitions) {
    double steps(long run) {
      return Math.pow(run, repetitions + 1);
    }

    /** The longest run that is allowed. */
    long most() {
      return (long)
          (Math.pow(MOST, 1.0 / (repetitions + 1)) + 1e-6); // which the root of a power may lack
    }

    double steps(String text) {
      double steps = 0;
      long run = 0;
      for (int at = 0; at < text.length(); ) {
        int character = text.codePointAt(at);
        at += Character.charCount(character);
        if (characters.get(character)) {
          run++;
        } else {
          steps += steps(run);
          run = 0;
        }
      }
      return steps + steps(run);
    }
  }

  /**
   * A pattern and what it does again and again.
   *
   * @param java null where Java has no such
   */
  private record Looked(String pattern, Pattern java, List<Retried> retried) {}

  private final List<String> patterns;
  private final boolean renamed;
  private List<Looked> looked;

  /**
   * @param patterns that are looked for in texts
   * @param renamed whether characters become others before, so that a text's own tell nothing
   */
  PatternWork(List<String> patterns, boolean renamed) {
    this.patterns = List.copyOf(patterns);
    this.renamed = renamed;
  }

  /**
   * Looks at a text.
   *
   * @return why it is too much; null where it is not
   */
  String objection(String text) {
    if (patterns.isEmpty()) {
      return null;
    }
    for (Looked one : looked()) {
      Retried hardest = null;
      for (Retried r : one.retried) {
        if (r.steps(text.length()) > MOST
            && (renamed || r.steps(text) > MOST)
            && (hardest == null || r.repetitions > hardest.repetitions)) {
          hardest = r;
        }
      }
      if (hardest == null) {
        continue;
      }
      boolean seen = !renamed && hardest.repetitions == 1 && one.java != null;
      if (!seen || !ends(one.java, text)) {
        return "its pattern "
            + one.pattern
            + " would be tried from each of very many characters on that follow each other and"
            + " match a repetition in it, which may take minutes; "
            + hardest.most()
            + " such characters in a row are possible";
      }
    }
    return null;
  }

  /** Made with the first text, and not for files whose texts are never read. */
  private synchronized List<Looked> looked() {
    if (looked == null) {
      List<Looked> all = new ArrayList<>();
      for (String pattern : patterns) {
        List<Retried> retried = new ArrayList<>();
        Repetitions.retried(pattern).forEach(sets -> retried.addAll(connected(sets)));
        if (!retried.isEmpty()) {
          all.add(new Looked(pattern, Repetitions.java(pattern), retried));
        }
      }
      looked = all;
    }
    return looked;
  }

  /** Repetitions of characters that others have too may share a run in any way. */
  private static List<Retried> connected(List<BitSet> sets) {
    List<Retried> connected = new ArrayList<>();
    for (BitSet set : sets) {
      BitSet characters = (BitSet) set.clone();
      int repetitions = 1;
      for (Retried other : List.copyOf(connected)) {
        if (other.characters.intersects(set)) {
          connected.remove(other);
          characters.or(other.characters);
          repetitions += other.repetitions;
        }
      }
      connected.add(new Retried(characters, repetitions));
    }
    return connected;
  }

  /** Whether all matches in a text are found by looking at no more characters than are allowed. */
  private static boolean ends(Pattern pattern, String text) {
    Matcher matcher = pattern.matcher(new Counted(text));
    try {
      while (matcher.find()) {
        // On to the next one.
      }
      return true;
    } catch (TooManyException | StackOverflowError e) {
      return false;
    }
  }

  private static final class TooManyException extends RuntimeException {
    private static final long serialVersionUID = 1;

    TooManyException() {
      super(null, null, false, false);
    }
  }

  /** A text that can be looked at so often. */
  private static final class Counted implements CharSequence {
    private final String text;
    private long left = MOST_LOOKED_AT;

    Counted(String text) {
      this.text = text;
    }

    @Override
    public int length() {
      return text.length();
    }

    @Override
    public char charAt(int index) {
      if (--left < 0) {
        throw new TooManyException();
      }
      return text.charAt(index);
    }

    @Override
    public CharSequence subSequence(int from, int to) {
      return text.subSequence(from, to);
    }

    @Override
    public String toString() {
      return text;
    }
  }
}
