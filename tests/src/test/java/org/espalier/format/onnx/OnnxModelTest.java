package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.MappedByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class OnnxModelTest {
  /** A class that is given first, as a number, is no output that training follows, nor is what only it needs. */
  @Test
  void theMainOutputIsTheFirstOfFloats() {
    GraphProto.Builder g = SmallModels.mlp().getGraph().toBuilder();
    g.addInitializer(SmallModels.int64s("shift", 1));
    g.addNode(SmallModels.line("class ArgMax y", SmallModels.attribute("axis", 1)));
    g.addNode(SmallModels.line("number Add class shift"));
    g.clearOutput();
    g.addOutput(SmallModels.value("number", DataType.INT64, -1, 1));
    g.addOutput(SmallModels.value("y", DataType.FLOAT, -1, 4));
    g.addOutput(SmallModels.value("a", DataType.FLOAT, -1, 6));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "numbers");
    assertEquals("y", model.mainOutput().getName());
    OnnxModel floats = model.withFloatOutputs();
    assertEquals(Set.of("y", "a"), floats.outputNames());
    assertEquals(
        List.of("MatMul", "Add", "Relu", "Gemm"),
        floats.nodes().stream().map(NodeProto::getOpType).toList());
    assertEquals(6, model.nodes().size());
    OnnxModel first = OnnxModel.of(SmallModels.mlp(), "mlp");
    assertEquals("y", first.mainOutput().getName());
    assertEquals(first.nodes(), first.withFloatOutputs().nodes());
    ValueInfoProto.Builder unknown = SmallModels.value("y", DataType.FLOAT, -1, 4).toBuilder();
    unknown.getTypeBuilder().getTensorTypeBuilder().setElemType(99);
    g.setOutput(1, unknown);
    assertEquals("a", OnnxModel.of(SmallModels.model(13, g), "unknown").mainOutput().getName());
    g.clearOutput().addOutput(SmallModels.value("number", DataType.INT64, -1, 1));
    OnnxModel none = OnnxModel.of(SmallModels.model(13, g), "none");
    assertEquals("number", none.mainOutput().getName());
    assertEquals(none.nodes(), none.withFloatOutputs().nodes());
  }

  @TempDir Path folder;

  private Path save(ModelProto model) throws IOException {
    return Files.write(folder.resolve("in.onnx"), model.toByteArray());
  }

  @Test
  void memoryOfAnyKindGivesTheSameWeights() {
    byte[] bytes = SmallModels.mlp().toByteArray();
    ByteBuffer direct = ByteBuffer.allocateDirect(bytes.length).put(bytes).flip();
    ByteBuffer within = ByteBuffer.allocate(bytes.length + 3).position(3).put(bytes).position(3);
    for (ByteBuffer memory : List.of(ByteBuffer.wrap(bytes), direct, within)) {
      OnnxModel model = OnnxModel.read(memory, "memory");
      for (TensorProto t : SmallModels.mlp().getGraph().getInitializerList()) {
        OnnxInitializer read = model.initializer(t.getName());
        assertEquals(OnnxInitializer.ofMessage(t).floats(), read.floats(), t.getName());
        assertEquals(
            OnnxInitializer.ofMessage(t).data(4, 8), read.data(4, 8), "a part of " + t.getName());
      }
    }
  }

  @Test
  void anUnchangedModelIsWrittenEqual() throws IOException {
    ModelProto proto = SmallModels.cnn();
    OnnxModel.read(save(proto)).write(folder.resolve("out.onnx"));
    assertSame(proto, ModelProto.parseFrom(Files.readAllBytes(folder.resolve("out.onnx"))));
    assertEquals(2, count());
  }

  @Test
  void dataIsDirectLittleEndianAlignedAndReadOnly() throws IOException {
    // Names of different lengths move the data to every offset modulo 4.
    for (String pad : List.of("", "x", "xx", "xxx")) {
      ModelProto proto = SmallModels.mlp().toBuilder().setProducerName(pad).build();
      OnnxInitializer w = OnnxModel.read(save(proto)).initializer("w");
      assertEquals("w FLOAT[8, 6]", w.toString());
      ByteBuffer data = w.data();
      assertTrue(data.isDirect() && data.isReadOnly());
      assertEquals(ByteOrder.LITTLE_ENDIAN, data.order());
      assertEquals(0, data.alignmentOffset(0, 4));
      ByteBuffer expected = proto.getGraph().getInitializer(0).getRawData().asReadOnlyByteBuffer();
      assertEquals(expected, data);
      assertEquals(expected.slice(8, 12), w.data(8, 12));
      assertThrows(IndexOutOfBoundsException.class, () -> w.data(8, 200));
    }
  }

  @Test
  void typedFieldsReadAsRawData() {
    TensorProto.Builder t = TensorProto.newBuilder().setName("t").addDims(3);
    GraphProto.Builder g = SmallModels.mlp().getGraph().toBuilder();
    g.addInitializer(
        t.clone()
            .setName("f")
            .setDataType(DataType.FLOAT_VALUE)
            .addFloatData(1)
            .addFloatData(-2)
            .addFloatData(0.5f));
    g.addInitializer(
        t.clone()
            .setName("l")
            .setDataType(DataType.INT64_VALUE)
            .addInt64Data(1)
            .addInt64Data(-2)
            .addInt64Data(1L << 40));
    g.addInitializer(
        t.clone()
            .setName("i8")
            .setDataType(DataType.INT8_VALUE)
            .addInt32Data(1)
            .addInt32Data(-128)
            .addInt32Data(127));
    g.addInitializer(
        t.clone()
            .setName("f16")
            .setDataType(DataType.FLOAT16_VALUE)
            .addInt32Data(0x3C00)
            .addInt32Data(0xFFFF)
            .addInt32Data(0));
    g.addInitializer(
        t.clone()
            .setName("i4")
            .setDataType(DataType.INT4_VALUE)
            .addInt32Data(0x21)
            .addInt32Data(0x0F));
    g.addInitializer(
        t.clone()
            .setName("bad")
            .setDataType(DataType.UINT8_VALUE)
            .addInt32Data(0)
            .addInt32Data(256)
            .addInt32Data(1));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "typed");
    assertEquals(-2f, model.initializer("f").data().getFloat(4));
    assertEquals(1L << 40, model.initializer("l").data().getLong(16));
    assertEquals(-128, model.initializer("i8").data().get(1));
    assertEquals((short) 0xFFFF, model.initializer("f16").data().getShort(2));
    assertEquals(2, model.initializer("i4").data().remaining());
    InputException e = assertThrows(InputException.class, () -> model.initializer("bad").data());
    assertEquals("the tensor bad holds 256, which is no UINT8", e.getMessage());
  }

  /** Which would go on to say what the initializer was. */
  @Test
  void anInputGoesWhoseInitializerGetsOtherDimensions() {
    ModelProto.Builder proto = SmallModels.mlp().toBuilder().setIrVersion(3);
    TensorProto w = proto.getGraph().getInitializer(0);
    proto
        .getGraphBuilder()
        .addInput(SmallModels.value(w.getName(), DataType.FLOAT, w.getDims(0), w.getDims(1)));
    OnnxModel model = OnnxModel.of(proto.build(), "old");
    OnnxInitializer given = model.initializer(w.getName());
    model.replaceInitializer(given.withName(w.getName()));
    assertEquals(3, model.toProto().getIrVersion());
    assertEquals(proto.getGraph().getInputCount(), model.toProto().getGraph().getInputCount());

    float[] fewer = new float[(int) given.elements() / 2];
    long[] dims = {given.dims()[0], given.dims()[1] / 2};
    model.replaceInitializer(OnnxInitializer.floats(w.getName(), dims, fewer));
    assertEquals(4, model.toProto().getIrVersion());
    assertTrue(
        model.toProto().getGraph().getInputList().stream()
            .noneMatch(input -> input.getName().equals(w.getName())));
  }

  @Test
  void initializersAreReplacedInPlace() {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    model.replaceInitializer(
        OnnxInitializer.bytes("w", DataType.INT8, new long[] {2}, (byte) 3, (byte) -4));
    TensorProto w = model.toProto().getGraph().getInitializer(0);
    assertEquals("w", w.getName());
    assertArrayEquals(new byte[] {3, -4}, w.getRawData().toByteArray());
    OnnxInitializer none = OnnxInitializer.floats("none", new long[0], 1);
    assertThrows(IllegalArgumentException.class, () -> model.replaceInitializer(none));
    assertThrows(
        IllegalArgumentException.class,
        () -> OnnxInitializer.floats("wrong", new long[] {2, 2}, 1, 2, 3));
  }

  @Test
  void addedInitializersNeedAFreeName() {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    assertThrows(
        IllegalArgumentException.class,
        () -> model.addInitializer(OnnxInitializer.floats("h", new long[0], 1)));
    OnnxModel.Names names = model.names();
    assertEquals("h_1", names.unique("h"));
    assertEquals("h_2", names.unique("h"));
    assertEquals("new", names.unique("new"));
    model.addInitializer(OnnxInitializer.floats("h_1", new long[0], 1));
    assertEquals(List.of("h_1"), model.removeUnusedInitializers());
    assertNull(model.initializer("h_1"));
  }

  @Test
  void constantsOfOldFormatsStopBeingInputs() {
    ModelProto.Builder old = SmallModels.mlp().toBuilder().setIrVersion(3);
    old.getGraphBuilder().addInput(SmallModels.value("w", DataType.FLOAT, 8, 6));
    OnnxModel model = OnnxModel.of(old.build(), "old");
    assertEquals(1, model.inputs().size());
    model.addInitializer(OnnxInitializer.floats("s", new long[0], 1));
    assertEquals(1, model.toProto().getGraph().getInputCount());
    assertEquals(4, model.irVersion());
  }

  @Test
  void nodesOutOfOrderAreRefusedAndChangeNothing() {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    List<NodeProto> nodes = new ArrayList<>(model.nodes());
    nodes.add(nodes.remove(0));
    InputException e = assertThrows(InputException.class, () -> model.setNodes(nodes));
    assertTrue(e.getMessage().contains("Add '/layer/Add' uses h"), e.getMessage());
    assertEquals("MatMul", model.nodes().get(0).getOpType());
  }

  /** Some converters append what they add, and ONNX Runtime sorts what it reads. */
  @Test
  void nodesOutOfOrderAreSorted() {
    ModelProto right = SmallModels.mlp();
    List<NodeProto> nodes = new ArrayList<>(right.getGraph().getNodeList());
    for (int round = 0; round < 20; round++) {
      Collections.shuffle(nodes, new Random(round));
      ModelProto.Builder wrong = right.toBuilder();
      wrong.getGraphBuilder().clearNode().addAllNode(nodes);
      assertEquals(right.getGraph().getNodeList(), OnnxModel.of(wrong.build(), "m").nodes());
    }
    ModelProto.Builder chain = right.toBuilder();
    chain.getGraphBuilder().clearNode();
    for (int i = 100_000; i > 0; i--) {
      chain
          .getGraphBuilder()
          .addNode(SmallModels.node("Relu", "", List.of(i == 1 ? "x" : "v" + (i - 1)), "v" + i));
    }
    chain.getGraphBuilder().addNode(SmallModels.node("Relu", "", List.of("v100000"), "y"));
    List<NodeProto> sorted = OnnxModel.of(chain.build(), "chain").nodes();
    assertEquals("v1", sorted.get(0).getOutput(0));
    assertEquals("y", sorted.get(100_000).getOutput(0));
    ModelProto.Builder cycle = right.toBuilder();
    cycle.getGraphBuilder().addNode(SmallModels.node("Add", "", List.of("p", "x"), "q"));
    cycle.getGraphBuilder().addNode(SmallModels.node("Add", "", List.of("q", "x"), "p"));
    InputException e =
        assertThrows(InputException.class, () -> OnnxModel.of(cycle.build(), "cycle"));
    assertTrue(e.getMessage().contains("which no graph input, initializer or earlier node"));
  }

  @Test
  void namesOfSubGraphsAreTheirOwn() {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(SmallModels.node("Relu", "inner", List.of("x"), "z"))
            .addOutput(SmallModels.value("z", DataType.FLOAT, -1));
    NodeProto choice = SmallModels.choice("choice", "c", "y", branch);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(SmallModels.value("x", DataType.FLOAT, -1))
            .addInput(SmallModels.value("c", DataType.BOOL))
            .addNode(choice)
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "if");
    assertEquals(List.of(model.nodes().get(0)), model.consumers().get("x"));
    g.addNode(SmallModels.node("Relu", "outer", List.of("z"), "late"));
    assertThrows(InputException.class, () -> OnnxModel.of(SmallModels.model(13, g), "z is inside"));
  }

  /** Small ones too, where they are written to be mapped: no tensor is copied when it is read. */
  @Test
  void dataBesideAModelAreMapped() throws IOException {
    ModelProto.Builder b = SmallModels.mlp().toBuilder();
    b.getGraphBuilder().addInitializer(SmallModels.floats("large", new Random(3), 1, 1000, 3));
    ModelProto proto = b.build();
    OnnxModel model = OnnxModel.read(save(proto));
    Path out = folder.resolve("mapped.onnx");
    assertEquals(List.of(out, folder.resolve("mapped.onnx.data")), model.writeToMap(out));
    OnnxModel again = OnnxModel.read(out);
    assertSame(proto, again.toProto());
    ByteBuffer large = again.constant("large").data();
    assertTrue(large instanceof MappedByteBuffer mapped && mapped.isDirect(), large.toString());
    assertThrows(InputException.class, () -> again.writeToMap(out), "it is the input");
  }

  @Test
  void largeModelsGoToExternalDataAndComeBack() throws IOException {
    Random random = new Random(3);
    ModelProto.Builder b = SmallModels.mlp().toBuilder();
    b.getGraphBuilder().addInitializer(SmallModels.floats("large", random, 1, 1000, 3));
    b.getGraphBuilder().addInitializer(SmallModels.floats("larger", random, 1, 7000));
    ModelProto proto = b.build();
    OnnxModel model = OnnxModel.read(save(proto));
    Path out = folder.resolve("out.onnx");
    Path data = folder.resolve("out.onnx.data");
    assertEquals(List.of(out, data), model.write(out, 10_000));
    assertTrue(Files.size(out) < 10_000);
    assertTrue(Files.exists(data));
    OnnxModel again = OnnxModel.read(out);
    assertSame(proto, again.toProto());
    assertEquals(List.of(out, data), again.files());

    // Written again, the data takes the other name, so that the old model stays whole until then.
    assertEquals(List.of(out, folder.resolve("out.onnx.data.1")), model.write(out, 10_000));
    assertSame(proto, OnnxModel.read(out).toProto());
    assertTrue(Files.exists(folder.resolve("out.onnx.data.1")));
    assertEquals(3, count());

    // The data of the input is never overwritten, under whatever name.
    InputException e =
        assertThrows(
            InputException.class,
            () -> OnnxModel.read(out).write(folder.resolve("out.onnx.data.1")));
    assertTrue(e.getMessage().contains("is the input"), e.getMessage());
    assertThrows(InputException.class, () -> OnnxModel.read(out).write(out));

    // What cannot be split is refused, and nothing is left.
    assertThrows(InputException.class, () -> model.write(folder.resolve("no.onnx"), 100));
    assertEquals(3, count());
  }

  /** The messages are too long to be printed by assertEquals. */
  private static void assertSame(ModelProto expected, ModelProto actual) {
    assertTrue(expected.equals(actual), "the models differ");
  }

  private long count() throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.count();
    }
  }
}
