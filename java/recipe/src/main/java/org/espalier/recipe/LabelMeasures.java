package org.espalier.recipe;

import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.evaluate.ClassifierEvaluator;
import org.espalier.evaluate.Measure;
import org.espalier.evaluate.ModelPair;
import org.espalier.evaluate.RegressionEvaluator;
import org.espalier.train.Labels;

/** Measures two models by labels. */
public final class LabelMeasures {
  private LabelMeasures() {}

  /**
   * How right both models of a pair are and how far they agree, as names with numbers.
   *
   * @param classes the names of the classes; empty where they have none
   * @throws InputException where a label is no class of the models, or they cannot be run
   */
  public static Map<String, Object> of(
      ModelPair pair, Labels labels, List<String> classes, Progress progress) {
    if (labels instanceof Labels.TokenClasses tokens) {
      return ClassifierEvaluator.evaluate(pair, tokens.rows(), classes, progress).toMap();
    }
    if (labels instanceof Labels.Classes each) {
      for (long label : each.values()) {
        if (label < 0 && label != Labels.Classes.NO_LABEL) {
          throw new InputException(
              "a label is "
                  + label
                  + "; classes are from 0 on, and "
                  + Labels.Classes.NO_LABEL
                  + " is none");
        }
      }
      return ClassifierEvaluator.evaluate(pair, each.rows(), List.of(), progress).toMap();
    }
    Labels.Numbers numbers = (Labels.Numbers) labels;
    return RegressionEvaluator.evaluate(pair, numbers.values(), numbers.width(), progress).toMap();
  }

  /** What {@link #of} measures by such labels, and what models save; what outputs look like may leave some of it undefined. */
  static Set<Measure> measures(Labels labels, List<String> classes) {
    if (labels instanceof Labels.TokenClasses tokens) {
      return ClassifierEvaluator.measures(tokens.rows(), classes);
    }
    return labels instanceof Labels.Classes each
        ? ClassifierEvaluator.measures(each.rows(), List.of())
        : Measure.OF_REGRESSIONS;
  }
}
