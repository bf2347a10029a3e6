package org.espalier.torch.onnx;

import java.util.function.Function;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/**
 * Attention as ONNX Runtime's own operators have it, and the rotation of queries and keys by their places. Letters
 * in comments: b texts of s tokens, n heads of width h, g of them for keys and values, t tokens with those read before.
 */
final class AttentionOperators {
  private AttentionOperators() {}

  static void add(Sink table) {
    table.one(OperatorTable.RUNTIME + "RotaryEmbedding", 1, AttentionOperators::rotaryEmbedding);
    table.add(
        OperatorTable.several(
                OperatorTable.RUNTIME + "GroupQueryAttention",
                1,
                AttentionOperators::groupQueryAttention)
            .reading(6));
    table.add(
        OperatorTable.several(
            OperatorTable.RUNTIME + "MultiHeadAttention",
            1,
            AttentionOperators::multiHeadAttention));
    table.add(
        OperatorTable.several(
            OperatorTable.RUNTIME + "Attention", 1, AttentionOperators::attention));
  }

  private static Function<Inputs, Tensor> rotaryEmbedding(Node n) {
    boolean interleaved = isOn(n, "interleaved");
    long heads = n.integer("num_heads", 0);
    long rotated = n.integer("rotary_embedding_dim", 0);
    refuse(n, "is_packed_batching");
    n.real("scale", 1); // which ONNX Runtime reads and does not apply
    if (rotated > 0 && heads == 0) {
      throw n.wrong("rotary_embedding_dim needs num_heads");
    }
    return in -> {
      Tensor x = in.get(0);
      boolean apart = x.dim() == 4;
      long[] shape = x.shape();
      if (!apart) {
        long width = rotated > 0 ? shape[2] / heads : 2 * in.get(2).size(1);
        x = x.reshape(shape[0], shape[1], -1, width).transpose(1, 2);
      }
      Tensor positions = in.get(1);
      if (positions.numel() == 1) {
        Tensor first = positions.reshape(1, 1);
        positions = arange(in, x.size(2)).unsqueeze(0).add(first);
      }
      Tensor y = rotate(x, rows(in.get(2), positions), rows(in.get(3), positions), interleaved);
      return apart ? y : y.transpose(1, 2).reshape(shape);
    };
  }

  /** Whether an attribute is 1: as ONNX Runtime saves models, -1 stands for one that was not set. */
  static boolean isOn(Node n, String name) {
    return n.integer(name, 0) == 1;
  }

  /** Attributes that change nothing where they are not 1. */
  private static void refuse(Node n, String... flags) {
    for (String flag : flags) {
      if (isOn(n, flag)) {
        throw n.unsupported(flag + " = 1");
      }
    }
  }

  private static void refuseScores(Node n) {
    if (n.uses(3)) {
      throw n.unsupported("an output of scores");
    }
  }

  /**
   * @param inputs that such a buffer takes
   */
  private static void refuseBuffer(Node n, int... inputs) {
    for (int input : inputs) {
      if (n.has(input)) {
        throw n.unsupported("a buffer of keys that grows");
      }
    }
  }

  private static long heads(Node n) {
    long heads = n.integer("num_heads", 0);
    if (heads < 1) {
      throw n.wrong("num_heads must be 1 or more");
    }
    return heads;
  }

  static Tensor arange(Inputs in, long n) {
    return in.place(torch.arange(new Scalar(n), new TensorOptions(ScalarType.Long)));
  }

  /**
   * Turns pairs of numbers by the angles of their places; what is behind the pairs stays.
   *
   * @param x [b, n, s, h]
   * @param cos of each place: [b or 1, 1, s, pairs], as {@code sin}
   * @param interleaved whether the numbers of a pair are neighbours; else one is of the first half, one of the second
   */
  static Tensor rotate(Tensor x, Tensor cos, Tensor sin, boolean interleaved) {
    long pairs = cos.size(-1);
    Tensor turning = x.narrow(-1, 0, 2 * pairs);
    long[] split = {x.size(0), x.size(1), x.size(2), pairs, 2};
    Tensor neighbours = interleaved ? turning.reshape(split) : null;
    Tensor a = interleaved ? neighbours.select(-1, 0) : turning.narrow(-1, 0, pairs);
    Tensor b = interleaved ? neighbours.select(-1, 1) : turning.narrow(-1, pairs, pairs);
    Tensor first = a.mul(cos).sub(b.mul(sin));
    Tensor second = a.mul(sin).add(b.mul(cos));
    Tensor y =
        interleaved
            ? torch.stack(new TensorVector(first, second), -1).flatten(-2, -1)
            : torch.cat(new TensorVector(first, second), -1);
    long rest = x.size(-1) - 2 * pairs;
    return rest == 0 ? y : torch.cat(new TensorVector(y, x.narrow(-1, 2 * pairs, rest)), -1);
  }

