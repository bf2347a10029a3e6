package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.BooleanList;
import org.bytedeco.pytorch.CompilationUnit;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.QualifiedName;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.onnx.GraphParameters.Entry;

/**
 * Writes an ONNX model as a TorchScript module: the graph as source, its parameters as parameters of modules
 * that lie as their names say, its other constants as buffers of a module {@code constants}. What {@link
 * Program} computes, the module computes with the same calls, whatever the sizes of its inputs: sizes stay
 * computations.
 *
 * <p>Its forward method takes the inputs of the graph in order and returns the output, or a tuple of the
 * outputs. What is no letter, digit or underscore of a name becomes an underscore. {@code train} and {@code
 * eval} switch Dropout and batch norms. Weights have the layout of the graph.
 */
public final class GraphScript {
  private final OnnxModel model;
  private final UnaryOperator<String> naming;
  private final Frame frame = new Frame(TorchDevice.CPU);
  private final Map<String, Tensor> variables = new LinkedHashMap<>();
  private final CompilationUnit unit = new CompilationUnit();

  /** The classes of modules that are more than a place, by their dotted names. */
  private final Map<String, String> classes = new HashMap<>();

  private final Place root = new Place("self", newModule("Model"));

  /** Null until there is a constant. */
  private Place constants;

  /** By slot, where the module holds what is in it, as an expression. */
  private final Map<Integer, String> homes = new HashMap<>();

  private Compiler compiler;

  /**
   * A module that is being made.
   *
   * @param path where it is, as an expression
   * @param names the names that are taken in it
   * @param inner its modules by their names in the model
   */
  private record Place(String path, JitModule module, Set<String> names, Map<String, Place> inner) {
    Place(String path, JitModule module) {
      this(path, module, new HashSet<>(), new HashMap<>());
    }
  }

  private GraphScript(OnnxModel model, UnaryOperator<String> naming) {
    this.model = model;
    this.naming = naming;
  }

  /** The names of all operators that can be written. */
  public static Set<String> operators() {
    Set<String> names = ScriptTable.names();
    names.add("Constant");
    return names;
  }

  /**
   * Writes a model with the values of its constants, atomically.
   *
   * @throws InputException that names what the model uses and TorchScript has no place for: operators,
   *     attributes, types; or where the file cannot be written. Nothing is written then.
   */
  public static void write(OnnxModel model, Path file) {
    write(model, UnaryOperator.identity(), file);
  }

  /**
   * Writes a model whose parameters get other names.
   *
   * @param names gives a parameter's name in the module, of its name in the graph; equal ones are numbered
   * @throws InputException as {@link #write(OnnxModel, Path)}
   */
  public static void write(OnnxModel model, UnaryOperator<String> names, Path file) {
    try (PointerScope scope = new PointerScope()) {
      TorchScriptModel.write(module(model, names), file);
    }
  }

  /**
   * The module in memory, in evaluation; it belongs to the innermost {@link PointerScope} of the caller.
   *
   * @throws InputException that names what the model uses and TorchScript has no place for
   */
  public static JitModule module(OnnxModel model) {
    return module(model, UnaryOperator.identity());
  }

  private static JitModule module(OnnxModel model, UnaryOperator<String> names) {
    ScriptTable.refuseUnknown(model);
    Libtorch.load();
    return new GraphScript(model, names).build();
  }

  /**
   * Asks whether a model can be written.
   *
   * @throws InputException that names what the model uses and TorchScript has no place for
   */
  public static void check(OnnxModel model) {
    try (PointerScope scope = new PointerScope()) {
      module(model);
    }
  }

  private JitModule build() {
    for (ValueInfoProto v : model.inputs()) {
      checkType(v);
    }
    try {
      GraphParameters found = GraphParameters.of(model);
      for (Entry e : found.parameters()) {
        variables.put(e.constant(), variable(e.constant()).requires_grad_(true));
        classify(e);
      }
      for (String statistics : found.statistics()) {
        variables.put(statistics, variable(statistics));
      }
      compiler = new Compiler(model, frame);
      List<Step> steps = compiler.compile(variables);
      compiler.materializeOutputs();
      for (Entry e : found.parameters()) {
        homes.put(
            compiler.slot(e.constant()),
            place(naming.apply(e.name()), variables.get(e.constant()), true));
      }
      for (String statistics : found.statistics()) {
        homes.put(compiler.slot(statistics), place(statistics, variables.get(statistics), false));
      }
      root.module().define(source(steps));
      return root.module();
    } finally {
      release();
    }
  }

  private void checkType(ValueInfoProto v) {
    String where = model.name() + ": the input " + v.getName();
    if (!v.getType().hasTensorType()) {
      throw new InputException(where + " is no tensor");
    }
    ScalarType type =
        ElementTypes.torch(DataType.forNumber(v.getType().getTensorType().getElemType()), where);
    if (type == ScalarType.UInt16 || type == ScalarType.UInt32 || type == ScalarType.UInt64) {
      throw new InputException(
          where + " has elements of " + type + ", which cannot be computed with in TorchScript");
    }
  }

