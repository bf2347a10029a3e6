package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.OrtSession.SessionOptions.OptLevel;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.function.UnaryOperator;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.QuantizedProduct;
import org.espalier.compress.onnx.RuntimeRuns;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What training simulates is what ONNX Runtime runs, on a real sentence encoder. */
@Tag("loops")
class SimulationTest {
  private static final List<String> CALIBRATION =
      List.of(
          "A small dog ran across the wet field before the storm came.",
          "Prices rose faster than anyone at the bank had expected.",
          "She plays the violin in an orchestra of amateurs.",
          "The committee will publish its report in the spring.",
          "Water boils at a lower temperature on a high mountain.",
          "He could not remember where he had left the keys.",
          "The old bridge was closed to heavy lorries.",
          "Most of the students passed the examination.");
  private static final List<String> TEXTS =
      List.of(
          "The ship left the harbour at dawn.",
          "An engine of four cylinders drives the pump that empties the flooded lower gallery.",
          "Nobody answered.",
          "The painter mixed a little blue into the white to cool the light on the wall.");

  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();

  @TempDir static Path folder;

  private static Path resource(String name) throws IOException {
    Path file = folder.resolve(name);
    try (InputStream in = SimulationTest.class.getResourceAsStream("/" + name)) {
      Files.copy(in, file);
    }
    return file;
  }

  @Test
  void integersAndAnswersAreThoseOfTheRuntime() throws IOException, OrtException {
    Path original = resource("all-minilm-l6-v2.onnx");
    Path tokenizerFile = resource("all-minilm-l6-v2-tokenizer.json");
    try (TextTokenizer tokenizer = new TextTokenizer(tokenizerFile, 64)) {
      OnnxModel model = OnnxModel.read(original);
      DynamicQuantizer quantizer = new DynamicQuantizer(model, RuntimeRuns.exactDynamic());
      quantizer.calibrate(new TextActivations(tokenizer, CALIBRATION, 2));
      quantizer.prepareTraining();
      try (OnnxGraph graph = new OnnxGraph(model)) {
        compare(quantizer, graph, tokenizer);
      }
    }
  }

