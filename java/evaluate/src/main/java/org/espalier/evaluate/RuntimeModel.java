package org.espalier.evaluate;

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;

/** A model in ONNX Runtime, on one thread. */
public final class RuntimeModel implements AutoCloseable {
  private static final Set<OnnxJavaType> FLOATS =
      EnumSet.of(OnnxJavaType.FLOAT, OnnxJavaType.FLOAT16, OnnxJavaType.BFLOAT16);

  private final String name;
  private final LoadedModel loaded;
  private final OrtSession session;

  /**
   * Loads a model.
   *
   * @throws InputException where it holds no valid model or ONNX Runtime refuses it
   */
  public RuntimeModel(MeasuredModel model) {
    this(model.load(1));
  }

  private RuntimeModel(LoadedModel loaded) {
    this.loaded = loaded;
    name = loaded.name();
    session = loaded.session();
    if (session.getNumOutputs() == 0) {
      close();
      throw new InputException(name + " has no output");
    }
  }

  /** What messages call it. */
  String name() {
    return name;
  }

  /** The inputs with their types; null for one that is no tensor. */
  Map<String, OnnxJavaType> inputs() {
    Map<String, OnnxJavaType> inputs = new LinkedHashMap<>();
    try {
      for (NodeInfo input : session.getInputInfo().values()) {
        inputs.put(input.getName(), input.getInfo() instanceof TensorInfo t ? t.type : null);
      }
    } catch (OrtException e) {
      throw new InputException(
          name + ": ONNX Runtime cannot tell its inputs: " + e.getMessage(), e);
    }
    return inputs;
  }

  /** Which of its outputs is {@link OnnxModel#mainOutput}. */
  int mainOutput() {
    try {
      int i = 0;
      for (NodeInfo output : session.getOutputInfo().values()) {
        if (output.getInfo() instanceof TensorInfo t && FLOATS.contains(t.type)) {
          return i;
        }
        i++;
      }
      return 0;
    } catch (OrtException e) {
      throw new InputException(
          name + ": ONNX Runtime cannot tell its outputs: " + e.getMessage(), e);
    }
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
      throw new InputException(name + ": ONNX Runtime failed on an example: " + e.getMessage(), e);
    }
  }

  /**
   * Runs it on the first of some examples.
   *
   * @throws InputException where it does not run on it
   */
  public void check(ExampleTensors examples) {
    Map<String, OnnxTensor> inputs;
    try {
      inputs = examples.open(0, inputs());
    } catch (InputException e) {
      throw new InputException(name + ": " + e.getMessage(), e);
    }
    try {
      run(inputs).close();
    } finally {
      ExampleTensors.close(inputs);
    }
  }

  @Override
  public void close() {
    loaded.close();
  }
}
