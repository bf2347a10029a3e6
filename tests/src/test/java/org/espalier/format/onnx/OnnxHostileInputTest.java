package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.google.protobuf.ByteString;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Files that lie: each is refused with a message that says what and where. */
class OnnxHostileInputTest {
  @TempDir Path folder;

  private static void assertRefused(byte[] bytes, String... parts) {
    InputException e =
        assertThrows(
            InputException.class, () -> OnnxModel.read(ByteBuffer.wrap(bytes), "the model"));
    for (String part : parts) {
      assertTrue(e.getMessage().contains(part), e.getMessage());
    }
  }

  private static void assertRefused(ModelProto model, String... parts) {
    assertRefused(model.toByteArray(), parts);
  }

  /** The small model with its first initializer, w FLOAT[8, 6], changed. */
  private static ModelProto withTensor(Consumer<TensorProto.Builder> change) {
    ModelProto.Builder m = SmallModels.mlp().toBuilder();
    change.accept(m.getGraphBuilder().getInitializerBuilder(0));
    return m.build();
  }

  @Test
  void whatIsNoModel() throws IOException {
    assertRefused(new byte[0], "not an ONNX model", "empty");
    assertRefused("{\"a\": 1}".getBytes(), "not an ONNX model");
    assertRefused(ModelProto.newBuilder().setProducerName("x").build(), "holds no graph");
    byte[] random = new byte[1000];
    for (int seed = 0; seed < 50; seed++) {
      new Random(seed).nextBytes(random);
      assertRefused(random.clone(), "the model");
    }
    assertThrows(InputException.class, () -> OnnxModel.read(folder.resolve("none.onnx")));
    assertThrows(InputException.class, () -> OnnxModel.read(folder));
    assertThrows(InputException.class, () -> OnnxModel.read(Path.of("/dev/zero")));
    Path large = folder.resolve("large.onnx");
    try (RandomAccessFile f = new RandomAccessFile(large.toFile(), "rw")) {
      f.setLength(3L << 30);
    }
    InputException e = assertThrows(InputException.class, () -> OnnxModel.read(large));
    assertTrue(e.getMessage().contains("external data"), e.getMessage());
  }

  @Test
  void aTruncatedModelAtEveryLength() {
    byte[] bytes = SmallModels.mlp().toByteArray();
    int accepted = 0;
    for (int n = 0; n < bytes.length; n++) {
      byte[] part = Arrays.copyOf(bytes, n);
      try {
        OnnxModel.read(ByteBuffer.wrap(part), "part");
        accepted++;
      } catch (InputException e) {
        assertTrue(e.getMessage().startsWith("part"), e.getMessage());
      }
    }
    assertEquals(0, accepted);
  }

  @Test
  void lengthsBeyondTheFile() {
    // Field 7 (the graph) with a length of 2^31 - 1, then of 2^63 and of eleven bytes.
    assertRefused(new byte[] {0x3A, -1, -1, -1, -1, 7}, "a field of 2147483647 bytes");
    byte[] huge = {0x3A, -128, -128, -128, -128, -128, -128, -128, -128, -128, 1};
    assertRefused(huge, "a field of 9223372036854775808 bytes");
    byte[] endless = new byte[12];
    Arrays.fill(endless, (byte) -1);
    assertRefused(endless, "more than 10 bytes");
    assertRefused(new byte[] {0x3B}, "wire type 3");
    assertRefused(new byte[] {0x02, 0}, "field number 0");
  }

  @Test
  void deepNestingIsRefusedWithoutRecursion() {
    // An attribute holds a graph, which holds a node, which holds an attribute, and so on.
    byte[] tags = {0x32, 0x2A, 0x0A};
    byte[] message = new byte[0];
    for (int i = 0; i < 3_000; i++) {
      message = field(tags[i % 3], message);
    }
    assertRefused(field((byte) 0x3A, message), "nested deeper than 100");
  }

  /** A length-delimited field on the wire. */
  private static byte[] field(byte tag, byte[] content) {
    ByteArrayOutputStream out = new ByteArrayOutputStream(content.length + 6);
    out.write(tag);
    int n = content.length;
    for (; n > 127; n >>>= 7) {
      out.write(n & 127 | 128);
    }
    out.write(n);
    out.writeBytes(content);
    return out.toByteArray();
  }

