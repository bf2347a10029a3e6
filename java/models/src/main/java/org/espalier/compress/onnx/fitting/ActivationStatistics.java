package org.espalier.compress.onnx.fitting;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.function.ToLongFunction;
import java.util.stream.IntStream;
import org.espalier.InputException;

/**
 * What calibration keeps of one activation x [rows, channels]: the range of each channel in each example,
 * the sum of each channel, and the Gram matrix Σ x·xᵀ over all rows, of which more than {@link #TOGETHER}
 * channels, or {@link #FACTORED}, keep blocks on the diagonal. Sums run in a fixed order, so that equal examples give equal
 * statistics whatever the number of threads. Not safe for several threads.
 */
public final class ActivationStatistics {
  /**
   * The most channels that are seen together. A matrix of twice as many takes four times the memory and eight
   * times the time to take channels from: the 25,088 inputs of a classifier behind convolutions would take hours.
   */
  private static final int TOGETHER = 2048;

  /**
   * The same where their matrix is factored alone, for weights of 4 bits. Of MiniLM's 1,536 inputs of a product those in
   * two blocks leave 4 % more of the model's error, in three 7 %; of 8 bits that is next to nothing.
   */
  private static final int FACTORED = 8192;

  /** A variance below this share of the mean square is what the sums' float32 leaves of none. */
  private static final double STILL = 1e-6;

  /** The share of {@link #shrinkage} from which on more is assumed than was seen. */
  private static final double FEW = 0.25;

  /** Rows that are gathered before the Gram matrix is updated; they fit a second-level cache. */
  private static final int BLOCK = 64;

  private final String name;
  private final int channels;
  private final List<float[]> minima = new ArrayList<>();
  private final List<float[]> maxima = new ArrayList<>();
  private final double[] sums;
  private final double[] squares;

  /** Channels of a block of the Gram matrix. */
  private final int together;

  /** Row i holds the entries (i, first(i)) to (i, i). */
  private final double[][] gram;

  private final float[][] block;

  /** How far the moments that were asked for last were drawn away from what was seen, at most. */
  private double assumed;

  /** What adds to the blocks of the Gram matrix; null before the first rows and after the last. */
  private List<GramTiles> tiles;

  private int pending;
  private long rows;

  /** Of an activation whose channels are all seen together, as far as there are not too many. */
  public ActivationStatistics(String name, int channels) {
    this(name, channels, channels);
  }

  /**
   * @param group channels of different groups of so many are not seen together
   */
  public ActivationStatistics(String name, int channels, int group) {
    this(name, channels, group, TOGETHER);
  }

  /**
   * Of an activation whose moments weights are rounded by.
   *
   * @param bits of the weights
   */
  public static ActivationStatistics ofRounding(String name, int channels, int bits) {
    return new ActivationStatistics(name, channels, channels, most(bits));
  }

  private static int most(int bits) {
    return bits < 8 ? FACTORED : TOGETHER;
  }

  private ActivationStatistics(String name, int channels, int group, int most) {
    this.name = name;
    this.channels = channels;
    sums = new double[channels];
    squares = new double[channels];
    gram = new double[channels][];
    together = together(channels, group, most);
    for (int i = 0; i < channels; i++) {
      gram[i] = new double[i - first(i) + 1];
    }
    block = new float[BLOCK][channels];
  }

  /**
   * The bytes that the statistics of an activation take, without the ranges of its examples.
   *
   * @param channels its channels
   */
  public static long bytes(int channels) {
    return bytes(channels, channels);
  }

  /** The same for one whose groups of channels are not seen together. */
  public static long bytes(int channels, int group) {
    return bytes(channels, group, TOGETHER);
  }

  /** The same for statistics {@linkplain #ofRounding of rounding}. */
  public static long bytesOfRounding(int channels, int bits) {
    return bytes(channels, channels, most(bits));
  }

  private static long bytes(int channels, int group, int most) {
    return 4L * channels * together(channels, group, most) + 4L * BLOCK * channels;
  }

