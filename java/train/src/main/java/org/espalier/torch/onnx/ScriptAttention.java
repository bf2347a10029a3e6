package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.ints;
import static org.espalier.torch.onnx.ScriptCall.number;

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
}
