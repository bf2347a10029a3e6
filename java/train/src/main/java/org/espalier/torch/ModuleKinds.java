package org.espalier.torch;

import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.Parameter.Kind;

/** The parameters of libtorch's modules: what they do, by the types of the modules that own them. */
final class ModuleKinds {
  private ModuleKinds() {}

  /** The kind of a module's weight by its TorchScript type, which holds the Python class's name. */
  static Kind ofScript(String type) {
    String last = type.substring(type.lastIndexOf('.') + 1).replaceFirst("___torch_mangle_.*", "");
    return switch (last) {
      case "Linear" -> Kind.LINEAR;
      case "Conv1d", "Conv2d", "Conv3d" -> Kind.CONVOLUTION;
      case "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d" -> Kind.TRANSPOSED_CONVOLUTION;
      case "LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell" -> Kind.RECURRENT;
      case "Embedding", "EmbeddingBag" -> Kind.EMBEDDING;
      default -> Kind.OTHER;
    };
  }

  /** The kind of a module's weight by its C++ type. */
  static Kind ofModule(String type) {
    return ofScript(type.replace("::", ".").replaceFirst("Impl$", ""));
  }

  /**
   * A parameter of a module, with a reference of its own to the tensor.
   *
   * @param model what messages call it
   * @param name of the parameter, behind that of the module that owns it and a dot
   * @param kinds the kind of a module's weights by the module's name
   * @throws InputException where the tensor cannot be trained in place
   */
  static Parameter parameter(
      String model, String name, Tensor tensor, Function<String, Kind> kinds) {
    ScalarType type = tensor.scalar_type().intern();
    if (type != ScalarType.Float || !tensor.is_contiguous() || !tensor.is_leaf()) {
      throw new InputException(
          model
              + ": the parameter "
              + name
              + " is "
              + type
              + (tensor.is_contiguous() ? "" : ", strided")
              + "; only contiguous float32 parameters can be trained");
    }
    tensor.retainReference();
    int dot = name.lastIndexOf('.');
    String module = dot < 0 ? "" : name.substring(0, dot);
    return parameter(name, tensor, kinds.apply(module), module);
  }

  private static Parameter parameter(String name, Tensor tensor, Kind weightKind, String module) {
    String last = name.substring(name.lastIndexOf('.') + 1);
    // A recurrent layer has weight_ih_l0, weight_hh_l0 and so on.
    boolean weight =
        weightKind == Kind.RECURRENT ? last.startsWith("weight_") : last.equals("weight");
    boolean transposed = weightKind == Kind.TRANSPOSED_CONVOLUTION;
    boolean known = weight && weightKind != Kind.OTHER && tensor.dim() >= 2;
    return new Parameter(
        name,
        tensor,
        known ? weightKind : Kind.OTHER,
        known ? (transposed ? 1 : 0) : -1,
        known ? (transposed ? 0 : 1) : -1,
        List.of(module));
  }

  /**
   * @throws InputException where an input is missing, closed or unknown
   */
  static void checkInputs(String model, List<String> names, Map<String, Tensor> inputs) {
    for (String input : names) {
      if (inputs.get(input) == null) {
        throw new InputException(
            model + " needs the input " + input + "; it got " + inputs.keySet());
      }
      if (inputs.get(input).isNull()) {
        throw new InputException(model + ": the tensor of the input " + input + " is closed");
      }
    }
    if (inputs.size() > names.size()) {
      throw new InputException(model + " has the inputs " + names + "; it got " + inputs.keySet());
    }
  }
}
