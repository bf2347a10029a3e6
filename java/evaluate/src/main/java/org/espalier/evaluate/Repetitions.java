package org.espalier.evaluate;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.Collections;
import java.util.Deque;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BooleanSupplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import java.util.stream.IntStream;

/**
 * Finds regular expressions of Oniguruma that backtrack exponentially, as {@code (a+)+} does: where the rest does not
 * match, all ways to repeat are tried. Oniguruma ends a match after ten million steps, and the tokenizers library then
 * ends the process.
 *
 * <p>A repeated group is harmless where in each round the next character tells the only way on (strong determinism in
 * the sense of Brüggemann-Klein), as in {@code (?:\p{L}\p{M}*)+} and {@code (?:\d{3})+}; where nothing behind it can
 * fail; and where it is atomic or possessive. Repetitions of single characters take time that is polynomial in the
 * length of the text; {@link #retried} finds these, for {@link PatternWork}.
 */
final class Repetitions {
  private static final int ENDLESS = Integer.MAX_VALUE;
  private static final int DEPTH = 100;
  private static final int LONGEST = 5000;

  /** To find what one holds takes some hundredths of a second. */
  private static final int SETS = 50;

  /** Repetitions of fewer rounds than this are taken as harmless: they multiply the work by little. */
  private static final int MANY = 100;

  /** Any character. */
  private static final Set<String> ANY = Set.of(".");

  private static final Pattern REPEATED_GROUP =
      Pattern.compile("\\)[*+{]|\\{[\\d,]+\\}[*+{]|[*+?][*{]");
  private static final Pattern ANY_CASE = Pattern.compile("\\(\\?[a-zA-Z]*i");
  private static final Pattern ANCHOR = Pattern.compile("[\\^$]|\\\\[AzZbBG]");
  private static final Pattern OPTIONS = Pattern.compile("\\(\\?[im]*(?:-[im]+)?\\)");
  private static final Pattern LOOKAROUND = Pattern.compile("\\(\\?<?[=!]");
  private static final Pattern ATOMIC = Pattern.compile("\\(\\?>");
  private static final Pattern GROUP =
      Pattern.compile("\\((?!\\?)|\\(\\?[im]*(?:-[im]+)?:|\\(\\?<[a-zA-Z]\\w*>");
  private static final Pattern QUANTIFIER =
      Pattern.compile(
          "(?:([*+?])|\\{(?<exact>\\d{1,6})\\}|\\{(?<low>\\d{0,6}),(?<high>\\d{0,6})(?<!\\{,)\\})");

  /** The same for Java as for Oniguruma. */
  private static final Pattern ESCAPE =
      Pattern.compile(
          "\\\\(?:[sSdDwWtnrfe0]|[^a-zA-Z0-9]|x\\p{XDigit}{2}|u\\p{XDigit}{4}"
              + "|x\\{\\p{XDigit}{1,6}\\}|[pP]\\{\\^?\\w+\\})",
          Pattern.DOTALL);

  /** In brackets. */
  private static final Pattern OTHER_IN_JAVA = Pattern.compile("\\[:|\\\\[hHvVRXN]");

  /** What lets . match the ends of lines too. */
  private static final Pattern OTHER_OPTION = Pattern.compile("\\(\\?[a-zA-Z-]*m");

  private static final Pattern PROPERTY = Pattern.compile("\\\\([pP])\\{(\\^?)(\\w+)\\}");

  private final String regex;
  private final int flags;
  private final Map<String, BitSet> sets = new HashMap<>();

  /**
   * By alternative of the whole, the characters of each repetition behind which something may fail; empty for one that a
   * repeated group stands for.
   */
  private final List<List<Set<String>>> retried = new ArrayList<>();

  private int at;
  private int depth;
  private String found;
  private boolean understood = true;

  private Repetitions(String regex) {
    this.regex = regex;
    boolean anyCase = ANY_CASE.matcher(regex).find();
    flags =
        Pattern.UNICODE_CHARACTER_CLASS
            | Pattern.DOTALL
            | (anyCase ? Pattern.CASE_INSENSITIVE | Pattern.UNICODE_CASE : 0);
  }

  /**
   * The first such repetition of an expression.
   *
   * @return null where there is none; in an expression that repeats groups, what is not understood of it counts as
   *     one, and so does all of one that is too long to tell
   */
  static String ambiguous(String regex) {
    if (!REPEATED_GROUP.matcher(regex).find()) {
      return null;
    }
    if (regex.length() > LONGEST) {
      return regex;
    }
    Repetitions repetitions = new Repetitions(regex);
    repetitions.alternatives();
    return repetitions.found;
  }

