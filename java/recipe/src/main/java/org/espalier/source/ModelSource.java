package org.espalier.source;

import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.List;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.compress.onnx.ComputedWeights;
import org.espalier.evaluate.ConstantRuntime;
import org.espalier.evaluate.MeasuredModel;
import org.espalier.evaluate.Pooling;
import org.espalier.format.FileTree;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.ActiveDropout;
import org.espalier.format.onnx.FusedNodes;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RandomDraws;
import org.espalier.image.ImageProcessor;
import org.espalier.transformers.PoolingModes;
import org.espalier.transformers.SentenceModules;
import org.espalier.transformers.TransformersModel;

/**
 * A model that the user named: a path, or a file inside a Maven artefact.
 *
 * @param path the file or folder
 * @param given what the user wrote
 * @param entry the place in the artefact, or null for a path
 * @param kind what it holds
 */
public record ModelSource(Path path, String given, MavenEntry entry, Kind kind, MavenFiles maven) {
  /** What the configuration of a module Pooling is called beside a model, behind its name. */
  public static final String POOLING = "pooling.json";

  /** What a model can be. */
  public enum Kind {
    ONNX,
    /** A safetensors file or a folder with one or with shards. */
    SAFETENSORS,
    TORCHSCRIPT
  }

  /**
   * Finds an ONNX or safetensors model and tells from its name which it is.
   *
   * @param notes receives a line for people about each artefact
   * @throws InputException if there is no such file or its name tells another kind or none
   */
  public static ModelSource find(String given, Consumer<String> notes) {
    ModelSource source = findAny(given, notes);
    if (source.kind == Kind.TORCHSCRIPT) {
      throw new InputException(
          source.path
              + " is TorchScript, which recipes ('compress'), 'online', 'serve' and 'store publish'"
              + " take; here .onnx, .safetensors or a folder is right");
    }
    return source;
  }

  /**
   * Reads an ONNX model, or {@linkplain #asOnnx what can be read as one}, as commands take it: see {@link #asTaken}.
   *
   * @param notes receives a line for people about what was changed
   */
  public OnnxModel onnx(Consumer<String> notes) {
    return asTaken(asGiven(notes), notes);
  }

  /** The same of one part of a folder's model that is two; of all of it where that is null. */
  public OnnxModel onnx(TransformersModel.Part part, Consumer<String> notes) {
    return asTaken(TransformersModel.read(path, part, notes), notes);
  }

  /**
   * Reads an ONNX model as it is.
   *
   * @param notes receives a line for people about what of a folder is no part of it
   */
  public OnnxModel asGiven(Consumer<String> notes) {
    return Files.isDirectory(path) ? TransformersModel.read(path, notes) : OnnxModel.read(path);
  }

  /**
   * The model as it is, to be measured.
   *
   * @param notes receives a line for people about what of a folder is no part of it
   */
  public MeasuredModel measured(Consumer<String> notes) {
    return Files.isDirectory(path)
        ? measured(TransformersModel.read(path, notes))
        : MeasuredModel.of(path);
  }

  /** A model in memory that was read of a folder: as large as the weights there, which it may hold in another form. */
  public static MeasuredModel measured(OnnxModel model) {
    return MeasuredModel.of(model, FileTree.bytes(model.files()));
  }

  /**
   * Whether this is ONNX, or a folder of safetensors whose {@code config.json} says what is computed with them, which
   * {@link #asOnnx} makes of it.
   */
  public boolean isGraph() {
    return kind == Kind.ONNX || kind == Kind.SAFETENSORS && TransformersModel.isOne(path);
  }

  /**
   * This model as ONNX.
   *
   * @param what needs a graph, for a message
   * @throws InputException if it {@linkplain #isGraph is none}
   */
  public ModelSource asOnnx(String what) {
    if (!isGraph()) {
      throw new InputException(
          what
              + " is for .onnx models and folders of safetensors with the config.json of a model"
              + " that can be read as one (model_type "
              + String.join(", ", TransformersModel.types())
              + "); "
              + given
              + " is no ONNX model");
    }
    return new ModelSource(path, given, entry, Kind.ONNX, maven);
  }

