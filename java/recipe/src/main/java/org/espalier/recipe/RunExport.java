package org.espalier.recipe;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.compress.LinearForm;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.Float16Converter;
import org.espalier.compress.onnx.FloatWeights;
import org.espalier.compress.onnx.OutputError;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.image.ImageProcessor;
import org.espalier.source.SentencePooling;
import org.espalier.torch.onnx.GraphScript;
import org.espalier.train.Compression;
import org.espalier.train.Quantization;
import org.espalier.train.Stage;
import org.espalier.transformers.SentenceModules;

/** Writes the models of a run that has trained. */
final class RunExport {
  private final RunInputs inputs;
  private final Path tokenizer;
  private final Path imageProcessor;
  private final SentencePooling pooling;
  private final RunFolder folder;
  private final Compression compression;

  /** Whether the model was int8 before. */
  private final boolean wasInt8;

  /** What weights are: int8, int4, or null for floats. */
  private final String grid;

  /** Whether fitting put factors into the graph. */
  private final boolean hasFactors;

  /** What stages do to weights; empty where none quantizes. */
  private final List<Quantization> quantized;

  /** The folders of modules of sentence-transformers whose weights the graph has beside the model's. */
  private final List<String> modules;

  private final ArrayNode outputs = JsonNodeFactory.instance.arrayNode();

  /**
   * @param host has the tokenizer of texts and what images became tensors by, where there were any
   */
  RunExport(
      Recipe recipe, RunInputs inputs, RunHost host, RunFolder folder, Compression compression) {
    this.inputs = inputs;
    this.tokenizer = host.tokenizerFile();
    this.imageProcessor = host.imageProcessorFile();
    this.pooling = host.sentencePooling();
    this.folder = folder;
    this.compression = compression;
    modules = inputs.modules();
    quantized =
        recipe.stages().stages().stream()
            .filter(Stage.Quantize.class::isInstance)
            .map(stage -> ((Stage.Quantize) stage).quantization())
            .toList();
    wasInt8 = compression.form().isInt8();
    grid = wasInt8 ? "int8" : quantized.isEmpty() ? null : quantized.get(0).form().weights();
    // Of 4 bits nothing is equalized.
    hasFactors = quantized.stream().anyMatch(q -> q.fit() && q.form() != Quantization.Form.INT4);
  }

  /** What was written, as the report lists it. */
  ArrayNode outputs() {
    return outputs;
  }

  /**
   * Writes the model for ONNX Runtime, which is measured, and what else is asked for.
   *
   * @param formats see {@link RecipeSchema#FORMS}
   * @return the model for ONNX Runtime
   */
  Path write(List<String> formats) {
    OnnxModel exported = compression.export();
    OnnxModel dense = compression.floatModel();
    Path main = folder.resolve(grid == null ? "model.onnx" : "model-" + grid + ".onnx");
    add(
        exported.write(main, inputs.modelFile),
        (grid == null ? "" : grid + " ") + "model for ONNX Runtime");
    for (String format : formats) {
      switch (format) {
        case "onnx-float" ->
            add(
                dense.write(folder.resolve("model-float.onnx"), inputs.modelFile),
                "its weights before rounding, as a float32 model"
                    + (wasInt8 ? roundedActivations(dense) : ""));
        case "onnx-float16" -> writeFloat16(dense);
        case "safetensors" -> writeSafetensors(dense);
        case "compressed-tensors" -> writeCompressedTensors(dense, exported);
        case "torchscript" -> writeTorchScript();
        default -> {} // onnx is written above
      }
    }
    if (tokenizer != null) {
      Path copy = folder.resolve("tokenizer.json");
      AtomicFile.copy(tokenizer, copy);
      add(List.of(copy), "the tokenizer, as it was");
    }
    if (pooling != null && !pooling.folder().isEmpty()) {
      copyPooling();
    }
    if (imageProcessor != null) {
      Path copy = folder.resolve(ImageProcessor.FILE_NAME);
      AtomicFile.copy(imageProcessor, copy);
      add(List.of(copy), "how images become tensors, as it was");
    }
    return main;
  }

