package org.espalier.online.model;

import java.security.MessageDigest;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import org.espalier.format.Sha256;
import org.espalier.online.Learnable;
import org.espalier.online.Weight;

/** What of a model from ONNX is not learned, as a hash of its graph. */
final class GraphIdentity {
  private GraphIdentity() {}

  /** The SHA-256 of the model with {@link #zeros} for weights. */
  static String of(Learnable model) {
    MessageDigest digest = Sha256.digest();
    digest.update(model.toOnnx(zeros(model), null).toBuffer());
    return HexFormat.of().formatHex(digest.digest());
  }

  /** Zeros for all that is learned. */
  static Map<String, float[]> zeros(Learnable model) {
    Map<String, float[]> zeros = new HashMap<>();
    for (Weight w : model.weights()) {
      zeros.put(w.name(), new float[Math.toIntExact(w.latent().elements())]);
    }
    return zeros;
  }
}
