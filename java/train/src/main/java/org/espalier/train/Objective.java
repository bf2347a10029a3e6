package org.espalier.train;

/**
 * What training minimises: the sum of the parts with a weight above 0. Classifiers have logits [N, C],
 * embedding models hidden states [N, tokens, width] that are pooled into one vector a text.
 *
 * @param labels weight of the cross entropy with the examples' labels (classifiers)
 * @param logits weight of T²·KL(teacher ‖ student) of the logits (classifiers)
 * @param temperature T of {@code logits}
 * @param bound weight of Σ max(0, student − teacher)² of the logits (classifiers)
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
    double embedding,
    double similarity,
    double similarityTemperature,
    double hidden) {
  public Objective {
    double sum = 0;
    for (double weight : new double[] {labels, logits, bound, embedding, similarity, hidden}) {
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
    if (isForLogits(labels, logits, bound) && isForStates(embedding, similarity, hidden)) {
      throw new IllegalArgumentException(
          "labels, logits and bound are for classifiers; embedding, similarity and hidden are for"
              + " embedding models: not both");
    }
  }

  private static boolean isForLogits(double labels, double logits, double bound) {
    return labels > 0 || logits > 0 || bound > 0;
  }

  private static boolean isForStates(double embedding, double similarity, double hidden) {
    return embedding > 0 || similarity > 0 || hidden > 0;
  }

  /** Labels alone. */
  public static Objective ofLabels() {
    return new Objective(1, 0, 1, 0, 0, 0, 1, 0);
  }

  /** The teacher's logits at temperature T with the share {@code labels} of cross entropy. */
  public static Objective ofLogits(double labels, double temperature) {
    return new Objective(labels, 1 - labels, temperature, 0, 0, 0, 1, 0);
  }

  /** Embeddings, similarities and hidden states of a teacher. */
  public static Objective ofEmbeddings(double embedding, double similarity, double hidden) {
    return new Objective(0, 0, 1, 0, embedding, similarity, 0.05, hidden);
  }

  /** Whether it is about hidden states; else about logits. */
  public boolean isForEmbeddings() {
    return isForStates(embedding, similarity, hidden);
  }

  /** Whether a teacher is needed. */
  public boolean needsTeacher() {
    return logits > 0 || bound > 0 || isForEmbeddings();
  }
}
