package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.encoder.Encoder;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.Loss;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.store.LearnerFiles;
import org.espalier.online.store.ModelFiles;
import org.espalier.source.ModelSource;
import org.espalier.store.ModelStore;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Writes a version as ONNX or TorchScript. */
@Command(
    name = "export",
    description = {
      "Writes the model of a version as an ONNX file, for any runtime, or a version of a"
          + " TorchScript model as a TorchScript file.",
      "",
      "A linear model that 'online' or 'serve' learned becomes a graph with the input 'features'"
          + " and the outputs 'outputs' and, where it learns classes, 'probabilities'. A version"
          + " that is ONNX is copied with its names. A version with an encoder becomes one graph"
          + " with it, which takes token ids or pixels, and its tokenizer or image processor lies"
          + " beside it. Names of classes are in the metadata, as classes, a list in JSON."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store export --store models/ -o model.onnx",
      "  espalier store export 7 --store models/ -o model.onnx",
      "  espalier store export --store models/ -o model.pt",
    })
final class StoreExport implements Callable<Integer> {
  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;

  @Parameters(
      paramLabel = "VERSION",
      arity = "0..1",
      description = "Its number. Default: the current one.")
  private String given = "current";

  @Option(
      names = {"-o", "--output"},
      paramLabel = "FILE",
      required = true,
      description = "The file to write, with .onnx or .pt at its end.")
  private String output;

  @Override
  public Integer call() {
    Path target = AtomicFile.check(ModelSource.path(output));
    boolean script = target.toString().endsWith(".pt");
    if (!script && !target.toString().endsWith(".onnx")) {
      throw new InputException("-o " + output + "; a name that ends with .onnx or .pt is right");
    }
    ModelStore store = options.open();
    long id = StoreOptions.version(store, given);
    Path inputs;
    try (ModelStore.Held held = store.hold(id)) {
      Path model = held.model();
      if (model.toString().endsWith(".pt") != script) {
        throw new InputException(
            "version "
                + id
                + (script ? " is not TorchScript" : " is TorchScript")
                + "; -o with a name that ends with "
                + (script ? ".onnx" : ".pt")
                + " is right");
      }
      try (Encoder encoder = Encoder.of(store, held.version())) {
        boolean alone = script && encoder != null && !encoder.isOfPixels();
        if (alone) {
          common.note("the encoder is not in " + target + ", which reads its features");
        }
        if (script) {
          AtomicFile.copy(model, target);
        } else {
          write(held, model, encoder, target);
        }
        inputs = encoder == null || alone ? null : writeInputs(encoder, target);
      }
    }
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      json.put("version", id).put("output", target.toString());
      if (inputs != null) {
        json.put(isTokenizer(inputs) ? "tokenizer" : "image_processor", inputs.toString());
      }
      common.print(json);
    } else {
      common.out().println("version " + id + " as " + target);
      if (inputs != null) {
        common
            .out()
            .println((isTokenizer(inputs) ? "its tokenizer as " : "its processor as ") + inputs);
      }
    }
    return 0;
  }

  private static boolean isTokenizer(Path inputs) {
    return inputs.toString().endsWith("tokenizer.json");
  }

  /** Writes the graph, with the encoder where there is one. */
  private static void write(ModelStore.Held held, Path model, Encoder encoder, Path target) {
    OnlineRecipe recipe = LearnerFiles.isLearned(held) ? LearnerFiles.recipe(held) : null;
    // Where nothing says that outputs are logits, they are values.
    Loss loss = recipe == null ? new Loss.Squared() : recipe.settings().loss();
    OnnxModel onnx =
        model.toString().endsWith(".onnx") ? OnnxModel.read(model) : ModelFiles.toOnnx(model, loss);
    OnnxModel whole = encoder == null ? onnx : encoder.followedBy(onnx);
    if (recipe != null && !recipe.classes().isEmpty()) {
      ArrayNode names = JsonNodeFactory.instance.arrayNode();
      recipe.classes().names().forEach(names::add);
      whole.setMetadata("classes", names.toString());
    }
    whole.write(target);
  }

  /** Writes beside a model what says how its inputs are made. */
  private static Path writeInputs(Encoder encoder, Path target) {
    String name = target.getFileName().toString();
    String stem = name.substring(0, name.lastIndexOf('.'));
    Path inputs = target.resolveSibling(stem + "-" + encoder.inputsName());
    AtomicFile.copy(encoder.inputsFile(), inputs);
    return inputs;
  }
}
