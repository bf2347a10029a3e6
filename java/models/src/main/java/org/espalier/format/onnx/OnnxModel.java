package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.FunctionProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.SparseTensorProto;
import ai.onnx.proto.OnnxMl.StringStringEntryProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.google.protobuf.CodedOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.espalier.InputException;

/**
 * An ONNX model in memory: nodes and constant tensors of its main graph that can be changed, and
 * everything else as it was read. The data of the tensors stays in the memory-mapped files, which
 * must not change while the model is used.
 *
 * <p>A model is checked whole when it is read and again when it is written: the names of values are
 * unique, every node comes after what it uses, and every tensor has the data that its dimensions
 * and type ask for. Values in branches and bodies whose names others have too get new ones when it is read. Not
 * safe for several threads while it is changed.
 */
public final class OnnxModel {
  /** The element types of a main output. Some models leave the type out. */
  private static final Set<DataType> FLOATS =
      EnumSet.of(DataType.UNDEFINED, DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16);

  private final String name;
  private final Path path;
  private final Set<Path> dataFiles;
  private final ModelProto.Builder rest;
  private final GraphProto.Builder graph;
  private final Map<String, OnnxInitializer> initializers = new LinkedHashMap<>();
  private List<NodeProto> nodes;
  private NodeConstants constants;

  /** All names in use, while nodes do not change; null when they did. */
  private Set<String> knownNames;

  private OnnxModel(String name, Path path, ModelProto proto) {
    this(name, path, proto, List.of(), Set.of());
  }

  private OnnxModel(
      String name,
      Path path,
      ModelProto proto,
      Collection<OnnxInitializer> elsewhere,
      Set<Path> readFrom) {
    this.name = name;
    this.path = path;
    TensorReader tensors = new TensorReader(name, path);
    this.rest = proto.toBuilder();
    if (proto.getGraph().getNodeCount() == 0 && proto.getGraph().getOutputCount() == 0) {
      throw new InputException(name + " is not an ONNX model: it holds no graph");
    }
    GraphProto g = proto.getGraph();
    for (TensorProto t : g.getInitializerList()) {
      OnnxInitializer i = tensors.initializer(t);
      if (t.getName().isEmpty()) {
        throw new InputException(name + " has an initializer without a name: " + i);
      }
      if (initializers.put(t.getName(), i) != null) {
        throw new InputException(name + " has two initializers of the name " + t.getName());
      }
    }
    elsewhere.forEach(i -> initializers.put(i.name(), i));
    GraphProto.Builder others = GraphProto.newBuilder();
    for (NodeProto n : g.getNodeList()) {
      others.addNode(tensors.inline(n));
    }
    useNodes(NodeOrder.sorted(InnerGraphs.withUniqueNames(others.getNodeList(), defined(g))));
    this.graph = g.toBuilder().clearNode().clearInitializer();
    for (SparseTensorProto s : g.getSparseInitializerList()) {
      tensors.check(s, "the graph");
    }
    for (FunctionProto f : proto.getFunctionsList()) {
      for (NodeProto n : f.getNodeList()) {
        if (tensors.inline(n) != n) {
          throw new InputException(
              name + " has external data in its function " + f.getName() + ", which is not read");
        }
      }
    }
    rest.clearGraph();
    Set<Path> files = new HashSet<>(readFrom);
    files.addAll(tensors.files());
    this.dataFiles = Set.copyOf(files);
    check();
  }

  private OnnxModel(OnnxModel other) {
    this.name = other.name;
    this.path = other.path;
    this.dataFiles = other.dataFiles;
    this.rest = other.rest.clone();
    this.graph = other.graph.clone();
    this.initializers.putAll(other.initializers);
    useNodes(other.nodes);
  }

  /**
   * Reads and checks a model. Large data is mapped, not read.
   *
   * @throws InputException if the file is missing or no valid ONNX model, or its external data is
   *     missing or outside the model's folder
   */
  public static OnnxModel read(Path file) {
    return new OnnxModel(file.toString(), file, OnnxFile.read(file));
  }

