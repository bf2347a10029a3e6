package org.espalier.evaluate;

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.TextInput;

/**
 * A text model in ONNX Runtime: token ids in, hidden states or logits out. The {@link TextInput}s are fed where
 * the model declares them, and each {@link PastInput} is empty, as is said of texts that begin where a model has {@linkplain
 * PastInput#BRANCH branches}; any other input is refused by name.
 *
 * <p>Runs may overlap from several threads (ONNX Runtime allows it); closing must wait for them.
 */
public final class OnnxTextModel implements AutoCloseable {
  private final OrtEnvironment environment = OnnxRuntime.environment();
  private final String name;
  private final LoadedModel loaded;
  private final OrtSession session;

  /** Inputs for what was read before a text, which is nothing. */
  private final Map<String, TensorInfo> past = new HashMap<>();

  /** Whether the model has a branch for texts that begin. */
  private boolean branches;

  /**
   * Loads a model from a file.
   *
   * @param threads threads of one run, at least 1
   * @throws InputException when the file holds no valid model, ONNX Runtime refuses it or it is not a text model
   */
  public OnnxTextModel(Path file, int threads) {
    this(LoadedModel.read(file, threads));
  }

  /**
   * Takes a model in memory.
   *
   * @param threads threads of one run, at least 1
   * @throws InputException when ONNX Runtime refuses the model or it is not a text model
   */
  public OnnxTextModel(OnnxModel model, int threads) {
    this(LoadedModel.of(model, threads));
  }

  /** Loads a model that is measured, for runs on one thread. */
  OnnxTextModel(MeasuredModel model) {
    this(model.load(1));
  }

  private OnnxTextModel(LoadedModel loaded) {
    this.loaded = loaded;
    name = loaded.name();
    session = loaded.session();
    try {
      checkInputs();
    } catch (InputException e) {
      close();
      throw e;
    }
  }

  private void checkInputs() {
    try {
      if (!session.getInputNames().contains(TextInput.INPUT_IDS.inputName())) {
        throw new InputException(
            name
                + ": a text model has an input input_ids; this one has "
                + session.getInputNames());
      }
      for (NodeInfo input : session.getInputInfo().values()) {
        if (PastInput.isOne(input.getName()) && input.getInfo() instanceof TensorInfo t) {
          PastInput.empty(name, input.getName(), t.getShape(), 1);
          past.put(input.getName(), t);
          continue;
        }
        if (input.getName().equals(PastInput.BRANCH)
            && input.getInfo() instanceof TensorInfo t
            && t.type == OnnxJavaType.BOOL) {
          branches = true;
          continue;
        }
        if (TextInput.of(input.getName()) == null) {
          throw new InputException(
              name
                  + ": input "
                  + input.getName()
                  + " is not one a text model takes ("
                  + String.join(", ", TextInput.names())
                  + ", past_key_values); for such a model examples are a .safetensors file with one"
                  + " tensor an input");
        }
        if (!(input.getInfo() instanceof TensorInfo t) || t.type != OnnxJavaType.INT64) {
          throw new InputException(
              name + ": input " + input.getName() + " must be int64 but is " + input.getInfo());
        }
      }
    } catch (OrtException e) {
      throw new InputException(
          name + ": ONNX Runtime cannot tell its inputs: " + e.getMessage(), e);
    }
  }

  /** The name of the first output: an encoder's hidden states, a language model's logits. */
  String firstOutput() {
    return session.getOutputNames().iterator().next();
  }

  /**
   * Runs texts as one padded batch.
   *
   * @param batch at least one text; shorter ones are padded with id 0 and mask 0
   * @param outputs the outputs to fetch
   * @param consumer receives each output; its buffer is valid during the call only
   * @throws InputException when the model fails on the input or an output is not of floats
   */
  public void run(List<Tokens> batch, Set<String> outputs, OutputConsumer consumer) {
    Map<String, OnnxTensor> inputs = inputs(batch);
    try {
      try {
        try (OrtSession.Result result = session.run(inputs, outputs)) {
          for (Map.Entry<String, OnnxValue> e : result) {
            FloatBuffer values = OnnxRuntime.floats(e.getValue());
            if (values == null) {
              throw new InputException(
                  name
                      + ": output "
                      + e.getKey()
                      + " must be float32, float16 or bfloat16 but is "
                      + e.getValue().getInfo());
            }
            long[] dims = ((OnnxTensor) e.getValue()).getInfo().getShape();
            consumer.accept(e.getKey(), dims, values);
          }
        }
      } finally {
        inputs.values().forEach(OnnxTensor::close);
      }
    } catch (OrtException e) {
      throw new InputException(
          name
              + ": ONNX Runtime failed on a batch of "
              + batch.size()
              + " texts: "
              + e.getMessage(),
          e);
    }
  }

  OrtSession session() {
    return session;
  }

  /**
   * What the model is fed for texts as one padded batch.
   *
   * @return to be closed, each
   */
  Map<String, OnnxTensor> inputs(List<Tokens> batch) {
    int rows = batch.size();
    int longest = batch.stream().mapToInt(Tokens::length).max().orElseThrow();
    Map<String, OnnxTensor> inputs = new HashMap<>();
    try {
      for (Map.Entry<String, TensorInfo> e : past.entrySet()) {
        long[] empty = PastInput.empty(name, e.getKey(), e.getValue().getShape(), rows);
        ByteBuffer nothing = ByteBuffer.allocateDirect(0);
        inputs.put(
            e.getKey(), OnnxTensor.createTensor(environment, nothing, empty, e.getValue().type));
      }
      if (branches) {
        inputs.put(PastInput.BRANCH, OnnxTensor.createTensor(environment, new boolean[] {false}));
      }
      for (String input : session.getInputNames()) {
        if (inputs.containsKey(input)) {
          continue;
        }
        long[] values = new long[rows * longest];
        for (int r = 0; r < rows; r++) {
          long[] own = batch.get(r).of(TextInput.of(input));
          System.arraycopy(own, 0, values, r * longest, own.length);
        }
        LongBuffer data = LongBuffer.wrap(values);
        inputs.put(input, OnnxTensor.createTensor(environment, data, new long[] {rows, longest}));
      }
      return inputs;
    } catch (OrtException e) {
      inputs.values().forEach(OnnxTensor::close);
      throw new InputException(
          name + ": ONNX Runtime does not take a batch of texts: " + e.getMessage(), e);
    }
  }

  /** Receives one output of a run. */
  @FunctionalInterface
  public interface OutputConsumer {
    void accept(String output, long[] shape, FloatBuffer values);
  }

  @Override
  public void close() {
    loaded.close();
  }
}
