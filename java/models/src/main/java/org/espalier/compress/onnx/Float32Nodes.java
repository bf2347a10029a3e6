package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Deque;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.format.HalfFloats;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.ValueTypes;

/**
 * The nodes of a model that stay float32 where others become float16, as its graph tells them ({@link Float16Converter} says
 * which), and others that are named. Of all graphs of the model, which must not change meanwhile.
 */
final class Float32Nodes {
  private static final float LARGEST = HalfFloats.LARGEST_FLOAT16;
  private static final float SMALLEST = HalfFloats.SMALLEST_FLOAT16;

  /** The types of positions, lengths and words. */
  private static final Set<DataType> INTEGERS = EnumSet.of(DataType.INT32, DataType.INT64);

  /** Operators of ONNX that stay: without float16, or too exact for it. */
  private static final Set<String> STAY =
      Set.of(
          "AffineGrid",
          "Bernoulli",
          "BlackmanWindow",
          "Celu",
          "CumProd",
          "CumSum",
          "DFT",
          "Det",
          "DynamicQuantizeLinear",
          "GlobalLpPool",
          "GridSample",
          "HammingWindow",
          "HannWindow",
          "IsInf",
          "LRN",
          "LpNormalization",
          "LpPool",
          "MaxRoiPool",
          "MeanVarianceNormalization",
          "MelWeightMatrix",
          "Multinomial",
          "NonMaxSuppression",
          "QuantizeLinear",
          "RandomNormal",
          "RandomNormalLike",
          "RandomUniform",
          "RandomUniformLike",
          "Range",
          "ReduceL2",
          "ReduceLogSum",
          "ReduceLogSumExp",
          "ReduceSum",
          "ReduceSumSquare",
          "RoiAlign",
          "STFT",
          "TfIdfVectorizer");

  /** Operators that can give the mean that they subtract, of float32 whatever they take. */
  private static final Set<String> GIVE_MEANS =
      Set.of(
          "LayerNormalization",
          "SimplifiedLayerNormalization",
          "SkipLayerNormalization",
          "SkipSimplifiedLayerNormalization");

  /** Operators whose operands are exact where what they give is an integer or an angle. */
  private static final Set<String> ANGLES = Set.of("Cos", "Sin", "Tan");

  /** What is made of a sum of squares up to its root. */
  private static final Set<String> UP_TO_ROOT =
      Set.of("Add", "Clip", "Div", "Max", "Mul", "Pow", "Reciprocal", "Sqrt");

  /** Where that ends. */
  private static final Set<String> ROOTS = Set.of("Pow", "Reciprocal", "Sqrt");

  private final OnnxModel model;
  private final ValueTypes types;
  private final Map<String, NodeProto> producers;

  /** The nodes of all graphs by what they read; what a graph gives is read by the node that holds it. */
  private final Map<String, List<NodeProto>> readers = new HashMap<>();

  /** The nodes of all graphs by their own names. */
  private final Map<String, List<NodeProto>> byName;

  /** By the first values that they give. */
  private final Set<String> staying = new HashSet<>();

  /** Constants that stand for −∞, which no node stays for. */
  private final MaskConstants masks = new MaskConstants();

  /**
   * Finds those that the graph tells.
   *
   * @param weights of the model
   */
  Float32Nodes(OnnxModel model, Collection<OnnxWeight> weights) {
    this.model = model;
    types = ValueTypes.of(model);
    producers = model.allProducers();
    model.allNodes().forEach(this::addReader);
    byName = model.allNodes().stream().collect(Collectors.groupingBy(NodeProto::getName));
    Set<String> weighted = new HashSet<>();
    weights.forEach(w -> w.uses().forEach(u -> weighted.add(u.node())));
    model.allNodes().stream()
        .filter(
            n -> OnnxModel.isOwn(n, "Einsum") && n.getInputList().stream().anyMatch(this::isMatrix))
        .forEach(n -> weighted.add(key(n)));
    Set<String> learned = learned(weighted);
    stayWithIntegers(learned);
    for (NodeProto n : model.allNodes()) {
      if (cannotChange(n)) {
        stay(n);
      }
      if (isSquare(n)) {
        stayUpToRoot(n);
      }
      if (OnnxModel.isOwn(n, "ReduceSum")) {
        readers(key(n)).stream()
            .filter(r -> OnnxModel.isOwn(r, "Div") && r.getInput(0).equals(key(n)))
            .forEach(this::stay);
      }
      if (isExact(n)) {
        stayBackToWeights(n, weighted, learned);
      }
    }
    findUnheld();
  }

