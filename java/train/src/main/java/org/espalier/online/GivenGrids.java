package org.espalier.online;

import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/**
 * Keeps weights on given grids. Those whose ends are not the −127 and 127 of the optimizers are rounded again. What they began
 * as tells the ends: those with −128 may go there again. Where the largest of each weight is 63 or 64, they were made for
 * processors whose 8-bit products saturate, and stay within that.
 *
 * <p>A weight that a step has moved beyond an end comes back to it: beyond, no gradient would pass the rounding, and it would
 * stay there whatever comes. Not for several threads.
 */
final class GivenGrids implements AutoCloseable {
  private static final int LEAST_REDUCED = 63;
  private static final int MOST_REDUCED = 64;

  /** What an optimizer rounds to. */
  private static final Ends USUAL = new Ends(-Byte.MAX_VALUE, Byte.MAX_VALUE);

  private final List<Given> all = new ArrayList<>();

  /** The ends of each weight's grid. */
  private final List<Ends> ends = new ArrayList<>();

  private final List<FakeQuantize.Batch> others = new ArrayList<>();

  /**
   * A weight on a given grid.
   *
   * @param passes the bits of the gate
   * @param words room for them
   */
  private record Given(
      Weight weight,
      Tensor latent,
      BytePointer gate,
      LongBuffer passes,
      long[] words,
      Tensor scales) {
    Ends ends() {
      FloatBuffer values = Floats.of(latent);
      int least = 0;
      int largest = 0;
      for (int i = 0; i < values.capacity(); i++) {
        int nearest = Math.round(values.get(i) / step(i, values.capacity()));
        least = Math.min(least, nearest);
        largest = Math.max(largest, nearest);
      }
      return new Ends(least, largest);
    }

    /** Brings back what lies beyond the grid, which is where the gate does not pass; the working weights are there already. */
    void bringBack(Ends ends) {
      passes.get(0, words); // at once, and what follows is quick on an array: there is seldom one
      int n = Math.toIntExact(latent.elements());
      int last = words.length - 1;
      words[last] |= n % Long.SIZE == 0 ? 0 : -1L << n; // what is behind the last weight
      long all = -1;
      for (long word : words) {
        all &= word;
      }
      if (all == -1) {
        return;
      }
      FloatBuffer values = Floats.of(latent);
      for (int word = 0; word < words.length; word++) {
        for (long bits = ~words[word]; bits != 0; bits &= bits - 1) {
          int i = word * Long.SIZE + Long.numberOfTrailingZeros(bits);
          float value = values.get(i);
          if (!Float.isNaN(value)) { // which the guard takes out
            values.put(i, (value < 0 ? ends.least() : ends.largest()) * step(i, n));
            passes.put(word, passes.get(word) | 1L << i);
          }
        }
      }
    }

    private float step(int i, int n) {
      float[] steps = weight.grid();
      int inner = weight.scaleAxis() == 0 ? n / steps.length : 1;
      return steps[i / inner % steps.length];
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
    LongBuffer passes = gate.asByteBuffer().order(ByteOrder.LITTLE_ENDIAN).asLongBuffer();
    all.add(new Given(weight, latent, gate, passes, new long[passes.capacity()], scales));
  }

  /** What the latent weights are now is what they began as. */
  void find() {
    close();
    List<Ends> began = all.stream().map(Given::ends).toList();
    boolean reduced = began.stream().allMatch(Ends::areReduced);
    for (int i = 0; i < all.size(); i++) {
      int magnitude = began.get(i).magnitude();
      if (reduced) {
        FakeQuantize grid = FakeQuantize.symmetric(-magnitude, magnitude, magnitude);
        others.add(all.get(i).batch(grid));
        ends.add(new Ends(-magnitude, magnitude));
      } else if (began.get(i).least() == Byte.MIN_VALUE) {
        others.add(all.get(i).batch(FakeQuantize.symmetricFull(Byte.SIZE)));
        ends.add(new Ends(Byte.MIN_VALUE, Byte.MAX_VALUE));
      } else {
        ends.add(USUAL);
      }
    }
  }

  /** Rounds those with other ends again, after an optimizer, and brings back what went beyond. */
  void round() {
    others.forEach(FakeQuantize.Batch::run);
    for (int i = 0; i < all.size(); i++) {
      all.get(i).bringBack(ends.get(i));
    }
  }

  @Override
  public void close() {
    others.forEach(FakeQuantize.Batch::close);
    others.clear();
    ends.clear();
  }
}
