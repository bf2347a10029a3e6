package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.Libtorch;
import org.espalier.torch.onnx.OnnxRuntime;
import org.espalier.transformers.PublishedLayouts.Integers;
import org.espalier.transformers.PublishedLayouts.Words;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Checkpoints of fp8, GPTQ and AWQ give what those of the floats that they stand for give. */
class PublishedLayoutsTest {
  private static final String LLAMA =
      """
      {"model_type": "llama", "architectures": ["LlamaModel"], "hidden_size": 160,
       "intermediate_size": 208, "vocab_size": 30, "num_hidden_layers": 2,
       "num_attention_heads": 2, "max_position_embeddings": 16}
      """;

  private static final String LAYER = "model.layers.0.self_attn.q_proj";

  @TempDir private Path folder;

  @BeforeEach
  void load() {
    Libtorch.load();
  }

  private static PublishedLayouts llama() {
    return new PublishedLayouts(SmallCheckpoint.languageModel(30, 160, 208, 2));
  }

  private static String with(String config, String settings) {
    return config.replaceFirst("\\{", "{" + settings.replace("\\", "\\\\") + ", ");
  }

  private OnnxModel read(SmallCheckpoint weights, String config) throws IOException {
    weights.write(folder, config);
    return TransformersModel.read(folder, note -> {});
  }

  private static float[] states(OnnxModel model) throws Exception {
    try (PointerScope scope = new PointerScope()) {
      Tensor ids = torch.tensor(new long[] {3, 17, 0, 29, 8, 8, 21, 4}).reshape(2, 4);
      Map<String, Tensor> outputs =
          OnnxRuntime.run(
              model,
              Map.of("input_ids", ids, "attention_mask", torch.ones(2, 4).to(ScalarType.Long)));
      Tensor states = outputs.get("last_hidden_state").contiguous();
      float[] values = new float[(int) states.numel()];
      new FloatPointer(states.data_ptr()).get(values);
      return values;
    }
  }

