package org.espalier.online;

import java.util.Map;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.MemoryFormatOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.TensorView;
import org.espalier.torch.TrainableModel;

/**
 * Examples as a model's input, and its output for them.
 *
 * @param input the name of the model's input
 * @param output the name of its output
 * @param type of the input: Float, Long or Int
 * @param shape of an example's features, without the batch
 * @param features their number
 * @param outputs how many values the output has for an example
 */
record ExampleTensors(
    String input, String output, ScalarType type, long[] shape, int features, int outputs) {
  /** Beyond it, two whole numbers may be one float: what is given as 16,777,217 comes as the one before it. */
  private static final float LARGEST_WHOLE = (1 << 24) - 1;

  /** An input of examples, in memory of its own. */
  Tensor tensor(float[][] rows, int from, int count) {
    long[] dims = new long[shape.length + 1];
    dims[0] = count;
    System.arraycopy(shape, 0, dims, 1, shape.length);
    ScalarType stored = type == ScalarType.Float ? type : ScalarType.Long;
    Tensor empty = torch.empty(dims, new TensorOptions(stored), new MemoryFormatOptional());
    return fill(empty, rows, from, count);
  }

  /** Puts as many other examples into an input. */
  Tensor fill(Tensor tensor, float[][] rows, int from, int count) {
    if (type != ScalarType.Float) {
      LongPointer memory = new LongPointer(tensor.data_ptr());
      for (int i = 0; i < count; i++) {
        memory.position((long) i * features).put(whole(rows[from + i]));
      }
      return tensor;
    }
    FloatPointer memory = new FloatPointer(tensor.data_ptr());
    for (int i = 0; i < count; i++) {
      memory.position((long) i * features).put(rows[from + i]);
    }
    return tensor;
  }

  private long[] whole(float[] row) {
    long[] whole = new long[features];
    for (int k = 0; k < features; k++) {
      whole[k] = (long) row[k];
      if (whole[k] != row[k] || Math.abs(row[k]) > LARGEST_WHOLE) {
        throw new InputException(
            "feature "
                + (k + 1)
                + " is "
                + row[k]
                + "; the input "
                + input
                + " takes whole numbers that float32 tells apart, from -16777215 to 16777215");
      }
    }
    return whole;
  }

  /** The output of a model for an input. */
  Tensor run(TrainableModel runner, Tensor in, int count) {
    Tensor given = type == ScalarType.Int ? in.to(type) : in;
    Tensor out = runner.forward(Map.of(input, given)).get(output);
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
