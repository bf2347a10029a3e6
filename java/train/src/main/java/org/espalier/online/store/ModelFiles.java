package org.espalier.online.store;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.format.onnx.ActiveDropout;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.online.ExampleInput;
import org.espalier.online.InputSizes;
import org.espalier.online.Learnable;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.RowTables;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.online.model.LinearHead;
import org.espalier.online.model.Perceptron;
import org.espalier.online.model.TorchLearnable;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.TrainableModel;
import org.espalier.torch.onnx.OnnxGraph;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Reads models that can be learned: of ONNX, of TorchScript, and linear ones of safetensors. Safe for several threads. */
public final class ModelFiles {
  private static final Logger LOG = LoggerFactory.getLogger(ModelFiles.class);

  private static final long MOST_VALUES = 1 << 28;

  private ModelFiles() {}

  /**
   * Reads a model that can be learned: an {@code .onnx} or TorchScript ({@code .pt}) file with inputs [batch, values], of
   * ONNX also [batch] or [batch, …], and a first output [batch, outputs], which is tried, or else a linear model as {@link
   * #readHead} does. A TorchScript file is code that runs with the rights of this process.
   *
   * @param recipe says how many values inputs and output have for an example, where an ONNX graph does not
   * @throws InputException if it is no such model
   */
  public static Learnable read(Path file, OnlineRecipe recipe) {
    String name = file.toString();
    if (name.endsWith(".onnx")) {
      OnnxModel model = OnnxModel.read(file);
      String changed = ActiveDropout.evaluate(model);
      if (changed != null) {
        LOG.info("{}: {}", file, changed);
      }
      Sizes sizes = sizes(file, model, recipe);
      Int8Model integers = Int8Model.is(model) ? Int8Model.of(model) : null;
      if (integers != null) {
        integers.resting().forEach(line -> LOG.warn("{}: {}", file, line));
      }
      Perceptron perceptron =
          sizes.inputs().get(0).type() != ScalarType.Float
              ? null
              : (integers == null ? Perceptron.of(model) : Perceptron.of(integers)).orElse(null);
      if (perceptron != null) {
        if (perceptron.features() == sizes.features() && perceptron.outputs() == sizes.outputs()) {
          return perceptron;
        }
        perceptron.close();
      }
      if (integers != null) {
        return tried(
            file,
            () -> TorchLearnable.of(integers, sizes.inputs(), sizes.outputs()),
            sizes,
            recipe);
      }
      return readTorch(file, new OnnxGraph(model), () -> new OnnxGraph(model), sizes, recipe);
    }
    if (name.endsWith(".pt")) {
      if (recipe.inputs() == null) {
        throw new InputException(
            "for a TorchScript model the recipe says model: {features: …, outputs: …}, or inputs:"
                + " {…} for features where it has several");
      }
      byte[] bytes;
      try {
        bytes = Files.readAllBytes(file); // those who predict later must not need the file
      } catch (IOException | OutOfMemoryError e) {
        throw new InputException("cannot read " + file + ": " + e, e);
      }
      TorchScriptModel module = TorchScriptModel.read(file);
      Sizes sizes;
      try {
        sizes = sizes(file, module, recipe);
      } catch (InputException e) {
        module.close();
        throw e;
      }
      return readTorch(
          file, module, () -> TorchScriptModel.read(bytes, file.toString()), sizes, recipe);
    }
    LinearHead head = readHead(file);
    try {
      checkSizes(file, head, recipe);
    } catch (InputException e) {
      head.close();
      throw e;
    }
    return head;
  }

  private static void checkSizes(Path file, LinearHead head, OnlineRecipe recipe) {
    if (recipe.inputs() == null) {
      return;
    }
    int features = recipe.inputs().of(List.of(head.inputs().get(0).name()), file)[0];
    if (features != head.features() || recipe.outputs() != head.outputs()) {
      throw new InputException(
          file
              + " has "
              + head.features()
              + " features and "
              + head.outputs()
              + " outputs; the recipe says model: {features: "
              + features
              + ", outputs: "
              + recipe.outputs()
              + "}");
    }
  }

