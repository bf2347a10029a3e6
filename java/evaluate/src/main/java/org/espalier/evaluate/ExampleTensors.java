package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.ComputedList;
import org.espalier.format.onnx.AttentionMask;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.TextInput;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.image.ImageInput;
import org.espalier.image.Images;

/** Examples that models are fed one by one: for each of them the values of all inputs. Immutable. */
public final class ExampleTensors {
  /** The name of values for a model with one input, whatever it is called. */
  public static final String ONLY_INPUT = "";

  /** Numbers with a fraction. */
  static final Set<OnnxJavaType> REAL =
      EnumSet.of(
          OnnxJavaType.FLOAT, OnnxJavaType.FLOAT16, OnnxJavaType.BFLOAT16, OnnxJavaType.DOUBLE);

  private static final Set<OnnxJavaType> WHOLE = EnumSet.of(OnnxJavaType.INT32, OnnxJavaType.INT64);

  private final List<Map<String, Value>> examples;

  /**
   * One input of one example.
   *
   * @param bytes in native order
   * @param shape as the model takes it: with 1 for a batch
   */
  public record Value(ByteBuffer bytes, long[] shape, OnnxJavaType type) {
    /**
     * The values of one example.
     *
     * @param row little-endian
     * @param shape without the batch
     */
    public static Value of(byte[] row, List<Long> shape, SafetensorsDtype type) {
      return new Value(
          ByteBuffer.allocateDirect(row.length).order(ByteOrder.LITTLE_ENDIAN).put(row).flip(),
          LongStream.concat(LongStream.of(1), shape.stream().mapToLong(d -> d)).toArray(),
          OnnxRuntime.type(type));
    }

    /** The tensor; the caller closes it. */
    OnnxTensor open() throws OrtException {
      return OnnxTensor.createTensor(OnnxRuntime.environment(), ordered(), shape, type);
    }

    private ByteBuffer ordered() {
      return bytes.duplicate().order(bytes.order());
    }

    private double[] numbers() {
      double[] numbers = new double[bytes.remaining() / type.size];
      if (type == OnnxJavaType.DOUBLE) {
        ordered().asDoubleBuffer().get(numbers);
        return numbers;
      }
      FloatBuffer floats =
          OnnxInitializer.of("", DataType.valueOf(type.name()), shape, bytes.duplicate()).floats();
      for (int i = 0; i < numbers.length; i++) {
        numbers[i] = floats.get(i);
      }
      return numbers;
    }

    /**
     * The same numbers as a model takes them.
     *
     * @param wanted one that they {@linkplain #converts convert} to
     * @throws InputException where one of them is none of that type
     */
    Value as(OnnxJavaType wanted) {
      if (wanted == type) {
        return this;
      }
      ByteBuffer converted = REAL.contains(wanted) ? real(wanted) : whole(wanted);
      return new Value(converted, shape, wanted);
    }

    private ByteBuffer real(OnnxJavaType wanted) {
      double[] numbers = numbers();
      if (wanted == OnnxJavaType.DOUBLE) {
        ByteBuffer to = allocate(numbers.length * Double.BYTES);
        to.asDoubleBuffer().put(numbers);
        return to;
      }
      float[] floats = new float[numbers.length];
      for (int i = 0; i < floats.length; i++) {
        floats[i] = (float) numbers[i];
      }
      OnnxInitializer converted = OnnxInitializer.floats("", shape, floats);
      if (wanted != OnnxJavaType.FLOAT) {
        converted = converted.rounded(DataType.valueOf(wanted.name()));
      }
      FloatBuffer fed = converted.floats();
      for (int i = 0; i < numbers.length; i++) {
        if (Double.isFinite(numbers[i]) && !Float.isFinite(fed.get(i))) {
          throw outside(numbers[i], wanted);
        }
      }
      return converted.data();
    }

    private ByteBuffer whole(OnnxJavaType wanted) {
      ByteBuffer from = ordered();
      int n = from.remaining() / type.size;
      ByteBuffer to = allocate(n * wanted.size);
      for (int i = 0; i < n; i++) {
        if (wanted == OnnxJavaType.INT64) {
          to.putLong(from.getInt());
          continue;
        }
        long value = from.getLong();
        if (value != (int) value) {
          throw outside(value, wanted);
        }
        to.putInt((int) value);
      }
      return to.flip();
    }

    private static ByteBuffer allocate(int bytes) {
      return ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder());
    }

