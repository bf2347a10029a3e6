package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.sun.management.ThreadMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.StaticQuantizer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/**
 * Mutated models: each is refused with an {@link InputException} or can be inspected, quantized and
 * written; nothing else is thrown, nothing hangs, and no small file allocates much. A failure names
 * its seed. {@code -Despalier.fuzz.seconds=600} runs longer than the suite does, {@code
 * -Despalier.fuzz.seed=N} starts elsewhere.
 */
class OnnxFuzzTest {
  private static final long SECONDS = Long.getLong("espalier.fuzz.seconds", 6);
  private static final long SEED = Long.getLong("espalier.fuzz.seed", 1);

  /** A megabyte and fifty times a model of some kilobytes; the protobuf classes load lazily. */
  private static final long ALLOCATION = 24L << 20;

  @TempDir Path folder;

  @Test
  @Timeout(value = 2, unit = TimeUnit.HOURS)
  void mutatedModelsAreRefusedOrWork() throws IOException {
    List<byte[]> models = new ArrayList<>();
    for (ModelProto m :
        List.of(
            SmallModels.mlp(),
            SmallModels.cnn(),
            withSubGraph(),
            typed(),
            external(),
            images(),
            SmallDecoder.withPast(1, 20, 8, 1),
            SmallDecoder.tied(1, 20, 8, 1),
            RuntimeModels.decoder(RuntimeModels.Form.EXPORTED, 1, 20, 1),
            HalfModels.of(SmallModels.cnn(), DataType.FLOAT16))) {
      models.add(m.toByteArray());
    }
    Files.write(folder.resolve("data"), new byte[4096]);
    ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS);
    int refused = 0;
    int accepted = 0;
    for (long seed = SEED; System.nanoTime() < end; seed++) {
      Random random = new Random(seed);
      byte[] bytes = mutate(models, random);
      long before = threads.getThreadAllocatedBytes(Thread.currentThread().getId());
      long start = System.nanoTime();
      try {
        use(bytes, random);
        accepted++;
      } catch (InputException e) {
        refused++;
        assertTrue(e.getMessage() != null && !e.getMessage().isBlank(), "seed " + seed);
      } catch (Throwable e) {
        throw new AssertionError("seed " + seed, e);
      }
      long allocated = threads.getThreadAllocatedBytes(Thread.currentThread().getId()) - before;
      long millis = (System.nanoTime() - start) / 1_000_000;
      assertTrue(allocated < ALLOCATION, "seed " + seed + " allocated " + allocated + " bytes");
      assertTrue(millis < 5_000, "seed " + seed + " took " + millis + " ms");
    }
    // Mutations that the reader accepts without exception would test nothing, and so would others.
    assertTrue(refused > 100 && accepted > 20, refused + " refused, " + accepted + " accepted");
  }

  private void use(byte[] bytes, Random random) throws IOException {
    OnnxModel model;
    if (random.nextInt(8) == 0) {
      model = OnnxModel.read(Files.write(folder.resolve("model.onnx"), bytes));
    } else {
      model = OnnxModel.read(ByteBuffer.wrap(bytes), "model");
    }
    OnnxWeights.of(model);
    for (OnnxInitializer i : model.initializers()) {
      if (i.type() != DataType.STRING) {
        i.data();
      }
    }
    model.toBuffer();
    if (random.nextInt(3) == 0) {
      ClassifierOutput.of(model);
      PastInput.without(model).toBuffer();
      DynamicQuantizer quantizer = new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
      if (random.nextBoolean()) {
        quantizer.prepareTraining();
        quantizer.products();
        quantizer.quantizedCopy(copy -> {}).toBuffer();
      }
      quantizer.apply();
      model.toBuffer();
      return;
    }
    StaticQuantizer quantizer = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    var ranges = new HashMap<String, ActivationRange>();
    quantizer.activations().forEach(a -> ranges.put(a, new ActivationRange(-1, 1)));
    quantizer.apply(ranges);
    model.toBuffer();
  }

  private static byte[] mutate(List<byte[]> models, Random random) {
    byte[] bytes = models.get(random.nextInt(models.size())).clone();
    int changes = 1 + random.nextInt(4);
    for (int c = 0; c < changes && bytes.length > 0; c++) {
      int at = random.nextInt(bytes.length);
      switch (random.nextInt(7)) {
        case 0 -> bytes[at] ^= (byte) (1 << random.nextInt(8));
        case 1 -> bytes[at] = (byte) random.nextInt(256);
        case 2 -> bytes[at] = new byte[] {0, 1, 127, -128, -1}[random.nextInt(5)];
        case 3 -> bytes = Arrays.copyOf(bytes, at);
        case 4 -> bytes = splice(bytes, at, at, random.nextInt(16), random);
        case 5 -> bytes = splice(bytes, at, Math.min(bytes.length, at + 12), 0, random);
        default -> {
          byte[] other = models.get(random.nextInt(models.size()));
          int from = random.nextInt(other.length);
          int n = Math.min(random.nextInt(64), Math.min(other.length - from, bytes.length - at));
          System.arraycopy(other, from, bytes, at, n);
        }
      }
    }
    return bytes;
  }

  /** Replaces bytes from..to by n bytes that often are large numbers on the wire. */
  private static byte[] splice(byte[] bytes, int from, int to, int n, Random random) {
    byte[] result = new byte[bytes.length - (to - from) + n];
    System.arraycopy(bytes, 0, result, 0, from);
    for (int i = 0; i < n; i++) {
      result[from + i] = random.nextBoolean() ? (byte) -1 : (byte) random.nextInt(256);
    }
    System.arraycopy(bytes, to, result, from + n, bytes.length - to);
    return result;
  }

  private static ModelProto withSubGraph() {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(SmallModels.floats("k", new Random(9), 1, 8, 8))
            .addNode(SmallModels.node("MatMul", "inner", List.of("x", "k"), "z"))
            .addOutput(SmallModels.value("z", DataType.FLOAT, -1, 8));
    NodeProto choice = SmallModels.choice("choice", "c", "i", branch);
    GraphProto.Builder g = SmallModels.mlp().getGraph().toBuilder();
    g.addInput(SmallModels.value("c", DataType.BOOL)).addNode(choice);
    g.addNode(
        SmallModels.node(
            "Transpose", "t", List.of("w"), "wt", SmallModels.attribute("perm", 1, 0)));
    g.addNode(SmallModels.node("MatMul", "again", List.of("h", "wt"), "o"));
    g.addNode(SmallModels.node("Softmax", "s", List.of("o"), "p"));
    return SmallModels.model(11, g);
  }

  /** What stands between int8 convolutions: padding, bounds, additions, a gate, channels of zeros, pools. */
  private static ModelProto images() {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("images")
            .addInput(SmallModels.value("x", DataType.FLOAT, 1, 3, 8, 8))
            .addInitializer(SmallModels.int64s("around", 0, 0, 1, 1, 0, 0, 1, 1))
            .addInitializer(SmallModels.int64s("more", 1, 4, 8, 8))
            .addInitializer(OnnxInitializer.floats("six", new long[0], 6).message())
            .addInitializer(OnnxInitializer.floats("half", new long[0], 0.5f).message())
            .addInitializer(SmallModels.floats("c1", random, 0.3f, 8, 3, 3, 3))
            .addInitializer(SmallModels.floats("c2", random, 0.3f, 8, 1, 3, 3))
            .addInitializer(SmallModels.floats("c3", random, 0.3f, 8, 8, 1, 1))
            .addInitializer(SmallModels.floats("c4", random, 0.3f, 4, 12, 1, 1))
            .addInitializer(SmallModels.floats("factor", random, 1, 8, 1, 1))
            .addNode(SmallModels.node("Pad", "", List.of("x", "around"), "padded"))
            .addNode(SmallModels.node("Conv", "", List.of("padded", "c1"), "a"))
            .addNode(SmallModels.node("Mul", "", List.of("a", "factor"), "scaled"))
            .addNode(SmallModels.node("Min", "", List.of("scaled", "six"), "bounded"))
            .addNode(
                SmallModels.node(
                    "Conv",
                    "",
                    List.of("bounded", "c2"),
                    "b",
                    SmallModels.attribute("group", 8),
                    SmallModels.attribute("pads", 1, 1, 1, 1)))
            .addNode(SmallModels.node("HardSigmoid", "", List.of("b"), "gate"))
            .addNode(SmallModels.node("Mul", "", List.of("b", "gate"), "gated"))
            .addNode(SmallModels.node("Add", "", List.of("gated", "bounded"), "sum"))
            .addNode(SmallModels.node("Mul", "", List.of("sum", "half"), "halved"))
            .addNode(SmallModels.node("Conv", "", List.of("halved", "c3"), "c"))
            .addNode(SmallModels.node("LeakyRelu", "", List.of("c"), "leaky"))
            .addNode(SmallModels.node("ConstantOfShape", "", List.of("more"), "zeros"))
            .addNode(
                SmallModels.node(
                    "Concat",
                    "",
                    List.of("leaky", "zeros"),
                    "wide",
                    SmallModels.attribute("axis", 1)))
            .addNode(
                SmallModels.node(
                    "MaxPool",
                    "",
                    List.of("wide"),
                    "pooled",
                    SmallModels.attribute("kernel_shape", 2, 2)))
            .addNode(SmallModels.node("Conv", "", List.of("pooled", "c4"), "d"))
            .addNode(SmallModels.node("GlobalAveragePool", "", List.of("d"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, 1, 4, 1, 1));
    return SmallModels.model(13, g);
  }

  private static ModelProto typed() {
    GraphProto.Builder g = SmallModels.mlp().getGraph().toBuilder();
    TensorProto.Builder f =
        TensorProto.newBuilder().setName("f").setDataType(DataType.FLOAT_VALUE).addDims(6);
    TensorProto.Builder i =
        TensorProto.newBuilder().setName("i").setDataType(DataType.INT8_VALUE).addDims(6);
    TensorProto.Builder l =
        TensorProto.newBuilder().setName("l").setDataType(DataType.INT64_VALUE).addDims(6);
    for (int k = 0; k < 6; k++) {
      f.addFloatData(k);
      i.addInt32Data(k - 3);
      l.addInt64Data(1L << (10 * k));
    }
    g.addInitializer(f).addInitializer(i).addInitializer(l);
    return SmallModels.model(13, g);
  }

  private static ModelProto external() {
    ModelProto.Builder m = SmallModels.mlp().toBuilder();
    m.getGraphBuilder()
        .getInitializerBuilder(0)
        .clearRawData()
        .setDataLocation(DataLocation.EXTERNAL)
        .addExternalData(OnnxTensors.entry("location", "data"))
        .addExternalData(OnnxTensors.entry("offset", "64"))
        .addExternalData(OnnxTensors.entry("length", "192"));
    return m.build();
  }
}
