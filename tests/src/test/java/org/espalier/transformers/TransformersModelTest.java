package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What is not as a configuration says is refused, with the file, the key or the tensor, and what would be right. */
class TransformersModelTest {
  private static final String CONFIG =
      """
      {"model_type": "llama", "hidden_size": 32, "intermediate_size": 16, "vocab_size": 10,
       "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}
      """;

  @TempDir private Path folder;
  private SmallCheckpoint weights;

  @BeforeEach
  void makeFolder() throws IOException {
    weights = SmallCheckpoint.languageModel(10, 32, 16, 1);
    weights.write(folder, CONFIG);
  }

  private void config(String from, String to) throws IOException {
    assertTrue(CONFIG.contains(from), from);
    Files.writeString(folder.resolve("config.json"), CONFIG.replace(from, to));
  }

  private void refused(String... words) {
    InputException e =
        assertThrows(InputException.class, () -> TransformersModel.read(folder, note -> {}));
    for (String word : words) {
      assertTrue(e.getMessage().contains(word), () -> "no '" + word + "' in: " + e.getMessage());
    }
  }

  @Test
  void theModelItselfIsRead() {
    assertTrue(TransformersModel.isOne(folder));
    assertFalse(TransformersModel.isOne(folder.resolve("none")));
    OnnxModel model = TransformersModel.read(folder, note -> {});
    assertEquals(
        folder.resolve("model.safetensors"), model.files().get(0), "what must not be overwritten");
    InputException e =
        assertThrows(InputException.class, () -> model.write(folder.resolve("model.safetensors")));
    assertTrue(e.getMessage().contains("is the input"), e.getMessage());
  }

  /** Links to files elsewhere are how a cache of the hub keeps them. */
  @Test
  void shardsAndLinksAreRead() throws IOException {
    OnnxModel single = TransformersModel.read(folder, note -> {});
    Path shards = folder.resolve("shards");
    weights.writeShards(shards, CONFIG);
    Path links = Files.createDirectory(folder.resolve("links"));
    try (Stream<Path> files = Files.list(shards)) {
      for (Path file : (Iterable<Path>) files::iterator) {
        Files.createSymbolicLink(links.resolve(file.getFileName()), file);
      }
    }
    for (Path other : new Path[] {shards, links}) {
      OnnxModel model = TransformersModel.read(other, note -> {});
      assertEquals(single.nodes(), model.nodes());
      assertEquals(2, model.files().size());
      for (OnnxInitializer tensor : single.initializers()) {
        assertEquals(tensor.data(), model.initializer(tensor.name()).data(), tensor.name());
      }
    }
  }

  @Test
  void configurationsThatAreNot() throws IOException {
    Files.writeString(folder.resolve("config.json"), "[1]");
    refused("config.json is not a JSON object");
    Files.writeString(folder.resolve("config.json"), "{\"model_type\": ");
    refused("config.json is not JSON");
    config("{\"model_type\"", "{\"hidden_size\": 1, \"model_type\"");
    refused("config.json is not JSON", "hidden_size");
  }

  @Test
  void kindsThatAreNotKnown() throws IOException {
    config("\"llama\"", "\"mamba\"");
    refused("model_type is 'mamba'", "known are bart, bert, ", "qwen3");
    config("\"model_type\": \"llama\", ", "");
    refused("model_type is ''");
    config("{\"model_type\"", "{\"quantization_config\": {\"bits\": 4}, \"model_type\"");
    refused("quantization_config: quant_method is ''", "known are compressed-tensors");
    String layout = "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", ";
    config("{\"model_type\"", layout + "\"format\": \"nvfp4-pack-quantized\"}, \"model_type\"");
    refused("quantization_config: format is 'nvfp4-pack-quantized'", "float-quantized");
    config(
        "{\"model_type\"",
        layout
            + "\"format\": \"pack-quantized\", \"config_groups\": {\"group_0\": {\"weights\":"
            + " {\"num_bits\": 8}}}}, \"model_type\"");
    refused("group_0: weights: num_bits is 8; 4 in pack-quantized and else 8 is right");
  }