  /**
   * Reads a model from memory; {@code bytes} are used in place and must not change.
   *
   * @param name what to call the model in messages
   */
  public static OnnxModel read(ByteBuffer bytes, String name) {
    return new OnnxModel(name, null, OnnxFile.parse(bytes.slice(), name));
  }

  /**
   * A model of a message.
   *
   * @param name what to call the model in messages
   */
  public static OnnxModel of(ModelProto proto, String name) {
    return new OnnxModel(name, null, proto);
  }

  /**
   * The same with tensors that lie in files.
   *
   * @param tensors initializers beside those of the message, of other names
   * @param files where they lie, which {@link #write} does not replace
   */
  public static OnnxModel of(
      ModelProto proto, String name, Collection<OnnxInitializer> tensors, Set<Path> files) {
    return new OnnxModel(name, null, proto, tensors, files);
  }

  /** A model that changes apart from this one; the data of the tensors is shared. */
  public OnnxModel copy() {
    return new OnnxModel(this);
  }

  /**
   * Checks that names are unique, nodes are in topological order, and the outputs exist.
   *
   * @throws InputException that names the node and the value
   */
  public void check() {
    GraphCheck check = new GraphCheck(name, initializers);
    check.operatorSets(rest);
    check.mainGraph(graph, nodes);
  }

  /** What messages call the model: its path, or the name that it was given. */
  public String name() {
    return name;
  }

  /** The file that the model was read from; null for a model from memory. */
  public Path path() {
    return path;
  }

  /** The files that the model was read from: its own and those of its external data. */
  public List<Path> files() {
    List<Path> files = new ArrayList<>(dataFiles);
    if (path != null) {
      files.add(0, path);
    }
    return files;
  }

  public long irVersion() {
    return rest.getIrVersion();
  }

  /** Raises the version of the format to at least {@code version}. */
  public void requireIrVersion(long version) {
    rest.setIrVersion(Math.max(version, rest.getIrVersion()));
  }

  /**
   * The version of the operators of a domain, 0 if the model imports none.
   *
   * @param domain the empty string for the operators of ONNX itself
   */
  public long opset(String domain) {
    for (OperatorSetIdProto o : rest.getOpsetImportList()) {
      if (domain(o.getDomain()).equals(domain(domain))) {
        return o.getVersion();
      }
    }
    // Before version 3 of the format a model had no imports and meant the first operator set.
    return rest.getOpsetImportCount() == 0 && domain(domain).isEmpty() ? 1 : 0;
  }

  /** Imports the operators of a domain in a version, in place of the version imported so far. */
  public void setOpset(String domain, long version) {
    for (int i = 0; i < rest.getOpsetImportCount(); i++) {
      if (domain(rest.getOpsetImport(i).getDomain()).equals(domain(domain))) {
        rest.getOpsetImportBuilder(i).setVersion(version);
        return;
      }
    }
    rest.addOpsetImportBuilder().setDomain(domain).setVersion(version);
  }

  /** The domain of an operator, empty for those of ONNX itself, which have two names. */
  static String domain(String domain) {
    return domain.equals("ai.onnx") ? "" : domain;
  }

  /** Whether a node's operator is one of ONNX itself: others may call theirs so too. */
  public static boolean isOwn(NodeProto n) {
    return domain(n.getDomain()).isEmpty();
  }

  /** Whether a node is this operator of ONNX itself. */
  public static boolean isOwn(NodeProto n, String operator) {
    return n.getOpType().equals(operator) && isOwn(n);
  }

  /** The value of a metadata property, null if there is none. */
  public String metadata(String key) {
    for (StringStringEntryProto e : rest.getMetadataPropsList()) {
      if (e.getKey().equals(key)) {
        return e.getValue();
      }
    }
    return null;
  }

