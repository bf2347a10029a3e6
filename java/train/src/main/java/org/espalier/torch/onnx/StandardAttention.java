package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.function.Function;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/**
 * Attention and the rotation of queries and keys as ONNX has them since set 23. Letters in comments are those of {@link
 * AttentionOperators}.
 */
final class StandardAttention {
  /** The score of a key that is hidden. */
  private static final double HIDDEN = Double.NEGATIVE_INFINITY;

  private StandardAttention() {}

  static void add(Sink table) {
    table.one("RotaryEmbedding", 23, StandardAttention::rotaryEmbedding);
    table.add(OperatorTable.several("Attention", 23, StandardAttention::attention));
  }

  private static Function<Inputs, Tensor> rotaryEmbedding(Node n) {
    boolean interleaved = n.flag("interleaved", false);
    long heads = n.integer("num_heads", 0);
    long rotated = n.integer("rotary_embedding_dim", 0);
    return in -> {
      Tensor x = in.get(0);
      Tensor cosines = in.get(1);
      Tensor sines = in.get(2);
      long[] shape = x.shape();
      boolean apart = shape.length == 4;
      if (!apart) {
        if (heads < 1) {
          throw new InputException("rows of numbers need num_heads");
        }
        x = AttentionOperators.heads(x, heads);
      }
      long turned = rotated > 0 ? rotated : x.size(3);
      if (2 * cosines.size(-1) != turned) {
        throw new InputException(
            "each head turns " + turned + " numbers, but the cosines are of " + cosines.size(-1));
      }
      Tensor positions = in.orNull(3);
      boolean found = positions == null;
      Tensor y =
          AttentionOperators.rotate(
              x,
              found ? cosines.unsqueeze(1) : AttentionOperators.rows(cosines, positions),
              found ? sines.unsqueeze(1) : AttentionOperators.rows(sines, positions),
              interleaved);
      return apart ? y : AttentionOperators.together(y);
    };
  }

  /**
   * What the attributes of an Attention say.
   *
   * @param heads of queries; 0 where the axes of the inputs tell it, as {@code groups}
   * @param groups heads of keys and values
   * @param scale 0 for 1/√h
   * @param cap 0 for none
   * @param given which scores are the fourth output: 0 the products, 1 capped ones, 2 masked ones, 3 the shares
   */
  record Form(long heads, long groups, boolean causal, double scale, double cap, int given) {
    static Form of(Node n) {
      if (n.has(4) != n.has(5)) {
        throw n.wrong("past_key and past_value are given together or not at all");
      }
      if (n.has(6) && n.has(4)) {
        throw n.wrong("nonpad_kv_seqlen is not for keys and values that are read before");
      }
      long heads = n.integer("q_num_heads", 0);
      long groups = n.integer("kv_num_heads", 0);
      if ((heads > 0) != (groups > 0)) {
        throw n.wrong("q_num_heads and kv_num_heads are given together or not at all");
      }
      if (n.hasAttribute("scale") && n.real("scale", 0) == 0) {
        throw n.unsupported("scale = 0");
      }
      long given = n.integer("qk_matmul_output_mode", 0);
      if (given < 0 || given > 3) {
        throw n.unsupported("qk_matmul_output_mode = " + given);
      }
      // In which ONNX Runtime computes float32 all the same.
      ScalarType precision =
          ElementTypes.torch(DataType.forNumber((int) n.integer("softmax_precision", 1)));
      if (precision == null || !ElementTypes.isFloating(precision)) {
        throw n.unsupported("softmax_precision = " + n.integer("softmax_precision", 1));
      }
      return new Form(
          heads,
          groups,
          n.flag("is_causal", false),
          n.real("scale", 0),
          n.real("softcap", 0),
          (int) given);
    }
  }

  private static Kernel attention(Node n) {
    Form form = Form.of(n);
    boolean given = n.uses(3);
    return in -> {
      Tensor q = in.get(0);
      Tensor k = in.get(1);
      Tensor v = in.get(2);
      boolean apart = q.dim() == 4;
      if (apart) {
        k = new Tensor(k);
        v = new Tensor(v);
      } else {
        if (form.heads == 0) {
          throw new InputException("rows of numbers need q_num_heads and kv_num_heads");
        }
        q = AttentionOperators.heads(q, form.heads);
        k = AttentionOperators.heads(k, form.groups);
        v = AttentionOperators.heads(v, form.groups);
      }
      if (q.size(1) % k.size(1) != 0) {
        throw new InputException(
            q.size(1) + " heads of queries are no multiple of " + k.size(1) + " heads of keys");
      }
      long before = 0;
      if (in.has(4)) {
        before = in.get(4).size(2);
        k = torch.cat(new TensorVector(in.get(4), k), 2);
        v = torch.cat(new TensorVector(in.get(5), v), 2);
      }
      long queries = q.size(1) / k.size(1);
      Tensor[] scores = new Tensor[4];
      scores[0] = AttentionOperators.scores(q, AttentionOperators.repeat(k, queries), form.scale);
      scores[1] = AttentionOperators.capped(scores[0], form.cap);
      scores[2] = masked(in, scores[1], form.causal, before);
      boolean mayHideAll = in.has(3) || in.has(6);
      scores[3] = shares(scores[2], mayHideAll);
      Tensor y = scores[3].matmul(AttentionOperators.repeat(v, queries));
      Tensor seen = apart ? y : AttentionOperators.together(y);
      return given
          ? new Tensor[] {seen, k, v, new Tensor(scores[form.given])}
          : new Tensor[] {seen, k, v};
    };
  }

  /**
   * Scores with what a mask adds, and -∞ where a key is hidden.
   *
   * @param scores [b, n, s, t]
   * @param before how many of the keys come before the first query, where no lengths of texts tell it
   */
  private static Tensor masked(Inputs in, Tensor scores, boolean causal, long before) {
    long tokens = scores.size(2);
    long all = scores.size(3);
    Tensor out = scores;
    if (in.has(3)) {
      Tensor mask = in.get(3);
      long missing = all - mask.size(-1);
      boolean chooses = ElementTypes.of(mask) == ScalarType.Bool;
      if (missing > 0) {
        Scalar none = new Scalar(chooses ? 0 : HIDDEN);
        mask = torch.constant_pad_nd(mask, new long[] {0, missing}, none);
      }
      out = chooses ? out.masked_fill(mask.logical_not(), new Scalar(HIDDEN)) : out.add(mask);
    }
    Tensor key = AttentionOperators.arange(in, all);
    Tensor lengths = in.has(6) ? in.get(6).reshape(-1, 1, 1, 1) : null;
    if (causal) {
      Tensor step = AttentionOperators.arange(in, tokens).unsqueeze(-1);
      Tensor place =
          lengths == null
              ? step.add(new Scalar(before))
              : step.add(lengths).sub(new Scalar(tokens));
      out = out.masked_fill(key.gt(place), new Scalar(HIDDEN));
    }
    return lengths == null ? out : out.masked_fill(key.ge(lengths), new Scalar(HIDDEN));
  }

  /**
   * The softmax of scores; a query from which all is hidden has none.
   *
   * @param mayHideAll whether there may be such queries
   */
  private static Tensor shares(Tensor scores, boolean mayHideAll) {
    if (!mayHideAll) {
      return scores.softmax(-1);
    }
    Tensor blind = scores.detach().amax(new long[] {-1}, true).eq(new Scalar(HIDDEN));
    Scalar none = new Scalar(0);
    return scores.masked_fill(blind, none).softmax(-1).masked_fill(blind, none);
  }
}