  /**
   * Cuts a list where the statistics of what its members read would take more than a quarter of this JVM's heap
   * together: each part is seen in a run of the examples.
   *
   * @param bytes those of a member
   * @return parts of at least one member, in the order of the list
   */
  public static <T> List<List<T>> parts(List<T> list, ToLongFunction<T> bytes) {
    long limit = Math.max(64L << 20, Runtime.getRuntime().maxMemory() / 4);
    List<List<T>> parts = new ArrayList<>();
    long sum = 0;
    for (T member : list) {
      long more = bytes.applyAsLong(member);
      if (parts.isEmpty() || sum + more > limit) {
        parts.add(new ArrayList<>());
        sum = 0;
      }
      parts.get(parts.size() - 1).add(member);
      sum += more;
    }
    return parts;
  }

  /**
   * @throws InputException where no example was added, naming the activation
   */
  public void checkSeen() {
    if (examples() == 0) {
      throw new InputException("calibration of " + name + " needs at least one example");
    }
  }

  /**
   * Assumes of activations that no example reaches, as those of an expert that none chooses, equal and independent channels
   * around 0: by these a weight counts as much as it is large.
   *
   * @param ran whether there was an example
   * @throws InputException where there was no example, naming an activation
   */
  public static void assume(Collection<ActivationStatistics> all, boolean ran) {
    for (ActivationStatistics x : all) {
      if (!ran) {
        x.checkSeen();
      } else if (x.examples() == 0) {
        x.assume();
      }
    }
  }

  private void assume() {
    for (int i = 0; i < channels; i++) {
      gram[i][i - first(i)] = 1;
      squares[i] = 1;
    }
    rows = channels;
    float[] ones = new float[channels];
    Arrays.fill(ones, 1);
    maxima.add(ones);
    float[] least = new float[channels];
    Arrays.fill(least, -1);
    minima.add(least);
  }

  /** As few blocks of one size as make up a group; of several groups the size divides each. */
  private static int together(int channels, int group, int most) {
    int blocks = Math.max(1, (group + most - 1) / most);
    while (group < channels && group % blocks != 0) {
      blocks++;
    }
    return Math.max(1, (group + blocks - 1) / blocks);
  }

  /** The first channel of the block that a channel lies in. */
  private int first(int channel) {
    return channel / together * together;
  }

  /**
   * Adds one example.
   *
   * @throws InputException when the values are no whole rows, or one is NaN or infinite
   */
  public void add(FloatBuffer values) {
    int n = values.remaining() / channels;
    if (n * channels != values.remaining()) {
      throw new InputException(
          "the activation "
              + name
              + " has "
              + values.remaining()
              + " values, no rows of "
              + channels);
    }
    float[] min = new float[channels];
    float[] max = new float[channels];
    Arrays.fill(min, Float.POSITIVE_INFINITY);
    Arrays.fill(max, Float.NEGATIVE_INFINITY);
    for (int r = 0; r < n; r++) {
      float[] row = block[pending];
      values.get(row);
      for (int c = 0; c < channels; c++) {
        float v = row[c];
        if (!(Math.abs(v) <= Float.MAX_VALUE)) {
          throw new InputException(
              "the activation "
                  + name
                  + " is "
                  + v
                  + " in channel "
                  + c
                  + " of calibration example "
                  + (examples() + 1)
                  + "; it must be finite");
        }
        min[c] = Math.min(min[c], v);
        max[c] = Math.max(max[c], v);
        sums[c] += v;
        squares[c] += (double) v * v;
      }
      if (++pending == BLOCK) {
        flush();
      }
    }
    rows += n;
    if (n > 0) {
      minima.add(min);
      maxima.add(max);
    }
  }

  private void flush() {
    if (tiles == null) {
      tiles = new ArrayList<>();
      for (int from = 0; from < channels; from += together) {
        double[][] lower = Arrays.copyOfRange(gram, from, Math.min(channels, from + together));
        tiles.add(new GramTiles(lower, from, BLOCK));
      }
    }
    tiles.parallelStream().forEach(t -> t.add(block, pending));
    pending = 0;
  }

  /** Adds the rows that are pending, and gives back what adding takes. */
  private void finish() {
    if (pending > 0) {
      flush();
    }
    if (tiles != null) {
      tiles.forEach(GramTiles::close);
      tiles = null;
    }
  }

  String name() {
    return name;
  }

  int channels() {
    return channels;
  }

  long rows() {
    return rows;
  }

  /** How many were added, without those of no rows. */
  public int examples() {
    return minima.size();
  }

  /** The smallest value of each channel in an example. */
  float[] minimum(int example) {
    return minima.get(example);
  }

  /** The largest value of each channel in an example. */
  float[] maximum(int example) {
    return maxima.get(example);
  }

