package org.espalier.online;

import java.nio.ByteOrder;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.compress.onnx.IntegerEnds;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;
import org.espalier.op.FakeQuantize;

/**
 * Keeps weights on given grids, within their {@link IntegerEnds}: those whose ends are not what the optimizers round to are rounded
 * again. Not for several threads.
 */
final class GivenGrids implements AutoCloseable {
  private final List<Given> all = new ArrayList<>();

  /** The ends of each weight's grid. */
  private final List<IntegerEnds> ends = new ArrayList<>();

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
      Tensor scales,
      IntegerEnds.Steps steps) {
    IntegerEnds reached() {
      return IntegerEnds.reached(Floats.of(latent), steps);
    }

    /** Brings back what lies beyond the grid, which is where the gate does not pass; the working weights are there already. */
    void bringBack(IntegerEnds ends) {
      passes.get(0, words); // at once, and what follows is quick on an array: there is seldom one
      if (!IntegerEnds.allPass(words, Math.toIntExact(latent.elements()))) {
        ends.bringBack(words, Floats.of(latent), steps);
        passes.put(0, words);
      }
    }

    FakeQuantize.Batch batch(IntegerEnds ends) {
      return FakeQuantize.symmetric(ends.least(), ends.largest(), ends.largest())
          .given()
          .perChannel(weight.scaleAxis())
          .batch(
              List.of(
                  FakeQuantize.Job.fake(
                      latent, weight.working(), gate, new FloatPointer(scales.pointer()), null)));
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
    IntegerEnds.Steps steps =
        IntegerEnds.Steps.along(
            weight.scaleAxis(), weight.grid(), Math.toIntExact(latent.elements()));
    all.add(new Given(weight, latent, gate, passes, new long[passes.capacity()], scales, steps));
  }

  /** What the latent weights are now is what they began as. */
  void find() {
    close();
    ends.addAll(IntegerEnds.of(all.stream().map(Given::reached).toList()));
    for (int i = 0; i < all.size(); i++) {
      if (!ends.get(i).equals(IntegerEnds.USUAL)) {
        others.add(all.get(i).batch(ends.get(i)));
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
