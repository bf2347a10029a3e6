package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.number;

import java.util.function.Consumer;
import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link StandardAttention} runs, in TorchScript. */
final class ScriptStandardAttention {
  private ScriptStandardAttention() {}

  static void add(Sink table) {
    table.one("RotaryEmbedding", ScriptStandardAttention::rotaryEmbedding);
    table.add("Attention", ScriptStandardAttention::attention);
  }

  private static String rotaryEmbedding(ScriptCall c) {
    Node n = c.node();
    return c.call(
        3,
        4,
        "_rotary_embedding",
        flag(n.flag("interleaved", false)),
        "" + n.integer("num_heads", 0),
        "" + n.integer("rotary_embedding_dim", 0));
  }

  private static ScriptValue[] attention(ScriptCall c) {
    StandardAttention.Form form = StandardAttention.Form.of(c.node());
    return c.unpack(
        c.call(
            3,
            7,
            "_standard_attention",
            "" + form.heads(),
            "" + form.groups(),
            flag(form.causal()),
            number(form.scale()),
            number(form.cap()),
            "" + form.given()),
        4);
  }

  /** Gives the methods that these operators need beside those of {@link ScriptAttention}. */
  static void addHelpers(Consumer<String> sink) {
    sink.accept(
        """
        def _rotary_embedding(self, x: Tensor, cosines: Tensor, sines: Tensor, \
        positions: Optional[Tensor], interleaved: bool, heads: int, rotated: int) -> Tensor:
            apart = x.dim() == 4
            assert apart or heads > 0, "rows of numbers need num_heads"
            y = x if apart else self._heads(x, heads)
            turned = rotated if rotated > 0 else y.size(3)
            assert 2 * cosines.size(-1) == turned, "the cosines are not of all numbers that turn"
            cos = torch.unsqueeze(cosines, 1)
            sin = torch.unsqueeze(sines, 1)
            if positions is not None:
                cos = self._at(cosines, positions)
                sin = self._at(sines, positions)
            z = self._rotate(y, cos, sin, interleaved)
            return z if apart else torch.flatten(z.transpose(1, 2), 2, 3)
        """);
    sink.accept(
        """
        def _standard_attention(self, query: Tensor, key: Tensor, value: Tensor, \
        mask: Optional[Tensor], past_key: Optional[Tensor], past_value: Optional[Tensor], \
        lengths: Optional[Tensor], heads: int, groups: int, causal: bool, scale: float, \
        cap: float, given: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
            q = query
            k = key
            v = value
            apart = query.dim() == 4
            if not apart:
                assert heads > 0, "rows of numbers need q_num_heads and kv_num_heads"
                q = self._heads(query, heads)
                k = self._heads(key, groups)
                v = self._heads(value, groups)
            before = 0
            if past_key is not None and past_value is not None:
                before = past_key.size(2)
                k = torch.cat([past_key, k], 2)
                v = torch.cat([past_value, v], 2)
            queries = q.size(1) // k.size(1)
            assert queries * k.size(1) == q.size(1), "queries are no multiple of keys"
            read = k
            seen = v
            if queries > 1:
                read = torch.repeat_interleave(k, queries, 1)
                seen = torch.repeat_interleave(v, queries, 1)
            factor = scale if scale != 0.0 else q.size(3) ** -0.5
            scores = torch.matmul(torch.mul(q, factor), read.transpose(-2, -1))
            told = scores
            if cap > 0.0:
                scores = torch.mul(torch.tanh(torch.div(scores, cap)), cap)
            if given == 1:
                told = scores
            tokens = q.size(2)
            all = k.size(2)
            hidden = -float('inf')
            if mask is not None:
                bias = mask
                missing = all - bias.size(-1)
                if bias.dtype == 11:
                    if missing > 0:
                        bias = torch.constant_pad_nd(bias, [0, missing], 0)
                    scores = torch.masked_fill(scores, torch.logical_not(bias), hidden)
                else:
                    if missing > 0:
                        bias = torch.constant_pad_nd(bias, [0, missing], hidden)
                    scores = torch.add(scores, bias)
            at = torch.arange(all, dtype=4, device=q.device)
            if causal:
                place = torch.arange(tokens, dtype=4, device=q.device).unsqueeze(-1)
                if lengths is not None:
                    place = place + lengths.reshape([-1, 1, 1, 1]) - tokens
                else:
                    place = place + before
                scores = torch.masked_fill(scores, at > place, hidden)
            if lengths is not None:
                behind = at >= lengths.reshape([-1, 1, 1, 1])
                scores = torch.masked_fill(scores, behind, hidden)
            if given == 2:
                told = scores
            if mask is not None or lengths is not None:
                blind = torch.eq(torch.amax(scores.detach(), [-1], True), hidden)
                shares = torch.softmax(torch.masked_fill(scores, blind, 0), -1)
                shares = torch.masked_fill(shares, blind, 0)
            else:
                shares = torch.softmax(scores, -1)
            if given == 3:
                told = shares
            y = torch.matmul(shares, seen)
            if not apart:
                y = torch.flatten(y.transpose(1, 2), 2, 3)
            return y, k, v, told
        """);
  }
}