  /**
   * What an expression tries again and again, round by round and from each character of a text on: repetitions behind
   * which something may fail.
   *
   * @return for each alternative of the whole the characters that each such repetition consists of, those of a repeated
   *     group and of what is not understood being all that there are
   */
  static List<List<BitSet>> retried(String regex) {
    Repetitions repetitions = new Repetitions(regex);
    if (regex.length() <= LONGEST) {
      repetitions.alternatives();
    }
    if (repetitions.at < regex.length() || !repetitions.understood) {
      repetitions.retried.add(List.of(ANY));
    }
    return repetitions.retried.stream()
        .filter(sets -> !sets.isEmpty())
        .map(
            sets ->
                sets.stream().filter(set -> !set.isEmpty()).map(repetitions::characters).toList())
        .toList();
  }

  /** The same expression for Java; null where it may mean something else there. */
  static Pattern java(String regex) {
    Repetitions repetitions = new Repetitions(regex);
    if (regex.length() <= LONGEST) {
      repetitions.alternatives();
    }
    boolean same = repetitions.at == regex.length() && repetitions.understood;
    if (!same || OTHER_IN_JAVA.matcher(regex).find() || OTHER_OPTION.matcher(regex).find()) {
      return null;
    }
    try {
      return Pattern.compile(
          javaText(regex),
          Pattern.UNICODE_CHARACTER_CLASS | Pattern.MULTILINE | Pattern.UNIX_LINES);
    } catch (PatternSyntaxException e) {
      return null;
    }
  }

  /**
   * What is known of a part.
   *
   * @param first the characters that it may begin with, as expressions of one each
   * @param onward those with which it may go on where it may end
   * @param empty whether it may be empty
   * @param fails whether there are places where it does not match
   * @param clear whether within it the next character always tells the only way
   * @param pending a repetition at its end that is tried in all ways where what follows fails; null for none
   * @param last repetitions at its end that are tried round by round where what follows fails
   */
  private record Part(
      Set<String> first,
      Set<String> onward,
      boolean empty,
      boolean fails,
      Clear clear,
      String pending,
      List<Rounds> last) {
    static final Part NOTHING =
        new Part(Set.of(), Set.of(), true, false, Clear.ALWAYS, null, List.of());

    /** An anchor, or what is looked for around a place. */
    static final Part CONDITION =
        new Part(Set.of(), Set.of(), true, true, Clear.ALWAYS, null, List.of());

    static Part character(String expression) {
      return new Part(Set.of(expression), Set.of(), false, true, Clear.ALWAYS, null, List.of());
    }

    /** What matches in one way from where it begins; it begins at the next character too. */
    Part atomic() {
      return new Part(first, Set.of(), empty, fails, Clear.ALWAYS, null, last);
    }
  }

  /**
   * Whether the next character tells the only way, of a part and of those that it consists of: asked for only where it
   * is repeated, and without a call for each of the thousands that a sequence may be.
   *
   * @param a of a part of it; null for none, and so is b
   */
  private record Clear(BooleanSupplier own, Clear a, Clear b) {
    static final Clear ALWAYS = new Clear(() -> true, null, null);
    static final Clear NEVER = new Clear(() -> false, null, null);

    boolean holds() {
      Deque<Clear> open = new ArrayDeque<>();
      open.add(this);
      while (!open.isEmpty()) {
        Clear one = open.removeLast();
        if (!one.own.getAsBoolean()) {
          return false;
        }
        if (one.a != null) {
          open.add(one.b);
          open.add(one.a);
        }
      }
      return true;
    }
  }

  private static Set<String> union(Set<String> a, Set<String> b) {
    if (b.isEmpty()) {
      return a;
    }
    Set<String> all = new LinkedHashSet<>(a);
    all.addAll(b);
    return all;
  }

  private static <T> List<T> both(List<T> a, List<T> b) {
    if (a.isEmpty() || b.isEmpty()) {
      return a.isEmpty() ? b : a;
    }
    List<T> all = new ArrayList<>(a);
    all.addAll(b);
    return all;
  }

  private Part alternatives() {
    Part part = alternative();
    while (at < regex.length() && regex.charAt(at) == '|') {
      at++;
      part = or(part, alternative());
    }
    return part;
  }

  private Part alternative() {
    if (depth == 0) {
      retried.add(new ArrayList<>());
    }
    return sequence();
  }

  private Part or(Part a, Part b) {
    return new Part(
        union(a.first, b.first),
        union(a.onward, b.onward),
        a.empty || b.empty,
        a.fails && b.fails,
        new Clear(() -> !intersect(a.first, b.first), a.clear, b.clear),
        a.pending == null ? b.pending : a.pending,
        both(a.last, b.last));
  }

