package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.evaluate.Requirement.Verdict;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class RequirementTest {
  private static final Map<String, Double> MEASURED =
      Map.of(
          "accuracy",
          0.9,
          "reference_accuracy",
          0.92,
          "log_loss",
          0.3,
          "r2",
          -0.5,
          "f1",
          Double.NaN);

  @ParameterizedTest
  @CsvSource({
    "accuracy>=0.9, accuracy >= 0.9, true",
    "accuracy >= .9000001, accuracy >= 0.9000001, false",
    "' accuracy  <=  9e-1 ', accuracy <= 0.9, true",
    "accuracy >= reference, accuracy >= reference, false",
    "accuracy<=reference, accuracy <= reference, true",
    "accuracy >= reference-0.03, accuracy >= reference - 0.03, true",
    "accuracy >= reference - 1e-3, accuracy >= reference - 0.001, false",
    "accuracy >= reference + 1, accuracy >= reference + 1, false",
    "r2 >= -1, r2 >= -1, true",
    "r2 >= -0.25, r2 >= -0.25, false",
    "f1 >= 0, f1 >= 0, false",
    "f1 <= 1, f1 <= 1, false",
    "auc >= 0, auc >= 0, false",
    "log_loss <= reference, log_loss <= reference, false",
  })
  void comparesWithWhatWasMeasured(String text, String canonical, boolean met) {
    Requirement requirement = Requirement.of(text);
    assertEquals(canonical, requirement.toString());
    assertEquals(requirement, Requirement.of(canonical));
    assertEquals(
        met, requirement.verdict(null, key -> MEASURED.getOrDefault(key, Double.NaN)).isMet());
  }

  /** 0.07 − 0.01 is more than 0.06 in floating point. */
  @ParameterizedTest
  @CsvSource({
    "accuracy >= reference - 0.01, 0.07, 0.06, true",
    "accuracy >= reference - 0.01, 0.07, 0.0599999, false",
    "log_loss <= reference + 0.2, 0.1, 0.3, true",
    "log_loss <= reference + 0.7, 0.1, 0.8, true",
    "log_loss <= reference + 0.7, 0.1, 0.8000001, false",
    "rmse <= reference, 0, 0, true",
    "rmse <= reference, 0, 1e-300, false",
    "size_ratio <= 0.3, 1, 0.3, true",
  })
  void whatIsJustMetIsMet(String text, double reference, double measured, boolean met) {
    Requirement requirement = Requirement.of(text);
    Verdict verdict =
        requirement.verdict(null, key -> key.startsWith("reference_") ? reference : measured);
    assertEquals(met, verdict.isMet(), verdict.toString());
  }

  @Test
  void aVerdictSaysWhatWasMeasured() {
    Requirement near = Requirement.of("accuracy >= reference - 0.03");
    assertEquals(
        "accuracy >= reference - 0.03, measured 0.900000, the bound is 0.890000",
        near.verdict(null, MEASURED::get).toString());
    Requirement alike = Requirement.of("agreement >= 0.5");
    assertEquals(
        "agreement >= 0.5 of boxes, which has no value here",
        alike.verdict("boxes", key -> Double.NaN).toString());
    assertEquals("boxes", alike.verdict("boxes", key -> 1).toMap().get("output"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "accuracy",
        "accuracy > 0.9",
        "accuracy = 0.9",
        "accuracy >= NaN",
        "accuracy >= 0,9",
        "accuracy >= .",
        "accuracy >= reference 0.1",
        "accuracy >= reference * 0.9",
        "accuracy >= 0.9 - reference",
        "accuracy >= 1e400",
        "accuracies >= 0.9",
        "cosine_mean >= reference",
        "0.9 <= accuracy",
      })
  void refusesWhatIsNone(String text) {
    assertThrows(InputException.class, () -> Requirement.of(text));
  }

  /** The lists of what is measured and what is measured are the same. */
  @Test
  void everyMeasureIsANumberOfItsKind() {
    Savings savings = new Savings(1, 1, 1, 1);
    assertEquals(
        Measure.OF_EMBEDDINGS, measures(new Fidelity(3, 1, 1, 1, 1, 1, 1, 1, savings, 1).toMap()));
    assertEquals(
        Measure.OF_LANGUAGE_MODELS,
        measures(new LanguageModelFidelity(3, 3, 1, 1, 1, 1, 1, 1, savings).toMap()));
    RegressionFidelity.Errors errors = new RegressionFidelity.Errors(1, 1, 1);
    assertEquals(
        withoutSavings(Measure.OF_REGRESSIONS),
        measures(new RegressionFidelity(3, errors, errors, 1, 1, 1).toMap()));
    assertEquals(
        withoutSavings(Measure.OF_CLASSIFIERS),
        measures(
            new ClassifierFidelity(3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, List.of())
                .toMap()));
    assertEquals(
        Measure.OF_OUTPUTS,
        measures(
            new TensorFidelity(3, List.of(new TensorFidelity.Output("y", 1, 1, 1, 1, 1)))
                .toMapOfFirst()));
  }

  /** Of three classes there is no AUC, nor of one; entities are in classes that say so. */
  @Test
  void labelsSayWhatIsMeasured() {
    List<String> tags = List.of("O", "B-PER");
    assertEquals(
        Measure.OF_CLASSIFIERS,
        ClassifierEvaluator.measures(List.of(new long[] {0, 1}, new long[] {-100}), tags));
    for (long last : new long[] {0, 2}) {
      Set<Measure> measured =
          ClassifierEvaluator.measures(
              List.of(new long[] {0}, new long[] {last}), List.of("ham", "spam", "O"));
      assertFalse(measured.contains(Measure.AUC) || measured.contains(Measure.ENTITY_F1));
      assertEquals(Measure.OF_CLASSIFIERS.size() - 2, measured.size());
    }
  }

  private static Set<Measure> withoutSavings(Set<Measure> all) {
    Set<Measure> rest = EnumSet.copyOf(all);
    rest.removeAll(Measure.OF_SAVINGS);
    return rest;
  }

  /** What the keys of a map are measures of. */
  private static Set<Measure> measures(Map<String, Object> map) {
    Set<Measure> measures = EnumSet.noneOf(Measure.class);
    for (Measure measure : Measure.values()) {
      if (map.containsKey(measure.key())) {
        measures.add(measure);
        assertEquals(
            measure.isOfEach(), map.containsKey(measure.referenceKey()), measure.referenceKey());
      }
    }
    return measures;
  }
}
