package org.espalier.torch.script;

import static org.espalier.format.onnx.Attributes.attribute;
import static org.espalier.torch.script.TorchScriptOperators.binary;
import static org.espalier.torch.script.TorchScriptOperators.unary;

import ai.onnx.proto.OnnxMl.AttributeProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.script.ScriptGraph.Ref;
import org.espalier.torch.script.TorchScriptOperators.Table;

/** Calls of layers: products, convolutions, windows, norms and attention. */
final class TorchScriptLayers {
  private TorchScriptLayers() {}

  static void add(Table table) {
    table.add(
        "aten::linear", c -> linear(c, c.tensor(0), c.tensor(1), c.has(2) ? c.tensor(2) : null));
    table.add("aten::addmm", TorchScriptLayers::addmm);
    for (String product : List.of("matmul", "mm", "bmm")) {
      table.add("aten::" + product, c -> binary(c, "MatMul", c.tensor(0), c.tensor(1)));
    }
    for (int axes = 1; axes <= 3; axes++) {
      int spatial = axes;
      table.add("aten::conv" + axes + "d", c -> convolution(c, spatial, 6));
      table.add(
          "aten::conv_transpose" + axes + "d", c -> transposedConvolution(c, spatial, 7, 5, 6));
      table.add("aten::max_pool" + axes + "d", c -> maxPool(c, spatial));
      table.add("aten::avg_pool" + axes + "d", c -> averagePool(c, spatial));
      table.add("aten::adaptive_avg_pool" + axes + "d", TorchScriptLayers::globalAverage);
    }
    for (String name : List.of("aten::convolution", "aten::_convolution")) {
      table.add(name, TorchScriptLayers::generalConvolution);
    }
    table.add("aten::scaled_dot_product_attention", TorchScriptLayers::attention);
    table.add("aten::batch_norm", TorchScriptLayers::batchNorm);
    table.add("aten::layer_norm", TorchScriptLayers::layerNorm);
  }

  private static Ref attention(TorchScriptCall c) {
    boolean plain = !c.has(3) && c.number(4) == 0 && !c.flag(5) && !(c.size() > 7 && c.flag(7));
    Ref q = c.tensor(0);
    Ref k = c.tensor(1);
    if (!plain || q.rank() < 3 || k.rank() != q.rank()) {
      throw c.unsupported("a mask, dropout or tensors of unknown rank");
    }
    Ref root;
    if (c.size() > 6 && c.has(6)) {
      root = c.real(1 / c.number(6));
    } else {
      Ref shape = c.emit("Shape", 1, q.name());
      Ref width = c.emitted("Gather", 1, List.of(shape.name(), c.longs(q.rank() - 1).name()));
      root =
          c.emit(
              "Sqrt", 1, c.emitted("Cast", 1, List.of(width.name()), attribute("to", 1L)).name());
    }
    long[] perm = LongStream.range(0, k.rank()).toArray();
    perm[perm.length - 2] = perm.length - 1;
    perm[perm.length - 1] = perm.length - 2;
    Ref turned = c.emitted("Transpose", k.rank(), List.of(k.name()), attribute("perm", perm));
    Ref scores = binary(c, "Div", c.emit("MatMul", q.rank(), q.name(), turned.name()), root);
    Ref shares = c.emitted("Softmax", q.rank(), List.of(scores.name()), attribute("axis", -1L));
    return c.emit("MatMul", q.rank(), shares.name(), c.tensor(2).name());
  }

  /** A weight that is constant keeps its layout where the input is a matrix. */
  private static Ref linear(TorchScriptCall c, Ref x, Ref w, Ref bias) {
    if (w.rank() != 2) {
      throw c.unsupported("a weight that is no matrix");
    }
    if (x.rank() == 2 && bias != null && bias.rank() == 1) {
      return c.emitted(
          "Gemm", 2, List.of(x.name(), w.name(), bias.name()), attribute("transB", 1L));
    }
    Ref turned =
        w.constant() != null
            ? c.constant(w.constant().t().contiguous(), w.name() + "_transposed")
            : c.emitted("Transpose", 2, List.of(w.name()), attribute("perm", new long[] {1, 0}));
    Ref product = c.emit("MatMul", x.rank(), x.name(), turned.name());
    return bias == null ? product : binary(c, "Add", product, bias);
  }

  private static Ref addmm(TorchScriptCall c) {
    Ref bias = c.tensor(0);
    return c.emitted(
        "Gemm",
        2,
        List.of(c.tensor(1).name(), c.tensor(2).name(), bias.name()),
        attribute("beta", c.number(3)),
        attribute("alpha", c.number(4)));
  }

  private static long[] filled(TorchScriptCall c, int argument, int axes) {
    if (c.argument(argument) instanceof String text) {
      throw c.unsupported("the padding '" + text + "'");
    }
    long[] given = c.integers(argument);
    return given.length == 1 && axes > 1
        ? LongStream.generate(() -> given[0]).limit(axes).toArray()
        : given;
  }

