package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Deque;
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
import org.espalier.format.onnx.SpelledOut;
import org.espalier.format.onnx.SpelledOut.LayerNorm;
import org.espalier.format.onnx.ValueTypes;

/**
 * Conversion of a model from float32 to float16: weights and what is computed with them, half the size, for devices that
 * multiply 16-bit floats faster. Inputs and outputs keep their types. In float32 stays what float16 would spoil:
 *
 * <ul>
 *   <li>operators that have no float16, and those that count, draw or take coordinates;
 *   <li>sums of squares, and what is made of them up to their root;
 *   <li>angles, and numbers that become integers, with all that they are computed from, back to the next weight;
 *   <li>operands that float16 does not hold: one number below 2⁻¹⁴, and what has numbers above 65,504; constants that
 *       stand for −∞ become −8,000 unless calibration tells that this changes an output;
 *   <li>values that calibration sees come near to the ends of float16, and what takes them.
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
          "RandomNormal",
          "RandomNormalLike",
          "RandomUniform",
          "RandomUniformLike",
          "Range",
          "ReduceL2",
          "ReduceLogSum",
          "ReduceLogSumExp",
          "ReduceSumSquare",
          "RoiAlign",
          "STFT",
          "TfIdfVectorizer");

  /** Operators whose operands are exact where what they give is an integer or an angle. */
  private static final Set<String> ANGLES = Set.of("Cos", "Sin", "Tan");

  /** What is made of a sum of squares up to its root. */
  private static final Set<String> UP_TO_ROOT =
      Set.of("Add", "Clip", "Div", "Max", "Mul", "Reciprocal", "Sqrt");

  private final OnnxModel model;
  private final OneUse use;
  private final ValueTypes types;
  private final Map<String, NodeProto> producers;
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
    model.setNodes(model.nodes().stream().map(Float16Converter::ofTensors).toList());
    BatchNormFolding.apply(model);
    joinLayerNorms();
    types = ValueTypes.of(model);
    producers = model.allProducers();
    weights =
        OnnxWeights.of(model).stream()
            .filter(w -> model.constant(w.value()).type() == DataType.FLOAT)
            .toList();
    for (OnnxWeight w : weights) {
      if (!include.test(w)) {
        skipped.put(w.name(), "it is not chosen");
        w.uses().forEach(u -> stay(producers.get(u.node())));
      }
    }
    Set<String> weighted = new HashSet<>();
    weights.forEach(w -> w.uses().forEach(u -> weighted.add(u.node())));
    for (NodeProto n : model.allNodes()) {
      if (cannotChange(n)) {
        stay(n);
      }
      if (isSquare(n)) {
        stayUpToRoot(n);
      }
      if (isExact(n)) {
        stayBackToWeights(n, weighted);
      }
    }
    model.initializers().forEach(i -> findMask(i.name(), i));
    for (NodeProto n : model.allNodes()) {
      if (Nodes.is(n, "Constant")) {
        findMask(key(n), model.constant(key(n)));
      } else if (Nodes.is(n, "ConstantOfShape") && n.getAttributeCount() > 0) {
        findMask(key(n), OnnxInitializer.ofMessage(n.getAttribute(0).getT()));
      }
    }
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

  /** A node whose constants, and those inside it, are tensors where they are numbers. */
  private static NodeProto ofTensors(NodeProto n) {
    AttributeProto a = Nodes.is(n, "Constant") ? n.getAttribute(0) : null;
    if (a != null && (a.getName().equals("value_float") || a.getName().equals("value_floats"))) {
      boolean one = a.getName().equals("value_float");
      float[] values = new float[one ? 1 : a.getFloatsCount()];
      for (int i = 0; i < values.length; i++) {
        values[i] = one ? a.getF() : a.getFloats(i);
      }
      long[] dims = one ? new long[0] : new long[] {values.length};
      OnnxInitializer tensor = OnnxInitializer.floats(n.getOutput(0), dims, values);
      return n.toBuilder()
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
                .addAllNode(g.getNodeList().stream().map(Float16Converter::ofTensors).toList())
                .build());
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
    boolean unknown =
        n.getInputList().stream().anyMatch(v -> !v.isEmpty() && types.of(v) == null)
            || n.getOutputList().stream().anyMatch(v -> !v.isEmpty() && types.of(v) == null);
    boolean fedAndGiven =
        InnerGraphs.of(n).stream()
            .anyMatch(
                g ->
                    g.getInitializerList().stream()
                        .map(TensorProto::getName)
                        .anyMatch(
                            g.getInputList().stream().map(ValueInfoProto::getName).toList()
                                ::contains));
    return unknown || fedAndGiven || own && STAY.contains(n.getOpType()) || takesTooSmall(n);
  }

  /** Whether an operand is one number that float16 does not hold well, or has numbers that it does not hold. */
  private boolean takesTooSmall(NodeProto n) {
    for (String input : n.getInputList()) {
      OnnxInitializer c = isFloat(input) ? model.constant(input) : null;
      if (c != null && c.elements() == 1 && isTiny(c.floats().get(0))) {
        return true;
      }
    }
    if (Nodes.is(n, "BatchNormalization")) {
      OnnxInitializer variance = model.constant(n.getInput(4));
      return variance == null || least(variance.floats()) < SMALLEST;
    }
    return false;
  }

  private static boolean isTiny(float value) {
    return value != 0 && Math.abs(value) < SMALLEST;
  }

  private static float least(FloatBuffer values) {
    float least = Float.POSITIVE_INFINITY;
    for (int i = 0; i < values.limit(); i++) {
      least = Math.min(least, values.get(i));
    }
    return least;
  }

  /** Notes a value with constants that float16 does not hold: a mask where all of these stand for −∞. */
  private void findMask(String value, OnnxInitializer c) {
    if (c == null || c.type() != DataType.FLOAT || isBound(value)) {
      return;
    }
    boolean masked = false;
    FloatBuffer values = c.floats();
    for (int i = 0; i < values.limit(); i++) {
      float number = values.get(i);
      if (number > LARGEST || number < -LARGEST && number > LEAST_NUMBER) {
        stayWith(value);
        return;
      }
      masked |= number < -LARGEST;
    }
    if (masked) {
      masks.add(value);
    }
  }

  /** Whether values are only compared with a constant, which may as well be infinite. */
  private boolean isBound(String value) {
    return model.allNodes().stream()
        .filter(n -> n.getInputList().contains(value))
        .allMatch(n -> Nodes.is(n, "Clip") || Nodes.is(n, "Max") || Nodes.is(n, "Min"));
  }

  /** What takes a value stays. */
  private void stayWith(String value) {
    for (NodeProto n : model.allNodes()) {
      if (n.getInputList().contains(value)) {
        stay(n);
      }
    }
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
            && exponent.type() == DataType.FLOAT
            && exponent.floats().get(0) == 2;
  }

  /** Squares that are summed stay, with their sum, and what is made of that. */
  private void stayUpToRoot(NodeProto square) {
    Map<String, List<NodeProto>> consumers = model.consumers();
    List<NodeProto> sums =
        consumers.getOrDefault(key(square), List.of()).stream()
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
        List<NodeProto> next = consumers.getOrDefault(key(n), List.of());
        boolean end = Nodes.is(n, "Sqrt") || Nodes.is(n, "Reciprocal") || next.size() != 1;
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
  private void stayBackToWeights(NodeProto last, Set<String> weighted) {
    Deque<NodeProto> open = new ArrayDeque<>(List.of(last));
    Set<String> seen = new HashSet<>();
    while (!open.isEmpty()) {
      NodeProto n = open.pop();
      stay(n);
      for (String value : OnnxModel.uses(n)) {
        NodeProto before = isFloat(value) ? producers.get(value) : null;
        boolean stops =
            before == null
                || before.getOutputList().stream().anyMatch(weighted::contains)
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
      seen = model;
    }
    List<String> values = new ArrayList<>();
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
    Map<String, List<NodeProto>> consumers = model.consumers();
    largest.forEach(
        (value, most) -> {
          if (most > LARGEST / MARGIN || most > 0 && most < MARGIN * SMALLEST) {
            stay(producers.get(value));
            consumers.getOrDefault(value, List.of()).forEach(this::stay);
          }
        });
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
      AttributeProto.Builder value = b.getAttributeBuilder(0);
      value.setT(masked(OnnxInitializer.ofMessage(value.getT())).message());
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
