package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.number;

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
}
