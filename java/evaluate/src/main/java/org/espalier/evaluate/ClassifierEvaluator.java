package org.espalier.evaluate;

import java.util.Comparator;
import java.util.EnumSet;
import java.util.List;
import java.util.LongSummaryStatistics;
import java.util.PriorityQueue;
import java.util.Set;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.ClassifierOutput.Form;
import org.espalier.format.onnx.LogitRows;

/** Compares two ONNX classifiers on labelled examples. */
public final class ClassifierEvaluator {
  /** Probabilities are kept at this distance from 0 and 1 at least: float32 can tell no less from 1. */
  private static final double LEAST = 0x1p-24;

  /** Answers whose probabilities differ by less are the same for people. */
  private static final double LEAST_CHANGE = 0.01;

  /** Of the answers that changed most. */
  private static final int SHOWN = 12;

  /** Another class is more of a change than any other probability. */
  private static final Comparator<ChangedAnswer> MOST_CHANGED =
      Comparator.comparing((ChangedAnswer answer) -> !answer.isSameClass())
          .thenComparing(ChangedAnswer::distance)
          .thenComparing(ChangedAnswer::example, Comparator.reverseOrder());

  private ClassifierEvaluator() {}

  /**
   * What {@link #evaluate} measures by such labels, beside what is saved; what outputs look like may leave some of it undefined.
   *
   * @param labels the right classes of each example; negative where it is unknown
   * @param tags the names of the classes; empty where they have none
   */
  public static Set<Measure> measures(List<long[]> labels, List<String> tags) {
    Set<Measure> measures = EnumSet.copyOf(Measure.OF_CLASSIFIERS);
    if (EntityTags.of(tags) == null) {
      measures.remove(Measure.ENTITY_F1);
    }
    LongSummaryStatistics known =
        labels.stream().flatMapToLong(LongStream::of).filter(c -> c >= 0).summaryStatistics();
    if (known.getMin() != 0 || known.getMax() != 1) {
      measures.remove(Measure.AUC);
    }
    return measures;
  }

  /**
   * Compares the candidate of a pair with its reference. The first output of each holds logits, or probabilities
   * by a Sigmoid or Softmax; {@link LogitRows} says which of them belong to a label. A single one is of class 1
   * against class 0. Tokens that an input {@code attention_mask} leaves out are not looked at.
   *
   * @param labels the right classes of each example; negative where it is unknown
   * @param tags the names of the classes, where they may be {@link EntityTags}; empty where they have none
   * @param progress receives the progress
   * @throws InputException when a model cannot be run, the two differ in classes, a label is none of them, or there are not
   *     as many names as classes
   */
  public static ClassifierFidelity evaluate(
      ModelPair pair, List<long[]> labels, List<String> tags, Progress progress) {
    Form firstForm = ClassifierOutput.of(pair.referenceModel().graph()).form();
    Form secondForm = ClassifierOutput.of(pair.candidateModel().graph()).form();
    Comparison comparison =
        new Comparison(pair, labels, firstForm, secondForm, EntityTags.of(tags));
    for (int i = 0; i < pair.size(); i++) {
      progress.at(Progress.Phase.EVALUATE, i, pair.size());
      comparison.add(i);
    }
    return comparison.result();
  }

  private static LogitRows rows(String model, long[] shape, int labels, Form form) {
    try {
      return LogitRows.of(shape, labels, form);
    } catch (InputException e) {
      throw new InputException(model + ": the first output has the shape " + e.getMessage(), e);
    }
  }

  /** A row's logits of two classes or more, of which only differences count. */
  private static double[] logits(float[] output, LogitRows rows, int row, Form form) {
    int classes = rows.classes();
    double[] logits = new double[Math.max(2, classes)];
    for (int c = 0; c < classes; c++) {
      double value = output[rows.index(row, c)];
      double p = Math.max(LEAST, Math.min(1 - LEAST, value));
      // Of a Softmax the logarithms are logits, of one probability against its opposite the
      // log-odds.
      boolean against = form == Form.SIGMOID || classes == 1;
      logits[classes == 1 ? 1 : c] =
          form == Form.LOGITS ? value : against ? Math.log(p / (1 - p)) : Math.log(p);
    }
    return logits;
  }

  /** Both models on the examples that were added. */
  private static final class Comparison {
    private final ModelPair pair;
    private final List<long[]> labels;
    private final Form referenceForm;
    private final Form candidateForm;

    /** Null where classes say nothing of entities. */
    private final EntityTags tags;

    /** Whether each example has one label: a tagger's may have one token. */
    private final boolean single;

