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

/**
 * A text model in ONNX Runtime: token ids in, hidden states out. The inputs {@code input_ids}, {@code
 * attention_mask} and {@code token_type_ids} (int64 [batch, tokens]) are fed where the model declares
 * them; any other input is refused by name.
 *
 * <p>Runs may overlap from several threads (ONNX Runtime allows it); closing must wait for them.
 */
public final class OnnxTextModel implements AutoCloseable {
  private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
  private final String name;
  private final OrtSession session;

  /**
   * Loads a model from a file.
   *
   * @param threads threads of one run, at least 1
   * @throws InputException when ONNX Runtime refuses the file or it is not a text model
   */
  public OnnxTextModel(Path file, int threads) {
    name = file.toString();
    try (OrtSession.SessionOptions options = options(threads)) {
      session = environment.createSession(file.toString(), options);
    } catch (OrtException e) {
      throw refused(e);
    }
    checkInputs();
  }

  /**
   * Loads a model from the bytes of an ONNX file, a direct buffer.
   *
   * @param name what errors call it
   * @param threads threads of one run, at least 1
   * @throws InputException when ONNX Runtime refuses the model or it is not a text model
   */
  public OnnxTextModel(String name, ByteBuffer model, int threads) {
    this.name = name;
    try (OrtSession.SessionOptions options = options(threads)) {
      session = environment.createSession(model, options);
    } catch (OrtException e) {
      throw refused(e);
    }
    checkInputs();
  }

  private static OrtSession.SessionOptions options(int threads) throws OrtException {
    OrtSession.SessionOptions options = new OrtSession.SessionOptions();
    options.setIntraOpNumThreads(threads);
    options.setInterOpNumThreads(1);
    return options;
  }

  private InputException refused(OrtException e) {
    return new InputException(name + ": ONNX Runtime cannot load it: " + e.getMessage(), e);
  }

  private void checkInputs() {
    try {
      if (!session.getInputNames().contains("input_ids")) {
        throw new InputException(
            name
                + ": a text model has an input input_ids; this one has "
                + session.getInputNames());
      }
      for (NodeInfo input : session.getInputInfo().values()) {
        if (!Set.of("input_ids", "attention_mask", "token_type_ids").contains(input.getName())) {
          throw new InputException(
              name
                  + ": input "
                  + input.getName()
                  + " is not one a text model takes (input_ids, attention_mask, token_type_ids)");
        }
        if (!(input.getInfo() instanceof TensorInfo t) || t.type != OnnxJavaType.INT64) {
          throw new InputException(
              name + ": input " + input.getName() + " must be int64 but is " + input.getInfo());
        }
      }
    } catch (OrtException e) {
      close();
      throw refused(e);
    } catch (InputException e) {
      close();
      throw e;
    }
  }

  /** The name of the first output: the hidden states of an encoder. */
  public String firstOutput() {
    return session.getOutputNames().iterator().next();
  }

  /**
   * Runs texts as one padded batch.
   *
   * @param batch at least one text; shorter ones are padded with id 0 and mask 0
   * @param outputs the outputs to fetch
   * @param consumer receives each output; its buffer is valid during the call only
   * @throws InputException when the model fails on the input or an output is not float32
   */
  public void run(List<Tokens> batch, Set<String> outputs, OutputConsumer consumer) {
    int rows = batch.size();
    int longest = batch.stream().mapToInt(Tokens::length).max().orElseThrow();
    long[] shape = {rows, longest};
    Map<String, OnnxTensor> inputs = new HashMap<>();
    try {
      try {
        for (String input : session.getInputNames()) {
          LongBuffer data = LongBuffer.allocate(rows * longest);
          for (int r = 0; r < rows; r++) {
            Tokens t = batch.get(r);
            data.put(
                r * longest,
                switch (input) {
                  case "input_ids" -> t.ids();
                  case "attention_mask" -> t.mask();
                  default -> t.types();
                });
          }
          inputs.put(input, OnnxTensor.createTensor(environment, data, shape));
        }
        try (OrtSession.Result result = session.run(inputs, outputs)) {
          for (Map.Entry<String, OnnxValue> e : result) {
            if (!(e.getValue() instanceof OnnxTensor t) || t.getInfo().type != OnnxJavaType.FLOAT) {
              throw new InputException(
                  name
                      + ": output "
                      + e.getKey()
                      + " must be float32 but is "
                      + e.getValue().getInfo());
            }
            consumer.accept(e.getKey(), t.getInfo().getShape(), t.getFloatBuffer());
          }
        }
      } finally {
        inputs.values().forEach(OnnxTensor::close);
      }
    } catch (OrtException e) {
      throw new InputException(
          name + ": ONNX Runtime failed on a batch of " + rows + " texts: " + e.getMessage(), e);
    }
  }

  /** Receives one output of a run. */
  @FunctionalInterface
  public interface OutputConsumer {
    void accept(String output, long[] shape, FloatBuffer values);
  }

  @Override
  public void close() {
    try {
      session.close();
    } catch (OrtException e) {
      throw new IllegalStateException(name + ": ONNX Runtime could not close it", e);
    }
  }
}
