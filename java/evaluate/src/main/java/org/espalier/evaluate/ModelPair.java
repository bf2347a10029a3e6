package org.espalier.evaluate;

import org.espalier.InputException;
import org.espalier.compress.Progress;

/**
 * A reference and a candidate in ONNX Runtime, each on one thread, and the examples that both are fed one by
 * one. Not for several threads at a time.
 */
public final class ModelPair implements AutoCloseable {
  private final ExampleTensors examples;
  private final MeasuredModel referenceModel;
  private final MeasuredModel candidateModel;
  private final FedModel reference;
  private final FedModel candidate;

  /**
   * Loads two models.
   *
   * @throws InputException where one cannot be loaded or has inputs that the examples lack
   */
  public ModelPair(MeasuredModel reference, MeasuredModel candidate, ExampleTensors examples) {
    this.examples = examples;
    this.referenceModel = reference;
    this.candidateModel = candidate;
    this.reference = new FedModel(new RuntimeModel(reference), examples);
    try {
      this.candidate = new FedModel(new RuntimeModel(candidate), examples);
    } catch (InputException e) {
      this.reference.close();
      throw e;
    }
  }

  /** How many examples there are. */
  public int size() {
    return examples.size();
  }

  ExampleTensors examples() {
    return examples;
  }

  MeasuredModel referenceModel() {
    return referenceModel;
  }

  MeasuredModel candidateModel() {
    return candidateModel;
  }

  FedModel reference() {
    return reference;
  }

  FedModel candidate() {
    return candidate;
  }

  /**
   * What the candidate saves, measured now.
   *
   * @param progress receives the progress
   * @throws InputException when a model cannot be run
   */
  public Savings savings(Progress progress) {
    return Savings.measure(
        referenceModel,
        candidateModel,
        size(),
        i -> {
          reference.open(i);
          candidate.open(i);
        },
        i -> reference.run(i).close(),
        i -> candidate.run(i).close(),
        progress);
  }

  @Override
  public void close() {
    reference.close();
    candidate.close();
  }
}