  /** Puts both files where sentence-transformers has them. */
  private void copyPooling() {
    Path list = folder.resolve(SentenceModules.FILE);
    Path config = folder.resolve(pooling.folder()).resolve("config.json");
    FileTree.createFolder(config.getParent());
    AtomicFile.copy(pooling.modules(), list);
    AtomicFile.copy(pooling.file(), config);
    add(List.of(list), "how embeddings are made, as it was");
    add(List.of(config), "how states of tokens are pooled, as it was");
  }

  private void writeFloat16(OnnxModel dense) {
    ActivationSource some = inputs.data.calibration().some(Float16Converter.EXAMPLES);
    OutputError error = new OutputError(dense, some);
    OnnxModel half = dense.copy();
    Float16Converter converter = new Float16Converter(half, weight -> true);
    converter.calibrate(some, error);
    converter.apply();
    List<String> what = new ArrayList<>();
    what.add(
        "float16 model for GPUs"
            + Float16Converter.made(error, half)
                .map(made -> ", " + made.text() + " from the float32 model")
                .orElse(""));
    what.addAll(FloatWeights.lines(converter.skipped()));
    add(
        half.write(folder.resolve("model-float16.onnx"), inputs.modelFile),
        String.join("; ", what));
  }

  private void writeSafetensors(OnnxModel dense) {
    List<Path> files = DenseWeights.write(dense, folder.resolve(""), modules);
    add(
        files.subList(0, 1),
        hasFactors
            ? "float32 weights of the fitted graph with its factors (no checkpoint of the"
                + " original architecture), linear layers as [out, in]"
            : "its float32 weights, linear layers as [out, in]");
    addModules(files.subList(1, files.size()));
  }

  private void addModules(List<Path> files) {
    files.forEach(file -> add(List.of(file), "the float32 weights of that module"));
  }

  private void writeCompressedTensors(OnnxModel dense, OnnxModel exported) {
    Path target = folder.resolve("compressed-tensors");
    RunFolder.delete(target); // of a process that ended after it and before the report
    LinearForm linear =
        quantized.isEmpty() || quantized.get(0).form() != Quantization.Form.INT4
            ? LinearForm.INT8
            : LinearForm.int4(quantized.get(0).weights().block(), false);
    CompressedWeights.write(dense, exported, inputs.configFile, linear, modules, target);
    add(
        List.of(target.resolve("model.safetensors")),
        (linear.bits() == 8 ? "int8 weights" : "weights of 4 bits, with zero points,")
            + " in the Hugging Face layout");
    addModules(DenseWeights.writeModules(dense, target, modules));
  }

  private void writeTorchScript() {
    Path file = folder.resolve("model.pt");
    GraphScript.write(compression.roundedModel(), DenseWeights::plain, file);
    add(
        List.of(file),
        grid == null
            ? "TorchScript module"
            : "TorchScript module, float32 weights rounded to their grids, activations "
                + (wasInt8 ? "rounded as in the int8 model" : "float32"));
  }

  /** What to say of a model of floats in which ranges of activations are fixed, so that it clips them as the int8 model does. */
  private static String roundedActivations(OnnxModel dense) {
    return dense.allNodes().stream().anyMatch(n -> n.getOpType().equals("QuantizeLinear"))
        ? ", activations rounded as in the int8 model"
        : "";
  }

  /**
   * Notes an output.
   *
   * @param files the first one names the others: what an ONNX file cannot hold lies beside it
   */
  private void add(List<Path> files, String what) {
    Path file = files.get(0);
    ObjectNode node = outputs.addObject();
    node.put("file", folder.name(file));
    node.put("what", what);
    node.put("bytes", FileTree.bytes(files));
    node.put("sha256", RunInputs.hexSha256(file));
    for (Path data : files.subList(1, files.size())) {
      node.withArray("data")
          .addObject()
          .put("file", data.getFileName().toString())
          .put("sha256", RunInputs.hexSha256(data));
    }
  }
}
