package org.espalier.evaluate;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.format.onnx.AttentionMask;

/** Examples that models are fed one by one: for each of them the values of all inputs. */
public final class ExampleTensors {
  /** The name of values for a model with one input, whatever it is called. */
  public static final String ONLY_INPUT = "";

  private final List<Map<String, Value>> examples;

  /**
   * One input of one example.
   *
   * @param bytes in native order
   * @param shape as the model takes it: with 1 for a batch
   */
  public record Value(ByteBuffer bytes, long[] shape, OnnxJavaType type) {}

  /**
   * Examples in memory.
   *
   * @param examples at least one; each has values by the input's name, or the one value of {@link
   *     #ONLY_INPUT}
   */
  public ExampleTensors(List<Map<String, Value>> examples) {
    if (examples.isEmpty()) {
      throw new InputException("calibration and evaluation need at least one example");
    }
    this.examples = List.copyOf(examples);
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

  /** How many there are. */
  public int size() {
    return examples.size();
  }

  /**
   * The examples as tensors for a model's inputs; values of other names are left out. Whoever asks closes
   * them.
   *
   * @param inputs of the model
   */
  List<Map<String, OnnxTensor>> open(Collection<String> inputs) {
    List<Map<String, OnnxTensor>> tensors = new ArrayList<>();
    try {
      for (Map<String, Value> example : examples) {
        Map<String, OnnxTensor> fed = new HashMap<>();
        tensors.add(fed);
        for (String input : inputs) {
          Value value = example.get(example.containsKey(ONLY_INPUT) ? ONLY_INPUT : input);
          if (value == null) {
            throw new InputException(
                "the examples have no tensor for the input " + input + "; they are " + names());
          }
          ByteBuffer bytes = value.bytes().duplicate().order(value.bytes().order());
          fed.put(
              input,
              OnnxTensor.createTensor(
                  OnnxRuntime.environment(), bytes, value.shape(), value.type()));
        }
      }
      return tensors;
    } catch (OrtException e) {
      close(tensors);
      throw new InputException("ONNX Runtime does not take the examples: " + e.getMessage(), e);
    } catch (InputException e) {
      close(tensors);
      throw e;
    }
  }

  /**
   * Whether what models give for the tokens of an example is about something: an input {@code attention_mask}
   * with a value for each of several labels leaves out those where it is 0.
   *
   * @param labels of an example
   * @return a value for each label of each example; null where there is no such input: all are
   */
  boolean[] attended(int labels) {
    boolean[] attended = new boolean[examples.size() * labels];
    for (int i = 0; i < examples.size(); i++) {
      Value mask = examples.get(i).get(AttentionMask.INPUT);
      long values = mask == null ? 0 : LongStream.of(mask.shape()).reduce(1, (a, b) -> a * b);
      if (labels == 1 || values != labels) {
        return null;
      }
      AttentionMask.read(mask.bytes(), attended, i * labels, labels);
    }
    return attended;
  }

  private Collection<String> names() {
    return examples.get(0).keySet();
  }

  static void close(List<Map<String, OnnxTensor>> tensors) {
    tensors.forEach(inputs -> inputs.values().forEach(OnnxTensor::close));
  }
}
