package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.channels.ChannelFit;
import org.espalier.compress.onnx.channels.ChannelNarrowing;
import org.espalier.compress.onnx.channels.ChannelSearch;
import org.espalier.compress.onnx.channels.HiddenChannels;
import org.espalier.compress.onnx.channels.HiddenChannels.Reader;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.ChannelElimination;
import org.espalier.format.onnx.CastVectors;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Removes hidden channels of an ONNX model, such as the inner ones of feed-forward blocks and those of images between
 * convolutions, and whole heads of attentions (structured pruning): what is left is a smaller model of the same kind, and as much faster. Which
 * channels go is decided by what calibration saw, and the products that read them are refitted so that they
 * lose least ({@link ChannelElimination}); without calibration by magnitude alone, the norm of the weights that make a
 * channel times that of those that read it. Inputs and outputs keep their shapes. Not safe for several threads.
 */
public final class ChannelPruner {
  private static final Logger LOG = LoggerFactory.getLogger(ChannelPruner.class);

  /** Of many channels the nearest multiple of this stays, of some of half of it: kernels like whole registers. */
  private static final int REGISTER = 16;

  /** Of an image of a convolution so many pixels an example are looked at. */
  private static final int PIXELS = 64;

  /** To see what narrower sets do to the outputs, so many examples are run. */
  private static final int SOME = 16;

  /** Other shares than the same are taken where the outputs' error is below this share of what it is with that. */
  private static final double BETTER = 0.95;

  /** How much of each set goes. */
  public enum Allocation {
    /**
     * Sets that the outputs miss less lose more, so that as much work is saved as if each lost the same share. What
     * they miss is measured, on some of the calibration examples; without calibration it is {@link #UNIFORM}, and
     * where it is hardly better on them.
     */
    GLOBAL,
    /** Of each set the same share. */
    UNIFORM
  }

  /** What becomes of the heads of keys and values that a decoder takes and gives for earlier tokens. */
  public enum Caches {
    /** They stay, and so do these inputs and outputs; of queries that share keys and values some of each group may go. */
    KEEP,
    /**
     * They go as others do. The model's inputs and outputs tell how many are left, which may differ from layer to
     * layer with {@link Allocation#GLOBAL}. Calibration must give each model what its inputs tell, as that on texts
     * does, whose keys and values are empty.
     */
    NARROW
  }

  /**
   * How many channels or heads a set had and has. Heads that share keys and values are one where these go with them,
   * and where they stay one of each such group is.
   *
   * @param name of the first weight that makes them
   * @param numbers how many numbers one is: 1, of a head several
   */
  public record Narrowed(String name, int numbers, int before, int after) {}

  /** How many channels and heads are left of how many, for people. */
  public static String summary(List<Narrowed> sets) {
    return Stream.of(
            summary(sets.stream().filter(set -> set.numbers() == 1), " channels"),
            summary(sets.stream().filter(set -> set.numbers() > 1), " heads"))
        .filter(part -> !part.isEmpty())
        .collect(Collectors.joining(" and "));
  }

  private static String summary(Stream<Narrowed> sets, String what) {
    List<Narrowed> list = sets.toList();
    return list.isEmpty()
        ? ""
        : list.stream().mapToLong(Narrowed::after).sum()
            + " of "
            + list.stream().mapToLong(Narrowed::before).sum()
            + what;
  }

  private final OnnxModel model;
  private final OneUse use;
  private final List<HiddenChannels> sets;
  private final List<List<HiddenChannels>> parts;
  private final double amount;
  private final Allocation allocation;
  private final int kept;

  private Progress progress = Progress.NONE;

  /** The outputs that tell what is missed; null for the model's answers. */
  private Set<String> answers;

  /** Of all sets of the model as it was; null before calibration, and where they are seen in parts. */
  private Map<String, ActivationStatistics> whole;

