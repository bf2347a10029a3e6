package org.espalier.online;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/**
 * Rounds weights on given grids whose ends are not the −127 and 127 of the optimizers. What they began as tells the ends: those
 * with −128 may go there again. Where the largest of each weight is 63 or 64, they were made for processors whose 8-bit products
 * saturate, and stay within that. Not for several threads.
 */
final class GivenGrids implements AutoCloseable {
  private static final int LEAST_REDUCED = 63;
  private static final int MOST_REDUCED = 64;

  private final List<Given> all = new ArrayList<>();
  private final List<FakeQuantize.Batch> others = new ArrayList<>();

  /** A weight on a given grid. */
  private record Given(Weight weight, Tensor latent, BytePointer gate, Tensor scales) {
    Ends ends() {
      FloatBuffer values = Floats.of(latent);
      float[] steps = weight.grid();
      int inner = weight.scaleAxis() == 0 ? values.capacity() / steps.length : 1;
      int least = 0;
      int largest = 0;
      for (int i = 0; i < values.capacity(); i++) {
        int nearest = Math.round(values.get(i) / steps[i / inner % steps.length]);
        least = Math.min(least, nearest);
        largest = Math.max(largest, nearest);
      }
      return new Ends(least, largest);
    }

    FakeQuantize.Batch batch(FakeQuantize grid) {
      return grid.given()
          .perChannel(weight.scaleAxis())
          .batch(
              List.of(
                  FakeQuantize.Job.fake(
                      latent, weight.working(), gate, new FloatPointer(scales.pointer()), null)));
    }
  }

  /** The least and the largest integer of a weight. */
  private record Ends(int least, int largest) {
    int magnitude() {
      return Math.max(-least, largest);
    }

    boolean areReduced() {
      return magnitude() >= LEAST_REDUCED && magnitude() <= MOST_REDUCED;
    }
  }

  /**
   * Takes a weight that an optimizer rounds to a grid.
   *
   * @param weight whose working weights are the rounded ones
   * @param latent what is rounded
   * @param scales of the grid
   */
  void add(Weight weight, Tensor latent, BytePointer gate, Tensor scales) {
    all.add(new Given(weight, latent, gate, scales));
  }

  /** What the latent weights are now is what they began as. */
  void find() {
    close();
    List<Ends> ends = all.stream().map(Given::ends).toList();
    boolean reduced = ends.stream().allMatch(Ends::areReduced);
    for (int i = 0; i < all.size(); i++) {
      int magnitude = ends.get(i).magnitude();
      if (reduced) {
        FakeQuantize grid = FakeQuantize.symmetric(-magnitude, magnitude, magnitude);
        others.add(all.get(i).batch(grid));
      } else if (ends.get(i).least() == Byte.MIN_VALUE) {
        others.add(all.get(i).batch(FakeQuantize.symmetricFull(Byte.SIZE)));
      }
    }
  }

  /** Rounds those with other ends again, after an optimizer. */
  void round() {
    others.forEach(FakeQuantize.Batch::run);
  }

  @Override
  public void close() {
    others.forEach(FakeQuantize.Batch::close);
    others.clear();
  }
}
