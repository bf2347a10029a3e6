package org.espalier.benchmarks;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import java.nio.file.Path;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.HdrHistogram.Histogram;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.SGD;
import org.bytedeco.pytorch.SGDOptions;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.espalier.backend.Isa;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.Example;
import org.espalier.online.Learnable;
import org.espalier.online.LearningRate;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.model.LinearHead;
import org.espalier.online.model.TorchLearnable;
import org.espalier.torch.Libtorch;
import org.espalier.torch.ModuleModel;

/**
 * Updates a second of an online learner, and what they cost those who predict meanwhile, beside the loop
 * that one would write with libtorch: forward, loss, backward, {@code SGD::step} and predictions under
 * one lock.
 *
 * <p>Half load: steps come at half of the rate that the slowest contender can do alone, and predictions
 * in an open loop (each is due at a time that no other one delays, and its latency counts from there)
 * at half of what the readers of the slowest can do.
 *
 * <pre>OnlineLatency [--seconds 4] [--readers N] [--out FILE.json]</pre>
 */
public final class OnlineLatency {
  private static final int CASES = 1024;
  private static final float RATE = 0.01f;

  private final double seconds;
  private final int readers;

  private OnlineLatency(double seconds, int readers) {
    this.seconds = seconds;
    this.readers = readers;
  }

  /** Something that answers from several threads and learns in one. */
  private interface Contender extends AutoCloseable {
    void predict(float[] features);

    void learn(List<Example> batch);

    /** Examples of a step. */
    int batch();

    @Override
    void close();
  }

  public static void main(String[] arguments) throws Exception {
    Map<String, String> options = new TreeMap<>();
    for (int i = 0; i + 1 < arguments.length; i += 2) {
      options.put(arguments[i], arguments[i + 1]);
    }
    Libtorch.load();
    int processors = Runtime.getRuntime().availableProcessors();
    OnlineLatency benchmark =
        new OnlineLatency(
            Double.parseDouble(options.getOrDefault("--seconds", "4")),
            Integer.parseInt(
                options.getOrDefault("--readers", String.valueOf(Math.max(1, processors - 1)))));
    List<Map<String, Object>> rows = new ArrayList<>();
    for (String model : List.of("linear 1024-1", "perceptron 384-256-10")) {
      for (int batch : new int[] {1, 32}) {
        rows.addAll(benchmark.rows(model, batch));
      }
    }
    print(rows);
    if (options.containsKey("--out")) {
      Map<String, Object> document = new LinkedHashMap<>();
      document.put("time", Instant.now().toString());
      document.put("machine", Main.machine());
      document.put("isa", Isa.current().name().toLowerCase(Locale.ROOT));
      document.put("jvm", System.getProperty("java.vm.version"));
      document.put("rows", rows);
      new ObjectMapper()
          .enable(SerializationFeature.INDENT_OUTPUT)
          .writeValue(Path.of(options.get("--out")).toFile(), document);
    }
    System.exit(0); // libtorch's thread teams outlive main
  }

