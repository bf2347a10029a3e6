package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.InputTransforms;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;

/**
 * An ONNX model as a list of calls of libtorch. Values that depend on constants only are computed
 * when it is compiled; values that depend on the shapes of the inputs only are kept for the shapes
 * seen last. Each value is freed after the last step that reads it, unless autograd needs it.
 *
 * <p>Not safe for several threads.
 */
public final class Program implements AutoCloseable {
  /** Input shapes whose values are kept: batches of padded text have some dozens. */
  private static final int KEPT_SHAPES = 64;

  private final String name;
  private final Frame frame;
  private final List<ValueInfoProto> inputs;
  private final List<String> outputNames;
  private final TorchDevice device;
  private final int[] inputSlots;
  private final int[] outputSlots;
  private final List<Step> steps;

  /** Those of {@code steps} that run for shapes seen before. */
  private final List<Step> dataSteps;

  /** Slots that depend on the shapes of the inputs only and that {@code dataSteps} read. */
  private final int[] shapeSlots;

  /** By step, the slots that are freed after it. */
  private final int[][] releases;

  private final int[][] dataReleases;

  /** Slots that steps set. */
  private final int[] transients;

  /** Slots that hold constants, which the program owns. */
  private final List<Tensor> constants = new ArrayList<>();

  private final LinkedHashMap<List<Object>, Known> known =
      new LinkedHashMap<>(16, 0.75f, true) {
        @Override
        protected boolean removeEldestEntry(Map.Entry<List<Object>, Known> eldest) {
          if (size() > KEPT_SHAPES) {
            eldest.getValue().close();
            return true;
          }
          return false;
        }
      };

  private final LookUps lookUps = new LookUps();
  private boolean closed;

  /** The values that follow from one list of input shapes. */
  private record Known(Tensor[] tensors, long[][] longs) {
    void close() {
      for (Tensor t : tensors) {
        t.close();
      }
    }
  }

  /**
   * Compiles a model.
   *
   * @param variables tensors that stand for initializers of those names; the caller owns and may
   *     change them between runs
   * @param device where the variables are and the program runs
   * @throws InputException that names what the model uses and the table lacks: operators,
   *     attributes, types
   */
  public Program(OnnxModel model, Map<String, Tensor> variables, TorchDevice device) {
    Libtorch.load();
    this.name = model.name();
    this.device = device;
    this.frame = new Frame(device);
    this.inputs = model.inputs();
    for (ValueInfoProto v : inputs) {
      if (!v.getType().hasTensorType()) {
        throw new InputException(name + ": the input " + v.getName() + " is no tensor");
      }
      ElementTypes.torch(type(v), name + ": the input " + v.getName());
    }
    this.outputNames = model.outputs().stream().map(ValueInfoProto::getName).toList();
    try (PointerScope scope = new PointerScope()) {
      Compiler compiler = new Compiler(model, frame);
      this.steps = compiler.compile(variables);
      compiler.materializeOutputs();
      this.inputSlots = inputs.stream().mapToInt(v -> compiler.slot(v.getName())).toArray();
      this.outputSlots = outputNames.stream().mapToInt(compiler::slot).toArray();
      this.dataSteps = steps.stream().filter(s -> !isKnown(s, compiler)).toList();
      this.shapeSlots = shapeSlots(compiler);
      this.releases = releases(steps);
      this.dataReleases = releases(dataSteps);
      this.transients =
          steps.stream()
              .flatMapToInt(s -> Arrays.stream(s.targets()))
              .filter(slot -> slot >= 0)
              .toArray();
      collectConstants(compiler);
    }
  }

  /** The names of all operators that can be run. */
  public static Set<String> operators() {
    Set<String> names = new TreeSet<>(OperatorTable.names());
    ControlOperators.add(o -> names.add(o.name()), g -> null);
    return names;
  }

  private static boolean isKnown(Step s, Compiler compiler) {
    return Arrays.stream(s.targets()).filter(t -> t >= 0).allMatch(compiler::isValueKnown);
  }