  /**
   * @param outputs how many values the output has for an example
   */
  private record Sizes(List<ExampleInput> inputs, int outputs) {
    int features() {
      return inputs.stream().mapToInt(ExampleInput::size).reduce(0, Math::addExact);
    }
  }

  /** What the recipe says, in the shapes that the graph's inputs have; without a word there, the graph's. */
  private static Sizes sizes(Path file, OnnxModel model, OnlineRecipe recipe) {
    if (model.inputs().isEmpty() || model.outputs().isEmpty()) {
      throw new InputException(file + " has no input or no output; a model that learns has both");
    }
    List<String> names = model.inputs().stream().map(ValueInfoProto::getName).toList();
    int[] told = recipe.inputs() == null ? null : recipe.inputs().of(names, file);
    List<ExampleInput> inputs = new ArrayList<>();
    for (int k = 0; k < names.size(); k++) {
      ValueInfoProto input = model.inputs().get(k);
      ScalarType type = inputType(file, input);
      long[] shape = exampleShape(input);
      if (told != null && (shape == null || elements(shape) != told[k])) {
        shape = new long[] {told[k]};
      }
      if (shape == null) {
        throw unknownSize(file, names.size() == 1 ? "input" : "input " + names.get(k), names);
      }
      inputs.add(new ExampleInput(names.get(k), type, shape));
    }
    long features = inputs.stream().mapToLong(ExampleInput::size).sum();
    if (features > MOST_VALUES) {
      throw new InputException(
          file
              + " takes "
              + features
              + " values for an example; 1 to "
              + MOST_VALUES
              + " is right");
    }
    long[] result = exampleShape(model.outputs().get(0));
    if (told == null && result == null) {
      throw unknownSize(file, "output", names);
    }
    return new Sizes(inputs, told == null ? (int) elements(result) : recipe.outputs());
  }

  private static InputException unknownSize(Path file, String what, List<String> names) {
    return new InputException(
        file
            + " does not say how many values its "
            + what
            + " has; model: {"
            + InputSizes.keys(names)
            + ", outputs: …} in the recipe does");
  }

  /** What the recipe says: a TorchScript module tells neither sizes nor types. */
  private static Sizes sizes(Path file, TorchScriptModel module, OnlineRecipe recipe) {
    List<String> names = module.inputNames();
    if (names.isEmpty()) {
      throw new InputException(file + " has no input; a model that learns has one or more");
    }
    int[] sizes = recipe.inputs().of(names, file);
    List<ExampleInput> inputs = new ArrayList<>();
    for (int k = 0; k < sizes.length; k++) {
      inputs.add(ExampleInput.floats(names.get(k), sizes[k]));
    }
    return new Sizes(inputs, recipe.outputs());
  }

  private static ScalarType inputType(Path file, ValueInfoProto input) {
    int type = input.getType().getTensorType().getElemType();
    return switch (type) {
      case DataType.FLOAT_VALUE -> ScalarType.Float;
      case DataType.INT64_VALUE -> ScalarType.Long;
      case DataType.INT32_VALUE -> ScalarType.Int;
      default ->
          throw new InputException(
              file
                  + ": the input "
                  + input.getName()
                  + " is "
                  + DataType.forNumber(type)
                  + "; a model that learns takes float32, or whole numbers as int64 or int32");
    };
  }

  /** The dimensions behind the batch's; null where there are none or one is not fixed. */
  private static long[] exampleShape(ValueInfoProto value) {
    List<TensorShapeProto.Dimension> dims = value.getType().getTensorType().getShape().getDimList();
    if (dims.isEmpty()) {
      return null;
    }
    long[] shape = dims.stream().skip(1).mapToLong(d -> d.getDimValue()).toArray();
    return Arrays.stream(shape).allMatch(n -> n > 0) && elements(shape) <= MOST_VALUES
        ? shape
        : null;
  }

  private static long elements(long[] shape) {
    long product = 1;
    for (long n : shape) {
      product = n > MOST_VALUES / product ? MOST_VALUES + 1 : product * n;
    }
    return product;
  }