  private Tensor variable(String constant) {
    OnnxInitializer i = model.constant(constant);
    return torch
        .from_blob(new Pointer(i.data()), i.dims(), new TensorOptions(ScalarType.Float))
        .clone();
  }

  /** Gives the module of a weight that lies as PyTorch has it the name of its class there. */
  private void classify(Entry e) {
    String name = naming.apply(e.name());
    int dot = name.lastIndexOf('.');
    int axes = model.constant(e.constant()).dims().length - 2;
    if (dot < 0 || !name.endsWith(".weight")) {
      return;
    }
    String kind =
        switch (e.kind()) {
          case LINEAR -> e.outputAxis() == 0 && axes == 0 ? "Linear" : null;
          case CONVOLUTION -> e.outputAxis() == 0 && axes > 0 ? "Conv" + axes + "d" : null;
          case EMBEDDING -> "Embedding";
          case TRANSPOSED_CONVOLUTION, RECURRENT, OTHER -> null;
        };
    if (kind != null) {
      classes.put(name.substring(0, dot), kind);
    }
  }

  private String source(List<Step> steps) {
    ScriptSource source = new ScriptSource(frame, compiler, this::home);
    for (ValueInfoProto v : model.inputs()) {
      source.input(compiler.slot(v.getName()), v.getName(), fixedShape(v));
    }
    for (Step step : steps) {
      int[] sources = step.sources();
      Node node = step.node(i -> sources[i] < 0 ? null : source.constant(sources[i]));
      ScriptValue[] results =
          ScriptTable.find(step.operator()).write(new ScriptCall(source, node, sources));
      node.refuseUnread();
      int[] targets = step.targets();
      for (int i = 0; i < targets.length; i++) {
        if (targets[i] >= 0) {
          if (i >= results.length) {
            throw node.unsupported("output " + i);
          }
          source.set(targets[i], results[i]);
        }
      }
    }
    return source.text(
        model.outputs().stream().mapToInt(v -> compiler.slot(v.getName())).toArray());
  }

  /** Null where sizes are open. */
  private static long[] fixedShape(ValueInfoProto v) {
    if (!v.getType().getTensorType().hasShape()) {
      return null;
    }
    List<TensorShapeProto.Dimension> dims = v.getType().getTensorType().getShape().getDimList();
    return dims.stream().allMatch(TensorShapeProto.Dimension::hasDimValue)
        ? dims.stream().mapToLong(TensorShapeProto.Dimension::getDimValue).toArray()
        : null;
  }

  /** A constant becomes a buffer when it is first used. */
  private String home(int slot) {
    return homes.computeIfAbsent(
        slot,
        s -> {
          if (constants == null) {
            constants = inside(root, "constants", "Module");
          }
          String name = "c" + constants.names().size();
          constants.names().add(name);
          constants.module().register_buffer(name, frame.get(s));
          return ScriptNames.access(constants.path(), name);
        });
  }

  /** Registers a tensor under a dotted name and returns where it is. */
  private String place(String name, Tensor tensor, boolean parameter) {
    Place at = root;
    int from = 0;
    for (int dot = name.indexOf('.'); dot >= 0; dot = name.indexOf('.', from)) {
      String part = name.substring(from, dot);
      Place outer = at;
      at = outer.inner().get(part);
      if (at == null) {
        at = inside(outer, part, classes.getOrDefault(name.substring(0, dot), "Module"));
        outer.inner().put(part, at);
      }
      from = dot + 1;
    }
    String member = ScriptNames.unique(ScriptNames.member(name.substring(from)), at.names());
    if (parameter) {
      at.module().register_parameter(member, tensor, false);
    } else {
      at.module().register_buffer(member, tensor);
    }
    return ScriptNames.access(at.path(), member);
  }

  private Place inside(Place outer, String wanted, String type) {
    String member = ScriptNames.unique(ScriptNames.member(wanted), outer.names());
    Place made = new Place(ScriptNames.access(outer.path(), member), newModule(type));
    outer.module().register_module(member, made.module());
    return made;
  }

  private JitModule newModule(String type) {
    JitModule module = new JitModule(new QualifiedName("__torch__." + type), unit, true);
    // JavaCPP lets a type be had only from something that has it.
    module.register_attribute("training", new BooleanList().elementType(), new IValue(false));
    return module;
  }

  /** Lets constants go; the module has references of its own. */
  private void release() {
    if (compiler == null) {
      return;
    }
    for (int slot = 0; slot < compiler.slots(); slot++) {
      if (compiler.isConstant(slot)) {
        frame.release(slot);
      }
    }
  }
}
