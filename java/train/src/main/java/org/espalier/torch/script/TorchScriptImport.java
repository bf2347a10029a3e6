package org.espalier.torch.script;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Block;
import org.bytedeco.pytorch.Graph;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueOptional;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.JitNode;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.StringVectorOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.bytedeco.pytorch.graph_node_list;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.onnx.OnnxGraph;

/**
 * Reads a TorchScript module as an ONNX graph, as it is in evaluation: libtorch inlines its methods and folds
 * what depends on no input, and each call that is left becomes a node by {@link TorchScriptOperators}.
 * Parameters keep their names. The graph must give what the module gives on two batches of made-up examples,
 * or it is refused.
 */
public final class TorchScriptImport {
  /** Between libtorch's calls and the graph's, relative to the largest output. */
  private static final double AGREEMENT = 1e-4;

  private final String name;
  private final ScriptGraph graph;

  /** Nodes that are read here, and are no calls of the table. */
  private static final Set<String> READ_HERE = Set.of("prim::Constant", "prim::Loop", "prim::If");

  /** The most rounds of all loops together. */
  private static final int MOST_ROUNDS = 10_000;

  private int rounds;

  /** What is known of a value of the module's graph, by its number. */
  private final Map<Long, Object> values = new HashMap<>();

  private TorchScriptImport(String name, TorchScriptModel model) {
    this.name = name;
    this.graph = new ScriptGraph(name, model.module());
  }

  /**
   * Reads a module with one input.
   *
   * @param example the shape of an example, without the batch
   * @throws InputException where the file is no module, calls what the table does not know (all of it in one
   *     message), or the graph does not give what the module gives
   */
  public static OnnxModel read(Path file, List<Long> example) {
    try (TorchScriptModel model = TorchScriptModel.read(file);
        PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      if (model.inputNames().size() != 1) {
        throw new InputException(
            file + " has the inputs " + model.inputNames() + "; labelled examples have one");
      }
      model.train(false);
      OnnxModel graph = new TorchScriptImport(file.toString(), model).read(model, example);
      compare(file, model, graph, example);
      return graph;
    }
  }

  private OnnxModel read(TorchScriptModel model, List<Long> example) {
    Graph g;
    try {
      JitModule frozen = torch.freeze(model.module(), new StringVectorOptional(), false);
      g = frozen.get_method("forward").graph();
    } catch (RuntimeException e) {
      throw new InputException(
          name + " cannot be inlined by libtorch: " + Libtorch.firstLine(e), e);
    }
    refuseUnknown(g);
    values.put(g.inputs().at(1).unique(), graph.input(model.inputNames().get(0), example));
    read(g.nodes());
    Object result = values.get(g.outputs().at(0).unique());
    Object first = result instanceof List<?> tuple && !tuple.isEmpty() ? tuple.get(0) : result;
    if (!(first instanceof ScriptGraph.Ref output)) {
      throw new InputException(name + " returns no tensor that depends on its input");
    }
    return graph.toModel(output);
  }

  private void refuseUnknown(Graph g) {
    Set<String> unknown = new TreeSet<>();
    findUnknown(g.nodes(), unknown);
    if (!unknown.isEmpty()) {
      throw unknown(String.join(", ", unknown));
    }
  }

  private InputException unknown(String calls) {
    return new InputException(
        name
            + " calls what cannot be read as a graph: "
            + calls
            + "; export the model to ONNX instead");
  }

  private static void findUnknown(graph_node_list nodes, Set<String> unknown) {
    JitNode end = nodes.end().multiply();
    for (JitNode n = nodes.begin().multiply(); !n.equals(end); n = n.next()) {
      String kind = kind(n);
      if (!READ_HERE.contains(kind) && TorchScriptOperators.find(kind) == null) {
        unknown.add(kind);
      }
      // Of the branches of an If one is not read; what the other calls is looked at then.
      if (kind.equals("prim::Loop")) {
        findUnknown(n.blocks().at(0).nodes(), unknown);
      }
    }
  }

  private static String kind(JitNode n) {
    return n.kind().toQualString().getString();
  }

  private void read(graph_node_list nodes) {
    JitNode end = nodes.end().multiply();
    for (JitNode n = nodes.begin().multiply(); !n.equals(end); n = n.next()) {
      read(n);
    }
  }

  private void read(JitNode n) {
    String kind = kind(n);
    if (kind.equals("prim::Loop")) {
      unroll(n);
      return;
    } else if (kind.equals("prim::If")) {
      choose(n);
      return;
    }
    if (kind.equals("prim::Constant")) {
      values.put(n.output().unique(), constant(torch.toIValue(n.output())));
      return;
    }
    List<Object> arguments = new ArrayList<>();
    for (long i = 0; i < n.inputs().size(); i++) {
      arguments.add(values.get(n.input(i).unique()));
    }
    TorchScriptCall call = new TorchScriptCall(graph, kind, arguments);
    TorchScriptOperators.Entry entry = TorchScriptOperators.find(kind);
    if (entry == null) {
      throw unknown(kind);
    }
    Object result = entry.read(call);
    int outputs = (int) n.outputs().size();
    if (!kind.endsWith("Unpack")) {
      values.put(n.output().unique(), result);
    } else if (result instanceof List<?> all && all.size() == outputs) {
      for (int i = 0; i < outputs; i++) {
        values.put(n.output(i).unique(), all.get(i));
      }
    } else {
      throw call.unsupported("something that is no list of " + outputs);
    }
  }