  /** Sets the value of a metadata property. */
  public void setMetadata(String key, String value) {
    for (StringStringEntryProto.Builder e : rest.getMetadataPropsBuilderList()) {
      if (e.getKey().equals(key)) {
        e.setValue(value);
        return;
      }
    }
    rest.addMetadataPropsBuilder().setKey(key).setValue(value);
  }

  /** The nodes of the main graph, in topological order; unmodifiable. */
  public List<NodeProto> nodes() {
    return nodes;
  }

  /**
   * Replaces the nodes of the main graph.
   *
   * @throws InputException if they are not in topological order or define a value twice; the model
   *     is then unchanged
   */
  public void setNodes(List<NodeProto> newNodes) {
    List<NodeProto> old = nodes;
    useNodes(newNodes);
    try {
      check();
    } catch (InputException e) {
      useNodes(old);
      throw e;
    }
  }

  private void useNodes(List<NodeProto> list) {
    nodes = List.copyOf(list);
    knownNames = null;
    constants = new NodeConstants(nodes);
  }

  /** The nodes of the main graph and of the graphs inside them, each before those inside it. */
  public List<NodeProto> allNodes() {
    List<NodeProto> all = new ArrayList<>();
    nodes.forEach(n -> InnerGraphs.addNodes(n, all));
    return all;
  }

  /**
   * The nodes that some values need, in a new list.
   *
   * @param nodes in topological order
   */
  public static List<NodeProto> needed(List<NodeProto> nodes, Set<String> values) {
    Set<String> read = new HashSet<>(values);
    List<NodeProto> needed = new ArrayList<>();
    for (int i = nodes.size() - 1; i >= 0; i--) {
      NodeProto n = nodes.get(i);
      if (n.getOutputList().stream().anyMatch(read::contains)) {
        read.addAll(uses(n));
        needed.add(n);
      }
    }
    Collections.reverse(needed);
    return needed;
  }

  /** The nodes of the main graph by the values they define. */
  public Map<String, NodeProto> producers() {
    Map<String, NodeProto> map = new HashMap<>();
    for (NodeProto n : nodes) {
      n.getOutputList().stream().filter(o -> !o.isEmpty()).forEach(o -> map.put(o, n));
    }
    return map;
  }

  /** The nodes of the main graph and of the graphs inside it by the values they define. */
  public Map<String, NodeProto> allProducers() {
    Map<String, NodeProto> map = new HashMap<>();
    for (NodeProto n : allNodes()) {
      n.getOutputList().stream().filter(o -> !o.isEmpty()).forEach(o -> map.put(o, n));
    }
    return map;
  }

  /**
   * The nodes of the main graph by the values they use, sub-graphs of a node included, in graph
   * order; a node that uses a value twice is listed once.
   */
  public Map<String, List<NodeProto>> consumers() {
    Map<String, List<NodeProto>> map = new HashMap<>();
    for (NodeProto n : nodes) {
      uses(n).forEach(v -> map.computeIfAbsent(v, k -> new ArrayList<>()).add(n));
    }
    return map;
  }

  /** The nodes of the main graph and of the graphs inside it by the values that they read themselves, and that their graphs give. */
  public Map<String, List<NodeProto>> readers() {
    Map<String, List<NodeProto>> map = new HashMap<>();
    for (NodeProto n : allNodes()) {
      Set<String> read = new HashSet<>(n.getInputList());
      InnerGraphs.of(n)
          .forEach(g -> g.getOutputList().forEach(output -> read.add(output.getName())));
      read.forEach(value -> map.computeIfAbsent(value, v -> new ArrayList<>()).add(n));
    }
    return map;
  }

  /** The values that a node uses, those of its sub-graphs included. */
  public static Set<String> uses(NodeProto n) {
    Set<String> used = new HashSet<>();
    InnerGraphs.addUses(n, used);
    used.remove("");
    return used;
  }

  /** The inputs of the main graph, without those that only give an initializer its type. */
  public List<ValueInfoProto> inputs() {
    return graph.getInputList().stream()
        .filter(v -> !initializers.containsKey(v.getName()))
        .toList();
  }