  private Part sequence() {
    Part part = Part.NOTHING;
    while (at < regex.length() && regex.charAt(at) != '|' && regex.charAt(at) != ')') {
      part = then(part, repeated());
    }
    return part;
  }

  private Part then(Part a, Part b) {
    if (b.fails) {
      found(a.pending);
      retry(a.last);
    }
    return new Part(
        a.empty ? union(a.first, b.first) : a.first,
        b.empty ? union(b.onward, union(a.onward, b.first)) : b.onward,
        a.empty && b.empty,
        a.fails || b.fails,
        new Clear(
            () -> !intersect(a.onward, b.first) && !(a.empty && intersect(a.first, b.first)),
            a.clear,
            b.clear),
        b.pending == null && !b.fails ? a.pending : b.pending,
        b.fails ? b.last : both(a.last, b.last));
  }

  /**
   * A repetition that may be tried round by round.
   *
   * @param from where what was retried within it begins, in {@link #alternative}
   * @param to where that ends
   */
  private record Rounds(Set<String> characters, int from, int to) {}

  /** What is retried in the alternative of the whole that is at hand. */
  private List<Set<String>> retriedHere() {
    return retried.get(retried.size() - 1);
  }

  /** A group finds its rounds in one way, or all of it is refused: what is retried within one is retried but once. */
  private void retry(List<Rounds> repetitions) {
    List<Set<String>> here = retriedHere();
    for (Rounds r : repetitions) {
      int within = 0;
      for (Set<String> set : here.subList(r.from, r.to)) {
        within += set.isEmpty() ? 0 : 1;
      }
      Collections.fill(here.subList(r.from, r.to), Set.of());
      here.addAll(Collections.nCopies(Math.max(1, within), r.characters));
    }
  }

  private void found(String repetition) {
    if (found == null) {
      found = repetition;
    }
  }

  private Part repeated() {
    int start = at;
    boolean alone = regex.charAt(start) != '(';
    int from = retriedHere().size();
    Part part = atom();
    for (Matcher q = take(QUANTIFIER); q != null; q = take(QUANTIFIER)) {
      int low = q.group(1) == null ? number(q, "low", 0) : q.group(1).equals("+") ? 1 : 0;
      int high =
          q.group(1) == null ? number(q, "high", ENDLESS) : q.group(1).equals("?") ? 1 : ENDLESS;
      part = repeated(part, Math.min(low, high), Math.max(low, high), alone, start, from);
      boolean modified = at < regex.length() && q.group(1) != null && regex.charAt(at) == '+';
      if (modified) {
        part = part.atomic();
      }
      if (modified || at < regex.length() && regex.charAt(at) == '?') {
        at++;
      }
      alone = false;
    }
    return part;
  }

  private static int number(Matcher quantifier, String name, int otherwise) {
    String digits =
        quantifier.group("exact") == null ? quantifier.group(name) : quantifier.group("exact");
    return digits.isEmpty() ? otherwise : Integer.parseInt(digits);
  }

  /**
   * A part several times.
   *
   * @param alone whether it is one character
   * @param start where it begins
   * @param from where what is retried within it begins
   */
  private Part repeated(Part part, int low, int high, boolean alone, int start, int from) {
    if (high <= 1) {
      return high == 0
          ? Part.NOTHING
          : new Part(
              part.first,
              part.onward,
              part.empty || low == 0,
              part.fails && low > 0,
              part.clear,
              part.pending,
              part.last);
    }
    boolean clear =
        alone || !part.empty && !intersect(part.onward, part.first) && part.clear.holds();
    String pending = clear || part.pending != null ? part.pending : regex.substring(start, at);
    List<Rounds> own =
        List.of(new Rounds(alone ? part.first : ANY, from, alone ? from : retriedHere().size()));
    if (low > 1 && part.fails) {
      found(pending); // by its own rounds
      retry(low > MANY ? own : part.last);
    }
    return new Part(
        part.first,
        high > low ? union(part.onward, part.first) : part.onward,
        part.empty || low == 0,
        part.fails && low > 0,
        clear ? Clear.ALWAYS : Clear.NEVER,
        pending,
        high > MANY ? own : part.last);
  }

  /** What a pattern matches here, which is then behind. */
  private Matcher take(Pattern pattern) {
    Matcher matcher = pattern.matcher(regex).region(at, regex.length());
    matcher.useTransparentBounds(true);
    if (!matcher.lookingAt()) {
      return null;
    }
    at = matcher.end();
    return matcher;
  }