  @Test
  void manySmallPartsDoNotFillTheHeap() {
    // 64 MB of empty nodes would become 32 million objects of 100 bytes and more.
    byte[] nodes = new byte[64 << 20];
    for (int i = 0; i < nodes.length; i += 2) {
      nodes[i] = 0x0A;
    }
    assertTimeoutPreemptively(
        Duration.ofSeconds(20),
        () -> assertRefused(field((byte) 0x3A, nodes), "so many parts", "-Xmx"));
  }

  @Test
  void dimensionsThatDoNotFitTheData() {
    assertRefused(withTensor(t -> t.setDims(0, 7)), "initializer w", "192 bytes", "take 168");
    assertRefused(withTensor(t -> t.setDims(0, -8)), "initializer w", "negative dimension -8");
    assertRefused(withTensor(t -> t.setDims(0, Long.MAX_VALUE)), "initializer w", "64 bits");
    assertRefused(withTensor(t -> t.setDims(0, 1L << 60)), "initializer w", "64 bits");
    // 2^32 * 2^32 is 0 modulo 2^64: it must not pass for an empty tensor.
    assertRefused(
        withTensor(t -> t.setDims(0, 1L << 32).setDims(1, 1L << 32).setRawData(ByteString.EMPTY)),
        "64 bits");
    assertRefused(withTensor(t -> t.setDataType(0)), "unknown data type 0");
    assertRefused(withTensor(t -> t.setDataType(99)), "unknown data type 99");
    assertRefused(withTensor(t -> t.setDataType(DataType.STRING_VALUE)), "strings as raw data");
    assertRefused(withTensor(t -> t.clearRawData()), "0 values of FLOAT", "take 48");
    assertRefused(withTensor(t -> t.addFloatData(1)), "more than one kind");
    assertRefused(
        withTensor(t -> t.clearRawData().addInt64Data(1)), "0 values of FLOAT", "take 48");
    assertRefused(
        withTensor(t -> t.setSegment(TensorProto.Segment.newBuilder().setBegin(0))), "segments");
  }

  @Test
  void tensorsInsideNodesAreCheckedToo() {
    NodeProto constant =
        NodeProto.newBuilder()
            .setOpType("Constant")
            .setName("c")
            .addOutput("k")
            .addAttribute(
                AttributeProto.newBuilder()
                    .setName("value")
                    .setT(floats("t", new Random(1), 1, 4).toBuilder().setDims(0, 5)))
            .build();
    ModelProto.Builder m = SmallModels.mlp().toBuilder();
    m.getGraphBuilder().addNode(constant);
    assertRefused(m.build(), "tensor t of the node Constant 'c'", "16 bytes");
  }

  @Test
  void nodesThatLackInputs() {
    for (int node = 0; node < 4; node++) {
      ModelProto.Builder m = SmallModels.mlp().toBuilder();
      NodeProto.Builder n = m.getGraphBuilder().getNodeBuilder(node);
      if (n.getOpType().equals("Relu")) {
        continue; // nothing looks into it
      }
      String first = n.getInput(0);
      n.clearInput().addInput(first);
      assertRefused(m.build(), n.getOpType(), n.getName(), "1 inputs", "at least 2");
    }
  }

  @ParameterizedTest
  @CsvSource({"Attention, 3", "RotaryEmbedding, 3", "RMSNormalization, 2", "TensorScatter, 2"})
  void nodesOfNewOperatorsThatLackInputs(String op, int least) {
    ModelProto.Builder m = SmallModels.mlp().toBuilder();
    NodeProto.Builder n = m.getGraphBuilder().getNodeBuilder(0).setOpType(op);
    String first = n.getInput(0);
    n.clearInput().addInput(first);
    assertRefused(m.build(), op, n.getName(), "1 inputs", "at least " + least);
  }

