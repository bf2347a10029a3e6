package org.espalier.train;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.TextInput;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.TorchDevice;

/**
 * Examples as the inputs of a model.
 *
 * @param inputs by name
 * @param lengths tokens of each text; 1 for examples of one shape
 * @param longest the largest of them
 * @param mask [batch, tokens, 1], 1 where a token is no padding; null where there is no padding
 */
record Batch(Map<String, Tensor> inputs, int[] lengths, int longest, Tensor mask) {
  int size() {
    return lengths.length;
  }

  /** Those of the inputs that a model asks for. */
  Map<String, Tensor> inputs(List<String> names) {
    Map<String, Tensor> asked = new LinkedHashMap<>();
    names.forEach(name -> asked.put(name, inputs.get(name)));
    return asked;
  }

  /** The only input. */
  Tensor only() {
    return inputs.values().iterator().next();
  }

  /** The same with its only input called otherwise. */
  Batch called(String input) {
    return new Batch(Map.of(input, only()), lengths, longest, mask);
  }

  /** Whether an activation holds a vector a token, and some of the tokens are padding. */
  boolean pads(Tensor activation) {
    return mask != null && activation.dim() == 3 && activation.size(1) == longest;
  }

  /** The same with its mask on a device; inputs are placed by the model that they are fed to. */
  Batch on(TorchDevice device) {
    return mask == null ? this : new Batch(inputs, lengths, longest, device.place(mask));
  }

  /**
   * Puts examples together; the tensors belong to the PointerScope that is open.
   *
   * @param inputNames what the model asks for
   * @throws InputException where the model asks for something that the examples are not
   */
  static Batch of(Examples examples, int[] indices, List<String> inputNames) {
    return examples instanceof Examples.Texts texts
        ? of(texts, indices, inputNames)
        : of((Examples.Labelled) examples, indices, inputNames);
  }

  private static Batch of(Examples.Texts texts, int[] indices, List<String> inputNames) {
    int n = indices.length;
    int[] lengths = Arrays.stream(indices).map(texts::length).toArray();
    int longest = Arrays.stream(lengths).max().orElseThrow();
    Map<String, Tensor> inputs = new LinkedHashMap<>();
    for (String name : inputNames) {
      TextInput input = TextInput.of(name);
      if (input == null) {
        throw new InputException(
            "the model has an input " + name + "; texts are fed to " + TextInput.names());
      }
      long[] rows = new long[n * longest];
      for (int i = 0; i < n; i++) {
        input.write(texts.ids().get(indices[i]), rows, i * longest);
      }
      inputs.put(name, AbstractTensor.create(rows, n, longest));
    }
    return new Batch(inputs, lengths, longest, mask(lengths, longest));
  }

  /** Which tokens are no padding; null where all are. */
  private static Tensor mask(int[] lengths, int longest) {
    if (Arrays.stream(lengths).allMatch(length -> length == longest)) {
      return null;
    }
    float[] mask = new float[lengths.length * longest];
    for (int i = 0; i < lengths.length; i++) {
      Arrays.fill(mask, i * longest, i * longest + lengths[i], 1);
    }
    return AbstractTensor.create(mask, lengths.length, longest, 1);
  }

  private static Batch of(Examples.Labelled rows, int[] indices, List<String> inputNames) {
    int[] lengths = Arrays.stream(indices).map(rows::length).toArray();
    int longest = Arrays.stream(lengths).max().orElseThrow();
    Map<String, Tensor> inputs = new LinkedHashMap<>();
    for (String name : inputNames) {
      inputs.put(name, tensor(rows.input(name, inputNames), indices, longest));
    }
    return new Batch(inputs, lengths, longest, mask(lengths, longest));
  }

  /** Examples of an input below each other, those that are open padded with zeros. */
  private static Tensor tensor(Examples.Input input, int[] indices, int longest) {
    long[] shape = new long[input.shape().size() + 1];
    shape[0] = indices.length;
    for (int i = 1; i < shape.length; i++) {
      shape[i] = input.shape().get(i - 1);
    }
    if (input.isOpen()) {
      shape[1] = longest;
    }
    Tensor tensor = torch.zeros(shape, new TensorOptions(type(input.type())));
    long row = tensor.numel() / indices.length * input.type().bytes(1);
    BytePointer bytes = new BytePointer(tensor.data_ptr()).capacity(row * indices.length);
    for (int i = 0; i < indices.length; i++) {
      byte[] own = input.rows().get(indices[i]);
      bytes.position(row * i).put(own, 0, own.length);
    }
    return tensor;
  }

  private static ScalarType type(SafetensorsDtype type) {
    return switch (type) {
      case F64 -> ScalarType.Double;
      case F32 -> ScalarType.Float;
      case F16 -> ScalarType.Half;
      case BF16 -> ScalarType.BFloat16;
      case I64 -> ScalarType.Long;
      case I32 -> ScalarType.Int;
      case U8 -> ScalarType.Byte;
      case BOOL -> ScalarType.Bool;
      default -> throw new IllegalArgumentException("no input of a model is " + type);
    };
  }
}
