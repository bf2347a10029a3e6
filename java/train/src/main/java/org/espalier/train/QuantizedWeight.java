package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.espalier.compress.onnx.WeightGrid;

/** What is kept of a weight on a grid beside what forward reads of it: of all that only a part is trained. */
sealed interface QuantizedWeight extends AutoCloseable permits LatentWeights, RestingIntegers {
  WeightGrid grid();

  /** What the optimizer moves of the weights; null where the integers rest. */
  TrainingBuffer latent();

  /** One bit a weight: whether its gradient passes; null where the integers rest. */
  BytePointer gateBits();

  TrainingBuffer scales();

  /** The scales as the grid has them. */
  float[] gridScales();

  /** What the optimizer moves where scales are learned, a value a scale; else null. */
  TrainingBuffer ends();

  /** What {@link #learningEnds} writes; null where scales rest. */
  TrainingBuffer endGradients();

  /**
   * What writes the gradients of the ends, from the gradient of what forward reads.
   *
   * @return to be closed before this
   */
  EndGradients learningEnds(Tensor gradient);

  /**
   * Takes the scales from the ends.
   *
   * @param least of what an end was, which it keeps
   */
  void follow(float least);

  /** Writes what forward reads. */
  void renew();

  /** The integers of what forward reads. */
  byte[] integers();

  /** Writes what {@link #read} reads. */
  void write(DataOutputStream out) throws IOException;

  /** Takes what was written of a weight on the same grid. */
  void read(DataInputStream in) throws IOException;

  @Override
  void close();

  /** Writes the gradients of {@link #ends}, each time it is run. */
  record EndGradients(Runnable work, Runnable release) implements AutoCloseable {
    void run() {
      work.run();
    }

    @Override
    public void close() {
      release.run();
    }
  }
}
