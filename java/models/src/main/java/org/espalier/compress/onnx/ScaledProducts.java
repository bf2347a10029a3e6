package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;

/**
 * Products whose scales of outputs are multiplied behind them, as those of checkpoints of floats of 8 bits are:
 *
 * <pre>y = (x · Wᵀ) · s   becomes   y = x · (s · W)ᵀ</pre>
 *
 * <p>The magnitude of such a weight says nothing of how much it counts beside those of other layers, and a step that others take
 * moves it by next to nothing: so this comes before weights are pruned or trained.
 */
public final class ScaledProducts {
  /** What scales of such checkpoints are called. */
  private static final List<String> SCALES = List.of(".weight_scale", ".weight_scale_inv");

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;
  private final Set<String> outputs;

  private ScaledProducts(OnnxModel model) {
    this.model = model;
    this.producers = model.producers();
    this.consumers = model.consumers();
    this.outputs = model.outputNames();
  }

  /**
   * Makes the scales of a model part of its weights, which have the type then that they were cast to.
   *
   * @return a line for people; empty where there are none
   */
  public static Optional<String> fold(OnnxModel model) {
    int folded = new ScaledProducts(model).fold();
    return folded == 0
        ? Optional.empty()
        : Optional.of(
            folded
                + (folded == 1
                    ? " weight was scaled behind its product: the scale is part of it now"
                    : " weights were scaled behind their products: the scales are part of them"
                        + " now"));
  }

  private int fold() {
    Map<String, String> made = new HashMap<>(); // what a product gives from now on
    Set<String> gone = new HashSet<>();
    Map<String, String> renamed = new HashMap<>(); // Casts of weights that are float32 now
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (weight.isShared() || weight.uses().get(0).kind() != OnnxWeight.Kind.MATMUL) {
        continue;
      }
      String product = weight.uses().get(0).node();
      NodeProto scaling = scaling(product);
      OnnxInitializer stored = model.initializer(weight.value());
      OnnxInitializer scales = scaling == null ? null : scales(scaling, product);
      if (stored == null
          || scales == null
          || scales.elements() != 1 && scales.elements() != stored.dims()[weight.outputAxis()]
          || stored.float32Bytes() > Integer.MAX_VALUE) {
        continue;
      }
      List<NodeProto> casts =
          consumers.getOrDefault(stored.name(), List.of()).stream()
              .filter(n -> OnnxModel.isOwn(n, "Cast"))
              .toList();
      Set<DataType> types =
          casts.stream()
              .map(n -> DataType.forNumber((int) Attributes.integer(n, "to", 0)))
              .collect(Collectors.toSet());
      DataType type = types.isEmpty() ? stored.type() : types.iterator().next();
      if (types.size() > 1 || type != DataType.FLOAT && !HalfPrecision.isHalf(type)) {
        continue;
      }
      OnnxInitializer whole = scaled(stored, scales.floats(), weight.outputAxis());
      model.replaceInitializer(type == DataType.FLOAT ? whole : whole.rounded(type));
      made.put(product, scaling.getOutput(0));
      gone.add(scaling.getOutput(0));
      casts.forEach(n -> renamed.put(n.getOutput(0), stored.name()));
    }
    if (!made.isEmpty()) {
      List<NodeProto> nodes = new ArrayList<>();
      for (NodeProto n : model.nodes()) {
        String first = n.getOutputCount() == 0 ? "" : n.getOutput(0);
        if (!gone.contains(first) && !renamed.containsKey(first)) {
          NodeProto kept =
              made.containsKey(first) ? n.toBuilder().setOutput(0, made.get(first)).build() : n;
          nodes.add(InnerGraphs.renamed(kept, renamed));
        }
      }
      model.setNodes(nodes);
      RuntimeForm.removeUnused(model);
    }
    return made.size();
  }

  /** The Mul that alone reads a product; null where there is none. */
  private NodeProto scaling(String product) {
    List<NodeProto> readers = consumers.getOrDefault(product, List.of());
    return readers.size() == 1
            && OnnxModel.isOwn(readers.get(0), "Mul")
            && !outputs.contains(product)
        ? readers.get(0)
        : null;
  }

  /** By what it multiplies a product; null where that is no scale of a weight. */
  private OnnxInitializer scales(NodeProto scaling, String product) {
    String other = scaling.getInput(scaling.getInput(0).equals(product) ? 1 : 0);
    NodeProto cast = producers.get(other);
    OnnxInitializer scales =
        model.initializer(cast != null && OnnxModel.isOwn(cast, "Cast") ? cast.getInput(0) : other);
    return scales != null && scales.isFloat() && SCALES.stream().anyMatch(scales.name()::endsWith)
        ? scales
        : null;
  }

  private static OnnxInitializer scaled(OnnxInitializer stored, FloatBuffer scales, int axis) {
    long[] dims = stored.dims();
    int inner = 1;
    for (int i = axis + 1; i < dims.length; i++) {
      inner *= (int) dims[i];
    }
    FloatBuffer values = stored.floats();
    int count = values.remaining();
    ByteBuffer bytes = ByteBuffer.allocateDirect(4 * count).order(ByteOrder.LITTLE_ENDIAN);
    FloatBuffer made = bytes.asFloatBuffer();
    for (int i = 0; i < count; i++) {
      int scale = scales.limit() == 1 ? 0 : i / inner % (int) dims[axis];
      made.put(i, values.get(values.position() + i) * scales.get(scale));
    }
    return OnnxInitializer.of(stored.name(), DataType.FLOAT, dims, bytes);
  }
}