  /**
   * Has nodes give what were inputs.
   *
   * @param given the nodes that do, in topological order, by the input's name
   */
  void computeInputs(Map<String, List<NodeProto>> given) {
    for (int i = graph.getInputCount() - 1; i >= 0; i--) {
      if (given.containsKey(graph.getInput(i).getName())) {
        graph.removeInput(i);
      }
    }
    List<NodeProto> all = new ArrayList<>();
    given.values().forEach(all::addAll);
    all.addAll(nodes);
    setNodes(all);
  }

  /**
   * Replaces inputs, outputs and nodes of the main graph. What was said of values that are gone is forgotten, as are
   * initializers that nothing uses any more.
   *
   * @throws InputException if the nodes are not in topological order, or read or give what is not there; the model must not be
   *     used then
   */
  public void replaceGraph(
      List<ValueInfoProto> inputs, List<ValueInfoProto> outputs, List<NodeProto> newNodes) {
    constantInitializers();
    graph.clearInput().addAllInput(inputs).clearOutput().addAllOutput(outputs);
    setNodes(newNodes);
    removeUnusedInitializers();
    Set<String> known = usedNames();
    removeValueInfo(value -> !known.contains(value));
  }

  /** The outputs of the main graph. */
  public List<ValueInfoProto> outputs() {
    return List.copyOf(graph.getOutputList());
  }

  /** The names of the outputs of the main graph, in a new set. */
  public Set<String> outputNames() {
    Set<String> names = new LinkedHashSet<>();
    graph.getOutputList().forEach(v -> names.add(v.getName()));
    return names;
  }

  /**
   * The first output of floats, which is what labels are compared with and other models follow; a classifier may give the
   * class itself before it, as a word or a number. The first of all where none is of floats, null where there is none.
   */
  public ValueInfoProto mainOutput() {
    List<ValueInfoProto> all = graph.getOutputList();
    return all.stream()
        .filter(OnnxModel::isOfFloats)
        .findFirst()
        .orElse(all.isEmpty() ? null : all.get(0));
  }

  private static boolean isOfFloats(ValueInfoProto value) {
    // Null for a number that no type has.
    DataType type = DataType.forNumber(value.getType().getTensorType().getElemType());
    return !value.hasType() || value.getType().hasTensorType() && FLOATS.contains(type);
  }

  /** Changes the element type of an input of the main graph. */
  void setInputType(String input, DataType type) {
    setType(graph.getInputBuilderList(), input, type);
  }

  /** Changes the element type of an output of the main graph. */
  void setOutputType(String output, DataType type) {
    setType(graph.getOutputBuilderList(), output, type);
  }

  private static void setType(List<ValueInfoProto.Builder> values, String value, DataType type) {
    for (ValueInfoProto.Builder v : values) {
      if (v.getName().equals(value)) {
        v.getTypeBuilder().getTensorTypeBuilder().setElemType(type.getNumber());
      }
    }
  }

  /** The type and shape that the model records for a value of its main graph; null if none. */
  public ValueInfoProto valueInfo(String value) {
    for (List<ValueInfoProto> list :
        List.of(graph.getInputList(), graph.getOutputList(), graph.getValueInfoList())) {
      for (ValueInfoProto v : list) {
        if (v.getName().equals(value)) {
          return v;
        }
      }
    }
    return null;
  }

  /** Says of what type and shape a value between nodes is, in place of what was said of it. */
  public void setValueInfo(ValueInfoProto info) {
    removeValueInfo(info.getName()::equals);
    graph.addValueInfo(info);
  }

  /** Takes away what the file says about types and shapes of values between nodes that now have others. */
  public void removeValueInfo(Predicate<String> values) {
    List<ValueInfoProto> kept =
        graph.getValueInfoList().stream().filter(v -> !values.test(v.getName())).toList();
    graph.clearValueInfo().addAllValueInfo(kept);
  }