  private List<Map<String, Object>> rows(String model, int batch) throws InterruptedException {
    boolean linear = model.startsWith("linear");
    int features = linear ? 1024 : 384;
    List<Example> stream = stream(features, linear ? 2 : 10);
    Map<Map<String, Object>, Contender> contenders = new LinkedHashMap<>();
    for (int publishEvery : batch == 1 ? new int[] {1, 32} : new int[] {1}) {
      contenders.put(
          named("espalier", model, batch, publishEvery),
          new Learner(linear ? new LinearHead(features, 1) : perceptron(), batch, publishEvery));
    }
    if (!linear) {
      contenders.put(
          named("espalier by autograd", model, batch, 1),
          new Learner(
              new TorchLearnable(
                  new Perceptron().model(),
                  () -> new Perceptron().model(),
                  new long[] {features},
                  10),
              batch,
              1));
    }
    contenders.put(named("torch", model, batch, 1), new TorchLoop(linear, features, batch));
    double most = Double.POSITIVE_INFINITY;
    double load = most;
    double steps = most;
    Map<Map<String, Object>, Map<String, Object>> measured = new LinkedHashMap<>();
    for (Map.Entry<Map<String, Object>, Contender> entry : contenders.entrySet()) {
      Contender contender = entry.getValue();
      measure(contender, stream, 0, most, 0.7); // warms up
      double capacity = measure(contender, stream, -1, most, seconds / 2).updates;
      double frozen = measure(contender, stream, 0, 0, seconds / 4).predictions;
      double learning = measure(contender, stream, 0, capacity / 2, seconds / 4).predictions;
      Map<String, Object> row = new LinkedHashMap<>(entry.getKey());
      row.put("updates_per_s", capacity);
      row.put("predictions_per_s_frozen", frozen);
      row.put("predictions_per_s_learning", learning);
      measured.put(entry.getKey(), row);
      load = Math.min(load, Math.min(frozen, learning) / 2);
      steps = Math.min(steps, capacity / 2);
    }
    List<Map<String, Object>> rows = new ArrayList<>();
    for (Map.Entry<Map<String, Object>, Contender> entry : contenders.entrySet()) {
      Map<String, Object> row = measured.get(entry.getKey());
      Measured frozen = measure(entry.getValue(), stream, load, 0, seconds);
      Measured learning = measure(entry.getValue(), stream, load, steps, seconds);
      row.put("load_per_s", load);
      row.put("load_updates_per_s", learning.updates);
      for (double percentile : new double[] {50, 99, 99.9}) {
        String name = "p" + String.valueOf(percentile).replace(".0", "").replace(".", "_") + "_us";
        row.put("frozen_" + name, frozen.latencies.getValueAtPercentile(percentile) * 1e-3);
        row.put("learning_" + name, learning.latencies.getValueAtPercentile(percentile) * 1e-3);
      }
      rows.add(row);
    }
    contenders.values().forEach(Contender::close);
    return rows;
  }

  private Map<String, Object> named(String method, String model, int batch, int publishEvery) {
    Map<String, Object> row = new LinkedHashMap<>();
    row.put("operation", "OnlineLatency");
    row.put("method", method);
    row.put("model", model);
    row.put("batch", batch);
    row.put("publish_every", publishEvery);
    row.put("readers", readers);
    return row;
  }

  /**
   * @param updates steps a second
   * @param predictions a second
   * @param latencies ns
   */
  private record Measured(double updates, double predictions, Histogram latencies) {}

  /**
   * @param load predictions a second of all readers; 0 for as many as they can, −1 for no readers
   * @param updates a second; infinite for as many as it can
   */
  private Measured measure(
      Contender contender, List<Example> stream, double load, double updates, double duration)
      throws InterruptedException {
    AtomicBoolean stop = new AtomicBoolean();
    AtomicLong steps = new AtomicLong();
    List<Histogram> latencies = new ArrayList<>();
    List<Thread> threads = new ArrayList<>();
    if (updates > 0) {
      threads.add(new Thread(() -> steps.set(learn(contender, stream, stop, 1e9 / updates))));
    }
    for (int r = 0; load >= 0 && r < readers; r++) {
      Histogram histogram = new Histogram(60_000_000_000L, 3);
      latencies.add(histogram);
      double interval = load == 0 ? 0 : readers * 1e9 / load;
      threads.add(new Thread(() -> predict(contender, stream, stop, interval, histogram)));
    }
    long begin = System.nanoTime();
    threads.forEach(Thread::start);
    Thread.sleep((long) (duration * 1e3));
    stop.set(true);
    for (Thread thread : threads) {
      thread.join();
    }
    double taken = (System.nanoTime() - begin) * 1e-9;
    Histogram all = new Histogram(60_000_000_000L, 3);
    latencies.forEach(all::add);
    return new Measured(steps.get() / taken, all.getTotalCount() / taken, all);
  }

  private static long learn(
      Contender contender, List<Example> stream, AtomicBoolean stop, double interval) {
    long begin = System.nanoTime();
    long steps = 0;
    for (int at = 0; !stop.get(); at = (at + 32) % CASES, steps += 32 / contender.batch()) {
      if (!isDue(begin + (long) (steps * interval), stop)) {
        break;
      }
      for (int k = at; k < at + 32; k += contender.batch()) {
        contender.learn(stream.subList(k, k + contender.batch()));
      }
    }
    return steps;
  }

