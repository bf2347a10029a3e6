package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.TensorProto;
import com.google.protobuf.UnsafeByteOperations;
import java.nio.file.Path;
import java.util.Collections;
import java.util.HashSet;
import java.util.Set;
import org.espalier.format.FileRegions;

/** The external data files of a model while it is read. */
final class ExternalData {
  private final Path model;
  private final FileRegions regions = new FileRegions();
  private final Set<Path> files = new HashSet<>();

  /**
   * @param model the model's file; null for a model that is none
   */
  ExternalData(Path model) {
    this.model = model;
  }

  /** The files that were used so far. */
  Set<Path> files() {
    return Collections.unmodifiableSet(files);
  }

  OnnxTensors.External find(TensorProto t, String where) {
    OnnxTensors.External data = OnnxTensors.external(t, model, where);
    files.add(data.file());
    return data;
  }

  /** The tensor with its data inside, which is mapped where it is large; below 2 GiB only. */
  TensorProto resolve(TensorProto t, OnnxTensors.External data) {
    return t.toBuilder()
        .clearExternalData()
        .clearDataLocation()
        .setRawData(
            UnsafeByteOperations.unsafeWrap(
                regions.bytes(data.file(), data.offset(), Math.toIntExact(data.length()))))
        .build();
  }
}
