package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.source.ModelSource;
import org.espalier.transformers.TransformersModel;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Writes a checkpoint as ONNX. */
@Command(
    name = "export",
    description = {
      "Writes a folder of safetensors with the config.json of a model of Hugging Face's"
          + " Transformers as an ONNX file, for ONNX Runtime and for all that is done to ONNX"
          + " models here: recipes, evaluate, prune, quantize.",
      "",
      "Language models of model_type gemma, gemma2, gemma3_text, gpt2, granite, llama, mistral,"
          + " mixtral, olmo2, phi3, qwen2, qwen2_moe, qwen3, qwen3_moe and smollm3 become graphs"
          + " with inputs and outputs for keys and values, which ONNX Runtime's generators take, or"
          + " classify texts; text encoders of bert, roberta, xlm-roberta, camembert, deberta-v2,"
          + " distilbert, electra, modernbert and mpnet and image encoders of vit, deit,"
          + " dinov2 and dinov2_with_registers, with the head that classifies texts, tokens or"
          + " images or fills in words where 'architectures' names one, graphs that give"
          + " last_hidden_state or logits.",
      "",
      "Of clip and siglip, which are two encoders, --part chooses one, which gives text_embeds or"
          + " image_embeds; clip_text_model, clip_vision_model, siglip_text_model and"
          + " siglip_vision_model are one.",
      "",
      "Of bart, marian (OPUS-MT), mbart, mt5 and t5, which read a text and write another, and of"
          + " whisper, --part chooses the encoder or the decoder. The encoder gives"
          + " last_hidden_state and the keys and values that the decoder looks at"
          + " (present.N.encoder.key and .value); the decoder takes these as past_key_values and"
          + " has others of its own, as language models do.",
      "",
      "What is computed is float32. Tensors keep their types: those of bfloat16 take half the file"
          + " and are widened when ONNX Runtime loads it. The folder's tokenizer.json and"
          + " preprocessor_config.json are copied beside the model. Where its modules.json says"
          + " that states are pooled, as sentence-transformers writes, last_hidden_state comes"
          + " out, whatever head there is, and the file goes along with the configuration of its"
          + " pooling. 'evaluate', recipes, 'online --encoder', 'quantize --to onnx-…' and 'prune'"
          + " with --channels or --refit take such a folder as it is.",
    },
    footer = {
      "",
      "Examples:",
      "  espalier export checkpoint/ -o model.onnx",
      "  espalier export clip/ -o image.onnx --part image",
      "  espalier export opus-mt-en-de/ -o decoder.onnx --part decoder",
      "  espalier quantize checkpoint/ -o model-int4.onnx --to onnx-int4 --calibration texts.txt",
    })
final class Export implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Parameters(paramLabel = "FOLDER", description = "The checkpoint. It is not changed.")
  private String model;

  @Option(
      names = {"-o", "--output"},
      paramLabel = "OUT",
      required = true,
      description = "The file to write, with .onnx at its end.")
  private String output;

  @Option(
      names = "--part",
      paramLabel = "PART",
      description =
          "text or image of a model that is two encoders, as clip is; encoder or decoder of one"
              + " that is both, as marian is. Each becomes a model of its own.")
  private TransformersModel.Part part;

  @Override
  public Integer call() {
    ModelSource source = ModelSource.find(model, common::note);
    if (!Files.isDirectory(source.path())) {
      throw new InputException(
          model + " is a file; 'export' takes a folder of safetensors with its config.json");
    }
    source = source.asOnnx("export");
    Path target = source.output(output);
    Companions companions = new Companions(source, target);
    List<Path> written;
    int nodes;
    try (Progress progress = new Progress(common.err(), "reading")) {
      OnnxModel onnx = source.onnx(part, common::note);
      nodes = onnx.nodes().size();
      AtomicFile.check(target, onnx.files().toArray(Path[]::new));
      companions.check();
      progress.update("writing", 0, 0);
      written = onnx.write(target);
      companions.write();
    }
    report(target, companions, FileTree.bytes(written), nodes);
    return 0;
  }

  private void report(Path target, Companions companions, long bytes, int nodes) {
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("output", target.toString()).put("bytes", bytes).put("nodes", nodes);
      companions.addTo(json);
      common.print(json);
      return;
    }
    common
        .out()
        .println("wrote " + target + " (" + Quantity.bytes(bytes) + ", " + nodes + " nodes)");
    companions.tell(common.out()::println);
  }
}
