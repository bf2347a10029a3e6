package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.FloatBuffer;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.bytedeco.javacpp.Loader;
import org.espalier.InputException;
import org.espalier.backend.NativeLibraries;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * ONNX Runtime, whose library is unpacked once, into JavaCPP's cache where the other natives lie. Left to itself it
 * would unpack it at each start and leave a folder behind.
 */
public final class OnnxRuntime {
  /** Where it looks for its libraries before it unpacks them; a host may have set it. */
  private static final String FOLDER = "onnxruntime.native.path";

  private static final String RESOURCES = "/ai/onnxruntime/native/linux-x64/";

  /** It logs a stack trace where the library cannot be loaded; held, so that it stays silent. */
  private static final Logger LOADING = Logger.getLogger("ai.onnxruntime.OnnxRuntime");

  private OnnxRuntime() {}

  /**
   * The environment that all sessions share.
   *
   * @throws InputException where the library cannot be unpacked or loaded
   */
  public static OrtEnvironment environment() {
    try {
      return Loaded.ENVIRONMENT;
    } catch (LinkageError e) {
      throw new InputException(
          "ONNX Runtime cannot be loaded: it is " + NativeLibraries.unpacked("room for 26 MB"), e);
    }
  }

  /** Loads the library once a process. */
  private static final class Loaded {
    static final OrtEnvironment ENVIRONMENT = load();

    private static OrtEnvironment load() {
      LOADING.setLevel(Level.OFF);
      if (System.getProperty(FOLDER) == null) {
        try {
          File library = null;
          for (String name : new String[] {"libonnxruntime4j_jni.so", "libonnxruntime.so"}) {
            library = Loader.cacheResource(OrtEnvironment.class, RESOURCES + name);
          }
          // Without it this is a build for another platform, which knows where its libraries are.
          if (library != null) {
            System.setProperty(FOLDER, library.getParent());
          }
        } catch (IOException e) {
          throw new UncheckedIOException(e);
        }
      }
      return OrtEnvironment.getEnvironment();
    }
  }

  /**
   * Options of a session, to be closed. It writes nothing itself: its exceptions say what fails, and its warnings are of what it
   * could do better, such as constants that nothing uses.
   */
  static OrtSession.SessionOptions options() throws OrtException {
    environment();
    OrtSession.SessionOptions options = new OrtSession.SessionOptions();
    options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL);
    return options;
  }

  /** The values of a float32 tensor, or of one of 16 bits converted; null where a value is none of these. */
  static FloatBuffer floats(OnnxValue value) {
    return value instanceof OnnxTensor tensor ? tensor.getFloatBuffer() : null;
  }

  /** What ONNX Runtime calls the type of a model's input; null where that is no tensor of a type that it has. */
  static OnnxJavaType type(ValueInfoProto input) {
    DataType type = DataType.forNumber(input.getType().getTensorType().getElemType());
    for (OnnxJavaType known : OnnxJavaType.values()) {
      if (type != null && known != OnnxJavaType.UNKNOWN && known.name().equals(type.name())) {
        return known;
      }
    }
    return null;
  }

  /** What ONNX Runtime calls a type of safetensors; null where it has none. */
  public static OnnxJavaType type(SafetensorsDtype dtype) {
    return switch (dtype) {
      case F32 -> OnnxJavaType.FLOAT;
      case F64 -> OnnxJavaType.DOUBLE;
      case F16 -> OnnxJavaType.FLOAT16;
      case BF16 -> OnnxJavaType.BFLOAT16;
      case I8 -> OnnxJavaType.INT8;
      case U8 -> OnnxJavaType.UINT8;
      case I16 -> OnnxJavaType.INT16;
      case I32 -> OnnxJavaType.INT32;
      case I64 -> OnnxJavaType.INT64;
      case BOOL -> OnnxJavaType.BOOL;
      default -> null;
    };
  }
}
