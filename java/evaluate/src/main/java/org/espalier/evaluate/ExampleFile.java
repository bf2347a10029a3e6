package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto.Dimension;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxJavaType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.ExampleRows;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;

/**
 * Reads examples from a safetensors file: one tensor an input of the model, of its name and type (floats and whole numbers may
 * have another width), whose first dimension counts the examples. Each example is fed alone, with 1 in that dimension or, where the
 * tensor has a dimension more than the input, without it: so are fed states whose batch is not their first dimension, scalars, and
 * inputs whose batch is fixed. A file for recipes will do: the only input may be called {@code inputs}, and {@code labels} are left
 * alone.
 */
public final class ExampleFile {
  private ExampleFile() {}

  /**
   * Reads the examples.
   *
   * @param file the safetensors file
   * @param model whose inputs the tensors must be
   * @param count use at most so many examples, evenly spread; at least 1
   * @throws InputException if the file is no valid one, an input has no tensor or a tensor no input,
   *     the types, the shapes or the numbers of examples do not agree, or a number is infinite or, where the model
   *     does not {@linkplain MissingValues know} missing values, NaN
   */
  public static ExampleTensors read(Path file, OnnxModel model, int count) {
    try (SafetensorsFile open = SafetensorsFile.open(file)) {
      Map<String, TensorInfo> tensors = tensors(open, model);
      Set<String> whole = new HashSet<>();
      long all = -1;
      for (ValueInfoProto input : model.inputs()) {
        long here = check(file, tensors.get(input.getName()), input, model);
        if (all >= 0 && here != all) {
          throw new InputException(
              file
                  + ": the tensor "
                  + input.getName()
                  + " holds "
                  + here
                  + " examples, the one before it "
                  + all);
        }
        all = here;
        if (isWhole(tensors.get(input.getName()), input)) {
          whole.add(input.getName());
        }
      }
      int used = (int) Math.min(count, all);
      boolean missing = MissingValues.areKnownTo(model);
      List<Map<String, ExampleTensors.Value>> read = new ArrayList<>();
      for (int i = 0; i < used; i++) {
        long example = i * all / used;
        Map<String, ExampleTensors.Value> values = new HashMap<>();
        for (Map.Entry<String, TensorInfo> e : tensors.entrySet()) {
          values.put(
              e.getKey(),
              read(open, e.getValue(), whole.contains(e.getKey()), example, all, missing));
        }
        read.add(values);
      }
      return new ExampleTensors(read);
    }
  }

  /** The tensors by the input that they are for. */
  private static Map<String, TensorInfo> tensors(SafetensorsFile file, OnnxModel model) {
    Set<String> inputs =
        model.inputs().stream()
            .map(ValueInfoProto::getName)
            .collect(Collectors.toCollection(LinkedHashSet::new));
    Map<String, TensorInfo> tensors = new HashMap<>();
    for (TensorInfo tensor : file.tensors()) {
      String name = tensor.name();
      if (inputs.contains(name)) {
        tensors.put(name, tensor);
      } else if (name.equals(ExampleRows.INPUTS) && inputs.size() == 1) {
        tensors.putIfAbsent(inputs.iterator().next(), tensor);
      } else if (!name.equals(ExampleRows.LABELS)) {
        throw new InputException(
            file.path()
                + ": the tensor "
                + name
                + " is no input of "
                + model.name()
                + ", which takes "
                + inputs);
      }
    }
    return tensors;
  }

  /** Checks one tensor and gives the number of examples in it. */
  private static long check(Path file, TensorInfo tensor, ValueInfoProto input, OnnxModel model) {
    if (tensor == null) {
      throw new InputException(
          file + ": there is no tensor for the input " + input.getName() + " of " + model.name());
    }
    if (!input.getType().hasTensorType()) {
      throw new InputException(
          "the input "
              + input.getName()
              + " of "
              + model.name()
              + " is a sequence, a map or optional; examples are tensors");
    }
    String what = file + ": the tensor " + tensor.name();
    OnnxJavaType type = OnnxRuntime.type(tensor.dtype());
    OnnxJavaType wanted = OnnxRuntime.type(input);
    var declared = input.getType().getTensorType();
    if (type == null || wanted == null || !ExampleTensors.converts(type, wanted)) {
      throw new InputException(
          what
              + " is "
              + tensor.dtype()
              + "; the input of "
              + model.name()
              + " is "
              + elementType(declared.getElemType()));
    }
    if (tensor.rank() == 0 || tensor.shape().get(0) == 0) {
      throw new InputException(
          what + " has shape " + tensor.shape() + "; its first dimension must count the examples");
    }
    List<Dimension> dims = declared.getShape().getDimList();
    List<Long> fed = fed(tensor, isWhole(tensor, input));
    boolean fits = !declared.hasShape() || dims.size() == fed.size();
    for (int d = 0; fits && declared.hasShape() && d < dims.size(); d++) {
      fits = !dims.get(d).hasDimValue() || dims.get(d).getDimValue() == fed.get(d);
    }
    if (!fits) {
      throw new InputException(
          what
              + " has shape "
              + tensor.shape()
              + "; one example of it, "
              + fed
              + ", does not fit the input of "
              + model.name()
              + ", "
              + dims.stream().map(ExampleFile::text).toList()
              + "; where that has no batch of 1 in front, the tensor needs a dimension more, which"
              + " counts the examples");
    }
    return tensor.shape().get(0);
  }

  /** Whether examples are fed as they are, without a dimension for the batch in front. */
  private static boolean isWhole(TensorInfo tensor, ValueInfoProto input) {
    var declared = input.getType().getTensorType();
    return declared.hasShape() && declared.getShape().getDimCount() == tensor.rank() - 1;
  }

  /** The shape of one example. */
  private static List<Long> fed(TensorInfo tensor, boolean whole) {
    List<Long> shape = new ArrayList<>(tensor.shape());
    if (whole) {
      shape.remove(0);
    } else {
      shape.set(0, 1L);
    }
    return shape;
  }

  private static String text(Dimension d) {
    return d.hasDimValue()
        ? Long.toString(d.getDimValue())
        : d.hasDimParam() ? d.getDimParam() : "?";
  }

  private static ExampleTensors.Value read(
      SafetensorsFile open,
      TensorInfo tensor,
      boolean whole,
      long example,
      long all,
      boolean missing) {
    long size = tensor.bytes() / all;
    if (size > Integer.MAX_VALUE) {
      throw new InputException(
          open.path()
              + ": one example of the tensor "
              + tensor.name()
              + " has "
              + size
              + " bytes; at most 2147483647 are possible");
    }
    ByteBuffer bytes = ByteBuffer.allocateDirect((int) size).order(ByteOrder.nativeOrder());
    ExampleRows.read(open, tensor, example, bytes, missing);
    long[] shape = fed(tensor, whole).stream().mapToLong(Long::longValue).toArray();
    return new ExampleTensors.Value(bytes, shape, OnnxRuntime.type(tensor.dtype()));
  }

  private static String elementType(int number) {
    DataType type = DataType.forNumber(number);
    return type == null
        ? "of the element type " + number + ", which ONNX does not have"
        : type.name();
  }
}
