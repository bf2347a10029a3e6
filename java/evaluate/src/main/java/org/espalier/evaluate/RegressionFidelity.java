package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * How well a candidate predicts numbers, and how closely it follows its reference.
 *
 * @param examples number of examples compared
 * @param errors of the candidate against the labels
 * @param referenceErrors of the reference against the labels
 * @param cosine between the values that the two give for all examples
 * @param relativeError √(Σ (candidate − reference)² / Σ reference²) over all examples
 * @param largestDifference the largest |candidate − reference|
 */
public record RegressionFidelity(
    int examples,
    Errors errors,
    Errors referenceErrors,
    double cosine,
    double relativeError,
    double largestDifference) {

  /**
   * Of a model's values f against the labels y that are known; all NaN where none is.
   *
   * @param rmse √(mean (f − y)²)
   * @param mae mean |f − y|
   * @param r2 1 − Σ (f − y)² / Σ (y − mean of y)², the mean over the values of an example whose labels are not all
   *     equal; NaN where there is no such value
   */
  public record Errors(double rmse, double mae, double r2) {}

  /** The values under their JSON keys, in a fixed order, without those that are not defined. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("examples", examples);
    map.put("rmse", errors.rmse);
    map.put("reference_rmse", referenceErrors.rmse);
    map.put("mae", errors.mae);
    map.put("reference_mae", referenceErrors.mae);
    map.put("r2", errors.r2);
    map.put("reference_r2", referenceErrors.r2);
    map.put("cosine", cosine);
    map.put("relative_error", relativeError);
    map.put("largest_difference", largestDifference);
    map.values().removeIf(value -> value.equals(Double.NaN));
    return map;
  }
}
