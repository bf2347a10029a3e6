package org.espalier.torch.onnx;

import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.torch.onnx.NodeCases.PROBLEMS;
import static org.espalier.torch.onnx.NodeCases.floats;
import static org.espalier.torch.onnx.NodeCases.integer;
import static org.espalier.torch.onnx.NodeCases.ints;
import static org.espalier.torch.onnx.NodeCases.longs;
import static org.espalier.torch.onnx.NodeCases.model;
import static org.espalier.torch.onnx.NodeCases.node;
import static org.espalier.torch.onnx.NodeCases.same;
import static org.espalier.torch.onnx.NodeCases.slopes;
import static org.espalier.torch.onnx.NodeCases.text;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/**
 * What operator sets 23 to 26 changed or added, one node a case, against ONNX Runtime, and gradients against slopes;
 * what ONNX Runtime does not run is compared with what the standard says.
 */
class NewestOpsetsTest {
  private static final long[] QUERIES = {2, 3, 5, 8};
  private static final long[] KEYS = {2, 3, 7, 8};

  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(17);
    PROBLEMS.clear();
  }

  private static NodeProto.Builder attention(AttributeProto... attributes) {
    return node("Attention", attributes);
  }

  /** For queries, keys and values in rows. */
  private static NodeProto.Builder rows(int heads, int groups, AttributeProto... attributes) {
    return attention(attributes)
        .addAttribute(integer("q_num_heads", heads))
        .addAttribute(integer("kv_num_heads", groups));
  }

  private static Tensor bools(double share, long... shape) {
    return torch.rand(shape).lt(new Scalar(share));
  }

  /** A mask by which the third query sees no key. */
  private static Tensor blind() {
    Tensor mask = bools(0.8, 5, 7);
    mask.select(0, 2).fill_(new Scalar(0));
    return mask;
  }

  private static Tensor hiding(Tensor mask) {
    Scalar hidden = new Scalar(Double.NEGATIVE_INFINITY);
    return torch.zeros(mask.shape()).masked_fill(mask.logical_not(), hidden);
  }

  @Test
  void attentionAgreesWithOnnxRuntime() {
    try (PointerScope scope = new PointerScope()) {
      for (int opset : new int[] {23, 24}) {
        for (int causal = 0; causal < 2; causal++) {
          AttributeProto c = integer("is_causal", causal);
          same(opset, attention(c), floats(QUERIES), floats(QUERIES), floats(QUERIES));
          // Other numbers of keys than of queries, and wider values.
          same(opset, attention(c), floats(QUERIES), floats(KEYS), floats(2, 3, 7, 6));
          same(opset, attention(c), floats(QUERIES), floats(2, 3, 3, 8), floats(2, 3, 3, 8));
          // Heads that share keys.
          same(opset, attention(c), floats(2, 6, 5, 8), floats(2, 2, 7, 8), floats(2, 2, 7, 6));
          same(opset, rows(6, 2, c), 3, floats(2, 5, 48), floats(2, 7, 16), floats(2, 7, 12));
          same(opset, rows(3, 3, c), floats(2, 5, 24), floats(2, 7, 24), floats(2, 7, 24));
          masksAgree(opset, c);
          pastsAgree(opset, c);
        }
        same(opset, attention(real("scale", 0.3f)), floats(QUERIES), floats(KEYS), floats(KEYS));
        for (int precision : new int[] {1, 10, 11, 16}) {
          AttributeProto p = integer("softmax_precision", precision);
          same(opset, attention(p), floats(QUERIES), floats(KEYS), floats(KEYS));
        }
      }
      assertEquals("", String.join("\n", PROBLEMS));
    }
  }

  private static void masksAgree(int opset, AttributeProto causal) {
    AttributeProto cap = real("softcap", 1.5f);
    for (long[] shape :
        new long[][] {{5, 7}, {3, 5, 7}, {1, 5, 7}, {2, 1, 5, 7}, {1, 3, 5, 7}, {2, 3, 5, 7}}) {
      for (Tensor mask :
          new Tensor[] {floats(shape), bools(0.8, shape), hiding(bools(0.8, shape))}) {
        same(opset, attention(causal), floats(QUERIES), floats(KEYS), floats(KEYS), mask);
        same(opset, attention(causal, cap), floats(QUERIES), floats(KEYS), floats(KEYS), mask);
      }
    }
    Tensor mask = blind();
    same(opset, attention(causal), floats(QUERIES), floats(KEYS), floats(KEYS), mask);
    same(opset, attention(causal), floats(QUERIES), floats(KEYS), floats(KEYS), hiding(mask));
    for (int given = 0; given < 4; given++) {
      AttributeProto mode = integer("qk_matmul_output_mode", given);
      Tensor[] inputs = {floats(QUERIES), floats(KEYS), floats(KEYS), floats(5, 7)};
      same(opset, attention(mode, cap), 4, inputs);
      same(opset, attention(mode), 4, inputs);
    }
    AttributeProto shares = integer("qk_matmul_output_mode", 3);
    same(opset, attention(causal, shares), 4, floats(QUERIES), floats(KEYS), floats(KEYS), mask);
  }

  private static void pastsAgree(int opset, AttributeProto causal) {
    for (long before : new long[] {0, 4}) {
      for (long tokens : new long[] {1, 5}) {
        Tensor k = floats(2, 3, tokens, 8);
        Tensor past = floats(2, 3, before, 8);
        Tensor mask = floats(tokens, tokens + before);
        same(opset, attention(causal), 3, floats(2, 3, tokens, 8), k, k, null, past, past);
        same(opset, attention(causal), 3, floats(2, 6, tokens, 8), k, k, mask, past, past);
        Tensor rows = floats(2, tokens, 24);
        same(opset, rows(6, 3, causal), 3, floats(2, tokens, 48), rows, rows, null, past, past);
      }
    }
  }

  @Test
  void keysBehindTheEndOfTextsAreHidden() {
    try (PointerScope scope = new PointerScope()) {
      Tensor k = floats(2, 3, 9, 8);
      Tensor v = floats(2, 3, 9, 8);
      for (int causal = 0; causal < 2; causal++) {
        AttributeProto c = integer("is_causal", causal);
        for (long[] lengths : new long[][] {{5, 9}, {7, 6}, {3, 6}, {0, 9}}) {
          same(24, attention(c), floats(QUERIES), k, v, null, null, null, longs(lengths));
          Tensor mask = floats(5, 9);
          same(24, attention(c), floats(QUERIES), k, v, mask, null, null, longs(lengths));
          mask = bools(0.9, 5, 9);
          same(24, attention(c), floats(QUERIES), k, v, mask, null, null, longs(lengths));
        }
        same(24, attention(c), floats(2, 3, 1, 8), k, v, null, null, null, longs(4, 9));
        Tensor rows = floats(2, 9, 24);
        same(24, rows(6, 3, c), floats(2, 5, 48), rows, rows, null, null, null, longs(8, 6));
      }
      assertEquals("", String.join("\n", PROBLEMS));
    }
  }

  private static Tensor run(int opset, NodeProto.Builder node, Tensor... inputs) {
    try (Program program = new Program(model(opset, node, 1, inputs), Map.of(), TorchDevice.CPU)) {
      return program.run(NodeCases.given(inputs), false).get("o0");
    }
  }

  /** Which ONNX Runtime refuses: masks that are for all queries, or lack the last keys. */
  @Test
  void masksAreBroadcastAndFilled() {
    try (PointerScope scope = new PointerScope()) {
      Tensor[] inputs = {floats(QUERIES), floats(KEYS), floats(KEYS), null};
      for (boolean choosing : new boolean[] {false, true}) {
        Tensor whole = choosing ? bools(0.8, 2, 1, 1, 7) : floats(2, 1, 1, 7);
        Tensor cut = whole.narrow(3, 0, 4);
        Tensor filled = choosing ? torch.zeros_like(whole) : hiding(torch.zeros_like(whole));
        filled.narrow(3, 0, 4).copy_(cut);
        for (Tensor mask : new Tensor[] {whole, cut}) {
          inputs[3] = mask;
          Tensor actual = run(24, attention(), inputs);
          inputs[3] = (mask == cut ? filled : whole).expand(2, 3, 5, 7).contiguous();
          Tensor expected = run(24, attention(), inputs);
          assertTrue(torch.equal(expected, actual), Boolean.toString(choosing));
        }
      }
    }
  }

  @Test
  void rotationsAgreeWithOnnxRuntime() {
    try (PointerScope scope = new PointerScope()) {
      Tensor places = torch.randint(9, new long[] {2, 5});
      for (int interleaved = 0; interleaved < 2; interleaved++) {
        AttributeProto i = integer("interleaved", interleaved);
        AttributeProto heads = integer("num_heads", 3);
        AttributeProto part = integer("rotary_embedding_dim", 4);
        String op = "RotaryEmbedding";
        same(23, node(op, i), floats(QUERIES), floats(9, 4), floats(9, 4), places);
        same(23, node(op, i, part), floats(QUERIES), floats(9, 2), floats(9, 2), places);
        same(23, node(op, i), floats(QUERIES), floats(2, 5, 4), floats(2, 5, 4));
        Tensor rows = floats(2, 5, 24);
        same(23, node(op, i, heads), rows, floats(9, 4), floats(9, 4), places);
        same(23, node(op, i, heads, part), rows, floats(9, 2), floats(9, 2), places);
        same(26, node(op, i, heads), rows, floats(2, 5, 4), floats(2, 5, 4));
      }
      assertEquals("", String.join("\n", PROBLEMS));
    }
  }

  @Test
  void othersAgreeWithOnnxRuntime() {
    try (PointerScope scope = new PointerScope()) {
      AttributeProto second = integer("axis", 1);
      same(23, node("RMSNormalization"), floats(2, 3, 4), floats(4));
      same(26, node("RMSNormalization", real("epsilon", 0.1f)), floats(2, 3, 4), floats(4));
      same(23, node("RMSNormalization", second), floats(2, 3, 4), floats(3, 4));
      same(23, node("RMSNormalization", second), floats(2, 3, 4), floats(4));
      same(24, node("Swish"), floats(3, 4));
      same(24, node("Swish", real("alpha", 1.7f)), floats(3, 4));
      AttributeProto circular = text("mode", "circular");
      Tensor cache = floats(2, 3, 6, 4);
      same(24, node("TensorScatter"), cache, floats(2, 3, 2, 4), longs(1, 4));
      same(24, node("TensorScatter"), cache, floats(2, 3, 2, 4));
      same(26, node("TensorScatter", circular), cache, floats(2, 3, 3, 4), longs(5, 4));
      same(24, node("TensorScatter", second), floats(2, 6, 4), floats(2, 3, 4), longs(2, 3));
      AttributeProto last = integer("axis", -1);
      same(24, node("TensorScatter", last), floats(2, 3, 6), floats(2, 3, 4), longs(2, 1));
      for (int exclusive = 0; exclusive < 2; exclusive++) {
        for (int reverse = 0; reverse < 2; reverse++) {
          AttributeProto e = integer("exclusive", exclusive);
          AttributeProto r = integer("reverse", reverse);
          same(26, node("CumProd", e, r), floats(2, 4), longs(1));
          same(26, node("CumSum", e, r), floats(2, 4), longs(1));
        }
      }
      same(26, node("BitCast", integer("to", 6)), floats(2, 4));
      same(26, node("BitCast", integer("to", 1)), ints(1065353216, 5));
      Tensor scale = torch.rand(1).reshape(new long[0]);
      Tensor eight = ints(3, -4, 5).to(ScalarType.Char);
      same(23, node("DequantizeLinear", integer("output_dtype", 1)), eight, scale);
      same(25, node("DequantizeLinear"), eight, scale);
      same(23, node("QuantizeLinear", integer("precision", 1)), floats(2, 3), scale);
      same(25, node("QuantizeLinear", integer("output_dtype", 3)), floats(2, 3), scale);
      same(24, node("Cast", integer("to", 10), text("round_mode", "up")), floats(2, 3));
      // New types alone.
      for (int opset : new int[] {23, 24, 25, 26}) {
        same(opset, node("TopK"), 2, floats(2, 5), longs(2));
        same(opset, node("Reshape"), floats(2, 6), longs(0, 3, -1));
        same(opset, node("Transpose"), floats(2, 6));
        same(opset, node("Pad"), floats(2, 3), longs(1, 0, 0, 2));
        same(opset, node("Squeeze"), floats(2, 1, 3));
        same(opset, node("Flatten"), floats(2, 1, 3));
        same(opset, node("Shape"), floats(2, 1, 3));
        same(opset, node("LayerNormalization"), floats(2, 3), floats(3), floats(3));
      }
      assertEquals("", String.join("\n", PROBLEMS));
    }
  }

  /** libtorch stores them and compares none. */
  @Test
  void wideUnsignedIntegersAreCompared() {
    try (PointerScope scope = new PointerScope()) {
      for (ScalarType type : new ScalarType[] {ScalarType.UInt16, ScalarType.UInt32}) {
        Tensor a = ints(1, 40000, 65535).to(type);
        Tensor b = ints(1, 3, 40001).to(type);
        assertEquals("0 1 1", bits(run(24, node("Greater"), a, b)));
        assertEquals("1 1 1", bits(run(24, node("GreaterOrEqual"), a, b)));
        assertEquals("0 0 0", bits(run(24, node("Less"), a, b)));
        assertEquals("1 0 0", bits(run(24, node("LessOrEqual"), a, b)));
      }
    }
  }

  private static String bits(Tensor bools) {
    assertEquals(ScalarType.Bool, ElementTypes.of(bools));
    return IntStream.range(0, (int) bools.numel())
        .mapToObj(i -> bools.select(0, i).item_bool() ? "1" : "0")
        .collect(Collectors.joining(" "));
  }

  @Test
  void gradientsAreSlopes() {
    try (PointerScope scope = new PointerScope()) {
      Tensor q = floats(QUERIES);
      Tensor k = floats(KEYS);
      Tensor mask = floats(5, 7);
      AttributeProto causal = integer("is_causal", 1);
      slopes(23, attention(causal, real("softcap", 2)), 3, q, k, k, mask);
      slopes(23, attention(integer("qk_matmul_output_mode", 3)), 4, q, k, k, blind());
      slopes(24, attention(causal), 1, q, k, k, null, null, null, longs(3, 6));
      Tensor now = floats(2, 5, 24);
      Tensor past = floats(2, 3, 4, 8);
      slopes(23, rows(6, 3, causal), 3, floats(2, 5, 48), now, now, null, past, past);
      Tensor places = torch.randint(9, new long[] {2, 5});
      slopes(23, node("RotaryEmbedding"), 1, q, floats(9, 4), floats(9, 4), places);
      slopes(23, node("RMSNormalization"), 1, floats(2, 3, 4), floats(4));
      slopes(24, node("Swish", real("alpha", 1.7f)), 1, floats(3, 4));
      slopes(24, node("TensorScatter"), 1, floats(2, 3, 6, 4), floats(2, 3, 2, 4), longs(1, 4));
      slopes(26, node("CumProd"), 1, floats(2, 4), longs(1));
    }
  }

  private static void refused(String part, int opset, NodeProto.Builder node, Tensor... inputs) {
    OnnxModel model = model(opset, node, 1, inputs);
    String message =
        assertThrows(
                InputException.class, () -> new Program(model, Map.of(), TorchDevice.CPU).close())
            .getMessage();
    assertTrue(message.contains(part), message);
  }

  private static void fails(String part, NodeProto.Builder node, Tensor... inputs) {
    String message = assertThrows(InputException.class, () -> run(24, node, inputs)).getMessage();
    assertTrue(message.contains(part), message);
  }

  @Test
  void whatIsWrongIsSaid() {
    try (PointerScope scope = new PointerScope()) {
      Tensor x = floats(QUERIES);
      Tensor rows = floats(2, 5, 24);
      refused("operator set 27", 27, node("Relu"), x);
      refused("Attention of operator set 22", 22, attention(), x, x, x);
      refused("Swish of operator set 23", 23, node("Swish"), x);
      refused("past_key and past_value", 23, attention(), x, x, x, null, x);
      refused("nonpad_kv_seqlen", 24, attention(), x, x, x, null, x, x, longs(5, 5));
      refused("given together", 23, attention(integer("q_num_heads", 3)), rows, rows, rows);
      refused("scale = 0", 23, attention(real("scale", 0)), x, x, x);
      AttributeProto mode = integer("qk_matmul_output_mode", 4);
      refused("qk_matmul_output_mode = 4", 23, attention(mode), x, x, x);
      AttributeProto precision = integer("softmax_precision", 6);
      refused("softmax_precision = 6", 23, attention(precision), x, x, x);
      AttributeProto window = integer("left_window_size", 2);
      refused("the attribute left_window_size", 25, attention(window), x, x, x);
      refused("mode = 'other'", 24, node("TensorScatter", text("mode", "other")), x, x);
      refused("a cast to type 24", 24, node("Cast", integer("to", 24)), x);
      fails("need q_num_heads", attention(), rows, rows, rows);
      fails("3 heads of queries are no multiple of 2", attention(), x, floats(2, 2, 5, 8), x);
      fails("need num_heads", node("RotaryEmbedding"), rows, floats(9, 4), floats(9, 4));
      fails("turns 8 numbers", node("RotaryEmbedding"), x, floats(2, 5, 2), floats(2, 5, 2));
    }
  }

  @Test
  void allButBitCastAreWrittenInTorchScript() {
    List<String> names =
        List.of(
            "Attention",
            "CumProd",
            "RMSNormalization",
            "RotaryEmbedding",
            "Swish",
            "TensorScatter");
    assertTrue(Program.operators().containsAll(names));
    assertTrue(GraphScript.operators().containsAll(names));
  }
}
