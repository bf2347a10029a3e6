package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Deque;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.format.HalfFloats;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.Float16Graph;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.SpelledOut;
import org.espalier.format.onnx.SpelledOut.LayerNorm;
import org.espalier.format.onnx.ValueTypes;

/**
 * Conversion of a model from float32 to float16: weights and what is computed with them, half the size, for devices that
 * multiply 16-bit floats faster. Inputs and outputs keep their types. In float32 stays what float16 would spoil:
 *
 * <ul>
 *   <li>operators that have no float16, and those that count, draw or take coordinates;
 *   <li>sums, with the division that makes a mean of one; squares that are summed, and what is made of them up to their root;
 *   <li>numbers that were integers, such as positions, lengths and words, up to the first weight;
 *   <li>angles, and numbers that become integers, with all that they are computed from, back to the next weight;
 *   <li>operands that float16 does not hold: single numbers and factors that lie below 2⁻¹⁴, numbers above 65,504; constants that
 *       stand for −∞ become −8,000 unless calibration tells that this changes an output;
 *   <li>inputs and values that calibration sees come near to the ends of float16, and what takes them.
 * </ul>
 *
 * <p>Use: construct, {@link #calibrate}, {@link #apply}. ONNX Runtime's layer norm takes the place of one that is spelled out: it
 * sums in float32.
 */
public final class Float16Converter {
  private static final float LARGEST = HalfFloats.LARGEST_FLOAT16;
  private static final float SMALLEST = HalfFloats.SMALLEST_FLOAT16;

  /** Other examples may go so much further than those of calibration. */
  private static final float MARGIN = 4;

  /** Constants from here on down stand for −∞. */
  private static final float LEAST_NUMBER = -1e6f;

  /** What takes their place: the exponential of it is 0, and two of them may be added. */
  private static final float MASKED = -8e3f;

  /** The types of positions, lengths and words. */
  private static final Set<DataType> INTEGERS = EnumSet.of(DataType.INT32, DataType.INT64);

  /** A mask of other numbers may change outputs by so much of their norm. */
  private static final double SAME = 1e-4;

  /** Calibration looks at so many examples. */
  public static final int EXAMPLES = 16;

  /** Values that are looked at in one run. */
  private static final int VALUES = 256;

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
  private final OneUse use;
  private final ValueTypes types;
  private final Map<String, NodeProto> producers;

  /** The nodes of all graphs by what they read; what a graph gives is read by the node that holds it. */
  private final Map<String, List<NodeProto>> readers = new HashMap<>();

  private final List<OnnxWeight> weights;
  private final Map<String, String> skipped = new LinkedHashMap<>();

  /** Nodes that stay, by the first values that they give. */
  private final Set<String> staying = new HashSet<>();

  /** Constants that stand for −∞. */
  private final Set<String> masks = new LinkedHashSet<>();

  private Progress progress = Progress.NONE;

