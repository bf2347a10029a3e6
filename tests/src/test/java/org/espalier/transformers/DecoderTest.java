package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Language models of each kind give in ONNX Runtime and in libtorch what plain loops compute of the same weights. */
class DecoderTest {
  @TempDir private Path folder;

  @Test
  void llama() throws Exception {
    SmallDecoder model =
        new SmallDecoder("llama", ", \"rope_theta\": 1000.0, \"attention_bias\": true");
    model.turnedBy(SmallDecoder.powers(1000, SmallDecoder.WIDTH));
    model.bias = true;
    model.outputBias = true;
    model.compare(folder);
  }

  @Test
  void llamaOfLongContexts() throws Exception {
    double[] stretched = SmallDecoder.powers(10000, SmallDecoder.WIDTH);
    for (int i = 0; i < stretched.length; i++) {
      double length = 2 * Math.PI / stretched[i];
      if (length > 32.0 / 1) {
        stretched[i] /= 8;
      } else if (length > 32.0 / 4) {
        double smooth = (32 / length - 1) / (4 - 1);
        stretched[i] = (1 - smooth) * stretched[i] / 8 + smooth * stretched[i];
      }
    }
    new SmallDecoder(
            "llama",
            ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0,"
                + " \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
                + " \"original_max_position_embeddings\": 32}")
        .turnedBy(stretched)
        .compare(folder);
  }

  @Test
  void mistral() throws Exception {
    SmallDecoder model =
        new SmallDecoder(
            "mistral",
            ", \"sliding_window\": 4, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}");
    model.turnedBy(
        SmallCheckpoint.each(SmallDecoder.powers(10000, SmallDecoder.WIDTH), f -> f / 2));
    model.dtype = SafetensorsDtype.BF16;
    Arrays.fill(model.windows, 4);
    model.compare(folder);
  }

  @Test
  void qwen2() throws Exception {
    SmallDecoder model =
        new SmallDecoder(
            "qwen2",
            ", \"rope_theta\": 1000000.0, \"use_sliding_window\": true, \"sliding_window\": 3,"
                + " \"max_window_layers\": 2");
    model.turnedBy(SmallDecoder.powers(1e6, SmallDecoder.WIDTH));
    model.dtype = SafetensorsDtype.BF16;
    model.bias = true;
    model.tied = true;
    model.windows = new int[] {0, 0, 3};
    model.compare(folder);
  }