  /**
   * Changes how long an axis of an input or output of the main graph is, where the model says so.
   *
   * @param fromEnd the axis counted from the end, 1 for the last
   */
  public void setLength(String value, int fromEnd, long length) {
    Stream.concat(graph.getInputBuilderList().stream(), graph.getOutputBuilderList().stream())
        .filter(v -> v.getName().equals(value))
        .map(v -> v.getTypeBuilder().getTensorTypeBuilder())
        .filter(type -> type.getShape().getDimCount() >= fromEnd)
        .map(type -> type.getShapeBuilder().getDimBuilder(type.getShape().getDimCount() - fromEnd))
        .filter(TensorShapeProto.Dimension.Builder::hasDimValue)
        .forEach(dimension -> dimension.setDimValue(length));
  }

  /** Changes the types of values that the main graph tells, its sparse tensors and the nodes of all functions. */
  void rewrite(
      UnaryOperator<TypeProto> types,
      UnaryOperator<SparseTensorProto> sparse,
      UnaryOperator<NodeProto> functionNodes) {
    for (ValueInfoProto.Builder v : graph.getValueInfoBuilderList()) {
      if (v.hasType()) {
        v.setType(types.apply(v.getType()));
      }
    }
    for (int i = 0; i < graph.getSparseInitializerCount(); i++) {
      graph.setSparseInitializer(i, sparse.apply(graph.getSparseInitializer(i)));
    }
    for (FunctionProto.Builder f : rest.getFunctionsBuilderList()) {
      for (int k = 0; k < f.getNodeCount(); k++) {
        f.setNode(k, functionNodes.apply(f.getNode(k)));
      }
    }
  }

  /** The initializers of the main graph, in the order of the file; unmodifiable. */
  public Collection<OnnxInitializer> initializers() {
    return Collections.unmodifiableCollection(initializers.values());
  }

  /** The initializer of a name, null if there is none. */
  public OnnxInitializer initializer(String value) {
    return initializers.get(value);
  }

  /**
   * The constant tensor of a value: an initializer or a Constant node's tensor, of the main graph or of one inside a
   * node; null if none.
   */
  public OnnxInitializer constant(String value) {
    OnnxInitializer i = initializers.get(value);
    if (i != null) {
      return i;
    }
    TensorProto t = constants.tensor(value);
    return t == null ? null : OnnxInitializer.ofMessage(t).withName(value);
  }

  /** Replaces the tensor that {@link #constant} gives for the name of {@code replacement}. */
  public void replaceConstant(OnnxInitializer replacement) {
    replaceConstants(List.of(replacement));
  }

  /** Replaces the tensors that {@link #constant} gives for the names of {@code replacements}. */
  public void replaceConstants(Collection<OnnxInitializer> replacements) {
    Map<String, TensorProto> inNodes = new HashMap<>();
    for (OnnxInitializer replacement : replacements) {
      if (constants.tensor(replacement.name()) == null) {
        replaceInitializer(replacement);
      } else {
        inNodes.put(replacement.name(), replacement.message());
      }
    }
    if (!inNodes.isEmpty()) {
      useNodes(constants.replaced(inNodes));
    }
  }

  /** Adds an initializer whose name no value of the main graph has yet. */
  public void addInitializer(OnnxInitializer added) {
    if (knownNames == null) {
      knownNames = usedNames();
    }
    if (!knownNames.add(added.name())) {
      throw new IllegalArgumentException(name + " has a value " + added.name() + " already");
    }
    constantInitializers();
    initializers.put(added.name(), added);
  }

  /**
   * Replaces the initializer of the same name, in its place; type and dimensions may change. A graph input of that name, which says
   * what they were, goes then.
   */
  public void replaceInitializer(OnnxInitializer replacement) {
    OnnxInitializer before = initializers.replace(replacement.name(), replacement);
    if (before == null) {
      throw new IllegalArgumentException(name + " has no initializer " + replacement.name());
    }
    if (before.type() != replacement.type() || !Arrays.equals(before.dims(), replacement.dims())) {
      constantInitializers();
    }
  }