  /** The rows of a table at positions [b, s]: [b, 1, s, columns]. */
  static Tensor rows(Tensor table, Tensor positions) {
    Tensor found = table.index_select(0, positions.to(ScalarType.Long).reshape(-1));
    return found.reshape(positions.size(0), 1, positions.size(1), table.size(1));
  }

  /** [b, s, n · h] as [b, n, s, h]. */
  static Tensor heads(Tensor x, long heads) {
    return x.reshape(x.size(0), x.size(1), heads, x.size(2) / heads).transpose(1, 2);
  }

  /** [b, n, s, h] as [b, s, n · h]. */
  static Tensor together(Tensor x) {
    return x.transpose(1, 2).flatten(2, 3);
  }

  /** Causal attention, several heads of queries for each of keys; a text may have been read in part before. */
  private static Kernel groupQueryAttention(Node n) {
    long heads = n.integer("num_heads", 0);
    long shared = n.integer("kv_num_heads", 0);
    if (heads < 1 || shared < 1 || heads % shared != 0) {
      throw n.wrong("num_heads = " + heads + " is no multiple of kv_num_heads = " + shared);
    }
    double scale = n.real("scale", 0);
    double cap = n.real("softcap", 0);
    long window = window(n);
    boolean smooth = isOn(n, "smooth_softmax");
    boolean rotary = isOn(n, "do_rotary");
    boolean interleaved = isOn(n, "rotary_interleaved");
    refuseCacheForms(n);
    refuseScores(n);
    return in -> {
      Tensor q = in.get(0);
      Tensor k = in.orNull(1);
      Tensor v = in.orNull(2);
      if (k == null) {
        long width = q.size(2) / (heads + 2 * shared);
        k = heads(q.narrow(2, heads * width, shared * width), shared);
        v = heads(q.narrow(2, (heads + shared) * width, shared * width), shared);
        q = heads(q.narrow(2, 0, heads * width), heads);
      } else {
        q = heads(q, heads);
        k = heads(k, shared);
        v = heads(v, shared);
      }
      long tokens = q.size(2);
      long total = in.longs(6)[0];
      // The last token of each text: [b, 1].
      Tensor last = in.get(5).to(ScalarType.Long).reshape(-1, 1);
      boolean begins = tokens == total;
      Tensor step = arange(in, tokens).unsqueeze(0);
      Tensor before = begins ? torch.zeros_like(last) : last.sub(new Scalar(tokens - 1));
      Tensor places = step.add(before);
      if (rotary) {
        Tensor given = in.has(9) ? in.get(9) : padding(places, last);
        Tensor cos = rows(in.get(7), given);
        Tensor sin = rows(in.get(8), given);
        q = rotate(q, cos, sin, interleaved);
        k = rotate(k, cos, sin, interleaved);
      }
      Tensor keys = present(in, in.orNull(3), k, begins, before, last, total);
      Tensor values = present(in, in.orNull(4), v, begins, before, last, total);
      Tensor read = begins ? k : keys;
      Tensor scores = capped(scores(q, repeat(read, heads / shared), scale), cap);
      if (in.has(10)) {
        scores = scores.add(in.get(10).narrow(-1, 0, read.size(2)));
      }
      Tensor hidden = hidden(places, arange(in, read.size(2)), window);
      scores = scores.masked_fill(hidden, new Scalar(Double.NEGATIVE_INFINITY));
      Tensor seen =
          weights(scores, in.orNull(11), smooth)
              .matmul(repeat(begins ? v : values, heads / shared));
      return new Tensor[] {together(seen), keys, values};
    };
  }

  /**
   * Which tokens each one does not see.
   *
   * @param places of queries [b, s]
   * @param keys places of keys [t]
   * @param window how many tokens one sees, itself among them; 0 or less: all before it
   */
  private static Tensor hidden(Tensor places, Tensor keys, long window) {
    Tensor place = places.unsqueeze(1).unsqueeze(-1);
    Tensor hidden = keys.gt(place);
    // A token is one of those that it sees. ONNX Runtime before 1.23 let it see one more.
    return window > 0 ? hidden.logical_or(keys.le(place.sub(new Scalar(window)))) : hidden;
  }

