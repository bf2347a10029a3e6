package org.espalier.store;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;
import org.espalier.InputException;
import org.espalier.format.Names;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;

/**
 * How two models differ, tensor by tensor. Tensors are read in pieces, so memory is bounded by the
 * piece and not by the model.
 *
 * @param layers one a tensor of either model, by name
 * @param operators for ONNX, how many nodes of an operator the models have, where that differs:
 *     {@code Gelu: 6 -> 0}
 */
public record ModelDiff(List<Layer> layers, List<String> operators) {
  private static final int CHUNK = 1 << 20;

  /** What happened to a tensor. */
  public enum Change {
    SAME,
    /** Some values differ. */
    VALUES,
    /** Its type or shape is another one; values are not compared. */
    TYPE,
    ADDED,
    REMOVED
  }

  /**
   * A tensor of either model.
   *
   * @param before type and shape in the first model, for instance {@code f32[384, 384]}; null if
   *     added
   * @param after the same of the second model; null if removed
   * @param elements of the second model, or of the first if removed
   * @param changed elements whose bits differ
   * @param largest the largest difference of two elements; NaN where values were not compared
   * @param relative the norm of the difference over the norm of the first; NaN where values were not
   *     compared, infinite where the first is all zeros and the second is not
   * @param zerosBefore elements that are zero, −1 where not counted
   * @param zerosAfter elements that are zero, −1 where not counted
   */
  public record Layer(
      String name,
      Change change,
      String before,
      String after,
      long elements,
      long changed,
      double largest,
      double relative,
      long zerosBefore,
      long zerosAfter) {}

  public ModelDiff {
    layers = List.copyOf(layers);
    operators = List.copyOf(operators);
  }

  /** Whether no tensor and no operator differs. */
  public boolean isEmpty() {
    return operators.isEmpty() && layers.stream().allMatch(l -> l.change() == Change.SAME);
  }

  /** A tensor of either format: its bytes can be read piece by piece. */
  private record Values(String type, String label, long elements, long bytes, Reader reader) {
    /** Bytes of an element, 0 where elements share bytes or have no order. */
    int width() {
      return switch (type) {
        case "bool", "i8", "u8" -> 1;
        case "i16", "u16", "f16", "bf16" -> 2;
        case "i32", "u32", "f32" -> 4;
        case "i64", "u64", "f64" -> 8;
        default -> 0;
      };
    }

    double value(ByteBuffer data, int i) {
      return switch (type) {
        case "i8" -> data.get(i);
        case "u8", "bool" -> data.get(i) & 0xff;
        case "i16" -> data.getShort(2 * i);
        case "u16" -> data.getShort(2 * i) & 0xffff;
        case "f16" -> half(data.getShort(2 * i));
        case "bf16" -> Float.intBitsToFloat(data.getShort(2 * i) << 16);
        case "i32" -> data.getInt(4 * i);
        case "u32" -> data.getInt(4 * i) & 0xffffffffL;
        case "f32" -> data.getFloat(4 * i);
        case "f64" -> data.getDouble(8 * i);
        default -> data.getLong(8 * i);
      };
    }

    /** IEEE 754 binary16: 5 bits of exponent, 10 of fraction. */
    private static double half(short bits) {
      int exponent = bits >> 10 & 31;
      int fraction = bits & 1023;
      double magnitude =
          switch (exponent) {
            case 0 -> fraction * 0x1p-24;
            case 31 -> fraction == 0 ? Double.POSITIVE_INFINITY : Double.NaN;
            default -> Math.scalb(1024 + fraction, exponent - 25);
          };
      return bits < 0 ? -magnitude : magnitude;
    }
  }

  @FunctionalInterface
  private interface Reader {
    ByteBuffer read(long offset, int length);
  }

  /**
   * Compares two models of the same format: {@code .onnx} files, or {@code .safetensors} files or
   * folders.
   *
   * @throws InputException if one cannot be read, or they are of different formats
   */
  public static ModelDiff of(Path before, Path after) {
    if (isOnnx(before) != isOnnx(after)) {
      throw new InputException(
          before
              + " and "
              + after
              + " are of different formats, whose tensors have different names");
    }
    if (isOnnx(before)) {
      OnnxModel first = OnnxModel.read(before);
      OnnxModel second = OnnxModel.read(after);
      return new ModelDiff(compare(tensors(first), tensors(second)), operators(first, second));
    }
    try (Checkpoint first = Checkpoint.open(before);
        Checkpoint second = Checkpoint.open(after)) {
      return new ModelDiff(compare(tensors(first), tensors(second)), List.of());
    }
  }

  private static boolean isOnnx(Path path) {
    return !Files.isDirectory(path) && path.toString().endsWith(".onnx");
  }

  private static SortedMap<String, Values> tensors(Checkpoint checkpoint) {
    SortedMap<String, Values> map = new TreeMap<>(Names.ORDER);
    for (TensorInfo tensor : checkpoint.tensors()) {
      SafetensorsFile file = checkpoint.fileOf(tensor.name());
      String type = tensor.dtype().name().toLowerCase(Locale.ROOT);
      map.put(
          tensor.name(),
          new Values(
              type,
              type + tensor.shape(),
              tensor.elements(),
              tensor.bytes(),
              (offset, length) -> {
                ByteBuffer data = ByteBuffer.allocate(length).order(ByteOrder.LITTLE_ENDIAN);
                file.read(tensor, offset, data);
                return data.flip();
              }));
    }
    return map;
  }

