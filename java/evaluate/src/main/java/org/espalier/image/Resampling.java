package org.espalier.image;

import java.util.Arrays;

/**
 * Filters that change the size of images, with the rounding of Pillow, which most models were trained behind: weights of 22 bits
 * after the point, and bytes between the two passes. An image that gets smaller is filtered by a kernel as wide as what becomes one
 * pixel.
 */
enum Resampling {
  // In the order of their numbers in preprocessor_config.json.
  NEAREST(0),
  LANCZOS(3),
  BILINEAR(1),
  BICUBIC(2),
  BOX(0.5),
  HAMMING(1);

  /** Bits after the point: 8 are of pixels, and 2 are room for sums. */
  private static final int PRECISION = 32 - 8 - 2;

  /** How far the kernel reaches from its middle, in pixels of the smaller image. */
  private final double reach;

  Resampling(double reach) {
    this.reach = reach;
  }

  /** The image in another size; the image itself where that is its own. */
  Pixels resize(Pixels image, int width, int height) {
    if (image.width() == width && image.height() == height) {
      return image;
    }
    if (this == NEAREST) {
      return nearest(image, width, height);
    }
    Pixels wide =
        image.width() == width ? image : across(image, new Taps(image.width(), width, this));
    return image.height() == height ? wide : down(wide, new Taps(image.height(), height, this));
  }

  private static Pixels nearest(Pixels image, int width, int height) {
    int channels = image.channels();
    Pixels made = Pixels.black(width, height, channels);
    int[] columns = nearest(image.width(), width);
    int[] rows = nearest(image.height(), height);
    for (int y = 0; y < height; y++) {
      int row = rows[y] * image.width();
      for (int x = 0; x < width; x++) {
        int from = (row + columns[x]) * channels;
        System.arraycopy(image.values(), from, made.values(), (y * width + x) * channels, channels);
      }
    }
    return made;
  }

  /** The pixel that each pixel of a smaller or larger row is; where two are as near, sums round as Pillow's do. */
  private static int[] nearest(int from, int to) {
    int[] picked = new int[to];
    double step = (double) from / to;
    double at = step * 0.5;
    for (int i = 0; i < to; i++, at += step) {
      picked[i] = (int) at;
    }
    return picked;
  }

  /** The pixels that each pixel of a smaller or larger row is made of, and their weights. */
  private static final class Taps {
    final int count;
    final int[] first;
    final int[][] weights;

    Taps(int from, int to, Resampling filter) {
      count = to;
      first = new int[to];
      weights = new int[to][];
      double step = (double) from / to;
      double stretch = Math.max(step, 1);
      double reach = filter.reach * stretch;
      for (int i = 0; i < to; i++) {
        double middle = (i + 0.5) * step;
        first[i] = Math.max(0, (int) (middle - reach + 0.5));
        int end = Math.min(from, (int) (middle + reach + 0.5));
        double[] exact = new double[end - first[i]];
        double sum = 0;
        for (int k = 0; k < exact.length; k++) {
          exact[k] = filter.at((k + first[i] - middle + 0.5) / stretch);
          sum += exact[k];
        }
        weights[i] = new int[exact.length];
        for (int k = 0; k < exact.length; k++) {
          double weight = (sum == 0 ? exact[k] : exact[k] / sum) * (1 << PRECISION);
          weights[i][k] = (int) (weight + Math.copySign(0.5, weight));
        }
      }
    }
  }

  private static Pixels across(Pixels image, Taps taps) {
    int channels = image.channels();
    byte[] from = image.values();
    Pixels made = Pixels.black(taps.count, image.height(), channels);
    int at = 0;
    for (int y = 0; y < image.height(); y++) {
      int row = y * image.width();
      for (int x = 0; x < taps.count; x++) {
        int[] weights = taps.weights[x];
        for (int c = 0; c < channels; c++) {
          int sum = 1 << PRECISION - 1;
          int source = (row + taps.first[x]) * channels + c;
          for (int weight : weights) {
            sum += (from[source] & 255) * weight;
            source += channels;
          }
          made.values()[at++] = clip(sum);
        }
      }
    }
    return made;
  }

  private static Pixels down(Pixels image, Taps taps) {
    int row = image.width() * image.channels();
    byte[] from = image.values();
    Pixels made = Pixels.black(image.width(), taps.count, image.channels());
    int[] sums = new int[row];
    for (int y = 0; y < taps.count; y++) {
      Arrays.fill(sums, 1 << PRECISION - 1);
      int source = taps.first[y] * row;
      for (int weight : taps.weights[y]) {
        for (int i = 0; i < row; i++) {
          sums[i] += (from[source++] & 255) * weight;
        }
      }
      for (int i = 0; i < row; i++) {
        made.values()[y * row + i] = clip(sums[i]);
      }
    }
    return made;
  }

  private static byte clip(int sum) {
    return (byte) Math.max(0, Math.min(255, sum >> PRECISION));
  }

  /** The kernel, not normalised. */
  private double at(double x) {
    double d = Math.abs(x);
    return switch (this) {
      case NEAREST -> throw new IllegalStateException("pixels are picked, not summed");
      case BOX -> x > -0.5 && x <= 0.5 ? 1 : 0;
      case BILINEAR -> Math.max(0, 1 - d);
      case HAMMING -> d >= 1 ? 0 : sinc(d) * (0.54 + 0.46 * Math.cos(Math.PI * d));
      case LANCZOS -> d >= 3 ? 0 : sinc(d) * sinc(d / 3);
      case BICUBIC -> // Keys (1981) with a = -0.5
          d < 1 ? (1.5 * d - 2.5) * d * d + 1 : d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
    };
  }

  private static double sinc(double x) {
    return x == 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
  }
}