  @Test
  void numbersThatDoNotFit() throws IOException {
    config("\"hidden_size\": 32, ", "");
    refused("has no hidden_size");
    config("\"hidden_size\": 32", "\"hidden_size\": -32");
    refused("hidden_size is -32; a whole number from 1 to 2147483647 is right");
    config("\"hidden_size\": 32", "\"hidden_size\": 1e400");
    refused("hidden_size is ");
    config("\"num_attention_heads\": 2", "\"num_attention_heads\": 3");
    refused("hidden_size is 32; a multiple of num_attention_heads = 3 is right");
    config("\"num_attention_heads\": 2", "\"num_attention_heads\": 4, \"num_key_value_heads\": 3");
    refused("num_key_value_heads is 3; a divisor of num_attention_heads = 4 is right");
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"head_dim\": 15");
    refused("15 are turned by their places; ONNX Runtime turns multiples of 16");
    config("\"max_position_embeddings\": 8", "\"max_position_embeddings\": 2000000000");
    refused("max_position_embeddings = 2000000000 asks for a table");
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"rms_norm_eps\": \"small\"");
    refused("rms_norm_eps is \"small\"; a number above 0 is right");
    config("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2000000000");
    refused("no tensor 'model.layers.1.");
  }

  @Test
  void whatIsNotComputedHere() throws IOException {
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"hidden_act\": \"quick\"");
    refused("hidden_act is 'quick'", "known are gelu,");
    config(
        "\"hidden_size\": 32",
        "\"hidden_size\": 32, \"rope_scaling\": {\"rope_type\": \"proportional\", \"factor\":"
            + " 4.0}");
    refused(
        "rope_scaling: rope_type is 'proportional'",
        "known are default, linear, llama3, yarn, dynamic");
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"rope_scaling\": {\"type\": \"linear\"}");
    refused("rope_scaling has no factor; a number above 0 is right");
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"partial_rotary_factor\": 0.5");
    refused("partial_rotary_factor is 0.5; 1, for heads that turn as a whole, is right");
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"partial_rotary_factor\": 1.0");
    TransformersModel.read(folder, note -> {});
    config("\"hidden_size\": 32", "\"hidden_size\": 32, \"layer_types\": [\"linear_attention\"]");
    refused("layer_types is [\"linear_attention\"]; full_attention or sliding_attention");
  }

  private void refusedAs(String type, String settings, String... words) throws IOException {
    config("\"llama\"", '"' + type + "\", \"num_key_value_heads\": 2, " + settings);
    refused(words);
  }

  @Test
  void settingsOfKindsThatDoNotFit() throws IOException {
    refusedAs("llama", "\"architectures\": \"LlamaForCausalLM\"", "a list of texts is right");
    refusedAs(
        "llama",
        "\"architectures\": [\"LlamaForTokenClassification\"]",
        "architectures names 'LlamaForTokenClassification'",
        "…ForCausalLM, …ForSequenceClassification or …Model is right");
    refusedAs(
        "smollm3", "\"no_rope_layers\": []", "no_rope_layers is []; 0 or 1 for each of num_hidden");
    refusedAs(
        "smollm3",
        "\"layer_types\": [\"sliding_attention\"], \"tie_word_embeddings\": false",
        "config.json has no use_sliding_window; true, for the layers that slide, is right");
    refusedAs(
        "phi3",
        "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}",
        "rope_scaling: rope_type is 'linear'",
        "known are default, longrope");
    String factors = "\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1, 1, 1, 1, ";
    refusedAs(
        "phi3",
        "\"rope_scaling\": {" + factors + "0]}",
        "short_factor is [1,1,1,1,1,1,1,0]; a list of 8 numbers above 0 is right");
    refusedAs(
        "phi3",
        "\"rope_scaling\": {" + factors + "NaN]}",
        "short_factor is [1,1,1,1,1,1,1,\"NaN\"]; a list of numbers is right");
    refusedAs(
        "phi3",
        "\"rope_scaling\": {" + factors + "1], \"long_factor\": [1]}",
        "long_factor is [1]; a list of 8 numbers above 0 is right");
    refusedAs(
        "phi3",
        "\"partial_rotary_factor\": 0.4",
        "of heads of 16 numbers (head_dim, or hidden_size / num_attention_heads) 6 are turned");
    refusedAs(
        "gemma2",
        "\"use_bidirectional_attention\": true",
        "use_bidirectional_attention = true is not supported");
    refusedAs(
        "gemma3_text",
        "\"attn_logit_softcapping\": 50.0",
        "attn_logit_softcapping = 50.0 is not supported");
    refusedAs(
        "gemma3_text",
        "\"rope_parameters\": {\"rope_theta\": 10.0}",
        "rope_parameters is {\"rope_theta\":10.0}; an object with full_attention");
    refusedAs("granite", "\"logits_scaling\": 0", "logits_scaling is 0; a number above 0 is right");
    refusedAs("gpt2", "\"n_embd\": 10, \"n_head\": 3", "n_embd is 10; a multiple of n_head = 3");
    refusedAs(
        "gpt2",
        "\"n_embd\": 8, \"n_head\": 1, \"n_layer\": 1, \"add_cross_attention\": true",
        "add_cross_attention = true is not supported");
  }

  @Test
  void settingsOfEncodersThatDoNotFit() throws IOException {
    refusedAs("deberta-v2", "\"conv_kernel_size\": 3", "conv_kernel_size = 3 is not supported");
    refusedAs(
        "deberta-v2", "\"pos_att_type\": \"p2c\"", "has no relative_attention; true is right");
    String relative = "\"relative_attention\": true, ";
    refusedAs(
        "deberta-v2",
        relative + "\"pos_att_type\": \"p2c|p2p\"",
        "pos_att_type is \"p2c|p2p\"; c2p and p2c is right");
    refusedAs(
        "deberta-v2",
        relative + "\"attention_head_size\": 8",
        "attention_head_size is 8; hidden_size / num_attention_heads is right");
    refusedAs(
        "vit", "\"image_size\": [224, 224]", "image_size is [224,224]; a whole number from 1");
    refusedAs("vit", "\"image_size\": 8", "image_size is 8; patch_size = 16 or more is right");
    refusedAs(
        "dinov2", "\"mlp_ratio\": 1e10", "mlp_ratio is 1.0E10; a number by which hidden_size");
    refusedAs("dinov2", "\"mlp_ratio\": 0.01", "mlp_ratio is 0.01; a number by which hidden_size");
    refusedAs(
        "clip",
        "\"text_config\": {}",
        "is of two encoders (model_type clip), of texts and of images;",
        "by --part text or --part image");
    InputException e =
        assertThrows(
            InputException.class,
            () -> {
              config("\"llama\"", "\"clip_text_model\"");
              TransformersModel.read(folder, TransformersModel.Part.TEXT, note -> {});
            });
    assertTrue(
        e.getMessage().contains("has no parts; --part is for bart, clip, m"), e.getMessage());
    refusedAs("clip_text_model", "\"hidden_act\": \"tanh\"", "hidden_act is 'tanh'", "quick_gelu");
    refusedAs(
        "siglip_text_model",
        "\"pad_token_id\": 10",
        "vocab_size is 10; more than the token of padding, 10, is right");
    refusedAs("dinov2", "\"image_size\": 13", "image_size is 13; patch_size = 14 or more is right");
    Path processor = folder.resolve("preprocessor_config.json");
    Files.writeString(processor, "{\"crop_size\": 13}");
    refusedAs(
        "dinov2",
        "\"patch_size\": 14",
        "preprocessor_config.json: crop_size is 13; patch_size = 14 or more is right");
    Files.writeString(processor, "{\"size\": {\"height\": 224, \"width\": \"x\"}}");
    refusedAs("dinov2", "\"patch_size\": 14", "preprocessor_config.json: size: width is \"x\"");
    Files.writeString(processor, "[]");
    refusedAs("dinov2", "\"patch_size\": 14", "preprocessor_config.json is not a JSON object");
    refusedAs(
        "modernbert",
        "\"layer_types\": [\"sliding_attention\", \"linear\"]",
        "layer_types is ",
        "full_attention or sliding_attention for each of num_hidden_layers is right");
    refusedAs(
        "modernbert", "\"rope_scaling\": {\"factor\": 2.0}", "rope_scaling = {", "not supported");
    refusedAs("electra", "\"is_decoder\": true", "is_decoder = true is not supported");
  }

  private void partRefused(TransformersModel.Part part, String config, String... words)
      throws IOException {
    Files.writeString(folder.resolve("config.json"), config);
    InputException e =
        assertThrows(InputException.class, () -> TransformersModel.read(folder, part, note -> {}));
    for (String word : words) {
      assertTrue(e.getMessage().contains(word), () -> "no '" + word + "' in: " + e.getMessage());
    }
  }

  @Test
  void settingsOfEncodersAndDecodersThatDoNotFit() throws IOException {
    String marian =
        """
        {"model_type": "marian", "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 4,
         "decoder_ffn_dim": 4, "vocab_size": 9, "max_position_embeddings": 5}
        """;
    for (TransformersModel.Part part :
        List.of(TransformersModel.Part.ENCODER, TransformersModel.Part.DECODER)) {
      partRefused(
          part,
          marian.replace("\"decoder_attention_heads\": 2", "\"decoder_attention_heads\": 3"),
          "d_model is 8; a multiple of its 3 heads is right");
      partRefused(
          part, marian.replace("\"d_model\": 8, ", ""), "has no d_model; a whole number of 1");
      partRefused(
          part,
          marian.replace("{", "{\"activation_function\": \"tanh\", "),
          "activation_function is 'tanh'",
          "known are gelu,");
      partRefused(
          part,
          marian.replace("{", "{\"architectures\": [\"MarianForCausalLM\"], "),
          "architectures names 'MarianForCausalLM'",
          "…ForConditionalGeneration or …Model is right");
      String t5 =
          """
          {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 4, "num_layers": 1,
           "num_heads": 2, "vocab_size": 9, "relative_attention_max_distance": 16}
          """;
      partRefused(
          part,
          t5,
          "relative_attention_max_distance is 16; more than half of"
              + " relative_attention_num_buckets = 32, and at most 1048576, is right");
      partRefused(
          part,
          t5.replace("16", "17, \"relative_attention_num_buckets\": 3"),
          "relative_attention_num_buckets is 3; a whole number from 4 to");
      partRefused(
          part,
          t5.replace("{", "{\"feed_forward_proj\": \"gated-tanh\", "),
          "feed_forward_proj is 'gated-tanh'",
          "gated-silu");
    }
    partRefused(TransformersModel.Part.ENCODER, marian, "has no tensor 'shared.weight' of [9, 8]");
    partRefused(null, marian, "by --part encoder or --part decoder");
    partRefused(TransformersModel.Part.IMAGE, marian, "by --part encoder or --part decoder");
    partRefused(
        TransformersModel.Part.DECODER,
        "{\"model_type\": \"clip\"}",
        "is of two encoders (model_type clip), of texts and of images;");
  }

  @Test
  void wavesOfMarianThatAreTooMany() throws IOException {
    SmallCheckpoint.writePair(folder, "marian");
    String config = Files.readString(folder.resolve("config.json"));
    String far =
        config.replace("\"max_position_embeddings\": 40", "\"max_position_embeddings\": 99999999");
    partRefused(
        TransformersModel.Part.ENCODER,
        far,
        "max_position_embeddings is 99999999; at most 5592405 is right");
  }

  @Test
  void tensorsThatDoNotFit() throws IOException {
    weights.remove("model.layers.0.mlp.up_proj.weight");
    weights.write(folder, CONFIG);
    refused(
        folder + " has no tensor 'model.layers.0.mlp.up_proj.weight' of [16, 32]",
        "it has 'model.layers.0.mlp.");
    weights.linear("model.layers.0.mlp.up_proj", 16, 32, false);
    weights.write(folder, CONFIG);
    refused(
        "the tensor 'model.layers.0.mlp.up_proj.weight' is F32[32, 16]",
        "F16 or BF16 or F32[16, 32] is right by its config.json");
    Files.delete(folder.resolve("model.safetensors"));
    refused("holds neither model.safetensors nor ");
  }
}
