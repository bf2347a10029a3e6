package org.espalier.evaluate;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * How closely a candidate follows its reference on example tensors.
 *
 * @param examples number of examples compared
 * @param outputs the floating-point outputs, in the model's order
 */
public record TensorFidelity(int examples, List<Output> outputs) {

  /**
   * One output.
   *
   * @param cosineMean mean over examples of the cosine between the two models' values; where an example has one
   *     value, whose cosine is a sign, the cosine between the values of all examples
   * @param cosineMin the smallest; NaN where an example has one value
   * @param relativeError √(Σ (candidate − reference)² / Σ reference²) over all examples
   * @param largestDifference the largest |candidate − reference|
   * @param agreement share of positions whose largest value along the last axis is at the same place; NaN
   *     where the output is no [N, classes] or [N, positions, classes] of two classes or more
   */
  public record Output(
      String name,
      double cosineMean,
      double cosineMin,
      double relativeError,
      double largestDifference,
      double agreement) {}

  /** The values under their JSON keys, in a fixed order. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("examples", examples);
    List<Map<String, Object>> list = new ArrayList<>();
    for (Output o : outputs) {
      Map<String, Object> output = new LinkedHashMap<>();
      output.put("name", o.name);
      output.putAll(numbers(o));
      list.add(output);
    }
    map.put("outputs", list);
    return map;
  }

  /** The same for a model of which the first output alone counts: one map of numbers. */
  public Map<String, Object> toMapOfFirst() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("examples", examples);
    map.putAll(numbers(outputs.get(0)));
    return map;
  }

  private static Map<String, Object> numbers(Output o) {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("cosine_mean", o.cosineMean);
    if (!Double.isNaN(o.cosineMin)) {
      map.put("cosine_min", o.cosineMin);
    }
    map.put("relative_error", o.relativeError);
    map.put("largest_difference", o.largestDifference);
    if (!Double.isNaN(o.agreement)) {
      map.put("agreement", o.agreement);
    }
    return map;
  }
}