  /** The slots that only the shapes of the inputs decide and that data steps or outputs read. */
  private int[] shapeSlots(Compiler compiler) {
    Set<Integer> read = new TreeSet<>();
    dataSteps.forEach(s -> Arrays.stream(s.reads()).forEach(read::add));
    Arrays.stream(outputSlots).forEach(read::add);
    return read.stream()
        .mapToInt(Integer::intValue)
        .filter(s -> compiler.isValueKnown(s) && !compiler.isConstant(s))
        .toArray();
  }

  /** For each step the slots that no later one reads. */
  private int[][] releases(List<Step> list) {
    Set<Integer> kept = new HashSet<>();
    Arrays.stream(outputSlots).forEach(kept::add);
    Arrays.stream(shapeSlots).forEach(kept::add);
    Map<Integer, Integer> last = new HashMap<>();
    for (int i = 0; i < list.size(); i++) {
      for (int target : list.get(i).targets()) {
        last.put(target, i);
      }
      for (int slot : list.get(i).reads()) {
        last.replace(slot, i);
      }
    }
    int[][] releases = new int[list.size()][];
    for (int i = 0; i < releases.length; i++) {
      int step = i;
      releases[i] =
          last.entrySet().stream()
              .filter(e -> e.getKey() >= 0 && e.getValue() == step && !kept.contains(e.getKey()))
              .mapToInt(Map.Entry::getKey)
              .toArray();
    }
    return releases;
  }

  /** Keeps the constants that steps and outputs read and frees the others. */
  private void collectConstants(Compiler compiler) {
    Set<Integer> read = new HashSet<>();
    steps.forEach(s -> Arrays.stream(s.reads()).forEach(read::add));
    Arrays.stream(outputSlots).forEach(read::add);
    for (int slot = 0; slot < compiler.slots(); slot++) {
      if (compiler.isConstant(slot) && frame.get(slot) != null) {
        if (read.contains(slot) || compiler.isInner(slot)) {
          constants.add(frame.get(slot));
        } else {
          frame.release(slot);
        }
      }
    }
  }

  private static DataType type(ValueInfoProto v) {
    return DataType.forNumber(v.getType().getTensorType().getElemType());
  }

  public List<String> inputNames() {
    return inputs.stream().map(ValueInfoProto::getName).toList();
  }

  public List<String> outputNames() {
    return outputNames;
  }

  /** Sets the transforms of the activations that matrix products and convolutions read, and of results. */
  public void transformInputs(InputTransforms transforms) {
    for (Step s : steps) {
      s.transformResult(transforms == null ? null : transforms.result(s.identity()));
      if (s.operator().product()) {
        s.transform(transform(transforms, s, 0), transform(transforms, s, 1));
      }
    }
  }

  /**
   * Has what is looked up in some variables be leaves of autograd from now on, in place of the variables.
   *
   * @param tables names of what Gather nodes read, by variable; the other variables are read as ever
   */
  public void differentiateLookUps(Map<String, String> tables) {
    Map<String, String> named = new HashMap<>(tables);
    for (Step s : steps) {
      String table = null;
      switch (s.operator().name()) {
        case "Gather" -> table = named.get(s.input(0));
        case "Identity" -> named.put(s.identity(), named.get(s.input(0))); // a second name
        default -> {}
      }
      s.lookUp(table == null ? null : lookUps, table);
    }
  }

  /** What the last run, if it recorded for a backward pass, looked up in tables that are differentiated so. */
  public List<LookUps.LookUp> lookUps() {
    return lookUps.found();
  }

  private static UnaryOperator<Tensor> transform(InputTransforms transforms, Step s, int input) {
    return transforms != null && s.takesActivation(input)
        ? transforms.transform(s.identity(), input)
        : null;
  }

