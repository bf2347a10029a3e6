package org.espalier.torch.onnx;

import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.torch.onnx.NodeCases.PROBLEMS;
import static org.espalier.torch.onnx.NodeCases.floats;
import static org.espalier.torch.onnx.NodeCases.integer;
import static org.espalier.torch.onnx.NodeCases.integers;
import static org.espalier.torch.onnx.NodeCases.node;
import static org.espalier.torch.onnx.NodeCases.runtime;
import static org.espalier.torch.onnx.NodeCases.same;
import static org.espalier.torch.onnx.NodeCases.slopes;
import static org.espalier.torch.onnx.NodeCases.text;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnxruntime.OrtException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.JitModule;
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

/** The operators that ONNX Runtime adds to those of ONNX, one node a case, against ONNX Runtime. */
class RuntimeOperatorsTest {
  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(12);
    PROBLEMS.clear();
  }

  private static Tensor ints(Tensor longs) {
    return longs.to(ScalarType.Int);
  }

  private static Tensor random(long below, long... shape) {
    return torch.rand(shape).mul(new Scalar(below)).to(ScalarType.Int);
  }

  private static NodeProto.Builder named(NodeProto.Builder node, String... outputs) {
    return node.addAllOutput(List.of(outputs));
  }

  /** A norm of a sum that gives the sum too. */
  private static NodeProto.Builder withSum(String operator) {
    return named(runtime(operator), "o0", "", "", "o1");
  }

  @Test
  void norms() {
    try (PointerScope scope = new PointerScope()) {
      for (int axis : new int[] {-1, 1}) {
        long[] scale = axis == 1 ? new long[] {3, 8} : new long[] {8};
        same(
            17,
            node("SimplifiedLayerNormalization", integer("axis", axis), real("epsilon", 1e-3f)),
            2,
            floats(2, 3, 8),
            floats(scale));
      }
      same(17, node("SimplifiedLayerNormalization"), floats(2, 8), floats(8));
      Tensor x = floats(2, 3, 8);
      for (Tensor skip : new Tensor[] {floats(2, 3, 8), floats(1, 3, 8), floats(3, 8)}) {
        AttributeProto epsilon = real("epsilon", 1e-3f);
        NodeProto.Builder simplified = runtime("SkipSimplifiedLayerNormalization", epsilon);
        same(17, simplified, x, skip, floats(8), floats(8));
        NodeProto.Builder whole = runtime("SkipLayerNormalization", epsilon);
        same(17, whole, x, skip, floats(8), floats(8), floats(8));
      }
      same(17, runtime("SkipLayerNormalization"), x, x, floats(8));
      same(17, runtime("SkipLayerNormalization"), x, x, floats(8), null, floats(8));
      same(17, runtime("SkipSimplifiedLayerNormalization"), x, x, floats(8));
      NodeProto.Builder sum = withSum("SkipLayerNormalization");
      same(17, sum, 0, x, x, floats(8), floats(8), floats(8));
      same(17, withSum("SkipSimplifiedLayerNormalization"), 0, x, x, floats(8));
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  @Test
  void embeddings() {
    try (PointerScope scope = new PointerScope()) {
      Tensor ids = random(20, 2, 5);
      Tensor parts = random(2, 2, 5);
      Tensor words = floats(20, 8);
      Tensor places = floats(9, 8);
      Tensor segments = floats(2, 8);
      Tensor mask = AbstractTensor.create(new int[] {1, 1, 1, 0, 0, 1, 1, 1, 1, 1}, 2, 5);
      Tensor positions = AbstractTensor.create(new int[] {2, 3, 4, 5, 8}, 1, 5);
      Tensor given = random(9, 2, 5);
      for (Tensor p : new Tensor[] {null, positions, given}) {
        NodeProto.Builder n = runtime("EmbedLayerNormalization", real("epsilon", 1e-3f));
        Tensor scale = floats(8);
        Tensor bias = floats(8);
        same(17, n.clone(), 3, ids, parts, words, places, segments, scale, bias, mask, p);
        same(17, n.clone(), 2, ids, null, words, places, null, scale, bias, null, p);
      }
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  @Test
  void activationsAndProducts() {
    try (PointerScope scope = new PointerScope()) {
      same(17, runtime("Gelu"), floats(3, 8));
      same(17, runtime("FastGelu"), floats(3, 8));
      same(17, runtime("FastGelu"), floats(3, 8), floats(8));
      same(17, runtime("BiasGelu"), floats(2, 3, 8), floats(8));
      same(17, runtime("QuickGelu"), floats(3, 8));
      same(17, runtime("QuickGelu", real("alpha", 0.7f)), floats(3, 8));
      for (int a = 0; a < 2; a++) {
        for (int b = 0; b < 2; b++) {
          Tensor left = a == 1 ? floats(2, 3, 5, 4) : floats(2, 3, 4, 5);
          Tensor right = b == 1 ? floats(2, 3, 6, 5) : floats(2, 3, 5, 6);
          AttributeProto[] turns = {integer("transA", a), integer("transB", b)};
          same(17, runtime("FusedMatMul", turns).addAttribute(real("alpha", 0.3f)), left, right);
          Tensor batchLeft = a == 1 ? floats(5, 2, 3, 4) : floats(4, 2, 3, 5);
          AttributeProto turn = integer("transBatchA", 1);
          same(17, runtime("FusedMatMul", turns).addAttribute(turn), batchLeft, right);
          Tensor batchRight = b == 1 ? floats(6, 2, 3, 5) : floats(5, 2, 3, 6);
          turn = integer("transBatchB", 1);
          same(17, runtime("FusedMatMul", turns).addAttribute(turn), left, batchRight);
        }
      }
      same(17, runtime("FusedMatMul", integer("transA", 1)), floats(5), floats(5, 3));
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  @Test
  void rotations() {
    try (PointerScope scope = new PointerScope()) {
      Tensor cos = floats(12, 4);
      Tensor sin = floats(12, 4);
      Tensor first = AbstractTensor.create(new long[] {3}, 1);
      Tensor each = random(12, 2, 5).to(ScalarType.Long);
      for (Tensor positions : new Tensor[] {first, each}) {
        for (int interleaved = 0; interleaved < 2; interleaved++) {
          AttributeProto pairs = integer("interleaved", interleaved);
          NodeProto.Builder plain = runtime("RotaryEmbedding", pairs);
          NodeProto.Builder scaled = runtime("RotaryEmbedding", pairs, real("scale", 0.5f));
          NodeProto.Builder part =
              runtime(
                  "RotaryEmbedding",
                  pairs,
                  integer("num_heads", 2),
                  integer("rotary_embedding_dim", 8));
          same(17, plain.clone(), floats(2, 5, 24), positions, cos, sin);
          same(17, plain.clone(), floats(2, 3, 5, 8), positions, cos, sin);
          same(17, scaled, floats(2, 5, 24), positions, cos, sin);
          same(17, part.clone(), floats(2, 5, 24), positions, cos, sin);
          same(17, part.clone(), floats(2, 2, 5, 12), positions, cos, sin);
        }
      }
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  private static NodeProto.Builder grouped(long heads, long shared, AttributeProto... more) {
    return runtime("GroupQueryAttention", more)
        .addAttribute(integer("num_heads", heads))
        .addAttribute(integer("kv_num_heads", shared));
  }

  private static List<NodeProto.Builder> groupedForms(long heads, long shared) {
    List<NodeProto.Builder> forms = new ArrayList<>();
    forms.add(grouped(heads, shared));
    forms.add(grouped(heads, shared, real("scale", 0.2f)));
    forms.add(grouped(heads, shared, real("softcap", 0.4f)));
    forms.add(grouped(heads, shared, integer("local_window_size", 2)));
    forms.add(grouped(heads, shared, integer("smooth_softmax", 1)));
    forms.add(grouped(heads, shared, integer("smooth_softmax", -1)));
    forms.add(
        grouped(
            heads,
            shared,
            real("softcap", 0.4f),
            integer("local_window_size", 3),
            integer("smooth_softmax", 1)));
    return forms;
  }

  /** Of texts that begin: padded behind their ends, with and without a place for what was read before. */
  @Test
  void groupQueriesOfTextsThatBegin() {
    try (PointerScope scope = new PointerScope()) {
      long width = 16;
      Tensor cos = floats(12, 8);
      Tensor sin = floats(12, 8);
      Tensor total = AbstractTensor.create(new int[] {5}, 1);
      Tensor full = NodeCases.ints(4, 4);
      for (long[] heads : new long[][] {{4, 4}, {4, 2}, {3, 1}}) {
        Tensor q = floats(2, 5, heads[0] * width);
        Tensor k = floats(2, 5, heads[1] * width);
        Tensor v = floats(2, 5, heads[1] * width);
        Tensor packed = torch.cat(new org.bytedeco.pytorch.TensorVector(q, k, v), -1);
        Tensor none = floats(2, heads[1], 0, width);
        for (NodeProto.Builder form : groupedForms(heads[0], heads[1])) {
          same(17, form.clone(), 3, q, k, v, none, none, full, total);
          same(17, form.clone(), 3, packed, null, null, none, none, full, total);
          same(17, form.clone(), 3, packed, null, null, null, null, full, total);
          for (int interleaved = 0; interleaved < 2; interleaved++) {
            NodeProto.Builder rotary =
                form.clone()
                    .addAttribute(integer("do_rotary", 1))
                    .addAttribute(integer("rotary_interleaved", interleaved));
            same(17, rotary.clone(), 3, q, k, v, none, none, full, total, cos, sin);
            same(17, rotary.clone(), 3, packed, null, null, none, none, full, total, cos, sin);
          }
          Tensor bias = floats(1, heads[0], 5, 5);
          Tensor[] biased = {q, k, v, none, none, full, total, null, null, null, bias};
          same(17, form.clone(), 3, biased);
          same(17, form.clone(), 3, with(biased, floats(heads[0])));
        }
      }
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  /** What lies behind the end of a text is not compared: ONNX Runtime leaves there what memory has. */
  @Test
  void groupQueriesOfPaddedTexts() throws OrtException {
    try (PointerScope scope = new PointerScope()) {
      long[] lengths = {3, 5};
      Tensor last = NodeCases.ints(2, 4);
      Tensor total = AbstractTensor.create(new int[] {5}, 1);
      NodeProto.Builder node = grouped(4, 2, integer("do_rotary", 1));
      Tensor[] inputs = {
        floats(2, 5, 128), null, null, null, null, last, total, floats(9, 8), floats(9, 8)
      };
      OnnxModel model = NodeCases.model(17, node, 3, inputs);
      Map<String, Tensor> given = NodeCases.given(inputs);
      try (Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
        Map<String, Tensor> expected = OnnxRuntime.run(model, given);
        Map<String, Tensor> actual = program.run(given, false);
        JitModule module = GraphScript.module(model);
        List<Tensor> written = GraphScriptConformanceTest.run(module, given.values(), 3);
        for (int text = 0; text < 2; text++) {
          for (int o = 0; o < 3; o++) {
            int axis = o == 0 ? 0 : 1;
            Tensor wanted = expected.get("o" + o).select(0, text).narrow(axis, 0, lengths[text]);
            for (Tensor all : List.of(actual.get("o" + o), written.get(o))) {
              Tensor got = all.select(0, text).narrow(axis, 0, lengths[text]);
              assertTrue(torch.allclose(got, wanted, 1e-4, 1e-5, false), "output " + o);
              assertTrue(all.isfinite().all().item_bool(), "padding of output " + o);
            }
          }
        }
      }
    }
  }

  private static Tensor[] with(Tensor[] first, Tensor... more) {
    return Stream.concat(Stream.of(first), Stream.of(more)).toArray(Tensor[]::new);
  }

  @Test
  void groupQueriesOfTextsThatGoOn() {
    try (PointerScope scope = new PointerScope()) {
      Tensor cos = floats(12, 8);
      Tensor sin = floats(12, 8);
      for (long[] heads : new long[][] {{4, 4}, {4, 2}}) {
        for (NodeProto.Builder form : groupedForms(heads[0], heads[1])) {
          NodeProto.Builder rotary = form.clone().addAttribute(integer("do_rotary", 1));
          // One token more, of texts of which different numbers were read.
          Tensor past = floats(2, heads[1], 4, 16);
          Tensor q = floats(2, 1, heads[0] * 16);
          Tensor k = floats(2, 1, heads[1] * 16);
          Tensor total = AbstractTensor.create(new int[] {5}, 1);
          Tensor last = NodeCases.ints(4, 2);
          same(17, form.clone(), 3, q, k, k, past, past, last, total);
          same(17, rotary.clone(), 3, q, k, k, past, past, last, total, cos, sin);
          // Several tokens more of one text.
          Tensor one = floats(1, heads[1], 4, 16);
          Tensor more = floats(1, 3, heads[0] * 16);
          Tensor keys = floats(1, 3, heads[1] * 16);
          Tensor seven = AbstractTensor.create(new int[] {7}, 1);
          Tensor[] on = {more, keys, keys, one, one, NodeCases.ints(6), seven};
          same(17, form.clone(), 3, on);
          same(17, rotary.clone(), 3, with(on, cos, sin));
          Tensor bias = floats(1, heads[0], 3, 7);
          same(17, form.clone(), 3, with(on, null, null, null, bias));
          same(17, form.clone(), 3, with(on, null, null, null, null, floats(heads[0])));
          Tensor positions = AbstractTensor.create(new long[] {1, 7, 9}, 1, 3);
          same(17, rotary.clone(), 3, with(on, cos, sin, positions));
        }
      }
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  private static List<Tensor> masks(long texts, long tokens, long all) {
    List<Tensor> masks = new ArrayList<>();
    masks.add(null);
    masks.add(NodeCases.ints(3, (int) all));
    masks.add(random(2, texts, all));
    masks.add(random(2, texts, tokens, all));
    return masks;
  }

  @Test
  void attentionOfSeveralHeads() {
    try (PointerScope scope = new PointerScope()) {
      for (int causal = 0; causal < 2; causal++) {
        for (Tensor mask : masks(2, 5, 5)) {
          NodeProto.Builder form =
              runtime(
                  "MultiHeadAttention", integer("num_heads", 3), integer("unidirectional", causal));
          NodeProto.Builder other =
              form.clone()
                  .addAttribute(real("scale", 0.3f))
                  .addAttribute(real("mask_filter_value", -2));
          Tensor q = floats(2, 5, 24);
          Tensor k = floats(2, 5, 24);
          Tensor v = floats(2, 5, 12);
          for (Tensor bias : new Tensor[] {null, floats(60)}) {
            for (Tensor scores : new Tensor[] {null, floats(1, 3, 5, 5), floats(2, 1, 5, 5)}) {
              same(17, form.clone(), 1, q, k, v, bias, mask, scores);
              same(17, other.clone(), 3, q, k, v, bias, mask, scores);
            }
          }
        }
        for (Tensor mask : masks(2, 2, 6)) {
          NodeProto.Builder form =
              runtime(
                  "MultiHeadAttention", integer("num_heads", 3), integer("unidirectional", causal));
          Tensor past = floats(2, 3, 4, 8);
          Tensor now = floats(2, 2, 24);
          same(17, form.clone(), 3, now, now, now, floats(72), mask, null, past, past);
          Tensor scores = floats(1, 3, 2, 6);
          same(17, form.clone(), 3, now, now, now, null, mask, scores, past, past);
          Tensor none = floats(2, 3, 0, 8);
          Tensor begin = floats(2, 6, 24);
          Tensor fits = mask != null && mask.dim() == 3 ? null : mask;
          same(17, form.clone(), 3, begin, begin, begin, null, fits, null, none, none);
        }
        // Of a text to another, whose keys and values come by head.
        NodeProto.Builder cross = runtime("MultiHeadAttention", integer("num_heads", 3));
        same(17, cross.clone(), 1, floats(2, 5, 24), floats(2, 7, 24), floats(2, 7, 24));
        same(17, cross.clone(), 1, floats(2, 5, 24), floats(2, 3, 7, 8), floats(2, 3, 7, 8));
      }
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  @Test
  void attentionWithItsProduct() {
    try (PointerScope scope = new PointerScope()) {
      for (int causal = 0; causal < 2; causal++) {
        List<Tensor> masks = masks(2, 5, 5);
        masks.add(NodeCases.ints(4, 5, 1, 0));
        for (Tensor mask : masks) {
          NodeProto.Builder form =
              runtime("Attention", integer("num_heads", 3), integer("unidirectional", causal));
          for (Tensor scores : new Tensor[] {null, floats(1, 3, 5, 5)}) {
            Tensor x = floats(2, 5, 12);
            same(17, form.clone(), 1, x, floats(12, 72), floats(72), mask, null, scores);
            NodeProto.Builder parts =
                form.clone()
                    .addAttribute(integers("qkv_hidden_sizes", 24, 24, 12))
                    .addAttribute(real("mask_filter_value", -2))
                    .addAttribute(real("scale", 0.2f));
            same(17, parts, 1, x, floats(12, 60), floats(60), mask, null, scores);
          }
        }
        for (Tensor mask : masks(2, 2, 6)) {
          NodeProto.Builder form =
              runtime("Attention", integer("num_heads", 3), integer("unidirectional", causal));
          Tensor past = floats(2, 2, 3, 4, 8);
          same(17, form, 2, floats(2, 2, 12), floats(12, 72), floats(72), mask, past);
        }
      }
    }
    assertEquals("", String.join("\n", PROBLEMS));
  }

  @Test
  void gradientsAreSlopes() {
    try (PointerScope scope = new PointerScope()) {
      Tensor x = floats(2, 5, 24);
      slopes(17, node("SimplifiedLayerNormalization"), 1, x, floats(24));
      slopes(17, withSum("SkipSimplifiedLayerNormalization"), 0, x, x, floats(24), floats(24));
      slopes(17, withSum("SkipLayerNormalization"), 0, x, x, floats(24), floats(24), floats(24));
      slopes(
          17,
          runtime("EmbedLayerNormalization"),
          3,
          random(20, 2, 5),
          random(2, 2, 5),
          floats(20, 8),
          floats(9, 8),
          floats(2, 8),
          floats(8),
          floats(8));
      slopes(17, runtime("BiasGelu"), 1, x, floats(24));
      slopes(17, runtime("FastGelu"), 1, x, floats(24));
      slopes(17, runtime("QuickGelu"), 1, x);
      slopes(17, runtime("FusedMatMul", integer("transB", 1)), 1, x, x);
      Tensor last = NodeCases.ints(4, 4);
      Tensor five = AbstractTensor.create(new int[] {5}, 1);
      Tensor cos = floats(9, 8);
      Tensor sin = floats(9, 8);
      Tensor none = floats(2, 2, 0, 16);
      Tensor all = floats(2, 5, 128);
      NodeProto.Builder group =
          grouped(4, 2, integer("do_rotary", 1), real("softcap", 2), integer("smooth_softmax", 1));
      slopes(17, group, 3, all, null, null, none, none, last, five, cos, sin);
      Tensor past = floats(2, 2, 4, 16);
      Tensor more = floats(2, 1, 128);
      slopes(
          17,
          grouped(4, 2, integer("local_window_size", 2)),
          3,
          more,
          null,
          null,
          past,
          past,
          NodeCases.ints(4, 2),
          five);
      Tensor mask = random(2, 2, 5);
      slopes(
          17,
          runtime("MultiHeadAttention", integer("num_heads", 3), integer("unidirectional", 1)),
          3,
          x,
          x,
          x,
          floats(72),
          mask,
          floats(1, 3, 5, 5));
      slopes(
          17,
          runtime("Attention", integer("num_heads", 3)),
          2,
          x,
          floats(24, 72),
          floats(72),
          mask);
    }
  }

  private static void refused(String part, NodeProto.Builder node, Tensor... inputs) {
    OnnxModel model = NodeCases.model(17, node, node.getOutputCount() == 0 ? 1 : 0, inputs);
    String message =
        assertThrows(
                InputException.class, () -> new Program(model, Map.of(), TorchDevice.CPU).close())
            .getMessage();
    assertTrue(message.contains(part), message);
    message = assertThrows(InputException.class, () -> GraphScript.check(model)).getMessage();
    assertTrue(message.contains(part), message);
  }

  @Test
  void allAreWrittenInTorchScript() {
    Set<String> run = new TreeSet<>(Program.operators());
    run.removeIf(name -> !name.startsWith("com.microsoft."));
    assertTrue(run.size() >= 12, run.toString());
    assertTrue(GraphScript.operators().containsAll(run), run.toString());
  }

  @Test
  void whatIsNotCoveredIsRefusedByName() {
    try (PointerScope scope = new PointerScope()) {
      Tensor x = floats(2, 5, 24);
      refused("com.microsoft.MatMulNBits", runtime("MatMulNBits"), x, x);
      refused(
          "is_packed_batching = 1",
          runtime("RotaryEmbedding", integer("is_packed_batching", 1)),
          x,
          x,
          x,
          x);
      refused("no multiple of kv_num_heads = 2", grouped(3, 2), x);
      refused("local_window_size = 0", grouped(4, 2, integer("local_window_size", 0)), x);
      Tensor[] many = new Tensor[16];
      Arrays.fill(many, x);
      refused("q_norm_weight", grouped(4, 2), many);
      refused("k_quant_type = 'PER_TENSOR'", grouped(4, 2, text("k_quant_type", "PER_TENSOR")), x);
      refused(
          "an output of scores",
          named(grouped(4, 2), "o0", "o1", "o2", "o3"),
          x,
          null,
          null,
          null,
          null,
          x,
          x);
      refused("the attribute kv_cache_bits", grouped(4, 2, integer("kv_cache_bits", 8)), x);
      refused(
          "do_rotary = 1",
          runtime("Attention", integer("num_heads", 3), integer("do_rotary", 1)),
          x,
          x);
      refused(
          "past_present_share_buffer = 1",
          runtime("Attention", integer("num_heads", 3), integer("past_present_share_buffer", 1)),
          x,
          x);
      refused(
          "an output of statistics",
          runtime("SkipLayerNormalization").addOutput("o0").addOutput("o1"),
          x,
          x,
          x);
    }
  }
}