  private Part atom() {
    if (take(ANCHOR) != null) {
      return Part.CONDITION;
    }
    if (take(OPTIONS) != null) {
      return Part.NOTHING;
    }
    if (take(LOOKAROUND) != null) {
      group();
      return Part.CONDITION;
    }
    if (take(ATOMIC) != null) {
      return group().atomic();
    }
    if (take(GROUP) != null) {
      return group();
    }
    int start = at;
    switch (regex.charAt(at)) {
      case '[' -> skipSet();
      case '.' -> at++;
      case '\\' -> take(ESCAPE);
      case '(' -> {}
      default -> {
        at = regex.offsetByCodePoints(at, 1);
        return Part.character(regex.substring(start, at));
      }
    }
    if (at == start) {
      understood = false;
      found(regex.substring(start));
      at = regex.length();
      return Part.NOTHING;
    }
    return Part.character(regex.substring(start, at));
  }

  /** The rest of a group whose begin is behind. */
  private Part group() {
    Part part = Part.NOTHING;
    if (++depth > DEPTH) {
      understood = false;
      found(regex.substring(at));
      at = regex.length();
    } else {
      part = alternatives();
      at = Math.min(at + 1, regex.length());
    }
    depth--;
    return part;
  }

  private void skipSet() {
    int open = 0;
    do {
      char c = regex.charAt(at++);
      if (c == '\\') {
        at++;
      } else if (c == '[') {
        open++;
        at += at < regex.length() && regex.charAt(at) == '^' ? 1 : 0;
        at += at < regex.length() && regex.charAt(at) == ']' ? 1 : 0; // a ] that is first is one
      } else if (c == ']') {
        open--;
      }
    } while (open > 0 && at < regex.length());
    at = Math.min(at, regex.length());
  }

  /** An expression with the names that Java has for scripts of Unicode. */
  private static String javaText(String text) {
    return PROPERTY
        .matcher(text)
        .replaceAll(
            m -> {
              boolean not = m.group(1).equals("P") != !m.group(2).isEmpty();
              String name = m.group(3);
              try {
                Pattern.compile("\\p{" + name + "}");
              } catch (PatternSyntaxException e) {
                name = "Is" + name;
              }
              return Matcher.quoteReplacement((not ? "\\P{" : "\\p{") + name + "}");
            });
  }

  private boolean intersect(Set<String> some, Set<String> others) {
    return !some.isEmpty()
        && !others.isEmpty()
        && (!Collections.disjoint(some, others) || characters(some).intersects(characters(others)));
  }

  private BitSet characters(Set<String> expressions) {
    BitSet all = new BitSet();
    for (String one : expressions) {
      BitSet known = sets.get(one);
      if (known == null) {
        known = characters(one);
        sets.put(one, known);
      }
      all.or(known);
    }
    return all;
  }

  private BitSet literal(int character) {
    BitSet set = new BitSet();
    set.set(character);
    if ((flags & Pattern.CASE_INSENSITIVE) != 0) {
      int upper = Character.toUpperCase(character);
      set.set(upper);
      set.set(Character.toLowerCase(upper));
      set.set(Character.toTitleCase(upper));
    }
    return set;
  }

  /** The characters that an expression of one matches; all where Java does not know it, or there are many such. */
  private BitSet characters(String one) {
    if (!one.equals(".") && one.codePointCount(0, one.length()) == 1) {
      return literal(one.codePointAt(0));
    }
    BitSet characters = new BitSet();
    Pattern pattern = null;
    if (!OTHER_IN_JAVA.matcher(one).find() && sets.size() < SETS) {
      try {
        pattern = Pattern.compile(javaText(one) + "++", flags);
      } catch (PatternSyntaxException e) {
        // All of them.
      }
    }
    if (pattern == null) {
      characters.set(0, Character.MAX_CODE_POINT + 1);
      return characters;
    }
    for (Matcher m = pattern.matcher(Every.CHARACTER); m.find(); ) {
      int last = Every.CHARACTER.codePointBefore(m.end());
      characters.set(Every.CHARACTER.codePointAt(m.start()), last + 1);
    }
    return characters;
  }

  /** Made where it is needed. */
  private static final class Every {
    /** All characters in order, surrogates left out. */
    static final String CHARACTER =
        IntStream.rangeClosed(0, Character.MAX_CODE_POINT)
            .filter(c -> c < Character.MIN_SURROGATE || c > Character.MAX_SURROGATE)
            .collect(StringBuilder::new, StringBuilder::appendCodePoint, StringBuilder::append)
            .toString();
  }
}
