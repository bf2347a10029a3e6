package org.espalier.benchmarks;

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
import org.espalier.online.Example;
import org.espalier.online.LearningRate;
import org.espalier.online.LinearHead;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.TorchLearnable;
import org.espalier.torch.Libtorch;
import org.espalier.torch.ModuleModel;

/**
 * Updates a second of an online learner, and what they cost those who predict meanwhile, beside the loop
 * that one would write with libtorch: forward, loss, backward, {@code SGD::step} and predictions under
 * one lock.
 *
 * <p>Predictions come in an open loop: each is due at a time that no other one delays, and its latency
 * counts from there. Their rate is half of what the readers can do, frozen or learning, whichever is
 * less. The learner learns as fast as it can.
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
    torch.set_num_threads(1);
    int processors = Runtime.getRuntime().availableProcessors();
    OnlineLatency benchmark =
        new OnlineLatency(
            Double.parseDouble(options.getOrDefault("--seconds", "4")),
            Integer.parseInt(
                options.getOrDefault("--readers", String.valueOf(Math.max(1, processors - 1)))));
    List<Map<String, Object>> rows = new ArrayList<>();
    for (String model : List.of("linear 1024-1", "perceptron 384-256-10")) {
      for (int[] steps : new int[][] {{1, 1}, {1, 32}, {32, 1}}) {
        rows.add(benchmark.row(model, "espalier", steps[0], steps[1]));
      }
      rows.add(benchmark.row(model, "torch", 1, 1));
      rows.add(benchmark.row(model, "torch", 32, 1));
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

  private Map<String, Object> row(String model, String method, int batch, int publishEvery)
      throws InterruptedException {
    boolean linear = model.startsWith("linear");
    int features = linear ? 1024 : 384;
    List<Example> stream = stream(features, linear ? 2 : 10);
    Map<String, Object> row = new LinkedHashMap<>();
    row.put("operation", "OnlineLatency");
    row.put("method", method);
    row.put("model", model);
    row.put("batch", batch);
    row.put("publish_every", publishEvery);
    row.put("readers", readers);
    try (Contender contender =
        method.equals("torch")
            ? new TorchLoop(linear, features, batch)
            : new Learner(linear, features, batch, publishEvery)) {
      measure(contender, stream, 0, true, 0.5); // warms up
      row.put("updates_per_s", measure(contender, stream, -1, true, seconds / 2).updates);
      double frozenCapacity = measure(contender, stream, 0, false, seconds / 4).predictions;
      double learningCapacity = measure(contender, stream, 0, true, seconds / 4).predictions;
      row.put("predictions_per_s_frozen", frozenCapacity);
      row.put("predictions_per_s_learning", learningCapacity);
      double load = Math.min(frozenCapacity, learningCapacity) / 2;
      row.put("load_per_s", load);
      Measured frozen = measure(contender, stream, load, false, seconds);
      Measured learning = measure(contender, stream, load, true, seconds);
      row.put("updates_per_s_beside_predictions", learning.updates);
      for (double percentile : new double[] {50, 99, 99.9}) {
        String name = "p" + String.valueOf(percentile).replace(".0", "").replace(".", "_") + "_us";
        row.put("frozen_" + name, frozen.latencies.getValueAtPercentile(percentile) * 1e-3);
        row.put("learning_" + name, learning.latencies.getValueAtPercentile(percentile) * 1e-3);
      }
    }
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
   */
  private Measured measure(
      Contender contender, List<Example> stream, double load, boolean learns, double duration)
      throws InterruptedException {
    AtomicBoolean stop = new AtomicBoolean();
    AtomicLong updates = new AtomicLong();
    List<Histogram> latencies = new ArrayList<>();
    List<Thread> threads = new ArrayList<>();
    if (learns) {
      threads.add(new Thread(() -> updates.set(learn(contender, stream, stop))));
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
    return new Measured(updates.get() / taken, all.getTotalCount() / taken, all);
  }

  private static long learn(Contender contender, List<Example> stream, AtomicBoolean stop) {
    long steps = 0;
    for (int at = 0; !stop.get(); at = (at + 32) % CASES, steps += 32 / contender.batch()) {
      for (int k = at; k < at + 32; k += contender.batch()) {
        contender.learn(stream.subList(k, k + contender.batch()));
      }
    }
    return steps;
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
      long wait;
      while ((wait = due - System.nanoTime()) > 0 && !stop.get()) {
        if (wait > 200_000) {
          LockSupport.parkNanos(wait - 100_000); // a park may take 60 us longer than asked
        } else {
          Thread.onSpinWait();
        }
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

  private static final class Learner implements Contender {
    private final OnlineLearner learner;
    private final org.espalier.online.Learnable model;

    Learner(boolean linear, int features, int batch, int publishEvery) {
      model =
          linear
              ? new LinearHead(features, 1)
              : new TorchLearnable(
                  new Perceptron().model(), () -> new Perceptron().model(), new long[] {384}, 10);
      learner =
          new OnlineLearner(
              model,
              OnlineSettings.builder(
                      linear ? new Loss.Binary() : new Loss.CrossEntropy(),
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
      sgd =
          new SGD(
              linear ? head.parameters() : perceptron.parameters(), new SGDOptions(RATE));
    }

    private Tensor run(FloatPointer x, int rows) {
      Tensor input =
          torch.from_blob(x, new long[] {rows, features}, new TensorOptions(torch.ScalarType.Float));
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
        "| model | method | batch, publish every | updates/s | beside predictions | load/s | frozen p50, p99,"
            + " p99.9 us | learning p50, p99, p99.9 us |");
    System.out.println("|---|---|---|---|---|---|---|---|");
    for (Map<String, Object> r : rows) {
      System.out.printf(
          Locale.ROOT,
          "| %s | %s | %d, %d | %.0f | %.0f | %.0f | %.2f, %.2f, %.2f | %.2f, %.2f, %.2f |%n",
          r.get("model"),
          r.get("method"),
          (Integer) r.get("batch"),
          (Integer) r.get("publish_every"),
          (Double) r.get("updates_per_s"),
          (Double) r.get("updates_per_s_beside_predictions"),
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
