package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.InputTransforms;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.TrainableModel;

/**
 * An ONNX model, trained in place. It runs under operator sets 11 to 21 (and older ones where they mean
 * the same); what it uses beyond that is refused by name when it is loaded.
 *
 * <p>Its parameters are the float32 constants that layers hold: weights of products and
 * convolutions, lookup tables, biases, the scales and shifts of norms. Constants of one element are
 * no parameters, but for the bias of a product with one output, nor are tensors with values from
 * ±10,000 on (from ±10⁹ on, where they are added to a product with a weight), which are masks. Parameters are named as in the file, and by their place in
 * the graph where the exporter only numbered them.
 *
 * <p>{@link #train} makes Dropout nodes active and lets BatchNormalization nodes use the batch's
 * statistics and update their own, which {@link #save} writes too.
 */
public final class OnnxGraph implements TrainableModel {
  private final OnnxModel model;
  private final TorchDevice device;
  private final Program program;
  private final List<Parameter> parameters = new ArrayList<>();

  /** The constants that training changes, parameters and running statistics, by their names. */
  private final Map<String, Tensor> variables = new LinkedHashMap<>();

  private final Map<String, String> constants = new LinkedHashMap<>();

  /** The buffers of which tensors without memory of their own are views. */
  private final List<ByteBuffer> read = new ArrayList<>();

  /** The graph that owns the variables of this one; null where it owns them itself. */
  private final OnnxGraph original;

  private boolean training;
  private volatile boolean closed;

  /**
   * Reads a model.
   *
   * @throws InputException where the file is no model, uses what cannot be run, or holds weights of
   *     another type than float32
   */
  public static OnnxGraph read(Path file) {
    return new OnnxGraph(OnnxModel.read(file));
  }

  /** A model that is run and never trained: see the constructor for models of which only some parameters change. */
  public static OnnxGraph frozen(OnnxModel model, TorchDevice device) {
    return new OnnxGraph(model, device, e -> false);
  }

  /** A model that is in memory; the model itself stays as it is. */
  public OnnxGraph(OnnxModel model) {
    this(model, TorchDevice.CPU);
  }

  /** A model on a device. */
  public OnnxGraph(OnnxModel model, TorchDevice device) {
    this(model, device, e -> true);
  }

  /**
   * A model of which only some parameters change: the others are read where the model's data lies, in the mapped file
   * as a rule, and take no memory of the CPU's. Whoever writes them ends the process.
   *
   * @param changes which are written, have gradients, and so have memory of their own
   */
  public OnnxGraph(OnnxModel model, TorchDevice device, Predicate<GraphParameters.Entry> changes) {
    Libtorch.load();
    this.model = model.copy();
    this.device = device;
    original = null;
    try (PointerScope scope = new PointerScope()) {
      GraphParameters found = GraphParameters.of(model);
      for (GraphParameters.Entry e : found.parameters()) {
        boolean changing = changes.test(e);
        Tensor tensor = variable(e.constant(), changing).requires_grad_(changing);
        constants.put(e.name(), e.constant());
        parameters.add(
            new Parameter(
                e.name(),
                keep(e.constant(), tensor),
                e.kind(),
                e.outputAxis(),
                e.reductionAxis(),
                e.nodes()));
      }
      for (String statistics : found.statistics()) {
        keep(statistics, variable(statistics, true));
      }
      Program compiled;
      try {
        compiled = new Program(model, variables, device);
      } catch (RuntimeException e) {
        variables.values().forEach(Tensor::close);
        throw e;
      }
      program = compiled;
    }
  }

  private OnnxGraph(OnnxGraph original) {
    model = original.model;
    device = original.device;
    this.original = original;
    parameters.addAll(original.parameters);
    variables.putAll(original.variables);
    constants.putAll(original.constants);
    program = new Program(model, variables, device);
  }

  /**
   * The same graph for another thread: its parameters are the very tensors of this one, so that gradients of
   * both add up in one place. Transforms and training mode are its own. Autograd locks a gradient
   * while it adds to it; the sum of two is the same in either order, of more it is not.
   *
   * @return to be closed before this graph
   */
  public synchronized OnnxGraph sibling() {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
    return new OnnxGraph(this);
  }

