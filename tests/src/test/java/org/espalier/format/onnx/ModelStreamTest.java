package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.model;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.google.protobuf.ByteString;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.OutputStream;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ModelStreamTest {
  @TempDir Path folder;

  /** Initializers of many kinds, some large enough to lie behind the message. */
  private static ModelProto mixed() {
    Random random = new Random(3);
    TensorProto.Builder typed =
        TensorProto.newBuilder().setName("typed").setDataType(DataType.FLOAT_VALUE).addDims(40_000);
    random.doubles(40_000).forEach(v -> typed.addFloatData((float) v));
    byte[] nibbles = new byte[70_001];
    random.nextBytes(nibbles);
    return model(
        21,
        GraphProto.newBuilder()
            .setName("mixed")
            .addInput(value("x", DataType.FLOAT, -1, 200))
            .addInitializer(floats("w", random, 1, 200, 200))
            .addInitializer(floats("b", random, 1, 200))
            .addInitializer(typed)
            .addInitializer(
                TensorProto.newBuilder()
                    .setName("nibbles")
                    .setDataType(DataType.INT4_VALUE)
                    .addDims(140_001)
                    .setRawData(ByteString.copyFrom(nibbles)))
            .addInitializer(
                TensorProto.newBuilder()
                    .setName("words")
                    .setDataType(DataType.STRING_VALUE)
                    .addDims(2)
                    .addStringData(ByteString.copyFromUtf8("one".repeat(50_000)))
                    .addStringData(ByteString.copyFromUtf8("two")))
            .addNode(node("Gemm", "g", List.of("x", "w", "b"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 200)));
  }

  private static byte[] written(OnnxModel model) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    ModelStream.write(model, new DataOutputStream(out));
    return out.toByteArray();
  }

  private static OnnxModel read(byte[] bytes) throws IOException {
    return ModelStream.read(new DataInputStream(new ByteArrayInputStream(bytes)), "saved");
  }

  @Test
  void whatIsWrittenIsRead() throws IOException {
    OnnxModel model = OnnxModel.of(mixed(), "mixed");
    byte[] bytes = written(model);
    int message = ByteBuffer.wrap(bytes).getInt();
    assertEquals(4 * 200 * 200 + 4 * 40_000 + 70_001, bytes.length - 4 - message);

    OnnxModel again = read(bytes);
    assertEquals(model.nodes(), again.nodes());
    for (OnnxInitializer i : model.initializers()) {
      OnnxInitializer other = again.constant(i.name());
      assertArrayEquals(i.dims(), other.dims(), i.name());
      assertEquals(i.type(), other.type(), i.name());
      if (i.type() == DataType.STRING) {
        assertEquals(i.message(), other.message());
      } else {
        assertEquals(i.data(), other.data(), i.name());
      }
    }
    assertArrayEquals(bytes, written(again));
  }

  /** Its data is a file without blocks on the disk. */
  @Test
  void modelsOfMoreThanAMessageAreWritten() throws IOException {
    long each = 3L << 28;
    GraphProto.Builder graph = GraphProto.newBuilder().setName("large");
    for (int i = 0; i < 3; i++) {
      graph.addInitializer(
          TensorProto.newBuilder()
              .setName("table" + i)
              .setDataType(DataType.FLOAT_VALUE)
              .addDims(each / 4)
              .setDataLocation(DataLocation.EXTERNAL)
              .addExternalData(OnnxTensors.entry("location", "zeros"))
              .addExternalData(OnnxTensors.entry("offset", Long.toString(i * each))));
    }
    graph.addNode(node("Add", "a", List.of("table0", "table1"), "y"));
    graph.addOutput(value("y", DataType.FLOAT, each / 4));
    try (RandomAccessFile zeros = new RandomAccessFile(folder.resolve("zeros").toFile(), "rw")) {
      zeros.setLength(3 * each);
    }
    Path file = folder.resolve("large.onnx");
    Files.write(file, model(13, graph).toByteArray());

    long[] count = {0};
    ModelStream.write(
        OnnxModel.read(file),
        new DataOutputStream(
            new OutputStream() {
              @Override
              public void write(int b) {
                count[0]++;
              }

              @Override
              public void write(byte[] bytes, int offset, int length) {
                count[0] += length;
              }
            }));
    assertTrue(count[0] > 3 * each && count[0] < 3 * each + 2048, count[0] + " bytes");
  }

  @Test
  void whatIsCutOffEndsEarly() throws IOException {
    byte[] bytes = written(OnnxModel.of(mixed(), "mixed"));
    int message = ByteBuffer.wrap(bytes).getInt();
    for (int length : new int[] {0, 3, 4 + message / 2, 4 + message, bytes.length - 1}) {
      assertThrows(EOFException.class, () -> read(Arrays.copyOf(bytes, length)), length + "");
    }
  }

  @Test
  void whatIsNoModelIsRefused() throws IOException {
    byte[] negative = {-1, -1, -1, -1};
    assertEquals(
        "saved is damaged: a message of -1 bytes",
        assertThrows(InputException.class, () -> read(negative)).getMessage());
    byte[] text = "no model, but a text".getBytes(StandardCharsets.UTF_8);
    byte[] bytes = ByteBuffer.allocate(4 + text.length).putInt(text.length).put(text).array();
    assertThrows(InputException.class, () -> read(bytes));
  }

  /** Sizes come from the stream, so they are checked before room is made for them. */
  @Test
  void largerTensorsThanCanBeUsedAreRefused() throws IOException {
    ModelProto.Builder model = mixed().toBuilder();
    model
        .getGraphBuilder()
        .getInitializerBuilder(0)
        .clearRawData()
        .setDims(0, 1L << 20)
        .setDims(1, 1L << 20)
        .setDataLocation(DataLocation.EXTERNAL)
        .addExternalData(OnnxTensors.entry("location", "in memory"));
    byte[] message = model.build().toByteArray();
    byte[] bytes =
        ByteBuffer.allocate(4 + message.length).putInt(message.length).put(message).array();
    assertEquals(
        "saved: the initializer w has 4398046511104 bytes; at most 2147483647 can be used",
        assertThrows(InputException.class, () -> read(bytes)).getMessage());
  }
}
