package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.espalier.ExactProducts;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.QuantizedProduct;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.TrainableQuantizer;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A small convolutional classifier with batch norms is trained under fixed ranges; ONNX Runtime answers alike. */
class StaticTrainingTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();
  private static final int CLASSES = 4;
  private static final int SIDE = 8;
  private static final TrainingListener SILENT = new TrainingListener() {};

  private static final List<Map<String, OnnxTensor>> CALIBRATION = new ArrayList<>();
  private static ActivationSource source;

  @BeforeAll
  static void calibration() throws OrtException {
    for (float[] x : OnnxCompressionTest.values(images(32, 9))) {
      CALIBRATION.add(Map.of("x", tensor(x)));
    }
    source = new TensorActivations(CALIBRATION, 1);
  }

  @AfterAll
  static void free() {
    CALIBRATION.forEach(m -> m.values().forEach(OnnxTensor::close));
  }

  private static OnnxTensor tensor(float[] x) throws OrtException {
    return OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(x), new long[] {1, 1, SIDE, SIDE});
  }

  private static TensorProto vector(String name, float... values) {
    return floats(name, values, values.length);
  }

  /** Conv, norm, Relu; Conv, norm, a way around, Relu; pool; Gemm with the weight as [out, in]. */
  static OnnxModel cnn() {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("cnn")
            .addInput(value("x", DataType.FLOAT, -1, 1, SIDE, SIDE))
            .addInitializer(floats("conv1.weight", random, 0.4f, 8, 1, 3, 3))
            .addInitializer(floats("conv2.weight", random, 0.2f, 8, 8, 3, 3))
            .addInitializer(floats("fc.weight", random, 0.5f, CLASSES, 8))
            .addInitializer(floats("fc.bias", random, 0.1f, CLASSES));
    for (String norm : List.of("norm1", "norm2")) {
      float[] variance = new float[8];
      float[] mean = new float[8];
      float[] weight = new float[8];
      float[] bias = new float[8];
      for (int c = 0; c < 8; c++) {
        variance[c] = 0.5f + random.nextFloat();
        mean[c] = 0.3f * (float) random.nextGaussian();
        weight[c] = 0.5f + random.nextFloat();
        bias[c] = 0.3f * (float) random.nextGaussian();
      }
      g.addInitializer(vector(norm + ".weight", weight))
          .addInitializer(vector(norm + ".bias", bias))
          .addInitializer(vector(norm + ".mean", mean))
          .addInitializer(vector(norm + ".var", variance));
    }
    g.addNode(
            node("Conv", "/c1", List.of("x", "conv1.weight"), "c1", attribute("pads", 1, 1, 1, 1)))
        .addNode(
            node(
                "BatchNormalization",
                "/n1",
                List.of("c1", "norm1.weight", "norm1.bias", "norm1.mean", "norm1.var"),
                "n1"))
        .addNode(node("Relu", "/r1", List.of("n1"), "r1"))
        .addNode(
            node("Conv", "/c2", List.of("r1", "conv2.weight"), "c2", attribute("pads", 1, 1, 1, 1)))
        .addNode(
            node(
                "BatchNormalization",
                "/n2",
                List.of("c2", "norm2.weight", "norm2.bias", "norm2.mean", "norm2.var"),
                "n2"))
        .addNode(node("Add", "/add", List.of("n2", "r1"), "a"))
        .addNode(node("Relu", "/r2", List.of("a"), "r2"))
        .addNode(node("GlobalAveragePool", "/pool", List.of("r2"), "p"))
        .addNode(node("Flatten", "/flatten", List.of("p"), "f", attribute("axis", 1)))
        .addNode(
            node("Gemm", "/fc", List.of("f", "fc.weight", "fc.bias"), "y", attribute("transB", 1)))
        .addOutput(value("y", DataType.FLOAT, -1, CLASSES));
    return OnnxModel.of(SmallModels.model(13, g), "cnn");
  }

  /** One channel much larger than the others through a HardSwish with a factor and a summand behind it, another one, a pool, Gemm. */
  static OnnxModel gated() {
    Random random = new Random(6);
    float[] uneven = new float[8 * 9];
    for (int i = 0; i < uneven.length; i++) {
      uneven[i] = (float) Math.scalb(0.4 * random.nextGaussian(), i / 9 == 0 ? 6 : 0);
    }
    float[] compensating = new float[8 * 8 * 9];
    for (int i = 0; i < compensating.length; i++) {
      compensating[i] = (float) Math.scalb(0.2 * random.nextGaussian(), i / 9 % 8 == 0 ? -6 : 0);
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("gated")
            .addInput(value("x", DataType.FLOAT, -1, 1, SIDE, SIDE))
            .addInitializer(floats("conv1.weight", uneven, 8, 1, 3, 3))
            .addInitializer(floats("conv2.weight", compensating, 8, 8, 3, 3))
            .addInitializer(vector("factor", 0.7f))
            .addInitializer(vector("summand", 0.2f))
            .addInitializer(floats("fc.weight", random, 0.5f, CLASSES, 8))
            .addInitializer(floats("fc.bias", random, 0.1f, CLASSES))
            .addNode(node("Conv", "/c1", List.of("x", "conv1.weight"), "c1"))
            .addNode(node("HardSwish", "/h1", List.of("c1"), "h1"))
            .addNode(node("Mul", "/m1", List.of("h1", "factor"), "m1"))
            .addNode(node("Add", "/s1", List.of("m1", "summand"), "s1"))
            .addNode(node("Conv", "/c2", List.of("s1", "conv2.weight"), "c2"))
            .addNode(node("HardSwish", "/h2", List.of("c2"), "h2"))
            .addNode(node("GlobalAveragePool", "/pool", List.of("h2"), "p"))
            .addNode(node("Flatten", "/flatten", List.of("p"), "f", attribute("axis", 1)))
            .addNode(
                node(
                    "Gemm",
                    "/fc",
                    List.of("f", "fc.weight", "fc.bias"),
                    "y",
                    attribute("transB", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, CLASSES));
    return OnnxModel.of(SmallModels.model(14, g), "gated");
  }

  /** Four patterns of stripes with noise. */
  static Examples.Labelled images(int n, long seed) {
    Random random = new Random(seed);
    List<float[]> values = new ArrayList<>();
    long[] labels = new long[n];
    for (int i = 0; i < n; i++) {
      labels[i] = random.nextInt(CLASSES);
      float[] x = new float[SIDE * SIDE];
      for (int k = 0; k < x.length; k++) {
        int row = k / SIDE;
        int column = k % SIDE;
        boolean bright =
            switch ((int) labels[i]) {
              case 0 -> row % 2 == 0;
              case 1 -> column % 2 == 0;
              case 2 -> (row + column) % 2 == 0;
              default -> row % 4 < 2;
            };
        x[k] = (bright ? 1 : 0) + 0.4f * (float) random.nextGaussian();
      }
      values.add(x);
    }
    return new Examples.Labelled(
        values, List.of(1L, (long) SIDE, (long) SIDE), new Labels.Classes(labels));
  }

  private static Compression.Job job() {
    return job(cnn());
  }

  private static Compression.Job job(OnnxModel model) {
    return new Compression.Job(
        model, null, images(256, 1), images(128, 2), Pooling.MEAN, source, null);
  }

  private static CompressionPlan plan(long steps, boolean learn) {
    Training fit =
        new Training(
            150,
            0,
            16,
            Optimizer.AdamW.of(1e-2),
            Training.Schedule.constant(),
            Objective.ofLabels(),
            50);
    Training training =
        new Training(
            steps,
            0,
            16,
            Optimizer.AdamW.of(2e-3),
            Training.Schedule.constant(),
            Objective.ofLabels(),
            20);
    return new CompressionPlan(
        List.of(
            new Stage.Train("fit", fit),
            new Stage.Quantize(
                "quantize",
                ExactProducts.exact(Quantization.fixed())
                    .with(new Quantization.Ranges(new Clipping.MinMax(), 0.05, 0.5, learn))
                    .withLearnedScales(learn),
                training)),
        7);
  }

  /** What it throws, as the command line does on Ctrl-C, ends calibration. */
  @Test
  void whoListensHearsHowFarCalibrationIsAndMayEndIt() {
    CompressionPlan plan = new CompressionPlan(plan(1, false).stages().subList(1, 2), 7);
    Set<String> notes = new TreeSet<>();
    TrainingListener ending =
        new TrainingListener() {
          @Override
          public void note(String text, long done, long total) {
            notes.add(text + " " + done + " of " + total);
            if (notes.contains("calibrating 16 of 32")) {
              throw new IllegalArgumentException("enough");
            }
          }
        };
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      assertEquals(
          "enough", assertThrows(IllegalArgumentException.class, () -> c.run(ending)).getMessage());
    }
    assertTrue(notes.contains("calibrating 15 of 32"), notes.toString());
  }

  /** Gives the largest pixel of an image. */
  private static OnnxModel brightest() {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("brightest")
            .addInput(value("x", DataType.FLOAT, -1, 1, 64, 64))
            .addInitializer(floats("w", new float[] {1}, 1, 1, 1, 1))
            .addNode(node("Conv", "/c", List.of("x", "w"), "c"))
            .addNode(node("GlobalMaxPool", "/pool", List.of("c"), "p"))
            .addNode(node("Flatten", "/flatten", List.of("p"), "y", attribute("axis", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, 1));
    return OnnxModel.of(SmallModels.model(13, g), "brightest");
  }

  /** Noise with one pixel that is far out. */
  private static List<float[]> noise(int n, long seed) {
    Random random = new Random(seed);
    List<float[]> images = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float[] x = new float[64 * 64];
      for (int k = 0; k < x.length; k++) {
        x[k] = (float) random.nextGaussian();
      }
      x[random.nextInt(x.length)] = 20 + 10 * random.nextFloat();
      images.add(x);
    }
    return images;
  }

  /**
   * Where nobody says how ranges follow from calibration, the output chooses: what it is made of are the few values that
   * the least squared error of an activation gives up.
   */
  @Test
  void rangesThatCostTheOutputsLeastAreChosen() {
    List<Long> shape = List.of(1L, 64L, 64L);
    Compression.Job job =
        new Compression.Job(
            brightest(),
            null,
            new Examples.Labelled(noise(16, 1), shape, null),
            new Examples.Labelled(noise(16, 2), shape, null),
            Pooling.MEAN,
            new ExampleActivations(ExampleTensors.of(noise(16, 3), shape), 1),
            null);
    Map<String, Double> losses = new LinkedHashMap<>();
    for (String way : List.of("auto", "mse", "minmax")) {
      Clipping clipping = way.equals("auto") ? null : Clipping.parse(way);
      Quantization how =
          ExactProducts.exact(Quantization.fixed()).with(Quantization.Ranges.still(clipping));
      Training none = Training.none().with(Objective.ofOutput());
      CompressionPlan plan =
          new CompressionPlan(List.of(new Stage.Quantize("quantize", how, none)), 7);
      try (OnnxCompression c = new OnnxCompression(plan, job)) {
        assertTrue(c.run(SILENT));
        losses.put(way, c.stages().get(0).changed().loss());
      }
    }
    assertEquals(losses.get("minmax"), losses.get("auto"), losses.toString());
    assertTrue(losses.get("minmax") < 0.1 * losses.get("mse"), losses.toString());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theExportedModelAnswersAsTrainingSawIt(boolean learn) throws OrtException {
    try (OnnxCompression c = new OnnxCompression(plan(80, learn), job())) {
      assertTrue(c.run(SILENT));
      OnnxModel exported = c.export();
      List<String> types = exported.nodes().stream().map(NodeProto::getOpType).toList();
      assertFalse(types.contains("BatchNormalization"), types.toString());
      // x, r1, n2, r2, p and f.
      assertEquals(6, types.stream().filter("QuantizeLinear"::equals).count(), types.toString());
      for (LayerReport layer : c.layers()) {
        assertEquals(8, layer.bits(), layer.toString());
      }
      answersAsTrainingSawIt(c, exported);
      assertTrue(c.stages().get(1).after().quality() > 0.9, c.stages().toString());
    }
  }

  /** What equalization puts into gates is in the exported model, is no weight of a report and is not trained. */
  @Test
  void gatesAreEqualizedAndLeftByTraining() throws OrtException, IOException {
    CompressionPlan plan = plan(40, false);
    ByteBuffer whole;
    try (OnnxCompression c = new OnnxCompression(plan, job(gated()))) {
      assertTrue(c.run(SILENT));
      OnnxModel exported = c.export();
      whole = exported.toBuffer();
      answersAsTrainingSawIt(c, exported);
      List<String> convs =
          exported.nodes().stream()
              .filter(n -> n.getOpType().equals("Conv"))
              .map(n -> n.getInput(1))
              .toList();
      // The two of the model, and those for the first gate and for the summand.
      assertEquals(4, convs.size(), convs.toString());
      assertEquals(
          List.of("conv1.weight", "conv2.weight", "fc.weight"),
          c.layers().stream().map(l -> l.name().replace(TrainableQuantizer.LATENT, "")).toList());
    }
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan, job(gated()))) {
      assertFalse(c.run(until(13)));
      c.save(saved);
    }
    try (OnnxCompression c = new OnnxCompression(plan, job(gated()))) {
      c.restore(new ByteArrayInputStream(saved.toByteArray()));
      assertTrue(c.run(SILENT));
      assertEquals(whole, c.export().toBuffer());
    }
  }

  private static TrainingListener until(long step) {
    return new TrainingListener() {
      @Override
      public boolean step(StepReport r) {
        return r.stage().name().equals("fit") || r.step() < step;
      }
    };
  }

  private static void answersAsTrainingSawIt(OnnxCompression c, OnnxModel exported)
      throws OrtException {
    Examples.Labelled validation = images(128, 2);
    double loss = 0;
    int right = 0;
    try (OrtSession session = ENVIRONMENT.createSession(exported.toBuffer())) {
      for (int i = 0; i < validation.size(); i++) {
        float[] logits = run(session, OnnxCompressionTest.values(validation).get(i));
        double sum = 0;
        int best = 0;
        for (int k = 0; k < CLASSES; k++) {
          sum += Math.exp(logits[k]);
          best = logits[k] > logits[best] ? k : best;
        }
        int label = (int) ((Labels.Classes) validation.labels()).values()[i];
        loss += Math.log(sum) - logits[label];
        right += best == label ? 1 : 0;
      }
    }
    TrainingListener.Validation after = c.stages().get(1).after();
    assertEquals(after.quality(), right / 128.0, 1.0 / 128);
    // An int8 convolution of the runtime rounds its sum once, in its own order.
    assertEquals(after.loss(), loss / 128, 2e-3);
  }

  private static float[] run(OrtSession session, float[] x) throws OrtException {
    try (OnnxTensor input = tensor(x);
        OrtSession.Result result = session.run(Map.of("x", input))) {
      return ((float[][]) result.get(0).getValue())[0];
    }
  }

  @Test
  void rangesFollowWhatTrainingSeesUntilTheyAreFrozen() {
    Map<Long, ByteBuffer> scales = new HashMap<>();
    try (OnnxCompression c = new OnnxCompression(plan(40, false), job())) {
      c.run(
          new TrainingListener() {
            @Override
            public boolean step(StepReport r) {
              if (r.stage().name().equals("quantize")) {
                scales.put(r.step(), activationScales(c.export()));
              }
              return true;
            }
          });
    }
    assertNotEquals(scales.get(1L), scales.get(2L));
    assertNotEquals(scales.get(19L), scales.get(20L));
    assertEquals(scales.get(20L), scales.get(21L));
    assertEquals(scales.get(20L), scales.get(39L));
  }

  private static ByteBuffer activationScales(OnnxModel model) {
    ByteBuffer scales = ByteBuffer.allocate(64);
    for (NodeProto n : model.nodes()) {
      if (n.getOpType().equals("QuantizeLinear")) {
        scales.putFloat(model.constant(n.getInput(1)).floats().get(0));
      }
    }
    return scales.flip();
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aStoppedRunContinuesToTheSameBits(boolean learn) throws IOException {
    CompressionPlan plan = plan(40, learn);
    ByteBuffer whole;
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      c.run(SILENT);
      whole = c.export().toBuffer();
    }
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      assertFalse(c.run(until(13)));
      c.save(saved);
    }
    try (OnnxCompression c = new OnnxCompression(plan, job())) {
      c.restore(new ByteArrayInputStream(saved.toByteArray()));
      assertTrue(c.run(SILENT));
      assertEquals(whole, c.export().toBuffer());
    }
  }

  /** For the same floats the integers of every activation are the same, and so are those of the weights. */
  @Test
  void integersAreThoseOfTheRuntime() throws OrtException {
    OnnxModel model = cnn();
    StaticQuantizer quantizer = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    Map<String, ActivationRange> ranges =
        quantizer.calibrate(source, new Clipping.MeanSquaredError());
    quantizer.setRanges(ranges);
    quantizer.prepareTraining();
    Map<String, TrainedWeight> weights = new HashMap<>();
    Map<String, String> nodes = new HashMap<>();
    Map<String, float[]> inputs = new LinkedHashMap<>();
    Map<String, float[]> grids = new LinkedHashMap<>();
    StaticGrid grid = new StaticGrid(ranges, TorchDevice.CPU);
    ActivationSimulation.Grid spy =
        new ActivationSimulation.Grid() {
          @Override
          public Tensor quantize(String activation, Tensor x, Batch batch) {
            Tensor y = grid.quantize(activation, x, batch);
            inputs.put(activation, values(x));
            grids.put(activation, values(y));
            return y;
          }

          @Override
          public ActivationSimulation.Grid sibling() {
            throw new UnsupportedOperationException("one thread looks");
          }

          @Override
          public void close() {
            grid.close();
          }
        };
    float[] x = OnnxCompressionTest.values(images(1, 11)).get(0);
    float[] simulated;
    try (OnnxGraph graph = new OnnxGraph(model)) {
      graph
          .parameters()
          .forEach(
              p -> weights.put(graph.constantOf(p.name()), new TrainedWeight(p, TorchDevice.CPU)));
      for (QuantizedProduct p : quantizer.products()) {
        TrainedWeight w = weights.get(p.weight());
        w.quantize(p.grid(), p.integers(), p.scales(), false);
        assertArrayEquals(p.integers(), w.integers(), p.name());
        w.parameter.nodes().forEach(n -> nodes.put(n, p.activation()));
      }
      try (ActivationSimulation simulation =
              new ActivationSimulation(nodes, quantizer.quantizedResults(), spy);
          PointerScope scope = new PointerScope();
          NoGradGuard noGrad = new NoGradGuard()) {
        graph.transformInputs(simulation);
        Examples one = new Examples.Labelled(List.of(x), List.of(1L, 8L, 8L), null);
        Batch batch = Batch.of(one, new int[] {0}, graph.inputNames());
        simulation.begin(batch);
        simulated = values(graph.forward(batch.inputs()).get("y"));
      }
    } finally {
      weights.values().forEach(TrainedWeight::close);
    }
    assertEquals(quantizer.activations(), inputs.keySet());
    OnnxModel exported = quantizer.quantizedCopy(m -> {});
    for (Map.Entry<String, float[]> e : inputs.entrySet()) {
      ActivationRange range = ranges.get(e.getKey());
      assertArrayEquals(throughRuntime(e.getValue(), range), grids.get(e.getKey()), e.getKey());
    }
    try (OrtSession session = ENVIRONMENT.createSession(exported.toBuffer())) {
      float[] real = run(session, x);
      for (int k = 0; k < CLASSES; k++) {
        assertEquals(real[k], simulated[k], 0.02 * Math.abs(real[k]) + 5e-3, "logit " + k);
      }
    }
  }

  private static float[] values(Tensor tensor) {
    Tensor t = tensor.contiguous();
    float[] values = new float[(int) t.numel()];
    new FloatPointer(t.data_ptr()).get(values);
    return values;
  }

  private static float[] throughRuntime(float[] x, ActivationRange range) throws OrtException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("grid")
            .addInput(value("x", DataType.FLOAT, -1))
            .addInitializer(SmallModels.number("s", range.scale()))
            .addInitializer(
                SmallModels.tensor(
                    "z", DataType.UINT8, ByteBuffer.wrap(new byte[] {(byte) range.zeroPoint()})))
            .addNode(node("QuantizeLinear", "q", List.of("x", "s", "z"), "q"))
            .addNode(node("DequantizeLinear", "d", List.of("q", "s", "z"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1));
    try (OrtSession session = ENVIRONMENT.createSession(SmallModels.model(13, g).toByteArray());
        OnnxTensor input =
            OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(x), new long[] {x.length});
        OrtSession.Result result = session.run(Map.of("x", input))) {
      return (float[]) result.get(0).getValue();
    }
  }
}
