package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.IntBinaryOperator;
import java.util.function.LongConsumer;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.SparseFit;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.op.MagnitudePrune;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Prunes weights of an ONNX model by what calibration saw, and refits those that stay so that outputs change least
 * ({@link SparseFit}). Of each output of a product or convolution the same share of its weights goes. A constant
 * float32 vector that is added to them takes up the mean of what changes. Weights whose inputs calibration does not see, of
 * recurrent layers and in branches for instance, go by magnitude alone, likewise the same share of each sum. Not
 * safe for several threads.
 */
public final class RefittingPruner {
  private static final Logger LOG = LoggerFactory.getLogger(RefittingPruner.class);

  private final OnnxModel model;
  private final List<WeightedSums> sums = new ArrayList<>();
  private final List<MagnitudePrune.Rule> rules;

  /** What is added to the constant vectors, by the outputs of the nodes that add them. */
  private final Map<String, double[]> biasChanges = new LinkedHashMap<>();

  /**
   * @param model is changed by {@link #prune}
   * @param weights to prune, of the model, which have elements
   * @param rules for each weight an amount or sparsity of scope TENSOR, which here is that of each output, or a
   *     pattern that divides what is summed over
   * @throws InputException if a rule is another
   */
  public RefittingPruner(
      OnnxModel model, List<OnnxWeight> weights, List<MagnitudePrune.Rule> rules) {
    this(model, weights, rules, vector -> true);
  }

  /**
   * The same where not every constant vector may change.
   *
   * @param vectors those that may take up means, by name. One that a single node reads keeps its name
   */
  public RefittingPruner(
      OnnxModel model,
      List<OnnxWeight> weights,
      List<MagnitudePrune.Rule> rules,
      Predicate<String> vectors) {
    this.model = model;
    this.rules = List.copyOf(rules);
    weights.forEach(weight -> sums.add(new WeightedSums(model, weight, vectors)));
    rules.forEach(RefittingPruner::check);
  }

  /**
   * What each tensor loses of an amount or sparsity of all together, as the share that magnitudes tell. Of other rules
   * each is the rule itself.
   *
   * @param list the weights; their outputs receive what is pruned by magnitude
   */
  public static List<MagnitudePrune.Rule> ofEachTensor(
      List<MagnitudePrune.Weights> list, MagnitudePrune.Rule rule) {
    boolean global =
        rule instanceof MagnitudePrune.Amount amount
                && amount.scope() == MagnitudePrune.Scope.GLOBAL
            || rule instanceof MagnitudePrune.Sparsity sparsity
                && sparsity.scope() == MagnitudePrune.Scope.GLOBAL;
    if (!global) {
      return Collections.nCopies(list.size(), rule);
    }
    List<MagnitudePrune.Rule> rules = new ArrayList<>();
    for (MagnitudePrune.TensorResult tensor : MagnitudePrune.prune(list, rule).tensors()) {
      double share = (double) tensor.pruned() / tensor.total();
      rules.add(new MagnitudePrune.Sparsity(share, MagnitudePrune.Scope.TENSOR));
    }
    return rules;
  }

  private static void check(MagnitudePrune.Rule rule) {
    boolean fits =
        rule instanceof MagnitudePrune.Pattern
            || rule instanceof MagnitudePrune.Amount amount
                && amount.scope() == MagnitudePrune.Scope.TENSOR
            || rule instanceof MagnitudePrune.Sparsity sparsity
                && sparsity.scope() == MagnitudePrune.Scope.TENSOR;
    if (!fits) {
      throw new InputException(
          "weights are refitted where an amount or a sparsity of each tensor, or a pattern, is"
              + " pruned, not a "
              + rule);
    }
  }

  /** Says which of some weights of a model would go by magnitude alone, a line for each reason. */
  public static List<String> unseen(OnnxModel model, List<OnnxWeight> weights) {
    Map<String, List<String>> unseen = new TreeMap<>();
    for (OnnxWeight weight : weights) {
      String obstacle = new WeightedSums(model, weight, vector -> true).obstacle;
      if (obstacle != null) {
        unseen.computeIfAbsent(obstacle, o -> new ArrayList<>()).add(weight.name());
      }
    }
    return unseen.entrySet().stream()
        .map(
            e ->
                e.getValue().size()
                    + (e.getValue().size() == 1 ? " weight goes" : " weights go")
                    + " by magnitude alone: "
                    + e.getKey()
                    + " ("
                    + NearNames.list("", e.getValue())
                    + ")")
        .toList();
  }