  /**
   * The model itself, whose weights that are computed from constants become constants, whose Dropout nodes drop
   * nothing, and whose nodes that hold weights beside what is computed with them are written apart.
   */
  public static OnnxModel asTaken(OnnxModel model, Consumer<String> notes) {
    String evaluated = ActiveDropout.evaluate(model);
    if (evaluated != null) {
      notes.accept(evaluated);
    }
    RandomDraws.of(model).ifPresent(notes);
    FusedNodes.split(model).ifPresent(notes);
    ComputedWeights.Result result = ComputedWeights.fold(model, new ConstantRuntime());
    List<String> computed = result.computed();
    if (!computed.isEmpty()) {
      notes.accept(
          computed.size()
              + (computed.size() == 1
                  ? " weight was computed from constants and is one now ("
                  : " weights were computed from constants and are constants now (")
              + NearNames.list("", computed)
              + ")");
    }
    if (result.left() > 0) {
      notes.accept(
          result.left()
              + (result.left() == 1
                  ? " weight stays as it is: it is computed by "
                  : " weights stay as they are: they are computed by ")
              + String.join(", ", result.operators()));
    }
    return model;
  }

  /** Finds a model of any kind, as {@link #find} does. */
  public static ModelSource findAny(String given, Consumer<String> notes) {
    MavenFiles maven = new MavenFiles(notes);
    MavenEntry entry = MavenEntry.isOne(given) ? MavenEntry.parse(given) : null;
    Path path = entry == null ? path(given) : maven.file(entry);
    if (!Files.exists(path)) {
      throw new InputException("there is no file or folder " + path);
    }
    return new ModelSource(path, given, entry, kind(path), maven);
  }

  private static Kind kind(Path path) {
    String name = String.valueOf(path.getFileName());
    if (Files.isDirectory(path) || name.endsWith(".safetensors")) {
      return Kind.SAFETENSORS;
    }
    if (name.endsWith(".onnx")) {
      return Kind.ONNX;
    }
    if (name.endsWith(".pt")) {
      return Kind.TORCHSCRIPT;
    }
    throw new InputException(
        path
            + " is no model that espalier knows: .onnx, .safetensors, .pt (TorchScript) or a"
            + " folder");
  }

  /**
   * Where what is made of this model goes.
   *
   * @throws InputException if its name is one by which no command would know what is written
   */
  public Path output(String given) {
    Path target = path(given);
    String name = String.valueOf(target.getFileName());
    boolean folder = Files.isDirectory(path);
    String wrong = null;
    if (kind == Kind.ONNX) {
      wrong = name.endsWith(".onnx") ? null : "an ONNX model; a name that ends with .onnx is right";
    } else if (folder) {
      wrong =
          name.endsWith(".onnx") || name.endsWith(".pt")
              ? "safetensors; a folder or a name that ends with .safetensors is right"
              : null;
    } else if (!name.endsWith(".safetensors")) {
      wrong = "a safetensors file; a name that ends with .safetensors is right";
    }
    // That a folder is in the way is said by who writes.
    if (wrong != null && !Files.isDirectory(target)) {
      throw new InputException("-o " + given + ": what is written is " + wrong);
    }
    return target;
  }

  /**
   * A path that the user wrote.
   *
   * @throws InputException if it cannot be one
   */
  public static Path path(String given) {
    try {
      if (!given.isEmpty()) {
        return Path.of(given);
      }
    } catch (InvalidPathException e) {
      throw new InputException("'" + given + "' is not a path: " + e.getReason(), e);
    }
    throw new InputException("an empty path names no file");
  }

  /**
   * The tokenizer that lies beside the model, in its folder or in its artefact: {@code
   * STEM-tokenizer.json}, which is only its own, or else {@code tokenizer.json}.
   *
   * @param setting what names another one, for messages
   * @throws InputException if there is none
   */
  public Path tokenizer(String setting) {
    return companion("tokenizer.json", setting, "");
  }

  /**
   * A file that is only this model's, and says how it is fed: of a folder the one in it, else {@code STEM-NAME} beside the model.
   *
   * @return null where there is none
   */
  public Path own(String name) {
    return found(Files.isDirectory(path) ? name : stem() + "-" + name);
  }

  /**
   * A file that says how what a model is given becomes tensors.
   *
   * @param what such a file says, for a message
   */
  private Path companion(String plain, String setting, String what) {
    List<String> names = List.of(stem() + "-" + plain, plain);
    for (String name : names) {
      if (found(name) != null) {
        return found(name);
      }
    }
    throw new InputException(
        "beside "
            + (entry == null ? path.toString() : entry.toString())
            + " lies neither "
            + names.get(0)
            + " nor "
            + names.get(1)
            + what
            + "; "
            + setting
            + " names one");
  }

  /**
   * How images become tensors, beside the model as the tokenizer is: {@code STEM-preprocessor_config.json} or {@code
   * preprocessor_config.json}; also in the folder above one that is called onnx, as repositories of Hugging Face have it.
   *
   * @param setting what names another one, for messages
   * @throws InputException if there is none
   */
  public Path imageProcessor(String setting) {
    String name = ImageProcessor.FILE_NAME;
    Path above = above(name);
    if (above != null) {
      return above;
    }
    return companion(
        name,
        setting,
        ", which says how images become tensors, as {\"size\": {\"height\": 224, \"width\": 224},"
            + " \"image_mean\": [0.485, 0.456, 0.406], \"image_std\": [0.229, 0.224, 0.225]}");
  }