  /** The model with activations as they are. */
  private static OnnxModel exact(OnnxModel model) {
    OnnxModel exact = model.copy();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : exact.nodes()) {
      NodeProto.Builder copy = n.toBuilder();
      for (int a = 0; a < n.getAttributeCount(); a++) {
        if (n.getAttribute(a).getName().equals("accuracy_level")) {
          copy.removeAttribute(a);
        }
      }
      nodes.add(copy.build());
    }
    exact.setNodes(nodes);
    return exact;
  }

  private static long count(OnnxModel model, String operator) {
    return model.nodes().stream().filter(n -> n.getOpType().equals(operator)).count();
  }

  /** How far values are from others, of their norm. */
  private static double distance(float[] expected, float[] actual) {
    assertEquals(expected.length, actual.length);
    double apart = 0;
    double all = 0;
    for (int i = 0; i < expected.length; i++) {
      apart += Math.pow(expected[i] - actual[i], 2);
      all += Math.pow(expected[i], 2);
    }
    return Math.sqrt(apart / all);
  }

  private OnnxModel compare(PublishedLayouts made, String config, Integers how) throws Exception {
    OnnxModel model = read(made.packed, with(config, how.settings()));
    float[] expected = states(read(made.plain, config));
    made.packed.write(folder, with(config, how.settings())); // mapped by the model
    double apart = distance(expected, states(exact(model)));
    assertTrue(apart < 1e-5, how + ": " + apart);
    double rounded = distance(expected, states(model));
    assertTrue(rounded < 0.03, how + ": " + rounded);
    assertEquals(made.layers().size(), count(model, "MatMulNBits"));
    HostileConfigs.areRefusedOrRead(folder);
    return model;
  }

  @ParameterizedTest
  @CsvSource({
    "GPTQ, 4, 32, false, false",
    "GPTQ, 4, 128, true, false",
    "GPTQ, 4, 128, false, true",
    "GPTQ, 4, 48, false, true",
    "GPTQ, 4, 256, false, false",
    "GPTQ, 4, -1, false, true",
    "GPTQ, 8, 32, false, false",
    "GPTQ, 8, 128, true, true",
    "GPTQ, 8, 128, false, true",
    "GPTQ, 8, -1, false, false",
    "GPTQ_V2, 4, 64, false, true",
    "GPTQ_V2, 8, 16, false, false",
    "AWQ, 4, 16, false, false",
    "AWQ, 4, 32, true, false",
    "AWQ, 4, 80, false, false",
    "AWQ, 4, 128, false, false",
    "AWQ, 4, -1, false, false"
  })
  void integersInWords(Words words, int bits, int group, boolean symmetric, boolean scattered)
      throws Exception {
    PublishedLayouts made = llama();
    Integers how = new Integers(words, bits, group, symmetric, scattered);
    made.layers().forEach(layer -> made.integers(layer, how));
    OnnxModel model = compare(made, LLAMA, how);
    long more = model.nodes().stream().filter(n -> n.getName().endsWith("proj/Gather")).count();
    assertEquals(scattered && group != -1 ? made.layers().size() : 0, more);
    assertEquals(
        symmetric ? 3 : 4,
        model.nodes().stream()
            .filter(n -> n.getOpType().equals("MatMulNBits"))
            .findFirst()
            .orElseThrow()
            .getInputCount());
  }

  /** One product for queries, keys and values; products whose weights are [in, out] elsewhere; experts. */
  @ParameterizedTest
  @CsvSource({
    "phi3, GPTQ",
    "phi3, AWQ",
    "gpt2, GPTQ",
    "gpt2, AWQ",
    "qwen3_moe, GPTQ",
    "qwen3_moe, AWQ"
  })
  void layersOfOtherKinds(String type, Words words) throws Exception {
    ReferenceDecoder kind =
        switch (type) {
          case "phi3" -> new SmallPhi3("");
          case "gpt2" -> new SmallGpt2("transformer.", "");
          default -> SmallMixture.qwen3("");
        };
    PublishedLayouts made = new PublishedLayouts(kind.weights());
    Integers how = new Integers(words, 4, 16, false, words == Words.GPTQ);
    made.layers().forEach(layer -> made.integers(layer, how));
    compare(made, kind.config().replaceAll("\\w*ForCausalLM|\\w*LMHeadModel", "AnyModel"), how);
  }

  /** Experts of FP8 are what their floats are. */
  @Test
  void expertsOfFloats() throws Exception {
    SmallMixture kind = SmallMixture.qwen2("");
    PublishedLayouts made = new PublishedLayouts(kind.weights());
    made.layers().forEach(layer -> made.floats(layer, 16, 16, SafetensorsDtype.F32, true));
    String config = kind.config().replace("qwen2_moeForCausalLM", "AnyModel");
    float[] values = states(read(made.packed, with(config, PublishedLayouts.ofBlocks(16, 16))));
    assertTrue(distance(states(read(made.plain, config)), values) < 1e-5);
  }

  /** Constants of a MiB and more are made when they are asked for. */
  @Test
  void largeLayers() throws Exception {
    String config = LLAMA.replace("208", "16384").replace("layers\": 2", "layers\": 1");
    Integers how = new Integers(Words.GPTQ, 4, 32, false, true);
    for (boolean floats : new boolean[] {false, true}) {
      PublishedLayouts made =
          new PublishedLayouts(SmallCheckpoint.languageModel(30, 160, 16384, 1));
      for (String layer : made.layers()) {
        if (floats) {
          made.floats(layer, 128, 128, SafetensorsDtype.BF16, true);
        } else {
          made.integers(layer, how);
        }
      }
      String settings = floats ? PublishedLayouts.ofBlocks(128, 128) : how.settings();
      float[] values = states(exact(read(made.packed, with(config, settings))));
      assertTrue(distance(states(read(made.plain, config)), values) < 1e-5, settings);
    }
  }

  /** Layers that configurations leave out have weights as ever. */
  @Test
  void layersThatStayFloat() throws Exception {
    PublishedLayouts made = llama();
    Integers how = new Integers(Words.AWQ, 4, 32, false, false);
    made.layers().stream()
        .filter(layer -> layer.contains("mlp"))
        .forEach(layer -> made.integers(layer, how));
    OnnxModel model = read(made.packed, with(LLAMA, how.settings()));
    assertEquals(6, count(model, "MatMulNBits"));
    float[] values = states(exact(model));
    assertTrue(distance(states(read(made.plain, LLAMA)), values) < 1e-5);
  }

  @ParameterizedTest
  @CsvSource({
    "128, 128, F32, false",
    "128, 128, BF16, false",
    "128, 128, F32, true",
    "64, 48, BF16, false",
    "1, 1000, F32, false"
  })
  void floatsOfBlocks(int rows, int columns, SafetensorsDtype type, boolean powers)
      throws Exception {
    PublishedLayouts made = llama();
    made.layers().forEach(layer -> made.floats(layer, rows, columns, type, powers));
    String config = with(LLAMA, PublishedLayouts.ofBlocks(rows, columns));
    OnnxModel model = read(made.packed, config);
    boolean exact = powers || columns == 1000;
    for (String layer : made.layers()) {
      FloatBuffer weight = model.initializer(layer + ".weight").floats();
      FloatBuffer scales = model.initializer(layer + ".weight_scale_inv").floats();
      float[] expected = made.plain.get(layer + ".weight");
      int in = expected.length / scales.limit();
      boolean equal = true;
      for (int i = 0; i < expected.length; i++) {
        float scale = scales.get(i / in);
        double apart = Math.abs((double) weight.get(i) * scale - expected[i]);
        // Half a step of float16; below 2⁻¹⁴ steps are equal.
        double most = Math.max(0x1p-11 * Math.abs(expected[i]), 0x1p-25 * scale);
        assertTrue(apart <= most * (1 + 1e-3), layer + " " + i + ": " + apart);
        equal &= apart <= 1e-6 * Math.abs(expected[i]);
      }
      assertEquals(exact, equal, layer);
    }
    double apart = distance(states(read(made.plain, LLAMA)), states(model));
    assertTrue(apart < (exact ? 1e-5 : 5e-4), apart + "");
    made.packed.write(folder, config);
    HostileConfigs.areRefusedOrRead(folder);
  }

  /** As Transformers and as vLLM call one scale. */
  @ParameterizedTest
  @CsvSource({"weight_scale_inv, activation_scale", "weight_scale, input_scale"})
  void floatsOfOneScale(String scale, String ofInputs) throws Exception {
    PublishedLayouts made = llama();
    int number = 0;
    for (String layer : made.layers()) {
      made.floats(layer, "." + scale, number++ % 2 == 0 ? new long[0] : new long[] {1});
      made.scales(layer + "." + ofInputs, SafetensorsDtype.F32, new float[] {0.1f});
    }
    String settings =
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"activation_scheme\": \"static\"}";
    made.packed.write(folder, with(LLAMA, settings));
    List<String> notes = new ArrayList<>();
    OnnxModel model = TransformersModel.read(folder, notes::add);
    assertEquals(1, notes.size(), notes.toString());
    assertTrue(notes.get(0).contains("'lm_head.weight'"), notes.get(0));
    float[] values = states(model);
    assertTrue(distance(states(read(made.plain, LLAMA)), values) < 1e-5);
  }

  /** The size of blocks that Transformers takes where none is said. */
  @Test
  void floatsOfUsualBlocks() throws Exception {
    PublishedLayouts made = llama();
    made.layers().forEach(layer -> made.floats(layer, 128, 128, SafetensorsDtype.F32, true));
    String settings = "\"quantization_config\": {\"quant_method\": \"fp8\"}";
    float[] values = states(read(made.packed, with(LLAMA, settings)));
    assertTrue(distance(states(read(made.plain, LLAMA)), values) < 1e-5);
  }

  private void refused(String settings, String... words) throws IOException {
    Files.writeString(folder.resolve("config.json"), with(LLAMA, settings));
    InputException e =
        assertThrows(InputException.class, () -> TransformersModel.read(folder, note -> {}));
    for (String word : words) {
      assertTrue(e.getMessage().contains(word), () -> "no '" + word + "' in: " + e.getMessage());
    }
  }

  private void refused(PublishedLayouts made, Integers how, String... words) throws IOException {
    made.packed.write(folder, LLAMA);
    refused(how.settings(), words);
  }

  @Test
  void settingsThatDoNotFit() throws IOException {
    PublishedLayouts made = llama();
    Integers how = new Integers(Words.GPTQ, 4, 32, false, false);
    made.layers().forEach(layer -> made.integers(layer, how));
    made.packed.write(folder, LLAMA);
    String right = how.settings();
    refused("\"more\": 1", LAYER + ".qweight is of GPTQ or AWQ", "quant_method is gptq or awq");
    refused(right.replace("\"gptq\", \"bits\"", "\"gguf\", \"bits\""), "quant_method is 'gguf'");
    refused(right.replace("\"bits\": 4", "\"bits\": 3"), "bits is 3; 4 or 8 is right");
    refused(right.replace("\"bits\": 4, ", ""), "has no bits");
    refused(right.replace("\"bits\": 4", "\"bits\": 8"), ".qweight' is I32[20, 160]", "[40, 160]");
    refused(right.replace(": 32,", ": 0,"), "group_size is 0; -1, for all inputs,");
    refused(right.replace(": 32,", ": 64,"), ".scales' is F16[5, 160]", "[3, 160]");
    refused(right.replace(": 32,", ": 20,"), "groups of 20 inputs; multiples of 16 are right");
    refused(
        right.replace("\"desc_act\": false", "\"desc_act\": 1"), "desc_act is 1; true or false");
    refused(right.replace("\"gptq\",\n \"dynamic\"", "\"marlin\",\n \"dynamic\""), "is 'marlin'");
    refused(
        right.replace("{\"-:", "{\"more\": {\"bits\": 8}, \"-:"), "dynamic: more: bits is 8; 4");
    refused(
        right.replace("{\"-:", "{\"+:more\": {\"group_size\": 64}, \"-:"),
        "dynamic: +:more: group_size is 64; 32, as of all layers, is right");
    refused(right.replace("\"sym\"", "\"is_marlin_format\": true, \"sym\""), "is_marlin_format");
    refused(
        right.replace("\"sym\"", "\"pack_dtype\": \"int16\", \"sym\""), "pack_dtype is 'int16'");
    String awq = new Integers(Words.AWQ, 4, 32, false, false).settings();
    refused(awq, ".qweight' is I32[20, 160]", "I32[160, 20] is right");
    refused(awq.replace("\"gemm\"", "\"gemv\""), "version is 'gemv'");
    refused(awq.replace("\"bits\": 4", "\"bits\": 8"), "bits is 8; 4 is right");
    refused(awq.replace("\"zero_point\": true", "\"zero_point\": false"), "zero_point is false");
    refused(awq.replace("\"version\"", "\"backend\": \"llm-awq\", \"version\""), "backend is");
    String fp8 = PublishedLayouts.ofBlocks(128, 128);
    refused(fp8, ".qweight is of GPTQ or AWQ");
    refused(fp8.replace("[128, 128]", "[128]"), "weight_block_size is [128]; a list of two whole");
    refused(fp8.replace("[128, 128]", "[0, 128]"), "weight_block_size is [0,128]");
    refused(fp8.replace("[128, 128]", "[1.5, 128]"), "weight_block_size is [1.5,128]");
    refused(fp8.replace("\"dynamic\"", "\"token\""), "activation_scheme is 'token'");
    refused(fp8.replace("e4m3", "e5m2"), "fmt is 'e5m2'");
  }

  @Test
  void tensorsThatDoNotFit() throws IOException {
    Integers how = new Integers(Words.GPTQ, 4, 32, false, true);
    PublishedLayouts made = llama();
    made.layers().forEach(layer -> made.integers(layer, how));
    int[] groups = new int[160];
    made.words(LAYER + ".g_idx", groups, 160);
    refused(made, how, LAYER + ".g_idx has too many inputs in group 0 for group_size 32");
    groups[7] = 5;
    made.words(LAYER + ".g_idx", groups, 160);
    refused(made, how, ".g_idx has the group 5; 0 to 4 are right for 160 inputs in groups of 32");
    groups[7] = Integer.MIN_VALUE;
    made.words(LAYER + ".g_idx", groups, 160);
    refused(made, how, ".g_idx has the group -2147483648");
    made.words(LAYER + ".g_idx", groups, 80, 2);
    refused(made, how, ".g_idx' is I32[80, 2]");
    short[] scales = new short[5 * 160];
    scales[799] = 0x7e00;
    made.halves(LAYER + ".scales", SafetensorsDtype.F16, scales, 5, 160);
    refused(made, how, LAYER + ".scales has the scale NaN; finite numbers are right");
    scales[799] = (short) 0xfc00;
    made.halves(LAYER + ".scales", SafetensorsDtype.F16, scales, 5, 160);
    refused(made, how, ".scales has the scale -Infinity");
    made.halves(LAYER + ".scales", SafetensorsDtype.F16, new short[5 * 160], 5, 160);
    made.packed.remove(LAYER + ".g_idx");
    refused(made, how, "has no tensor '" + LAYER + ".g_idx'");
    made.packed.remove(LAYER + ".qzeros");
    refused(made, how, "has no tensor '" + LAYER + ".qzeros'");
    PublishedLayouts floats = llama();
    String fp8 = PublishedLayouts.ofBlocks(128, 128);
    floats.layers().forEach(l -> floats.floats(l, 128, 128, SafetensorsDtype.F32, false));
    floats.packed.write(folder, LLAMA);
    refused(fp8.replace("[128, 128]", "[64, 128]"), "is F32[2, 2]", "[3, 2] is right");
    refused("\"more\": 1", "no tensor '" + LAYER + ".weight_scale'");
    for (float hostile : new float[] {Float.NaN, Float.POSITIVE_INFINITY, Float.MAX_VALUE}) {
      float[] values = {1, 1, hostile, 1};
      floats.scales(LAYER + ".weight_scale_inv", SafetensorsDtype.F32, values, 2, 2);
      floats.packed.write(folder, LLAMA);
      refused(fp8, LAYER + ".weight_scale_inv has the scale");
    }
    floats.packed.addBytes(LAYER + ".weight", SafetensorsDtype.F16, new byte[51200], 160, 160);
    floats.packed.write(folder, LLAMA);
    refused(fp8, LAYER + ".weight' is F16[160, 160]; F8_E4M3[160, 160] is right");
    PublishedLayouts others = llama();
    others.floats(LAYER, 128, 128, SafetensorsDtype.F32, false);
    others.scales(LAYER + ".weight_scale_inv", SafetensorsDtype.F32, new float[] {1});
    others.packed.write(folder, LLAMA);
    refused(fp8, ".weight_scale_inv' is F32[]");
  }

  /** Blocks of zeros, whatever their scale is, are zeros. */
  @Test
  void scalesOfZero() throws Exception {
    PublishedLayouts made = llama();
    made.layers().forEach(layer -> made.floats(layer, 128, 128, SafetensorsDtype.F32, true));
    float[] scales = {0, 0, 0.5f, 0};
    made.scales(LAYER + ".weight_scale_inv", SafetensorsDtype.F32, scales, 2, 2);
    OnnxModel model = read(made.packed, with(LLAMA, PublishedLayouts.ofBlocks(128, 128)));
    FloatBuffer weight = model.initializer(LAYER + ".weight").floats();
    for (int i = 0; i < weight.limit(); i++) {
      boolean zero = i / 160 < 128 || i % 160 >= 128;
      assertTrue(zero ? weight.get(i) == 0 : Float.isFinite(weight.get(i)), i + "");
    }
    for (float value : states(model)) {
      assertTrue(Float.isFinite(value));
    }
  }
}
