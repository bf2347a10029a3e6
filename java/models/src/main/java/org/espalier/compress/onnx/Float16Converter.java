package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.format.HalfFloats;
import org.espalier.format.onnx.Float16Graph;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PastInput;

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

  /** A mask of other numbers may change outputs by so much of their norm. */
  private static final double SAME = 1e-4;

  /** The error of an output from which on float16 has spoilt something: it is less than a percent as a rule. */
  public static final double LARGE = 0.03;

  /** Calibration looks at so many examples. */
  public static final int EXAMPLES = 16;

  /** Values that are looked at in one run. */
  private static final int VALUES = 256;

  private final OnnxModel model;
  private final OneUse use;
  private final Float32Nodes staying;
  private final List<OnnxWeight> weights;
  private final Map<String, String> skipped = new LinkedHashMap<>();
  private Progress progress = Progress.NONE;

  /** Plans the conversion of a model, embedding tables too. */
  public Float16Converter(OnnxModel model, Predicate<OnnxWeight> include) {
    this(model, true, include);
  }

  /**
   * Plans the conversion of a model.
   *
   * @param embeddings whether tables in which rows are looked up are converted; one that a product reads too has both forms else
   * @param include which weights are converted; what is computed with others stays
   * @throws InputException if it has no weights of float32 that could be, or its weights are int8
   */
  public Float16Converter(OnnxModel model, boolean embeddings, Predicate<OnnxWeight> include) {
    requireFloat(model);
    this.model = model;
    this.use = new OneUse(model, "was converted");
    Float16Form.apply(model);
    List<OnnxWeight> all = OnnxWeights.of(model);
    staying = new Float32Nodes(model, all);
    weights = all.stream().filter(w -> staying.isFloat(w.value())).toList();
    for (OnnxWeight w : weights) {
      if (!include.test(w) || !embeddings && w.isEmbedding()) {
        skipped.put(w.name(), "it is not chosen");
        staying.users(w).forEach(staying::stay);
      } else if (!embeddings) {
        staying.lookUps(w).forEach(staying::stay);
      }
    }
    if (!staying.leavesAny()) {
      if (Float16Graph.isOne(model)) {
        throw new InputException(model.name() + " computes in 16 bits already");
      }
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

  /**
   * How far a converted model's outputs are off, with each value rounded as devices round it.
   *
   * @param error to the model as it was given
   * @return empty where the runtime does not run a model that rounds, as ONNX Runtime where it loses Casts around branches
   */
  public static Optional<OutputError.Made> made(OutputError error, OnnxModel converted) {
    try {
      return Optional.of(error.made(Float16Graph.rounding(converted)));
    } catch (InputException e) {
      return Optional.empty();
    }
  }

  /** Hears what is done. */
  public void tell(Progress listener) {
    progress = listener;
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
    MaskConstants masks = staying.masks();
    masks.replace(seen);
    if (!masks.values().isEmpty() && !(error.of(seen) <= SAME)) {
      masks.values().forEach(staying::stayWith);
      masks.values().clear();
      seen = model.copy();
    }
    Map<String, String> shown = lookAtInputs(seen);
    for (NodeProto n : model.nodes()) {
      if (!OnnxModel.isOwn(n, "Constant")) {
        n.getOutputList().stream().filter(staying::isFloat).forEach(v -> shown.put(v, v));
      }
    }
    Set<String> inBranches = BranchValues.of(model, staying::isFloat);
    int all = shown.size() + inBranches.size();
    ActivationSource some = source.some(EXAMPLES);
    Map<String, Float> largest = new HashMap<>();
    List<String> values = List.copyOf(shown.keySet());
    for (int from = 0; from < values.size(); from += VALUES) {
      progress.at(Phase.CALIBRATE, from, all);
      Map<String, String> part = new LinkedHashMap<>(shown);
      part.keySet().retainAll(part(values, from));
      look(some, seen, part, largest);
    }
    List<String> lifting = List.copyOf(inBranches);
    for (int from = 0; from < lifting.size(); from += VALUES) {
      progress.at(Phase.CALIBRATE, shown.size() + from, all);
      OnnxModel lifted = seen.copy();
      look(some, lifted, BranchValues.lift(lifted, part(lifting, from)), largest);
    }
    largest.forEach(
        (value, most) -> {
          if (most > LARGEST / MARGIN || most > 0 && most < MARGIN * SMALLEST) {
            staying.stayWith(value);
            if (inBranches.contains(value)) {
              staying.namesakes(value).forEach(staying::stayWith);
            }
          }
        });
  }

  private static List<String> part(List<String> values, int from) {
    return values.subList(from, Math.min(values.size(), from + VALUES));
  }

  /**
   * Runs a model.
   *
   * @param shown what its values are in the model that is converted
   * @param largest receives the largest magnitudes of these
   */
  private static void look(
      ActivationSource source,
      OnnxModel model,
      Map<String, String> shown,
      Map<String, Float> largest) {
    source.run(
        model,
        shown.keySet(),
        (value, shape, buffer) -> largest.merge(shown.get(value), largest(buffer), Math::max));
  }

  /** Has a model give its inputs of float32 as values that can be looked at, with the inputs that they are. */
  private Map<String, String> lookAtInputs(OnnxModel seen) {
    OnnxModel.Names names = seen.names();
    Map<String, String> inputs = new LinkedHashMap<>();
    List<NodeProto> nodes = new ArrayList<>();
    for (ValueInfoProto v : seen.inputs()) {
      if (staying.isFloat(v.getName()) && !PastInput.isOne(v.getName())) {
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

  /** The names of the weights that become float16. */
  public List<String> names() {
    List<String> names = new ArrayList<>();
    for (OnnxWeight w : weights) {
      if (!staying.users(w).stream().allMatch(staying::contains)) {
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
    SumShapes sums = SumShapes.find(model);
    staying.masks().replace(model);
    Float16Graph.narrow(model, staying::contains);
    sums.apply(model);
    model.check();
  }
}