  /** The constants that stand for −∞. */
  MaskConstants masks() {
    return masks;
  }

  /** Whether nodes that do not stay read constants of float32. */
  boolean leavesAny() {
    return model.allNodes().stream()
        .filter(n -> !contains(n))
        .flatMap(n -> n.getInputList().stream())
        .anyMatch(v -> isFloat(v) && model.constant(v) != null);
  }

  /** The nodes that use a weight. */
  List<NodeProto> users(OnnxWeight weight) {
    return weight.uses().stream().map(use -> producers.get(use.node())).toList();
  }

  /** Those of them that look up rows. */
  List<NodeProto> lookUps(OnnxWeight weight) {
    return weight.uses().stream()
        .filter(use -> use.kind() == OnnxWeight.Kind.EMBEDDING)
        .map(use -> producers.get(use.node()))
        .toList();
  }

  private boolean isMatrix(String value) {
    OnnxInitializer c = model.constant(value);
    return c != null && c.dims().length >= 2;
  }

  private void addReader(NodeProto n) {
    Set<String> read = new HashSet<>(n.getInputList());
    for (GraphProto g : InnerGraphs.of(n)) {
      g.getOutputList().forEach(v -> read.add(v.getName()));
    }
    read.remove("");
    read.forEach(v -> readers.computeIfAbsent(v, k -> new ArrayList<>()).add(n));
  }

  private List<NodeProto> readers(String value) {
    return readers.getOrDefault(value, List.of());
  }

  /**
   * The values that are computed with weights, or may be: what is not ONNX's own and what holds a graph may have some.
   *
   * @param weighted the nodes that do
   */
  private Set<String> learned(Set<String> weighted) {
    Set<String> learned = new HashSet<>();
    model.inputs().stream()
        .map(ValueInfoProto::getName)
        .filter(PastInput::isOne)
        .forEach(learned::add);
    for (NodeProto n : model.allNodes()) {
      List<GraphProto> inner = InnerGraphs.of(n);
      inner.forEach(g -> g.getInputList().forEach(v -> learned.add(v.getName())));
      boolean ofShape = OnnxModel.isOwn(n, "Shape") || OnnxModel.isOwn(n, "Size");
      if (!inner.isEmpty()
          || !OnnxModel.isOwn(n)
          || weighted.contains(key(n))
          || !ofShape && n.getInputList().stream().anyMatch(learned::contains)) {
        learned.addAll(n.getOutputList());
      }
    }
    learned.remove("");
    return learned;
  }

  /** Numbers that were integers stay as exact as those, with what is made of them, until weights come in. */
  private void stayWithIntegers(Set<String> learned) {
    Set<String> made = new HashSet<>();
    for (NodeProto n : model.allNodes()) {
      boolean begins =
          isFloat(key(n))
              && (OnnxModel.isOwn(n, "Range")
                  || OnnxModel.isOwn(n, "Cast") && INTEGERS.contains(types.of(n.getInput(0))));
      if ((begins || n.getInputList().stream().anyMatch(made::contains))
          && !learned.contains(key(n))) {
        stay(n);
        n.getOutputList().stream().filter(this::isFloat).forEach(made::add);
      }
    }
  }

  private static String key(NodeProto n) {
    return n.getOutputList().stream().filter(o -> !o.isEmpty()).findFirst().orElse("");
  }

  /** Has a node stay. */
  void stay(NodeProto n) {
    staying.add(key(n));
  }

  /** Whether a node stays. */
  boolean contains(NodeProto n) {
    return staying.contains(key(n));
  }

  /** Whether a value is a tensor of float32. */
  boolean isFloat(String value) {
    return types.of(value) == DataType.FLOAT;
  }