  private Tensor variable(String constant, boolean changing) {
    OnnxInitializer i = model.constant(constant);
    ByteBuffer data = i.data();
    Tensor mapped =
        torch.from_blob(new Pointer(data), i.dims(), new TensorOptions(ScalarType.Float));
    if (!changing && !device.isCuda()) {
      read.add(data);
      return mapped;
    }
    return device.place(mapped.clone());
  }

  private Tensor keep(String constant, Tensor tensor) {
    tensor.retainReference();
    variables.put(constant, tensor);
    return tensor;
  }

  @Override
  public List<Parameter> parameters() {
    return List.copyOf(parameters);
  }

  /**
   * The name of the constant in the graph that a parameter is.
   *
   * @throws IllegalArgumentException where the model has no such parameter
   */
  public String constantOf(String parameter) {
    String constant = constants.get(parameter);
    if (constant == null) {
      throw new IllegalArgumentException(model.name() + " has no parameter " + parameter);
    }
    return constant;
  }

  /**
   * The parameters that nodes look rows up in, and who reads each in another way: empty where nobody does, so that a
   * forward reads some rows of it and nothing else.
   */
  public Map<String, String> tables() {
    Map<String, String> found = LookUpTables.of(model);
    Map<String, String> tables = new LinkedHashMap<>();
    constants.forEach(
        (name, constant) -> {
          if (found.containsKey(constant)) {
            tables.put(name, found.get(constant));
          }
        });
    return tables;
  }

  /**
   * Has what a forward looks up in some {@linkplain #tables tables} be leaves of autograd from now on, in place of the
   * tables, which have no gradient then: see {@link LookUps}. A sibling does as before.
   *
   * @param names tables that are read in no other way; all others have a gradient as ever
   */
  public synchronized void differentiateLookUps(Set<String> names) {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
    Map<String, String> chosen = new HashMap<>();
    for (Parameter p : parameters) {
      boolean byRows = names.contains(p.name());
      p.tensor().requires_grad_(!byRows);
      if (byRows) {
        p.tensor().mutable_grad().reset();
        chosen.put(constantOf(p.name()), p.name());
      }
    }
    program.differentiateLookUps(chosen);
  }

  /** What the last forward, if gradients were recorded, looked up in the tables that are differentiated so. */
  public List<LookUps.LookUp> lookUps() {
    return program.lookUps();
  }

  /** Whether NaN in its inputs is a value that is missing: see {@link MissingValues}. */
  public boolean knowsMissing() {
    return MissingValues.areKnownTo(model);
  }

  /** Whether a range is found for all of a batch while the model runs. */
  public boolean findsRanges() {
    return model.allNodes().stream().anyMatch(n -> n.getOpType().equals("DynamicQuantizeLinear"));
  }

  @Override
  public List<String> inputNames() {
    return program.inputNames();
  }

  @Override
  public List<String> outputNames() {
    return program.outputNames();
  }

  @Override
  public synchronized Map<String, Tensor> forward(Map<String, Tensor> inputs) {
    if (original != null && original.closed) {
      throw new IllegalStateException("the model whose parameters this one has is closed");
    }
    return program.run(inputs, training);
  }

  @Override
  public void transformInputs(InputTransforms transforms) {
    program.transformInputs(transforms);
  }

  @Override
  public void train(boolean on) {
    training = on;
  }

  @Override
  public boolean isTraining() {
    return training;
  }

  /** The model with the present values, for an exporter; its data is a copy. */
  public synchronized OnnxModel toModel() {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
    OnnxModel copy = model.copy();
    variables.forEach(
        (constant, tensor) -> {
          try (PointerScope scope = new PointerScope()) {
            Tensor host = tensor.detach().cpu().contiguous();
            ByteBuffer data =
                ByteBuffer.allocateDirect(Math.toIntExact(4 * host.numel()))
                    .order(ByteOrder.LITTLE_ENDIAN);
            Pointer.memcpy(new BytePointer(data), host.data_ptr(), data.capacity());
            copy.replaceConstant(
                OnnxInitializer.of(
                    constant, DataType.FLOAT, model.constant(constant).dims(), data));
          }
        });
    return copy;
  }

  @Override
  public void save(Path file) {
    toModel().write(file);
  }

  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      program.close();
      if (original == null) {
        variables.values().forEach(Tensor::close);
      }
    }
  }
}
