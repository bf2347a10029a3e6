package org.espalier.online.privacy;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * Adds up what passes over examples spend. A pass is a Gaussian mechanism on each of its examples, of Rényi
 * divergence α · spent / 2; those of passes over the same example add up order by order (Mironov, "Rényi
 * differential privacy", 2017, proposition 1), and as all of them are linear in α, so do the numbers {@code
 * spent}. Of different examples the one of which most was told counts. Not for several threads.
 */
final class PrivacyAccountant {
  private final Map<String, PrivacyPass> passes = new LinkedHashMap<>();

  /** By what their streams begin with, because only such can be of the same examples. */
  private Map<String, List<PrivacyPass>> streams = Map.of();

  private double most;

  /** Adds passes; of one that is known already the longer one is kept. */
  void add(Collection<PrivacyPass> others) {
    for (PrivacyPass pass : others) {
      passes.merge(pass.id(), pass, (a, b) -> b.to() > a.to() ? b : a);
    }
    streams = passes.values().stream().collect(Collectors.groupingBy(PrivacyAccountant::beginning));
    most = 0;
    for (PrivacyPass pass : passes.values()) {
      most = Math.max(most, spentAt(pass, pass.from()));
    }
  }

  private static String beginning(PrivacyPass pass) {
    return pass.stream().isEmpty() ? pass.id() : pass.stream().get(0);
  }

  List<PrivacyPass> passes() {
    return List.copyOf(passes.values());
  }

  /** What was spent on the example of which most was told. */
  double spent() {
    return most;
  }

  /** The same, with a pass that goes on. */
  double spentWith(PrivacyPass own) {
    double added = Privacy.spent(own.noise(), own.contributions());
    double highest = added + spentAt(own, own.from());
    for (PrivacyPass pass : streams.getOrDefault(beginning(own), List.of())) {
      // Sums rise where a pass begins, and nowhere else.
      if (pass.from() > own.from() && pass.from() < own.to() && pass.isOfSameStream(own)) {
        highest = Math.max(highest, added + spentAt(own, pass.from()));
      }
    }
    return Math.max(most, highest);
  }

  private double spentAt(PrivacyPass stream, long example) {
    double sum = 0;
    for (PrivacyPass pass : streams.getOrDefault(beginning(stream), List.of())) {
      if (pass.from() <= example && example < pass.to() && pass.isOfSameStream(stream)) {
        sum += Privacy.spent(pass.noise(), pass.contributions());
      }
    }
    return sum;
  }
}
