package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Exact rewrites after which ONNX Runtime fuses more and runs fewer nodes:
 *
 * <ul>
 *   <li>{@code Add(bias, product)} becomes {@code Add(product, bias)}: the fusion of a bias into an int8
 *       product looks for a constant second operand only;
 *   <li>a {@code Reshape} whose target is put together from dimensions of its own data gets a constant
 *       target, in which 0 stands for «as in the data»; five nodes for each dimension go;
 *   <li>a {@code Gemm} that is a product with a constant and a constant bias becomes {@code MatMul} and
 *       {@code Add};
 *   <li>a matrix that a {@code Transpose} turns for products alone is turned;
 *   <li>small constants of equal type, shape and value become one: exporters write each layer its
 *       own;
 *   <li>nodes and tensors that nothing reads go.
 * </ul>
 */
final class RuntimeForm {
  /** Elements; weights and biases keep their own tensors. */
  private static final long SMALL_CONSTANT = 8;

  private RuntimeForm() {}

  /**
   * Rewrites {@code model} in place.
   *
   * @param splitGemms whether Gemm becomes MatMul and Add; the static form has a fused int8 Gemm
   */
  static void apply(OnnxModel model, boolean splitGemms) {
    if (splitGemms) {
      model.setNodes(splitGemms(model, model.names(), model.nodes()));
    }
    turnMatrices(model);
    Map<String, NodeProto> producers = model.producers();
    List<NodeProto> nodes = new ArrayList<>();
    OnnxModel.Names names = model.names();
    Map<List<Long>, String> shapes = new HashMap<>();
    for (NodeProto n : model.nodes()) {
      switch (n.getOpType()) {
        case "Add" -> nodes.add(biasSecond(model, producers, n));
        case "Reshape" -> {
          long[] target = ownDimensions(model, producers, n);
          if (target == null) {
            nodes.add(n);
          } else {
            List<Long> key = Arrays.stream(target).boxed().toList();
            String shape =
                shapes.computeIfAbsent(
                    key,
                    k -> {
                      String name = names.unique("shape");
                      model.addInitializer(
                          OnnxInitializer.int64s(name, new long[] {target.length}, target));
                      return name;
                    });
            nodes.add(n.toBuilder().setInput(1, shape).build());
          }
        }
        default -> nodes.add(n);
      }
    }
    model.setNodes(nodes);
    shareConstants(model);
    removeUnused(model);
  }

  /**
   * Turns float32 matrices that are read through a Transpose, as the second factors of products, and in no other way: the
   * runtime would turn them each time that it loads the model, and hold both forms meanwhile.
   */
  static void turnMatrices(OnnxModel model) {
    Map<String, List<NodeProto>> readers = model.consumers();
    Map<String, String> turned = new HashMap<>();
    for (NodeProto n : model.nodes()) {
      OnnxInitializer w = n.getInputCount() == 1 ? model.initializer(n.getInput(0)) : null;
      if (w != null
          && OnnxModel.isOwn(n, "Transpose")
          && w.type() == DataType.FLOAT
          && w.dims().length == 2
          && w.byteLength() <= Integer.MAX_VALUE
          && isSwap(n)
          && readers.get(w.name()).size() == 1
          && !model.outputNames().contains(w.name())
          && !model.outputNames().contains(n.getOutput(0))
          && readers.getOrDefault(n.getOutput(0), List.of()).stream()
              .allMatch(reader -> isSecondFactor(reader, n.getOutput(0)))) {
        turned.put(n.getOutput(0), w.name());
        model.replaceInitializer(turned(w, w.name()));
      }
    }
    if (!turned.isEmpty()) {
      List<NodeProto> nodes = new ArrayList<>();
      for (NodeProto n : model.nodes()) {
        if (n.getOutputCount() == 0 || !turned.containsKey(n.getOutput(0))) {
          nodes.add(Nodes.reading(n, turned));
        }
      }
      model.setNodes(nodes);
    }
  }

  private static boolean isSwap(NodeProto transpose) {
    long[] order = Attributes.integers(transpose, "perm");
    return order == null || Arrays.equals(order, new long[] {1, 0});
  }

  private static boolean isSecondFactor(NodeProto n, String value) {
    return OnnxModel.isOwn(n, "MatMul")
        && n.getInput(1).equals(value)
        && !n.getInput(0).equals(value);
  }

