package org.espalier.recipe;

import java.util.Map;
import org.espalier.compress.Progress;
import org.espalier.evaluate.ClassifierEvaluator;
import org.espalier.evaluate.ModelPair;
import org.espalier.evaluate.RegressionEvaluator;
import org.espalier.train.Labels;

/** Measures two models by labels. */
public final class LabelMeasures {
  private LabelMeasures() {}

  /** How right both models of a pair are and how far they agree, as names with numbers. */
  public static Map<String, Object> of(ModelPair pair, Labels labels, Progress progress) {
    if (labels instanceof Labels.Classes classes) {
      return ClassifierEvaluator.evaluate(pair, classes.values(), progress).toMap();
    }
    Labels.Numbers numbers = (Labels.Numbers) labels;
    return RegressionEvaluator.evaluate(pair, numbers.values(), numbers.width(), progress).toMap();
  }
}