  /** Removes an initializer; {@link #check()} finds the nodes that still use it. */
  public void removeInitializer(String value) {
    if (initializers.remove(value) == null) {
      throw new IllegalArgumentException(name + " has no initializer " + value);
    }
    knownNames = null;
    removeInput(value);
  }

  /** Removes the initializers that nothing uses any more and returns their names. */
  public List<String> removeUnusedInitializers() {
    Set<String> used = new HashSet<>();
    nodes.forEach(n -> used.addAll(uses(n)));
    graph.getOutputList().forEach(v -> used.add(v.getName()));
    List<String> unused = initializers.keySet().stream().filter(i -> !used.contains(i)).toList();
    unused.forEach(this::removeInitializer);
    return unused;
  }

  /**
   * Removes the graph inputs that carry the names of initializers, which formats before version 4
   * demanded and which make a constant replaceable later.
   */
  void constantInitializers() {
    if (rest.getIrVersion() < 4) {
      rest.setIrVersion(4);
    }
    for (int i = graph.getInputCount() - 1; i >= 0; i--) {
      if (initializers.containsKey(graph.getInput(i).getName())) {
        graph.removeInput(i);
      }
    }
  }

  private void removeInput(String value) {
    for (int i = graph.getInputCount() - 1; i >= 0; i--) {
      if (graph.getInput(i).getName().equals(value)) {
        graph.removeInput(i);
      }
    }
  }

  /**
   * A copy with more outputs, to look at values of the main graph when it runs.
   *
   * @param values float32 values; those that are inputs or outputs already stay what they are
   */
  public OnnxModel withOutputs(Collection<String> values) {
    OnnxModel copy = copy();
    Set<String> known = new HashSet<>();
    inputs().forEach(v -> known.add(v.getName()));
    outputs().forEach(v -> known.add(v.getName()));
    for (String value : values) {
      if (known.add(value)) {
        ValueInfoProto.Builder b = ValueInfoProto.newBuilder().setName(value);
        b.getTypeBuilder().getTensorTypeBuilder().setElemType(DataType.FLOAT_VALUE);
        copy.graph.addOutput(b);
      }
    }
    return copy;
  }

  /**
   * A copy that gives other values of the main graph, of any type, in place of its own.
   *
   * @param values those that are inputs are left out; where these are all, the copy gives what it gave
   */
  public OnnxModel giving(Collection<String> values) {
    OnnxModel copy = copy();
    Set<String> others = new LinkedHashSet<>(values);
    inputs().forEach(v -> others.remove(v.getName()));
    if (!others.isEmpty()) {
      copy.graph.clearOutput();
      others.forEach(v -> copy.graph.addOutput(ValueInfoProto.newBuilder().setName(v)));
    }
    return copy;
  }

  /**
   * A model of some nodes of the main graph and the constants that they read, which gives what the last makes.
   *
   * @param some at least one, in topological order
   * @param inputs with all that they read that is no constant and that none of them makes
   */
  public OnnxModel part(List<NodeProto> some, List<ValueInfoProto> inputs) {
    OnnxModel part = copy();
    part.constantInitializers();
    part.graph.clearInput().addAllInput(inputs).clearOutput().clearValueInfo();
    some.get(some.size() - 1).getOutputList().stream()
        .filter(v -> !v.isEmpty())
        .forEach(v -> part.graph.addOutputBuilder().setName(v));
    part.setNodes(some);
    part.removeUnusedInitializers();
    return part;
  }

  /**
   * A copy whose inputs leave their first dimension open where they fix it at 1: what exporters write who were
   * shown one example. Whether the nodes take more is for who runs them to find out.
   */
  public OnnxModel withAnyBatch() {
    OnnxModel copy = copy();
    for (ValueInfoProto.Builder input : copy.graph.getInputBuilderList()) {
      TensorShapeProto shape = input.getType().getTensorType().getShape();
      if (!initializers.containsKey(input.getName())
          && shape.getDimCount() > 0
          && shape.getDim(0).hasDimValue()
          && shape.getDim(0).getDimValue() == 1) {
        input
            .getTypeBuilder()
            .getTensorTypeBuilder()
            .getShapeBuilder()
            .getDimBuilder(0)
            .clearDimValue();
      }
    }
    return copy;
  }