  /** Caches of integers, and norms of heads, which ONNX Runtime has on no CPU. */
  static void refuseCacheForms(Node n) {
    n.integer("qk_output", 0); // of scores, which are no output
    n.choice("k_quant_type", "NONE", "NONE");
    n.choice("v_quant_type", "NONE", "NONE");
    n.integer("kv_cache_bit_width", 0);
    n.real("qk_norm_epsilon", 0);
    if (n.has(14) || n.has(15)) {
      throw n.unsupported("a norm of the heads of queries and keys (q_norm_weight, k_norm_weight)");
    }
  }

  /** How many tokens one sees, itself among them; below 0 all before it. */
  static long window(Node n) {
    long window = n.integer("local_window_size", -1);
    if (window == 0) {
      throw n.wrong("local_window_size = 0 shows a token none; -1, for all, or 1 or more is right");
    }
    return window;
  }

  /** Tokens behind the end of their text have the place 1. */
  private static Tensor padding(Tensor places, Tensor last) {
    return torch.where(places.gt(last), torch.ones_like(places), places);
  }

  /**
   * What was read before and now, of each text side by side: [b, g, t, h]; zeros behind its end.
   *
   * @param past null without any
   * @param begins whether texts begin, whatever {@code past} has
   * @param before how many tokens of each text were read before: [b, 1]
   */
  private static Tensor present(
      Inputs in, Tensor past, Tensor now, boolean begins, Tensor before, Tensor last, long total) {
    long old = past == null ? 0 : past.size(2);
    long size = Math.max(old, total);
    if (begins) {
      return size == now.size(2)
          ? new Tensor(now)
          : torch.constant_pad_nd(now, 0, 0, 0, size - now.size(2));
    }
    if (past == null) {
      throw new InputException("texts go on after tokens that no input holds");
    }
    Tensor place = arange(in, size).unsqueeze(0);
    Tensor from =
        torch
            .where(place.lt(before), place, place.sub(before).add(new Scalar(old)))
            .clamp(
                new ScalarOptional(new Scalar(0)),
                new ScalarOptional(new Scalar(old + now.size(2) - 1)));
    Tensor both = torch.cat(new TensorVector(past, now), 2);
    long[] shape = {from.size(0), now.size(1), size, now.size(3)};
    Tensor index = from.unsqueeze(1).unsqueeze(-1).expand(shape);
    Tensor behind = place.gt(last).unsqueeze(1).unsqueeze(-1);
    return both.gather(2, index).masked_fill(behind, new Scalar(0));
  }

  /**
   * q·kᵀ·scale. Queries are scaled, which are fewer than scores.
   *
   * @param scale 0 for 1/√h
   */
  static Tensor scores(Tensor q, Tensor k, double scale) {
    Scalar factor = new Scalar(scale == 0 ? 1 / Math.sqrt(q.size(3)) : scale);
    return q.mul(factor).matmul(k.transpose(-2, -1));
  }

  /** cap · tanh(scores / cap); as they are where {@code cap} is 0. */
  static Tensor capped(Tensor scores, double cap) {
    return cap > 0 ? scores.div(new Scalar(cap)).tanh().mul(new Scalar(cap)) : scores;
  }

  static Tensor repeat(Tensor x, long times) {
    return times == 1
        ? x
        : torch.repeat_interleave(x, times, new LongOptional(1), new LongOptional());
  }

  /**
   * The softmax of scores, of which one more may take its share.
   *
   * @param sink the one more of each head, [n], or null
   * @param smooth whether it is 0 where there is no {@code sink}
   */
  private static Tensor weights(Tensor scores, Tensor sink, boolean smooth) {
    if (sink == null && !smooth) {
      return scores.softmax(-1);
    }
    Tensor none = torch.zeros_like(scores.narrow(-1, 0, 1));
    if (sink != null) {
      none = none.add(sink.reshape(-1, 1, 1));
    }
    Tensor all = torch.cat(new TensorVector(scores, none), -1).softmax(-1);
    return all.narrow(-1, 0, scores.size(-1));
  }

  /** What the scores of attention take that is no group query. */
  private record Scores(double scale, double filter, boolean unidirectional) {
    static Scores of(Node n) {
      return new Scores(
          n.real("scale", 0), n.real("mask_filter_value", -10000), isOn(n, "unidirectional"));
    }

