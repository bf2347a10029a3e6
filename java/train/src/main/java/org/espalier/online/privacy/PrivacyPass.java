package org.espalier.online.privacy;

import java.util.List;
import java.util.Objects;

/**
 * Examples that were learned in private, each once, with one noise: what an accountant keeps of a run.
 *
 * @param id of the run, in no other pass
 * @param stream where they are from: digests of its first lines, by which it is known again, or any texts that
 *     do; empty for examples that no other pass has
 * @param from the number of the first example in the stream
 * @param to the number after the last
 * @param noise as in {@link Privacy}
 * @param contributions as in {@link Privacy}
 */
public record PrivacyPass(
    String id, List<String> stream, long from, long to, double noise, int contributions) {
  public PrivacyPass {
    Objects.requireNonNull(id, "id");
    stream = List.copyOf(stream);
    if (from < 0 || to < from) {
      throw new IllegalArgumentException("a pass from " + from + " to " + to);
    }
    new Privacy(1, noise, 0.5, contributions); // checks
  }

  /** Whether examples of the same number are the same: one stream begins as the other does. */
  boolean isOfSameStream(PrivacyPass other) {
    int common = Math.min(stream.size(), other.stream.size());
    return common == 0
        ? id.equals(other.id)
        : stream.subList(0, common).equals(other.stream.subList(0, common));
  }
}
