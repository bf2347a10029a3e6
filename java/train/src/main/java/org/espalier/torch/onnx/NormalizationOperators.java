package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import org.bytedeco.pytorch.DoubleOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.T_TensorTensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Norms, and Dropout, which like batch norms depends on whether the model is being trained. */
final class NormalizationOperators {
  /** A step that the compiler makes of the nodes that spell a layer norm over the last axis out. */
  static final Operator LAYER_NORM =
      OperatorTable.single("LayerNormalization", 1, NormalizationOperators::lastAxisNorm);

  private NormalizationOperators() {}

  static void add(Sink table) {
    table.add(
        OperatorTable.several("BatchNormalization", 7, NormalizationOperators::batchNorm)
            .asOpaque());
    table.one("InstanceNormalization", 6, NormalizationOperators::instanceNorm);
    // Since set 17; ONNX Runtime has both, under the same name, in all sets.
    table.add(OperatorTable.several("LayerNormalization", 1, NormalizationOperators::layerNorm));
    table.one("GroupNormalization", 18, NormalizationOperators::groupNorm);
    table.one("LpNormalization", 1, NormalizationOperators::lpNorm);
    table.one("LRN", 1, NormalizationOperators::localResponseNorm);
    table.one("MeanVarianceNormalization", 9, NormalizationOperators::meanVariance);
    table.add(
        OperatorTable.several(
            "SimplifiedLayerNormalization", 1, NormalizationOperators::rootMeanSquareNorm));
    table.add(
        OperatorTable.several("RMSNormalization", 23, NormalizationOperators::rootMeanSquareNorm));
    table.add(
        OperatorTable.several(
            OperatorTable.RUNTIME + "SkipLayerNormalization", 1, n -> skipNorm(n, false)));
    table.add(
        OperatorTable.several(
            OperatorTable.RUNTIME + "SkipSimplifiedLayerNormalization", 1, n -> skipNorm(n, true)));
    table.add(
        OperatorTable.several(
            OperatorTable.RUNTIME + "EmbedLayerNormalization",
            1,
            NormalizationOperators::embedNorm));
    table.add(
        OperatorTable.several("Dropout", 7, NormalizationOperators::dropout)
            .reading(1, 2)
            .asOpaque());
  }

  private static Function<Inputs, Tensor> lastAxisNorm(Node n) {
    double epsilon = n.real("epsilon", 0);
    return in ->
        torch.layer_norm(
            in.get(0), in.get(1).shape(), in.optional(1), in.optional(2), epsilon, false);
  }

  private static Kernel batchNorm(Node n) {
    double epsilon = n.real("epsilon", 1e-5f);
    // ONNX weighs the old statistics, libtorch the new ones.
    double momentum = n.real("momentum", 0.9f);
    boolean always = n.opset() >= 14 && n.flag("training_mode", false);
    if (n.opset() < 9) {
      if (!n.flag("spatial", true)) {
        throw n.unsupported("spatial = 0");
      }
    }
    if (n.outputs() > 1 && !always) {
      throw n.unsupported("an output of statistics without training_mode");
    }
    return in -> {
      Tensor x = in.get(0);
      if (!always) {
        return new Tensor[] {
          torch.batch_norm(
              x,
              in.optional(1),
              in.optional(2),
              in.optional(3),
              in.optional(4),
              in.isTraining(),
              1 - momentum,
              epsilon,
              false)
        };
      }
      long[] axes = new long[(int) x.dim() - 1];
      Arrays.setAll(axes, i -> i == 0 ? 0 : i + 1);
      Tensor mean = x.mean(axes, false, new ScalarTypeOptional());
      Tensor square = x.mul(x).mean(axes, false, new ScalarTypeOptional());
      Tensor variance = square.sub(mean.mul(mean));
      Tensor y =
          torch.batch_norm(
              x,
              in.optional(1),
              in.optional(2),
              new TensorOptional(),
              new TensorOptional(),
              true,
              1 - momentum,
              epsilon,
              false);
      return new Tensor[] {
        y, blend(in.get(3), mean, momentum), blend(in.get(4), variance, momentum)
      };
    };
  }

  private static Tensor blend(Tensor old, Tensor now, double momentum) {
    return old.mul(new Scalar(momentum)).add(now.mul(new Scalar(1 - momentum)));
  }

