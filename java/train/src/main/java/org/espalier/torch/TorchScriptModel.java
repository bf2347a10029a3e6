package org.espalier.torch;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Argument;
import org.bytedeco.pytorch.FunctionSchema;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueVector;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.NamedJitModule;
import org.bytedeco.pytorch.NamedTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.Tuple;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.named_buffer_iterator;
import org.bytedeco.pytorch.named_buffer_list;
import org.bytedeco.pytorch.named_module_iterator;
import org.bytedeco.pytorch.named_module_list;
import org.bytedeco.pytorch.named_parameter_iterator;
import org.bytedeco.pytorch.named_parameter_list;
import org.espalier.InputException;
import org.espalier.store.ModelDiff;

/**
 * A TorchScript module (scripted or traced), trained in place. A TorchScript file is code that runs
 * with the rights of this process: load trusted files only.
 *
 * <p>Its forward method takes tensors and returns one tensor or a tuple of them, which are then
 * named {@code output}, or {@code output_0}, {@code output_1} and so on. Parameters with {@code
 * requires_grad} switched off stay as they are. Activations inside a module cannot be transformed.
 */
public final class TorchScriptModel implements TrainableModel {
  private final String name;
  private final JitModule module;
  private final List<Parameter> parameters = new ArrayList<>();
  private final List<String> inputNames = new ArrayList<>();
  private final List<String> outputNames = new ArrayList<>();
  private final boolean tuple;

  /** Kept here, as some modules have no such flag. */
  private boolean training;

  private boolean closed;

  /**
   * Loads a module.
   *
   * @throws InputException where the file is no TorchScript module or cannot be trained: it was
   *     frozen, its parameters are no float32, its forward method takes or returns what is no
   *     tensor
   */
  public static TorchScriptModel read(Path file) {
    if (!Files.isRegularFile(file)) {
      throw new InputException(file + " is not a file");
    }
    return read(file, file.toString());
  }

  /**
   * Loads a module from the bytes of its file.
   *
   * @param name what messages call it
   * @throws InputException as {@link #read(Path)} does, and where there is no room for a temporary file
   */
  public static TorchScriptModel read(byte[] file, String name) {
    try {
      Path copy = Files.createTempFile("espalier", ".pt");
      try {
        return read(Files.write(copy, file), name);
      } finally {
        Files.delete(copy);
      }
    } catch (IOException e) {
      throw InputException.of(
          "cannot write a temporary file for "
              + name
              + " to "
              + System.getProperty("java.io.tmpdir"),
          e);
    }
  }

  private static TorchScriptModel read(Path file, String name) {
    Libtorch.load();
    JitModule loaded;
    try {
      loaded = torch.load(file.toString());
    } catch (RuntimeException e) {
      throw new InputException(
          name + " is not a TorchScript module that libtorch can load: " + Libtorch.firstLine(e),
          e);
    }
    return new TorchScriptModel(name, loaded);
  }

  /**
   * The SHA-256 of all that a TorchScript file says but where its code was written, in hexadecimal digits.
   *
   * @throws InputException where it cannot be read
   */
  public static String contentHash(Path file) {
    return ScriptArchive.contentHash(file);
  }

  /**
   * A module that is in memory; closing the model closes it.
   *
   * @param name what messages call it
   */
  public TorchScriptModel(String name, JitModule module) {
    this.name = name;
    this.module = module;
    this.training = module.is_training();
    module.retainReference();
    try (PointerScope scope = new PointerScope()) {
      findParameters();
      if (module.find_method("forward").has_value()) {
        FunctionSchema schema = module.get_method("forward").function().getSchema();
        findInputs(schema.arguments());
        this.tuple = findOutputs(schema.returns());
      } else {
        throw new InputException(name + " has no method forward");
      }
    } catch (RuntimeException e) {
      close();
      throw e;
    }
  }

  private void findParameters() {
    Map<String, String> types = new HashMap<>();
    named_module_list modules = module.named_modules();
    named_module_iterator m = modules.begin();
    for (long i = 0; i < modules.size(); i++) {
      NamedJitModule named = m.multiply();
      // The root has no name.
      String path = named.name() == null ? "" : named.name().getString();
      types.put(path, named.value().type().name().get().qualifiedName().getString());
      m.increment();
    }
    named_parameter_list list = module.named_parameters();
    named_parameter_iterator p = list.begin();
    long count = list.size();
    for (long i = 0; i < count; i++) {
      NamedTensor named = p.multiply();
      String parameter = named.name().getString();
      Tensor tensor = new Tensor(named.value());
      if (tensor.requires_grad()) {
        parameters.add(
            ModuleKinds.parameter(
                name,
                parameter,
                tensor,
                owner -> ModuleKinds.ofScript(types.getOrDefault(owner, ""))));
      }
      p.increment();
    }
    if (count == 0) {
      throw new InputException(
          name
              + " has no parameters: it was frozen (torch.jit.freeze), which turns them into"
              + " constants; save the module before it is frozen");
    }
    if (parameters.isEmpty()) {
      throw new InputException(
          name + " has " + count + " parameters and none of them requires a gradient");
    }
  }