  /**
   * A copy without the outputs that are no floats, where there are others, and without the nodes that only they need:
   * what training can follow.
   */
  public OnnxModel withFloatOutputs() {
    OnnxModel copy = copy();
    List<ValueInfoProto> kept = outputs().stream().filter(OnnxModel::isOfFloats).toList();
    if (kept.isEmpty() || kept.size() == graph.getOutputCount()) {
      return copy;
    }
    copy.graph.clearOutput().addAllOutput(kept);
    copy.setNodes(needed(nodes, copy.outputNames()));
    return copy;
  }

  /**
   * A model of some nodes, of any of the graphs, and the constants that they read. It has no inputs, and gives all
   * that the nodes make.
   *
   * @param some in topological order; what they read is constant or made by them
   */
  public OnnxModel excerpt(List<NodeProto> some) {
    GraphProto.Builder g = GraphProto.newBuilder().setName("excerpt").addAllNode(some);
    Set<String> known = new HashSet<>(Set.of(""));
    for (NodeProto n : some) {
      for (String value : n.getInputList()) {
        if (known.add(value)) {
          g.addInitializer(constant(value).message());
        }
      }
      known.addAll(n.getOutputList());
      n.getOutputList().forEach(o -> g.addOutput(ValueInfoProto.newBuilder().setName(o)));
    }
    ModelProto.Builder proto = ModelProto.newBuilder().setIrVersion(Math.max(4, irVersion()));
    return of(proto.addAllOpsetImport(rest.getOpsetImportList()).setGraph(g).build(), name);
  }

  /** Names for new values of a graph that defines {@code outer} and has these nodes. */
  static Names names(List<NodeProto> nodes, Set<String> outer) {
    Set<String> names = new HashSet<>(outer);
    nodes.forEach(n -> InnerGraphs.addNames(n, names));
    return new Names(names);
  }

  /** Names for new values and nodes: {@link Names#unique} gives one that nothing has yet. */
  public Names names() {
    return new Names(usedNames());
  }

  /** The names that the main graph defines. */
  private Set<String> defined(GraphProto g) {
    Set<String> names = new HashSet<>(initializers.keySet());
    g.getInputList().forEach(v -> names.add(v.getName()));
    g.getSparseInitializerList().forEach(s -> names.add(s.getValues().getName()));
    g.getNodeList().forEach(n -> names.addAll(n.getOutputList()));
    return names;
  }

  /** All names of values and nodes in the main graph and in its sub-graphs. */
  private Set<String> usedNames() {
    Set<String> names = new HashSet<>(initializers.keySet());
    graph.getInputList().forEach(v -> names.add(v.getName()));
    graph.getSparseInitializerList().forEach(s -> names.add(s.getValues().getName()));
    nodes.forEach(n -> InnerGraphs.addNames(n, names));
    return names;
  }

  /** Gives out names of values. */
  public static final class Names {
    private final Set<String> used;
    private final Map<String, Integer> next = new HashMap<>();

    private Names(Set<String> used) {
      this.used = used;
    }

    /** {@code wanted}, with a number behind it if the model or an earlier call took that name. */
    public String unique(String wanted) {
      String candidate = wanted;
      while (!used.add(candidate)) {
        candidate = wanted + "_" + next.merge(wanted, 1, Integer::sum);
      }
      return candidate;
    }
  }

  /**
   * The model as one message.
   *
   * @throws InputException if it has 2 GiB or more
   */
  public ModelProto toProto() {
    check();
    requireMessage(inlineSize());
    List<TensorProto> tensors = new ArrayList<>();
    initializers.values().forEach(i -> tensors.add(i.message()));
    return message(tensors);
  }