  @Test
  void windowsThatDoNotFit() {
    for (String op : List.of("Conv", "ConvTranspose")) {
      for (String name : List.of("strides", "dilations", "kernel_shape", "output_padding")) {
        refusedWindow(op, list(name, 1), name, "2 axes, so 2 are needed");
        refusedWindow(op, list(name, 1, 1, 1), name, "[1, 1, 1]", "so 2 are needed");
        refusedWindow(op, list(name, 1, -1), name, "-1 cannot be");
        refusedWindow(op, list(name, 1L << 40, 1), name, "1099511627776 cannot be");
      }
      refusedWindow(op, list("strides", 0, 1), "strides", "0 cannot be");
      refusedWindow(op, list("pads", 1, 1), "pads", "so 4 are needed");
      refusedWindow(op, list("pads", 1, 1, 1, 1, 1), "pads", "so 4 are needed");
      refusedWindow(op, attribute("group", 0), "its group is 0");
      refusedWindow(op, attribute("group", -2), "its group is -2");
      refusedWindow(op, attribute("group", 3), "4", "3 groups");
    }
    for (String op : List.of("MaxPool", "AveragePool", "LpPool")) {
      refusedWindow(op, list("strides", 1), "strides", "so 2 are needed");
      refusedWindow(op, list("strides", 0, 0), "strides", "0 cannot be");
      refusedWindow(op, list("pads", 1, 1, 1), "pads", "so 4 are needed");
    }
    for (String op : List.of("Conv", "MaxPool", "AveragePool", "LpPool")) {
      refusedWindow(op, list("pads", 1, 1, 1, -1), "pads", "-1 cannot be");
    }
  }

