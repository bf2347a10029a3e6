package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

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