    private static InputException outside(Number value, OnnxJavaType wanted) {
      return new InputException(value + " is too large for its type, " + wanted);
    }
  }

  /** Whether values of a type can be fed where a model takes another: floats of any width, and int32 and int64. */
  static boolean converts(OnnxJavaType from, OnnxJavaType to) {
    return from == to
        || REAL.contains(from) && REAL.contains(to)
        || WHOLE.contains(from) && WHOLE.contains(to);
  }

  /**
   * Examples.
   *
   * @param examples at least one; each has values by the input's name, or the one value of {@link
   *     #ONLY_INPUT}; they may be {@linkplain ComputedList computed}
   */
  public ExampleTensors(List<Map<String, Value>> examples) {
    if (examples.isEmpty()) {
      throw new InputException("calibration and evaluation need at least one example");
    }
    this.examples = ComputedList.orCopy(examples);
  }

  /**
   * Examples for a model with one float32 input.
   *
   * @param values row-major
   * @param shape of an example, without the batch
   */
  public static ExampleTensors of(List<float[]> values, List<Long> shape) {
    long[] dims = new long[shape.size() + 1];
    dims[0] = 1;
    for (int i = 0; i < shape.size(); i++) {
      dims[i + 1] = shape.get(i);
    }
    List<Map<String, Value>> examples = new ArrayList<>();
    for (float[] row : values) {
      ByteBuffer bytes = ByteBuffer.allocateDirect(4 * row.length).order(ByteOrder.nativeOrder());
      bytes.asFloatBuffer().put(row);
      examples.add(Map.of(ONLY_INPUT, new Value(bytes, dims, OnnxJavaType.FLOAT)));
    }
    return new ExampleTensors(examples);
  }

  /** Texts, each alone, for models that have {@link TextInput}s. */
  public static ExampleTensors ofTexts(List<TextTokenizer.Tokens> texts) {
    List<Map<String, Value>> examples = new ArrayList<>();
    for (TextTokenizer.Tokens text : texts) {
      Map<String, Value> example = new HashMap<>();
      for (TextInput input : TextInput.values()) {
        long[] values = text.of(input);
        ByteBuffer bytes =
            ByteBuffer.allocateDirect(Long.BYTES * values.length).order(ByteOrder.nativeOrder());
        bytes.asLongBuffer().put(values);
        long[] shape = {1, values.length};
        example.put(input.inputName(), new Value(bytes, shape, OnnxJavaType.INT64));
      }
      examples.add(example);
    }
    return new ExampleTensors(examples);
  }

  /** Images, each alone, which become tensors when they are fed. */
  public static ExampleTensors ofImages(Images images) {
    ImageInput input = images.input();
    String name = input.name() == null ? ONLY_INPUT : input.name();
    return new ExampleTensors(
        new ComputedList<>(
            images.size(),
            i -> Map.of(name, Value.of(images.tensor(i), images.shape(), input.type()))));
  }

  /** At most so many of them, evenly spread. */
  public ExampleTensors some(int count) {
    return new ExampleTensors(ActivationSource.spread(examples, count));
  }

  /** How many there are. */
  public int size() {
    return examples.size();
  }

  /**
   * An example as tensors for a model's inputs, in the types that it takes; values of other names are left out.
   * The caller closes them.
   *
   * @param inputs of the model, each with its type; null for one that is no tensor
   */
  Map<String, OnnxTensor> open(int which, Map<String, OnnxJavaType> inputs) {
    Map<String, Value> example = examples.get(which);
    Map<String, OnnxTensor> fed = new HashMap<>();
    try {
      for (String input : inputs.keySet()) {
        Value value = example.get(example.containsKey(ONLY_INPUT) ? ONLY_INPUT : input);
        if (value == null) {
          throw new InputException(
              "the examples have no tensor for the input "
                  + input
                  + "; they are "
                  + example.keySet());
        }
        fed.put(input, tensor(input, value, inputs.get(input)));
      }
      return fed;
    } catch (OrtException e) {
      close(fed);
      throw new InputException("ONNX Runtime does not take the examples: " + e.getMessage(), e);
    } catch (InputException e) {
      close(fed);
      throw e;
    }
  }

  private static OnnxTensor tensor(String input, Value value, OnnxJavaType wanted)
      throws OrtException {
    Value fed = value;
    if (wanted != null && converts(value.type(), wanted)) { // what does not ONNX Runtime refuses
      try {
        fed = value.as(wanted);
      } catch (InputException e) {
        throw new InputException("the input " + input + " of an example: " + e.getMessage(), e);
      }
    }
    return fed.open();
  }

  /** Whether there is an input {@code attention_mask}. */
  boolean areMasked() {
    return examples.get(0).containsKey(AttentionMask.INPUT);
  }

  /**
   * Whether what models give for the tokens of an example is about something: an input {@code attention_mask}
   * with a value for each of several labels leaves out those where it is 0.
   *
   * @param labels of the example
   * @return a value for each of them; null where all are, as where there is no such input
   */
  boolean[] attended(int example, int labels) {
    Value mask = examples.get(example).get(AttentionMask.INPUT);
    long values = mask == null ? 0 : LongStream.of(mask.shape()).reduce(1, (a, b) -> a * b);
    if (labels == 1 || values != labels) {
      return null;
    }
    boolean[] attended = new boolean[labels];
    AttentionMask.read(mask.bytes(), attended, 0, labels);
    return attended;
  }

  static long bytes(Map<String, OnnxTensor> tensors) {
    return tensors.values().stream()
        .mapToLong(tensor -> tensor.getInfo().getNumElements() * tensor.getInfo().type.size)
        .sum();
  }

  static void close(Map<String, OnnxTensor> tensors) {
    tensors.values().forEach(OnnxTensor::close);
  }
}
