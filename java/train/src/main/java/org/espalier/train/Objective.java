package org.espalier.train;

/**
 * What training minimises: the sum of the parts with a weight above 0. Classifiers have logits [N, C], or one
 * logit z an example, which stands for the two classes with the logits 0 and z; causal language models are
 * classifiers of the token that follows each, [N, tokens, C]; embedding models have hidden states [N, tokens,
 * width] that are pooled into one vector a text; {@code output} is for models of any other kind, whose first
 * output is [N, …].
 *
 * @param labels weight of the cross entropy with the examples' labels where they are classes; where they are
 *     numbers (regression), of the mean squared error to them, as a share of their variance
 * @param logits weight of T²·KL(teacher ‖ student) of the logits (classifiers)
 * @param temperature T of {@code logits}
 * @param bound weight of Σ max(0, student − teacher)² of the logits (classifiers)
 * @param output weight of the squared error of the output, as a share of the teacher's sum of squares; beside
 *     labels, which are numbers then, of the mean squared error as a share of the labels' variance
 * @param embedding weight of 1 − cosine of the student's and the teacher's embedding of a text
 * @param similarity weight of KL between the softmaxes of the similarities that a text has to the other
 *     texts of its batch, teacher ‖ student
 * @param similarityTemperature similarities are divided by it
 * @param hidden weight of the squared error of the hidden states, as a share of the mean square of the
 *     teacher's
 */
public record Objective(
    double labels,
    double logits,
    double temperature,
    double bound,
    double output,
    double embedding,
    double similarity,
    double similarityTemperature,
    double hidden) {
  public Objective {
    double sum = 0;
    for (double weight :
        new double[] {labels, logits, bound, output, embedding, similarity, hidden}) {
      if (!(weight >= 0 && weight <= Float.MAX_VALUE)) {
        throw new IllegalArgumentException("a weight of " + weight + "; finite and 0 or more");
      }
      sum += weight;
    }
    if (sum == 0) {
      throw new IllegalArgumentException("all parts of the objective have weight 0");
    }
    if (!(temperature > 0 && temperature <= 1e6)) {
      throw new IllegalArgumentException("temperature " + temperature + "; it is in (0, 1e6]");
    }
    if (!(similarityTemperature > 0 && similarityTemperature <= 1e6)) {
      throw new IllegalArgumentException(
          "similarity temperature " + similarityTemperature + "; it is in (0, 1e6]");
    }
    boolean states = isForStates(embedding, similarity, hidden);
    int kinds = logits > 0 || bound > 0 ? 1 : 0;
    kinds += states ? 1 : 0;
    kinds += output > 0 ? 1 : 0;
    if (kinds > 1 || labels > 0 && states) {
      throw new IllegalArgumentException(
          "labels, logits and bound are for classifiers; embedding, similarity and hidden are for"
              + " embedding models; output is for others, beside labels that are numbers or alone:"
              + " not together");
    }
  }

  private static boolean isForStates(double embedding, double similarity, double hidden) {
    return embedding > 0 || similarity > 0 || hidden > 0;
  }

  /** Labels alone. */
  public static Objective ofLabels() {
    return new Objective(1, 0, 1, 0, 0, 0, 0, 1, 0);
  }

  /** The teacher's logits at temperature T with the share {@code labels} of cross entropy. */
  public static Objective ofLogits(double labels, double temperature) {
    return new Objective(labels, 1 - labels, temperature, 0, 0, 0, 0, 1, 0);
  }

  /** Embeddings, similarities and hidden states of a teacher. */
  public static Objective ofEmbeddings(double embedding, double similarity, double hidden) {
    return new Objective(0, 0, 1, 0, 0, embedding, similarity, 0.05, hidden);
  }

  /** Labels that are numbers, with a share of their squared error, and the teacher's output with the rest. */
  public static Objective ofNumbers(double labels) {
    return new Objective(labels, 0, 1, 0, 1 - labels, 0, 0, 1, 0);
  }

  /** A teacher's output of any shape. */
  public static Objective ofOutput() {
    return new Objective(0, 0, 1, 0, 1, 0, 0, 1, 0);
  }

  /**
   * Whether it is about a classifier's logits.
   *
   * @param given the labels of the examples; null where there are none
   */
  boolean isForLogits(Labels given) {
    boolean learnsNumbers = given instanceof Labels.Numbers;
    return logits > 0 || bound > 0 || labels > 0 && output == 0 && !learnsNumbers;
  }

  /** Whether it is about hidden states; else about the outputs of examples of one shape. */
  public boolean isForEmbeddings() {
    return isForStates(embedding, similarity, hidden);
  }

  /** Whether a teacher is needed. */
  public boolean needsTeacher() {
    return logits > 0 || bound > 0 || output > 0 || isForEmbeddings();
  }
}
