package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.compress.onnx.HiddenChannels.Reader;
import org.espalier.format.onnx.OnnxModel;

/**
 * Removes hidden channels of an ONNX model, such as the inner ones of feed-forward blocks and those of images between
 * convolutions (structured pruning): what is left is a smaller model of the same kind, and as much faster. Which
 * channels go is decided by what calibration saw, and the products that read them are refitted so that they
 * lose least ({@link ChannelElimination}); without calibration by magnitude alone, the norm of the weights that make a
 * channel times that of those that read it. Inputs and outputs keep their shapes. Not safe for several threads.
 */
public final class ChannelPruner {
  /** Of many channels the nearest multiple of this stays, of some of half of it: kernels like whole registers. */
  private static final int REGISTER = 16;

  /** Of an image of a convolution so many pixels an example are looked at. */
  private static final int PIXELS = 64;

  /**
   * How many channels a set had and has.
   *
   * @param name of the first weight that makes them
   */
  public record Narrowed(String name, int before, int after) {}

  /** How many channels are left of how many, for people. */
  public static String summary(List<Narrowed> sets) {
    return sets.stream().mapToLong(Narrowed::after).sum()
        + " of "
        + sets.stream().mapToLong(Narrowed::before).sum();
  }

  private final OnnxModel model;
  private final List<HiddenChannels> sets;
  private final double amount;

  /**
   * @param model is changed by {@link #prune}
   * @param amount the share of each set's channels that goes, at least 0 and below 1
   * @param include of the weights that make channels, whose channels may go; of a set all must be included
   * @throws InputException where the model has no channels that can go
   */
  public ChannelPruner(OnnxModel model, double amount, Predicate<String> include) {
    if (!(amount >= 0 && amount < 1)) {
      throw new InputException(
          "a share of " + amount + " of the channels; at least 0 and below 1 is right");
    }
    this.model = model;
    this.amount = amount;
    List<HiddenChannels> all = HiddenChannels.find(model);
    sets = all.stream().filter(set -> set.weights().stream().allMatch(include)).toList();
    if (sets.isEmpty()) {
      throw new InputException(
          model.name()
              + (all.isEmpty()
                  ? ": no channels lie between products with constant float32 weights alone"
                  : ": of no set of channels all the weights that make it are chosen"));
    }
  }

  /** The weights that make channels which can go. */
  public static List<String> weights(OnnxModel model) {
    return HiddenChannels.find(model).stream().flatMap(set -> set.weights().stream()).toList();
  }

  /**
   * Removes channels.
   *
   * @param source what the model will see; null to go by magnitude
   * @return what became of each set, in graph order
   * @throws InputException if a weight or an activation is not finite, or the examples do not fit
   */
  public List<Narrowed> prune(ActivationSource source) {
    List<Narrowed> result = new ArrayList<>();
    for (List<HiddenChannels> part : ActivationStatistics.parts(sets, ChannelPruner::bytes)) {
      prune(part, source, result);
    }
    model.removeUnusedInitializers();
    model.check();
    return result;
  }

  private static long bytes(HiddenChannels set) {
    return set.readers().size() * ActivationStatistics.bytes(set.size());
  }

  private void prune(List<HiddenChannels> group, ActivationSource source, List<Narrowed> result) {
    Map<String, ActivationStatistics> statistics =
        source == null ? Map.of() : statistics(group, source);
    for (HiddenChannels set : group) {
      int keep = keep(set.size());
      if (keep < set.size()) {
        // What went before may have given constants other names.
        HiddenChannels now =
            HiddenChannels.find(model).stream()
                .filter(s -> s.name().equals(set.name()))
                .findAny()
                .orElseThrow();
        new ChannelNarrowing(model, now).apply(keep, statistics);
      }
      result.add(new Narrowed(set.name(), set.size(), keep));
    }
  }

  private Map<String, ActivationStatistics> statistics(
      List<HiddenChannels> group, ActivationSource source) {
    Map<String, Integer> channels = new LinkedHashMap<>();
    Set<String> images = new HashSet<>();
    for (HiddenChannels set : group) {
      for (Reader reader : set.readers()) {
        channels.put(reader.activation(), set.size());
        if (reader.image()) {
          images.add(reader.activation());
        }
      }
    }
    if (!images.isEmpty()) {
      model.inputs().forEach(this::checkBatch);
    }
    return ActivationStatistics.collect(
        model,
        channels,
        source,
        (name, values) -> images.contains(name) ? pixels(values, channels.get(name)) : values);
  }

  private int keep(int size) {
    int unit = size >= 4 * REGISTER ? REGISTER : size >= REGISTER ? REGISTER / 2 : 1;
    return Math.max(unit, unit * (int) Math.rint((1 - amount) * size / unit));
  }

  /** Where one run is of several images, nothing tells where the first one ends. */
  private void checkBatch(ValueInfoProto input) {
    TensorShapeProto shape = input.getType().getTensorType().getShape();
    long batch = shape.getDimCount() > 3 ? shape.getDim(0).getDimValue() : 1;
    if (batch > 1) {
      throw new InputException(
          model.name()
              + ": its input "
              + input.getName()
              + " is of "
              + batch
              + " images at once; channels of convolutions need a batch of 1 or of any size, or no"
              + " calibration");
    }
  }

  /** Some of the pixels of one image [channels, pixels], evenly spread, as rows. */
  private static FloatBuffer pixels(FloatBuffer image, int channels) {
    int n = image.remaining() / channels;
    int some = Math.min(n, PIXELS);
    float[] rows = new float[some * channels];
    for (int i = 0; i < some; i++) {
      int pixel = (int) ((2L * i + 1) * n / (2L * some));
      for (int c = 0; c < channels; c++) {
        rows[i * channels + c] = image.get(image.position() + c * n + pixel);
      }
    }
    return FloatBuffer.wrap(rows);
  }
}
