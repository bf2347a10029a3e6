package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/** A model from a file in ONNX Runtime, on one thread. */
final class RuntimeModel implements AutoCloseable {
  private final Path file;
  private final OrtSession session;

  /**
   * Loads a model.
   *
   * @throws InputException where ONNX Runtime refuses the file
   */
  RuntimeModel(Path file) {
    this.file = file;
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(1);
      options.setInterOpNumThreads(1);
      // Its warnings are of what it could do better, such as constants that nothing uses.
      options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR);
      session = OrtEnvironment.getEnvironment().createSession(file.toString(), options);
    } catch (OrtException e) {
      throw new InputException(file + ": ONNX Runtime cannot load it: " + e.getMessage(), e);
    }
  }

  Path file() {
    return file;
  }

  Set<String> inputs() {
    return session.getInputNames();
  }

  /**
   * Runs it.
   *
   * @throws InputException where ONNX Runtime fails on the inputs
   */
  OrtSession.Result run(Map<String, OnnxTensor> inputs) {
    try {
      return session.run(inputs);
    } catch (OrtException e) {
      throw new InputException(file + ": ONNX Runtime failed on an example: " + e.getMessage(), e);
    }
  }

  @Override
  public void close() {
    try {
      session.close();
    } catch (OrtException e) {
      throw new IllegalStateException(file + ": ONNX Runtime could not close it", e);
    }
  }
}