  /** A matrix by columns. */
  private static OnnxInitializer turned(OnnxInitializer w, String name) {
    return OnnxInitializer.computed(
        name, DataType.FLOAT, new long[] {w.dims()[1], w.dims()[0]}, () -> Permutation.turned(w));
  }

  /** Lets all nodes that read equal small constants, which are not trained, read the first of them. */
  private static void shareConstants(OnnxModel model) {
    Map<List<Object>, String> first = new HashMap<>();
    Map<String, String> shared = new HashMap<>();
    Set<String> biases = biases(model);
    for (OnnxInitializer i : model.initializers()) {
      if (!biases.contains(i.name())) {
        share(i, i.name(), first, shared);
      }
    }
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      if (n.getOpType().equals("Constant")
          && model.constant(n.getOutput(0)) != null
          && !biases.contains(n.getOutput(0))) {
        share(model.constant(n.getOutput(0)), n.getOutput(0), first, shared);
      }
      nodes.add(Nodes.reading(n, shared));
    }
    model.setNodes(nodes);
  }

  /** What is added to products. */
  private static Set<String> biases(OnnxModel model) {
    Map<String, NodeProto> producers = model.producers();
    Set<String> biases = new HashSet<>();
    for (NodeProto n : model.nodes()) {
      boolean sum =
          n.getOpType().equals("Add")
              && n.getInputList().stream()
                  .map(producers::get)
                  .anyMatch(p -> p != null && OnnxModel.isOwn(p, "MatMul"));
      if (sum) {
        biases.addAll(n.getInputList());
      } else if (n.getInputCount() > 2
          && Set.of("Gemm", "Conv", "ConvTranspose").contains(n.getOpType())) {
        biases.add(n.getInput(2));
      }
    }
    return biases;
  }

  private static void share(
      OnnxInitializer constant,
      String name,
      Map<List<Object>, String> first,
      Map<String, String> shared) {
    // Several floats may be a parameter.
    long most = constant.type() == DataType.FLOAT ? 1 : SMALL_CONSTANT;
    if (constant.elements() > most || constant.type() == DataType.STRING) {
      return;
    }
    List<Long> dims = Arrays.stream(constant.dims()).boxed().toList();
    String earlier = first.putIfAbsent(List.of(constant.type(), dims, constant.data()), name);
    if (earlier != null) {
      shared.put(name, earlier);
    }
  }

  private static NodeProto biasSecond(
      OnnxModel model, Map<String, NodeProto> producers, NodeProto n) {
    NodeProto product = n.getInputCount() == 2 ? producers.get(n.getInput(1)) : null;
    if (product != null
        && product.getOpType().equals("MatMul")
        && model.constant(n.getInput(0)) != null) {
      return n.toBuilder().setInput(0, n.getInput(1)).setInput(1, n.getInput(0)).build();
    }
    return n;
  }

  /** The constant target of a Reshape to dimensions of its own data; null if it is something else. */
  private static long[] ownDimensions(
      OnnxModel model, Map<String, NodeProto> producers, NodeProto reshape) {
    NodeProto concat = reshape.getInputCount() == 2 ? producers.get(reshape.getInput(1)) : null;
    if (concat == null
        || !concat.getOpType().equals("Concat")
        || Attributes.integer(reshape, "allowzero", 0) != 0) {
      return null;
    }
    long[] target = new long[concat.getInputCount()];
    boolean inferred = false;
    for (int i = 0; i < target.length; i++) {
      Long fixed = single(model, concat.getInput(i));
      if (fixed != null && fixed != 0) {
        target[i] = fixed;
        inferred |= fixed < 0;
        continue;
      }
      NodeProto unsqueeze = producers.get(concat.getInput(i));
      NodeProto gather = producer(producers, unsqueeze, "Unsqueeze");
      NodeProto shape = producer(producers, gather, "Gather");
      if (shape == null
          || !shape.getOpType().equals("Shape")
          || shape.getAttributeCount() > 0
          || !shape.getInput(0).equals(reshape.getInput(0))
          || !Long.valueOf(i).equals(single(model, gather.getInput(1)))) {
        return null;
      }
      target[i] = 0;
    }
    // A data dimension of 0 beside an inferred one is the only case where the two forms could
    // differ.
    return inferred ? null : target;
  }

  /** The producer of the first input of {@code n}, which must be of type {@code op}; null otherwise. */
  private static NodeProto producer(Map<String, NodeProto> producers, NodeProto n, String op) {
    return n != null && n.getOpType().equals(op) && n.getInputCount() > 0
        ? producers.get(n.getInput(0))
        : null;
  }

  /** The value of an int64 constant of one element; null if it is none. */
  private static Long single(OnnxModel model, String value) {
    OnnxInitializer c = model.constant(value);
    if (c == null || c.type() != DataType.INT64 || c.elements() != 1) {
      return null;
    }
    LongBuffer b = c.data().asLongBuffer();
    return b.get(0);
  }

  private static List<NodeProto> splitGemms(
      OnnxModel model, OnnxModel.Names names, List<NodeProto> given) {
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : given) {
      if (!n.getOpType().equals("Gemm") || !isLinear(model, n)) {
        nodes.add(InnerGraphs.withNodes(n, inner -> splitGemms(model, names, inner)));
        continue;
      }
      String output = n.getOutput(0);
      String weight = n.getInput(1);
      if (Attributes.integer(n, "transB", 0) != 0) {
        String turned = names.unique(weight + "_transposed");
        model.addInitializer(turned(model.constant(weight), turned));
        weight = turned;
      }
      boolean biased = n.getInputCount() == 3 && !n.getInput(2).isEmpty();
      String product = biased ? names.unique(output + "_product") : output;
      nodes.add(Nodes.node("MatMul", product, n.getInput(0), weight).build());
      if (biased) {
        nodes.add(Nodes.node("Add", output, product, n.getInput(2)).build());
      }
    }
    return nodes;
  }

  /** Whether a Gemm is x·W + b with constant float32 W and b. */
  private static boolean isLinear(OnnxModel model, NodeProto n) {
    OnnxInitializer w = model.constant(n.getInput(1));
    boolean plain =
        w != null
            && w.type() == DataType.FLOAT
            && w.dims().length == 2
            && Attributes.integer(n, "transA", 0) == 0
            && Attributes.real(n, "alpha", 1) == 1
            && Attributes.real(n, "beta", 1) == 1;
    if (!plain || n.getInputCount() < 3 || n.getInput(2).isEmpty()) {
      return plain;
    }
    OnnxInitializer b = model.constant(n.getInput(2));
    return b != null && b.type() == DataType.FLOAT;
  }

  /** Removes nodes and initializers that no output depends on. */
  static void removeUnused(OnnxModel model) {
    Set<String> read = new HashSet<>();
    model.outputs().forEach(v -> read.add(v.getName()));
    List<NodeProto> kept = new ArrayList<>();
    for (int i = model.nodes().size() - 1; i >= 0; i--) {
      NodeProto n = InnerGraphs.changed(model.nodes().get(i), RuntimeForm::withoutUnused);
      if (n.getOutputList().stream().anyMatch(read::contains)) {
        kept.add(n);
        read.addAll(OnnxModel.uses(n));
      }
    }
    Collections.reverse(kept);
    model.setNodes(kept);
    List<String> unused = new ArrayList<>();
    for (OnnxInitializer i : model.initializers()) {
      if (!read.contains(i.name())) {
        unused.add(i.name());
      }
    }
    unused.forEach(model::removeInitializer);
  }

  private static GraphProto withoutUnused(GraphProto g) {
    Set<String> read = new HashSet<>();
    g.getOutputList().forEach(v -> read.add(v.getName()));
    List<NodeProto> kept = new ArrayList<>();
    for (int i = g.getNodeCount() - 1; i >= 0; i--) {
      NodeProto n = InnerGraphs.changed(g.getNode(i), RuntimeForm::withoutUnused);
      if (n.getOutputList().stream().anyMatch(read::contains)) {
        kept.add(n);
        read.addAll(OnnxModel.uses(n));
      }
    }
    Collections.reverse(kept);
    // What a body is fed may have a tensor of the same name.
    g.getInputList().forEach(v -> read.add(v.getName()));
    return g.toBuilder()
        .clearNode()
        .addAllNode(kept)
        .clearInitializer()
        .addAllInitializer(
            g.getInitializerList().stream().filter(t -> read.contains(t.getName())).toList())
        .build();
  }
}
