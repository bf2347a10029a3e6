package org.espalier.train;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
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
   * @param inputAxis the axis of the inputs in the weight as it is stored
   */
  private record Pair(String down, String up, int inputAxis) {}

  /**
   * What is added to a product.
   *
   * @param turned whether the product has the weight's outputs as inputs, as the second layer of an autoencoder whose
   *     layers share a weight
   * @param alpha what the product is multiplied with
   */
  private record Added(Pair pair, boolean turned, float alpha) {}

  private final OnnxModel plain;
  private final int rank;
  private final OnnxModel.Names names;

  /** By the constants of the weights. */
  private final Map<String, Pair> pairs = new LinkedHashMap<>();

  /** By the outputs of the products. */
  private final Map<String, Added> added = new HashMap<>();

  /** The constants of weights of products of which a side is no longer than the rank, which are trained themselves. */
  private final Set<String> whole = new HashSet<>();

  private final List<String> resting = new ArrayList<>();

  /**
   * Finds what can be adapted.
   *
   * @param plain the model, which stays as it is
   * @param rank at least 1
   * @throws InputException where it has no product that could be adapted
   */
  LowRank(OnnxModel plain, int rank) {
    this.plain = plain;
    this.rank = rank;
    this.names = plain.names();
    Map<String, NodeProto> producers = plain.producers();
    for (OnnxWeight weight : OnnxWeights.of(plain)) {
      long[] dims = plain.constant(weight.value()).dims();
      if (!weight.uses().stream().allMatch(use -> isAdaptable(use, producers))
          || weight.otherUses() > 0) {
        boolean inner = weight.uses().stream().noneMatch(u -> producers.containsKey(u.node()));
        if (!weight.isEmbedding() && !inner) {
          resting.add(weight.name());
        }
      } else if (Math.min(dims[0], dims[1]) <= rank) {
        whole.add(weight.value());
      } else {
        adapt(weight, producers);
      }
    }
    if (pairs.isEmpty()) {
      throw new InputException(
          plain.name()
              + " has no product with a weight of more than "
              + rank
              + " inputs and outputs, which low-rank: "
              + rank
              + " could adapt");
    }
  }

  private void adapt(OnnxWeight weight, Map<String, NodeProto> producers) {
    Pair pair =
        new Pair(
            names.unique(weight.name() + DOWN),
            names.unique(weight.name() + UP),
            weight.reductionAxis());
    pairs.put(weight.value(), pair);
    for (Use use : weight.uses()) {
      boolean turned = use.reductionAxis() != pair.inputAxis;
      added.put(use.node(), new Added(pair, turned, alpha(producers.get(use.node()))));
    }
  }

  private static boolean isAdaptable(Use use, Map<String, NodeProto> producers) {
    NodeProto n = producers.get(use.node()); // null in branches and bodies
    return n != null
        && use.input() == 1
        && use.axes().size() == 2
        && (use.kind() == Kind.MATMUL
            || use.kind() == Kind.GEMM && Attributes.integer(n, "transA", 0) == 0);
  }

  /** What a product is multiplied with. */
  private static float alpha(NodeProto product) {
    return product.getOpType().equals("Gemm") ? (float) Attributes.real(product, "alpha", 1) : 1;
  }

  /**
   * The model with A and B, to be trained.
   *
   * @param seed of the values with which A begins, which have a variance of 1 / inputs
   */
  OnnxModel adapted(long seed) {
    OnnxModel model = plain.copy();
    Random random = new Random(seed);
    pairs.forEach(
        (constant, pair) -> {
          long[] dims = plain.constant(constant).dims();
          int inputs = (int) dims[pair.inputAxis];
          int outputs = (int) dims[1 - pair.inputAxis];
          float[] start = new float[inputs * rank];
          for (int i = 0; i < start.length; i++) {
            start[i] = (float) (random.nextGaussian() / Math.sqrt(inputs));
          }
          model.addInitializer(OnnxInitializer.floats(pair.down, new long[] {inputs, rank}, start));
          model.addInitializer(
              OnnxInitializer.floats(
                  pair.up, new long[] {rank, outputs}, new float[rank * outputs]));
        });
    model.setNodes(adapted(plain.nodes()));
    return model;
  }

  private List<NodeProto> adapted(List<NodeProto> nodes) {
    List<NodeProto> result = new ArrayList<>();
    for (NodeProto n : nodes) {
      Added adapter = n.getOutputCount() == 0 ? null : added.get(n.getOutput(0));
      if (adapter == null) {
        result.add(n);
      } else {
        add(adapter, n, result);
      }
    }
    return result;
  }

  /** Adds the nodes that a product becomes. */
  private void add(Added added, NodeProto n, List<NodeProto> result) {
    String output = n.getOutput(0);
    String alone = names.unique(output + "_resting");
    String first = added.pair.down;
    String second = added.pair.up;
    if (added.turned) { // (A·B)ᵀ is Bᵀ·Aᵀ
      first = names.unique(output + "_up_turned");
      second = names.unique(output + "_down_turned");
      result.add(node("Transpose", first, added.pair.up));
      result.add(node("Transpose", second, added.pair.down));
    }
    String lower = names.unique(output + "_lower");
    String sum = names.unique(output + "_added");
    result.add(n.toBuilder().setOutput(0, alone).build());
    result.add(node("MatMul", lower, n.getInput(0), first));
    result.add(
        added.alpha == 1
            ? node("MatMul", sum, lower, second)
            : node("Gemm", sum, lower, second).toBuilder()
                .addAttribute(Attributes.attribute("alpha", added.alpha))
                .build());
    result.add(node("Add", output, alone, sum));
  }

  private static NodeProto node(String operator, String output, String... inputs) {
    return NodeProto.newBuilder()
        .setOpType(operator)
        .setName(output)
        .addAllInput(List.of(inputs))
        .addOutput(output)
        .build();
  }

  /** The model as it was given. */
  OnnxModel plain() {
    return plain;
  }

  /** Whether a constant of the adapted model is an A or a B, or a weight that is trained itself. */
  boolean trains(String constant) {
    return whole.contains(constant)
        || pairs.values().stream().anyMatch(p -> p.down.equals(constant) || p.up.equals(constant));
  }

  /** The names of the weights that stay as they are, less tables and what no training sees. */
  List<String> resting() {
    return resting;
  }

  /** Whether a constant of the model as it was given is a weight that is adapted or trained itself. */
  boolean changes(String constant) {
    return pairs.containsKey(constant) || whole.contains(constant);
  }

  /**
   * The model as it was given with what was learned: W + A·B in the place of W, and other constants as they are now.
   *
   * @param trained the constants of the adapted model that were trained
   */
  OnnxModel merged(List<OnnxInitializer> trained) {
    Map<String, OnnxInitializer> now = new HashMap<>();
    trained.forEach(constant -> now.put(constant.name(), constant));
    List<OnnxInitializer> changed = new ArrayList<>();
    pairs.forEach(
        (constant, pair) ->
            changed.add(
                sum(plain.constant(constant), pair, now.remove(pair.down), now.remove(pair.up))));
    changed.addAll(now.values());
    OnnxModel model = plain.copy();
    model.replaceConstants(changed);
    return model;
  }

  private static OnnxInitializer sum(
      OnnxInitializer w, Pair pair, OnnxInitializer down, OnnxInitializer up) {
    float[] sum = new float[Math.toIntExact(w.elements())];
    w.floats().get(sum);
    float[] added = new float[sum.length];
    try (PointerScope scope = new PointerScope()) {
      Tensor product = tensor(down).matmul(tensor(up));
      (pair.inputAxis == 1 ? product.t() : product).contiguous().data_ptr_float().get(added);
    }
    for (int i = 0; i < sum.length; i++) {
      sum[i] += added[i];
    }
    return OnnxInitializer.floats(w.name(), w.dims(), sum);
  }

  private static Tensor tensor(OnnxInitializer matrix) {
    float[] values = new float[Math.toIntExact(matrix.elements())];
    matrix.floats().get(values);
    return AbstractTensor.create(values, matrix.dims());
  }
}
