package org.espalier.evaluate;

import java.util.Arrays;
import java.util.Collections;
import java.util.EnumSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.NearNames;

/** A number that is measured of a candidate beside its reference, under the name that it has in JSON. */
public enum Measure {
  /** {@link Fidelity#cosineMean}, {@link TensorFidelity.Output#cosineMean}, {@link ClassifierFidelity#cosineMean}. */
  COSINE_MEAN("mean cosine", "%.4f", 1),
  /** {@link Fidelity#cosineP5}. */
  COSINE_P5("cosine, 5 % below", "%.4f", 1),
  /** {@link Fidelity#cosineMin}, {@link TensorFidelity.Output#cosineMin}. */
  COSINE_MIN("cosine, lowest", "%.4f", 1),
  /** {@link Fidelity#pairSpearman}. */
  PAIR_SPEARMAN("pairs, Spearman", "%.4f", 1),
  /** {@link Fidelity#neighbourAgreement}. */
  NEIGHBOUR_AGREEMENT("neighbours agree", "%.3f", 1),
  /** {@link ClassifierFidelity#agreement}, {@link LanguageModelFidelity#agreement}, {@link TokenFidelity#agreement}, {@link TensorFidelity.Output#agreement}. */
  AGREEMENT("same answer", "%.4f", 1),
  /** {@link LanguageModelFidelity#perplexity}. */
  PERPLEXITY("perplexity", "%.4g"),
  /** {@link LanguageModelFidelity#divergence}, {@link TokenFidelity#divergence}. */
  KL("divergence, nats", "%.3g", 0),
  /** {@link ClassifierFidelity#accuracy}, {@link LanguageModelFidelity#accuracy}. */
  ACCURACY("accuracy", "%.4f"),
  /** {@link ClassifierFidelity#f1}. */
  F1("F1", "%.4f"),
  /** {@link ClassifierFidelity#entityF1}. */
  ENTITY_F1("F1 of entities", "%.4f"),
  /** {@link ClassifierFidelity#auc}. */
  AUC("AUC", "%.4f"),
  /** {@link ClassifierFidelity#logLoss}. */
  LOG_LOSS("log loss", "%.4f"),
  /** {@link RegressionFidelity.Errors#rmse}. */
  RMSE("RMSE", "%.4g"),
  /** {@link RegressionFidelity.Errors#mae}. */
  MAE("MAE", "%.4g"),
  /** {@link RegressionFidelity.Errors#r2}. */
  R2("R²", "%.4f"),
  /** {@link RegressionFidelity#cosine}. */
  COSINE("cosine", "%.4f", 1),
  /** {@link RegressionFidelity#relativeError}, {@link TensorFidelity.Output#relativeError}. */
  RELATIVE_ERROR("error", "%.4f", 0),
  /** {@link RegressionFidelity#largestDifference}, {@link TensorFidelity.Output#largestDifference}. */
  LARGEST_DIFFERENCE("largest difference", "%.3g", 0),
  /** {@link Savings#sizeRatio}. */
  SIZE_RATIO("size", "%.3f", 1),
  /** {@link Savings#speedup}. */
  SPEEDUP("speed", "%.2fx", 1),
  /** {@link Savings#millis}. */
  MS("milliseconds", "%.3g"),
  /** {@link Fidelity#batchCosineMean}. */
  BATCH_COSINE_MEAN("cosine in a batch of 32", "%.4f");

  /** How right a model is by labels; both models have such a number. */
  public static final Set<Measure> BY_LABELS =
      set(ACCURACY, F1, ENTITY_F1, AUC, LOG_LOSS, RMSE, MAE, R2);

  /** {@link Savings}. */
  public static final Set<Measure> OF_SAVINGS = set(SIZE_RATIO, SPEEDUP, MS);

  /** {@link Fidelity}. */
  public static final Set<Measure> OF_EMBEDDINGS =
      set(
          COSINE_MEAN,
          COSINE_P5,
          COSINE_MIN,
          PAIR_SPEARMAN,
          NEIGHBOUR_AGREEMENT,
          SIZE_RATIO,
          SPEEDUP,
          MS,
          BATCH_COSINE_MEAN);

  /** {@link LanguageModelFidelity}. */
  public static final Set<Measure> OF_LANGUAGE_MODELS =
      set(PERPLEXITY, ACCURACY, AGREEMENT, KL, SIZE_RATIO, SPEEDUP, MS);

  /** {@link TokenFidelity}. */
  public static final Set<Measure> OF_TOKENS = set(AGREEMENT, KL, SIZE_RATIO, SPEEDUP, MS);

  /** {@link ClassifierFidelity} with {@link Savings}. */
  public static final Set<Measure> OF_CLASSIFIERS =
      set(ACCURACY, F1, ENTITY_F1, AUC, LOG_LOSS, AGREEMENT, COSINE_MEAN, SIZE_RATIO, SPEEDUP, MS);

  /** {@link RegressionFidelity} with {@link Savings}. */
  public static final Set<Measure> OF_REGRESSIONS =
      set(RMSE, MAE, R2, COSINE, RELATIVE_ERROR, LARGEST_DIFFERENCE, SIZE_RATIO, SPEEDUP, MS);

  /** Each output of a {@link TensorFidelity}. */
  public static final Set<Measure> OF_OUTPUTS =
      set(COSINE_MEAN, COSINE_MIN, RELATIVE_ERROR, LARGEST_DIFFERENCE, AGREEMENT);

  /** {@link TensorFidelity} with {@link Savings}. */
  public static final Set<Measure> OF_TENSORS =
      set(
          COSINE_MEAN,
          COSINE_MIN,
          RELATIVE_ERROR,
          LARGEST_DIFFERENCE,
          AGREEMENT,
          SIZE_RATIO,
          SPEEDUP,
          MS);

  private final String heading;
  private final String format;
  private final double ofItself;

  Measure(String heading, String format) {
    this(heading, format, Double.NaN);
  }

  /**
   * @param ofItself what a model has that is compared with itself
   */
  Measure(String heading, String format, double ofItself) {
    this.heading = heading;
    this.format = format;
    this.ofItself = ofItself;
  }

  private static Set<Measure> set(Measure first, Measure... others) {
    return Collections.unmodifiableSet(EnumSet.of(first, others));
  }

  /**
   * The measure of a name.
   *
   * @throws InputException where there is none
   */
  static Measure of(String key) {
    for (Measure measure : values()) {
      if (measure.key().equals(key)) {
        return measure;
      }
    }
    List<String> keys = Arrays.stream(values()).map(Measure::key).toList();
    throw new InputException(
        "nothing is measured as " + key + "; there are " + NearNames.list(key, keys));
  }

  /** Its name in JSON. */
  public String key() {
    return name().toLowerCase(Locale.ROOT);
  }

  /** The name in JSON of the reference's own number, which some measures have. */
  public String referenceKey() {
    return "reference_" + key();
  }

  /** Its name in a table. */
  public String heading() {
    return heading;
  }

  /** A number of it as a person reads it; a dash for NaN. */
  public String format(double value) {
    return Double.isNaN(value) ? "–" : String.format(Locale.ROOT, format, value);
  }

  /** What a model has that is compared with itself; NaN where that depends on the model. */
  public double ofItself() {
    return ofItself;
  }

  /** Whether the reference has a number of its own, besides which the candidate's lies. */
  public boolean isOfEach() {
    return BY_LABELS.contains(this) || this == PERPLEXITY || this == MS;
  }
}
