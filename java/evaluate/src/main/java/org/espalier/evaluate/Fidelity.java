package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * How closely a candidate model follows its reference, and what it saves.
 *
 * @param texts number of texts compared
 * @param cosineMean mean cosine between the two embeddings of a text, each text alone and unpadded
 * @param cosineP5 its 5th percentile
 * @param cosineMin its minimum
 * @param pairSpearman Spearman correlation of the similarities of all pairs of texts
 * @param neighbourAgreement share of texts whose nearest other text is the same in both models
 * @param neighbourLow lower end of its 95 % interval of chance
 * @param neighbourHigh upper end
 * @param savings what the candidate saves, one text a run
 * @param batchCosineMean mean cosine of the candidate's embedding of a text alone to its embedding in
 *     a padded batch of 32
 */
public record Fidelity(
    int texts,
    double cosineMean,
    double cosineP5,
    double cosineMin,
    double pairSpearman,
    double neighbourAgreement,
    double neighbourLow,
    double neighbourHigh,
    Savings savings,
    double batchCosineMean) {

  /** The values under their JSON keys, in a fixed order. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("texts", texts);
    map.put("cosine_mean", cosineMean);
    map.put("cosine_p5", cosineP5);
    map.put("cosine_min", cosineMin);
    map.put("pair_spearman", pairSpearman);
    map.put("neighbour_agreement", neighbourAgreement);
    map.put("neighbour_agreement_low", neighbourLow);
    map.put("neighbour_agreement_high", neighbourHigh);
    map.putAll(savings.toMap());
    map.put("batch_cosine_mean", batchCosineMean);
    return map;
  }
}