  /** Whether a node has no form of float16, by its operator or by what it takes. */
  private boolean cannotChange(NodeProto n) {
    boolean own = OnnxModel.isOwn(n);
    boolean givesMean =
        GIVE_MEANS.contains(n.getOpType())
            && n.getOutputList().stream().skip(1).limit(2).anyMatch(v -> !v.isEmpty());
    AttributeProto reduction = Attributes.find(n, "reduction");
    boolean sums =
        n.getOpType().startsWith("Scatter")
            && reduction != null
            && !reduction.getS().toStringUtf8().equals("none");
    boolean unknown =
        Stream.of(
                n.getInputList().stream(),
                n.getOutputList().stream(),
                InnerGraphs.of(n).stream()
                    .flatMap(g -> g.getOutputList().stream().map(ValueInfoProto::getName)))
            .flatMap(values -> values)
            .anyMatch(v -> !v.isEmpty() && types.of(v) == null);
    boolean fedAndGiven =
        InnerGraphs.of(n).stream()
            .anyMatch(
                g ->
                    g.getInitializerList().stream()
                        .map(TensorProto::getName)
                        .anyMatch(
                            g.getInputList().stream().map(ValueInfoProto::getName).toList()
                                ::contains));
    return unknown
        || fedAndGiven
        || givesMean
        || sums
        || !ValueTypes.isKnown(n)
        || own && STAY.contains(n.getOpType())
        || hasTinyVariance(n);
  }

  private boolean hasTinyVariance(NodeProto n) {
    if (!OnnxModel.isOwn(n, "BatchNormalization")) {
      return false;
    }
    OnnxInitializer variance = model.constant(n.getInput(4));
    return variance == null || least(variance.floats()) < SMALLEST;
  }

  private static float least(FloatBuffer values) {
    float least = Float.POSITIVE_INFINITY;
    for (int i = 0; i < values.limit(); i++) {
      least = Math.min(least, values.get(i));
    }
    return least;
  }

  /** Looks for numbers that float16 does not hold, in constants of all graphs and what shapes are filled with. */
  private void findUnheld() {
    model.initializers().forEach(i -> findUnheld(i.name(), i));
    for (NodeProto n : model.allNodes()) {
      AttributeProto filling =
          OnnxModel.isOwn(n, "ConstantOfShape") ? Attributes.find(n, "value") : null;
      if (filling != null) {
        findUnheld(key(n), OnnxInitializer.ofMessage(filling.getT()));
      } else if (OnnxModel.isOwn(n, "Constant")) {
        findUnheld(key(n), model.constant(key(n)));
      }
      for (GraphProto g : InnerGraphs.of(n)) {
        g.getInitializerList().forEach(t -> findUnheld(t.getName(), model.constant(t.getName())));
      }
    }
  }

  /** Lets what takes such numbers stay, or notes a mask, where all of them stand for −∞. */
  private void findUnheld(String value, OnnxInitializer c) {
    if (c == null || c.type() != DataType.FLOAT) {
      return;
    }
    float most = 0;
    boolean masked = false;
    boolean beyond = false;
    FloatBuffer values = c.floats();
    for (int i = 0; i < values.limit(); i++) {
      float number = values.get(i);
      most = Math.max(most, Math.abs(number));
      masked |= number < -LARGEST;
      beyond |= number > LARGEST || number < -LARGEST && !MaskConstants.isOne(number);
    }
    if (most > 0 && most < SMALLEST) {
      if (c.elements() == 1) {
        stayWith(value);
      } else {
        readers(value).stream().filter(n -> isFactor(n, value)).forEach(this::stay);
      }
    } else if ((masked || beyond) && !isBound(value)) {
      if (beyond || model.outputNames().contains(value)) {
        stayWith(value);
      } else {
        masks.add(value);
      }
    }
  }

  /** Whether a node multiplies by a value, whose size then matters: a bias that is next to nothing may become that. */
  private static boolean isFactor(NodeProto n, String value) {
    return n.getInputList().stream().limit(2).anyMatch(value::equals)
        && !OnnxModel.isOwn(n, "Add")
        && !OnnxModel.isOwn(n, "Sub");
  }