  /**
   * Prunes and refits.
   *
   * @param kept of each weight, in their order, which elements are not pruned yet; afterwards which are left
   * @param source what the model will see
   * @param progress hears how many bytes of the weights are done
   * @throws InputException if a weight or an activation is not finite, or the examples do not fit; what was done
   *     until then has changed the model
   */
  public void prune(List<BitSet> kept, ActivationSource source, LongConsumer progress) {
    long done = 0;
    List<OnnxInitializer> refitted = new ArrayList<>();
    List<Integer> all = IntStream.range(0, sums.size()).boxed().toList();
    for (List<Integer> part : ActivationStatistics.parts(all, i -> bytes(sums.get(i)))) {
      Map<String, ActivationStatistics> seen = seen(part, source);
      Map<String, List<SparseFit>> fits = new LinkedHashMap<>();
      Map<String, Integer> last = new HashMap<>();
      part.forEach(i -> last.put(source(sums.get(i)), i));
      for (int i : part) {
        WeightedSums s = sums.get(i);
        ActivationStatistics x = s.obstacle == null ? seen.get(s.source()) : null;
        List<SparseFit> fit =
            x == null
                ? List.of(new SparseFit(new double[s.inputs][1]))
                : fits.computeIfAbsent(source(s), key -> fits(s, x));
        refitted.add(prune(s, rules.get(i), x, fit, kept.get(i)));
        if (last.get(source(s)) == i) {
          fits.remove(source(s)); // so that there are never those of all at once
        }
        done += model.constant(s.weight.value()).byteLength();
        progress.accept(done);
      }
      ActivationStatistics.few(seen.values()).ifPresent(LOG::warn);
    }
    model.replaceConstants(refitted);
    changeBiases();
    model.check();
  }

  /** What tells the second moments apart that sums need. */
  private static String source(WeightedSums s) {
    return s.source() + (s.bias != null);
  }

  private static long bytes(WeightedSums s) {
    return s.obstacle == null ? s.bytes() : 0;
  }

  /** Runs the examples for some of the weights. */
  private Map<String, ActivationStatistics> seen(List<Integer> part, ActivationSource source) {
    Map<String, ActivationStatistics> seen = new LinkedHashMap<>();
    Map<String, List<WeightedSums>> readers = new LinkedHashMap<>();
    for (int i : part) {
      WeightedSums s = sums.get(i);
      if (s.obstacle == null && seen.putIfAbsent(s.source(), s.statistics()) == null) {
        readers.computeIfAbsent(s.activation, a -> new ArrayList<>()).add(s);
      }
    }
    if (readers.isEmpty()) {
      return seen;
    }
    OnnxModel floats = model.copy();
    if (sums.stream().anyMatch(s -> model.constant(s.weight.value()).type() != DataType.FLOAT)) {
      HalfPrecision.widen(floats); // activations of 16 bits cannot be received
    }
    boolean[] ran = {false};
    source.run(
        floats,
        readers.keySet(),
        (name, shape, values) -> {
          ran[0] = true;
          for (WeightedSums s : readers.get(name)) {
            seen.get(s.source()).add(s.rows(shape, values.duplicate()));
          }
        });
    ActivationStatistics.assume(seen.values(), ran[0]);
    return seen;
  }

  /** One for each group. */
  private static List<SparseFit> fits(WeightedSums s, ActivationStatistics x) {
    double[][] moments = x.moments(s.bias != null);
    List<SparseFit> fits = new ArrayList<>();
    for (int g = 0; g < s.groups; g++) {
      fits.add(new SparseFit(Arrays.copyOfRange(moments, g * s.inputs, (g + 1) * s.inputs)));
    }
    return fits;
  }

