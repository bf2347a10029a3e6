package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.ints;
import static org.espalier.torch.onnx.ScriptCall.number;

import java.util.Arrays;
import org.espalier.torch.onnx.ScriptTable.Sink;

/**
 * What {@link MatrixOperators}, {@link ConvolutionOperators}, {@link PoolingOperators} and {@link
 * NormalizationOperators} run, in TorchScript.
 */
final class ScriptLayers {
  private ScriptLayers() {}

  static void add(Sink table) {
    // The third input is a bias that the compiler joined.
    table.one(
        "MatMul",
        c ->
            c.has(2)
                ? linear(c, "torch.t(" + c.in(1) + ")")
                : "torch.matmul(" + c.in(0) + ", " + c.in(1) + ")");
    table.one("Gemm", ScriptLayers::gemm);
    table.one(OperatorTable.RUNTIME + "FusedMatMul", ScriptLayers::fusedMatMul);
    table.one("Einsum", ScriptLayers::einsum);
    table.unary("Det", "torch.det");
    table.one("Conv", ScriptLayers::conv);
    table.one("ConvTranspose", ScriptLayers::convTranspose);
    table.add("MaxPool", ScriptLayers::maxPool);
    table.one("AveragePool", ScriptLayers::averagePool);
    table.one(
        "GlobalAveragePool",
        c -> "torch.mean(" + c.in(0) + ", " + c.call("_spatial", c.in(0)) + ", True)");
    table.one(
        "GlobalMaxPool",
        c -> "torch.amax(" + c.in(0) + ", " + c.call("_spatial", c.in(0)) + ", True)");
    table.one("BatchNormalization", ScriptLayers::batchNorm);
    table.one(
        "InstanceNormalization",
        c ->
            "torch.instance_norm("
                + c.in(0)
                + ", "
                + c.in(1)
                + ", "
                + c.in(2)
                + ", None, None, True, 0.0, "
                + number(c.node().real("epsilon", 1e-5f))
                + ", False)");
    table.add("LayerNormalization", ScriptLayers::layerNorm);
    table.add("SimplifiedLayerNormalization", ScriptLayers::rootMeanSquareNorm);
    table.add("RMSNormalization", ScriptLayers::rootMeanSquareNorm);
    table.add(OperatorTable.RUNTIME + "SkipLayerNormalization", c -> skipNorm(c, false));
    table.add(OperatorTable.RUNTIME + "SkipSimplifiedLayerNormalization", c -> skipNorm(c, true));
    table.add(OperatorTable.RUNTIME + "EmbedLayerNormalization", ScriptLayers::embedNorm);
    table.one("GroupNormalization", ScriptLayers::groupNorm);
    table.one("LpNormalization", ScriptLayers::lpNorm);
    table.one(
        "LRN",
        c ->
            c.call(
                "_response",
                c.in(0),
                "" + c.node().integer("size", 1),
                number(c.node().real("alpha", 0.0001f) / c.node().integer("size", 1)),
                number(c.node().real("beta", 0.75)),
                number(c.node().real("bias", 1))));
    table.one(
        "MeanVarianceNormalization",
        c -> c.call("_centred", c.in(0), ints(c.node().integers("axes", new long[] {0, 2, 3}))));
    table.add("Dropout", ScriptLayers::dropout);
  }

  /** One call, which libtorch does not take apart as it does addmm in a module. */
  private static String linear(ScriptCall c, String weights) {
    return "torch.linear(" + c.in(0) + ", " + weights + ", " + c.in(2) + ")";
  }

