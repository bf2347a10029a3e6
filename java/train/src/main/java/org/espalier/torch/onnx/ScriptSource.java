package org.espalier.torch.onnx;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.IntFunction;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The source of a module's forward method while it grows. Names in it are made here; nothing of the model's
 * text gets in but what {@link ScriptNames} let through.
 */
final class ScriptSource {
  /** The variable that holds no integers. */
  static final String NONE = "none";

  /** Longer constants stay tensors. */
  private static final int LITERAL = 1024;

  private final Frame frame;
  private final Compiler compiler;
  private final IntFunction<String> homes;
  private final Map<Integer, ScriptValue> values = new HashMap<>();
  private final Map<Integer, long[]> shapes = new HashMap<>();
  private final List<String> lines = new ArrayList<>();
  private final Set<String> helpers = new LinkedHashSet<>();
  private final Set<String> names = new HashSet<>(ScriptNames.RESERVED);
  private final List<String> inputs = new ArrayList<>();
  private String device;
  private int next;

  /**
   * @param homes gives where the module holds the constant or parameter of a slot, as an expression
   */
  ScriptSource(Frame frame, Compiler compiler, IntFunction<String> homes) {
    this.frame = frame;
    this.compiler = compiler;
    this.homes = homes;
  }

  /**
   * Adds an argument for a slot.
   *
   * @param shape null where the model leaves sizes open
   */
  void input(int slot, String wanted, long[] shape) {
    String name = ScriptNames.unique(ScriptNames.variable(wanted), names);
    inputs.add(name);
    values.put(slot, ScriptValue.of(name));
    shapes.put(slot, shape);
  }

  void set(int slot, ScriptValue value) {
    if (value.list() != null) {
      value.list(let(value.list()));
    } else if (!names.contains(value.tensor())) {
      value.tensor(let(value.tensor()));
    }
    values.put(slot, value);
  }

  /** The name of a slot's tensor. */
  String tensor(int slot) {
    ScriptValue value = values.get(slot);
    if (value == null) {
      value = ScriptValue.of(let(homes.apply(slot)));
      values.put(slot, value);
    }
    if (value.tensor() == null) {
      String data = value.rank() == 0 ? value.list() + "[0]" : value.list();
      value.tensor(let("torch.tensor(" + data + ", dtype=4, device=" + device() + ")"));
    }
    return value.tensor();
  }

  /** A slot's integers as a list, by name or as a literal. */
  String ints(int slot) {
    long[] known = constant(slot);
    if (known != null) {
      return ScriptCall.bounds(known);
    }
    ScriptValue value = values.get(slot);
    if (value.list() == null) {
      value.list(let(helper("_integers") + "(" + value.tensor() + ")"));
    }
    return value.list();
  }

  /** A value that the host computes with: an int64 constant of rank 0 or 1, or made of shapes. */
  ScriptValue list(int slot) {
    ScriptValue value = values.get(slot);
    if (value != null) {
      return value.rank() < 0 ? null : value;
    }
    Tensor t = known(slot);
    if (t == null || t.dim() > 1 || ElementTypes.of(t) != ScalarType.Long) {
      return null;
    }
    long[] constant = constant(slot);
    return constant == null ? null : ScriptValue.ofList(ScriptCall.bounds(constant), (int) t.dim());
  }

  /** The integers of a constant; null for other values. */
  long[] constant(int slot) {
    Tensor t = known(slot);
    if (t == null || !ElementTypes.isInteger(ElementTypes.of(t)) || t.numel() > LITERAL) {
      return null;
    }
    long[] values = new long[(int) t.numel()];
    if (values.length > 0) {
      LongPointer p = t.to(ScalarType.Long).contiguous().data_ptr_long();
      p.get(values);
    }
    return values;
  }

  /** The tensor of a constant; null for other values. */
  Tensor known(int slot) {
    return compiler.isConstant(slot) ? frame.get(slot) : null;
  }

  /** The shape of a constant, a parameter or an input of fixed shape; null for other values. */
  long[] shape(int slot) {
    Tensor t = frame.get(slot);
    return t == null ? shapes.get(slot) : t.shape();
  }

  String device() {
    if (device == null) {
      device = inputs.isEmpty() ? "torch.device('cpu')" : inputs.get(0) + ".device";
    }
    return device;
  }

  String fresh(String prefix) {
    String name;
    do {
      name = prefix + next++;
    } while (!names.add(name));
    return name;
  }

  String let(String expression) {
    String name = fresh("v");
    line(name + " = " + expression);
    return name;
  }

  void line(String line) {
    lines.add(line);
  }

  /** The name of a method of the module, which {@link #text} then holds. */
  String helper(String name) {
    if (helpers.add(name)) {
      ScriptHelpers.uses(name).forEach(this::helper);
    }
    return "self." + name;
  }

  /** The methods of the module. */
  String text(int[] outputs) {
    List<String> results = new ArrayList<>();
    for (int slot : outputs) {
      results.add(tensor(slot));
    }
    StringBuilder text = new StringBuilder();
    helpers.forEach(h -> text.append(ScriptHelpers.source(h)).append('\n'));
    text.append("def forward(self");
    inputs.forEach(name -> text.append(", ").append(name).append(": Tensor"));
    boolean one = results.size() == 1;
    text.append(") -> ")
        .append(one ? "Tensor" : "Tuple[" + "Tensor, ".repeat(results.size() - 1) + "Tensor]")
        .append(":\n");
    text.append("    ").append(NONE).append(": List[int] = []\n");
    lines.forEach(line -> text.append("    ").append(line).append('\n'));
    text.append("    return ")
        .append(one ? results.get(0) : "(" + String.join(", ", results) + ")")
        .append('\n');
    return text.toString();
  }
}
