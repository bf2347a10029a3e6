package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.TextInput;

/**
 * Takes tokens out of an ONNX model that reads texts: their rows of the embedding tables, of floats and of integers, and where
 * the model says something of each token, as language models do, what it says of these. The others have new numbers, for which the
 * model gives what it gave for the old ones. Constants that tokens are compared with are renumbered. Not safe for several
 * threads.
 */
public final class VocabularyPruner {
  /** Whose output is numbers of tokens as their first input is. */
  private static final Set<String> FORMS =
      Set.of("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze");

  /** Where a constant for each token may be read: the axis of the tokens stays an axis of tokens. */
  private static final Set<String> READERS =
      Set.of(
          "Add",
          "Cast",
          "DequantizeLinear",
          "Gather",
          "Gemm",
          "Identity",
          "MatMul",
          "MatMulInteger",
          "Mul",
          "Transpose");

  /** What keeps a table's axis of tokens the first. */
  private static final Set<String> MAKERS = Set.of("Cast", "DequantizeLinear", "Identity");

  private final OnnxModel model;
  private final OneUse use;
  private final Map<String, NodeProto> producers;

  /** The nodes that look up tokens in a table, by the table. */
  private final Set<String> tables = new LinkedHashSet<>();

  /** The nodes that compare tokens with a constant, and which of their inputs that is. */
  private final Map<NodeProto, Integer> comparisons = new HashMap<>();

  private boolean ordered;

  /**
   * @param model is changed by {@link #prune}
   * @throws InputException where it has no tables of tokens, or does with tokens what depends on their numbers
   */
  public VocabularyPruner(OnnxModel model) {
    this.model = model;
    this.use = new OneUse(model, "was given fewer tokens");
    this.producers = model.producers();
    String ids = TextInput.INPUT_IDS.inputName();
    if (model.inputs().stream().map(ValueInfoProto::getName).noneMatch(ids::equals)) {
      throw new InputException(
          model.name() + " reads no tokens: it has no input " + ids + ", as models of texts do");
    }
    Set<String> tokens = new HashSet<>(Set.of(ids));
    for (NodeProto n : model.nodes()) {
      if (OnnxModel.uses(n).stream().anyMatch(tokens::contains)) {
        follow(n, tokens);
      }
    }
    if (tables.isEmpty()) {
      throw new InputException(
          model.name() + " has no table in which it looks up the tokens of " + ids);
    }
  }

  private void follow(NodeProto n, Set<String> tokens) {
    boolean first = tokens.contains(n.getInput(0));
    boolean own = OnnxModel.isOwn(n);
    int inputs = (int) n.getInputList().stream().filter(tokens::contains).count();
    switch (own && inputs == 1 ? n.getOpType() : "") {
      case "Shape", "Size" -> {}
      case "ArgMax", "ArgMin" -> ordered = true;
      case "Equal" -> comparisons.put(n, constant(n, first ? 1 : 0));
      case "Gather" -> {
        if (first) {
          tokens.add(n.getOutput(0));
        } else {
          String table = stored(n.getInput(0));
          if (model.constant(table) == null || Attributes.integer(n, "axis", 0) != 0) {
            throw unknown(n);
          }
          tables.add(table);
        }
      }
      default -> {
        if (!own || !first || inputs != 1 || !FORMS.contains(n.getOpType()) || !isIntegers(n)) {
          throw unknown(n);
        }
        tokens.add(n.getOutput(0));
      }
    }
  }

  /** What a table is made of, as one of 16 bits is cast and one of integers multiplied by scales. */
  private String stored(String table) {
    String value = table;
    NodeProto maker = producers.get(value);
    while (maker != null && OnnxModel.isOwn(maker) && MAKERS.contains(maker.getOpType())) {
      value = maker.getInput(0);
      maker = producers.get(value);
    }
    return value;
  }

  private static boolean isIntegers(NodeProto n) {
    long to = Attributes.integer(n, "to", DataType.INT64_VALUE);
    return to == DataType.INT64_VALUE || to == DataType.INT32_VALUE;
  }

  private int constant(NodeProto n, int input) {
    OnnxInitializer constant = model.constant(n.getInput(input));
    boolean isToken =
        constant != null
            && constant.elements() == 1
            && (constant.type() == DataType.INT64 || constant.type() == DataType.INT32);
    if (!isToken) {
      throw unknown(n);
    }
    return input;
  }

  private InputException unknown(NodeProto n) {
    return new InputException(
        model.name()
            + ": the node "
            + (n.getName().isEmpty() ? n.getOutput(0) : n.getName())
            + ", "
            + n.getOpType()
            + ", does with tokens what may depend on their numbers, so none can be taken out");
  }

  /** Whether the model asks which of its tokens has the highest number, so that one after another must stay so. */
  public boolean isOrdered() {
    return ordered;
  }