  /**
   * @param model is changed by {@link #prune}, and its {@link CastVectors} here
   * @param amount the share of each set's channels that goes, at least 0 and below 1; with {@link Allocation#GLOBAL}
   *     the work that is saved is what that would save
   * @param include of the weights that make channels, whose channels may go; of a set all must be included
   * @throws InputException where the model has no channels that can go
   */
  public ChannelPruner(
      OnnxModel model, double amount, Allocation allocation, Predicate<String> include) {
    this(model, amount, allocation, search(model, false), include);
  }

  private ChannelPruner(
      OnnxModel model,
      double amount,
      Allocation allocation,
      ChannelSearch search,
      Predicate<String> include) {
    this(model, amount, allocation, search.all(), search.kept(), include);
  }

  private ChannelPruner(
      OnnxModel model,
      double amount,
      Allocation allocation,
      List<HiddenChannels> all,
      int kept,
      Predicate<String> include) {
    this.kept = kept;
    if (!(amount >= 0 && amount < 1)) {
      throw new InputException(
          "a share of " + amount + " of the channels; at least 0 and below 1 is right");
    }
    this.model = model;
    this.use = new OneUse(model, "was made narrower");
    this.amount = amount;
    this.allocation = allocation;
    sets = all.stream().filter(set -> set.weights().stream().allMatch(include)).toList();
    if (sets.isEmpty()) {
      throw new InputException(
          model.name()
              + (all.isEmpty()
                  ? ": no channels lie between products with constant float weights alone"
                      + kept().map(heads -> "; " + heads).orElse("")
                      + FloatWeights.quantized(model)
                          .map(how -> "; " + how + "; prune the model that it was made of")
                          .orElse("")
                  : ": of no set of channels all the weights that make it are chosen"));
    }
    parts = ActivationStatistics.parts(sets, ChannelPruner::bytes);
  }

  /**
   * The same with weights that are chosen among those which make channels that can go.
   *
   * @param caches what becomes of heads of keys and values that the model takes and gives
   * @param choice of these weights those that are included; not asked where there are none
   * @throws InputException where the model has no channels that can go
   */
  public static ChannelPruner choosing(
      OnnxModel model,
      double amount,
      Allocation allocation,
      Caches caches,
      Function<List<String>, Set<String>> choice) {
    ChannelSearch search = search(model, caches == Caches.NARROW);
    List<HiddenChannels> all = search.all();
    List<String> weights = all.stream().flatMap(set -> set.weights().stream()).toList();
    Set<String> chosen = weights.isEmpty() ? Set.of() : choice.apply(weights);
    return new ChannelPruner(model, amount, allocation, all, search.kept(), chosen::contains);
  }

  /** Looks for channels in a model whose biases are constants. */
  private static ChannelSearch search(OnnxModel model, boolean caches) {
    CastVectors.widen(model);
    return new ChannelSearch(model, caches);
  }

  /** What stays that could go with {@link Caches#NARROW}, for people; empty without any. */
  public Optional<String> kept() {
    return kept == 0
        ? Optional.empty()
        : Optional.of(
            "the heads of keys and values of "
                + (kept == 1 ? "1 attention stay" : kept + " attentions stay")
                + ", which the model takes and gives for earlier tokens");
  }

  /**
   * Says which outputs tell with {@link Allocation#GLOBAL} what is missed; by default the model's {@link Answers}.
   *
   * @param outputs of its {@linkplain Answers#comparable comparable} ones
   */
  public void measureBy(Set<String> outputs) {
    answers = Set.copyOf(outputs);
  }