  public double mean(int channel) {
    return sums[channel] / rows;
  }

  /** The mean of (x − shift)² in a channel. */
  double meanSquare(int channel, double shift) {
    return Math.max(0, squares[channel] / rows - 2 * shift * mean(channel) + shift * shift);
  }

  /**
   * The second moments of x' = (x − shift)/scale: the mean of x'·x'ᵀ, about their means if {@code
   * centred}. A channel of which nothing but rounding is left has none.
   *
   * @return lower triangle, row i holding the entries from the first channel of its block to (i, i)
   */
  public double[][] moments(float[] shift, float[] scale, boolean centred) {
    finish();
    double[] zero = new double[channels];
    boolean[] still = new boolean[channels];
    for (int i = 0; i < channels; i++) {
      zero[i] = centred ? mean(i) : shift[i];
      still[i] = meanSquare(i, zero[i]) <= STILL * squares[i] / rows;
    }
    double[][] result = new double[channels][];
    IntStream.range(0, channels)
        .parallel()
        .forEach(
            i -> {
              int from = first(i);
              double[] row = new double[i - from + 1];
              for (int j = from; j < i; j++) {
                row[j - from] =
                    still[i] || still[j] ? 0 : moment(i, j, zero) / ((double) scale[i] * scale[j]);
              }
              row[i - from] =
                  still[i] ? 0 : meanSquare(i, zero[i]) / ((double) scale[i] * scale[i]);
              result[i] = row;
            });
    return result;
  }

  /**
   * The same of x itself, for what is solved for by them: of each block they are drawn towards equal and independent
   * channels as far as {@link #shrinkage} says of so many rows.
   */
  public double[][] moments(boolean centred) {
    float[] ones = new float[channels];
    Arrays.fill(ones, 1);
    double[][] result = moments(new float[channels], ones, centred);
    assumed = 0;
    for (MomentBlock block : MomentBlock.of(result)) {
      double mean = block.trace() / block.size();
      double share = shrinkage(block);
      assumed = Math.max(assumed, share);
      for (int i = 0; i < block.size(); i++) {
        double[] row = block.lower()[i];
        for (int j = 0; j <= i; j++) {
          row[j] *= 1 - share;
        }
        row[i] += share * mean;
      }
    }
    return result;
  }

  /** Of many rows it is no loss where much is assumed: these channels are about equal and independent. */
  private boolean sawFew() {
    return assumed >= FEW && rows < 2L * together;
  }

  /** Of what rows were so few that {@link #moments(boolean)} gave little of what they say; in a line, where there are any. */
  public static Optional<String> few(Collection<ActivationStatistics> all) {
    List<ActivationStatistics> few = all.stream().filter(ActivationStatistics::sawFew).toList();
    return few.stream()
        .min(Comparator.comparingDouble(x -> (double) x.rows / x.channels))
        .map(
            x ->
                "calibration saw "
                    + x.rows
                    + (x.rows == 1 ? " row" : " rows")
                    + " of the "
                    + x.channels
                    + " inputs "
                    + x.name
                    + (few.size() == 1 ? "" : ", and few of " + (few.size() - 1) + " more")
                    + ": too few to tell which go together, so that outputs change more than with"
                    + " more examples");
  }

  /**
   * How far to draw what few rows say of many channels: half of oracle approximating shrinkage (Chen, Wiesel, Eldar and
   * Hero 2010, arXiv 0907.4698), the share at which the expected error of such moments is least where rows are Gaussian
   * and independent. Half of it serves sums on other rows as well, and keeps what channels have in common better.
   */
  private double shrinkage(MomentBlock block) {
    double p = block.size();
    double trace = block.trace();
    double squares = 0;
    for (int i = 0; i < block.size(); i++) {
      for (int j = 0; j <= i; j++) {
        double h = block.get(i, j);
        squares += (i == j ? 1 : 2) * h * h;
      }
    }
    double spread = (rows + 1 - 2 / p) * (squares - trace * trace / p);
    double share = ((1 - 2 / p) * squares + trace * trace) / spread;
    return spread > 0 ? Math.max(0, Math.min(1, share)) / 2 : 0;
  }

  private double moment(int i, int j, double[] zero) {
    return gram[i][j - first(i)] / rows - mean(i) * zero[j] - zero[i] * mean(j) + zero[i] * zero[j];
  }
}