  private static Learnable readTorch(
      Path file,
      TrainableModel model,
      Supplier<? extends TrainableModel> replicas,
      Sizes sizes,
      OnlineRecipe recipe) {
    return tried(
        file,
        () -> {
          try {
            return new TorchLearnable(model, replicas, sizes.inputs(), sizes.outputs());
          } catch (RuntimeException e) {
            model.close();
            throw e;
          }
        },
        sizes,
        recipe);
  }

  /** Tries it on one example, as predictions and what is left of a batch have it, and on two. */
  private static Learnable tried(
      Path file, Supplier<TorchLearnable> made, Sizes sizes, OnlineRecipe recipe) {
    int features = sizes.features();
    TorchLearnable learnable;
    try {
      learnable = made.get();
    } catch (RuntimeException e) {
      throw e instanceof InputException ? e : new InputException(file + ": " + e.getMessage(), e);
    }
    int most = recipe.settings().batch() > 1 || recipe.settings().replay() != null ? 2 : 1;
    int rows = most;
    RowTables.begin(learnable, recipe.settings()); // nobody needs a gradient as large as a table
    try {
      for (; rows > 0; rows--) {
        learnable.forward(new float[rows][features], rows, new float[rows * sizes.outputs()]);
        learnable.backward(new float[rows * sizes.outputs()], rows);
      }
      return learnable;
    } catch (InputException e) {
      learnable.close();
      throw e;
    } catch (RuntimeException e) { // what libtorch says
      learnable.close();
      throw new InputException(
          file
              + " does not run on "
              + (rows == 1 ? "one example" : "two examples")
              + " of "
              + features
              + " features, or cannot be trained: "
              + String.valueOf(e.getMessage()).lines().findFirst().orElse(""),
          e);
    }
  }

  /**
   * A linear model of a version as ONNX: see {@link OnlineLearner#toOnnx}.
   *
   * @param loss what it learned, and thereby what its outputs mean
   * @throws InputException if it is no linear model
   */
  public static OnnxModel toOnnx(Path path, Loss loss) {
    try (LinearHead head = readHead(path)) {
      Map<String, float[]> values = new HashMap<>();
      for (Weight w : head.weights()) {
        values.put(w.name(), Floats.copy(w.latent()));
      }
      return head.toOnnx(values, loss);
    }
  }

  /**
   * Reads a linear model: a safetensors file or folder with {@code weight} [outputs, features] and
   * {@code bias} [outputs], both F32.
   *
   * @throws InputException if it is no such model
   */
  public static LinearHead readHead(Path path) {
    try (Checkpoint checkpoint = Checkpoint.open(path)) {
      TensorInfo weight = checkpoint.tensor("weight");
      TensorInfo bias = checkpoint.tensor("bias");
      if (weight == null
          || bias == null
          || weight.dtype() != SafetensorsDtype.F32
          || bias.dtype() != SafetensorsDtype.F32
          || weight.rank() != 2
          || !bias.shape().equals(List.of(weight.shape().get(0)))
          || weight.elements() < 1
          || weight.elements() > 1 << 28) {
        throw new InputException(
            path
                + " is no linear model: weight [outputs, features] and bias [outputs], both f32,"
                + " are needed. Another model is given as .onnx or TorchScript (.pt); one written"
                + " in Java is learned by the program that has its class");
      }
      float[] w = read(checkpoint, weight);
      float[] b = read(checkpoint, bias);
      LinearHead head = new LinearHead((int) (long) weight.shape().get(1), b.length);
      head.set(w, b);
      return head;
    }
  }

  private static float[] read(Checkpoint checkpoint, TensorInfo tensor) {
    ByteBuffer bytes =
        ByteBuffer.allocate(Math.toIntExact(tensor.bytes())).order(ByteOrder.LITTLE_ENDIAN);
    checkpoint.fileOf(tensor.name()).read(tensor, 0, bytes);
    float[] values = new float[bytes.capacity() / 4];
    bytes.flip().asFloatBuffer().get(values);
    return values;
  }
}
