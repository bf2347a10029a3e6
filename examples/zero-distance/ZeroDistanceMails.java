import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.LearningRate;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.ZeroDistance;
import org.espalier.online.model.LinearHead;

/**
 * Learns the mails with the output tied to a function of the real outcome, and says how far from it the
 * answers for mails 1,001 to the last were, each before it was learned.
 *
 * <p>java -cp … ZeroDistanceMails.java mails.jsonl FEATURES
 */
public final class ZeroDistanceMails {
  private static final int KNOWN = 1000;

  /** What a spam's score shall be; that of the others is its negative. */
  private static final float SCORE = 2;

  public static void main(String[] args) throws Exception {
    int features = Integer.parseInt(args[1]);
    List<Example> classes = new ArrayList<>();
    List<Example> values = new ArrayList<>();
    try (LinearHead head = new LinearHead(features, 1);
        OnlineLearner shape = new OnlineLearner(head, settings(new Loss.Binary(), 1, null))) {
      ExampleLines lines = new ExampleLines(shape);
      for (String line : Files.readAllLines(Path.of(args[0]))) {
        Example example = lines.json(line).example();
        classes.add(example);
        values.add(Example.of(example.features(), example.label() == 1 ? SCORE : -SCORE));
      }
    }
    ZeroDistance.Target score = ZeroDistance.scaled(ZeroDistance.ONE_HOT, 2 * SCORE, -SCORE);
    System.out.printf("%-44s %9s %9s %9s %9s%n", "way", "accuracy", "distance", "mean", "largest");
    Loss.Binary binary = new Loss.Binary();
    run("cross-entropy alone", classes, settings(binary, 1, null));
    for (double rho : new double[] {0.03, 0.1, 0.3}) {
      run(
          "tied to ±2, penalty " + rho,
          classes,
          settings(binary, 1, new ZeroDistance(score, rho, false)));
    }
    run(
        "tied to ±2, augmented Lagrangian 0.03",
        classes,
        settings(binary, 1, new ZeroDistance(score, 0.03, true)));
    Loss.Squared squared = new Loss.Squared();
    run("squared error of ±2 alone", values, settings(squared, 0.3, null));
    run(
        "tied to the outcome itself, penalty 1",
        values,
        settings(squared, 0.3, new ZeroDistance(ZeroDistance.IDENTITY, 1, false)));
    run(
        "tied to the batch's maximum, penalty 1",
        values,
        settings(squared, 0.3, new ZeroDistance(ZeroDistance.BATCH_MAXIMUM, 1, false)));
  }

  private static OnlineSettings settings(Loss loss, double rate, ZeroDistance tie) {
    return OnlineSettings.builder(loss, new LearningRate.Constant(rate))
        .batch(loss.isForClasses() ? 1 : 8)
        .constraint(tie)
        .build();
  }

  private static void run(String name, List<Example> mails, OnlineSettings settings) {
    int right = 0;
    double distance = 0;
    double sum = 0;
    double largest = 0;
    int n = mails.size();
    try (LinearHead head = new LinearHead(mails.get(0).features().length, 1);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      for (int at = 0; at < n; at += settings.batch()) {
        int end = Math.min(n, at + settings.batch());
        for (int i = Math.max(at, KNOWN); i < end; i++) {
          Example mail = mails.get(i);
          float out = learner.predict(mail.features()).outputs()[0];
          boolean spam = mail.values() == null ? mail.label() == 1 : mail.values()[0] > 0;
          right += out > 0 == spam ? 1 : 0;
          double d = out - (spam ? SCORE : -SCORE);
          distance += d * d;
          sum += Math.abs(out);
          largest = Math.max(largest, Math.abs(out));
        }
        learner.learn(mails.subList(at, end));
      }
    }
    int counted = n - KNOWN;
    System.out.printf(
        Locale.ROOT,
        "%-44s %9.4f %9.3f %9.2f %9.2f%n",
        name,
        (double) right / counted,
        Math.sqrt(distance / counted),
        sum / counted,
        largest);
  }
}
