package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * A model that ONNX Runtime has loaded, from a file or from memory. A model from memory that is too large for one
 * message, of 2 GiB and more, keeps its large tensors outside of it: ONNX Runtime reads them where they lie, as a rule
 * in mapped files.
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

  private final String name;
  private final OrtSession session;

  /** What the session reads. */
  private final List<OnnxTensor> tensors;

  private LoadedModel(String name, OrtSession session, List<OnnxTensor> tensors) {
    this.name = name;
    this.session = session;
    this.tensors = tensors;
  }

  /**
   * Loads a file.
   *
   * @param threads threads of one run, at least 1
   * @throws InputException where the file holds no valid model or ONNX Runtime refuses it
   */
  static LoadedModel read(Path file, int threads) {
    // Checked, because ONNX Runtime ends the process at some files that hold no valid model.
    String name = OnnxModel.read(file).name();
    try (OrtSession.SessionOptions options = options(threads)) {
      OrtSession session = OnnxRuntime.environment().createSession(file.toString(), options);
      return new LoadedModel(name, session, List.of());
    } catch (OrtException e) {
      throw refused(name, e);
    }
  }

  /**
   * Loads a model from memory.
   *
   * @param threads threads of one run, at least 1
   * @throws InputException where ONNX Runtime refuses it; or if one tensor, or all but the large ones together, have 2
   *     GiB or more
   */
  static LoadedModel of(OnnxModel model, int threads) {
    return of(model, threads, MESSAGE);
  }

  /**
   * The same with another limit.
   *
   * @param most bytes of a model that is one message
   */
  static LoadedModel of(OnnxModel model, int threads, long most) {
    OrtEnvironment environment = OnnxRuntime.environment();
    List<OnnxTensor> tensors = new ArrayList<>();
    try (OrtSession.SessionOptions options = options(threads)) {
      ByteBuffer message;
      if (model.initializerBytes() <= most) {
        message = model.toBuffer();
      } else {
        OnnxModel.Parts parts =
            model.toParts(i -> i.byteLength() >= LEAST_APART && TYPES.containsKey(i.type()));
        for (OnnxInitializer part : parts.tensors()) {
          OnnxTensor tensor =
              OnnxTensor.createTensor(
                  environment, part.data(), part.dims(), TYPES.get(part.type()));
          tensors.add(tensor);
          options.addExternalInitializers(Map.of(part.name(), tensor));
        }
        message = parts.message();
      }
      return new LoadedModel(model.name(), environment.createSession(message, options), tensors);
    } catch (OrtException e) {
      tensors.forEach(OnnxTensor::close);
      throw refused(model.name(), e);
    } catch (RuntimeException e) {
      tensors.forEach(OnnxTensor::close);
      throw e;
    }
  }

  private static OrtSession.SessionOptions options(int threads) throws OrtException {
    OrtSession.SessionOptions options = OnnxRuntime.options();
    options.setIntraOpNumThreads(threads);
    options.setInterOpNumThreads(1);
    return options;
  }

  private static InputException refused(String name, OrtException e) {
    return new InputException(name + ": ONNX Runtime cannot load it: " + e.getMessage(), e);
  }

  /** What messages call it. */
  String name() {
    return name;
  }

  OrtSession session() {
    return session;
  }

  @Override
  public void close() {
    try {
      session.close();
    } catch (OrtException e) {
      throw new IllegalStateException(name + ": ONNX Runtime could not close it", e);
    }
    tensors.forEach(OnnxTensor::close);
  }
}
