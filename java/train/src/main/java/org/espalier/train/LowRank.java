package org.espalier.train;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/**
 * A model whose products are adapted by matrices of low rank while their weights rest: x·W becomes x·W + (x·A)·B with A [inputs,
 * rank] and B [rank, outputs], which alone are trained (Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021).
 * Neither gradients nor moments of W are needed, nor memory to write it. B begins at 0, so the adapted model begins as the model;
 * {@link #merged} adds A·B to W.
 */
final class LowRank {
  /** What is between the name of a weight and those of its matrices. */
  private static final String DOWN = ".low_rank_a";

  private static final String UP = ".low_rank_b";

  /**
   * The matrices of a weight.
   *
   * @param transposed whether the weight is stored as [outputs, inputs]
   */
  private record Pair(String weight, String down, String up, boolean transposed) {}

  private final OnnxModel plain;
  private final OnnxModel adapted;
  private final int rank;

  /** By the constants of the weights. */
  private final Map<String, Pair> pairs = new LinkedHashMap<>();

  /** Weights of products of which a side is no longer than the rank, which are trained themselves: names by constants. */
  private final Map<String, String> whole = new LinkedHashMap<>();

  /**
   * Adapts a copy of a model.
   *
   * @param rank at least 1
   * @param seed of the values with which A begins, which have a variance of 1 / inputs
   * @throws InputException where it has no product that could be adapted
   */
  LowRank(OnnxModel model, int rank, long seed) {
    plain = model;
    adapted = model.copy();
    this.rank = rank;
    OnnxModel.Names names = adapted.names();
    Random random = new Random(seed);
    Map<String, Pair> byProduct = new HashMap<>();
    Map<String, NodeProto> producers = model.producers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (!weight.uses().stream().allMatch(use -> isAdaptable(use, producers))
          || weight.otherUses() > 0) {
        continue;
      }
      long[] dims = model.constant(weight.value()).dims();
      if (Math.min(dims[0], dims[1]) <= rank) {
        whole.put(weight.value(), weight.name());
        continue;
      }
      Pair pair =
          new Pair(
              weight.name(),
              names.unique(weight.name() + DOWN),
              names.unique(weight.name() + UP),
              weight.reductionAxis() == 1);
      pairs.put(weight.value(), pair);
      weight.uses().forEach(use -> byProduct.put(use.node(), pair));
      int inputs = (int) dims[weight.reductionAxis()];
      int outputs = (int) dims[weight.outputAxis()];
      float[] start = new float[inputs * rank];
      for (int i = 0; i < start.length; i++) {
        start[i] = (float) (random.nextGaussian() / Math.sqrt(inputs));
      }
      adapted.addInitializer(OnnxInitializer.floats(pair.down, new long[] {inputs, rank}, start));
      adapted.addInitializer(
          OnnxInitializer.floats(pair.up, new long[] {rank, outputs}, new float[rank * outputs]));
    }
    if (pairs.isEmpty()) {
      throw new InputException(
          model.name()
              + " has no product with a weight of more than "
              + rank
              + " inputs and outputs, which low-rank: "
              + rank
              + " could adapt");
    }
    adapted.setNodes(adapted(model.nodes(), byProduct, names));
  }

  private static boolean isAdaptable(Use use, Map<String, NodeProto> producers) {
    NodeProto n = producers.get(use.node()); // null in branches and bodies
    return n != null
        && use.isDirect()
        && use.input() == 1
        && use.axes().size() == 2
        && (use.kind() == Kind.MATMUL
            || use.kind() == Kind.GEMM
                && Attributes.integer(n, "transA", 0) == 0
                && Attributes.real(n, "alpha", 1) == 1);
  }

  private static List<NodeProto> adapted(
      List<NodeProto> nodes, Map<String, Pair> byProduct, OnnxModel.Names names) {
    List<NodeProto> result = new ArrayList<>();
    for (NodeProto n : nodes) {
      Pair pair = n.getOutputCount() == 0 ? null : byProduct.get(n.getOutput(0));
      if (pair == null) {
        result.add(n);
        continue;
      }
      String output = n.getOutput(0);
      String resting = names.unique(output + "_resting");
      String lower = names.unique(output + "_lower");
      String added = names.unique(output + "_added");
      result.add(n.toBuilder().setOutput(0, resting).build());
      result.add(node("MatMul", lower, n.getInput(0), pair.down));
      result.add(node("MatMul", added, lower, pair.up));
      result.add(node("Add", output, resting, added));
    }
    return result;
  }

  private static NodeProto node(String operator, String output, String one, String other) {
    return NodeProto.newBuilder()
        .setOpType(operator)
        .setName(output)
        .addInput(one)
        .addInput(other)
        .addOutput(output)
        .build();
  }

  int rank() {
    return rank;
  }

  /** The model as it was given. */
  OnnxModel plain() {
    return plain;
  }

  /** The model with A and B, to be trained. */
  OnnxModel adapted() {
    return adapted;
  }

  /** Whether a constant of the adapted model is an A or a B, or a weight that is trained itself. */
  boolean trains(String constant) {
    return whole.containsKey(constant)
        || pairs.values().stream().anyMatch(p -> p.down.equals(constant) || p.up.equals(constant));
  }

  /** The constants of the weights that are adapted or trained themselves, with their names for people. */
  Map<String, String> weights() {
    Map<String, String> weights = new LinkedHashMap<>();
    pairs.forEach((constant, pair) -> weights.put(constant, pair.weight));
    weights.putAll(whole);
    return weights;
  }

  /**
   * The model as it was given with what was learned: W + A·B in the place of W, and all other constants as they are now.
   *
   * @param trained the adapted model with its present constants
   */
  OnnxModel merged(OnnxModel trained) {
    OnnxModel model = trained.copy();
    List<OnnxInitializer> sums = new ArrayList<>();
    pairs.forEach((constant, pair) -> sums.add(sum(model, constant, pair)));
    model.replaceConstants(sums);
    model.setNodes(plain.nodes());
    model.removeUnusedInitializers();
    return model;
  }

  private static OnnxInitializer sum(OnnxModel model, String constant, Pair pair) {
    OnnxInitializer w = model.constant(constant);
    float[] sum = new float[Math.toIntExact(w.elements())];
    w.floats().get(sum);
    float[] added = new float[sum.length];
    try (PointerScope scope = new PointerScope()) {
      Tensor product = tensor(model.constant(pair.down)).matmul(tensor(model.constant(pair.up)));
      (pair.transposed ? product.t() : product).contiguous().data_ptr_float().get(added);
    }
    for (int i = 0; i < sum.length; i++) {
      sum[i] += added[i];
    }
    return OnnxInitializer.floats(constant, w.dims(), sum);
  }

  private static Tensor tensor(OnnxInitializer matrix) {
    float[] values = new float[Math.toIntExact(matrix.elements())];
    matrix.floats().get(values);
    return AbstractTensor.create(values, matrix.dims());
  }
}
