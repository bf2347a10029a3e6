package org.espalier.recipe;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.safetensors.ExampleRows;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/** A safetensors file with examples: inputs of a model and, where there are any, labels. */
public final class ExamplesFile {
  /** Of an example: an array of so many int64 is what Java can have. */
  private static final int MOST_VALUES = Integer.MAX_VALUE / 8;

  private static final Set<SafetensorsDtype> LABEL_TYPES =
      EnumSet.of(
          SafetensorsDtype.I64,
          SafetensorsDtype.I32,
          SafetensorsDtype.I16,
          SafetensorsDtype.I8,
          SafetensorsDtype.U8,
          SafetensorsDtype.BOOL,
          SafetensorsDtype.F32,
          SafetensorsDtype.F64);

  private static final String NEEDED =
      "examples are inputs, or for each input of the model a tensor of its name (F64, F32, F16,"
          + " BF16, I64, I32, U8 or BOOL, [N, …]), and, for losses with labels, labels (integers,"
          + " BOOL, F32 or F64, [N] or [N, …])";

  private ExamplesFile() {}

  /**
   * Reads the labels alone.
   *
   * @param examples how many the file holds
   * @return null where it has none
   * @throws InputException where they are none of the task, or not as many
   */
  public static Labels labels(Path path, int examples, Recipe.Task task) {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      return file.tensor(ExampleRows.LABELS) == null ? null : labels(file, examples, task);
    }
  }

  /**
   * Reads {@code inputs} or, where there is no such tensor, one for each input of the model, and {@code
   * labels} where there are any.
   *
   * @param missing whether NaN in an input says that a value is missing, which the model knows
   */
  static Examples.Labelled read(Path path, Recipe.Task task, boolean missing) {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      List<Examples.Input> inputs = new ArrayList<>();
      TensorInfo only = file.tensor(ExampleRows.INPUTS);
      if (only != null) {
        inputs.add(input(file, only, null, missing));
      } else {
        for (TensorInfo tensor : file.tensors()) {
          if (!tensor.name().equals(ExampleRows.LABELS)) {
            inputs.add(input(file, tensor, tensor.name(), missing));
          }
        }
      }
      if (inputs.isEmpty()) {
        throw new InputException(path + ": there is no tensor inputs; " + NEEDED);
      }
      int n = inputs.get(0).rows().size();
      for (Examples.Input input : inputs) {
        if (input.rows().size() != n) {
          throw new InputException(
              path
                  + ": "
                  + inputs.get(0).name()
                  + " has "
                  + n
                  + " examples, "
                  + input.name()
                  + " "
                  + input.rows().size());
        }
      }
      return new Examples.Labelled(
          inputs, file.tensor(ExampleRows.LABELS) == null ? null : labels(file, n, task));
    }
  }

  private static Examples.Input input(
      SafetensorsFile file, TensorInfo tensor, String name, boolean missing) {
    String what = file.path() + ": " + tensor.name() + " ";
    if (!Examples.Input.TYPES.containsKey(tensor.dtype())) {
      throw new InputException(what + "is " + tensor.dtype() + "; " + NEEDED);
    }
    if (tensor.rank() < (name == null ? 2 : 1)) {
      throw new InputException(what + tensor.shape() + "; [N, …] is needed");
    }
    if (tensor.elements() == 0 || tensor.elements() / tensor.shape().get(0) > MOST_VALUES) {
      throw new InputException(
          what
              + tensor.shape()
              + "; at least one example of 1 to "
              + MOST_VALUES
              + " values is needed");
    }
    int n = Math.toIntExact(tensor.shape().get(0));
    ByteBuffer row = ByteBuffer.allocateDirect((int) (tensor.bytes() / n));
    List<byte[]> rows = new ArrayList<>(n);
    for (int i = 0; i < n; i++) {
      ExampleRows.read(file, tensor, i, row, missing);
      byte[] bytes = new byte[row.capacity()];
      row.get(bytes);
      rows.add(bytes);
    }
    return new Examples.Input(name, tensor.dtype(), tensor.shape().subList(1, tensor.rank()), rows);
  }

  private static Labels labels(SafetensorsFile file, int n, Recipe.Task task) {
    TensorInfo labels = file.tensor(ExampleRows.LABELS);
    String what = file.path() + ": labels " + labels.shape();
    if (labels.rank() < 1
        || labels.shape().get(0) != n
        || labels.elements() == 0
        || labels.elements() > MOST_VALUES) {
      throw new InputException(what + " for " + n + " inputs; [N] or [N, …] is needed");
    }
    int width = (int) (labels.elements() / n);
    double[] values = numbers(file, labels);
    for (int i = 0; i < values.length; i++) {
      // NaN says in floats what -100 says in classes.
      if (Double.isInfinite((float) values[i])) {
        throw new InputException(
            file.path() + ": the label of example " + (i / width + 1) + " is " + values[i]);
      }
    }
    boolean integers =
        labels.dtype() != SafetensorsDtype.F32 && labels.dtype() != SafetensorsDtype.F64;
    boolean binary =
        Arrays.stream(values)
            .allMatch(v -> v == 0 || v == 1 || Double.isNaN(v) || v == Labels.Classes.NO_LABEL);
    if (task == Recipe.Task.REGRESSION || task == Recipe.Task.AUTO && !integers && !binary) {
      if (labels.rank() > 2) {
        throw new InputException(what + " are numbers; [N] or [N, values] is needed");
      }
      return numbers(values, width);
    }
    return classes(file, values, width);
  }

  private static Labels numbers(double[] values, int width) {
    float[] floats = new float[values.length];
    for (int i = 0; i < floats.length; i++) {
      floats[i] = (float) values[i];
    }
    return new Labels.Numbers(floats, width);
  }

  private static Labels classes(SafetensorsFile file, double[] values, int width) {
    long[] classes = new long[values.length];
    for (int i = 0; i < classes.length; i++) {
      boolean none = Double.isNaN(values[i]);
      classes[i] = none ? Labels.Classes.NO_LABEL : (long) values[i];
      if (!none && classes[i] != values[i]) {
        throw new InputException(
            file.path()
                + ": the label of example "
                + (i / width + 1)
                + " is "
                + values[i]
                + "; classes are whole numbers");
      }
    }
    return new Labels.Classes(classes, width);
  }

  private static double[] numbers(SafetensorsFile file, TensorInfo labels) {
    if (!LABEL_TYPES.contains(labels.dtype())) {
      throw new InputException(file.path() + ": labels is " + labels.dtype() + "; " + NEEDED);
    }
    ByteBuffer bytes = ByteBuffer.allocateDirect(Math.toIntExact(labels.bytes()));
    file.read(labels, 0, bytes);
    bytes.flip().order(ByteOrder.LITTLE_ENDIAN);
    double[] values = new double[Math.toIntExact(labels.elements())];
    for (int i = 0; i < values.length; i++) {
      values[i] =
          switch (labels.dtype()) {
            case I64 -> bytes.getLong();
            case I32 -> bytes.getInt();
            case I16 -> bytes.getShort();
            case U8 -> Byte.toUnsignedInt(bytes.get());
            case F64 -> bytes.getDouble();
            case F32 -> bytes.getFloat();
            default -> bytes.get(); // I8, BOOL
          };
    }
    return values;
  }
}
