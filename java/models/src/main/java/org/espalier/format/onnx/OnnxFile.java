package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.google.protobuf.CodedInputStream;
import com.google.protobuf.CodedOutputStream;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.UnsafeByteOperations;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;

/** The bytes of ONNX models: mapped and parsed, written whole, with a file of data beside where one is too small. */
final class OnnxFile {
  /** What one protobuf message, and so one file without external data, can hold. */
  static final long MESSAGE_LIMIT = Integer.MAX_VALUE;

  /** Offsets of external data, so that a runtime can map each tensor. */
  private static final int PAGE = 4096;

  /** Tensors below this stay in the model file: a runtime wants shapes and indices there. */
  private static final int EXTERNAL_MINIMUM = 1024;

  private OnnxFile() {}

  /**
   * Maps a file and reads its message.
   *
   * @throws InputException if the file is missing or holds no message of a model
   */
  static ModelProto read(Path file) {
    if (!Files.exists(file)) {
      throw new InputException("there is no file " + file);
    }
    if (!Files.isRegularFile(file)) {
      throw new InputException(file + " is not a file");
    }
    ByteBuffer bytes;
    try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
      long size = channel.size();
      if (size > MESSAGE_LIMIT) {
        throw new InputException(
            file
                + " has "
                + size
                + " bytes; an ONNX file ends at 2147483647, larger models keep"
                + " their weights as external data");
      }
      bytes = channel.map(FileChannel.MapMode.READ_ONLY, 0, size);
    } catch (IOException e) {
      throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
    }
    return parse(bytes, file.toString());
  }

  /**
   * Reads a message; {@code bytes} are used in place.
   *
   * @param name what to call the model in messages
   * @throws InputException if they are no message of a model
   */
  static ModelProto parse(ByteBuffer bytes, String name) {
    String problem =
        bytes.hasRemaining()
            ? WireScan.problem(
                bytes, ModelProto.getDescriptor(), Runtime.getRuntime().maxMemory() / 2)
            : "it is empty";
    if (problem != null) {
      throw new InputException(name + " is not an ONNX model: " + problem);
    }
    try {
      CodedInputStream in = UnsafeByteOperations.unsafeWrap(bytes).newCodedInput();
      in.enableAliasing(true);
      in.setRecursionLimit(WireScan.MAX_DEPTH);
      return ModelProto.parser().parseFrom(in);
    } catch (InvalidProtocolBufferException e) {
      throw new InputException(name + " is not an ONNX model: " + e.getMessage(), e);
    }
  }

  /**
   * Writes a model that was checked, in one file where the limit allows it. The files of the model that is replaced
   * stay until the new ones are complete.
   *
   * @param messageLimit how many bytes the file of the model itself may have
   * @param inputs files that must not be overwritten, besides those that the model was read from
   * @return the files that were written
   * @throws InputException if the target cannot be written, or is too large without its data
   */
  static List<Path> write(OnnxModel model, Path target, long messageLimit, Path... inputs) {
    if (model.inlineSize() > messageLimit) {
      return writeApart(model, target, messageLimit, inputs);
    }
    try (AtomicFile file = AtomicFile.create(target, kept(model, inputs))) {
      List<TensorProto> tensors = new ArrayList<>();
      model.initializers().forEach(i -> tensors.add(i.message()));
      write(model.message(tensors), file);
      file.commit();
    }
    return List.of(target);
  }

  /** Files that a model must not be written to. */
  private static Path[] kept(OnnxModel model, Path... inputs) {
    List<Path> kept = model.files();
    kept.addAll(List.of(inputs));
    return kept.toArray(Path[]::new);
  }

  /** Does what {@link #write} does, with a file of data beside, however small the model is. */
  static List<Path> writeApart(OnnxModel model, Path target, long messageLimit, Path... inputs) {
    Path[] all = kept(model, inputs);
    Path real = AtomicFile.check(target, all);
    // Replacing data under a model that still stands would break that model in between: the new
    // data takes the other of two names.
    Path data = real.resolveSibling(real.getFileName() + ".data");
    Path previous = real.resolveSibling(real.getFileName() + ".data.1");
    if (Files.exists(data)) {
      Path swap = data;
      data = previous;
      previous = swap;
    }
    try (AtomicFile dataFile = AtomicFile.create(data, all);
        AtomicFile file = AtomicFile.create(target, all)) {
      List<TensorProto> tensors = writeData(model, data.getFileName().toString(), dataFile);
      long size = 64;
      for (TensorProto t : tensors) {
        size += t.getSerializedSize() + 16L;
      }
      size += model.message(List.of()).getSerializedSize();
      if (size > messageLimit) {
        throw new InputException(
            "cannot write "
                + target
                + ": without its initializers it has "
                + size
                + " bytes,"
                + " and an ONNX file ends at "
                + messageLimit);
      }
      write(model.message(tensors), file);
      AtomicFile.commitAll(List.of(dataFile, file));
    }
    if (isOurs(previous, all)) {
      try {
        Files.delete(previous);
      } catch (IOException e) {
        throw new InputException("cannot delete the old " + previous + ": " + e.getMessage(), e);
      }
    }
    return List.of(target, data);
  }

  /**
   * Writes the data of all but small tensors.
   *
   * @param name of the file
   * @return the messages of all tensors, which refer to it
   */
  private static List<TensorProto> writeData(OnnxModel model, String name, AtomicFile file) {
    List<TensorProto> tensors = new ArrayList<>();
    long offset = 0;
    for (OnnxInitializer i : model.initializers()) {
      if (i.fitsMessage() && i.byteLength() < EXTERNAL_MINIMUM || i.type() == DataType.STRING) {
        tensors.add(i.message());
        continue;
      }
      long padding = Math.floorMod(-offset, PAGE);
      file.write(ByteBuffer.allocate((int) padding));
      offset += padding;
      tensors.add(i.externalMessage(name, offset));
      i.parts().forEach(file::write);
      offset += i.byteLength();
    }
    return tensors;
  }

  private static boolean isOurs(Path previous, Path[] kept) {
    try {
      if (!Files.isRegularFile(previous)) {
        return false;
      }
      for (Path k : kept) {
        if (Files.exists(k) && Files.isSameFile(k, previous)) {
          return false;
        }
      }
      return true;
    } catch (IOException e) {
      return false;
    }
  }

  private static void write(ModelProto message, AtomicFile file) {
    try {
      OutputStream stream = file.stream();
      CodedOutputStream out = CodedOutputStream.newInstance(stream, 1 << 20);
      message.writeTo(out);
      out.flush();
    } catch (IOException e) {
      throw file.failure(e);
    }
  }
}