  /** Waits; false where it stops before. */
  private static boolean isDue(long due, AtomicBoolean stop) {
    long wait;
    while ((wait = due - System.nanoTime()) > 0) {
      if (stop.get()) {
        return false;
      }
      if (wait > 200_000) {
        LockSupport.parkNanos(wait - 100_000); // a park may take 60 us longer than asked
      } else {
        Thread.onSpinWait();
      }
    }
    return true;
  }

  private static void predict(
      Contender contender,
      List<Example> stream,
      AtomicBoolean stop,
      double interval,
      Histogram latencies) {
    long begin = System.nanoTime();
    for (long n = 1; !stop.get(); n++) {
      long due = interval == 0 ? System.nanoTime() : begin + (long) (n * interval);
      if (!isDue(due, stop)) {
        return;
      }
      contender.predict(stream.get((int) (n % CASES)).features());
      latencies.recordValue(System.nanoTime() - due);
    }
  }

  private static List<Example> stream(int features, int classes) {
    Random random = new Random(1);
    List<Example> list = new ArrayList<>();
    for (int i = 0; i < CASES; i++) {
      float[] x = new float[features];
      for (int j = 0; j < features; j++) {
        x[j] = (float) (random.nextGaussian() / Math.sqrt(features));
      }
      int label = 0;
      for (int c = 1; c < classes; c++) {
        label = x[c] > x[label] ? c : label;
      }
      list.add(Example.of(x, label));
    }
    return list;
  }

  /** 384-256-10 with tanh. */
  private static final class Perceptron extends Module {
    private final LinearImpl first = new LinearImpl(384, 256);
    private final LinearImpl second = new LinearImpl(256, 10);

    Perceptron() {
      register_module("first", first);
      register_module("second", second);
    }

    Tensor forward(Tensor x) {
      return second.forward(first.forward(x).tanh());
    }

    ModuleModel model() {
      return new ModuleModel(
          "perceptron", this, List.of("x"), List.of("y"), in -> List.of(forward(in.get(0))));
    }
  }