  private static long[] twice(long[] pads) {
    return LongStream.concat(Arrays.stream(pads), Arrays.stream(pads)).toArray();
  }

  private static Ref convolution(TorchScriptCall c, int axes, int groups) {
    List<String> inputs = new ArrayList<>(List.of(c.tensor(0).name(), c.tensor(1).name()));
    if (c.has(2)) {
      inputs.add(c.tensor(2).name());
    }
    return c.emitted(
        "Conv",
        axes + 2,
        inputs,
        attribute("strides", filled(c, 3, axes)),
        attribute("pads", twice(filled(c, 4, axes))),
        attribute("dilations", filled(c, 5, axes)),
        attribute("group", c.integer(groups)));
  }

  private static Ref transposedConvolution(
      TorchScriptCall c, int axes, int dilations, int outputPadding, int groups) {
    List<String> inputs = new ArrayList<>(List.of(c.tensor(0).name(), c.tensor(1).name()));
    if (c.has(2)) {
      inputs.add(c.tensor(2).name());
    }
    return c.emitted(
        "ConvTranspose",
        axes + 2,
        inputs,
        attribute("strides", filled(c, 3, axes)),
        attribute("pads", twice(filled(c, 4, axes))),
        attribute("output_padding", filled(c, outputPadding, axes)),
        attribute("dilations", filled(c, dilations, axes)),
        attribute("group", c.integer(groups)));
  }

  private static Ref generalConvolution(TorchScriptCall c) {
    int axes = c.tensor(1).rank() - 2;
    if (axes < 1) {
      throw c.unsupported("a kernel of unknown rank");
    }
    return c.flag(6) ? transposedConvolution(c, axes, 5, 7, 8) : convolution(c, axes, 8);
  }

  private static AttributeProto[] window(TorchScriptCall c, int axes, AttributeProto... others) {
    long[] kernel = filled(c, 1, axes);
    // Without a stride the windows do not overlap.
    long[] strides = c.integers(2).length == 0 ? kernel : filled(c, 2, axes);
    List<AttributeProto> all = new ArrayList<>(List.of(others));
    all.add(attribute("kernel_shape", kernel));
    all.add(attribute("strides", strides));
    all.add(attribute("pads", twice(filled(c, 3, axes))));
    return all.toArray(AttributeProto[]::new);
  }

  private static Ref maxPool(TorchScriptCall c, int axes) {
    return unary(
        c,
        "MaxPool",
        window(
            c,
            axes,
            attribute("dilations", filled(c, 4, axes)),
            attribute("ceil_mode", c.flag(5) ? 1L : 0L)));
  }

  private static Ref averagePool(TorchScriptCall c, int axes) {
    if (c.flag(4) || c.has(6)) {
      throw c.unsupported("ceil_mode or a divisor");
    }
    return unary(
        c, "AveragePool", window(c, axes, attribute("count_include_pad", c.flag(5) ? 1L : 0L)));
  }

  private static Ref globalAverage(TorchScriptCall c) {
    if (Arrays.stream(c.integers(1)).anyMatch(size -> size != 1)) {
      throw c.unsupported("an output of more than one element");
    }
    return unary(c, "GlobalAveragePool");
  }

  private static Ref batchNorm(TorchScriptCall c) {
    if (c.flag(5) || !c.has(3) || !c.has(4)) {
      throw c.unsupported("the statistics of the batch");
    }
    Ref mean = c.tensor(3);
    if (mean.constant() == null) {
      throw c.unsupported("statistics that are computed");
    }
    Tensor ones = torch.ones_like(mean.constant());
    Ref scale = c.has(1) ? c.tensor(1) : c.constant(ones, "ones");
    Ref shift = c.has(2) ? c.tensor(2) : c.constant(ones.mul(new Scalar(0)), "zeros");
    Ref x = c.tensor(0);
    return c.emitted(
        "BatchNormalization",
        x.rank(),
        List.of(x.name(), scale.name(), shift.name(), mean.name(), c.tensor(4).name()),
        attribute("epsilon", c.number(7)),
        attribute("momentum", 1 - c.number(6)));
  }

  private static Ref layerNorm(TorchScriptCall c) {
    if (!c.has(2)) {
      throw c.unsupported("no weight");
    }
    Ref x = c.tensor(0);
    List<String> inputs = new ArrayList<>(List.of(x.name(), c.tensor(2).name()));
    if (c.has(3)) {
      inputs.add(c.tensor(3).name());
    }
    return c.emitted(
        "LayerNormalization",
        x.rank(),
        inputs,
        attribute("axis", (long) -c.list(1).size()),
        attribute("epsilon", c.number(4)));
  }
}