  /**
   * Removes channels.
   *
   * @param source what the model will see; null to go by magnitude
   * @param listener hears how far it is
   * @return what became of each set, in graph order
   * @throws InputException if a weight or an activation is not finite, or the examples do not fit
   * @throws IllegalStateException if channels were removed before: the model has others now
   */
  public List<Narrowed> prune(ActivationSource source, Progress listener) {
    use.check();
    progress = listener;
    int[] keep = sets.stream().mapToInt(set -> keep(set, amount)).toArray();
    if (allocation == Allocation.GLOBAL && source != null && sets.size() > 1 && amount > 0) {
      keep = allocate(keep, source);
    }
    narrow(model, keep, source);
    SumShapes.say(model);
    model.check();
    List<Narrowed> result = new ArrayList<>();
    for (int s = 0; s < keep.length; s++) {
      HiddenChannels set = sets.get(s);
      result.add(new Narrowed(set.name(), set.numbers(), set.size(), keep[s]));
    }
    return result;
  }

  /** A model as it can be run: activations of 16 bits cannot be received. */
  static OnnxModel floats(OnnxModel model) {
    if (!HalfPrecision.isIn(model)) {
      return model;
    }
    OnnxModel floats = model.copy();
    HalfPrecision.widen(floats);
    return floats;
  }

  private static long bytes(HiddenChannels set) {
    return set.readers().stream()
        .mapToLong(reader -> ActivationStatistics.bytes(numbers(set, reader)))
        .sum();
  }

  /** How many numbers of all channels a product sums over. */
  private static int numbers(HiddenChannels set, Reader reader) {
    return set.size() * reader.group();
  }

  /**
   * How many channels each set keeps so that the outputs change least and no more is to be done than with the same
   * share of each.
   *
   * @param uniform how many they keep then
   */
  private int[] allocate(int[] uniform, ActivationSource source) {
    ActivationSource some = source.some(SOME);
    OutputError error =
        new OutputError(floats(model), answers == null ? Answers.of(model) : answers, some);
    int[][] counts = new int[uniform.length][];
    double[][] costs = new double[uniform.length][];
    int[] start = new int[uniform.length];
    int s = 0;
    for (List<HiddenChannels> part : parts) {
      Map<String, ActivationStatistics> seen = statistics(model, part, source);
      for (HiddenChannels set : part) {
        progress.at(Phase.MEASURE, s, uniform.length);
        counts[s] = counts(set);
        costs[s] = costs(set, counts[s], seen, error);
        while (counts[s][start[s]] > uniform[s]) {
          start[s]++;
        }
        s++;
      }
    }
    ChannelWork work = new ChannelWork(floats(model), sets, source.some(1));
    int[] best = new ChannelAllocation(counts, costs, work::of).improve(start);
    if (Arrays.equals(best, uniform)) {
      return uniform;
    }
    // The errors of sets do not quite add up, and are of few examples.
    return error(best, source, error) < BETTER * error(uniform, source, error) ? best : uniform;
  }

  /** The shares of a set at which its cost is measured: the amount, and where half and a quarter as many stay. */
  private double[] measured() {
    return new double[] {amount, (1 + amount) / 2, (3 + amount) / 4};
  }

  /** How many channels a set may keep, descending. */
  private int[] counts(HiddenChannels set) {
    int unit = unit(set);
    int least = Arrays.stream(measured()).mapToInt(share -> keep(set, share)).min().orElseThrow();
    return IntStream.concat(
            IntStream.of(set.size()),
            IntStream.iterate((set.size() - 1) / unit * unit, n -> n >= least, n -> n - unit))
        .toArray();
  }

  /** The squared error of the outputs where a set alone has so many channels; between what is measured the error is a line. */
  private double[] costs(
      HiddenChannels set,
      int[] counts,
      Map<String, ActivationStatistics> statistics,
      OutputError error) {
    ChannelFit fit = new ChannelFit(model, set, statistics);
    double[] costs = new double[counts.length];
    int from = 0;
    for (double share : measured()) {
      int keep = keep(set, share);
      int to = from;
      while (counts[to] > keep) {
        to++;
      }
      if (to == from) {
        continue;
      }
      OnnxModel narrower = model.copy();
      new ChannelNarrowing(narrower, set).apply(fit, keep);
      narrower.removeUnusedInitializers();
      costs[to] = Math.pow(error.of(floats(narrower)), 2);
      for (int i = from + 1; i < to; i++) {
        double part = (double) (counts[from] - counts[i]) / (counts[from] - keep);
        costs[i] = Math.pow((1 - part) * Math.sqrt(costs[from]) + part * Math.sqrt(costs[to]), 2);
      }
      from = to;
    }
    return costs;
  }