  @Test
  void qwen3() throws Exception {
    SmallDecoder model =
        new SmallDecoder(
            "qwen3",
            ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500.0},"
                + " \"sliding_window\": 5, \"layer_types\": [\"full_attention\","
                + " \"sliding_attention\", \"full_attention\"]");
    model.turnedBy(SmallDecoder.powers(500, SmallDecoder.WIDTH));
    model.headNorms = true;
    model.tied = true;
    model.windows = new int[] {0, 5, 0};
    model.compare(folder);
  }

  @Test
  void gpt2() throws Exception {
    new SmallGpt2("transformer.", "").compare(folder);
  }

  /** Without a prefix, with a head of its own and with the other scale. */
  @Test
  void gpt2ThatIsOtherwise() throws Exception {
    new SmallGpt2("", ", \"n_inner\": 24, \"scale_attn_by_inverse_layer_idx\": true")
        .compare(folder);
  }

  /** Older checkpoints hold which tokens are seen. */
  @Test
  void masksOfGpt2() throws Exception {
    SmallGpt2 model = new SmallGpt2("", "");
    SmallCheckpoint weights = model.weights();
    weights.add("h.0.attn.bias", 1, 0, 1, 1, 16, 16);
    weights.add("h.2.attn.masked_bias", -1e4, 0, 1);
    weights.add("h.1.mlp.more", 0, 1, 2);
    weights.write(folder, model.config());
    List<String> notes = new ArrayList<>();
    TransformersModel.read(folder, notes::add);
    assertEquals(1, notes.size(), notes.toString());
    assertTrue(notes.get(0).startsWith("1 tensor of "), notes.get(0));
    assertTrue(notes.get(0).contains("'h.1.mlp.more'"), notes.get(0));
  }

  @Test
  void phi3() throws Exception {
    SmallPhi3 model = new SmallPhi3(", \"sliding_window\": 6, \"partial_rotary_factor\": 0.5");
    model.turnedBy(SmallDecoder.powers(10000, SmallDecoder.WIDTH / 2));
    Arrays.fill(model.windows, 6);
    model.compare(folder);
  }

  /** Texts of more than ten tokens are turned by other angles. */
  @Test
  void phi3OfLongContexts() throws Exception {
    new SmallPhi3.OfLongContexts().compare(folder);
  }

  @Test
  void gemma() throws Exception {
    new SmallGemma("gemma", ", \"hidden_act\": \"gelu_pytorch_tanh\"").compare(folder);
  }

  @Test
  void gemmaThatLooksAhead() throws Exception {
    SmallGemma model = new SmallGemma("gemma", ", \"use_bidirectional_attention\": true");
    model.ahead = true;
    model.compareStates(folder);
  }

  @Test
  void gemma2() throws Exception {
    SmallGemma model =
        new SmallGemma.Sandwich(
            "gemma2",
            ", \"hidden_activation\": \"gelu_pytorch_tanh\", \"query_pre_attn_scalar\": 24,"
                + " \"sliding_window\": 4, \"attn_logit_softcapping\": 2.0,"
                + " \"final_logit_softcapping\": 3.0",
            2,
            3);
    model.windows = new int[] {4, 0, 4};
    model.compare(folder);
  }

  @Test
  void gemma3() throws Exception {
    SmallGemma.gemma3(
            ", \"rope_theta\": 3000.0, \"rope_local_base_freq\": 200.0, \"sliding_window_pattern\":"
                + " 2, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8.0}")
        .compare(folder);
  }

  /** EmbeddingGemma: half of the window lies on either side. */
  @ParameterizedTest
  @ValueSource(ints = {3, 4, 11})
  void gemma3ThatLooksAhead(int window) throws Exception {
    SmallGemma model =
        SmallGemma.gemma3(
            ", \"use_bidirectional_attention\": true, \"rope_theta\": 3000.0,"
                + " \"rope_local_base_freq\": 200.0, \"sliding_window_pattern\": 2,"
                + " \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8.0}",
            window);
    model.ahead = true;
    model.compareStates(folder);
    model.compareClassifying(folder);
    refused(model, "", "", "architectures");
  }

  /** As newer configurations say it. */
  @Test
  void gemma3ByTypesOfLayers() throws Exception {
    SmallGemma.gemma3(
            ", \"layer_types\": [\"sliding_attention\", \"full_attention\", \"sliding_attention\"],"
                + " \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"linear\","
                + " \"factor\": 8.0, \"rope_theta\": 3000.0}, \"sliding_attention\":"
                + " {\"rope_type\": \"default\", \"rope_theta\": 200.0}}")
        .compare(folder);
  }

  @Test
  void smollm3() throws Exception {
    SmallDecoder model =
        new SmallDecoder("smollm3", ", \"no_rope_layers\": [1, 0, 1], \"rope_theta\": 700.0");
    model.tied = true;
    model.turnedBy(SmallDecoder.powers(700, SmallDecoder.WIDTH));
    model.frequencies[1] = null;
    model.compare(folder);
  }

  @Test
  void smollm3WithWindows() throws Exception {
    SmallDecoder model =
        new SmallDecoder(
            "smollm3",
            ", \"no_rope_layer_interval\": 3, \"use_sliding_window\": true,"
                + " \"sliding_window\": 4, \"no_rope_layers\": null");
    model.turnedBy(SmallDecoder.powers(2e6, SmallDecoder.WIDTH));
    model.frequencies[2] = null;
    model.windows[2] = 4;
    model.compare(folder);
  }

  @Test
  void granite() throws Exception {
    new SmallGranite().compare(folder);
  }

  @Test
  void olmo2() throws Exception {
    new SmallOlmo2().compare(folder);
  }

  @Test
  void mixtral() throws Exception {
    SmallMixture.mixtral("").compare(folder);
  }

  @Test
  void mixtralInSixteenBitsWithWindows() throws Exception {
    SmallMixture model = SmallMixture.mixtral(", \"sliding_window\": 4");
    model.dtype = SafetensorsDtype.BF16;
    Arrays.fill(model.windows, 4);
    model.compare(folder);
  }

  @Test
  void qwen2Moe() throws Exception {
    SmallMixture model = SmallMixture.qwen2(", \"mlp_only_layers\": [1]");
    model.plain = Set.of(1);
    model.compare(folder);
  }

  @Test
  void qwen2MoeWithExpertsInEverySecondLayer() throws Exception {
    SmallMixture model =
        SmallMixture.qwen2(
            ", \"decoder_sparse_step\": 2, \"use_sliding_window\": true, \"sliding_window\": 3,"
                + " \"max_window_layers\": 2");
    model.plain = Set.of(0, 2);
    model.windows = new int[] {3, 0, 0};
    model.compare(folder);
  }

  @Test
  void qwen3Moe() throws Exception {
    SmallMixture model = SmallMixture.qwen3(", \"sliding_window\": 4");
    model.tied = true;
    model.compare(folder);
  }

  /** As Transformers 5 writes how many experts there are. */
  @Test
  void qwen3MoeWithWindows() throws Exception {
    SmallMixture model =
        SmallMixture.qwen3(", \"use_sliding_window\": true, \"sliding_window\": 3");
    Arrays.fill(model.windows, 3);
    SmallCheckpoint weights = model.weights();
    weights.write(folder, model.config().replace("num_experts\"", "num_local_experts\""));
    OnnxModel renamed = TransformersModel.read(folder, note -> {});
    model.compare(folder);
    assertEquals(TransformersModel.read(folder, note -> {}).nodes(), renamed.nodes());
  }

  @Test
  void mixtralWithoutHead() throws Exception {
    SmallMixture.mixtral("").compareStates(folder);
  }

  @Test
  void expertsThatAreNotAsTheyShouldBe() throws Exception {
    refused(SmallMixture.mixtral(""), "\"num_local_experts\": 5", "\"num_local_experts\": 0");
    refused(SmallMixture.mixtral(""), "\"num_local_experts\": 5", "\"num_local_experts\": 9999");
    refused(SmallMixture.mixtral(""), "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 6");
    refused(SmallMixture.qwen2(", \"mlp_only_layers\": [1]"), "[1]", "[0.5]", "mlp_only_layers");
    refused(SmallMixture.qwen2(", \"mlp_only_layers\": [1]"), "[1]", "true", "mlp_only_layers");
    refused(
        SmallMixture.qwen2(", \"decoder_sparse_step\": 1"),
        "\"decoder_sparse_step\": 1",
        "\"decoder_sparse_step\": 0");
    refused(
        SmallMixture.qwen2(", \"layer_types\": [\"full_attention\"]"),
        "[\"full_attention\"]",
        "[\"sliding_attention\", \"full_attention\", \"full_attention\"]",
        "use_sliding_window");
    // A sixth expert that the checkpoint has not.
    refused(
        SmallMixture.mixtral(""),
        "\"num_local_experts\": 5",
        "\"num_local_experts\": 6",
        "model.layers.0.block_sparse_moe.gate.weight");
  }

  private void refused(SmallDecoder model, String setting, String other) throws Exception {
    refused(model, setting, other, other.split("\"")[1]);
  }

  /** The message names the key, or what is missing. */
  private void refused(SmallDecoder model, String setting, String other, String named)
      throws Exception {
    String config = model.config();
    assertTrue(config.contains(setting), config);
    model.weights().write(folder, config.replace(setting, other));
    InputException e =
        assertThrows(InputException.class, () -> TransformersModel.read(folder, note -> {}));
    assertTrue(e.getMessage().contains(named), e.getMessage());
  }

  @Test
  void anglesOfYarn() throws Exception {
    double low = Math.floor(SmallYarn.pair(32, 16)); // below 0
    double high = Math.ceil(SmallYarn.pair(1, 16));
    new SmallYarn(
            "{\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 16}",
            SmallYarn.angles(Math.max(low, 0), high, 4),
            0.1 * Math.log(4) + 1)
        .compare(folder);
  }

  @Test
  void anglesOfYarnThatAreOtherwise() throws Exception {
    new SmallYarn(
            "{\"rope_type\": \"yarn\", \"factor\": 4.0, \"beta_fast\": 2, \"beta_slow\": 0.01,"
                + " \"truncate\": false, \"mscale\": 0.7, \"mscale_all_dim\": 0.3,"
                + " \"original_max_position_embeddings\": 100}",
            SmallYarn.angles(SmallYarn.pair(2, 100), SmallYarn.pair(0.01, 100), 4),
            (0.07 * Math.log(4) + 1) / (0.03 * Math.log(4) + 1))
        .compare(folder);
  }

  /** Its factor is the ratio of lengths where it has none, and the length that stands beside it goes before its own. */
  @Test
  void anglesOfYarnWithoutAFactor() throws Exception {
    new SmallYarn(
            "{\"rope_type\": \"yarn\", \"factor\": null, \"attention_factor\": 0.5,"
                + " \"original_max_position_embeddings\": 8},"
                + " \"original_max_position_embeddings\": 32",
            SmallYarn.angles(0, Math.ceil(SmallYarn.pair(1, 32)), 2),
            0.5)
        .compare(folder);
  }

  /** Where texts may be longer than the configuration says, as of Qwen2.5 with YaRN, there are angles for them. */
  @Test
  void yarnHasPositionsForLongTexts() throws Exception {
    SmallYarn model =
        new SmallYarn(
            "{\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 64}",
            SmallDecoder.powers(10000, SmallDecoder.WIDTH),
            1);
    model.weights().write(folder, model.config());
    OnnxModel read = TransformersModel.read(folder, note -> {});
    assertEquals(256, read.constant("cos_cache").dims()[0]);
    assertEquals(256, read.constant("sin_cache").dims()[0]);
  }

  @Test
  void yarnThatIsNotAsItShouldBe() throws Exception {
    String scaling = "{\"type\": \"yarn\", \"factor\": 4.0}";
    SmallYarn model = new SmallYarn(scaling, SmallDecoder.powers(10000, SmallDecoder.WIDTH), 1);
    refused(model, "\"factor\": 4.0", "\"factor\": -1");
    refused(model, "\"factor\": 4.0", "\"factor\": 4.0, \"beta_fast\": \"x\"", "beta_fast");
    refused(model, "\"factor\": 4.0", "\"factor\": 4.0, \"mscale\": -2", "mscale");
    refused(model, "\"factor\": 4.0", "\"factor\": 4.0, \"truncate\": 2", "truncate");
    refused(model, "\"rope_theta\": 10000.0", "\"rope_theta\": 1", "rope_theta");
    refused(model, "\"factor\": 4.0", "\"factor\": 1e9", "max_position_embeddings");
  }

  /** Texts of more than seven tokens have another base. */
  @Test
  void anglesThatFollowFromTheLength() throws Exception {
    new SmallDynamic().compare(folder);
  }

  @Test
  void llamaThatClassifies() throws Exception {
    new SmallDecoder("llama", "").compareClassifying(folder);
  }

  @Test
  void gemma3ThatClassifies() throws Exception {
    SmallGemma.gemma3(
            ", \"rope_theta\": 3000.0, \"rope_local_base_freq\": 200.0,"
                + " \"sliding_window_pattern\": 2,"
                + " \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8.0}")
        .compareClassifying(folder);
  }

  @Test
  void qwen3WithoutHead() throws Exception {
    SmallDecoder model = new SmallDecoder("qwen3", "");
    model.headNorms = true;
    model.compareStates(folder);
  }

  @Test
  void gpt2ThatClassifies() throws Exception {
    new SmallGpt2("transformer.", "").compareClassifying(folder);
  }
}
