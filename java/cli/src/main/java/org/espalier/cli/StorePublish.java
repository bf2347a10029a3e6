package org.espalier.cli;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.format.InputFile;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.source.ModelSource;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;
import org.espalier.torch.TorchScriptModel;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Adds a version. */
@Command(
    name = "publish",
    description = {
      "Adds a model to a store as a new version and makes it current.",
      "",
      "The model is checked as it is read, and copied: an .onnx file with the files of its external"
          + " data, a .safetensors file, a TorchScript file (.pt; it is code that runs when it is"
          + " checked and served: publish none that you do not trust), or a folder with all its"
          + " files. A store is made where there is none."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store publish model.onnx --store models/",
      "  espalier store publish checkpoint/ --store models/ --recipe recipe.yaml \\",
      "    --metric accuracy=0.93 --note 'pruned by half'",
      "  espalier store publish model.onnx --store models/ --key key.pem --stay",
    })
final class StorePublish implements Callable<Integer> {
  private static final int MAX_RECIPE_BYTES = 1 << 20;

  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;
  @Mixin private StoreOptions.Wait wait;

  @Parameters(paramLabel = "MODEL", description = "The model. It is not changed.")
  private String model;

  @Option(
      names = "--key",
      paramLabel = "FILE",
      description = "Sign with this private Ed25519 key, a PEM file.")
  private String key;

  @Option(names = "--note", paramLabel = "TEXT", description = "A remark for people.")
  private String note;

  @Option(
      names = "--parent",
      paramLabel = "VERSION",
      description = "The version that it was made from.")
  private String parent;

  @Option(
      names = "--recipe",
      paramLabel = "FILE",
      description = "A text that says how it was made; kept with the version.")
  private String recipe;

  @Option(
      names = "--metric",
      paramLabel = "NAME=VALUE",
      description = "A measured value; kept with the version. May be given several times.")
  private Map<String, Double> metrics = new LinkedHashMap<>();

  @Option(names = "--stay", description = "Leave the current version current.")
  private boolean stay;

  @Override
  public Integer call() {
    SigningKey signing = options.signingKey(key);
    ModelSource source = ModelSource.findAny(model, common::note);
    metrics.forEach(
        (name, value) -> {
          if (!Double.isFinite(value)) {
            throw new InputException(
                "--metric " + name + "=" + value + "; a finite number is right");
          }
        });
    String text = recipe == null ? null : text(ModelSource.path(recipe));
    StoreWriter.Content content;
    String main;
    Path path = source.path();
    if (source.kind() == ModelSource.Kind.ONNX) {
      List<Path> files = OnnxModel.read(path).files();
      Path folder = path.toAbsolutePath().getParent();
      main = path.getFileName().toString();
      content =
          v -> {
            for (Path file : files) {
              Path relative = folder.relativize(file.toAbsolutePath());
              v.copy(file, relative.toString());
            }
          };
    } else if (source.kind() == ModelSource.Kind.TORCHSCRIPT) {
      TorchScriptModel.read(path).close(); // checks it
      main = path.getFileName().toString();
      content = v -> v.copy(path, main);
    } else {
      Checkpoint.open(path).close(); // checks it
      boolean isFolder = Files.isDirectory(path);
      main = isFolder ? "" : path.getFileName().toString();
      content = isFolder ? v -> v.copyFolder(path) : v -> v.copy(path, main);
    }
    ModelStore store = options.create();
    Long from = parent == null ? null : Long.valueOf(StoreOptions.version(store, parent));
    if (from != null) {
      store.version(from);
    }
    Lineage lineage = new Lineage(from, source.given(), text, null, metrics, null, note);
    Version version;
    try (Progress progress = new Progress(common.err(), "publishing");
        StoreWriter writer = wait.writer(store)) {
      progress.update("publishing", 0, 0);
      version =
          stay
              ? writer.propose(content, main, lineage, signing)
              : writer.publish(content, main, lineage, signing);
    }
    if (common.json()) {
      common.print(StoreJson.of(version).put("current", !stay));
    } else {
      common
          .out()
          .println(
              "version "
                  + version.id()
                  + ", "
                  + Quantity.bytes(version.bytes())
                  + (stay ? "; not current" : ", current"));
    }
    return 0;
  }

  private static String text(Path file) {
    try {
      return InputFile.text(file, MAX_RECIPE_BYTES);
    } catch (CharacterCodingException e) {
      throw new InputException(file + " is not UTF-8 text", e);
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }
}