  private static Function<Inputs, Tensor> instanceNorm(Node n) {
    double epsilon = n.real("epsilon", 1e-5f);
    return in ->
        torch.instance_norm(
            in.get(0),
            in.optional(1),
            in.optional(2),
            new TensorOptional(),
            new TensorOptional(),
            true,
            0,
            epsilon,
            false);
  }

  private static Kernel layerNorm(Node n) {
    long axis = n.integer("axis", -1);
    double epsilon = n.real("epsilon", 1e-5f);
    if (n.integer("stash_type", 1) != 1) {
      throw n.unsupported("stash_type = " + n.integer("stash_type", 1));
    }
    boolean statistics = n.uses(1) || n.uses(2);
    return in -> {
      Tensor x = in.get(0);
      long[] shape = x.shape();
      int from = (int) (axis < 0 ? axis + shape.length : axis);
      long[] normalized = Arrays.copyOfRange(shape, from, shape.length);
      TensorOptional scale = new TensorOptional(in.get(1).expand(normalized));
      TensorOptional bias =
          in.has(2) ? new TensorOptional(in.get(2).expand(normalized)) : new TensorOptional();
      if (!statistics) {
        return new Tensor[] {torch.layer_norm(x, normalized, scale, bias, epsilon, false)};
      }
      T_TensorTensorTensor_T all = torch.native_layer_norm(x, normalized, scale, bias, epsilon);
      return new Tensor[] {new Tensor(all.get0()), new Tensor(all.get1()), new Tensor(all.get2())};
    };
  }

  /** x / sqrt(mean(x²) + ε) · γ over the axes from {@code axis} on. */
  private static Kernel rootMeanSquareNorm(Node n) {
    long axis = n.integer("axis", -1);
    double epsilon = n.real("epsilon", 1e-5f);
    if (n.integer("stash_type", 1) != 1) {
      throw n.unsupported("stash_type = " + n.integer("stash_type", 1));
    }
    boolean statistics = n.uses(1);
    return in -> {
      Tensor x = in.get(0);
      long[] shape = x.shape();
      int from = (int) (axis < 0 ? axis + shape.length : axis);
      long[] normalized = Arrays.copyOfRange(shape, from, shape.length);
      Tensor y = rootMeanSquareNorm(x, in.get(1).expand(normalized), epsilon);
      if (!statistics) {
        return new Tensor[] {y};
      }
      long[] axes = new long[normalized.length];
      Arrays.setAll(axes, i -> from + i);
      Tensor squares = x.mul(x).mean(axes, true, new ScalarTypeOptional());
      return new Tensor[] {y, squares.add(new Scalar(epsilon)).rsqrt()};
    };
  }

  private static Tensor rootMeanSquareNorm(Tensor x, Tensor scale, double epsilon) {
    return torch.rms_norm(x, scale.shape(), new TensorOptional(scale), new DoubleOptional(epsilon));
  }

  /**
   * The norm of a sum of two, or of three with a bias; the sum is an output too.
   *
   * @param simplified whether it is a root mean square norm, which has no offset
   */
  private static Kernel skipNorm(Node n, boolean simplified) {
    double epsilon = n.real("epsilon", 1e-12f);
    if (n.uses(1) || n.uses(2)) {
      throw n.unsupported("an output of statistics");
    }
    int bias = simplified ? 3 : 4;
    return in -> {
      Tensor sum = in.get(0).add(in.get(1));
      if (in.has(bias)) {
        sum = sum.add(in.get(bias));
      }
      Tensor scale = in.get(2);
      Tensor y =
          simplified
              ? rootMeanSquareNorm(sum, scale, epsilon)
              : torch.layer_norm(
                  sum, scale.shape(), in.optional(2), in.optional(3), epsilon, false);
      return new Tensor[] {y, null, null, sum};
    };
  }

  /** The norm of the vectors of tokens, of their places and of the parts of their texts. */
  private static Kernel embedNorm(Node n) {
    double epsilon = n.real("epsilon", 1e-12f);
    n.integer("mask_index_type", 0); // what shape inference makes of the lengths
    return in -> {
      Tensor tokens = in.get(0);
      Tensor places = in.has(8) ? in.get(8) : in.tensor(range(tokens.size(1)), tokens.size(1));
      Tensor sum = rows(in.get(2), tokens).add(rows(in.get(3), places));
      if (in.has(1)) {
        sum = sum.add(rows(in.get(4), in.get(1)));
      }
      Tensor y =
          torch.layer_norm(sum, in.get(5).shape(), in.optional(5), in.optional(6), epsilon, false);
      Tensor there = in.has(7) ? in.get(7).eq(new Scalar(1)) : torch.zeros_like(tokens);
      Tensor lengths = there.sum(new long[] {1}, false, new ScalarTypeOptional());
      return new Tensor[] {y, lengths.to(ScalarType.Int), sum};
    };
  }

