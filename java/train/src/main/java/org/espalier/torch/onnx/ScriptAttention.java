package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.ints;
import static org.espalier.torch.onnx.ScriptCall.number;

import java.util.function.Consumer;
import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link AttentionOperators} runs, in TorchScript. */
final class ScriptAttention {
  private ScriptAttention() {}

  static void add(Sink table) {
    table.one(OperatorTable.RUNTIME + "RotaryEmbedding", ScriptAttention::rotaryEmbedding);
    table.add(OperatorTable.RUNTIME + "GroupQueryAttention", ScriptAttention::groupQueryAttention);
    table.add(OperatorTable.RUNTIME + "MultiHeadAttention", ScriptAttention::multiHeadAttention);
    table.add(OperatorTable.RUNTIME + "Attention", ScriptAttention::attention);
  }

  private static String rotaryEmbedding(ScriptCall c) {
    Node n = c.node();
    AttentionOperators.isOn(n, "is_packed_batching");
    n.real("scale", 1);
    return c.call(
        "_rotary",
        c.in(0),
        c.in(1),
        c.in(2),
        c.in(3),
        flag(AttentionOperators.isOn(n, "interleaved")),
        "" + n.integer("num_heads", 0),
        "" + n.integer("rotary_embedding_dim", 0));
  }

  private static ScriptValue[] groupQueryAttention(ScriptCall c) {
    Node n = c.node();
    AttentionOperators.refuseCacheForms(n);
    boolean rotary = AttentionOperators.isOn(n, "do_rotary");
    return c.unpack(
        c.call(
            "_group_query",
            c.in(0),
            c.orNone(1),
            c.orNone(2),
            c.orNone(3),
            c.orNone(4),
            c.in(5),
            c.integer(6),
            rotary ? c.in(7) : "None",
            rotary ? c.in(8) : "None",
            c.orNone(9),
            c.orNone(10),
            c.orNone(11),
            "" + n.integer("num_heads", 0),
            "" + n.integer("kv_num_heads", 0),
            number(n.real("scale", 0)),
            number(n.real("softcap", 0)),
            "" + AttentionOperators.window(n),
            flag(AttentionOperators.isOn(n, "smooth_softmax")),
            flag(AttentionOperators.isOn(n, "rotary_interleaved"))),
        3);
  }

  private static ScriptValue[] multiHeadAttention(ScriptCall c) {
    Node n = c.node();
    return c.unpack(
        c.call(
            3,
            8,
            "_multi_head",
            "" + n.integer("num_heads", 0),
            number(n.real("scale", 0)),
            number(n.real("mask_filter_value", -10000)),
            flag(AttentionOperators.isOn(n, "unidirectional"))),
        3);
  }

  private static ScriptValue[] attention(ScriptCall c) {
    Node n = c.node();
    AttentionOperators.isOn(n, "do_rotary");
    AttentionOperators.isOn(n, "past_present_share_buffer");
    n.integer("rotary_embedding_dim", 0);
    ScriptValue[] values =
        c.unpack(
            c.call(
                2,
                6,
                "_attention",
                "" + n.integer("num_heads", 0),
                ints(n.integers("qkv_hidden_sizes", new long[0])),
                number(n.real("scale", 0)),
                number(n.real("mask_filter_value", -10000)),
                flag(AttentionOperators.isOn(n, "unidirectional"))),
            3);
    String present = "torch.stack([" + values[1].tensor() + ", " + values[2].tensor() + "], 0)";
    return new ScriptValue[] {values[0], n.uses(1) ? ScriptValue.of(present) : null};
  }

