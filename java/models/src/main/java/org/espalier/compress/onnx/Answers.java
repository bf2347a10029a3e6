package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.ValueTypes;

/** Chooses the outputs of a model by which a smaller one is judged. */
public final class Answers {
  /** What they give does not depend on their operand's values. */
  private static final Set<String> SIZES = Set.of("Shape", "Size");

  /** What they give is their first operand in another form. */
  private static final Set<String> FORMS =
      Set.of("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze");

  private Answers() {}

  /** The outputs of float32, float16 and bfloat16, in the model's order: those that can be compared. */
  public static List<String> comparable(OnnxModel model) {
    return model.outputs().stream()
        .filter(Answers::isOfFloats)
        .map(ValueInfoProto::getName)
        .toList();
  }

  private static boolean isOfFloats(ValueInfoProto output) {
    DataType type = DataType.forNumber(output.getType().getTensorType().getElemType());
    return type != null && ValueTypes.isFloat(type); // null for a number that no type has
  }

  /**
   * The {@link #comparable} outputs without inner values: without what a decoder gives beside others for its next step
   * ({@link PastInput}), and without those that another one is computed from, as feature maps are. The first of them is
   * an answer in any case, for that is where exporters put it.
   *
   * @return in the model's order; empty where none can be compared
   */
  public static Set<String> of(OnnxModel model) {
    List<String> all = comparable(model);
    List<String> now = all.stream().filter(output -> !PastInput.isNext(output)).toList();
    List<String> some = now.isEmpty() ? all : now;
    Map<String, NodeProto> producers = model.producers();
    Set<String> leading = new HashSet<>();
    some.forEach(output -> leading.add(computed(output, producers)));
    Set<String> inner = new HashSet<>();
    List<NodeProto> nodes = model.nodes();
    for (int i = nodes.size() - 1; i >= 0; i--) { // which are in topological order
      NodeProto n = nodes.get(i);
      if (n.getOutputList().stream().anyMatch(leading::contains) && !isOf(n, SIZES)) {
        Set<String> read = OnnxModel.uses(n);
        leading.addAll(read);
        inner.addAll(read);
      }
    }
    Set<String> answers = new LinkedHashSet<>();
    for (String output : some) {
      if (answers.isEmpty() || !inner.contains(computed(output, producers))) {
        answers.add(output);
      }
    }
    return answers;
  }

  /** The value that an output gives in another form, as behind a Cast. */
  private static String computed(String output, Map<String, NodeProto> producers) {
    String value = output;
    for (NodeProto n = producers.get(value);
        n != null && isOf(n, FORMS);
        n = producers.get(value)) {
      value = n.getInput(0);
    }
    return value;
  }

  private static boolean isOf(NodeProto n, Set<String> operators) {
    return OnnxModel.isOwn(n) && operators.contains(n.getOpType());
  }
}