  /**
   * Runs the program.
   *
   * @param training whether dropout is active and batch norms use and update their statistics
   * @return the outputs in order; they belong to the innermost {@link PointerScope} of the caller
   * @throws InputException where an input does not fit the model, or a node refuses its inputs
   */
  public Map<String, Tensor> run(Map<String, Tensor> values, boolean training) {
    if (closed) {
      throw new IllegalStateException("the model is closed");
    }
    frame.train(training);
    lookUps.clear();
    PointerScope callers = PointerScope.getInnerScope();
    boolean shapesKept = false;
    try (PointerScope scope = new PointerScope()) {
      List<Object> key = bind(values);
      Known found = known.get(key);
      if (found == null) {
        run(steps, releases);
        known.put(key, present());
      } else {
        for (int i = 0; i < shapeSlots.length; i++) {
          frame.restore(shapeSlots[i], found.tensors()[i], found.longs()[i]);
        }
        shapesKept = true;
        run(dataSteps, dataReleases);
      }
      shapesKept = true;
      Map<String, Tensor> results = new LinkedHashMap<>();
      for (int i = 0; i < outputSlots.length; i++) {
        Tensor t = new Tensor(frame.get(outputSlots[i]));
        t.retainReference();
        results.put(outputNames.get(i), t);
      }
      if (callers != null) {
        for (Tensor t : results.values()) {
          callers.attach(t);
          t.releaseReference();
        }
      }
      return results;
    } finally {
      clear(shapesKept);
    }
  }

  private void run(List<Step> list, int[][] after) {
    for (int i = 0; i < after.length; i++) {
      list.get(i).run();
      for (int slot : after[i]) {
        frame.release(slot);
      }
    }
  }

  /** Puts the inputs into their slots and returns their types and shapes. */
  private List<Object> bind(Map<String, Tensor> values) {
    List<Object> key = new ArrayList<>();
    for (int i = 0; i < inputSlots.length; i++) {
      ValueInfoProto wanted = inputs.get(i);
      Tensor given = values.get(wanted.getName());
      if (given == null) {
        throw new InputException(
            name + " needs the input " + wanted.getName() + "; it got " + values.keySet());
      }
      if (given.isNull()) {
        throw new InputException(
            name + ": the tensor of the input " + wanted.getName() + " is closed");
      }
      long[] shape = given.shape();
      ScalarType type = ElementTypes.of(given);
      check(wanted, type, shape);
      key.add(type);
      for (long size : shape) {
        key.add(size);
      }
      frame.set(inputSlots[i], device.place(given));
    }
    if (values.size() > inputSlots.length) {
      throw new InputException(
          name + " has the inputs " + inputNames() + "; it got " + values.keySet());
    }
    return key;
  }

  private void check(ValueInfoProto wanted, ScalarType type, long[] shape) {
    String where = name + ": the input " + wanted.getName();
    ScalarType declared = ElementTypes.torch(type(wanted));
    if (type != declared) {
      throw new InputException(where + " must be " + declared + " but is " + type);
    }
    if (!wanted.getType().getTensorType().hasShape()) {
      return;
    }
    List<TensorShapeProto.Dimension> dims =
        wanted.getType().getTensorType().getShape().getDimList();
    boolean fits = dims.size() == shape.length;
    for (int i = 0; fits && i < shape.length; i++) {
      fits = !dims.get(i).hasDimValue() || dims.get(i).getDimValue() == shape[i];
    }
    if (!fits) {
      List<String> names =
          dims.stream()
              .map(
                  d ->
                      d.hasDimValue()
                          ? Long.toString(d.getDimValue())
                          : d.hasDimParam() ? d.getDimParam() : "?")
              .toList();
      throw new InputException(
          where + " must have the shape " + names + " but has " + Arrays.toString(shape));
    }
  }

  /** What follows from the shapes of this run. */
  private Known present() {
    Tensor[] tensors = new Tensor[shapeSlots.length];
    long[][] longs = new long[shapeSlots.length][];
    for (int i = 0; i < tensors.length; i++) {
      tensors[i] = frame.get(shapeSlots[i]);
      longs[i] = frame.longs(shapeSlots[i]);
    }
    return new Known(tensors, longs);
  }

  /** Empties the slots of this run and frees the values that have no owner. */
  private void clear(boolean shapesKept) {
    if (shapesKept) {
      for (int slot : shapeSlots) {
        frame.take(slot);
      }
    }
    for (int slot : transients) {
      frame.release(slot);
    }
    for (int slot : inputSlots) {
      frame.take(slot);
    }
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      lookUps.close();
      known.values().forEach(Known::close);
      known.clear();
      constants.forEach(Tensor::close);
    }
  }
}
