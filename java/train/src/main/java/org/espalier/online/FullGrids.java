package org.espalier.online;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/**
 * Rounds weights on given grids of −128 to 127 steps. The optimizers' grid ends at −127, and is right for weights that do not
 * go beyond: which do is known by what they began as. Not for several threads.
 */
final class FullGrids implements AutoCloseable {
  private static final FakeQuantize GRID = FakeQuantize.symmetricFull(8).given();

  private final List<Given> all = new ArrayList<>();
  private final List<FakeQuantize.Batch> full = new ArrayList<>();

  /** A weight on a given grid. */
  private record Given(Weight weight, Tensor latent, BytePointer gate, Tensor scales) {
    boolean isFull() {
      FloatBuffer values = Floats.of(latent);
      float[] steps = weight.grid();
      int inner = weight.scaleAxis() == 0 ? values.capacity() / steps.length : 1;
      for (int i = 0; i < values.capacity(); i++) {
        if (values.get(i) < -127.5f * steps[i / inner % steps.length]) {
          return true;
        }
      }
      return false;
    }

    FakeQuantize.Batch batch() {
      return GRID.perChannel(weight.scaleAxis())
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
    all.add(new Given(weight, latent, gate, scales));
  }

  /** What the latent weights are now is what they began as. */
  void find() {
    close();
    all.stream().filter(Given::isFull).forEach(given -> full.add(given.batch()));
  }

  /** Rounds those with −128 again, after an optimizer. */
  void round() {
    full.forEach(FakeQuantize.Batch::run);
  }

  @Override
  public void close() {
    full.forEach(FakeQuantize.Batch::close);
    full.clear();
  }
}