  /** The error of the outputs where so many channels of each set are kept. */
  private double error(int[] keep, ActivationSource source, OutputError error) {
    OnnxModel narrower = model.copy();
    narrow(narrower, keep, source);
    return error.of(floats(narrower));
  }

  /**
   * Lets channels of a copy of the model, or of the model itself, go.
   *
   * @param keep how many each set keeps
   * @param source null to go by magnitude
   */
  private void narrow(OnnxModel target, int[] keep, ActivationSource source) {
    List<HiddenChannels> now = new ArrayList<>(sets);
    int s = 0;
    for (List<HiddenChannels> part : parts) {
      Map<String, ActivationStatistics> seen =
          source == null ? Map.of() : statistics(target, part, source);
      for (int end = s + part.size(); s < end; s++) {
        HiddenChannels set = now.get(s);
        if (keep[s] < set.size()) {
          if (target == model) {
            use.begin();
          }
          ChannelNarrowing narrowing = new ChannelNarrowing(target, set);
          narrowing.apply(new ChannelFit(target, set, seen), keep[s]);
          now.replaceAll(other -> other.renamed(narrowing.inputs()));
        }
      }
      if (target == model) {
        ActivationStatistics.few(seen.values()).ifPresent(LOG::warn);
      }
    }
    target.removeUnusedInitializers();
  }

  private Map<String, ActivationStatistics> statistics(
      OnnxModel now, List<HiddenChannels> group, ActivationSource source) {
    if (whole != null) {
      return whole;
    }
    Map<String, Integer> channels = new LinkedHashMap<>();
    Set<String> images = new HashSet<>();
    Map<String, int[]> scattered = new HashMap<>();
    for (HiddenChannels set : group) {
      for (Reader reader : set.readers()) {
        channels.put(reader.activation(), numbers(set, reader));
        if (reader.isScattered()) {
          int[] order = reader.slice().layout().numbers(set.size(), reader.group());
          scattered.put(reader.activation(), order);
        }
        if (reader.image()) {
          images.add(reader.activation());
        }
      }
    }
    if (!images.isEmpty()) {
      model.inputs().forEach(this::checkBatch);
    }
    Map<String, ActivationStatistics> statistics =
        new ToldActivations(source, progress)
            .statistics(
                floats(now),
                channels,
                (name, values) ->
                    images.contains(name)
                        ? pixels(values, channels.get(name))
                        : scattered.containsKey(name)
                            ? ordered(values, scattered.get(name))
                            : values);
    whole = parts.size() == 1 ? statistics : null;
    return statistics;
  }

  private static int keep(HiddenChannels set, double amount) {
    int unit = unit(set);
    int near = unit * (int) Math.rint((1 - amount) * set.size() / unit);
    return Math.min(set.size(), Math.max(unit, near));
  }

  private static int unit(HiddenChannels set) {
    int size = set.size();
    return set.numbers() > 1
        ? 1
        : size >= 4 * REGISTER ? REGISTER : size >= REGISTER ? REGISTER / 2 : 1;
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

  /**
   * Rows whose numbers are those of one channel after another.
   *
   * @param order of each number of a row which one it is then
   */
  private static FloatBuffer ordered(FloatBuffer rows, int[] order) {
    float[] ordered = new float[rows.remaining()];
    for (int i = 0; i < ordered.length; i++) {
      int k = i % order.length;
      ordered[i - k + order[k]] = rows.get(rows.position() + i);
    }
    return FloatBuffer.wrap(ordered);
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