    /**
     * softmax(q·kᵀ·scale + bias + mask)·v.
     *
     * @param mask null, or as {@link #hidden} takes it
     * @param bias null, or [b or 1, n or 1, s, t]
     */
    Tensor attend(Inputs in, Tensor q, Tensor k, Tensor v, Tensor mask, Tensor bias) {
      Tensor scores = scores(q, k, scale);
      if (bias != null) {
        scores = scores.add(bias);
      }
      long tokens = q.size(2);
      long all = k.size(2);
      if (mask != null) {
        Tensor hidden = hidden(in, mask, q.size(0), all);
        scores = scores.add(hidden.to(ScalarType.Float).mul(new Scalar(filter)));
      }
      if (unidirectional && tokens > 1) {
        Tensor place = arange(in, tokens).add(new Scalar(all - tokens)).unsqueeze(-1);
        Tensor later = arange(in, all).gt(place);
        scores = scores.masked_fill(later, new Scalar(-Float.MAX_VALUE));
      }
      return scores.softmax(-1).matmul(v);
    }

    /**
     * Which keys are hidden: [b, 1, s or 1, t].
     *
     * @param mask [b, t] or [b, s, t], 0 where a key is hidden; or [b], lengths of texts, or [2 · b], their ends and then
     *     their starts
     */
    private static Tensor hidden(Inputs in, Tensor mask, long texts, long all) {
      if (mask.dim() > 1) {
        Tensor none = mask.le(new Scalar(0));
        return mask.dim() == 2 ? none.unsqueeze(1).unsqueeze(1) : none.unsqueeze(1);
      }
      Tensor place = arange(in, all).unsqueeze(0);
      Tensor out = place.ge(mask.narrow(0, 0, texts).unsqueeze(1));
      if (mask.size(0) == 2 * texts) {
        out = out.logical_or(place.lt(mask.narrow(0, texts, texts).unsqueeze(1)));
      }
      return out.unsqueeze(1).unsqueeze(1);
    }
  }

  private static Kernel multiHeadAttention(Node n) {
    long heads = heads(n);
    Scores scores = Scores.of(n);
    refuseBuffer(n, 8, 9);
    refuseScores(n);
    return in -> {
      Tensor q = in.get(0);
      Tensor k = in.orNull(1);
      Tensor v = in.orNull(2);
      if (k == null || v == null || q.dim() != 3) {
        throw new InputException("queries, keys and values in one tensor are not supported");
      }
      if (in.has(3)) {
        Tensor bias = in.get(3);
        long width = q.size(2);
        q = q.add(bias.narrow(0, 0, width));
        k = k.add(bias.narrow(0, width, width));
        v = v.add(bias.narrow(0, 2 * width, v.size(2)));
      }
      q = heads(q, heads);
      k = k.dim() == 4 ? new Tensor(k) : heads(k, heads);
      v = v.dim() == 4 ? new Tensor(v) : heads(v, heads);
      if (in.has(6)) {
        k = torch.cat(new TensorVector(in.get(6), k), 2);
        v = torch.cat(new TensorVector(in.get(7), v), 2);
      }
      Tensor seen = scores.attend(in, q, k, v, in.orNull(4), in.orNull(5));
      return new Tensor[] {together(seen), k, v};
    };
  }

  private static Kernel attention(Node n) {
    long heads = heads(n);
    Scores scores = Scores.of(n);
    long[] widths = n.integers("qkv_hidden_sizes", null);
    refuse(n, "do_rotary", "past_present_share_buffer");
    n.integer("rotary_embedding_dim", 0);
    refuseBuffer(n, 6);
    boolean present = n.uses(1);
    return in -> {
      Tensor w = in.get(1);
      Tensor all = in.get(0).matmul(w);
      if (in.has(2)) {
        all = all.add(in.get(2));
      }
      long third = w.size(1) / 3;
      long[] parts = widths == null ? new long[] {third, third, third} : widths;
      Tensor q = heads(all.narrow(2, 0, parts[0]), heads);
      Tensor k = heads(all.narrow(2, parts[0], parts[1]), heads);
      Tensor v = heads(all.narrow(2, parts[0] + parts[1], parts[2]), heads);
      if (in.has(4)) {
        k = torch.cat(new TensorVector(in.get(4).select(0, 0), k), 2);
        v = torch.cat(new TensorVector(in.get(4).select(0, 1), v), 2);
      }
      Tensor seen = together(scores.attend(in, q, k, v, in.orNull(3), in.orNull(5)));
      return present
          ? new Tensor[] {seen, torch.stack(new TensorVector(k, v), 0)}
          : new Tensor[] {seen};
    };
  }
}