  private static String gemm(ScriptCall c) {
    Node n = c.node();
    double alpha = n.real("alpha", 1);
    double beta = n.real("beta", 1);
    boolean transposeA = n.flag("transA", false);
    boolean transposeB = n.flag("transB", false);
    String a = transposeA ? "torch.t(" + c.in(0) + ")" : c.in(0);
    String b = transposeB ? "torch.t(" + c.in(1) + ")" : c.in(1);
    long[] bias = c.shape(2);
    if (bias != null && bias.length == 1 && bias[0] > 1 && alpha == 1 && beta == 1 && !transposeA) {
      return linear(c, transposeB ? c.in(1) : "torch.t(" + c.in(1) + ")");
    }
    if (c.has(2)) {
      return "torch.addmm("
          + c.in(2)
          + ", "
          + a
          + ", "
          + b
          + ", beta="
          + number(beta)
          + ", alpha="
          + number(alpha)
          + ")";
    }
    String product = "torch.mm(" + a + ", " + b + ")";
    return alpha == 1 ? product : "torch.mul(" + product + ", " + number(alpha) + ")";
  }

  private static String einsum(ScriptCall c) {
    String equation = c.node().text("equation", "");
    if (!equation.matches("[A-Za-z., >-]{1,1000}")) {
      throw c.node().wrong("the equation holds what no equation has");
    }
    return "torch.einsum('" + equation + "', " + c.all() + ")";
  }