  /**
   * Takes tokens out.
   *
   * @param kept the numbers of those that stay, by their new ones
   * @param size how many tokens there are
   * @throws InputException if the tables have fewer rows than there are tokens, or something of each token is read by a node that
   *     is not known; the model must not be used then
   */
  public void prune(int[] kept, int size) {
    use.check();
    use.begin();
    long rows = rows(size);
    Map<Integer, Integer> places = new HashMap<>();
    for (int place = 0; place < kept.length; place++) {
      places.put(kept[place], place);
    }
    compare(places);
    Map<String, List<NodeProto>> readers = model.readers();
    List<OnnxInitializer> cut = new ArrayList<>();
    for (String value : constants()) {
      OnnxInitializer constant = model.constant(value);
      int axis = axis(constant, rows);
      if (axis >= 0) {
        for (NodeProto reader : readers.getOrDefault(value, List.of())) {
          if (!OnnxModel.isOwn(reader) || !READERS.contains(reader.getOpType())) {
            throw new InputException(
                model.name()
                    + ": the tensor "
                    + constant
                    + " has as many numbers to a side as there are tokens, and "
                    + reader.getOpType()
                    + ", which reads it, is not known");
          }
        }
        cut.add(cut(constant, axis, kept));
      }
    }
    model.replaceConstants(cut);
    for (ValueInfoProto output : model.outputs()) {
      int axes = output.getType().getTensorType().getShape().getDimCount();
      for (int fromEnd = 1; fromEnd <= axes; fromEnd++) {
        if (length(output, axes - fromEnd) == rows) {
          model.setLength(output.getName(), fromEnd, kept.length);
        }
      }
    }
    model.removeValueInfo(
        value -> {
          ValueInfoProto info = model.valueInfo(value);
          int axes = info.getType().getTensorType().getShape().getDimCount();
          for (int axis = 0; axis < axes; axis++) {
            if (length(info, axis) == rows) {
              return true;
            }
          }
          return false;
        });
    model.check();
  }

  private static long length(ValueInfoProto value, int axis) {
    return value.getType().getTensorType().getShape().getDim(axis).getDimValue();
  }

  /** How many rows the tables have. */
  private long rows(int size) {
    long rows = -1;
    for (String table : tables) {
      long own = model.constant(table).dims()[0];
      if (own < size) {
        throw new InputException(
            model.name()
                + ": the table "
                + table
                + " has "
                + own
                + " rows, but the tokenizer knows "
                + size
                + " tokens; is it another model's?");
      }
      if (rows >= 0 && own != rows) {
        throw new InputException(
            model.name()
                + ": its tables of tokens have "
                + rows
                + " and "
                + own
                + " rows; as many in each are right");
      }
      rows = own;
    }
    return rows;
  }

  private void compare(Map<Integer, Integer> places) {
    OnnxModel.Names names = model.names();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      Integer input = comparisons.get(n);
      if (input == null) {
        nodes.add(n);
        continue;
      }
      OnnxInitializer token = model.constant(n.getInput(input));
      ByteBuffer data = token.data();
      long number = token.type() == DataType.INT64 ? data.getLong(0) : data.getInt(0);
      // No text has a token that went, nor one that never was.
      long place = places.getOrDefault((int) Math.max(-1, Math.min(number, 1 << 30)), -1);
      String name = names.unique(n.getInput(input) + "_token");
      ByteBuffer made = ByteBuffer.allocateDirect(data.remaining()).order(data.order());
      model.addInitializer(
          OnnxInitializer.of(
              name,
              token.type(),
              token.dims(),
              token.type() == DataType.INT64
                  ? made.putLong(0, place)
                  : made.putInt(0, (int) place)));
      nodes.add(n.toBuilder().setInput(input, name).build());
    }
    model.setNodes(nodes);
    model.removeUnusedInitializers();
  }

  /** All constants, of branches and bodies too. */
  private Set<String> constants() {
    Set<String> constants = new LinkedHashSet<>();
    model.initializers().forEach(i -> constants.add(i.name()));
    for (NodeProto n : model.allNodes()) {
      if (OnnxModel.isOwn(n, "Constant") && model.constant(n.getOutput(0)) != null) {
        constants.add(n.getOutput(0));
      }
    }
    return constants;
  }

  /** The axis that has a number for each token; −1 where none has. */
  private int axis(OnnxInitializer constant, long rows) {
    int found = -1;
    long[] dims = constant.dims();
    for (int axis = 0; axis < dims.length; axis++) {
      if (dims[axis] == rows && !(found == 0 && tables.contains(constant.name()))) {
        found = axis;
      }
    }
    return found;
  }

  private OnnxInitializer cut(OnnxInitializer constant, int axis, int[] kept) {
    long[] dims = constant.dims();
    long outer = 1;
    for (int i = 0; i < axis; i++) {
      outer *= dims[i];
    }
    long bytes = constant.byteLength();
    long row = outer * dims[axis] == 0 ? 0 : bytes / (outer * dims[axis]);
    if (row * outer * dims[axis] != bytes) {
      throw new InputException(
          model.name() + ": the rows of the tensor " + constant + " are no whole bytes");
    }
    ByteBuffer from = constant.data();
    ByteBuffer made =
        ByteBuffer.allocateDirect(Math.toIntExact(outer * kept.length * row)).order(from.order());
    for (long o = 0; o < outer; o++) {
      for (int token : kept) {
        made.put(from.slice((int) ((o * dims[axis] + token) * row), (int) row));
      }
    }
    dims[axis] = kept.length;
    return OnnxInitializer.of(constant.name(), constant.type(), dims, made.flip());
  }
}
