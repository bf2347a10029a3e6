package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * How closely a candidate classifier follows its reference.
 *
 * @param examples number of examples compared
 * @param accuracy share of the candidate's right answers, with one probability at 0.5, over all labels; NaN
 *     without a label
 * @param referenceAccuracy share of the reference's
 * @param f1 2 · precision · recall / (precision + recall) of the candidate's answers: of class 1, over all labels
 *     together, where there are two, else the mean over the classes that occur; NaN where none does
 * @param referenceF1 the reference's
 * @param entityF1 the same of the entities that the candidate's answers are, where the names of the classes say so (O, B-PER,
 *     I-PER, …), over all types together: one is right where its words and its type are exactly those of one in the labels.
 *     Entities are those of CoNLL's evaluation: I begins one too, after O and after another type. Words without a label are
 *     left out. NaN where there are no such names, or no entity
 * @param referenceEntityF1 the reference's
 * @param logLoss mean of −log of the probability that the candidate gives the right class; NaN without a label
 * @param referenceLogLoss the reference's
 * @param auc area under the candidate's ROC curve, over all labels together; NaN where there are not two classes, both of them in the
 *     labels
 * @param referenceAuc the reference's
 * @param agreement share of examples, or of what has a class of its own in them, to which both give the same class
 * @param agreementLow lower end of its 95 % interval of chance
 * @param agreementHigh upper end
 * @param cosineMean mean cosine between the outputs of the two; NaN where they are one value an example
 * @param changed the answers that changed most, the most changed first, twelve at most; of examples with one label
 */
public record ClassifierFidelity(
    int examples,
    double accuracy,
    double referenceAccuracy,
    double f1,
    double referenceF1,
    double entityF1,
    double referenceEntityF1,
    double logLoss,
    double referenceLogLoss,
    double auc,
    double referenceAuc,
    double agreement,
    double agreementLow,
    double agreementHigh,
    double cosineMean,
    List<ChangedAnswer> changed) {
  public ClassifierFidelity {
    changed = List.copyOf(changed);
  }

  /** The values under their JSON keys, in a fixed order, without those that are not defined. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("examples", examples);
    map.put("accuracy", accuracy);
    map.put("reference_accuracy", referenceAccuracy);
    map.put("f1", f1);
    map.put("reference_f1", referenceF1);
    map.put("entity_f1", entityF1);
    map.put("reference_entity_f1", referenceEntityF1);
    map.put("auc", auc);
    map.put("reference_auc", referenceAuc);
    map.put("log_loss", logLoss);
    map.put("reference_log_loss", referenceLogLoss);
    map.put("agreement", agreement);
    map.put("agreement_low", agreementLow);
    map.put("agreement_high", agreementHigh);
    map.put("cosine_mean", cosineMean);
    map.values().removeIf(value -> value.equals(Double.NaN));
    if (!changed.isEmpty()) {
      map.put("changed_answers", changed.stream().map(ChangedAnswer::toMap).toList());
    }
    return map;
  }
}
