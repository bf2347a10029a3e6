package org.espalier.torch;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.InputArchive;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.OutputArchive;
import org.bytedeco.pytorch.StringSharedModuleDict;
import org.bytedeco.pytorch.StringTensorDict;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.torch.Parameter.Kind;

/**
 * A module written in Java with the presets of libtorch: {@code Module} with registered children
 * and a forward function. Activations inside it cannot be transformed; the function can do so
 * itself.
 */
public final class ModuleModel implements TrainableModel {
  private final String name;
  private final Module module;
  private final List<String> inputNames;
  private final List<String> outputNames;
  private final Forward forward;
  private final List<Parameter> parameters = new ArrayList<>();
  private boolean closed;

  /** The forward pass of a module. */
  @FunctionalInterface
  public interface Forward {
    /**
     * @param inputs a tensor for each input name, in order
     * @return a tensor for each output name, in order
     */
    List<Tensor> apply(List<Tensor> inputs);
  }

  /**
   * @param name what messages call the model
   * @param module holds the parameters; closing the model closes it
   * @throws InputException where a parameter is no contiguous float32 tensor, or there is none
   */
  public ModuleModel(
      String name,
      Module module,
      List<String> inputNames,
      List<String> outputNames,
      Forward forward) {
    Libtorch.load();
    this.name = name;
    this.module = module;
    this.inputNames = List.copyOf(inputNames);
    this.outputNames = List.copyOf(outputNames);
    this.forward = forward;
    module.retainReference();
    try (PointerScope scope = new PointerScope()) {
      findParameters();
    } catch (RuntimeException e) {
      close();
      throw e;
    }
  }

  private void findParameters() {
    Map<String, Kind> kinds = new LinkedHashMap<>();
    StringSharedModuleDict modules = module.named_modules("", false);
    for (long i = 0; i < modules.size(); i++) {
      kinds.put(
          modules.get(i).key().getString(),
          ModuleKinds.ofModule(modules.get(i).value().name().getString()));
    }
    StringTensorDict list = module.named_parameters();
    for (long i = 0; i < list.size(); i++) {
      String parameter = list.get(i).key().getString();
      Tensor tensor = new Tensor(list.get(i).value());
      if (!tensor.requires_grad()) {
        continue;
      }
      parameters.add(
          ModuleKinds.parameter(
              name, parameter, tensor, owner -> kinds.getOrDefault(owner, Kind.OTHER)));
    }
    if (parameters.isEmpty()) {
      throw new InputException(name + " has no parameter that requires a gradient");
    }
  }

  @Override
  public List<Parameter> parameters() {
    return List.copyOf(parameters);
  }

  @Override
  public List<String> inputNames() {
    return inputNames;
  }

  @Override
  public List<String> outputNames() {
    return outputNames;
  }

  @Override
  public synchronized Map<String, Tensor> forward(Map<String, Tensor> inputs) {
    requireOpen();
    ModuleKinds.checkInputs(name, inputNames, inputs);
    List<Tensor> results;
    try {
      results = forward.apply(inputNames.stream().map(inputs::get).toList());
    } catch (RuntimeException e) {
      throw new InputException(name + " failed in forward: " + Libtorch.firstLine(e), e);
    }
    if (results == null || results.size() != outputNames.size()) {
      throw new InputException(
          name
              + " returned "
              + (results == null ? "null" : results.size() + " tensors")
              + " for the outputs "
              + outputNames);
    }
    Map<String, Tensor> outputs = new LinkedHashMap<>();
    for (int i = 0; i < results.size(); i++) {
      outputs.put(outputNames.get(i), results.get(i));
    }
    return outputs;
  }

  /**
   * @throws UnsupportedOperationException always, unless {@code transforms} is null
   */
  @Override
  public void transformInputs(InputTransforms transforms) {
    if (transforms != null) {
      throw new UnsupportedOperationException(
          name + ": activations inside a Java module are its own; transform them in its forward");
    }
  }

  @Override
  public synchronized void train(boolean on) {
    requireOpen();
    module.train(on);
  }

  @Override
  public synchronized boolean isTraining() {
    requireOpen();
    return module.is_training();
  }

  /** Writes the parameters and buffers in libtorch's archive format, which {@link #load} reads. */
  @Override
  public synchronized void save(Path file) {
    requireOpen();
    try (PointerScope scope = new PointerScope()) {
      List<Tensor> tensors = new ArrayList<>(List.of(module.parameters().get()));
      tensors.addAll(List.of(module.buffers().get()));
      ModuleFile.write(
          file,
          tensors,
          out -> {
            OutputArchive archive = new OutputArchive();
            module.save(archive);
            archive.save_to(out.path().toString());
          });
    }
  }

  /**
   * Reads what {@link #save} of a module of the same structure wrote. The parameters keep their memory, which is
   * overwritten, so views of them stay valid.
   *
   * @throws InputException where the file does not fit; the parameters are what they were then
   */
  public synchronized void load(Path file) {
    requireOpen();
    try (PointerScope scope = new PointerScope();
        NoGradGuard guard = new NoGradGuard()) {
      if (!Files.isRegularFile(file)) {
        throw new InputException("it is no file");
      }
      List<Tensor> memory = parameters.stream().map(p -> p.tensor().detach()).toList();
      List<Tensor> loaded = new ArrayList<>();
      try {
        InputArchive archive = new InputArchive();
        archive.load_from(file.toString());
        module.load(archive);
        parameters.forEach(p -> loaded.add(p.tensor().detach()));
      } finally {
        for (int i = 0; i < memory.size(); i++) {
          parameters.get(i).tensor().set_data(memory.get(i));
        }
      }
      for (int i = 0; i < memory.size(); i++) {
        if (!Arrays.equals(loaded.get(i).shape(), memory.get(i).shape())) {
          throw new InputException(
              parameters.get(i).name()
                  + " is "
                  + Arrays.toString(loaded.get(i).shape())
                  + " there and "
                  + Arrays.toString(memory.get(i).shape())
                  + " here");
        }
      }
      for (int i = 0; i < memory.size(); i++) {
        memory.get(i).copy_(loaded.get(i));
      }
    } catch (RuntimeException e) {
      throw new InputException(file + " does not hold " + name + ": " + Libtorch.firstLine(e), e);
    }
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