    /** Whether rows may be left out; to look makes an example of an image. */
    private final boolean masked;

    private final ClassAnswers ours;
    private final ClassAnswers theirs;
    private final EntityAnswers ourEntities;
    private final EntityAnswers theirEntities;
    private int agreed;
    private int compared;
    private double cosines;
    private int shown;
    private boolean hasDirection = true; // of one value the cosine is a sign

    /** Those that changed most, the least of them first. */
    private final PriorityQueue<ChangedAnswer> changed = new PriorityQueue<>(MOST_CHANGED);

    Comparison(
        ModelPair pair,
        List<long[]> labels,
        Form referenceForm,
        Form candidateForm,
        EntityTags tags) {
      this.pair = pair;
      this.labels = labels;
      this.referenceForm = referenceForm;
      this.candidateForm = candidateForm;
      this.tags = tags;
      single = labels.stream().allMatch(of -> of.length == 1);
      masked = pair.examples().areMasked();
      int all = labels.stream().mapToInt(of -> of.length).reduce(0, Math::addExact);
      ours = new ClassAnswers(all);
      theirs = new ClassAnswers(all);
      ourEntities = new EntityAnswers(tags);
      theirEntities = new EntityAnswers(tags);
    }

    void add(int example) {
      FedModel reference = pair.reference();
      FedModel.FirstOutput output = reference.firstFinite(example);
      float[] a = output.values();
      float[] b = pair.candidate().firstLike(reference, output, example);
      long[] right = labels.get(example);
      LogitRows rows = rows(reference.name(), output.shape(), right.length, referenceForm);
      checkNames(rows.classes());
      boolean[] counted = masked ? pair.examples().attended(example, right.length) : null;
      int before = compared;
      float[] x = new float[a.length]; // what is not counted stays 0
      float[] y = new float[a.length];
      int[] inA = new int[right.length];
      int[] inB = new int[right.length];
      for (int row = 0; row < right.length; row++) {
        if (counted == null || counted[row]) {
          double[] first = logits(a, rows, row, referenceForm);
          double[] second = logits(b, rows, row, candidateForm);
          inA[row] = theirs.add(first, right[row]);
          inB[row] = ours.add(second, right[row]);
          if (single) {
            keep(ChangedAnswer.of(example, right[row], first, second));
          }
          agreed += inA[row] == inB[row] ? 1 : 0;
          compared++;
          for (int c = 0; c < rows.classes(); c++) {
            x[rows.index(row, c)] = a[rows.index(row, c)];
            y[rows.index(row, c)] = b[rows.index(row, c)];
          }
        }
      }
      cosines += compared > before ? Statistics.cosine(x, y) : 0;
      shown += compared > before ? 1 : 0;
      hasDirection &= a.length > 1;
      if (tags != null) {
        int[] known =
            IntStream.range(0, right.length)
                .filter(row -> right[row] >= 0 && (counted == null || counted[row]))
                .toArray();
        int[] tagged = at(known, row -> (int) right[row]);
        theirEntities.add(at(known, row -> inA[row]), tagged);
        ourEntities.add(at(known, row -> inB[row]), tagged);
      }
    }

    private void keep(ChangedAnswer answer) {
      if (answer.distance() < LEAST_CHANGE) {
        return;
      }
      changed.add(answer);
      if (changed.size() > SHOWN) {
        changed.remove();
      }
    }

    private static int[] at(int[] rows, IntUnaryOperator values) {
      return IntStream.of(rows).map(values).toArray();
    }

    private void checkNames(int classes) {
      int given = Math.max(2, classes);
      if (tags != null && tags.size() != given) {
        throw new InputException(
            pair.reference().name()
                + " has "
                + given
                + " classes, and there are "
                + tags.size()
                + " names of classes; as many are right");
      }
    }

    ClassifierFidelity result() {
      if (compared == 0) {
        throw new InputException("attention_mask is 0 for all of the examples that are measured");
      }
      double[] interval = Statistics.proportionInterval(agreed, compared);
      return new ClassifierFidelity(
          pair.size(),
          ours.accuracy(),
          theirs.accuracy(),
          ours.f1(),
          theirs.f1(),
          ourEntities.f1(),
          theirEntities.f1(),
          ours.logLoss(),
          theirs.logLoss(),
          ours.auc(),
          theirs.auc(),
          (double) agreed / compared,
          interval[0],
          interval[1],
          hasDirection ? cosines / shown : Double.NaN,
          changed.stream().sorted(MOST_CHANGED.reversed()).toList());
    }
  }
}