  private OnnxInitializer prune(
      WeightedSums s,
      MagnitudePrune.Rule rule,
      ActivationStatistics x,
      List<SparseFit> fits,
      BitSet kept) {
    OnnxInitializer tensor = model.constant(s.weight.value());
    FloatBuffer values = tensor.floats();
    ByteBuffer data =
        ByteBuffer.allocateDirect(4 * values.remaining()).order(ByteOrder.LITTLE_ENDIAN);
    FloatBuffer result = data.asFloatBuffer();
    double[] change = new double[s.groups * s.outputs];
    for (int g = 0; g < s.groups; g++) {
      float[] matrix = s.matrix(values, g);
      checkFinite(s, matrix);
      boolean[] stay = new boolean[matrix.length];
      for (int i = 0; i < stay.length; i++) {
        stay[i] = kept.get(s.at(g, i / s.outputs, i % s.outputs));
        matrix[i] = stay[i] ? matrix[i] : 0;
      }
      fits.get(g).prune(matrix, stay, together(s, rule), goal(rule));
      for (int i = 0; i < matrix.length; i++) {
        int k = i / s.outputs;
        int at = s.at(g, k, i % s.outputs);
        float before = kept.get(at) ? values.get(values.position() + at) : 0;
        result.put(at, matrix[i]);
        kept.set(at, stay[i]);
        if (s.bias != null) {
          change[g * s.outputs + i % s.outputs] +=
              x.mean(g * s.inputs + k) * ((double) before - matrix[i]);
        }
      }
    }
    if (s.bias != null) {
      biasChanges.put(s.bias, change);
    }
    OnnxInitializer exact =
        OnnxInitializer.of(s.weight.value(), DataType.FLOAT, tensor.dims(), data);
    return tensor.type() == DataType.FLOAT ? exact : exact.rounded(tensor.type());
  }

  private void checkFinite(WeightedSums s, float[] matrix) {
    for (float w : matrix) {
      if (!Float.isFinite(w)) {
        throw new InputException(
            model.name()
                + ": the weights "
                + s.weight.name()
                + " hold "
                + w
                + "; finite numbers are right");
      }
    }
  }

  /** The inputs of an output that lose a share together. */
  private static int[][] together(WeightedSums s, MagnitudePrune.Rule rule) {
    if (!(rule instanceof MagnitudePrune.Pattern pattern)) {
      return new int[][] {IntStream.range(0, s.inputs).toArray()};
    }
    // Consecutive input channels at the same place of the window.
    int span = pattern.group() * s.window;
    return IntStream.range(0, s.inputs / pattern.group())
        .mapToObj(
            i -> {
              int from = i / s.window * span + i % s.window;
              return IntStream.range(0, pattern.group()).map(c -> from + c * s.window).toArray();
            })
        .toArray(int[][]::new);
  }

  /** How many of a group are pruned afterwards, by its size and how many are already. */
  private static IntBinaryOperator goal(MagnitudePrune.Rule rule) {
    if (rule instanceof MagnitudePrune.Amount amount) {
      return (size, pruned) -> pruned + (int) Math.rint(amount.fraction() * (size - pruned));
    } else if (rule instanceof MagnitudePrune.Sparsity sparsity) {
      return (size, pruned) -> Math.max(pruned, (int) Math.rint(sparsity.fraction() * size));
    }
    MagnitudePrune.Pattern pattern = (MagnitudePrune.Pattern) rule;
    return (size, pruned) -> Math.max(pruned, size - pattern.keep());
  }

  private void changeBiases() {
    OnnxModel.Names names = model.names();
    Map<String, List<NodeProto>> consumers = model.consumers();
    List<NodeProto> nodes = new ArrayList<>();
    List<OnnxInitializer> inPlace = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      double[] change = biasChanges.get(n.getOutputCount() == 0 ? "" : n.getOutput(0));
      if (change == null) {
        nodes.add(n);
        continue;
      }
      int input = WeightedSums.vectorInput(model, n, change.length);
      String vector = n.getInput(input);
      if (consumers.get(vector).size() == 1 && !model.outputNames().contains(vector)) {
        inPlace.add(ConstantVector.sum(model, vector, change));
        nodes.add(n);
      } else {
        nodes.add(ConstantVector.changed(model, names, n, input, change));
      }
    }
    model.replaceConstants(inPlace);
    model.setNodes(nodes);
    model.removeUnusedInitializers();
  }
}
