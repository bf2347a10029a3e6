package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * How closely a candidate follows its reference in what both say of each token of texts, the word that it is or its tag,
 * and what it saves.
 *
 * @param texts number of texts
 * @param tokens how many tokens they have
 * @param agreement share of tokens of which both hold the same the most likely
 * @param divergence mean over tokens of KL(reference ‖ candidate), in nats
 * @param savings what the candidate saves, one whole text a run
 */
public record TokenFidelity(
    int texts, long tokens, double agreement, double divergence, Savings savings) {

  /** The values under their JSON keys, in a fixed order. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("texts", texts);
    map.put("tokens", tokens);
    map.put("agreement", agreement);
    map.put("kl", divergence);
    map.putAll(savings.toMap());
    return map;
  }
}
