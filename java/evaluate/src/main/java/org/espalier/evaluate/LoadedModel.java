package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * A model that ONNX Runtime has loaded, from a file or from memory. What of memory one message cannot hold, 2 GiB and more, it reads where the model's own
 * tensors lie, mapped from files as a rule.
 */
final class LoadedModel implements AutoCloseable {
  /** Above this, tensors are not copied into a message. */
  private static final long MESSAGE = 1 << 30;

  /** Smaller tensors, shapes and indices among them, which it looks at while it loads, stay in the message. */
  private static final long LEAST_APART = 1 << 16;

  private static final Map<DataType, OnnxJavaType> TYPES =
      Map.of(
          DataType.FLOAT, OnnxJavaType.FLOAT,
          DataType.FLOAT16, OnnxJavaType.FLOAT16,
          DataType.BFLOAT16, OnnxJavaType.BFLOAT16,
          DataType.INT8, OnnxJavaType.INT8,
          DataType.UINT8, OnnxJavaType.UINT8,
          DataType.INT32, OnnxJavaType.INT32,
          DataType.INT64, OnnxJavaType.INT64);

  private final OrtSession session;

  /** What the session reads. */
  private final List<OnnxTensor> tensors;

  private LoadedModel(OrtSession session, List<OnnxTensor> tensors) {
    this.session = session;
    this.tensors = tensors;
  }

  /** Has it load a file. */
  static LoadedModel of(Path file, OrtSession.SessionOptions options) throws OrtException {
    return new LoadedModel(
        OnnxRuntime.environment().createSession(file.toString(), options), List.of());
  }

  /**
   * Has it load a model.
   *
   * @throws org.espalier.InputException if one tensor, or all but the large ones together, have 2 GiB or more
   */
  static LoadedModel of(OnnxModel model, OrtSession.SessionOptions options) throws OrtException {
    return of(model, options, MESSAGE);
  }

  /**
   * @param most bytes of a model that is one message
   */
  static LoadedModel of(OnnxModel model, OrtSession.SessionOptions options, long most)
      throws OrtException {
    OrtEnvironment environment = OnnxRuntime.environment();
    if (model.initializerBytes() <= most) {
      return new LoadedModel(environment.createSession(model.toBuffer(), options), List.of());
    }
    OnnxModel.Parts parts =
        model.toParts(i -> i.byteLength() >= LEAST_APART && TYPES.containsKey(i.type()));
    List<OnnxTensor> tensors = new ArrayList<>();
    try {
      for (OnnxInitializer part : parts.tensors()) {
        OnnxTensor tensor =
            OnnxTensor.createTensor(environment, part.data(), part.dims(), TYPES.get(part.type()));
        tensors.add(tensor);
        options.addExternalInitializers(Map.of(part.name(), tensor));
      }
      return new LoadedModel(environment.createSession(parts.message(), options), tensors);
    } catch (OrtException | RuntimeException e) {
      tensors.forEach(OnnxTensor::close);
      throw e;
    }
  }

  OrtSession session() {
    return session;
  }

  @Override
  public void close() throws OrtException {
    session.close();
    tensors.forEach(OnnxTensor::close);
  }
}
