package org.espalier.evaluate;

import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import java.io.File;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.espalier.InputException;

/** ONNX Runtime, whose library is unpacked into a temporary folder before it is loaded. */
public final class OnnxRuntime {
  /** It logs a stack trace where the library cannot be unpacked; held, so that it stays silent. */
  private static final Logger UNPACKING = Logger.getLogger("ai.onnxruntime.OnnxRuntime");

  private OnnxRuntime() {}

  /**
   * The environment that all sessions share.
   *
   * @throws InputException where the library cannot be unpacked or loaded
   */
  public static OrtEnvironment environment() {
    UNPACKING.setLevel(Level.OFF);
    try {
      return OrtEnvironment.getEnvironment();
    } catch (LinkageError e) {
      File folder = new File(System.getProperty("java.io.tmpdir"));
      throw new InputException(
          "ONNX Runtime cannot be loaded: it is unpacked into "
              + folder
              + ", which has "
              + folder.getUsableSpace() / 1_000_000
              + " MB left; there must be room for 22 MB, and what lies there must be allowed to"
              + " run. JDK_JAVA_OPTIONS=-Djava.io.tmpdir=… names another folder",
          e);
    }
  }

  /** Options of a session, to be closed. */
  static OrtSession.SessionOptions options() {
    environment();
    return new OrtSession.SessionOptions();
  }
}