  /** Whether values are only compared with a constant, which may as well be infinite. */
  private boolean isBound(String value) {
    return readers(value).stream()
        .allMatch(
            n ->
                OnnxModel.isOwn(n, "Clip")
                    || OnnxModel.isOwn(n, "Max")
                    || OnnxModel.isOwn(n, "Min"));
  }

  /** What gives a value and what takes it stay. */
  void stayWith(String value) {
    if (producers.containsKey(value)) {
      stay(producers.get(value));
    }
    readers(value).forEach(this::stay);
  }

  /**
   * The values that nodes of the same name give as the same of their outputs: branches for texts that begin and that go on
   * hold the same nodes, of which examples run one.
   */
  List<String> namesakes(String value) {
    NodeProto producer = producers.get(value);
    if (producer == null || producer.getName().isEmpty()) {
      return List.of();
    }
    int index = producer.getOutputList().indexOf(value);
    return byName.getOrDefault(producer.getName(), List.of()).stream()
        .filter(n -> n.getOutputCount() > index)
        .map(n -> n.getOutput(index))
        .filter(v -> !v.isEmpty() && !v.equals(value))
        .toList();
  }

  /** Whether a node squares what it takes. */
  private boolean isSquare(NodeProto n) {
    if (!isFloat(key(n)) || n.getInputCount() != 2) {
      return false;
    }
    OnnxInitializer exponent = model.constant(n.getInput(1));
    return OnnxModel.isOwn(n, "Mul") && n.getInput(0).equals(n.getInput(1))
        || OnnxModel.isOwn(n, "Pow")
            && exponent != null
            && exponent.elements() == 1
            && (exponent.type() == DataType.FLOAT && exponent.floats().get(0) == 2
                || exponent.type() == DataType.INT64 && exponent.data().getLong(0) == 2);
  }

  /** Squares that are summed stay, with their sum, and what is made of that. */
  private void stayUpToRoot(NodeProto square) {
    List<NodeProto> sums =
        readers(key(square)).stream()
            .filter(n -> OnnxModel.isOwn(n, "ReduceMean") || OnnxModel.isOwn(n, "ReduceSum"))
            .toList();
    if (sums.isEmpty()) {
      return;
    }
    stay(square);
    for (NodeProto sum : sums) {
      NodeProto n = sum;
      while (n != null) {
        stay(n);
        List<NodeProto> next = readers(key(n));
        boolean end = ROOTS.contains(n.getOpType()) || next.size() != 1;
        n = end || !UP_TO_ROOT.contains(next.get(0).getOpType()) ? null : next.get(0);
      }
    }
  }

  /** Whether a node takes an angle, or makes integers of floats. */
  private boolean isExact(NodeProto n) {
    boolean toIntegers =
        OnnxModel.isOwn(n, "Cast")
            && isFloat(n.getInput(0))
            && types.of(key(n)) != null
            && !ValueTypes.isFloat(types.of(key(n)))
            && types.of(key(n)) != DataType.DOUBLE
            && types.of(key(n)) != DataType.BOOL;
    return toIntegers || OnnxModel.isOwn(n) && ANGLES.contains(n.getOpType());
  }

  /** A node stays with all that it is computed from, back to products with weights. */
  private void stayBackToWeights(NodeProto last, Set<String> weighted, Set<String> learned) {
    Deque<NodeProto> open = new ArrayDeque<>(List.of(last));
    Set<String> seen = new HashSet<>();
    while (!open.isEmpty()) {
      NodeProto n = open.pop();
      stay(n);
      for (String value : OnnxModel.uses(n)) {
        NodeProto before = isFloat(value) ? producers.get(value) : null;
        boolean stops =
            before == null
                || !OnnxModel.isOwn(before)
                || weighted.contains(key(before))
                    && before.getInputList().stream().anyMatch(learned::contains)
                || OnnxModel.isOwn(before, "LayerNormalization");
        if (!stops && seen.add(key(before))) {
          open.push(before);
        }
      }
    }
  }
}