  /**
   * Plans the conversion of a model.
   *
   * @param include which weights are converted; what is computed with others stays
   * @throws InputException if it has no weights of float32 that could be, or its weights are int8
   */
  public Float16Converter(OnnxModel model, Predicate<OnnxWeight> include) {
    requireFloat(model);
    this.model = model;
    this.use = new OneUse(model, "was converted");
    ValueTypes given = ValueTypes.of(model);
    model.setNodes(model.nodes().stream().map(n -> plain(n, given)).toList());
    BatchNormFolding.apply(model);
    joinLayerNorms();
    types = ValueTypes.of(model);
    producers = model.allProducers();
    model.allNodes().forEach(this::addReader);
    List<OnnxWeight> all = OnnxWeights.of(model);
    weights = all.stream().filter(w -> model.constant(w.value()).type() == DataType.FLOAT).toList();
    for (OnnxWeight w : weights) {
      if (!include.test(w)) {
        skipped.put(w.name(), "it is not chosen");
        w.uses().forEach(u -> stay(producers.get(u.node())));
      }
    }
    Set<String> weighted = new HashSet<>();
    all.forEach(w -> w.uses().forEach(u -> weighted.add(u.node())));
    model.allNodes().stream()
        .filter(n -> Nodes.is(n, "Einsum") && n.getInputList().stream().anyMatch(this::isMatrix))
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
      if (Nodes.is(n, "ReduceSum")) {
        readers(key(n)).stream()
            .filter(r -> Nodes.is(r, "Div") && r.getInput(0).equals(key(n)))
            .forEach(this::stay);
      }
      if (isExact(n)) {
        stayBackToWeights(n, weighted, learned);
      }
    }
    findUnheld();
    boolean any =
        model.allNodes().stream()
            .filter(n -> !stays(n))
            .flatMap(n -> n.getInputList().stream())
            .anyMatch(v -> isFloat(v) && model.constant(v) != null);
    if (!any) {
      throw FloatWeights.none(model, "weight of float32 that float16 could hold", skipped);
    }
  }

  private static void requireFloat(OnnxModel model) {
    Set<String> integer = new TreeSet<>();
    model.allNodes().forEach(n -> integer.add(n.getOpType()));
    integer.retainAll(FloatWeights.INTEGER);
    integer.removeAll(FloatWeights.OF_BLOCKS);
    if (!integer.isEmpty()) {
      throw new InputException(
          model.name()
              + " is int8 already, with "
              + String.join(", ", integer)
              + "; convert the model that it was made of");
    }
  }

  /** Hears what is done. */
  public void tell(Progress listener) {
    progress = listener;
  }

  /** A node as the simplest that it is, with those inside it: a tensor where its numbers are constant, a Cast for a CastLike. */
  private NodeProto plain(NodeProto node, ValueTypes given) {
    boolean like = Nodes.is(node, "CastLike") && node.getInputCount() == 2;
    NodeProto n = like ? cast(node, given.of(node.getInput(1))) : node;
    OnnxInitializer tensor =
        switch (OnnxModel.isOwn(n) ? n.getOpType() : "") {
          case "Constant" -> ofNumbers(n);
          case "Cast" -> ofOneCast(n);
          default -> null;
        };
    if (tensor != null) {
      return n.toBuilder()
          .setOpType("Constant")
          .clearInput()
          .clearAttribute()
          .addAttribute(
              AttributeProto.newBuilder()
                  .setName("value")
                  .setType(AttributeType.TENSOR)
                  .setT(tensor.message()))
          .build();
    }
    return InnerGraphs.changed(
        n,
        g ->
            g.toBuilder()
                .clearNode()
                .addAllNode(g.getNodeList().stream().map(inner -> plain(inner, given)).toList())
                .build());
  }

  /** ONNX Runtime puts Casts around a CastLike of float16 that do not fit; where the type is unknown it is left alone. */
  private static NodeProto cast(NodeProto like, DataType type) {
    return type == null
        ? like
        : like.toBuilder()
            .setOpType("Cast")
            .clearInput()
            .addInput(like.getInput(0))
            .addAttribute(Attributes.attribute("to", type.getNumber()))
            .build();
  }

  /** The tensor of a Constant that tells its numbers without one; null for others. */
  private static OnnxInitializer ofNumbers(NodeProto n) {
    AttributeProto one = Attributes.find(n, "value_float");
    AttributeProto many = Attributes.find(n, "value_floats");
    if (one != null) {
      return OnnxInitializer.floats(n.getOutput(0), new long[0], one.getF());
    } else if (many == null) {
      return null;
    }
    float[] values = new float[many.getFloatsCount()];
    for (int i = 0; i < values.length; i++) {
      values[i] = many.getFloats(i);
    }
    return OnnxInitializer.floats(n.getOutput(0), new long[] {values.length}, values);
  }

  /** What a Cast makes of a constant of float64 or int64 that is one number; null for other Casts. */
  private OnnxInitializer ofOneCast(NodeProto n) {
    OnnxInitializer c = model.constant(n.getInput(0));
    if (c == null || c.elements() != 1 || Attributes.integer(n, "to", 0) != DataType.FLOAT_VALUE) {
      return null;
    }
    return switch (c.type()) {
      case DOUBLE ->
          OnnxInitializer.floats(n.getOutput(0), c.dims(), (float) c.data().getDouble(0));
      case INT64 -> OnnxInitializer.floats(n.getOutput(0), c.dims(), c.data().getLong(0));
      default -> null;
    };
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
      boolean ofShape = Nodes.is(n, "Shape") || Nodes.is(n, "Size");
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
              && (Nodes.is(n, "Range")
                  || Nodes.is(n, "Cast") && INTEGERS.contains(types.of(n.getInput(0))));
      if ((begins || n.getInputList().stream().anyMatch(made::contains))
          && !learned.contains(key(n))) {
        stay(n);
        n.getOutputList().stream().filter(this::isFloat).forEach(made::add);
      }
    }
  }

  /** Makes layer norms that are spelled out one operator each, which is ONNX Runtime's in sets before 17. */
  private void joinLayerNorms() {
    SpelledOut spelled = new SpelledOut(model);
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      LayerNorm norm = spelled.layerNorm(n);
      nodes.add(
          norm == null
              ? n
              : Nodes.node(
                      "LayerNormalization", n.getOutput(0), norm.x(), norm.gamma(), norm.beta())
                  .setName(n.getName())
                  .addAttribute(Attributes.attribute("axis", -1))
                  .addAttribute(Attributes.attribute("epsilon", norm.epsilon()))
                  .build());
    }
    model.setNodes(nodes);
    RuntimeForm.removeUnused(model);
  }

  private static String key(NodeProto n) {
    return n.getOutputList().stream().filter(o -> !o.isEmpty()).findFirst().orElse("");
  }

  private void stay(NodeProto n) {
    staying.add(key(n));
  }

  private boolean stays(NodeProto n) {
    return staying.contains(key(n));
  }

  private boolean isFloat(String value) {
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
    if (!Nodes.is(n, "BatchNormalization")) {
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
      AttributeProto filling = Nodes.is(n, "ConstantOfShape") ? Attributes.find(n, "value") : null;
      if (filling != null) {
        findUnheld(key(n), OnnxInitializer.ofMessage(filling.getT()));
      } else if (Nodes.is(n, "Constant")) {
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
      beyond |= number > LARGEST || number < -LARGEST && number > LEAST_NUMBER;
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
        && !Nodes.is(n, "Add")
        && !Nodes.is(n, "Sub");
  }

  /** Whether values are only compared with a constant, which may as well be infinite. */
  private boolean isBound(String value) {
    return readers(value).stream()
        .allMatch(n -> Nodes.is(n, "Clip") || Nodes.is(n, "Max") || Nodes.is(n, "Min"));
  }

  /** What gives a value and what takes it stay. */
  private void stayWith(String value) {
    if (producers.containsKey(value)) {
      stay(producers.get(value));
    }
    readers(value).forEach(this::stay);
  }

  /** Whether a node squares what it takes. */
  private boolean isSquare(NodeProto n) {
    if (!isFloat(key(n)) || n.getInputCount() != 2) {
      return false;
    }
    OnnxInitializer exponent = model.constant(n.getInput(1));
    return Nodes.is(n, "Mul") && n.getInput(0).equals(n.getInput(1))
        || Nodes.is(n, "Pow")
            && exponent != null
            && exponent.elements() == 1
            && (exponent.type() == DataType.FLOAT && exponent.floats().get(0) == 2
                || exponent.type() == DataType.INT64 && exponent.data().getLong(0) == 2);
  }

  /** Squares that are summed stay, with their sum, and what is made of that. */
  private void stayUpToRoot(NodeProto square) {
    List<NodeProto> sums =
        readers(key(square)).stream()
            .filter(n -> Nodes.is(n, "ReduceMean") || Nodes.is(n, "ReduceSum"))
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
        Nodes.is(n, "Cast")
            && isFloat(n.getInput(0))
            && types.of(key(n)) != null
            && !Nodes.isFloat(types.of(key(n)))
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
                || Nodes.is(before, "LayerNormalization");
        if (!stops && seen.add(key(before))) {
          open.push(before);
        }
      }
    }
  }

  /**
   * Finds what float16 would spoil by running examples.
   *
   * @param source some of the examples are taken
   * @param error to the model as it was given, of its outputs that count
   * @throws IllegalStateException after {@link #apply}
   */
  public void calibrate(ActivationSource source, OutputError error) {
    use.check();
    OnnxModel seen = model.copy();
    replaceMasks(seen);
    if (!masks.isEmpty() && !(error.of(seen) <= SAME)) {
      masks.forEach(this::stayWith);
      masks.clear();
      seen = model.copy();
    }
    Map<String, String> inputs = lookAtInputs(seen);
    List<String> values = new ArrayList<>(inputs.keySet());
    for (NodeProto n : model.nodes()) {
      if (!Nodes.is(n, "Constant")) {
        n.getOutputList().stream().filter(this::isFloat).forEach(values::add);
      }
    }
    ActivationSource some = source.some(EXAMPLES);
    Map<String, Float> largest = new HashMap<>();
    for (int from = 0; from < values.size(); from += VALUES) {
      progress.at(Phase.CALIBRATE, from, values.size());
      some.run(
          seen,
          values.subList(from, Math.min(values.size(), from + VALUES)),
          (value, shape, buffer) -> largest.merge(value, largest(buffer), Math::max));
    }
    largest.forEach(
        (value, most) -> {
          if (most > LARGEST / MARGIN || most > 0 && most < MARGIN * SMALLEST) {
            stayWith(inputs.getOrDefault(value, value));
          }
        });
  }

  /** Has a model give its inputs of float32 as values that can be looked at; the inputs by those. */
  private Map<String, String> lookAtInputs(OnnxModel seen) {
    OnnxModel.Names names = seen.names();
    Map<String, String> inputs = new LinkedHashMap<>();
    List<NodeProto> nodes = new ArrayList<>();
    for (ValueInfoProto v : seen.inputs()) {
      if (isFloat(v.getName()) && !PastInput.isOne(v.getName())) {
        String looked = names.unique(v.getName() + "_seen");
        inputs.put(looked, v.getName());
        nodes.add(Nodes.node("Identity", looked, v.getName()).build());
      }
    }
    nodes.addAll(seen.nodes());
    seen.setNodes(nodes);
    return inputs;
  }

  private static float largest(FloatBuffer values) {
    float largest = 0;
    for (int i = values.position(); i < values.limit(); i++) {
      float value = Math.abs(values.get(i));
      largest = value < Float.POSITIVE_INFINITY ? Math.max(largest, value) : largest;
    }
    return largest;
  }

  private void replaceMasks(OnnxModel target) {
    target.replaceConstants(
        masks.stream()
            .map(target::constant)
            .filter(Objects::nonNull)
            .map(Float16Converter::masked)
            .toList());
    target.setNodes(target.nodes().stream().map(this::masked).toList());
  }

  /** A node whose shape is filled with another number. */
  private NodeProto masked(NodeProto n) {
    NodeProto.Builder b =
        InnerGraphs.changed(
            n,
            g ->
                g.toBuilder()
                    .clearNode()
                    .addAllNode(g.getNodeList().stream().map(this::masked).toList())
                    .build())
            .toBuilder();
    if (Nodes.is(n, "ConstantOfShape") && masks.contains(key(n))) {
      OnnxInitializer filling = OnnxInitializer.ofMessage(Attributes.find(n, "value").getT());
      b.clearAttribute()
          .addAttribute(
              AttributeProto.newBuilder()
                  .setName("value")
                  .setType(AttributeType.TENSOR)
                  .setT(masked(filling).message()));
    }
    return b.build();
  }

  private static OnnxInitializer masked(OnnxInitializer c) {
    float[] values = new float[Math.toIntExact(c.elements())];
    c.floats().get(values);
    for (int i = 0; i < values.length; i++) {
      values[i] = values[i] < -LARGEST ? MASKED : values[i];
    }
    return OnnxInitializer.floats(c.name(), c.dims(), values);
  }

  /** The names of the weights that become float16. */
  public List<String> names() {
    List<String> names = new ArrayList<>();
    for (OnnxWeight w : weights) {
      if (!w.uses().stream().map(Use::node).map(producers::get).allMatch(this::stays)) {
        names.add(w.name());
      }
    }
    return names;
  }

  /** The weights that stay float32, with the reason. */
  public Map<String, String> skipped() {
    Map<String, String> all = new LinkedHashMap<>(skipped);
    Set<String> names = new HashSet<>(names());
    weights.stream()
        .filter(w -> !names.contains(w.name()))
        .forEach(w -> all.putIfAbsent(w.name(), "float16 would spoil what is computed with it"));
    return Collections.unmodifiableMap(all);
  }

  /**
   * Converts the model in place.
   *
   * @throws IllegalStateException if it was converted already
   */
  public void apply() {
    use.check();
    use.begin();
    replaceMasks(model);
    Float16Graph.narrow(model, this::stays);
    model.check();
  }
}
