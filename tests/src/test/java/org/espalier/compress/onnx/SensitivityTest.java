package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.espalier.compress.Progress;
import org.junit.jupiter.api.Test;

class SensitivityTest {
  private final List<String> told = new ArrayList<>();
  private int tried;

  private static List<String> names(int n) {
    return IntStream.range(0, n).mapToObj(i -> "c" + i).toList();
  }

  /** Errors of products that are independent add up in squares. */
  private Map<String, Double> search(int n, Map<String, Double> alone, double others) {
    Progress progress = (phase, done, total) -> told.add(phase + " " + done + " of " + total);
    return Sensitivity.search(
        names(n),
        some -> {
          tried++;
          return Math.sqrt(
              some.stream().mapToDouble(c -> Math.pow(alone.getOrDefault(c, others), 2)).sum());
        },
        progress);
  }

  @Test
  void theFewThatSpoilItAreFound() {
    Map<String, Double> worst = Map.of("c3", 0.2, "c17", 0.9, "c18", 0.3);
    Map<String, Double> found = search(64, worst, 0.001);
    assertEquals(worst, found);
    assertEquals(List.of("c17", "c18", "c3"), List.copyOf(found.keySet()));
    assertTrue(tried <= 3 * 2 * 6 + 1, "tried " + tried);
    assertEquals("SEARCH 0 of 64", told.get(0));
    assertEquals("SEARCH " + (tried - 1) + " of 64", told.get(tried - 1));
  }

  /** Each alone is too much: one in eight stays float, and which these are is clear before all were tried. */
  @Test
  void whereAllSpoilItTheWorstAreLeft() {
    Map<String, Double> worst = Map.of("c5", 0.9, "c77", 0.8, "c200", 0.7);
    Map<String, Double> found = search(512, worst, 0.2);
    assertTrue(tried <= Sensitivity.MODELS, "tried " + tried);
    assertEquals(List.of("c5", "c77", "c200"), List.copyOf(found.keySet()).subList(0, 3));
    tried = 0;
    found = search(16, Map.of("c5", 0.9, "c6", 0.7), 0.2);
    assertEquals(List.of("c5", "c6"), List.copyOf(found.keySet()));
    assertTrue(tried < 31, "tried " + tried);
  }

  @Test
  void whereNoneAloneSpoilsItTheWorstIsLeft() {
    assertEquals(Map.of("c9", 0.13), search(64, Map.of("c9", 0.13), 0.05));
  }

  @Test
  void whatIsRightOrSmallIsNotSearched() {
    assertEquals(Map.of(), search(64, Map.of(), 0.001));
    assertEquals(1, tried);
    assertEquals(Map.of(), search(7, Map.of("c1", 1.0), 0.5));
    assertEquals(1, tried);
  }
}
