package org.espalier.store;

import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * Where a version comes from. Everything is optional; texts are stored as they are given.
 *
 * @param parent the version that this one was made from, or null
 * @param source what it was made of, for instance the file that was published; or null
 * @param recipe the recipe or the learner's settings, as text; or null
 * @param data which data it has seen, or null
 * @param metrics measured values by name; finite numbers
 * @param epsilon the privacy loss of everything it has learned, or null where it was not private
 * @param note a remark, or null
 */
public record Lineage(
    Long parent,
    String source,
    String recipe,
    DataWindow data,
    Map<String, Double> metrics,
    Double epsilon,
    String note) {
  /** Nothing is known. */
  public static final Lineage NONE = new Lineage(null, null, null, null, Map.of(), null, null);

  /**
   * A window of a stream.
   *
   * @param source the stream's name, or null
   * @param from the number of the first example, from 0
   * @param to the number after the last
   * @param begins digests of the stream's first lines, by which it is known again whatever it is called then;
   *     empty where they are not known
   */
  public record DataWindow(String source, long from, long to, List<String> begins) {
    public DataWindow {
      begins = List.copyOf(begins);
      if (from < 0 || to < from) {
        throw new IllegalArgumentException("a window from " + from + " to " + to);
      }
    }

    public DataWindow(String source, long from, long to) {
      this(source, from, to, List.of());
    }
  }

  public Lineage {
    if (parent != null && parent < 1) {
      throw new IllegalArgumentException("parent " + parent + "; versions count from 1");
    }
    metrics.forEach(
        (name, value) -> {
          if (!Double.isFinite(value)) {
            throw new IllegalArgumentException("metric " + name + " is " + value);
          }
        });
    if (epsilon != null && !(epsilon >= 0 && epsilon <= Double.MAX_VALUE)) {
      throw new IllegalArgumentException("epsilon " + epsilon + "; a number of 0 or more is right");
    }
    metrics = Collections.unmodifiableMap(new TreeMap<>(metrics));
  }

  public Lineage withParent(Long version) {
    return new Lineage(version, source, recipe, data, metrics, epsilon, note);
  }

  public Lineage withSource(String from) {
    return new Lineage(parent, from, recipe, data, metrics, epsilon, note);
  }

  public Lineage withRecipe(String text) {
    return new Lineage(parent, source, text, data, metrics, epsilon, note);
  }

  public Lineage withData(DataWindow window) {
    return new Lineage(parent, source, recipe, window, metrics, epsilon, note);
  }

  public Lineage withMetrics(Map<String, Double> values) {
    return new Lineage(parent, source, recipe, data, values, epsilon, note);
  }

  public Lineage withEpsilon(Double value) {
    return new Lineage(parent, source, recipe, data, metrics, value, note);
  }

  public Lineage withNote(String text) {
    return new Lineage(parent, source, recipe, data, metrics, epsilon, text);
  }
}
