package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * How well a candidate predicts the next token of texts, how closely it follows its reference, and what it saves.
 *
 * @param texts number of texts
 * @param tokens how many tokens were predicted: all but the first of each text
 * @param perplexity exp(mean of −log of the probability that the candidate gives the next token)
 * @param referencePerplexity the reference's
 * @param accuracy share of tokens that the candidate holds the most likely
 * @param referenceAccuracy the reference's
 * @param agreement share of places for which both hold the same token the most likely
 * @param divergence mean over places of KL(reference ‖ candidate), in nats
 * @param savings what the candidate saves, one whole text a run
 */
public record LanguageModelFidelity(
    int texts,
    long tokens,
    double perplexity,
    double referencePerplexity,
    double accuracy,
    double referenceAccuracy,
    double agreement,
    double divergence,
    Savings savings) {

  /** The values under their JSON keys, in a fixed order. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("texts", texts);
    map.put("tokens", tokens);
    map.put("perplexity", perplexity);
    map.put("reference_perplexity", referencePerplexity);
    map.put("accuracy", accuracy);
    map.put("reference_accuracy", referenceAccuracy);
    map.put("agreement", agreement);
    map.put("kl", divergence);
    map.putAll(savings.toMap());
    return map;
  }
}
