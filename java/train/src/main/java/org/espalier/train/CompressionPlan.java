package org.espalier.train;

import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * What is done to a model: stages one after the other. A mask stays in force after the stage that
 * pruned, and so does quantization; weights are pruned before they are quantized.
 *
 * @param stages at least one, of different names, at most one of them a {@link Stage.Quantize}
 * @param seed fixes the order of the examples
 */
public record CompressionPlan(List<Stage> stages, long seed) {
  public CompressionPlan {
    stages = List.copyOf(stages);
    if (stages.isEmpty()) {
      throw new IllegalArgumentException("a plan needs at least one stage");
    }
    Set<String> names = new HashSet<>();
    boolean quantized = false;
    boolean compressed = false;
    for (Stage stage : stages) {
      if (!names.add(stage.name())) {
        throw new IllegalArgumentException("two stages have the name " + stage.name());
      }
      if (quantized && stage instanceof Stage.Quantize) {
        throw new IllegalArgumentException(
            "stage " + stage.name() + ": the model is quantized already; one stage can quantize");
      }
      if (quantized && stage instanceof Stage.Prune) {
        throw new IllegalArgumentException(
            "stage " + stage.name() + ": prune before the stage that quantizes");
      }
      if (compressed && stage instanceof Stage.Train train && train.rank() > 0) {
        throw new IllegalArgumentException(
            "stage "
                + stage.name()
                + ": low-rank is for stages before those that prune and quantize: what it adds to"
                + " weights would fill their zeros and leave their grids");
      }
      quantized |= stage instanceof Stage.Quantize;
      compressed |= !(stage instanceof Stage.Train);
    }
  }

  /**
   * The stage that teaches another one, by the model as it leaves it, where the {@link Compression.Job} names no
   * teacher: the last {@linkplain Stage.Train#teaches that teaches} before it.
   *
   * @param stage the place of the one that is taught, from 0
   * @return null where there is none: the model as it was given teaches
   */
  public Stage teacherOf(int stage) {
    for (int i = stage - 1; i >= 0; i--) {
      if (stages.get(i) instanceof Stage.Train train && train.teaches()) {
        return train;
      }
    }
    return null;
  }
}
