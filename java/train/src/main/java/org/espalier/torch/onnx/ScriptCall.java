package org.espalier.torch.onnx;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.bytedeco.pytorch.Tensor;

/** A node while it is written: its attributes, and its inputs as expressions. */
final class ScriptCall {
  /** Beyond it a bound of a slice means "to the end"; its negative is a literal that TorchScript reads. */
  private static final long FAR = 1L << 62;

  private final ScriptSource source;
  private final Node node;
  private final int[] slots;

  ScriptCall(ScriptSource source, Node node, int[] slots) {
    this.source = source;
    this.node = node;
    this.slots = slots;
  }

  Node node() {
    return node;
  }

  int size() {
    return slots.length;
  }

  boolean has(int i) {
    return i < slots.length && slots[i] >= 0;
  }

  /** The tensor of an input. */
  String in(int i) {
    if (!has(i)) {
      throw node.wrong("input " + i + " is missing");
    }
    return source.tensor(slots[i]);
  }

  /** The tensor of an input, or None where it is absent. */
  String orNone(int i) {
    return has(i) ? in(i) : "None";
  }

  /** All inputs, which must be present, as a list of tensors. */
  String all() {
    StringBuilder list = new StringBuilder("[");
    for (int i = 0; i < slots.length; i++) {
      list.append(i == 0 ? "" : ", ").append(in(i));
    }
    return list.append(']').toString();
  }

  /** The integers of an input as a list on the host. */
  String ints(int i) {
    if (!has(i)) {
      throw node.wrong("input " + i + " is missing");
    }
    return source.ints(slots[i]);
  }

  /** The one integer of an input, on the host. */
  String integer(int i) {
    long[] known = constant(i);
    return known != null && known.length == 1 ? Long.toString(known[0]) : ints(i) + "[0]";
  }

  /** The one real number of an input, on the host. */
  String real(int i) {
    Tensor known = has(i) ? source.known(slots[i]) : null;
    return known != null && known.numel() == 1
        ? number(known.item_double())
        : "float(" + in(i) + ".item())";
  }

  /** The real numbers of an input as a list on the host; none where it is absent. */
  String reals(int i) {
    Tensor known = has(i) ? source.known(slots[i]) : null;
    if (has(i) && known == null) {
      return let(call("_numbers", in(i)));
    }
    StringBuilder list = new StringBuilder();
    for (long k = 0; known != null && k < known.numel(); k++) {
      double value = known.reshape(-1).select(0, k).item_double();
      list.append(k == 0 ? "" : ", ").append(number(value));
    }
    String name = source.fresh("v");
    source.line(name + ": List[float] = [" + list + "]");
    return name;
  }

  /** An input as a list of shapes that the host computes with; null where it is none. */
  ScriptValue list(int i) {
    return has(i) ? source.list(slots[i]) : null;
  }

  /** The integers of an input that is constant; null where it is absent or not constant. */
  long[] constant(int i) {
    return has(i) ? source.constant(slots[i]) : null;
  }

  /** The shape of an input where it is the same in all runs; null for others. */
  long[] shape(int i) {
    return has(i) ? source.shape(slots[i]) : null;
  }

  /** A new local variable with the value of an expression. */
  String let(String expression) {
    return source.let(expression);
  }

  /** New local variables with the values of a tuple or a list. */
  ScriptValue[] unpack(String expression, int count) {
    String[] names = new String[count];
    ScriptValue[] values = new ScriptValue[count];
    for (int i = 0; i < count; i++) {
      names[i] = source.fresh("v");
      values[i] = ScriptValue.of(names[i]);
    }
    source.line(String.join(", ", names) + (count == 1 ? ", = " : " = ") + expression);
    return values;
  }

  /** A method of the module that some operators need, with its arguments. */
  String call(String helper, String... arguments) {
    return source.helper(helper) + "(" + String.join(", ", arguments) + ")";
  }

  /**
   * The same with inputs before its arguments.
   *
   * @param required how many of the inputs must be there; others that are absent are None
   * @param inputs how many inputs it takes
   */
  String call(int required, int inputs, String helper, String... arguments) {
    List<String> all = new ArrayList<>();
    for (int i = 0; i < inputs; i++) {
      all.add(i < required ? in(i) : orNone(i));
    }
    all.addAll(List.of(arguments));
    return call(helper, all.toArray(String[]::new));
  }

  /** The device of the inputs. */
  String device() {
    return source.device();
  }

  /** A literal. */
  static String number(double value) {
    if (Double.isNaN(value)) {
      return "float('nan')";
    }
    if (Double.isInfinite(value)) {
      return value > 0 ? "float('inf')" : "float('-inf')";
    }
    return Double.toString(value);
  }

  /** A literal. */
  static String flag(boolean value) {
    return value ? "True" : "False";
  }

  /** A literal of type List[int]; an empty one would be of tensors. */
  static String ints(long... values) {
    return values.length == 0
        ? ScriptSource.NONE
        : Arrays.stream(values)
            .mapToObj(Long::toString)
            .collect(Collectors.joining(", ", "[", "]"));
  }

  /** The same where far ends of slices stand, as near as a literal can be. */
  static String bounds(long... values) {
    return ints(Arrays.stream(values).map(v -> Math.max(-FAR, Math.min(v, FAR))).toArray());
  }

  static long bound(long value) {
    return Math.max(-FAR, Math.min(value, FAR));
  }
}