  /**
   * Every quantized activation of the model is compared, each behind the integers that the runtime had before
   * it. (Left to itself the simulation would leave the runtime after the first integer that a last bit of
   * float arithmetic moves, and so does the runtime leave itself when it fuses other nodes: one step more or
   * less in one integer moves many of the next layer's.)
   */
  private void compare(DynamicQuantizer quantizer, OnnxGraph graph, TextTokenizer tokenizer)
      throws OrtException {
    Map<String, TrainedWeight> weights = new HashMap<>();
    graph
        .parameters()
        .forEach(
            p -> weights.put(graph.constantOf(p.name()), new TrainedWeight(p, TorchDevice.CPU)));
    Map<String, String> nodes = new HashMap<>();
    for (QuantizedProduct p : quantizer.products()) {
      TrainedWeight w = weights.get(p.weight());
      w.quantize(p.grid(), p.integers(), p.scales(), false);
      // What the export writes is what forward reads.
      assertArrayEquals(p.integers(), w.integers(), p.name());
      w.parameter.nodes().forEach(n -> nodes.put(n, p.activation()));
    }
    OnnxModel exported = quantizer.quantizedCopy(m -> {});
    Map<String, List<String>> quantized = new LinkedHashMap<>();
    for (NodeProto n : exported.nodes()) {
      if (n.getOpType().equals("DynamicQuantizeLinear")) {
        quantized.put(n.getInput(0), n.getOutputList());
      }
    }
    Map<String, float[]> inputs = new LinkedHashMap<>();
    Map<String, float[]> grids = new LinkedHashMap<>();
    Map<String, Quantized> there = new HashMap<>();
    boolean[] follow = new boolean[1];
    long equal = 0;
    long all = 0;
    double[] cosine = {1, 1, 1};
    double[] largest = new double[3];
    try (ActivationSimulation simulation =
            new ActivationSimulation(nodes, Set.of(), new DynamicGrid(TorchDevice.CPU));
        OrtSession runtime = session(exported.toProto(), OptLevel.ALL_OPT);
        OrtSession unfused = session(exported.toProto(), OptLevel.NO_OPT);
        OrtSession tapped = session(withOutputs(exported, quantized.values()), OptLevel.ALL_OPT);
        OrtSession linear = session(quantizeLinear(), OptLevel.ALL_OPT)) {
      graph.transformInputs(
          (node, input) -> {
            UnaryOperator<Tensor> quantize = simulation.transform(node, input);
            String activation = nodes.get(node);
            return quantize == null
                ? null
                : x -> {
                  inputs.put(activation, floats(x));
                  Tensor y = quantize.apply(x);
                  grids.put(activation, floats(y));
                  return follow[0]
                      ? AbstractTensor.create(there.get(activation).values(), x.shape())
                      : y;
                };
          });
      for (String text : TEXTS) {
        long[] ids = tokenizer.encode(text).ids();
        float[] real = tap(tapped, ids, quantized, there);
        follow[0] = true;
        measure(simulate(graph, simulation, ids), real, 0, cosine, largest);
        assertEquals(quantized.keySet(), inputs.keySet());
        for (String activation : inputs.keySet()) {
          Quantized here = quantized(linear, inputs.get(activation));
          // The same float input gives the same integers in the runtime, bit for bit.
          assertArrayEquals(here.values(), grids.get(activation), activation);
          byte[] other = there.get(activation).integers();
          for (int i = 0; i < other.length; i++) {
            equal += other[i] == here.integers()[i] ? 1 : 0;
          }
          all += other.length;
        }
        follow[0] = false;
        float[] answer = hidden(runtime, ids);
        measure(simulate(graph, simulation, ids), answer, 1, cosine, largest);
        measure(hidden(unfused, ids), answer, 2, cosine, largest);
      }
    } finally {
      weights.values().forEach(TrainedWeight::close);
    }
    System.out.printf(
        Locale.ROOT,
        "simulation behind ONNX Runtime's integers: %d of %d equal (%.4f %%), smallest cosine %.8f,"
            + " largest difference %.1e; on its own: cosine %.6f, largest difference %.1e;"
            + " the runtime to itself without fusions: cosine %.6f, largest difference %.1e%n",
        equal,
        all,
        100.0 * equal / all,
        cosine[0],
        largest[0],
        cosine[1],
        largest[1],
        cosine[2],
        largest[2]);
    assertTrue(equal >= 0.999 * all, equal + " of " + all);
    assertTrue(cosine[0] >= 0.99999, "cosine " + cosine[0]);
    double own = 1 - cosine[2];
    assertTrue(1 - cosine[1] <= 3 * own, "cosine of a free run " + cosine[1] + ", " + cosine[2]);
  }

  private static void measure(
      float[] simulated, float[] real, int at, double[] cosine, double[] largest) {
    cosine[at] = Math.min(cosine[at], cosine(simulated, real));
    for (int i = 0; i < real.length; i++) {
      largest[at] = Math.max(largest[at], Math.abs(real[i] - simulated[i]));
    }
  }

