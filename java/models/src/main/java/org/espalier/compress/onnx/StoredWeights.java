package org.espalier.compress.onnx;

import org.espalier.format.onnx.OnnxModel;

/** The values of a graph that hold the integers of a weight, and their scales. */
record StoredWeights(String integers, String scales) {
  /** New names, made of that of the constant which they take the place of. */
  static StoredWeights named(String constant, OnnxModel.Names names) {
    return new StoredWeights(
        names.unique(constant + "_quantized"), names.unique(constant + "_scale"));
  }
}