  /** The attributes of a window, as {@link Windows} reads them. */
  private record Window(
      long[] kernel, long[] strides, long[] dilations, long[] pads, int mode, boolean ceiling) {
    static Window of(ScriptCall c, boolean withCeiling, boolean withDilations) {
      Node n = c.node();
      String pad = n.choice("auto_pad", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID");
      boolean ceiling = withCeiling && n.flag("ceil_mode", false);
      long[] kernel = n.integers("kernel_shape", null);
      long[] weights = c.shape(1);
      if (kernel == null && weights != null && weights.length > 2) {
        kernel = Arrays.copyOfRange(weights, 2, weights.length);
      }
      if (kernel == null) {
        throw n.unsupported("a kernel whose shape is not known beforehand");
      }
      int axes = kernel.length;
      if (axes < 1 || axes > 3) {
        throw n.wrong(axes + " spatial axes; 1 to 3 can be used");
      }
      long[] strides = n.integers("strides", ScriptShapes.ones(axes));
      long[] dilations = ScriptShapes.ones(axes);
      if (withDilations) {
        dilations = n.integers("dilations", dilations);
      }
      long[] pads = n.integers("pads", new long[2 * axes]);
      if (!pad.equals("NOTSET")) {
        pads = new long[2 * axes];
      }
      if (strides.length != axes || dilations.length != axes || pads.length != 2 * axes) {
        throw n.wrong("strides, dilations or pads have not as many axes as the kernel");
      }
      int mode = pad.equals("SAME_UPPER") ? 1 : pad.equals("SAME_LOWER") ? 2 : 0;
      return new Window(kernel, strides, dilations, pads, mode, ceiling);
    }

    int axes() {
      return kernel.length;
    }

    long[] before() {
      return Arrays.copyOf(pads, axes());
    }

    /** Whether libtorch can pad by itself: known beforehand, alike on both sides. */
    boolean isSymmetric() {
      return mode == 0
          && !ceiling
          && Arrays.equals(before(), Arrays.copyOfRange(pads, axes(), pads.length));
    }

    /** Whether the pads are at most half the kernel, as pools of libtorch demand. */
    boolean isNarrow() {
      for (int i = 0; i < axes(); i++) {
        if (2 * pads[i] > kernel[i]) {
          return false;
        }
      }
      return true;
    }

    /** A local variable with the pads for an input. */
    String geometry(ScriptCall c, String x) {
      return c.let(
          c.call(
              "_geometry",
              x,
              ints(kernel),
              ints(strides),
              ints(dilations),
              ints(pads),
              "" + mode,
              flag(ceiling)));
    }
  }

  private static String conv(ScriptCall c) {
    Window w = Window.of(c, false, true);
    String x = c.in(0);
    boolean symmetric = w.isSymmetric();
    if (!symmetric) {
      x = c.let(c.call("_widened", x, w.geometry(c, x), "0.0", "0.0"));
    }
    return convolution(
        c,
        x,
        c.orNone(2),
        w,
        symmetric ? w.before() : new long[w.axes()],
        false,
        new long[w.axes()]);
  }

  private static String convolution(
      ScriptCall c,
      String x,
      String bias,
      Window w,
      long[] pads,
      boolean transposed,
      long[] beyond) {
    return "torch.convolution("
        + x
        + ", "
        + c.in(1)
        + ", "
        + bias
        + ", "
        + ints(w.strides())
        + ", "
        + ints(pads)
        + ", "
        + ints(w.dilations())
        + ", "
        + flag(transposed)
        + ", "
        + ints(beyond)
        + ", "
        + c.node().integer("group", 1)
        + ")";
  }

  /** libtorch pads both sides alike and pads outputs by less than a stride; the rest is cut or filled. */
  private static String convTranspose(ScriptCall c) {
    Node n = c.node();
    Window w = Window.of(c, false, true);
    int axes = w.axes();
    long[] beyond = n.integers("output_padding", new long[axes]);
    if (n.hasAttribute("output_shape") || w.mode() != 0) {
      throw n.unsupported("a wanted size (output_shape or auto_pad SAME)");
    }
    long[] both = new long[axes];
    long[] low = new long[axes];
    long[] high = new long[axes];
    boolean direct = beyond.length == axes && w.isSymmetric();
    for (int i = 0; i < axes; i++) {
      both[i] = Math.min(w.pads()[i], w.pads()[i + axes]);
      low[i] = both[i] - w.pads()[i];
      high[i] = both[i] - w.pads()[i + axes] + beyond[i];
      direct &= beyond[i] < Math.max(w.strides()[i], w.dilations()[i]);
    }
    if (direct) {
      return convolution(c, c.in(0), c.orNone(2), w, both, true, beyond);
    }
    String y = c.let(convolution(c, c.in(0), "None", w, both, true, new long[axes]));
    String padded = c.call("_padded", y, ints(low), ints(high), "0.0");
    if (!c.has(2)) {
      return padded;
    }
    long[] channels = ScriptShapes.ones(axes + 1);
    channels[0] = -1;
    return "torch.add(" + padded + ", " + c.in(2) + ".reshape(" + ints(channels) + "))";
  }

  private static ScriptValue[] maxPool(ScriptCall c) {
    Window w = Window.of(c, true, true);
    if (c.node().uses(1)) {
      throw c.node().unsupported("the output of indices");
    }
    c.node().flag("storage_order", false);
    String x = c.in(0);
    boolean inside = w.isSymmetric() && w.isNarrow();
    if (!inside) {
      String lowest = "float('-inf')";
      x = c.let(c.call("_widened", x, w.geometry(c, x), lowest, lowest));
    }
    long[] pads = inside ? w.before() : new long[w.axes()];
    String result = pool("max", x, w, pads, ints(w.dilations()) + ", False");
    return new ScriptValue[] {ScriptValue.of(result)};
  }

  private static String averagePool(ScriptCall c) {
    Window w = Window.of(c, true, c.node().opset() >= 19);
    boolean countPads = c.node().flag("count_include_pad", false);
    if (Arrays.stream(w.dilations()).anyMatch(d -> d != 1)) {
      throw c.node().unsupported("dilations of averages");
    }
    String x = c.in(0);
    if (w.isSymmetric() && w.isNarrow()) {
      return average(x, w, w.before(), countPads);
    }
    // The mean of padded values over the share of each window that counts.
    String geometry = w.geometry(c, x);
    String share = countPads ? "1.0" : "0.0";
    String ones = c.let("torch.ones_like(torch.narrow(torch.narrow(" + x + ", 0, 0, 1), 1, 0, 1))");
    String sums = c.let(c.call("_widened", x, geometry, "0.0", "0.0"));
    String counted = c.let(c.call("_widened", ones, geometry, share, "0.0"));
    long[] none = new long[w.axes()];
    return "torch.div("
        + average(sums, w, none, true)
        + ", "
        + average(counted, w, none, true)
        + ")";
  }

  private static String average(String x, Window w, long[] pads, boolean countPads) {
    return pool("avg", x, w, pads, "False, " + flag(countPads));
  }

  /**
   * A call of a pool.
   *
   * @param more arguments behind the pads
   */
  private static String pool(String kind, String x, Window w, long[] pads, String more) {
    return "torch."
        + kind
        + "_pool"
        + w.axes()
        + "d("
        + String.join(", ", x, ints(w.kernel()), ints(w.strides()), ints(pads), more)
        + ")";
  }

  private static String batchNorm(ScriptCall c) {
    Node n = c.node();
    String epsilon = number(n.real("epsilon", 1e-5f));
    double momentum = n.real("momentum", 0.9f);
    if (n.opset() < 9 && !n.flag("spatial", true)) {
      throw n.unsupported("spatial = 0");
    }
    if (n.opset() >= 14 && n.flag("training_mode", false) || n.outputs() > 1) {
      throw n.unsupported("training_mode");
    }
    return "torch.batch_norm("
        + c.in(0)
        + ", "
        + c.in(1)
        + ", "
        + c.in(2)
        + ", "
        + c.in(3)
        + ", "
        + c.in(4)
        + ", self.training, "
        + number(1 - momentum)
        + ", "
        + epsilon
        + ", False)";
  }

  private static ScriptValue[] layerNorm(ScriptCall c) {
    Node n = c.node();
    long axis = n.integer("axis", -1);
    String epsilon = number(n.real("epsilon", 1e-5f));
    if (n.integer("stash_type", 1) != 1) {
      throw n.unsupported("stash_type = " + n.integer("stash_type", 1));
    }
    String x = c.in(0);
    String normalized = c.let(c.call("_normalized", x, "" + axis));
    String scale = c.in(1) + ".expand(" + normalized + ")";
    String bias = c.has(2) ? c.in(2) + ".expand(" + normalized + ")" : "None";
    String arguments = "(" + x + ", " + normalized + ", " + scale + ", " + bias + ", " + epsilon;
    if (n.uses(1) || n.uses(2)) {
      return c.unpack("torch.native_layer_norm" + arguments + ")", 3);
    }
    return new ScriptValue[] {ScriptValue.of("torch.layer_norm" + arguments + ", False)")};
  }

  private static ScriptValue[] rootMeanSquareNorm(ScriptCall c) {
    Node n = c.node();
    String epsilon = number(n.real("epsilon", 1e-5f));
    String x = c.in(0);
    n.integer("stash_type", 1);
    String normalized = c.let(c.call("_normalized", x, "" + n.integer("axis", -1)));
    String scale = c.in(1) + ".expand(" + normalized + ")";
    String y = "torch.rms_norm(" + x + ", " + normalized + ", " + scale + ", " + epsilon + ")";
    String inverse =
        n.uses(1) ? c.call("_inverse_root", x, "len(" + normalized + ")", epsilon) : null;
    return new ScriptValue[] {ScriptValue.of(y), inverse == null ? null : ScriptValue.of(inverse)};
  }

  private static ScriptValue[] skipNorm(ScriptCall c, boolean simplified) {
    String epsilon = number(c.node().real("epsilon", 1e-12f));
    int bias = simplified ? 3 : 4;
    String sum = "torch.add(" + c.in(0) + ", " + c.in(1) + ")";
    sum = c.let(c.has(bias) ? "torch.add(" + sum + ", " + c.in(bias) + ")" : sum);
    String y =
        simplified
            ? "torch.rms_norm("
                + sum
                + ", "
                + c.in(2)
                + ".size(), "
                + c.in(2)
                + ", "
                + epsilon
                + ")"
            : layerNorm(sum, c.in(2), c.orNone(3), epsilon);
    return new ScriptValue[] {ScriptValue.of(y), null, null, ScriptValue.of(sum)};
  }

  private static String layerNorm(String x, String scale, String offset, String epsilon) {
    String arguments = String.join(", ", x, scale + ".size()", scale, offset, epsilon);
    return "torch.layer_norm(" + arguments + ", False)";
  }

  private static ScriptValue[] embedNorm(ScriptCall c) {
    String epsilon = number(c.node().real("epsilon", 1e-12f));
    c.node().integer("mask_index_type", 0);
    String[] parts =
        new String[] {c.in(0), c.orNone(1), c.in(2), c.in(3), c.orNone(4), c.orNone(8)};
    String sum = c.let(c.call("_embedded", parts));
    String lengths = c.call("_lengths", c.in(0), c.orNone(7));
    return new ScriptValue[] {
      ScriptValue.of(layerNorm(sum, c.in(5), c.orNone(6), epsilon)),
      ScriptValue.of(lengths),
      ScriptValue.of(sum)
    };
  }

  private static String fusedMatMul(ScriptCall c) {
    Node n = c.node();
    double alpha = n.real("alpha", 1);
    String a = turned(c, 0, n.flag("transA", false), n.flag("transBatchA", false));
    String b = turned(c, 1, n.flag("transB", false), n.flag("transBatchB", false));
    String product = "torch.matmul(" + a + ", " + b + ")";
    return alpha == 1 ? product : "torch.mul(" + product + ", " + number(alpha) + ")";
  }

  private static String turned(ScriptCall c, int input, boolean last, boolean batch) {
    return last || batch ? c.call("_turned", c.in(input), flag(last), flag(batch)) : c.in(input);
  }

  private static String groupNorm(ScriptCall c) {
    Node n = c.node();
    String epsilon = number(n.real("epsilon", 1e-5f));
    long groups = n.integer("num_groups", 1);
    if (n.opset() >= 21 && n.integer("stash_type", 1) != 1) {
      throw n.unsupported("stash_type = " + n.integer("stash_type", 1));
    }
    String scale = c.in(1);
    String bias = c.in(2);
    if (n.opset() < 21) {
      String each = c.let(c.in(0) + ".size(1) // " + groups);
      scale = "torch.repeat_interleave(" + scale + ", " + each + ")";
      bias = "torch.repeat_interleave(" + bias + ", " + each + ")";
    }
    return "torch.group_norm("
        + c.in(0)
        + ", "
        + groups
        + ", "
        + scale
        + ", "
        + bias
        + ", "
        + epsilon
        + ", False)";
  }

  private static String lpNorm(ScriptCall c) {
    long axis = c.node().integer("axis", -1);
    long p = c.node().integer("p", 2);
    String x = c.in(0);
    return switch ((int) p) {
      case 1 -> "torch.div(" + x + ", torch.sum(torch.abs(" + x + "), [" + axis + "], True))";
      case 2 ->
          "torch.div("
              + x
              + ", torch.sqrt(torch.sum(torch.mul("
              + x
              + ", "
              + x
              + "), ["
              + axis
              + "], True)))";
      default -> throw c.node().unsupported("p = " + p);
    };
  }

  /** Active while the module is being trained, and where the node itself says so. */
  private static ScriptValue[] dropout(ScriptCall c) {
    Node n = c.node();
    String ratio = c.has(1) ? c.real(1) : number(n.opset() < 12 ? n.real("ratio", 0.5) : 0.5);
    if (n.opset() >= 12 && n.hasAttribute("seed")) {
      n.integer("seed", 0);
    }
    String always = c.has(2) ? "bool(" + c.in(2) + ".item())" : "False";
    if (n.uses(1)) {
      return c.unpack(c.call("_dropout", c.in(0), ratio, always), 2);
    }
    return new ScriptValue[] {
      ScriptValue.of(
          "torch.dropout("
              + c.in(0)
              + ", "
              + ratio
              + ", "
              + (c.has(2) ? "self.training or " + always : "self.training")
              + ")")
    };
  }
}
