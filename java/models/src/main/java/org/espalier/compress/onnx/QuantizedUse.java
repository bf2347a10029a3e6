package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;

/**
 * A use of a weight that is quantized: by a product, or by a look-up.
 *
 * @param name what the weight is called
 * @param value the constant that holds it
 */
record QuantizedUse(String name, String value, Use use) {
  /**
   * Why a use of a weight stays as it is.
   *
   * @param n its node; null where that is in no main graph
   * @param embeddings whether look-ups are quantized
   * @return null if it can be quantized
   */
  static String obstacle(
      OnnxModel model, OnnxWeight weight, Use use, NodeProto n, boolean embeddings) {
    OnnxInitializer w = model.constant(weight.value());
    if (w.elements() == 0) {
      return "it has no elements";
    }
    if (n == null) {
      return "it lies in a branch of If or the body of a loop, where no ranges are observed";
    }
    if (use.kind() == Kind.EMBEDDING) {
      return embeddings
          ? EmbeddingTables.obstacle(model, weight, use)
          : "embeddings are left as they are";
    }
    if (!seesFloat(model, w, use)) {
      return "its arithmetic is not float32";
    }
    switch (use.kind()) {
      case MATMUL -> {
        return use.input() == 1 ? null : "it is the left factor";
      }
      case GEMM -> {
        boolean plain =
            use.input() == 1
                && Attributes.integer(n, "transA", 0) == 0
                && Attributes.real(n, "alpha", 1) == 1
                && Attributes.real(n, "beta", 1) == 1;
        return plain && biasIsPlain(model, n, w.dims()[use.outputAxis()])
            ? null
            : "its Gemm transposes A, has factors or a bias that is no constant vector";
      }
      case CONV -> {
        return biasIsPlain(model, n, w.dims()[use.outputAxis()])
            ? null
            : "its Conv has a bias that is no constant vector";
      }
      default -> {
        return Nodes.onlyFloat(n);
      }
    }
  }

  private static boolean seesFloat(OnnxModel model, OnnxInitializer w, Use use) {
    DataType type = w.type();
    Map<String, NodeProto> producers = model.producers();
    for (String value : use.path().subList(1, use.path().size())) {
      NodeProto n = producers.get(value);
      if (n.getOpType().equals("Cast")) {
        type = DataType.forNumber((int) Attributes.integer(n, "to", 0));
      }
    }
    return type == DataType.FLOAT;
  }

  private static boolean biasIsPlain(OnnxModel model, NodeProto n, long channels) {
    if (n.getInputCount() < 3 || n.getInput(2).isEmpty()) {
      return true;
    }
    return isBias(model, n.getInput(2), channels);
  }

  /** Whether a value is a constant of float32 with one number for each of the channels, which lie along its last axis. */
  static boolean isBias(OnnxModel model, String value, long channels) {
    OnnxInitializer bias = model.constant(value);
    return bias != null
        && bias.type() == DataType.FLOAT
        && bias.elements() == channels
        && bias.dims().length > 0
        && bias.dims()[bias.dims().length - 1] == channels;
  }

  /** Whether it multiplies channels with factors that equalization found, and is no weight of the model. */
  boolean isChannelwise() {
    return ConvEqualization.isChannelwise(value);
  }

  /** The same product with an initializer of its own, in the layout that its node sees, for training to change. */
  QuantizedUse makeLatent(OnnxModel model, OnnxModel.Names names) {
    OnnxInitializer w = model.constant(value);
    float[] values = new float[Math.toIntExact(w.elements())];
    Permutation.apply(w.floats(), w.dims(), use.axes()).get(values);
    String latent = names.unique(name + TrainableQuantizer.LATENT);
    model.addInitializer(OnnxInitializer.floats(latent, dims(model), values));
    Use direct =
        new Use(
            use.kind(),
            use.node(),
            use.input(),
            use.axes().indexOf(use.outputAxis()),
            use.axes().indexOf(use.reductionAxis()),
            IntStream.range(0, use.axes().size()).boxed().toList(),
            use.groups(),
            List.of(latent));
    return new QuantizedUse(name, latent, direct);
  }

  /** The bias of a product of two factors; null where it has none. */
  static String bias(NodeProto n) {
    return n.getInputCount() > 2 && !n.getInput(2).isEmpty() ? n.getInput(2) : null;
  }

  /** The dimensions of the weight in the layout that its node sees. */
  long[] dims(OnnxModel model) {
    long[] dims = model.constant(value).dims();
    return use.axes().stream().mapToLong(a -> dims[a]).toArray();
  }

  /** The axis of the scales in the layout that the node sees; −1 where there is one scale. */
  int scaleAxis() {
    // The runtime knows scales of columns for matrices only.
    boolean perChannel = use.kind() != Kind.MATMUL || use.axes().size() == 2;
    return perChannel ? use.axes().indexOf(use.outputAxis()) : -1;
  }

  /**
   * The smallest scales at which the bias has an int32 form: its integers stay below 2^30, and its step, the
   * product of the scales, is a normal float. Real models have channels whose weights are as good as 0.
   *
   * @param bias null where it has none
   */
  float[] minimumScales(OnnxModel model, String bias, float activationScale) {
    int axis = scaleAxis();
    float[] minimum = new float[axis < 0 ? 1 : (int) dims(model)[axis]];
    if (bias == null) {
      return minimum;
    }
    FloatBuffer b = model.constant(bias).floats();
    for (int c = 0; c < minimum.length; c++) {
      float smallest = 2 * Float.MIN_NORMAL / activationScale;
      minimum[c] = Math.max(smallest, Math.abs(b.get(c)) / activationScale * 0x1p-30f);
      if (!(minimum[c] <= Float.MAX_VALUE)) {
        throw new InputException(
            "the bias "
                + bias
                + " is "
                + b.get(c)
                + " in channel "
                + c
                + ", which has no int32 form beside activations in steps of "
                + activationScale);
      }
    }
    return minimum;
  }

  /**
   * The nearest integers, in the layout that the node sees.
   *
   * @param minimum see {@link #minimumScales}
   */
  Int8Weights nearest(OnnxModel model, int qmax, float[] minimum) {
    OnnxInitializer w = model.constant(value);
    int axis = scaleAxis();
    FloatBuffer floats = Permutation.apply(w.floats(), w.dims(), use.axes());
    return axis >= 0
        ? Int8Weights.of(name, floats, dims(model), axis, qmax, minimum)
        : Int8Weights.of(name, floats, new long[] {1, w.elements()}, 0, qmax, minimum);
  }
}