  private static float[] simulate(OnnxGraph graph, ActivationSimulation simulation, long[] ids) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Batch batch = Batch.of(new Examples.Texts(List.of(ids)), new int[] {0}, graph.inputNames());
      simulation.begin(batch);
      return floats(graph.forward(batch.inputs()).get(graph.outputNames().get(0)));
    }
  }

  private static float[] floats(Tensor tensor) {
    Tensor t = tensor.contiguous();
    float[] values = new float[(int) t.numel()];
    new FloatPointer(t.data_ptr()).get(values);
    return values;
  }

  private static OrtSession session(ModelProto model, OptLevel level) throws OrtException {
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(1);
      options.setOptimizationLevel(level);
      return ENVIRONMENT.createSession(model.toByteArray(), options);
    }
  }

  private static ValueInfoProto value(String name, DataType type) {
    ValueInfoProto.Builder b = ValueInfoProto.newBuilder().setName(name);
    b.getTypeBuilder().getTensorTypeBuilder().setElemType(type.getNumber());
    return b.build();
  }

  private static ModelProto withOutputs(OnnxModel model, Iterable<List<String>> quantized) {
    ModelProto.Builder b = model.toProto().toBuilder();
    for (List<String> parts : quantized) {
      b.getGraphBuilder().addOutput(value(parts.get(0), DataType.UINT8));
      b.getGraphBuilder().addOutput(value(parts.get(1), DataType.FLOAT));
      b.getGraphBuilder().addOutput(value(parts.get(2), DataType.UINT8));
    }
    return b.build();
  }

  /** x → DynamicQuantizeLinear → its integers, and the floats that they stand for. */
  private static ModelProto quantizeLinear() {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("quantize")
            .addInput(value("x", DataType.FLOAT))
            .addNode(
                NodeProto.newBuilder()
                    .setOpType("DynamicQuantizeLinear")
                    .addInput("x")
                    .addOutput("q")
                    .addOutput("s")
                    .addOutput("z"))
            .addNode(
                NodeProto.newBuilder()
                    .setOpType("DequantizeLinear")
                    .addInput("q")
                    .addInput("s")
                    .addInput("z")
                    .addOutput("y"))
            .addOutput(value("q", DataType.UINT8))
            .addOutput(value("y", DataType.FLOAT));
    return org.espalier.format.onnx.SmallModels.model(13, g);
  }

  private record Quantized(byte[] integers, float[] values) {}

  private static Quantized quantized(OrtSession session, float[] x) throws OrtException {
    try (OnnxTensor input =
            OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(x), new long[] {x.length});
        OrtSession.Result result = session.run(Map.of("x", input))) {
      byte[] q = new byte[x.length];
      tensor(result, "q").getByteBuffer().get(q);
      return new Quantized(q, floats(tensor(result, "y")));
    }
  }

  private static Map<String, OnnxTensor> feed(long[] ids) throws OrtException {
    long[] ones = new long[ids.length];
    Arrays.fill(ones, 1);
    return Map.of(
        "input_ids", OnnxTensor.createTensor(ENVIRONMENT, new long[][] {ids}),
        "attention_mask", OnnxTensor.createTensor(ENVIRONMENT, new long[][] {ones}),
        "token_type_ids",
            OnnxTensor.createTensor(ENVIRONMENT, new long[][] {new long[ids.length]}));
  }

  private static float[] hidden(OrtSession session, long[] ids) throws OrtException {
    try (OrtSession.Result result = session.run(feed(ids))) {
      return floats((OnnxTensor) result.get(0));
    }
  }

  /** Runs the model, and reads its quantized activations too. */
  private static float[] tap(
      OrtSession session,
      long[] ids,
      Map<String, List<String>> quantized,
      Map<String, Quantized> to)
      throws OrtException {
    try (OrtSession.Result result = session.run(feed(ids))) {
      for (Map.Entry<String, List<String>> e : quantized.entrySet()) {
        ByteBuffer bytes = tensor(result, e.getValue().get(0)).getByteBuffer();
        float step = tensor(result, e.getValue().get(1)).getFloatBuffer().get(0);
        int zero = tensor(result, e.getValue().get(2)).getByteBuffer().get(0) & 255;
        byte[] integers = new byte[bytes.remaining()];
        bytes.get(integers);
        float[] values = new float[integers.length];
        for (int i = 0; i < values.length; i++) {
          values[i] = step * ((integers[i] & 255) - zero);
        }
        to.put(e.getKey(), new Quantized(integers, values));
      }
      return floats((OnnxTensor) result.get(0));
    }
  }

  private static OnnxTensor tensor(OrtSession.Result result, String name) {
    return (OnnxTensor) result.get(name).orElseThrow();
  }

  private static float[] floats(OnnxTensor tensor) {
    FloatBuffer values = tensor.getFloatBuffer();
    float[] result = new float[values.remaining()];
    values.get(result);
    return result;
  }

  private static double cosine(float[] a, float[] b) {
    double ab = 0;
    double aa = 0;
    double bb = 0;
    for (int i = 0; i < a.length; i++) {
      ab += (double) a[i] * b[i];
      aa += (double) a[i] * a[i];
      bb += (double) b[i] * b[i];
    }
    return ab / Math.sqrt(aa * bb);
  }
}
