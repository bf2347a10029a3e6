package org.espalier.compress.onnx.layers;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.ValueTypes;

/**
 * Finds layers with a residual sum that follow each other. Where all that the answers depend on goes through one value, the graph has
 * a cut; between two cuts lies a segment. A stack is a row of segments that repeats itself, with the same operators, attributes
 * and shapes of constants, and ends as late as it can: of encoders that normalize behind each sum, the norm is a layer's last.
 */
public final class LayerSearch {
  /** What they give does not depend on their operand's values. */
  private static final Set<String> SIZES = Set.of("Shape", "Size");

  private static final Set<String> SUMS = Set.of("Add", "Sum");

  /** More layers that can go are better, then more that cannot. */
  private static final Comparator<List<RepeatedLayer>> IN_REACH =
      Comparator.<List<RepeatedLayer>>comparingLong(
              layers -> layers.stream().filter(layer -> layer.obstacle() == null).count())
          .thenComparing(List::size);

  /** What layers have, and what tells those apart that compute otherwise, as on other parts of a text. */
  private static final Set<String> PRODUCTS =
      Set.of(
          "Attention",
          "Conv",
          "ConvInteger",
          "DynamicQuantizeMatMul",
          "Einsum",
          "FusedConv",
          "FusedGemm",
          "FusedMatMul",
          "Gemm",
          "GroupQueryAttention",
          "MatMul",
          "MatMulInteger",
          "MatMulIntegerToFloat",
          "MatMulNBits",
          "MultiHeadAttention",
          "QAttention",
          "QLinearConv",
          "QLinearMatMul");

  /**
   * What leads from one value to the answers.
   *
   * @param cuts the value itself, and those through which all goes, in order
   * @param sums of cuts that are norms the sums that go on beside them
   * @param segments the nodes before each cut but the first, behind the one before
   * @param reached all values that follow from it
   */
  private record Chain(
      List<String> cuts,
      Map<String, String> sums,
      List<List<NodeProto>> segments,
      Set<String> reached) {}

  /**
   * Segments that repeat themselves.
   *
   * @param from the first of them
   * @param period of how many each layer is
   * @param layers how many layers there are
   */
  private record Stack(int from, int period, int layers) {
    int to() {
      return from + period * layers;
    }
  }

  /**
   * What a node does.
   *
   * @param what operator and attributes
   * @param read of each input the type and shape of the constant that it is, or that it is none
   */
  private record Operation(String what, List<String> read) {}

  private final OnnxModel model;
  private final Set<String> answers;
  private final ValueTypes types;

  /** The nodes that the answers' values follow from, in order. */
  private final List<NodeProto> needed = new ArrayList<>();

  private final Map<NodeProto, Set<String>> uses = new IdentityHashMap<>();

  /** What nodes do, and with which constants, in words that are the same for those that do the same. */
  private final Map<NodeProto, Operation> operations = new IdentityHashMap<>();

  private LayerSearch(OnnxModel model, Set<String> answers) {
    this.model = model;
    this.answers = answers;
    this.types = ValueTypes.of(model);
    Set<String> values = new HashSet<>(answers);
    List<NodeProto> nodes = model.nodes();
    for (int i = nodes.size() - 1; i >= 0; i--) { // which are in topological order
      NodeProto n = nodes.get(i);
      if (!isSize(n) && n.getOutputList().stream().anyMatch(values::contains)) {
        Set<String> used = OnnxModel.uses(n);
        values.addAll(used);
        uses.put(n, used);
        operations.put(n, operation(n));
        needed.add(n);
      }
    }
    Collections.reverse(needed);
  }

  private static boolean isSize(NodeProto n) {
    return OnnxModel.isOwn(n) && SIZES.contains(n.getOpType());
  }

  /**
   * The layers of the stacks of a model, in graph order; empty where it has none.
   *
   * @param answers the outputs that it is for
   */
  public static List<RepeatedLayer> find(OnnxModel model, Collection<String> answers) {
    return new LayerSearch(model, new LinkedHashSet<>(answers)).layers();
  }

