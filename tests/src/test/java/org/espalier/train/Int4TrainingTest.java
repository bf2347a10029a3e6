package org.espalier.train;

import static org.espalier.train.StoppedRuns.bytes;
import static org.espalier.train.StoppedRuns.exported;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnxruntime.OrtException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.format.onnx.ClickModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.espalier.op.Bits;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Weights of 4 bits in blocks, trained. */
class Int4TrainingTest {
  private static final int BLOCK = 16;
  private static final TrainingListener SILENT = new TrainingListener() {};

  /** The index of each weight's scale, where blocks lie below each other or behind each other. */
  private static int[] scaleOf(int rows, int columns, int axis) {
    int[] of = new int[rows * columns];
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        of[r * columns + c] =
            axis == 0 ? r / BLOCK * columns + c : r * (columns / BLOCK) + c / BLOCK;
      }
    }
    return of;
  }

  private static int scales(int rows, int columns, int axis) {
    return axis == 0 ? (rows + BLOCK - 1) / BLOCK * columns : rows * columns / BLOCK;
  }

  private static float[] signed(Random random, int n) {
    float[] scales = new float[n];
    for (int i = 0; i < n; i++) {
      scales[i] = (0.01f + 0.1f * random.nextFloat()) * (random.nextBoolean() ? 1 : -1);
    }
    return scales;
  }

  /** Scales of both signs, blocks of columns, the last of them short, and blocks of rows. */
  @ParameterizedTest
  @CsvSource({"40, 7, 0", "16, 5, 0", "64, 24, 0", "12, 48, 1"})
  void workingWeightsGatesAndIntegersFollowTheFormula(int rows, int columns, int axis) {
    int[] of = scaleOf(rows, columns, axis);
    Random random = new Random(rows);
    float[] scales = signed(random, scales(rows, columns, axis));
    byte[] integers = new byte[rows * columns];
    for (int i = 0; i < integers.length; i++) {
      integers[i] = (byte) (random.nextInt(16) - 8);
    }
    try (OnnxGraph graph = LearnedScalesTest.product(rows, columns);
        TrainedWeight w = new TrainedWeight(graph.parameters().get(0), TorchDevice.CPU)) {
      w.quantize(new WeightGrid(-8, 7, axis, BLOCK), integers, scales, false);
      assertArrayEquals(scales, w.gridScales());
      assertArrayEquals(integers, w.integers());
      float[] working = w.working.values();
      for (int i = 0; i < integers.length; i++) {
        assertEquals(integers[i] * scales[of[i]] + 0f, working[i], "" + i);
      }
      FloatBuffer latent = TrainingBuffer.buffer(w.latent().tensor());
      for (int i = 0; i < integers.length; i++) {
        latent.put(i, (float) (random.nextGaussian() * 6 * Math.abs(scales[of[i]])));
      }
      w.renew();
      working = w.working.values();
      byte[] found = w.integers();
      int clipped = 0;
      for (int i = 0; i < integers.length; i++) {
        double q = Math.rint(latent.get(i) * (1 / Math.abs(scales[of[i]])));
        q = scales[of[i]] < 0 ? -q : q;
        boolean inside = q >= -8 && q <= 7;
        double kept = Math.max(-8, Math.min(7, q));
        assertEquals((int) kept, found[i], "" + i);
        assertEquals((float) kept * scales[of[i]] + 0f, working[i], "" + i);
        assertEquals(inside, Bits.get(w.gateBits(), i), "" + i);
        clipped += inside ? 0 : 1;
      }
      assertTrue(clipped > 0 && clipped < integers.length, clipped + " clipped");
    }
  }

  /** Where integers rest, weights are their products with the scales, whose ends move with the sums of gradients. */
  @ParameterizedTest
  @CsvSource({"40, 7, 0", "12, 48, 1"})
  void integersRestWhileScalesAreTrained(int rows, int columns, int axis) {
    int[] of = scaleOf(rows, columns, axis);
    int n = rows * columns;
    Random random = new Random(rows);
    float[] scales = signed(random, scales(rows, columns, axis));
    byte[] integers = new byte[n];
    for (int i = 0; i < n; i++) {
      integers[i] = (byte) (random.nextInt(16) - 8);
    }
    try (OnnxGraph graph = LearnedScalesTest.product(rows, columns);
        TrainedWeight w = new TrainedWeight(graph.parameters().get(0), TorchDevice.CPU);
        Tensor gradient = torch.randn(rows, columns)) {
      w.quantize(new WeightGrid(-8, 7, axis, BLOCK), integers, scales, true);
      assertTrue(w.rests());
      assertArrayEquals(integers, w.integers());
      assertArrayEquals(scales, w.gridScales());
      FloatBuffer g = TrainingBuffer.buffer(TorchDevice.CPU.view(gradient));
      double[] expected = new double[scales.length];
      for (int i = 0; i < n; i++) {
        expected[of[i]] += g.get(i) * integers[i] * 8.0 * scales[of[i]];
      }
      try (QuantizedWeight.EndGradients gradients = w.learningEnds(gradient)) {
        gradients.run();
      }
      float[] found = w.endGradients().values();
      float[] ends = w.ends().values();
      for (int c = 0; c < scales.length; c++) {
        // A sum of 16 products of up to 64 times some 3 times 0.11, in float.
        assertEquals(expected[c], found[c], 1e-4, "" + c);
        ends[c] *= 0.25f + 1.5f * random.nextFloat();
      }
      float[] before = w.gridScales();
      w.ends().set(ends);
      w.followEnds();
      float[] after = w.gridScales();
      float[] working = w.working.values();
      for (int c = 0; c < scales.length; c++) {
        assertEquals(Math.max(0.5f, 8 * ends[c]) * before[c], after[c], 1e-7f, "" + c);
      }
      for (int i = 0; i < n; i++) {
        assertEquals(integers[i] * after[of[i]] + 0f, working[i] + 0f, "" + i);
      }
      assertArrayEquals(integers, w.integers());
    }
  }

  private static final int WIDTH = 40;

  private static final float[][] MIX = new float[6][WIDTH];

  static {
    Random random = new Random(99);
    for (float[] m : MIX) {
      for (int k = 0; k < WIDTH; k++) {
        m[k] = (float) random.nextGaussian() / 2;
      }
    }
  }

  /** x [n, 40] through two products with biases; 40 channels are two blocks of 16 and a short one. */
  private static OnnxModel mlp() {
    return OnnxModel.of(SmallModels.perceptron(new Random(5), WIDTH, 48, 6, "y"), "mlp");
  }

  /** Rows whose channels share a few factors. */
  private static Examples.Labelled rows(int n, long seed) {
    Random random = new Random(seed);
    List<float[]> values = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float[] x = new float[WIDTH];
      for (float[] m : MIX) {
        float f = (float) random.nextGaussian();
        for (int k = 0; k < WIDTH; k++) {
          x[k] += f * m[k] + 0.1f * (float) random.nextGaussian();
        }
      }
      values.add(x);
    }
    return new Examples.Labelled(values, List.of((long) WIDTH), null);
  }

  private static Compression.Job job() {
    List<float[]> values = OnnxCompressionTest.values(rows(200, 9));
    ActivationSource calibration =
        new ExampleActivations(ExampleTensors.of(values, List.of((long) WIDTH)), 1);
    return new Compression.Job(
        mlp(), null, rows(512, 2), rows(128, 3), Pooling.MEAN, calibration, null);
  }

  private static Quantization int4(boolean fit, boolean learnScales) {
    Quantization q = Quantization.int4();
    return q.with(q.weights().withBlock(BLOCK)).withFit(fit).withLearnedScales(learnScales);
  }

  private static Training steps(long steps, Optimizer optimizer) {
    return new Training(
        steps, 0, 16, optimizer, Training.Schedule.cosine(), Objective.ofOutput(), 20);
  }

  private static int count(OnnxModel model, String operator) {
    return (int) model.nodes().stream().filter(n -> n.getOpType().equals(operator)).count();
  }

  /** The norm of the difference of two models' first outputs as a share of the first's. */
  private static double difference(OnnxModel one, OnnxModel other, Map<String, Tensor> inputs)
      throws OrtException {
    try (PointerScope scope = new PointerScope()) {
      Tensor y = OnnxRuntime.run(one, inputs).get(one.outputNames().iterator().next());
      Tensor z = OnnxRuntime.run(other, inputs).get(one.outputNames().iterator().next());
      return z.sub(y).norm().item_double() / y.norm().item_double();
    }
  }

  @ParameterizedTest
  @CsvSource({"true, false, false", "true, true, false", "false, false, false", "true, true, true"})
  void whatIsTrainedIsWhatIsWritten(boolean fit, boolean learnScales, boolean sgd)
      throws IOException, OrtException {
    Optimizer optimizer = sgd ? Optimizer.Sgd.of(0.02) : Optimizer.AdamW.of(3e-3);
    Stage stage = new Stage.Quantize("quantize", int4(fit, learnScales), steps(200, optimizer));
    CompressionPlan plan = new CompressionPlan(List.of(stage), 7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.changed().loss() > 2 * report.before().loss(), report.toString());
      double left = report.after().loss() / report.changed().loss();
      assertTrue(left < (fit ? 0.999 : 0.3), left + " of the loss is left");
      for (LayerReport layer : c.layers()) {
        assertEquals(4, layer.bits(), layer.toString());
      }
      OnnxModel exported = c.export();
      assertEquals(2, count(exported, "MatMulNBits"));
      whole = bytes(exported);
      try (PointerScope scope = new PointerScope()) {
        Tensor x = torch.randn(64, WIDTH);
        // The runtime rounds activations to 8 bits, a block at a time: half of 1/127 of the largest
        // at most.
        double off = difference(c.roundedModel(), exported, Map.of("x", x));
        assertTrue(off < 0.01, "off by " + off);
      }
    }
    assertArrayEquals(whole, exported(plan, job(), stage, 77));
  }

  /** There is room for 8 bits in the product of fewer weights. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void someWeightsHaveEightBits(boolean learnScales) throws IOException, OrtException {
    double bytes = mlp().inlineSize();
    BlockQuantizer.Options options = new BlockQuantizer.Options(4, BLOCK, true, w -> true);
    long least = new BlockQuantizer(mlp(), options).requireRoom(Long.MAX_VALUE);
    Quantization q = int4(true, learnScales);
    q = q.with(q.weights().withSize((least + 200) / bytes));
    Stage stage =
        new Stage.Quantize("quantize", q, steps(60, Optimizer.AdamW.of(learnScales ? 3e-3 : 3e-4)));
    CompressionPlan plan = new CompressionPlan(List.of(stage), 7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < 0.999 * report.changed().loss(), report.toString());
      assertEquals(
          List.of(4, 8), c.layers().stream().map(LayerReport::bits).toList(), "of two products");
      OnnxModel exported = c.export();
      // Weights that were trained have longer names.
      assertTrue(exported.inlineSize() <= least + 300, exported.inlineSize() + " bytes");
      whole = bytes(exported);
      try (PointerScope scope = new PointerScope()) {
        Tensor x = torch.randn(64, WIDTH);
        double off = difference(c.roundedModel(), exported, Map.of("x", x));
        assertTrue(off < 0.01, "off by " + off);
      }
    }
    assertArrayEquals(whole, exported(plan, job(), stage, 33));
    Stage small =
        new Stage.Quantize(
            "quantize",
            q.with(q.weights().withSize((least - 1) / bytes)),
            steps(1, Optimizer.AdamW.of(1e-3)));
    InputException e =
        assertThrows(
            InputException.class,
            () -> new OnnxCompression(new CompressionPlan(List.of(small), 7), job()).close());
    assertTrue(e.getMessage().contains("more than the"), e.getMessage());
  }

  /** What was pruned is the integer 0 of its block, and no step gives it back. */
  @Test
  void zerosHold() throws IOException {
    Training training = steps(40, Optimizer.AdamW.of(3e-3));
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune("prune", Pruning.oneShot(0.5), training),
                new Stage.Quantize("quantize", int4(true, true), training)),
            7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      assertTrue(c.run(SILENT));
      long zeros = 0;
      long all = 0;
      OnnxModel exported = c.export();
      whole = bytes(exported);
      for (NodeProto n : exported.nodes()) {
        if (n.getOpType().equals("MatMulNBits")) {
          ByteBuffer packed = exported.constant(n.getInput(1)).data();
          while (packed.hasRemaining()) {
            byte two = packed.get();
            zeros += ((two & 15) == 8 ? 1 : 0) + ((two >> 4 & 15) == 8 ? 1 : 0);
            all += 2;
          }
        }
      }
      // The short block is filled up with 48 x 8 zeros.
      int weights = WIDTH * 48 + 48 * 6;
      assertEquals(weights + 48 * 8, all);
      assertTrue(zeros - 48 * 8 >= weights / 2, zeros + " zeros of " + all);
    }
    for (Stage stage : plan.stages()) {
      assertArrayEquals(whole, exported(plan, job(), stage, 11), stage.name());
    }
  }

  /** A language model whose head is its embedding: both read one tensor of 4 bits, which was trained. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void theTableOfATiedHeadIsStoredOnce(boolean tied) throws IOException, OrtException {
    int words = 50;
    int width = 32;
    OnnxModel decoder =
        OnnxModel.of(
            tied ? SmallDecoder.tied(5, words, width, 1) : SmallDecoder.of(5, words, width, 1),
            "decoder");
    Training training =
        new Training(
            120,
            0,
            8,
            Optimizer.AdamW.of(1e-3),
            Training.Schedule.cosine(),
            Objective.ofLogits(0, 1),
            20);
    Stage stage = new Stage.Quantize("quantize", int4(false, true), training);
    CompressionPlan plan = new CompressionPlan(List.of(stage), 3);
    Compression.Job job =
        new Compression.Job(
            decoder,
            null,
            CausalTrainingTest.texts(64, 1),
            CausalTrainingTest.texts(16, 2),
            Pooling.MEAN,
            null,
            null);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < 0.7 * report.changed().loss(), report.toString());
      OnnxModel exported = c.export();
      whole = bytes(exported);
      assertEquals(tied ? 1 : 0, count(exported, "GatherBlockQuantized"));
      long large =
          exported.initializers().stream()
              .filter(i -> i.elements() == (long) words * width / 2)
              .count();
      assertEquals(1, large);
      try (PointerScope scope = new PointerScope()) {
        Tensor ids = torch.arange(new Scalar(0), new Scalar(20)).to(ScalarType.Long).view(2, 10);
        Map<String, Tensor> inputs =
            Map.of(
                "input_ids",
                ids,
                "attention_mask",
                torch.ones_like(ids),
                "position_ids",
                torch.arange(new Scalar(10)).to(ScalarType.Long).view(1, 10).repeat(2, 1));
        double off = difference(c.roundedModel(), exported, inputs);
        assertTrue(off < 0.03, "off by " + off);
      }
    }
    assertArrayEquals(whole, exported(plan, job, stage, 23));
  }

  /** Tables that labels train: whole blocks in a row are of 4 bits, others of 8. */
  @ParameterizedTest
  @CsvSource({"16, 4, GatherBlockQuantized", "24, 8, Gather"})
  void tablesAreTrained(int width, int bits, String operator) throws IOException, OrtException {
    int users = 8192;
    OnnxModel clicks = OnnxModel.of(ClickModel.of(3, users, users, width), "clicks");
    Training training =
        new Training(
            120,
            0,
            32,
            Optimizer.AdamW.of(2e-2),
            Training.Schedule.constant(),
            Objective.ofLabels(),
            0);
    Stage stage = new Stage.Quantize("quantize", int4(false, false), training);
    CompressionPlan plan = new CompressionPlan(List.of(stage), 3);
    Compression.Job job = EmbeddingTrainingTest.job(clicks, null);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < 0.8 * report.changed().loss(), report.toString());
      for (LayerReport layer : c.layers()) {
        assertEquals(layer.name().startsWith("head") ? 4 : bits, layer.bits(), layer.toString());
      }
      OnnxModel exported = c.export();
      whole = bytes(exported);
      assertTrue(count(exported, operator) >= 2, exported.nodes().toString());
      try (PointerScope scope = new PointerScope()) {
        Tensor ids = torch.arange(new Scalar(0), new Scalar(80)).to(ScalarType.Long).view(40, 2);
        double off = difference(c.roundedModel(), exported, Map.of("ids", ids));
        assertTrue(off < 0.02, "off by " + off);
      }
    }
    assertArrayEquals(whole, exported(plan, job, stage, 23));
  }

  /** Tables that nobody trains are what training saw. */
  @Test
  void otherTablesAreRoundedBefore() throws OrtException {
    OnnxModel clicks = OnnxModel.of(ClickModel.of(3, 8192, 8192, 16), "clicks");
    Stage stage =
        new Stage.Quantize(
            "quantize",
            int4(false, false),
            steps(20, Optimizer.AdamW.of(1e-3)).with(Objective.ofLogits(0, 1)));
    CompressionPlan plan = new CompressionPlan(List.of(stage), 3);
    try (OnnxCompression c = new OnnxCompression(plan, EmbeddingTrainingTest.job(clicks, null))) {
      assertTrue(c.run(SILENT));
      try (PointerScope scope = new PointerScope()) {
        Tensor ids = torch.arange(new Scalar(0), new Scalar(80)).to(ScalarType.Long).view(40, 2);
        double off = difference(c.floatModel(), c.export(), Map.of("ids", ids));
        assertTrue(off < 0.02, "off by " + off);
      }
    }
  }

  @Test
  void productsOfFewerChannelsThanABlockStayFloat() {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(new Stage.Quantize("quantize", Quantization.int4(), Training.none())), 7);
    Compression.Job job =
        new Compression.Job(
            OnnxCompressionTest.classifier(),
            null,
            OnnxCompressionTest.points(16, 2),
            OnnxCompressionTest.points(16, 3),
            Pooling.MEAN,
            new ExampleActivations(
                ExampleTensors.of(
                    OnnxCompressionTest.values(OnnxCompressionTest.points(20, 9)), List.of(12L)),
                1),
            null);
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      assertEquals(1, count(c.export(), "MatMulNBits"));
      assertEquals(1, count(c.export(), "MatMul"));
    }
  }
}