  private static Tensor rows(Tensor table, Tensor indices) {
    return torch.embedding(table, indices.to(ScalarType.Long));
  }

  private static long[] range(long n) {
    long[] range = new long[Math.toIntExact(n)];
    Arrays.setAll(range, i -> i);
    return range;
  }

  private static Function<Inputs, Tensor> groupNorm(Node n) {
    double epsilon = n.real("epsilon", 1e-5f);
    long groups = n.integer("num_groups", 1);
    boolean perGroup = n.opset() < 21;
    if (n.opset() >= 21 && n.integer("stash_type", 1) != 1) {
      throw n.unsupported("stash_type = " + n.integer("stash_type", 1));
    }
    return in -> {
      Tensor scale = in.get(1);
      Tensor bias = in.get(2);
      if (perGroup) {
        long size = in.get(0).size(1) / groups;
        scale = scale.repeat_interleave(size);
        bias = bias.repeat_interleave(size);
      }
      return torch.group_norm(
          in.get(0), groups, new TensorOptional(scale), new TensorOptional(bias), epsilon, false);
    };
  }

  private static Function<Inputs, Tensor> lpNorm(Node n) {
    long[] axis = {n.integer("axis", -1)};
    long p = n.integer("p", 2);
    if (p != 1 && p != 2) {
      throw n.unsupported("p = " + p);
    }
    return in -> {
      Tensor x = in.get(0);
      Tensor sums = (p == 1 ? x.abs() : x.mul(x)).sum(axis, true, new ScalarTypeOptional());
      return x.div(p == 1 ? sums : sums.sqrt());
    };
  }

  /** x / (bias + alpha/size · Σ x² over {@code size} neighbouring channels)^beta. */
  private static Function<Inputs, Tensor> localResponseNorm(Node n) {
    double alpha = n.real("alpha", 0.0001f);
    double beta = n.real("beta", 0.75);
    double bias = n.real("bias", 1);
    long size = n.integer("size", 1);
    return in -> {
      Tensor x = in.get(0);
      long channels = x.size(1);
      long[] before = new long[(int) x.dim()];
      long[] after = before.clone();
      before[1] = (size - 1) / 2;
      after[1] = size - 1 - before[1];
      Tensor squares = ShapeOperators.constantPad(x.mul(x), before, after, 0);
      Tensor sum = squares.narrow(1, 0, channels);
      for (long i = 1; i < size; i++) {
        sum = sum.add(squares.narrow(1, i, channels));
      }
      Tensor base = sum.mul(new Scalar(alpha / size)).add(new Scalar(bias));
      return x.div(base.pow(new Scalar(beta)));
    };
  }

  private static Function<Inputs, Tensor> meanVariance(Node n) {
    long[] axes = n.integers("axes", new long[] {0, 2, 3});
    return in -> {
      Tensor x = in.get(0);
      Tensor centred = x.sub(x.mean(axes, true, new ScalarTypeOptional()));
      Tensor variance = centred.mul(centred).mean(axes, true, new ScalarTypeOptional());
      return centred.div(variance.sqrt().add(new Scalar(1e-9)));
    };
  }

  /** Active while the model is being trained, and where the node itself says so. */
  private static Kernel dropout(Node n) {
    double attribute = n.opset() < 12 ? n.real("ratio", 0.5) : 0.5;
    if (n.opset() >= 12 && n.hasAttribute("seed")) {
      // libtorch's generator is seeded by the caller, for all nodes alike.
      n.integer("seed", 0);
    }
    boolean mask = n.uses(1);
    return in -> {
      Tensor x = in.get(0);
      double ratio = in.has(1) ? in.doubles(1)[0] : attribute;
      boolean active = in.isTraining() || in.has(2) && in.longs(2)[0] != 0;
      if (!active || ratio == 0) {
        return new Tensor[] {new Tensor(x), mask ? torch.ones_like(x).to(ScalarType.Bool) : null};
      }
      if (!mask) {
        return new Tensor[] {torch.dropout(x, ratio, true)};
      }
      Tensor kept = torch.rand_like(x).ge(new Scalar(ratio));
      return new Tensor[] {x.mul(kept).mul(new Scalar(1 / (1 - ratio))), kept};
    };
  }
}
