import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.Guard;
import org.espalier.online.Learnable;
import org.espalier.online.LearningRate;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.model.LinearHead;
import org.espalier.online.model.Perceptron;
import org.espalier.online.privacy.Privacy;
import org.espalier.op.Activation;

/**
 * Ways to learn the mails, each measured on mails 1,001 to the last before it learns them.
 *
 * <p>java -cp … MailStream.java mails.jsonl FEATURES
 */
public final class MailStream {
  private static final int KNOWN = 1000;
  private static final int PASSES = 25;

  private static int features;

  public static void main(String[] args) throws Exception {
    features = Integer.parseInt(args[1]);
    List<Example> mails = new ArrayList<>();
    try (LinearHead head = new LinearHead(features, 1);
        OnlineLearner shape = new OnlineLearner(head, settings(1, 1).build())) {
      ExampleLines lines = new ExampleLines(shape);
      for (String line : Files.readAllLines(Path.of(args[0]))) {
        mails.add(lines.json(line).example());
      }
    }
    System.out.printf("%-44s %9s %8s %14s%n", "way", "accuracy", "AUC", "examples/s");
    run("frozen after 1,000", mails, settings(1, 3), KNOWN);
    for (double rate : new double[] {1, 3, 10}) {
      run("online, batch 1, rate " + rate, mails, settings(1, rate), mails.size());
    }
    for (double rate : new double[] {1, 3, 10}) {
      run(
          "online, batch 1, calls of 32, rate " + rate,
          mails,
          settings(1, rate).publishEvery(32),
          mails.size());
    }
    for (double rate : new double[] {1, 3, 10, 30}) {
      run("online, batch 32, rate " + rate, mails, settings(32, rate), mails.size());
    }
    run("online, batch 1, rate 3, averaged", mails, settings(1, 3).averaging(0.95), mails.size());
    run(
        "online, batch 1, rate 3, restart on drift",
        mails,
        settings(1, 3).drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESTART)),
        mails.size());
    run(
        "online, batch 1, rate 3, reset on drift",
        mails,
        settings(1, 3).drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESET)),
        mails.size());
    run(
        "online, batch 1, rate 3, guarded",
        mails,
        settings(1, 3).guard(new Guard(null, null, new Guard.Quality(20, 60, 200, 0.1))),
        mails.size());
    for (double rate : new double[] {0.1, 0.3, 1}) {
      run(
          "perceptron of 64, batch 1, rate " + rate,
          mails,
          settings(1, rate),
          mails.size(),
          MailStream::perceptron);
      run(
          "perceptron of 64, batch 32, rate " + rate,
          mails,
          settings(32, rate),
          mails.size(),
          MailStream::perceptron);
    }
    run("online, batch 1, rate 3, int8", mails, settings(1, 3).int8(true), mails.size());
    run(
        "online, batch 64, rate 3, private, epsilon 8",
        mails,
        settings(64, 3).privacy(Privacy.forEpsilon(8, 1e-5, 1, 1)),
        mails.size());
  }

  private static OnlineSettings.Builder settings(int batch, double rate) {
    return OnlineSettings.builder(new Loss.Binary(), new LearningRate.Constant(rate)).batch(batch);
  }

  private static Learnable perceptron() {
    return Perceptron.drawn(features, List.of(64), 1, Activation.RELU, new Loss.Binary(), 1);
  }

  private static void run(
      String name, List<Example> mails, OnlineSettings.Builder builder, int learned) {
    run(name, mails, builder, learned, () -> new LinearHead(features, 1));
  }

  private static void run(
      String name,
      List<Example> mails,
      OnlineSettings.Builder builder,
      int learned,
      Supplier<Learnable> models) {
    OnlineSettings settings = builder.build();
    for (int round = 0; round < 3; round++) { // to warm up
      pass(null, mails, settings, learned, models);
    }
    pass(name, mails, settings, learned, models);
  }

  private static void pass(
      String name,
      List<Example> mails,
      OnlineSettings settings,
      int learned,
      Supplier<Learnable> models) {
    int call = settings.batch() * settings.publishEvery();
    int n = mails.size();
    double[] score = new double[n];
    try (Learnable model = models.get();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      for (int at = 0; at < n; at += call) {
        int end = Math.min(n, at + call);
        for (int i = at; i < end; i++) {
          score[i] = learner.predict(mails.get(i).features()).outputs()[0];
        }
        if (at < learned) {
          learner.learn(mails.subList(at, end));
        }
      }
    }
    // Time of the updates alone, without the predictions above: learning measures by itself.
    // The fastest of some passes, because a shared machine only ever makes one slower.
    double seconds = Double.POSITIVE_INFINITY;
    for (int round = 0; round < PASSES; round++) {
      try (Learnable model = models.get();
          OnlineLearner learner = new OnlineLearner(model, settings)) {
        long begin = System.nanoTime();
        for (int at = 0; at < learned; at += call) {
          learner.learn(mails.subList(at, Math.min(n, at + call)));
        }
        seconds = Math.min(seconds, (System.nanoTime() - begin) * 1e-9);
      }
    }
    if (name == null) {
      return;
    }
    int right = 0;
    for (int i = KNOWN; i < n; i++) {
      right += score[i] > 0 == (mails.get(i).label() == 1) ? 1 : 0;
    }
    System.out.printf(
        Locale.ROOT,
        "%-44s %9.4f %8.4f %14.0f%n",
        name,
        (double) right / (n - KNOWN),
        auc(score, mails),
        learned / seconds);
  }

  private static double auc(double[] score, List<Example> mails) {
    int[] order =
        IntStream.range(KNOWN, score.length)
            .boxed()
            .sorted(Comparator.comparingDouble(i -> score[i]))
            .mapToInt(i -> i)
            .toArray();
    double ranks = 0;
    double positives = 0;
    for (int i = 0; i < order.length; ) {
      int end = i;
      while (end < order.length && score[order[end]] == score[order[i]]) {
        end++;
      }
      for (int k = i; k < end; k++) {
        if (mails.get(order[k]).label() == 1) {
          positives++;
          ranks += 0.5 * (i + end + 1);
        }
      }
      i = end;
    }
    return (ranks - 0.5 * positives * (positives + 1)) / (positives * (order.length - positives));
  }
}