  /** The first argument is the module itself; arguments with a default are left out. */
  private void findInputs(Argument arguments) {
    for (long i = 1; i < arguments.limit(); i++) {
      Argument a = arguments.getPointer(i);
      String type = a.type().get().str().getString();
      if (a.default_value().has_value()) {
        continue;
      }
      if (!type.equals("Tensor")) {
        throw new InputException(
            name
                + ": forward takes "
                + a.name().getString()
                + " of type "
                + type
                + "; only tensors can be given");
      }
      inputNames.add(a.name().getString());
    }
  }

  /** Returns whether forward gives a tuple. */
  private boolean findOutputs(Argument returns) {
    String type = returns.type().get().str().getString();
    if (type.equals("Tensor")) {
      outputNames.add("output");
      return false;
    }
    String[] parts =
        type.startsWith("(") ? type.substring(1, type.length() - 1).split(", ") : new String[0];
    if (parts.length == 0 || !Arrays.stream(parts).allMatch("Tensor"::equals)) {
      throw new InputException(
          name + ": forward returns " + type + "; a tensor or a tuple of tensors is needed");
    }
    for (int i = 0; i < parts.length; i++) {
      outputNames.add("output_" + i);
    }
    return true;
  }

  /** The module itself. */
  public JitModule module() {
    return module;
  }

  @Override
  public List<Parameter> parameters() {
    return List.copyOf(parameters);
  }

  @Override
  public List<String> inputNames() {
    return List.copyOf(inputNames);
  }

  @Override
  public List<String> outputNames() {
    return List.copyOf(outputNames);
  }

  @Override
  public synchronized Map<String, Tensor> forward(Map<String, Tensor> inputs) {
    requireOpen();
    ModuleKinds.checkInputs(name, inputNames, inputs);
    IValueVector arguments = new IValueVector();
    for (String input : inputNames) {
      arguments.push_back(new IValue(inputs.get(input)));
    }
    IValue result;
    try {
      result = module.forward(arguments);
    } catch (RuntimeException e) {
      throw new InputException(name + " failed in forward: " + lastLine(e), e);
    }
    // Handles of their own: toTensor's are inside the result and end with it.
    Map<String, Tensor> outputs = new LinkedHashMap<>();
    if (tuple) {
      Tuple parts = result.toTuple();
      for (int i = 0; i < outputNames.size(); i++) {
        outputs.put(outputNames.get(i), new Tensor(parts.elements().get(i).toTensor()));
      }
    } else {
      outputs.put(outputNames.get(0), new Tensor(result.toTensor()));
    }
    return outputs;
  }

  /** TorchScript writes its own call stack first and the cause last. */
  private static String lastLine(RuntimeException e) {
    String[] lines = String.valueOf(e.getMessage()).strip().split("\n");
    return Arrays.stream(lines)
        .filter(line -> line.startsWith("RuntimeError") || line.contains("Error:"))
        .findFirst()
        .orElse(lines[lines.length - 1]);
  }

  /**
   * @throws UnsupportedOperationException always, unless {@code transforms} is null
   */
  @Override
  public void transformInputs(InputTransforms transforms) {
    if (transforms != null) {
      throw new UnsupportedOperationException(
          name + ": activations inside a TorchScript module cannot be reached; export it to ONNX");
    }
  }

  @Override
  public synchronized void train(boolean on) {
    requireOpen();
    module.train(on);
    training = on;
  }

  @Override
  public boolean isTraining() {
    return training;
  }

  @Override
  public synchronized void save(Path file) {
    requireOpen();
    write(module, file);
  }

  /**
   * Compares two TorchScript files: the parameters tensor by tensor, and whether all else (code, buffers,
   * constants) is the same.
   *
   * @throws InputException as {@link #read(Path)} does, and where there is no room for temporary files
   */
  public static ModelDiff diff(Path before, Path after) {
    return ScriptDiff.of(before, after);
  }

  /**
   * Writes a module, atomically. Equal modules give equal files.
   *
   * @throws InputException where the file cannot be written
   */
  public static void write(JitModule module, Path file) {
    try (PointerScope scope = new PointerScope()) {
      ModuleFile.write(
          file,
          tensors(module),
          out -> {
            module.save(out.path().toString());
            ScriptArchive.renameFolder(out.channel());
          });
    }
  }

  private static List<Tensor> tensors(JitModule module) {
    List<Tensor> tensors = new ArrayList<>();
    named_parameter_list parameters = module.named_parameters();
    named_parameter_iterator p = parameters.begin();
    for (long i = 0; i < parameters.size(); i++, p.increment()) {
      tensors.add(p.multiply().value());
    }
    named_buffer_list buffers = module.named_buffers();
    named_buffer_iterator b = buffers.begin();
    for (long i = 0; i < buffers.size(); i++, b.increment()) {
      tensors.add(b.multiply().value());
    }
    return tensors;
  }

  private void requireOpen() {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
  }

  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      parameters.forEach(p -> p.tensor().close());
      module.close();
    }
  }
}