  /** A loop over what the shape of an example fixes: axes, for the most part. */
  private void unroll(JitNode n) {
    TorchScriptCall call = new TorchScriptCall(graph, "prim::Loop", List.of());
    boolean counts = Boolean.TRUE.equals(values.get(n.input(1).unique()));
    if (!counts || !(values.get(n.input(0).unique()) instanceof Long trips)) {
      throw call.unsupported("a number of rounds that is computed");
    }
    Block body = n.blocks().at(0);
    List<Object> carried = new ArrayList<>();
    for (long i = 2; i < n.inputs().size(); i++) {
      carried.add(values.get(n.input(i).unique()));
    }
    for (long round = 0; round < trips; round++) {
      if (++rounds > MOST_ROUNDS) {
        throw call.unsupported("more than " + MOST_ROUNDS + " rounds");
      }
      values.put(body.inputs().at(0).unique(), round);
      for (int i = 0; i < carried.size(); i++) {
        values.put(body.inputs().at(i + 1).unique(), carried.get(i));
      }
      read(body.nodes());
      if (!Boolean.TRUE.equals(values.get(body.outputs().at(0).unique()))) {
        throw call.unsupported("an end that is computed");
      }
      for (int i = 0; i < carried.size(); i++) {
        carried.set(i, values.get(body.outputs().at(i + 1).unique()));
      }
    }
    for (int i = 0; i < carried.size(); i++) {
      values.put(n.output(i).unique(), carried.get(i));
    }
  }

  private void choose(JitNode n) {
    if (!(values.get(n.input(0).unique()) instanceof Boolean condition)) {
      throw new TorchScriptCall(graph, "prim::If", List.of())
          .unsupported("a condition that is computed");
    }
    Block chosen = n.blocks().at(condition ? 0 : 1);
    read(chosen.nodes());
    for (long i = 0; i < n.outputs().size(); i++) {
      values.put(n.output(i).unique(), values.get(chosen.outputs().at(i).unique()));
    }
  }

  /** A value of Java, a {@link ScriptGraph.Ref}, or {@link TorchScriptOperators#NONE}. */
  private Object constant(IValueOptional optional) {
    if (!optional.has_value() || optional.get().isNone()) {
      return TorchScriptOperators.NONE;
    }
    IValue v = optional.get();
    if (v.isTensor()) {
      return graph.constant(v.toTensor(), "constant");
    } else if (v.isInt()) {
      return v.toInt();
    } else if (v.isDouble()) {
      return v.toDouble();
    } else if (v.isBool()) {
      return v.toBool();
    } else if (v.isString()) {
      return v.toStringRef().getString();
    } else if (v.isIntList()) {
      List<Object> list = new ArrayList<>();
      for (long i = 0; i < v.toListRef().size(); i++) {
        list.add(v.toListRef().get(i).toInt());
      }
      return list;
    }
    return v; // something that no entry of the table takes
  }

  /** Batches of 2 and of 3: a graph with a size in it would fit only one. */
  private static void compare(
      Path file, TorchScriptModel model, OnnxModel made, List<Long> example) {
    try (OnnxGraph graph = new OnnxGraph(made)) {
      for (long batch = 2; batch <= 3; batch++) {
        long[] shape = new long[example.size() + 1];
        shape[0] = batch;
        long elements = batch;
        for (int i = 1; i < shape.length; i++) {
          shape[i] = example.get(i - 1);
          elements *= shape[i];
        }
        Tensor x =
            torch
                .arange(new Scalar(elements))
                .to(ScalarType.Float)
                .mul(new Scalar(0.7))
                .sin()
                .reshape(shape);
        Tensor expected =
            model.forward(Map.of(model.inputNames().get(0), x)).values().iterator().next();
        Tensor actual =
            graph.forward(Map.of(graph.inputNames().get(0), x)).values().iterator().next();
        boolean fits = Arrays.equals(expected.shape(), actual.shape());
        double difference =
            fits ? actual.sub(expected).abs().max().item_double() : Double.POSITIVE_INFINITY;
        double largest = Math.max(1, expected.abs().max().item_double());
        if (!(difference <= AGREEMENT * largest)) {
          throw new InputException(
              file
                  + " cannot be read as a graph: the graph gives something else than the module ("
                  + (fits
                      ? "a difference of " + difference
                      : "the shape " + Arrays.toString(actual.shape()))
                  + "); export the model to ONNX instead");
        }
      }
    }
  }
}
