package org.espalier.online.model;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.MemoryFormatOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.online.ExampleInput;
import org.espalier.online.memory.Floats;
import org.espalier.torch.TensorView;
import org.espalier.torch.TrainableModel;

/** Examples as a model's inputs, and its output for them. Safe for several threads. */
final class ExampleTensors {
  /** Beyond it, two whole numbers may be one float: what is given as 16,777,217 comes as the one before it. */
  private static final float LARGEST_WHOLE = (1 << 24) - 1;

  private final List<ExampleInput> inputs;

  /** By input how many features come before its own, and last how many there are. */
  private final int[] begins;

  private final String output;
  private final int outputs;

  /**
   * @param inputs of the model, in the order in which an example has their values
   * @param output the name of its output
   * @param outputs how many values the output has for an example
   */
  ExampleTensors(List<ExampleInput> inputs, String output, int outputs) {
    this.inputs = List.copyOf(inputs);
    this.output = output;
    this.outputs = outputs;
    begins = new int[inputs.size() + 1];
    for (int k = 0; k < inputs.size(); k++) {
      begins[k + 1] = Math.addExact(begins[k], inputs.get(k).size());
    }
  }

  List<ExampleInput> inputs() {
    return inputs;
  }

  /** How many features an example has. */
  int features() {
    return begins[inputs.size()];
  }

  int outputs() {
    return outputs;
  }

  /** Examples as a tensor for each input, in memory of their own. */
  List<Tensor> tensors(float[][] rows, int from, int count) {
    List<Tensor> tensors = new ArrayList<>();
    for (ExampleInput input : inputs) {
      long[] shape = input.shape();
      long[] dims = new long[shape.length + 1];
      dims[0] = count;
      System.arraycopy(shape, 0, dims, 1, shape.length);
      ScalarType stored = input.type() == ScalarType.Float ? ScalarType.Float : ScalarType.Long;
      tensors.add(torch.empty(dims, new TensorOptions(stored), new MemoryFormatOptional()));
    }
    fill(tensors, rows, from, count);
    return tensors;
  }

  /** Puts as many other examples into such tensors. */
  void fill(List<Tensor> tensors, float[][] rows, int from, int count) {
    for (int k = 0; k < tensors.size(); k++) {
      int size = begins[k + 1] - begins[k];
      if (inputs.get(k).type() == ScalarType.Float) {
        FloatPointer memory = new FloatPointer(tensors.get(k).data_ptr());
        for (int i = 0; i < count; i++) {
          memory.position((long) i * size).put(rows[from + i], begins[k], size);
        }
      } else {
        LongPointer memory = new LongPointer(tensors.get(k).data_ptr());
        for (int i = 0; i < count; i++) {
          memory.position((long) i * size).put(whole(rows[from + i], k));
        }
      }
    }
  }

  /** The values of an input of whole numbers. */
  private long[] whole(float[] row, int k) {
    long[] whole = new long[begins[k + 1] - begins[k]];
    for (int j = 0; j < whole.length; j++) {
      float value = row[begins[k] + j];
      whole[j] = (long) value;
      if (whole[j] != value || Math.abs(value) > LARGEST_WHOLE) {
        throw new InputException(
            "value "
                + (j + 1)
                + " of the input "
                + inputs.get(k).name()
                + " is "
                + value
                + "; it takes whole numbers that float32 tells apart, from -16777215 to 16777215");
      }
    }
    return whole;
  }

  /** The output of a model for examples. */
  Tensor run(TrainableModel runner, List<Tensor> tensors, int count) {
    Map<String, Tensor> given = new LinkedHashMap<>();
    for (int k = 0; k < tensors.size(); k++) {
      ExampleInput input = inputs.get(k);
      Tensor values = tensors.get(k);
      given.put(input.name(), input.type() == ScalarType.Int ? values.to(input.type()) : values);
    }
    Tensor out = runner.forward(given).get(output);
    if (out.numel() != (long) count * outputs) {
      throw new IllegalArgumentException(
          "the output "
              + output
              + " has "
              + out.numel()
              + " values for "
              + count
              + " examples; "
              + outputs
              + " for each were expected");
    }
    return out;
  }

  /** The values of an output. */
  static void read(Tensor out, float[] to, int count) {
    Floats.of(TensorView.of(out.detach().contiguous())).get(0, to, 0, count);
  }
}