  /**
   * The model as the bytes of a file, in a direct buffer.
   *
   * @throws InputException if it has 2 GiB or more
   */
  public ByteBuffer toBuffer() {
    return bytes(toProto());
  }

  private static ByteBuffer bytes(ModelProto proto) {
    ByteBuffer bytes = ByteBuffer.allocateDirect(proto.getSerializedSize());
    CodedOutputStream out = CodedOutputStream.newInstance(bytes);
    try {
      proto.writeTo(out);
      out.flush();
    } catch (IOException e) {
      throw new IllegalStateException("a message did not fit into its own size", e);
    }
    return bytes.flip();
  }

  /**
   * A model of any size in memory.
   *
   * @param message the bytes of a file, in a direct buffer, where the tensors are external data of a file that is not there
   * @param tensors initializers that whoever reads the message is given by their names
   */
  public record Parts(ByteBuffer message, List<OnnxInitializer> tensors) {}

  /**
   * The model in parts. Nothing of the tensors is copied.
   *
   * @param apart which initializers are to be parts of their own
   * @throws InputException if what is left has 2 GiB or more
   */
  public Parts toParts(Predicate<OnnxInitializer> apart) {
    check();
    List<TensorProto> messages = new ArrayList<>();
    List<OnnxInitializer> tensors = new ArrayList<>();
    long size = message(List.of()).getSerializedSize();
    for (OnnxInitializer i : initializers.values()) {
      if (apart.test(i)) {
        tensors.add(i);
        messages.add(i.externalMessage("in memory", 0));
      } else {
        size += i.byteLength();
        messages.add(i.message());
      }
    }
    requireMessage(size);
    return new Parts(bytes(message(messages)), tensors);
  }

  /** The model as a message with these initializers. */
  ModelProto message(List<TensorProto> tensors) {
    return rest.clone()
        .setGraph(graph.clone().addAllNode(nodes).addAllInitializer(tensors))
        .build();
  }

  private void requireMessage(long size) {
    if (size > OnnxFile.MESSAGE_LIMIT) {
      throw new InputException(
          name + " has " + size + " bytes in one message, which ends at " + OnnxFile.MESSAGE_LIMIT);
    }
  }

  /** The bytes of all initializers, which one message of 2 GiB may not hold. */
  public long initializerBytes() {
    return initializers.values().stream().mapToLong(OnnxInitializer::byteLength).sum();
  }

  /** The bytes of a file that holds everything, within a few bytes for each part. */
  public long inlineSize() {
    long size = message(List.of()).getSerializedSize() + 64L;
    for (OnnxInitializer i : initializers.values()) {
      // Typed fields can be larger than the raw data; the message knows its own size.
      size += i.messageSize() + 16L;
    }
    return size;
  }

  /**
   * Writes the model. What does not fit into one file of 2 GiB goes with its initializers' data to
   * {@code TARGET.data} beside it. Files take their names only when they are complete, and the
   * files of the model that is replaced stay until then.
   *
   * @param inputs files that must not be overwritten, besides those that the model was read from
   * @return the files that were written, the target first
   * @throws InputException if the model is invalid or the target cannot be written
   */
  public List<Path> write(Path target, Path... inputs) {
    return write(target, OnnxFile.MESSAGE_LIMIT, inputs);
  }

  /**
   * Writes the model as {@link #write(Path, Path...)} writes large ones: with {@code TARGET.data} beside it, where every
   * initializer but small ones is aligned, so that a reader of any of them maps it.
   *
   * @return the files that were written, the target first
   * @throws InputException if the model is invalid or the target cannot be written
   */
  public List<Path> writeToMap(Path target) {
    check();
    return OnnxFile.writeApart(this, target, OnnxFile.MESSAGE_LIMIT);
  }

  List<Path> write(Path target, long messageLimit, Path... inputs) {
    check();
    return OnnxFile.write(this, target, messageLimit, inputs);
  }
}
