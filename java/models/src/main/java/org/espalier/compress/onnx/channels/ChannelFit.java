package org.espalier.compress.onnx.channels;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.channels.HiddenChannels.Reader;
import org.espalier.compress.onnx.channels.HiddenChannels.Slice;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.ChannelElimination;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Which channels of a set go, and what the products that read the others become. Not safe for several threads.
 */
public final class ChannelFit {
  /**
   * A product that reads the channels.
   *
   * @param rows what each number of the channels is multiplied with
   * @param group how many numbers a channel is
   * @param outputs how many sums it has
   * @param inner how many weights of a number lie one after the other
   * @param last whether its outputs are the last axis of the weight
   * @param activation what calibration saw of the channels; null to go by magnitude
   * @param mean of its outputs over what calibration saw, without its bias; null where that stays
   */
  private record Sums(
      double[][] rows,
      int group,
      int outputs,
      int inner,
      boolean last,
      ActivationStatistics activation,
      double[] mean) {

    /** The mean of the outputs that some of the channels make. */
    double[] mean(int[] channels) {
      // A number's weights are [outputs, kernel or pixels] or, where its axis is the first,
      // [pixels, outputs].
      double[] mean = new double[outputs];
      for (int k : numbers(channels, group)) {
        for (int i = 0; i < rows[k].length; i++) {
          mean[last ? i % outputs : i / inner] += activation.mean(k) * rows[k][i];
        }
      }
      return mean;
    }

    Sums withMean(double[] mean) {
      return new Sums(rows, group, outputs, inner, last, activation, mean);
    }
  }

  private final ChannelElimination elimination;
  private final List<Sums> readers = new ArrayList<>();

  /**
   * @param set of the model as it is now
   * @param statistics of what the products read, by the name of the value; empty to go by magnitude
   * @throws InputException if a weight is not finite
   */
  public ChannelFit(
      OnnxModel model, HiddenChannels set, Map<String, ActivationStatistics> statistics) {
    boolean seen = !statistics.isEmpty();
    // What both reads and makes them has a bias that is to be cut too.
    boolean biased =
        seen
            && set.readers().stream()
                .allMatch(r -> r.bias() != null && !set.makers().contains(r.node()));
    double[][] magnitudes = seen ? null : magnitudes(model, set);
    elimination = new ChannelElimination(set.size());
    for (Reader reader : set.readers()) {
      Slice slice = reader.slice();
      int group = reader.group();
      long[] dims = model.constant(slice.constant()).dims();
      boolean last = slice.axis() == 0;
      Sums sums =
          new Sums(
              rows(model, set.size(), slice, group, reader.weight()),
              group,
              (int) dims[last ? 1 : 0],
              slice.layout().each() / group * inner(dims, slice),
              last,
              statistics.get(reader.activation()),
              null);
      double[] mean = biased ? sums.mean(IntStream.range(0, set.size()).toArray()) : null;
      readers.add(sums.withMean(mean));
      double[][] moments = seen ? sums.activation().moments(biased) : repeated(magnitudes, group);
      elimination.add(moments, sums.rows(), group);
    }
  }

  private static double[][] repeated(double[][] rows, int times) {
    return IntStream.range(0, rows.length * times)
        .mapToObj(i -> rows[i / times])
        .toArray(double[][]::new);
  }

  /** The numbers that some channels are, if each is so many. */
  static int[] numbers(int[] channels, int group) {
    return Arrays.stream(channels)
        .flatMap(c -> IntStream.range(c * group, (c + 1) * group))
        .toArray();
  }

  /** Moments that know nothing but the sum of squares of the weights that make each channel. */
  private static double[][] magnitudes(OnnxModel model, HiddenChannels set) {
    double[][] diagonal = new double[set.size()][1];
    for (Slice slice : set.slices()) {
      if (set.makers().contains(slice.node()) && slice.input() == 1) {
        double[][] rows = rows(model, set.size(), slice, 1, slice.constant());
        for (int c = 0; c < rows.length; c++) {
          diagonal[c][0] += Arrays.stream(rows[c]).map(w -> w * w).sum();
        }
      }
    }
    return diagonal;
  }

  /**
   * For each number of the channels all weights of a constant that are its own, in their order.
   *
   * @param size how many channels there are
   * @param group how many numbers a channel is
   * @param weight what people call it
   * @throws InputException if one is not finite
   */
  static double[][] rows(OnnxModel model, int size, Slice slice, int group, String weight) {
    OnnxInitializer tensor = model.constant(slice.constant());
    FloatBuffer values = tensor.floats();
    int inner = inner(tensor.dims(), slice);
    int[] numbers = slice.layout().numbers(size, group);
    int outer = (int) (tensor.elements() / ((long) numbers.length * inner));
    double[][] rows = new double[size * group][outer * slice.layout().each() / group * inner];
    int[] filled = new int[rows.length];
    int at = values.position();
    for (int o = 0; o < outer; o++) {
      for (int number : numbers) {
        if (number < 0) {
          at += inner;
          continue;
        }
        for (int i = 0; i < inner; i++) {
          float w = values.get(at++);
          if (!Float.isFinite(w)) {
            throw new InputException(
                model.name()
                    + ": the weights "
                    + weight
                    + " hold "
                    + w
                    + "; finite numbers are right");
          }
          rows[number][filled[number]++] = w;
        }
      }
    }
    return rows;
  }

  /** How many weights lie one after the other for each entry of the axis. */
  static int inner(long[] dims, Slice slice) {
    int inner = 1;
    for (int i = slice.axis() + 1; i < dims.length; i++) {
      inner *= (int) dims[i];
    }
    return inner;
  }

  /**
   * Lets all but so many channels go. May be called again, for fewer.
   *
   * @return the channels that stay, ascending
   */
  public int[] keep(int count) {
    return elimination.keep(count);
  }

  /** What each number of the channels is multiplied with by a reader; right for channels that stay. */
  double[][] rows(int reader) {
    return readers.get(reader).rows();
  }

  /**
   * What is to be added to the bias of a reader, so that its outputs keep their mean; null where it
   * stays.
   *
   * @param kept the channels that stay
   */
  double[] biasChange(int reader, int[] kept) {
    Sums sums = readers.get(reader);
    if (sums.mean() == null) {
      return null;
    }
    double[] change = sums.mean().clone();
    double[] now = sums.mean(kept);
    for (int c = 0; c < change.length; c++) {
      change[c] -= now[c];
    }
    return change;
  }
}
