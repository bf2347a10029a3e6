package org.espalier.train;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;

/** Runs a model on a few examples, to see what its outputs are. */
final class TrialBatch {
  /** Examples of the trial: a size that hardly stands in a graph by chance, as 1 and 2 do. */
  private static final int FEW = 3;

  private TrialBatch() {}

  /** Which of the examples is the longest. */
  static int longest(Examples examples) {
    int longest = 0;
    for (int i = 0; i < examples.size(); i++) {
      longest = examples.length(i) > examples.length(longest) ? i : longest;
    }
    return longest;
  }

  /** Some of the examples; of texts the longest among them, and that with the highest token. */
  static int[] few(Examples examples) {
    int longest = longest(examples);
    int[] few = IntStream.range(0, FEW).map(i -> (longest + i) % examples.size()).toArray();
    if (examples.areTexts()) {
      int highest = 0;
      for (int i = 0; i < examples.size(); i++) {
        highest = examples.highest(i) > examples.highest(highest) ? i : highest;
      }
      few[FEW - 1] = highest;
    }
    return few;
  }

  /**
   * The shape of what a model gives for one of the examples, found by a batch of {@value #FEW}.
   *
   * @param value an output
   * @param name what messages call the model
   * @throws InputException where the model cannot run on them, or the output is not finite or no float32
   */
  static long[] shape(Lane lane, Examples examples, String value, String name) {
    return shape(lane, examples, few(examples), value, name);
  }

  /** Which of the examples is the shortest. */
  static int shortest(Examples examples) {
    int shortest = 0;
    for (int i = 0; i < examples.size(); i++) {
      shortest = examples.length(i) < examples.length(shortest) ? i : shortest;
    }
    return shortest;
  }

  /** The same for the shortest of some texts. */
  static long[] shapeOfShortest(Lane lane, Examples texts, String value, String name) {
    int[] alike = new int[FEW];
    Arrays.fill(alike, shortest(texts));
    return shape(lane, texts, alike, value, name);
  }

  private static long[] shape(Lane lane, Examples examples, int[] few, String value, String name) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = batch(examples, few, lane, name);
      Tensor output;
      try {
        output = lane.forward(batch, value);
      } catch (InputException e) {
        throw new InputException(
            e.getMessage()
                + (examples.areTexts()
                    ? " (for texts of up to "
                        + examples.length(few[0])
                        + " tokens, of which "
                        + examples.highest(few[FEW - 1])
                        + " is the highest)"
                    : " (for " + FEW + " examples; the model must take batches of any size)"),
            e);
      }
      String what = name + ": the output " + value;
      if (output.scalar_type().intern() != ScalarType.Float) {
        throw new InputException(
            what
                + " is "
                + output.scalar_type().intern()
                + "; only float32 outputs can be trained");
      }
      long[] shape = output.shape();
      if (shape.length == 0 || shape[0] != FEW) {
        throw new InputException(
            what
                + " has the shape "
                + Arrays.toString(shape)
                + " for "
                + FEW
                + " examples; its first dimension must count them");
      }
      if (!isFinite(output)) {
        throw new InputException(what + " holds NaN or infinite values for an example");
      }
      shape[0] = 1;
      return shape;
    }
  }

  private static Batch batch(Examples examples, int[] indices, Lane lane, String name) {
    try {
      return Batch.of(examples, indices, lane.graph().inputNames());
    } catch (InputException e) {
      throw new InputException(name + ": " + e.getMessage(), e);
    }
  }

  /** Whether a tensor holds neither NaN nor infinite values. */
  static boolean isFinite(Tensor t) {
    try (PointerScope scope = new PointerScope()) {
      return torch.isfinite(t).all().item_bool();
    }
  }
}
