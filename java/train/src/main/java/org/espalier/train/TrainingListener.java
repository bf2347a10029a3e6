package org.espalier.train;

import java.util.Map;

/** Watches a {@link Compression}. All calls come from the thread that runs it, one at a time. */
public interface TrainingListener {
  /**
   * A stage begins, or goes on after {@link Compression#restore}.
   *
   * @param index its place in the plan, from 0
   * @param steps how many steps it trains
   */
  default void stageStarted(Stage stage, int index, long steps) {}

  /**
   * Work of a stage outside its steps, for a progress line: «calibrating», «teacher».
   *
   * @param done the part of this work that is done, in any unit
   * @param total all of it
   */
  default void note(String text, long done, long total) {}

  /**
   * A step is done. {@link Compression#save} may be called from here.
   *
   * @return whether to go on; false stops before the next step, with everything as it is
   */
  default boolean step(StepReport report) {
    return true;
  }

  /** The validation examples were looked at. */
  default void validated(Stage stage, Validation validation) {}

  /** A stage is complete, its best state restored. {@link Compression#save} may be called from here. */
  default void stageFinished(StageReport report) {}

  /**
   * One step.
   *
   * @param stage where
   * @param step its number in the stage, from 1
   * @param steps of the stage
   * @param loss the sum of the weighted parts
   * @param parts the parts of the objective without their weights, by the names of its fields
   * @param learningRate of the step
   * @param gradientNorm over all parameters; NaN where the optimizer did not ask for it
   * @param sparsity share of zeros among the weights that are pruned; 0 without pruning
   * @param examples how many were in the batch
   * @param seconds of the whole step
   * @param addedSeconds of them, what compression added: masks, fake quantization, the optimizer
   */
  record StepReport(
      Stage stage,
      long step,
      long steps,
      double loss,
      Map<String, Double> parts,
      double learningRate,
      double gradientNorm,
      double sparsity,
      int examples,
      double seconds,
      double addedSeconds) {}

  /**
   * A look at the validation examples with the weights and activations that will run.
   *
   * @param step after how many steps of the stage
   * @param loss the objective
   * @param quality mean cosine to the teacher's embedding or output; for classifiers the share of right labels,
   *     or of agreement with the teacher where there are no labels; where numbers are learned, 1 − their mean
   *     squared error as a share of the training labels' variance
   * @param best whether it is the best of the stage so far
   */
  record Validation(long step, double loss, double quality, boolean best) {}

  /**
   * What a stage did.
   *
   * @param before the first look at the validation examples, before the change that the stage makes
   * @param changed after that change and before training
   * @param after with the state that the stage ends with
   * @param steps that were done
   * @param seconds that it took
   */
  record StageReport(
      Stage stage,
      Validation before,
      Validation changed,
      Validation after,
      long steps,
      double seconds) {}
}
