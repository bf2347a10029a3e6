package org.espalier.cli;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.LearnerFiles;
import org.espalier.store.ModelStore;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Writes a version as ONNX. */
@Command(
    name = "export",
    description = {
      "Writes the model of a version as an ONNX file, for any runtime.",
      "",
      "A linear model that 'online' or 'serve' learned becomes a graph with the input 'features'"
          + " and the outputs 'outputs' and, where it learns classes, 'probabilities'. A version"
          + " that is ONNX is copied with its names."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store export --store models/ -o model.onnx",
      "  espalier store export 7 --store models/ -o model.onnx",
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
      description = "The file to write, with .onnx at its end.")
  private String output;

  @Override
  public Integer call() {
    Path target = AtomicFile.check(ModelSource.path(output));
    if (!target.toString().endsWith(".onnx")) {
      throw new InputException("-o " + output + "; a name that ends with .onnx is right");
    }
    ModelStore store = options.open();
    long id = StoreOptions.version(store, given);
    try (ModelStore.Held held = store.hold(id)) {
      Path model = held.model();
      OnnxModel onnx =
          model.toString().endsWith(".onnx")
              ? OnnxModel.read(model)
              : LearnerFiles.toOnnx(model, LearnerFiles.recipe(held));
      onnx.write(target);
    }
    if (common.json()) {
      common.print(
          JsonNodeFactory.instance
              .objectNode()
              .put("version", id)
              .put("output", target.toString()));
    } else {
      common.out().println("version " + id + " as " + target);
    }
    return 0;
  }
}
