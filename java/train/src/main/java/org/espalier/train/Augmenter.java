package org.espalier.train;

import java.util.Arrays;
import java.util.List;
import java.util.function.ToDoubleFunction;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarOptional;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.CounterRandom;
import org.espalier.format.onnx.ImageLayout;

/** Changes the images of batches as an {@link Augmentation} says. Immutable and for several threads. */
final class Augmenter {
  private static final int BILINEAR = 0;
  private static final int REFLECTION = 2;

  private final Augmentation settings;
  private final ImageLayout layout;

  Augmenter(Augmentation settings, ImageLayout layout) {
    this.settings = settings;
    this.layout = layout;
  }

  /** The random numbers of an image in a step, each uniform in [0, 1). */
  private record Draw(
      double mirror,
      double turnOver,
      double right,
      double down,
      double zoom,
      double rotate,
      double brightness,
      double contrast) {
    static Draw of(long seed, long step, int example) {
      int[] one = new int[4];
      int[] two = new int[4];
      CounterRandom.philox(seed, step, 2L * example, one);
      CounterRandom.philox(seed, step, 2L * example + 1, two);
      return new Draw(
          uniform(one[0]),
          uniform(one[1]),
          uniform(one[2]),
          uniform(one[3]),
          uniform(two[0]),
          uniform(two[1]),
          uniform(two[2]),
          uniform(two[3]));
    }

    private static double uniform(int bits) {
      return (bits & 0xffffffffL) * 0x1p-32;
    }
  }

  /**
   * Changes images where they are; what is computed on the way belongs to the PointerScope that is open.
   *
   * @param batch [N, …] in host memory
   * @param examples which image of all each of them is
   * @param seed of the plan and the stage
   */
  void change(Tensor batch, int[] examples, long seed, long step) {
    List<Draw> draws = Arrays.stream(examples).mapToObj(e -> Draw.of(seed, step, e)).toList();
    Tensor images = layout == ImageLayout.CHANNELS_FIRST ? batch : batch.permute(0, 3, 1, 2);
    Tensor x = images.to(ScalarType.Float);
    Augmentation.Flip flip = settings.flip();
    x = moved(x, 3, flip.isHorizontal(), draws, Draw::mirror, Draw::right);
    x = moved(x, 2, flip.isVertical(), draws, Draw::turnOver, Draw::down);
    if (settings.resamples()) {
      x = resampled(x, draws);
    }
    if (settings.changesValues()) {
      x = withOtherValues(x, draws);
    }
    if (batch.scalar_type().intern() == ScalarType.Byte) {
      x = x.round().clamp(new ScalarOptional(new Scalar(0)), new ScalarOptional(new Scalar(255)));
    }
    images.copy_(x);
  }

  /** Images that are mirrored and shifted along one axis, by the numbers of their pixels there. */
  private Tensor moved(
      Tensor x,
      int axis,
      boolean flips,
      List<Draw> draws,
      ToDoubleFunction<Draw> mirror,
      ToDoubleFunction<Draw> by) {
    int side = (int) x.size(axis);
    int most = (int) Math.round(settings.shift() * side);
    if (!flips && most == 0) {
      return x;
    }
    long[] from = new long[draws.size() * side];
    for (int i = 0; i < draws.size(); i++) {
      boolean mirrored = flips && mirror.applyAsDouble(draws.get(i)) < 0.5;
      int shift = (int) (by.applyAsDouble(draws.get(i)) * (2 * most + 1)) - most;
      for (int k = 0; k < side; k++) {
        int place = Math.floorMod(k - shift, 2 * side);
        int inside = Math.min(place, 2 * side - 1 - place);
        from[i * side + k] = mirrored ? side - 1 - inside : inside;
      }
    }
    long[] shape = {draws.size(), 1, 1, 1};
    shape[axis] = side;
    return x.gather(axis, AbstractTensor.create(from, shape).expand_as(x));
  }

  private Tensor resampled(Tensor x, List<Draw> draws) {
    double ratio = (double) x.size(2) / x.size(3);
    float[] maps = new float[6 * draws.size()];
    for (int i = 0; i < draws.size(); i++) {
      double size = Math.pow(1 + settings.zoom(), 2 * draws.get(i).zoom() - 1);
      double angle = Math.toRadians(settings.rotate() * (2 * draws.get(i).rotate() - 1));
      double cos = Math.cos(angle) / size;
      double sin = Math.sin(angle) / size;
      // Of places in [-1, 1] along both sides, which are not equally long.
      float[] map = {(float) cos, (float) (sin * ratio), 0, (float) (-sin / ratio), (float) cos, 0};
      System.arraycopy(map, 0, maps, 6 * i, 6);
    }
    Tensor grid =
        torch.affine_grid_generator(
            AbstractTensor.create(maps, draws.size(), 2, 3), x.shape(), false);
    return torch.grid_sampler(x, grid, BILINEAR, REFLECTION, false);
  }

  private Tensor withOtherValues(Tensor x, List<Draw> draws) {
    Tensor mean = mean(x);
    Tensor rest = x.sub(mean);
    Tensor deviation = mean(rest.mul(rest)).sqrt();
    Tensor contrast = ofEach(draws, d -> 1 + settings.contrast() * (2 * d.contrast() - 1));
    Tensor brightness = ofEach(draws, d -> settings.brightness() * (2 * d.brightness() - 1));
    return rest.mul(contrast).add(mean.add(brightness.mul(deviation)));
  }

  /** The mean of each image, in two steps: a sum of many values at once would depend on the number of threads. */
  private static Tensor mean(Tensor x) {
    ScalarTypeOptional same = new ScalarTypeOptional();
    return x.mean(new long[] {3}, true, same).mean(new long[] {1, 2}, true, same);
  }

  private static Tensor ofEach(List<Draw> draws, ToDoubleFunction<Draw> value) {
    float[] values = new float[draws.size()];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) value.applyAsDouble(draws.get(i));
    }
    return AbstractTensor.create(values, values.length, 1, 1, 1);
  }
}