  private static SortedMap<String, Values> tensors(OnnxModel model) {
    Map<String, String> names = new HashMap<>();
    Map<String, OnnxInitializer> constants = new HashMap<>();
    model.initializers().forEach(i -> constants.put(i.name(), i));
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      names.put(weight.value(), weight.name());
      constants.putIfAbsent(weight.value(), model.constant(weight.value()));
    }
    SortedMap<String, Values> map = new TreeMap<>(Names.ORDER);
    constants.forEach(
        (value, tensor) -> {
          String type =
              switch (tensor.type()) {
                case FLOAT -> "f32";
                case DOUBLE -> "f64";
                case FLOAT16 -> "f16";
                case BFLOAT16 -> "bf16";
                case INT8 -> "i8";
                case UINT8 -> "u8";
                case INT16 -> "i16";
                case UINT16 -> "u16";
                case INT32 -> "i32";
                case UINT32 -> "u32";
                case INT64 -> "i64";
                case UINT64 -> "u64";
                default -> tensor.type().name().toLowerCase(Locale.ROOT);
              };
          // Two weights may be called alike by people; the graph's names are unique.
          String name = names.getOrDefault(value, value);
          map.put(
              map.containsKey(name) ? value : name,
              new Values(
                  type,
                  type + Arrays.toString(tensor.dims()),
                  tensor.elements(),
                  tensor.byteLength(),
                  tensor::data));
        });
    return map;
  }

  private static List<String> operators(OnnxModel before, OnnxModel after) {
    SortedMap<String, long[]> counts = new TreeMap<>();
    for (NodeProto node : before.nodes()) {
      counts.computeIfAbsent(node.getOpType(), k -> new long[2])[0]++;
    }
    for (NodeProto node : after.nodes()) {
      counts.computeIfAbsent(node.getOpType(), k -> new long[2])[1]++;
    }
    return counts.entrySet().stream()
        .filter(e -> e.getValue()[0] != e.getValue()[1])
        .map(e -> e.getKey() + ": " + e.getValue()[0] + " -> " + e.getValue()[1])
        .toList();
  }

  private static List<Layer> compare(
      SortedMap<String, Values> before, SortedMap<String, Values> after) {
    SortedMap<String, Values> all = new TreeMap<>(before);
    all.putAll(after);
    List<Layer> layers = new ArrayList<>();
    for (String name : all.keySet()) {
      Values a = before.get(name);
      Values b = after.get(name);
      if (a == null || b == null) {
        Values one = a == null ? b : a;
        layers.add(
            new Layer(
                name,
                a == null ? Change.ADDED : Change.REMOVED,
                a == null ? null : a.label(),
                b == null ? null : b.label(),
                one.elements(),
                one.elements(),
                Double.NaN,
                Double.NaN,
                -1,
                -1));
      } else if (!a.label().equals(b.label())) {
        layers.add(
            new Layer(
                name,
                Change.TYPE,
                a.label(),
                b.label(),
                b.elements(),
                b.elements(),
                Double.NaN,
                Double.NaN,
                -1,
                -1));
      } else {
        layers.add(compare(name, a, b));
      }
    }
    return layers;
  }

  private static Layer compare(String name, Values a, Values b) {
    int width = a.width();
    int unit = Math.max(1, width);
    long changed = 0;
    long zerosBefore = 0;
    long zerosAfter = 0;
    double largest = 0;
    double difference = 0;
    double norm = 0;
    for (long offset = 0; offset < a.bytes(); offset += CHUNK) {
      int length = (int) Math.min(CHUNK, a.bytes() - offset);
      ByteBuffer x = a.reader().read(offset, length);
      ByteBuffer y = b.reader().read(offset, length);
      for (int i = 0; i < length / unit; i++) {
        boolean same = true;
        for (int k = unit * i; k < unit * (i + 1); k++) {
          same &= x.get(k) == y.get(k);
        }
        changed += same ? 0 : 1;
        if (width > 0) {
          double u = a.value(x, i);
          double v = b.value(y, i);
          zerosBefore += u == 0 ? 1 : 0;
          zerosAfter += v == 0 ? 1 : 0;
          norm += u * u;
          if (!same) {
            double d = Math.abs(v - u);
            largest = d > largest || Double.isNaN(d) ? d : largest;
            difference += d * d;
          }
        }
      }
    }
    return new Layer(
        name,
        changed == 0 ? Change.SAME : Change.VALUES,
        a.label(),
        b.label(),
        b.elements(),
        changed,
        width == 0 ? Double.NaN : largest,
        width == 0 ? Double.NaN : difference == 0 ? 0 : Math.sqrt(difference / norm),
        width == 0 ? -1 : zerosBefore,
        width == 0 ? -1 : zerosAfter);
  }
}