  /** Nodes say how many axes there are where the graph does not. */
  @Test
  void windowsBehindNodesThatChangeTheRank() {
    for (NodeProto before :
        List.of(
            node("Flatten", "before", List.of("x"), "v"),
            node("Relu", "before", List.of("flat"), "v"),
            node("Add", "before", List.of("x", "deep"), "v"))) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .addInput(value("x", DataType.FLOAT, 1, 4, 8, 8))
              .addInitializer(floats("w", new Random(1), 1, 4, 4, 3, 3))
              .addInitializer(floats("flat", new Random(1), 1, 4, 4))
              .addInitializer(floats("deep", new Random(1), 1, 1, 1, 1, 1, 8))
              .addNode(before)
              .addNode(node("Conv", "windows", List.of("v", "w"), "y"))
              .addOutput(value("y", DataType.FLOAT, -1, -1, -1, -1));
      assertRefused(SmallModels.model(13, g), "Conv 'windows'", "axes; 4 are right");
    }
  }

  @Test
  void recurrentWeightsThatDoNotFitEachOther() {
    long[] w = {2, 24, 8};
    long[] r = {2, 24, 6};
    long[] b = {2, 48};
    assertTrue(OnnxModel.of(recurrent(w, r, b), "lstm").nodes().size() == 1);
    assertRefused(recurrent(r, w, b), "LSTM 'lstm'", "R have the shape [2, 24, 8]");
    assertRefused(recurrent(w, new long[] {24, 6}, b), "R have the shape [24, 6]", "4 * hidden");
    assertRefused(recurrent(new long[] {1, 24, 8}, r, b), "W have the shape [1, 24, 8]", "[2, 24,");
    assertRefused(recurrent(w, r, new long[] {2, 24}), "B have the shape [2, 24]", "[2, 48] is");
    ModelProto.Builder flat = recurrent(w, r, b).toBuilder();
    flat.getGraphBuilder().setInput(0, value("x", DataType.FLOAT, 5, 8));
    assertRefused(flat.build(), "LSTM 'lstm'", "its input has 2 axes; 3 are right");
  }

  private static ModelProto recurrent(long[] w, long[] r, long[] b) {
    return SmallModels.model(
        13,
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, 5, 1, 8))
            .addInitializer(floats("w", new Random(1), 1, w))
            .addInitializer(floats("r", new Random(1), 1, r))
            .addInitializer(floats("b", new Random(1), 1, b))
            .addNode(node("LSTM", "lstm", List.of("x", "w", "r", "b"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, -1, -1, -1)));
  }

  @Test
  void axesBeyondAllTensors() {
    for (long axis : new long[] {1L << 61, -(1L << 31) - 1}) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .addInput(value("x", DataType.FLOAT, 3))
              .addNode(node("Softmax", "softmax", List.of("x"), "y", attribute("axis", axis)))
              .addOutput(value("y", DataType.FLOAT, 3));
      assertRefused(SmallModels.model(13, g), "Softmax", "its axis is " + axis);
    }
  }

  @Test
  void wholeNumbersAreNotDividedByZero() {
    for (String op : List.of("Div", "Mod")) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .addInput(value("x", DataType.INT64, 3))
              .addInitializer(SmallModels.int64s("d", 2, 0, 256))
              .addNode(node(op, "divide", List.of("x", "d"), "y"))
              .addOutput(value("y", DataType.INT64, 3));
      assertRefused(SmallModels.model(13, g), op + " 'divide'", "divides whole numbers by d");
      g.setInitializer(0, SmallModels.int64s("d", 2, 1, 256));
      assertTrue(OnnxModel.of(SmallModels.model(13, g), "divided").nodes().size() == 1);
    }
  }

  @Test
  void windowsOfAnotherRankThanTheirInput() {
    for (long[] kernel : new long[][] {{}, {3}, {3, 3, 3}}) {
      long[] dims = new long[kernel.length + 2];
      Arrays.fill(dims, 4);
      for (String op : List.of("Conv", "ConvTranspose")) {
        GraphProto.Builder g =
            GraphProto.newBuilder()
                .addInput(value("x", DataType.FLOAT, 1, 4, 8, 8))
                .addInitializer(floats("w", new Random(1), 1, dims))
                .addNode(node(op, "windows", List.of("x", "w"), "y"))
                .addOutput(value("y", DataType.FLOAT, -1, -1, -1, -1));
        assertRefused(SmallModels.model(13, g), op + " 'windows'", "axes");
      }
    }
  }

  @Test
  void normsWithoutGroups() {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, 1, 4, 8))
            .addInitializer(floats("w", new Random(1), 1, 4))
            .addNode(
                node(
                    "GroupNormalization",
                    "norm",
                    List.of("x", "w", "w"),
                    "y",
                    attribute("num_groups", 0)))
            .addOutput(value("y", DataType.FLOAT, 1, 4, 8));
    assertRefused(SmallModels.model(21, g), "GroupNormalization 'norm'", "num_groups is 0");
  }

  private static void refusedWindow(String op, AttributeProto attribute, String... parts) {
    boolean pool = op.endsWith("Pool");
    NodeProto.Builder n =
        node(op, "windows", pool ? List.of("x") : List.of("x", "w"), "y").toBuilder();
    if (pool) {
      n.addAttribute(list("kernel_shape", 2, 2));
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, 1, 4, 8, 8))
            .addInitializer(floats("w", new Random(1), 1, 4, 4, 3, 3))
            .addNode(n.addAttribute(attribute))
            .addOutput(value("y", DataType.FLOAT, -1, -1, -1, -1));
    String[] all = Arrays.copyOf(parts, parts.length + 1);
    all[parts.length] = op + " 'windows'";
    assertRefused(SmallModels.model(13, g), all);
  }

  @Test
  void brokenGraphs() {
    GraphProto g = SmallModels.mlp().getGraph();
    assertRefused(
        SmallModels.model(13, g.toBuilder().addInitializer(g.getInitializer(0))),
        "two initializers of the name w");
    assertRefused(
        SmallModels.model(
            13, g.toBuilder().addInitializer(g.getInitializer(0).toBuilder().clearName())),
        "without a name");
    assertRefused(
        SmallModels.model(13, g.toBuilder().addNode(node("Relu", "r2", List.of("h"), "h"))),
        "Relu 'r2' defines h");
    assertRefused(
        SmallModels.model(13, g.toBuilder().addNode(node("Relu", "r2", List.of("q"), "z"))),
        "Relu 'r2' uses q");
    assertRefused(
        SmallModels.model(13, g.toBuilder().addOutput(value("q", DataType.FLOAT, 1))),
        "nothing defines the graph output 'q'");
    assertRefused(
        SmallModels.model(13, g.toBuilder().addInput(value("x", DataType.FLOAT, 1))),
        "two graph inputs of the name 'x'");
    assertRefused(
        SmallModels.mlp().toBuilder().clearOpsetImport().build(), "imports no operator set");
    assertRefused(SmallModels.model(-1, g.toBuilder()), "version -1");
  }

  private Path external(String... entries) throws IOException {
    ModelProto m =
        withTensor(
            t -> {
              t.clearRawData().setDataLocation(DataLocation.EXTERNAL);
              for (int i = 0; i < entries.length; i += 2) {
                t.addExternalData(OnnxTensors.entry(entries[i], entries[i + 1]));
              }
            });
    return Files.write(folder.resolve("external.onnx"), m.toByteArray());
  }

  private void assertExternalRefused(String part, String... entries) throws IOException {
    Path file = external(entries);
    InputException e = assertThrows(InputException.class, () -> OnnxModel.read(file));
    assertTrue(e.getMessage().contains(part), e.getMessage());
    assertTrue(e.getMessage().contains("initializer w"), e.getMessage());
  }

  @Test
  void externalDataStaysInsideTheFolder() throws IOException {
    Path outside = Files.createTempDirectory("espalier-outside");
    try {
      Path secret = Files.write(outside.resolve("secret"), new byte[1000]);
      Files.createSymbolicLink(folder.resolve("link"), secret);
      Files.createSymbolicLink(folder.resolve("linked"), outside);
      String sub = "points to ";
      assertExternalRefused(sub, "location", secret.toString());
      assertExternalRefused(sub, "location", "../" + outside.getFileName() + "/secret");
      assertExternalRefused(sub, "location", "a/../../secret");
      assertExternalRefused("a link to", "location", "link");
      assertExternalRefused("a link to", "location", "linked/secret");
      assertExternalRefused("no valid path", "location", "a\0b");
    } finally {
      Files.delete(outside.resolve("secret"));
      Files.delete(outside);
    }
  }

  /** As caches of the hub have them: links, to files in one folder. */
  @Test
  void externalDataOfALinkedModelLiesBesideTheModelItself() throws IOException {
    Path blobs = Files.createDirectory(folder.resolve("blobs"));
    Path snapshot = Files.createDirectory(folder.resolve("snapshot"));
    Files.move(external("location", "d.bin"), blobs.resolve("model"));
    Files.write(blobs.resolve("data"), new byte[1000]);
    Path link = snapshot.resolve("model.onnx");
    Files.createSymbolicLink(link, Path.of("../blobs/model"));
    Files.createSymbolicLink(snapshot.resolve("d.bin"), Path.of("../blobs/data"));
    assertEquals(2, OnnxModel.read(link).files().size());
    Files.delete(snapshot.resolve("d.bin"));
    Files.write(folder.resolve("secret"), new byte[1000]);
    Files.createSymbolicLink(snapshot.resolve("d.bin"), Path.of("../secret"));
    InputException e = assertThrows(InputException.class, () -> OnnxModel.read(link));
    assertTrue(e.getMessage().contains("a link to"), e.getMessage());
  }

  @Test
  void externalDataThatIsNotThere() throws IOException {
    Files.write(folder.resolve("data"), new byte[200]);
    Files.createDirectory(folder.resolve("sub"));
    assertExternalRefused("which is missing", "location", "none");
    assertExternalRefused("not a readable file", "location", "sub");
    assertExternalRefused("without a location");
    assertExternalRefused("without a location", "location", "");
    assertExternalRefused(
        "'location' of its external data twice", "location", "a", "location", "b");
    assertExternalRefused("has only 200", "location", "data", "offset", "9");
    assertExternalRefused("has only 200", "location", "data", "offset", "999999999999999999");
    assertExternalRefused("not a number", "location", "data", "offset", "9999999999999999999");
    assertExternalRefused("not a number", "location", "data", "offset", "-1");
    assertExternalRefused("not a number", "location", "data", "length", "1e3");
    assertExternalRefused("names 100 bytes", "location", "data", "length", "100");
    Path good = external("location", "data", "offset", "8", "length", "192");
    assertEquals(192, OnnxModel.read(good).initializer("w").data().remaining());
    byte[] bytes = Files.readAllBytes(good);
    assertRefused(bytes, "the model is not a file");
  }
}