  private List<RepeatedLayer> layers() {
    List<RepeatedLayer> best = List.of();
    Set<String> covered = Set.of();
    for (String start : starts()) {
      if (covered.contains(start)) {
        continue; // a chain that begins behind the first layer has fewer of them
      }
      Chain chain = chain(start);
      for (boolean coarse : new boolean[] {false, true}) {
        List<RepeatedLayer> found = layers(chain, stacks(chain, coarse));
        if (IN_REACH.compare(found, best) > 0) {
          best = found;
          covered = chain(found.get(0).output()).reached();
        }
      }
    }
    return best;
  }

  private List<RepeatedLayer> layers(Chain chain, List<Stack> stacks) {
    if (stacks.isEmpty()) {
      return List.of();
    }
    List<RepeatedLayer> layers = new ArrayList<>();
    Ends ends = new Ends(chain, stacks);
    for (int s = 0; s < stacks.size(); s++) {
      Stack stack = stacks.get(s);
      for (int from = stack.from(); from < stack.to(); from += stack.period()) {
        layers.add(ends.layer(chain, s, from, from + stack.period()));
      }
    }
    return layers;
  }

  /** Where a chain may begin, in order: inputs, and what is looked up or computed of these, for masks may be of the same inputs. */
  private Set<String> starts() {
    Set<String> inputs = new LinkedHashSet<>();
    model.inputs().forEach(input -> inputs.add(input.getName()));
    Set<String> starts = new LinkedHashSet<>(inputs);
    Set<String> computed = new HashSet<>(inputs);
    for (NodeProto n : model.nodes()) {
      Set<String> used = OnnxModel.uses(n);
      boolean isLookUp = OnnxModel.isOwn(n, "Gather") && !computed.contains(n.getInput(0));
      if (used.stream().anyMatch(computed::contains)) {
        computed.addAll(n.getOutputList());
        if (isLookUp || used.stream().anyMatch(inputs::contains)) {
          starts.addAll(n.getOutputList());
        }
      }
    }
    starts.remove("");
    return starts;
  }

