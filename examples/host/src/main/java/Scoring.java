import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.concurrent.atomic.AtomicBoolean;
import org.espalier.device.Tensor;
import org.espalier.online.Example;
import org.espalier.online.Guard;
import org.espalier.online.LearningRate;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.model.LinearHead;
import org.espalier.op.MagnitudePrune;

/**
 * What a service that scores events does inside its own process: it prunes weights that it holds, and it answers
 * from one thread while another learns what became of the events, which change half-way.
 */
public final class Scoring {
  private static final int FEATURES = 64;
  private static final int EVENTS = 200_000;

  public static void main(String[] args) throws Exception {
    prune();
    score(Path.of(args.length > 0 ? args[0] : "target/scoring.onnx"));
  }

  /** Exactly nine of ten weights of a matrix, in memory that is the application's. */
  private static void prune() {
    int n = 1024 * 1024;
    ByteBuffer memory = ByteBuffer.allocateDirect(4 * n).order(ByteOrder.nativeOrder());
    FloatBuffer weights = memory.asFloatBuffer();
    Random random = new Random(1);
    for (int i = 0; i < n; i++) {
      weights.put(i, (float) random.nextGaussian());
    }
    var result =
        MagnitudePrune.prune(
            List.of(MagnitudePrune.Weights.of("layer", Tensor.of(weights, 1024, 1024)).inPlace()),
            new MagnitudePrune.Amount(0.9, MagnitudePrune.Scope.GLOBAL));
    System.out.printf(
        Locale.ROOT,
        "pruned %,d of %,d weights, all up to %.4f%n",
        result.pruned(),
        result.total(),
        result.threshold());
  }

  private static void score(Path exported) throws Exception {
    List<Example> events = events();
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Binary(), new LearningRate.Constant(0.05))
            .batch(8)
            .guard(new Guard(null, new Guard.Spike(10, 100, 20), null))
            .build();
    try (LinearHead head = new LinearHead(FEATURES, 1);
        OnlineLearner learner = new OnlineLearner(head, settings);
        LinearHead still = new LinearHead(FEATURES, 1);
        OnlineLearner frozen = new OnlineLearner(still, settings)) {
      // An application's other thread, which only asks.
      AtomicBoolean done = new AtomicBoolean();
      List<Long> nanoseconds = new ArrayList<>();
      Thread asking =
          new Thread(
              () -> {
                for (int i = 0; !done.get(); i++) {
                  long begin = System.nanoTime();
                  learner.predict(events.get(i % EVENTS).features());
                  nanoseconds.add(System.nanoTime() - begin);
                }
              });
      asking.start();
      int[][] right = new int[2][2]; // of the learner and the frozen one, before and after
      for (int i = 0; i < EVENTS; i += 8) {
        List<Example> batch = events.subList(i, i + 8);
        int half = i < EVENTS / 2 ? 0 : 1;
        for (Example event : batch) {
          right[0][half] += isRight(learner, event) ? 1 : 0;
          right[1][half] += isRight(frozen, event) ? 1 : 0;
        }
        learner.learn(batch);
        if (half == 0) {
          frozen.learn(batch);
        }
      }
      done.set(true);
      asking.join();
      System.out.printf(
          Locale.ROOT,
          "right before and after the change: %.3f and %.3f; without learning on: %.3f and %.3f%n",
          right[0][0] / (EVENTS / 2.0),
          right[0][1] / (EVENTS / 2.0),
          right[1][0] / (EVENTS / 2.0),
          right[1][1] / (EVENTS / 2.0));
      long[] sorted = nanoseconds.stream().mapToLong(Long::longValue).sorted().toArray();
      System.out.printf(
          Locale.ROOT,
          "%,d answers beside it, version %,d at the end: half within %.1f µs, 99 of 100 within"
              + " %.1f µs%n",
          sorted.length,
          learner.version(),
          sorted[sorted.length / 2] * 1e-3,
          sorted[(int) (sorted.length * 0.99)] * 1e-3);
      learner.toOnnx().write(exported);
      System.out.println("wrote " + exported.toAbsolutePath());
    }
  }

  private static boolean isRight(OnlineLearner learner, Example event) {
    return learner.predict(event.features()).outputs()[0] > 0 == (event.label() == 1);
  }

  /** Events whose outcome depends on their features, in another way in the second half. */
  private static List<Example> events() {
    Random random = new Random(2);
    double[] weights = new double[FEATURES];
    List<Example> events = new ArrayList<>();
    for (int i = 0; i < EVENTS; i++) {
      if (i % (EVENTS / 2) == 0) {
        Arrays.setAll(weights, j -> random.nextGaussian());
      }
      float[] features = new float[FEATURES];
      double sum = random.nextGaussian();
      for (int j = 0; j < FEATURES; j++) {
        features[j] = (float) random.nextGaussian();
        sum += weights[j] * features[j];
      }
      events.add(Example.of(features, sum > 0 ? 1 : 0));
    }
    return events;
  }
}
