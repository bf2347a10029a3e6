package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.google.protobuf.UnsafeByteOperations;
import java.io.DataInput;
import java.io.DataOutput;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import org.espalier.InputException;

/**
 * A model of any size as bytes of one stream: the length of a message (4 bytes, the first is the highest), the message, and behind it the
 * data of those initializers that the message leaves out, in its order.
 */
public final class ModelStream {
  /** Initializers below this size stay in the message. */
  private static final int LEAST_APART = 1 << 16;

  private static final int PIECE = 1 << 16;

  private ModelStream() {}

  /**
   * Writes a model. Equal models give equal bytes.
   *
   * @throws InputException if what is not an initializer's data has 2 GiB or more
   */
  public static void write(OnnxModel model, DataOutput out) throws IOException {
    OnnxModel.Parts parts =
        model.toParts(i -> i.type() != DataType.STRING && i.byteLength() >= LEAST_APART);
    out.writeInt(parts.message().remaining());
    byte[] piece = new byte[PIECE];
    write(parts.message(), piece, out);
    for (OnnxInitializer i : parts.tensors()) {
      for (ByteBuffer part : i.parts()) {
        write(part, piece, out);
      }
    }
  }

  private static void write(ByteBuffer from, byte[] piece, DataOutput out) throws IOException {
    while (from.hasRemaining()) {
      int n = Math.min(piece.length, from.remaining());
      from.get(piece, 0, n);
      out.write(piece, 0, n);
    }
  }

  /**
   * Reads what {@link #write} wrote.
   *
   * @param name what to call the model in messages
   * @throws InputException if that is no model
   * @throws EOFException if the stream ends before the model does
   */
  public static OnnxModel read(DataInput in, String name) throws IOException {
    int length = in.readInt();
    if (length < 0) {
      throw new InputException(name + " is damaged: a message of " + length + " bytes");
    }
    byte[] piece = new byte[PIECE];
    ModelProto.Builder model = OnnxFile.parse(read(in, length, piece), name).toBuilder();
    GraphProto.Builder graph = model.getGraphBuilder();
    for (int i = 0; i < graph.getInitializerCount(); i++) {
      TensorProto t = graph.getInitializer(i);
      if (t.getDataLocation() == DataLocation.EXTERNAL) {
        ByteBuffer data = read(in, length(t, name + ": the initializer " + t.getName()), piece);
        graph.setInitializer(
            i,
            t.toBuilder()
                .clearExternalData()
                .clearDataLocation()
                .setRawData(UnsafeByteOperations.unsafeWrap(data)));
      }
    }
    return OnnxModel.of(model.build(), name);
  }

  private static int length(TensorProto t, String where) {
    OnnxTensors.check(t, where);
    long bytes = OnnxTensors.bytes(t);
    if (bytes > Integer.MAX_VALUE) {
      throw new InputException(where + " has " + bytes + " bytes; at most 2147483647 can be used");
    }
    return (int) bytes;
  }

  private static ByteBuffer read(DataInput in, int length, byte[] piece) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocateDirect(length);
    while (bytes.hasRemaining()) {
      int n = Math.min(piece.length, bytes.remaining());
      in.readFully(piece, 0, n);
      bytes.put(piece, 0, n);
    }
    return bytes.flip();
  }
}