  /**
   * The names of the classes in their order, as id2label in the {@code config.json} beside the model says them; also in the folder
   * above one that is called onnx.
   *
   * @return empty where there is no such file, or it names none
   * @throws InputException where the file is there and cannot be read
   */
  public List<String> classes() {
    String name = "config.json";
    if (entry != null) {
      return maven.has(entry.sibling(name))
          ? ModelClasses.read(maven.file(entry.sibling(name)))
          : List.of();
    }
    Path above = above(name);
    Path file = above != null ? above : beside(name);
    return Files.isRegularFile(file) ? ModelClasses.read(file) : List.of();
  }

  /**
   * How the states of a text's tokens become one embedding.
   *
   * @param graph of this model; where it gives a row for each text, nothing is looked for
   * @param chosen by the user; null for what lies beside the model, or the mean
   * @param setting what chooses, for messages
   * @param notes receives lines for people about what was found, and where the model is made for another pooling
   * @throws InputException if nothing is chosen and what lies there cannot be read
   */
  public Pooling pooling(OnnxModel graph, Pooling chosen, String setting, Consumer<String> notes) {
    if (graph.outputs().isEmpty()
        || graph.outputs().get(0).getType().getTensorType().getShape().getDimCount() == 2) {
      return chosen != null ? chosen : Pooling.MEAN;
    }
    SentencePooling found;
    try {
      found = sentencePooling();
    } catch (InputException e) {
      if (chosen == null) {
        throw new InputException(
            e.getMessage() + "; " + setting + " says how states of tokens are pooled", e);
      }
      notes.accept("states of tokens are pooled by " + chosen + "; " + e.getMessage());
      return chosen;
    }
    Pooling taken = chosen != null ? chosen : Pooling.MEAN;
    if (found == null) {
      return taken;
    }
    if (chosen == null && found.pooling() != null) {
      taken = found.pooling();
    }
    found.notes(taken).forEach(notes);
    return taken;
  }

  /**
   * What the {@code modules.json} of sentence-transformers says beside the model, or {@code STEM-modules.json}; also in the
   * folder above one that is called onnx.
   *
   * @return null where there is none, or it pools nothing, or the graph that is made of a folder has it in it
   * @throws InputException if it cannot be read, or the configuration of its module Pooling
   */
  public SentencePooling sentencePooling() {
    String name = SentenceModules.FILE;
    String stem = stem() + "-";
    Path own = found(stem + name);
    Path above = above(name);
    Path file = own != null ? own : above != null ? above : found(name);
    SentenceModules modules = file == null ? null : SentenceModules.read(file);
    if (modules == null
        || modules.pooling() == null
        || Files.isDirectory(path) && !modules.head().isEmpty()) {
      return null;
    }
    String folder = modules.pooling().folder();
    String inside = (folder.isEmpty() ? "" : folder + "/") + "config.json";
    Path config =
        own != null
            ? found(stem + POOLING)
            : above != null ? above.resolveSibling(inside) : found(inside);
    if (config == null || !Files.isRegularFile(config)) {
      throw new InputException(
          file
              + " pools states of tokens, and there is no "
              + (own != null ? stem + POOLING : inside));
    }
    return new SentencePooling(file, folder, config, PoolingModes.read(config), modules.others());
  }

  /** A file beside the model; null where there is none. */
  private Path found(String name) {
    if (entry == null) {
      return Files.isRegularFile(beside(name)) ? beside(name) : null;
    }
    MavenEntry sibling = entry.sibling(name);
    return maven.has(sibling) ? maven.file(sibling) : null;
  }

  /** The model's name without its ending. */
  private String stem() {
    String file = String.valueOf(path.toAbsolutePath().normalize().getFileName());
    int dot = file.lastIndexOf('.');
    return Files.isDirectory(path) || dot <= 0 ? file : file.substring(0, dot);
  }

  /** A file of the folder above one that is called onnx, where none lies beside the model; null where there is none. */
  private Path above(String name) {
    if (entry != null || Files.isRegularFile(beside(name))) {
      return null;
    }
    Path folder = beside(name).getParent();
    Path above = folder.resolveSibling(name);
    return folder.endsWith("onnx") && Files.isRegularFile(above) ? above : null;
  }

  private Path beside(String name) {
    return Files.isDirectory(path)
        ? path.resolve(name)
        : path.toAbsolutePath().getParent().resolve(name);
  }
}