  /** The same model from ONNX, which is learned without libtorch. */
  private static Learnable perceptron() {
    Random random = new Random(2);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("perceptron")
            .addInput(ValueInfoProto.newBuilder().setName("x"))
            .addOutput(ValueInfoProto.newBuilder().setName("y"))
            .addNode(gemm("h", "x", "first"))
            .addNode(NodeProto.newBuilder().setOpType("Tanh").addInput("h").addOutput("t"))
            .addNode(gemm("y", "t", "second"));
    for (int[] layer : new int[][] {{256, 384}, {10, 256}}) {
      String name = layer[0] == 256 ? "first" : "second";
      TensorProto.Builder weight = tensor(name + ".weight").addDims(layer[0]).addDims(layer[1]);
      for (int i = 0; i < layer[0] * layer[1]; i++) {
        weight.addFloatData((float) (random.nextGaussian() / Math.sqrt(3.0 * layer[1])));
      }
      TensorProto.Builder bias = tensor(name + ".bias").addDims(layer[0]);
      for (int i = 0; i < layer[0]; i++) {
        bias.addFloatData(0);
      }
      graph.addInitializer(weight).addInitializer(bias);
    }
    ModelProto model =
        ModelProto.newBuilder()
            .setIrVersion(7)
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(13))
            .setGraph(graph)
            .build();
    return org.espalier.online.model.Perceptron.of(OnnxModel.of(model, "perceptron")).orElseThrow();
  }

  private static TensorProto.Builder tensor(String name) {
    return TensorProto.newBuilder().setName(name).setDataType(TensorProto.DataType.FLOAT_VALUE);
  }

  private static NodeProto gemm(String output, String input, String layer) {
    return NodeProto.newBuilder()
        .setOpType("Gemm")
        .addInput(input)
        .addInput(layer + ".weight")
        .addInput(layer + ".bias")
        .addOutput(output)
        .addAttribute(
            AttributeProto.newBuilder()
                .setName("transB")
                .setType(AttributeProto.AttributeType.INT)
                .setI(1))
        .build();
  }

  private static final class Learner implements Contender {
    private final OnlineLearner learner;
    private final Learnable model;

    Learner(Learnable model, int batch, int publishEvery) {
      this.model = model;
      learner =
          new OnlineLearner(
              model,
              OnlineSettings.builder(
                      model.outputs() == 1 ? new Loss.Binary() : new Loss.CrossEntropy(),
                      new LearningRate.Constant(RATE))
                  .batch(batch)
                  .publishEvery(publishEvery)
                  .build());
    }

    @Override
    public void predict(float[] features) {
      learner.predict(features);
    }

    @Override
    public void learn(List<Example> batch) {
      learner.learn(batch);
    }

    @Override
    public int batch() {
      return learner.settings().batch();
    }

    @Override
    public void close() {
      learner.close();
      model.close();
    }
  }

  private static final class TorchLoop implements Contender {
    private final boolean linear;
    private final int features;
    private final int batch;
    private final LinearImpl head;
    private final Perceptron perceptron;
    private final SGD sgd;

    TorchLoop(boolean linear, int features, int batch) {
      this.linear = linear;
      this.features = features;
      this.batch = batch;
      head = linear ? new LinearImpl(features, 1) : null;
      perceptron = linear ? null : new Perceptron();
      sgd = new SGD(linear ? head.parameters() : perceptron.parameters(), new SGDOptions(RATE));
    }

    private Tensor run(FloatPointer x, int rows) {
      Tensor input =
          torch.from_blob(
              x, new long[] {rows, features}, new TensorOptions(torch.ScalarType.Float));
      return linear ? head.forward(input) : perceptron.forward(input);
    }

    @Override
    public void predict(float[] x) {
      synchronized (this) {
        try (PointerScope scope = new PointerScope();
            NoGradGuard noGrad = new NoGradGuard()) {
          Tensor out = run(new FloatPointer(x), 1);
          float[] answer = new float[linear ? 1 : 10];
          new FloatPointer(out.data_ptr()).get(answer);
        }
      }
    }

    @Override
    public void learn(List<Example> examples) {
      synchronized (this) {
        try (PointerScope scope = new PointerScope()) {
          FloatPointer x = new FloatPointer((long) examples.size() * features);
          float[] binary = new float[examples.size()];
          long[] labels = new long[examples.size()];
          for (int i = 0; i < examples.size(); i++) {
            x.position((long) i * features).put(examples.get(i).features());
            binary[i] = examples.get(i).label();
            labels[i] = examples.get(i).label();
          }
          sgd.zero_grad();
          Tensor out = run(x.position(0), examples.size());
          Tensor loss =
              linear
                  ? torch.binary_cross_entropy_with_logits(
                      out.view(-1),
                      torch.from_blob(
                          new FloatPointer(binary),
                          new long[] {binary.length},
                          new TensorOptions(torch.ScalarType.Float)))
                  : torch.cross_entropy_loss(
                      out,
                      torch.from_blob(
                          new org.bytedeco.javacpp.LongPointer(labels),
                          new long[] {labels.length},
                          new TensorOptions(torch.ScalarType.Long)));
          loss.backward();
          sgd.step();
        }
      }
    }

    @Override
    public int batch() {
      return batch;
    }

    @Override
    public void close() {
      sgd.close();
    }
  }

  private static void print(List<Map<String, Object>> rows) {
    System.out.println(
        "| model | method | batch, publish every | updates/s | load: updates/s, predictions/s |"
            + " frozen p50, p99, p99.9 us | learning p50, p99, p99.9 us |");
    System.out.println("|---|---|---|---|---|---|---|");
    for (Map<String, Object> r : rows) {
      System.out.printf(
          Locale.ROOT,
          "| %s | %s | %d, %d | %.0f | %.0f, %.0f | %.2f, %.2f, %.2f | %.2f, %.2f, %.2f |%n",
          r.get("model"),
          r.get("method"),
          (Integer) r.get("batch"),
          (Integer) r.get("publish_every"),
          (Double) r.get("updates_per_s"),
          (Double) r.get("load_updates_per_s"),
          (Double) r.get("load_per_s"),
          (Double) r.get("frozen_p50_us"),
          (Double) r.get("frozen_p99_us"),
          (Double) r.get("frozen_p99_9_us"),
          (Double) r.get("learning_p50_us"),
          (Double) r.get("learning_p99_us"),
          (Double) r.get("learning_p99_9_us"));
    }
  }
}
