package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;

/**
 * Weights that a graph computes from constants: g · v / ‖v‖ of weight normalization, a low-rank change that is added,
 * pieces that are put together. Each becomes a constant, so that it can be pruned and quantized; what made it goes.
 */
public final class ComputedWeights {
  /** What makes weights of constants: operators of one output that a runtime computes without surprises. */
  private static final Set<String> OPERATORS =
      Set.of(
          "Abs",
          "Add",
          "Cast",
          "Clip",
          "Concat",
          "Constant",
          "ConstantOfShape",
          "Div",
          "Exp",
          "Expand",
          "Flatten",
          "Gather",
          "Identity",
          "MatMul",
          "Max",
          "Min",
          "Mul",
          "Neg",
          "Pow",
          "Reciprocal",
          "ReduceL1",
          "ReduceL2",
          "ReduceMax",
          "ReduceMean",
          "ReduceSum",
          "ReduceSumSquare",
          "Relu",
          "Reshape",
          "Shape",
          "Sigmoid",
          "Sign",
          "Slice",
          "Softplus",
          "Sqrt",
          "Squeeze",
          "Sub",
          "Sum",
          "Tanh",
          "Tile",
          "Transpose",
          "Unsqueeze",
          "Where");

  private static final Set<DataType> FLOATING =
      EnumSet.of(DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE);

  /** Computes values of models without inputs. */
  @FunctionalInterface
  public interface Runtime {
    /**
     * Computes values.
     *
     * @param values outputs of {@code model}
     * @return those that could be computed; without one whose size is not known before or is too large
     */
    List<OnnxInitializer> compute(OnnxModel model, Collection<String> values);
  }

  /**
   * What became of the weights that are made of constants.
   *
   * @param computed those that are constants now, by what {@link OnnxWeights} calls them
   * @param left how many stay computed
   * @param operators what makes those
   */
  public record Result(List<String> computed, int left, Set<String> operators) {
    public Result {
      computed = List.copyOf(computed);
      operators = Collections.unmodifiableSet(new TreeSet<>(operators));
    }
  }

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;

  /** Values that follow from constants alone, and of those the ones that {@link #OPERATORS} make. */
  private final Set<String> fixed = new HashSet<>();

  private final Set<String> computable = new HashSet<>();

  private ComputedWeights(OnnxModel model) {
    this.model = model;
    this.producers = model.allProducers();
    for (NodeProto n : model.allNodes()) {
      boolean own = OnnxModel.isOwn(n);
      List<String> read = n.getInputList().stream().filter(value -> !value.isEmpty()).toList();
      if (n.getOutputCount() == 0
          || read.isEmpty() && !(own && OPERATORS.contains(n.getOpType()))
          || !read.stream().allMatch(value -> isConstant(value) || fixed.contains(value))
          || !InnerGraphs.of(n).isEmpty()
          || n.getOpType().startsWith("Random")
          || FloatWeights.INTEGER.contains(n.getOpType())) {
        continue;
      }
      fixed.addAll(n.getOutputList());
      if (own
          && n.getOutputCount() == 1
          && OPERATORS.contains(n.getOpType())
          && read.stream().allMatch(value -> isConstant(value) || computable.contains(value))) {
        computable.add(n.getOutput(0));
      }
    }
  }

  private boolean isConstant(String value) {
    return model.constant(value) != null;
  }

  /** Makes constants of the computed weights of a model. */
  public static Result fold(OnnxModel model, Runtime runtime) {
    return new ComputedWeights(model).fold(runtime);
  }

  private Result fold(Runtime runtime) {
    Set<String> wanted = wanted();
    Set<String> possible = new LinkedHashSet<>(wanted);
    possible.retainAll(computable);
    Map<String, String> stored = new HashMap<>();
    if (!possible.isEmpty()) {
      Map<List<Object>, String> known = new HashMap<>();
      OnnxModel.Names names = model.names();
      for (OnnxInitializer tensor : runtime.compute(model.excerpt(makers(possible)), possible)) {
        wanted.remove(tensor.name());
        if (FLOATING.contains(tensor.type())) {
          stored.put(tensor.name(), store(tensor, known, names));
        }
      }
    }
    if (!stored.isEmpty()) {
      model.setNodes(model.nodes().stream().map(n -> reading(n, stored)).toList());
      RuntimeForm.removeUnused(model);
    }
    Set<String> operators = new TreeSet<>();
    wanted.forEach(value -> operators.add(producers.get(value).getOpType()));
    return new Result(
        OnnxWeights.of(model).stream()
            .filter(weight -> stored.containsValue(weight.value()))
            .map(OnnxWeight::name)
            .toList(),
        wanted.size(),
        operators);
  }

  /** The initializer that holds a tensor; what several branches compute alike is stored once. */
  private String store(
      OnnxInitializer tensor, Map<List<Object>, String> known, OnnxModel.Names names) {
    List<Long> dims = Arrays.stream(tensor.dims()).boxed().toList();
    return known.computeIfAbsent(
        List.of(tensor.type(), dims, tensor.data()),
        key -> {
          // As exporters call constants that have no name of their own; the weight's is that of its
          // place.
          String name = names.unique("onnx::" + tensor.name());
          model.addInitializer(tensor.withName(name));
          return name;
        });
  }

  /** The values that follow from constants, that products read as weights, and that are no weights yet. */
  private Set<String> wanted() {
    Set<String> known = new HashSet<>();
    OnnxWeights.of(model).forEach(weight -> weight.uses().forEach(use -> known.addAll(use.path())));
    Set<String> wanted = new LinkedHashSet<>();
    for (NodeProto n : model.allNodes()) {
      int[] inputs =
          switch (n.getOpType()) {
            case "MatMul", "Gemm" -> new int[] {0, 1};
            case "Conv", "ConvTranspose" -> new int[] {1};
            case "LSTM", "GRU", "RNN" -> new int[] {1, 2};
            default -> new int[0];
          };
      // What multiplies constants alone is itself part of a computation.
      boolean multiplies = n.getOutputList().stream().noneMatch(fixed::contains);
      for (int i : inputs) {
        if (multiplies
            && i < n.getInputCount()
            && fixed.contains(n.getInput(i))
            && !isConstant(n.getInput(i))
            && !known.contains(n.getInput(i))) {
          wanted.add(n.getInput(i));
        }
      }
    }
    return wanted;
  }

  /** The nodes that values are made by, each after those whose values it reads. */
  private List<NodeProto> makers(Set<String> values) {
    List<NodeProto> all = model.allNodes();
    Set<String> read = new HashSet<>(values);
    List<NodeProto> makers = new ArrayList<>();
    for (int i = all.size() - 1; i >= 0; i--) {
      NodeProto n = all.get(i);
      if (n.getOutputCount() == 1 && read.contains(n.getOutput(0)) && !isConstant(n.getOutput(0))) {
        makers.add(n);
        read.addAll(n.getInputList());
      }
    }
    Collections.reverse(makers);
    return makers;
  }

  private static NodeProto reading(NodeProto n, Map<String, String> stored) {
    return Nodes.reading(InnerGraphs.withEachNode(n, inner -> reading(inner, stored)), stored);
  }
}