  /** Gives the methods that these operators need. */
  static void addHelpers(Consumer<String> sink) {
    sink.accept(
        """
        def _at(self, table: Tensor, positions: Tensor) -> Tensor:
            found = torch.index_select(table, 0, positions.to(4).reshape([-1]))
            return found.reshape([positions.size(0), 1, positions.size(1), table.size(1)])
        """);
    sink.accept(
        """
        def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
            pairs = cos.size(-1)
            turning = torch.narrow(x, -1, 0, 2 * pairs)
            if interleaved:
                both = turning.reshape([x.size(0), x.size(1), x.size(2), pairs, 2])
                a = both.select(-1, 0)
                b = both.select(-1, 1)
            else:
                a = torch.narrow(turning, -1, 0, pairs)
                b = torch.narrow(turning, -1, pairs, pairs)
            first = torch.sub(torch.mul(a, cos), torch.mul(b, sin))
            second = torch.add(torch.mul(a, sin), torch.mul(b, cos))
            if interleaved:
                y = torch.flatten(torch.stack([first, second], -1), -2, -1)
            else:
                y = torch.cat([first, second], -1)
            rest = x.size(-1) - 2 * pairs
            if rest == 0:
                return y
            return torch.cat([y, torch.narrow(x, -1, 2 * pairs, rest)], -1)
        """);
    sink.accept(
        """
        def _rotary(self, x: Tensor, given: Tensor, cosines: Tensor, sines: Tensor, \
        interleaved: bool, heads: int, rotated: int) -> Tensor:
            apart = x.dim() == 4
            y = x
            if not apart:
                width = x.size(2) // heads if rotated > 0 else 2 * cosines.size(1)
                y = x.reshape([x.size(0), x.size(1), -1, width]).transpose(1, 2)
            positions = given
            if given.numel() == 1:
                step = torch.arange(y.size(2), dtype=4, device=x.device).unsqueeze(0)
                positions = step + given.reshape([1, 1])
            cos = self._at(cosines, positions)
            sin = self._at(sines, positions)
            z = self._rotate(y, cos, sin, interleaved)
            return z if apart else z.transpose(1, 2).reshape(x.size())
        """);
    sink.accept(
        """
        def _heads(self, x: Tensor, heads: int) -> Tensor:
            y = x.reshape([x.size(0), x.size(1), heads, x.size(2) // heads])
            return y.transpose(1, 2)
        """);
    sink.accept(
        """
        def _present(self, past: Optional[Tensor], now: Tensor, begins: bool, before: Tensor, \
        last: Tensor, total: int) -> Tensor:
            old = 0 if past is None else past.size(2)
            size = max(old, total)
            if begins:
                return torch.constant_pad_nd(now, [0, 0, 0, size - now.size(2)], 0)
            assert past is not None, "texts go on after tokens that no input holds"
            place = torch.arange(size, dtype=4, device=now.device).unsqueeze(0)
            index = torch.where(place < before, place, place - before + old)
            index = torch.clamp(index, 0, old + now.size(2) - 1).unsqueeze(1).unsqueeze(-1)
            shape = [index.size(0), now.size(1), size, now.size(3)]
            both = torch.gather(torch.cat([past, now], 2), 2, index.expand(shape))
            return torch.masked_fill(both, (place > last).unsqueeze(1).unsqueeze(-1), 0)
        """);
    sink.accept(
        """
        def _group_query(self, query: Tensor, key: Optional[Tensor], value: Optional[Tensor], \
        past_key: Optional[Tensor], past_value: Optional[Tensor], lengths: Tensor, total: int, \
        cosines: Optional[Tensor], sines: Optional[Tensor], positions: Optional[Tensor], \
        bias: Optional[Tensor], sink: Optional[Tensor], heads: int, shared: int, scale: float, \
        cap: float, window: int, smooth: bool, interleaved: bool) -> Tuple[Tensor, Tensor, Tensor]:
            if key is not None and value is not None:
                q = self._heads(query, heads)
                k = self._heads(key, shared)
                v = self._heads(value, shared)
            else:
                width = query.size(2) // (heads + 2 * shared)
                q = self._heads(torch.narrow(query, 2, 0, heads * width), heads)
                k = self._heads(torch.narrow(query, 2, heads * width, shared * width), shared)
                start = (heads + shared) * width
                v = self._heads(torch.narrow(query, 2, start, shared * width), shared)
            tokens = q.size(2)
            last = lengths.to(4).reshape([-1, 1])
            begins = tokens == total
            step = torch.arange(tokens, dtype=4, device=q.device).unsqueeze(0)
            before = torch.zeros_like(last) if begins else last - (tokens - 1)
            places = step + before
            if cosines is not None and sines is not None:
                given = torch.where(places > last, torch.ones_like(places), places)
                if positions is not None:
                    given = positions
                cos = self._at(cosines, given)
                sin = self._at(sines, given)
                q = self._rotate(q, cos, sin, interleaved)
                k = self._rotate(k, cos, sin, interleaved)
            keys = self._present(past_key, k, begins, before, last, total)
            values = self._present(past_value, v, begins, before, last, total)
            many = heads // shared
            read = k if begins else keys
            seen = v if begins else values
            if many > 1:
                read = torch.repeat_interleave(read, many, 1)
                seen = torch.repeat_interleave(seen, many, 1)
            factor = scale if scale != 0.0 else q.size(3) ** -0.5
            scores = torch.matmul(torch.mul(q, factor), read.transpose(-2, -1))
            if cap > 0.0:
                scores = torch.mul(torch.tanh(torch.div(scores, cap)), cap)
            if bias is not None:
                scores = torch.add(scores, torch.narrow(bias, -1, 0, read.size(2)))
            place = places.unsqueeze(1).unsqueeze(-1)
            at = torch.arange(read.size(2), dtype=4, device=q.device)
            hidden = at > place
            if window > 0:
                hidden = torch.logical_or(hidden, at <= place - window)
            scores = torch.masked_fill(scores, hidden, -float('inf'))
            if smooth or sink is not None:
                none = torch.zeros_like(torch.narrow(scores, -1, 0, 1))
                if sink is not None:
                    none = torch.add(none, sink.reshape([-1, 1, 1]))
                weights = torch.softmax(torch.cat([scores, none], -1), -1)
                weights = torch.narrow(weights, -1, 0, scores.size(-1))
            else:
                weights = torch.softmax(scores, -1)
            y = torch.matmul(weights, seen).transpose(1, 2)
            return torch.flatten(y, 2, 3), keys, values
        """);
    sink.accept(
        """
        def _hidden(self, mask: Tensor, texts: int, all: int) -> Tensor:
            if mask.dim() == 2:
                return (mask <= 0).unsqueeze(1).unsqueeze(1)
            if mask.dim() == 3:
                return (mask <= 0).unsqueeze(1)
            place = torch.arange(all, dtype=4, device=mask.device).unsqueeze(0)
            out = place >= torch.narrow(mask, 0, 0, texts).unsqueeze(1)
            if mask.size(0) == 2 * texts:
                starts = torch.narrow(mask, 0, texts, texts).unsqueeze(1)
                out = torch.logical_or(out, place < starts)
            return out.unsqueeze(1).unsqueeze(1)
        """);
    sink.accept(
        """
        def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], \
        bias: Optional[Tensor], scale: float, filter: float, causal: bool) -> Tensor:
            factor = scale if scale != 0.0 else q.size(3) ** -0.5
            scores = torch.matmul(torch.mul(q, factor), k.transpose(-2, -1))
            if bias is not None:
                scores = torch.add(scores, bias)
            tokens = q.size(2)
            all = k.size(2)
            if mask is not None:
                hidden = self._hidden(mask, q.size(0), all)
                scores = torch.add(scores, torch.mul(hidden.to(6), filter))
            if causal and tokens > 1:
                place = torch.arange(tokens, dtype=4, device=q.device) + (all - tokens)
                at = torch.arange(all, dtype=4, device=q.device)
                later = at > place.unsqueeze(-1)
                scores = torch.masked_fill(scores, later, -3.4028234663852886e+38)
            y = torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2)
            return torch.flatten(y, 2, 3)
        """);
    sink.accept(
        """
        def _multi_head(self, query: Tensor, key: Tensor, value: Tensor, bias: Optional[Tensor], \
        mask: Optional[Tensor], scores: Optional[Tensor], past_key: Optional[Tensor], \
        past_value: Optional[Tensor], heads: int, scale: float, filter: float, \
        causal: bool) -> Tuple[Tensor, Tensor, Tensor]:
            q = query
            k = key
            v = value
            if bias is not None:
                width = q.size(2)
                q = torch.add(q, torch.narrow(bias, 0, 0, width))
                k = torch.add(k, torch.narrow(bias, 0, width, width))
                v = torch.add(v, torch.narrow(bias, 0, 2 * width, v.size(2)))
            q = self._heads(q, heads)
            if k.dim() == 3:
                k = self._heads(k, heads)
            if v.dim() == 3:
                v = self._heads(v, heads)
            if past_key is not None and past_value is not None:
                k = torch.cat([past_key, k], 2)
                v = torch.cat([past_value, v], 2)
            return self._attend(q, k, v, mask, scores, scale, filter, causal), k, v
        """);
    sink.accept(
        """
        def _attention(self, x: Tensor, w: Tensor, b: Optional[Tensor], mask: Optional[Tensor], \
        past: Optional[Tensor], scores: Optional[Tensor], heads: int, widths: List[int], \
        scale: float, filter: float, causal: bool) -> Tuple[Tensor, Tensor, Tensor]:
            all = torch.matmul(x, w)
            if b is not None:
                all = torch.add(all, b)
            third = w.size(1) // 3
            parts = [third, third, third] if len(widths) == 0 else widths
            q = self._heads(torch.narrow(all, 2, 0, parts[0]), heads)
            k = self._heads(torch.narrow(all, 2, parts[0], parts[1]), heads)
            v = self._heads(torch.narrow(all, 2, parts[0] + parts[1], parts[2]), heads)
            if past is not None:
                k = torch.cat([past.select(0, 0), k], 2)
                v = torch.cat([past.select(0, 1), v], 2)
            return self._attend(q, k, v, mask, scores, scale, filter, causal), k, v
        """);
  }
}