  private Chain chain(String start) {
    Map<String, Integer> open = new HashMap<>();
    Set<String> reached = new HashSet<>(Set.of(start));
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : needed) {
      List<String> read = uses.get(n).stream().filter(reached::contains).toList();
      if (!read.isEmpty()) {
        read.forEach(value -> open.merge(value, 1, Integer::sum));
        reached.addAll(n.getOutputList());
        nodes.add(n);
      }
    }
    reached.remove("");
    answers.stream()
        .filter(reached::contains)
        .forEach(value -> open.merge(value, 1, Integer::sum)); // which is never closed
    Chain chain =
        new Chain(new ArrayList<>(List.of(start)), new HashMap<>(), new ArrayList<>(), reached);
    Set<String> live = new HashSet<>(Set.of(start));
    List<NodeProto> segment = new ArrayList<>();
    for (NodeProto n : nodes) {
      segment.add(n);
      for (String value : uses.get(n)) {
        if (live.contains(value) && open.merge(value, -1, Integer::sum) == 0) {
          live.remove(value);
        }
      }
      n.getOutputList().stream().filter(open::containsKey).forEach(live::add);
      if (!n.getOutputList().containsAll(live)) {
        continue;
      }
      if (live.size() == 1 && !isInteger(live.iterator().next())) {
        chain.cuts().add(live.iterator().next());
      } else if (SkippedNorm.is(n) && live.equals(Set.of(n.getOutput(0), SkippedNorm.sum(n)))) {
        chain.cuts().add(n.getOutput(0));
        chain.sums().put(n.getOutput(0), SkippedNorm.sum(n));
      } else {
        continue;
      }
      chain.segments().add(segment);
      segment = new ArrayList<>();
    }
    return chain;
  }

  /** Whether a value is of integers, whose scale may be another behind each layer, so that no layer's may be read for another's. */
  private boolean isInteger(String value) {
    DataType type = types.of(value);
    return type != null && !ValueTypes.isFloat(type);
  }

  /**
   * The stacks of a chain.
   *
   * @param coarse whether segments are alike that have the same products
   */
  private List<Stack> stacks(Chain chain, boolean coarse) {
    int count = chain.segments().size();
    int[] signatures = new int[count];
    Map<String, Integer> known = new HashMap<>();
    boolean[] sums = new boolean[count];
    boolean[] products = new boolean[count];
    for (int i = 0; i < count; i++) {
      Map<String, String> inside = new HashMap<>(Map.of(chain.cuts().get(i), "input"));
      String sum = chain.sums().get(chain.cuts().get(i));
      if (sum != null) {
        inside.put(sum, "sum");
      }
      String signature = signature(chain.segments().get(i), inside, coarse);
      signatures[i] = known.computeIfAbsent(signature, text -> known.size());
      List<NodeProto> segment = chain.segments().get(i);
      sums[i] = segment.stream().anyMatch(n -> isSum(n, inside.keySet()));
      products[i] = segment.stream().anyMatch(n -> PRODUCTS.contains(n.getOpType()));
    }
    List<Stack> stacks = new ArrayList<>();
    addStacks(signatures, new boolean[][] {sums, products}, 0, count, stacks);
    stacks.sort(Comparator.comparingInt(Stack::from));
    return stacks;
  }

  /** Whether a node adds two values of a segment. */
  private static boolean isSum(NodeProto n, Set<String> inside) {
    return (SkippedNorm.is(n) || OnnxModel.isOwn(n) && SUMS.contains(n.getOpType()))
        && n.getInputList().stream().filter(inside::contains).distinct().count() > 1;
  }

  /** What segments that compute alike have in common. Adds what its values are called there. */
  private String signature(List<NodeProto> segment, Map<String, String> inside, boolean coarse) {
    StringBuilder text = new StringBuilder();
    for (int i = 0; i < segment.size(); i++) {
      NodeProto n = segment.get(i);
      Operation operation = operations.get(n);
      if (!coarse) {
        text.append(operation.what());
        for (int k = 0; k < n.getInputCount(); k++) {
          text.append(' ').append(inside.getOrDefault(n.getInput(k), operation.read().get(k)));
        }
        text.append('\n');
      } else if (PRODUCTS.contains(n.getOpType())) {
        text.append(n.getOpType()).append(' ').append(operation.read()).append('\n');
      }
      for (int o = 0; o < n.getOutputCount(); o++) {
        inside.put(n.getOutput(o), i + "." + o);
      }
    }
    inside.remove("");
    return text.toString();
  }

  private Operation operation(NodeProto n) {
    StringBuilder what = new StringBuilder(n.getDomain()).append(':').append(n.getOpType());
    n.getAttributeList().stream()
        .sorted(Comparator.comparing(AttributeProto::getName))
        .map(a -> a.toByteString().toString(StandardCharsets.ISO_8859_1))
        .forEach(a -> what.append(' ').append(a));
    return new Operation(what.toString(), n.getInputList().stream().map(this::constant).toList());
  }

  private String constant(String value) {
    OnnxInitializer constant = model.constant(value);
    return constant == null
        ? value.isEmpty() ? "none" : "computed"
        : constant.type() + Arrays.toString(constant.dims());
  }

  /**
   * Adds the stack that covers most segments of a range, of equal ones that of the smallest layers, and those before and behind it.
   *
   * @param asked what a layer must have, each somewhere: of the segments those that have it
   */
  private static void addStacks(
      int[] signatures, boolean[][] asked, int from, int to, List<Stack> stacks) {
    Stack best = null;
    for (int period = 1; 2 * period <= to - from; period++) {
      int same = 0;
      for (int i = from; i + period <= to; i++) {
        if (i + period < to && signatures[i] == signatures[i + period]) {
          same++;
          continue;
        }
        int layers = (same + period) / period;
        Stack stack = new Stack(i + period - layers * period, period, layers);
        boolean isBetter =
            layers > 1 && (best == null || layers * period > best.layers() * best.period());
        int first = i;
        int end = i + period;
        if (isBetter
            && Arrays.stream(asked)
                .allMatch(has -> IntStream.range(first, end).anyMatch(k -> has[k]))) {
          best = stack;
        }
        same = 0;
      }
    }
    if (best != null) {
      addStacks(signatures, asked, from, best.from(), stacks);
      stacks.add(best);
      addStacks(signatures, asked, best.to(), to, stacks);
    }
  }

  /** What layers take and give beside the values between them. */
  private final class Ends {
    private final Map<String, NodeProto> producers = model.producers();

    /** The outputs but the answers that segments make. */
    private final Map<Integer, List<String>> outputs = new HashMap<>();

    /** Whether there are keys and values for earlier tokens. */
    private final boolean caches;

    /** Whether what an encoder read is given by it, layer by layer, which counts on their numbers. */
    private final boolean encoders;

    /** The numbers of those that were found. */
    private final Set<Integer> found = new HashSet<>();

    Ends(Chain chain, List<Stack> stacks) {
      Map<String, Integer> cuts = new HashMap<>();
      for (int c = 0; c < chain.cuts().size(); c++) {
        String cut = chain.cuts().get(c);
        cuts.put(cut, c);
        cuts.put(chain.sums().getOrDefault(cut, cut), c);
      }
      // The last cut that a value follows from.
      Map<String, Integer> last = new HashMap<>(cuts);
      for (NodeProto n : model.nodes()) {
        OnnxModel.uses(n).stream()
            .filter(value -> !isSize(n) && last.containsKey(value))
            .map(last::get)
            .max(Integer::compare)
            .ifPresent(c -> n.getOutputList().forEach(output -> last.putIfAbsent(output, c)));
      }
      Set<String> outputNames = model.outputNames();
      for (String output : outputNames) {
        if (!answers.contains(output) && last.containsKey(output)) {
          int segment = cuts.containsKey(output) ? cuts.get(output) - 1 : last.get(output);
          outputs.computeIfAbsent(segment, s -> new ArrayList<>()).add(output);
        }
      }
      // What an encoder gives for its decoder's layers is computed behind its own.
      boolean given =
          stacks.stream()
              .flatMapToInt(stack -> IntStream.range(stack.from(), stack.to()))
              .mapToObj(segment -> outputs.getOrDefault(segment, List.of()))
              .anyMatch(made -> made.stream().anyMatch(PastInput::isNext));
      caches = given || model.inputs().stream().anyMatch(input -> PastInput.isOne(input.getName()));
      encoders =
          model.inputs().stream()
              .map(ValueInfoProto::getName)
              .anyMatch(i -> PastInput.isRead(i) && !outputNames.contains(PastInput.next(i)));
    }

    /** The layer of some segments. */
    RepeatedLayer layer(Chain chain, int stack, int from, int to) {
      Set<Integer> numbers = new HashSet<>();
      String obstacle = null;
      for (int s = from; s < to; s++) {
        for (String output : outputs.getOrDefault(s, List.of())) {
          if (PastInput.isNext(output)) {
            numbers.add(PastInput.layer(output));
          } else {
            obstacle = "it makes the output " + output;
          }
        }
      }
      int cache = numbers.size() == 1 ? numbers.iterator().next() : -1;
      if (caches && (cache < 0 || !found.add(cache))) {
        obstacle = "which keys and values for earlier tokens are its own cannot be told";
      } else if (encoders) {
        obstacle = "an encoder gives keys and values by the layer's number";
      }
      String input = chain.cuts().get(from);
      String output = chain.cuts().get(to);
      String inputSum = chain.sums().get(input);
      boolean normed =
          chain.sums().containsKey(output)
              || inputSum != null && SkippedNorm.is(producers.get(output));
      return new RepeatedLayer(stack, input, inputSum, output, normed, cache, obstacle);
    }
  }
}
