package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.espalier.InputException;

/**
 * An input of a decoder that holds the keys or the values of tokens that it read before: {@code
 * past_key_values.0.key}, float [texts, heads, tokens, width]. A text that begins has 0 such tokens.
 */
public final class PastInput {
  /**
   * What models of two branches, one for texts that begin and one for those that go on, call the input that chooses: bool [1],
   * false for the first.
   */
  public static final String BRANCH = "use_cache_branch";

  private static final String PREFIX = "past_key_values.";
  private static final String PRESENT = "present.";

  /** How the names of those end that hold what an encoder read, of which a decoder alone knows nothing. */
  private static final List<String> READ = List.of(".encoder.key", ".encoder.value");

  private static final Pattern NUMBERED =
      Pattern.compile(
          "(" + Pattern.quote(PREFIX) + "|" + Pattern.quote(PRESENT) + ")(\\d{1,6})(\\..*)");

  private static final Set<DataType> TYPES =
      EnumSet.of(DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16);

  private PastInput() {}

  /** Whether models call one so. */
  public static boolean isOne(String name) {
    return name.startsWith(PREFIX);
  }

  /** Whether models call an output so that gives what such an input takes when the text goes on. */
  public static boolean isNext(String output) {
    return output.startsWith(PRESENT);
  }

  /** Whether it holds what an encoder read, which a decoder only takes. */
  public static boolean isRead(String name) {
    return isOne(name) && READ.stream().anyMatch(name::endsWith);
  }

  /** What the output is called that gives what an input takes when the text goes on. */
  public static String next(String input) {
    return PRESENT + input.substring(PREFIX.length());
  }

  /**
   * The number of the layer that such an input or output belongs to: 3 of {@code past_key_values.3.key}; −1 where its name has
   * none.
   */
  public static int layer(String name) {
    Matcher numbered = NUMBERED.matcher(name);
    return numbered.matches() ? Integer.parseInt(numbered.group(2)) : -1;
  }

  /** What it is called where it belongs to the layer of another number. */
  public static String withLayer(String name, int layer) {
    Matcher numbered = NUMBERED.matcher(name);
    return numbered.matches() ? numbered.group(1) + layer + numbered.group(3) : name;
  }

  /**
   * Its shape for texts that begin.
   *
   * @param model what errors call it
   * @param declared by the model, 0 or less where it is open
   * @throws InputException where heads or width are open, or it is of what an encoder read, which is never nothing
   */
  public static long[] empty(String model, String name, long[] declared, long texts) {
    if (isRead(name)) {
      throw new InputException(
          model
              + ": the input "
              + name
              + " holds what an encoder read, which texts alone do not give; for such a model"
              + " examples are a .safetensors file with one tensor an input");
    }
    if (declared.length != 4 || declared[1] < 1 || declared[3] < 1) {
      throw new InputException(
          model
              + ": the input "
              + name
              + " does not say how many heads it has and how wide they are; its shape is [texts,"
              + " heads, tokens, width]");
    }
    return new long[] {texts, declared[1], 0, declared[3]};
  }

  /**
   * A copy of a model that takes none, and whose texts therefore begin: no tokens of float32, which a graph that
   * computes in float32 reads behind its Casts as those of 16 bits.
   *
   * @throws InputException where an input does not say how large it is, or is of no such type
   */
  public static OnnxModel without(OnnxModel model) {
    Map<String, List<NodeProto>> computed = new LinkedHashMap<>();
    OnnxModel copy = model.copy();
    OnnxModel.Names names = model.names();
    for (ValueInfoProto input : model.inputs()) {
      if (isOne(input.getName())) {
        computed.put(input.getName(), nodes(copy, input, names));
      }
    }
    copy.computeInputs(computed);
    return copy;
  }

  private static List<NodeProto> nodes(
      OnnxModel model, ValueInfoProto input, OnnxModel.Names names) {
    String name = input.getName();
    DataType type = DataType.forNumber(input.getType().getTensorType().getElemType());
    if (!TYPES.contains(type)) {
      throw new InputException(
          model.name()
              + ": the input "
              + name
              + " is "
              + type
              + "; one of "
              + TYPES
              + " is needed");
    }
    TensorShapeProto declared = input.getType().getTensorType().getShape();
    long[] dims = declared.getDimList().stream().mapToLong(d -> d.getDimValue()).toArray();
    long[] empty = empty(model.name(), name, dims, 1);
    String zero = constant(model, names.unique(name + "/first"), 0);
    String one = constant(model, names.unique(name + "/end"), 1);
    String rest = constant(model, names.unique(name + "/rest"), empty[1], empty[2], empty[3]);
    NodeProto.Builder shape =
        node("Shape", names.unique(name + "/Shape"), TextInput.INPUT_IDS.inputName());
    NodeProto.Builder texts =
        node("Slice", names.unique(name + "/Slice"), output(shape), zero, one);
    NodeProto.Builder all = node("Concat", names.unique(name + "/Concat"), output(texts), rest);
    all.addAttribute(Attributes.attribute("axis", 0));
    NodeProto.Builder nothing = node("ConstantOfShape", name, output(all));
    return List.of(shape.build(), texts.build(), all.build(), nothing.build());
  }

  private static NodeProto.Builder node(String op, String output, String... inputs) {
    return NodeProto.newBuilder().setOpType(op).addAllInput(List.of(inputs)).addOutput(output);
  }

  private static String output(NodeProto.Builder node) {
    return node.getOutput(0);
  }

  private static String constant(OnnxModel model, String name, long... values) {
    model.addInitializer(OnnxInitializer.int64s(name, new long[] {values.length}, values));
    return name;
  }
}
