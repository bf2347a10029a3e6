package org.espalier.train;

import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.format.onnx.LogitRows;

/**
 * An output of which a stage learns labels.
 *
 * @param where what messages call it: the stage and the output
 * @param rows of logits, or one of each number
 */
record LabelledOutput(String where, LogitRows rows) {
  /** Refuses labels that do not fit it. */
  void check(Labels labels) {
    boolean ofTokens = labels instanceof Labels.TokenClasses; // as many as there are rows
    if (!ofTokens && labels.width() != rows.perExample()) {
      throw new InputException(
          where
              + " has "
              + rows.perExample()
              + (rows.perExample() == 1 ? " value" : " values")
              + " an example, and the labels have "
              + labels.width()
              + (labels instanceof Labels.Numbers
                  ? " (numbers; data.task: classification takes whole numbers as classes)"
                  : ""));
    }
    Labels.Classes some = classes(labels);
    if (some != null) {
      boolean one = rows.classes() == 1;
      int classes = one ? 2 : rows.classes();
      for (long label : some.values()) {
        if (label != Labels.Classes.NO_LABEL && (label < 0 || label >= classes)) {
          throw new InputException(
              where
                  + (one ? " is one logit" : " has " + classes + " classes")
                  + (one && rows.perExample() > 1 ? " a label" : "")
                  + ", and there is a label "
                  + label
                  + "; 0 to "
                  + (classes - 1)
                  + " are right, and "
                  + Labels.Classes.NO_LABEL
                  + " for none"
                  + (one ? " (data.task: regression takes labels as numbers)" : ""));
        }
      }
    }
  }

  /** Labels that are classes; null where they are numbers. */
  private static Labels.Classes classes(Labels labels) {
    return labels instanceof Labels.TokenClasses tokens
        ? tokens.inTurn()
        : labels instanceof Labels.Classes classes ? classes : null;
  }

  /** Refuses examples of which {@code attention_mask} leaves nothing. */
  void checkAttended(Examples.Labelled examples, String which) {
    boolean[] attended = examples.attended(rows.perExample());
    if (attended != null && IntStream.range(0, attended.length).noneMatch(i -> attended[i])) {
      throw new InputException(
          "attention_mask is 0 for all of the " + which + " examples; 1 is what is attended to");
    }
  }

  private int known(Examples.Labelled examples) {
    Labels labels = examples.labels();
    return labels.known(
        labels instanceof Labels.Classes ? examples.attended(rows.perExample()) : null);
  }

  /** Refuses labels so large that float32 cannot sum the squares of errors. */
  private void checkSquares(Labels labels, String which) {
    if (labels instanceof Labels.Numbers numbers) {
      for (float value : numbers.values()) {
        if (Math.abs(value) > BreakdownCheck.LARGEST) {
          throw new InputException(
              where
                  + " learns numbers, and one of the "
                  + which
                  + " examples has the label "
                  + value
                  + "; training cannot sum squares of values beyond "
                  + BreakdownCheck.LARGEST);
        }
      }
    }
  }

  /** Refuses labels from which nothing can be learned, too. */
  void checkLearned(Examples.Labelled trainedOn, Examples.Labelled validatedWith) {
    Labels training = trainedOn.labels();
    check(training);
    check(validatedWith.labels());
    boolean trained = known(trainedOn) > 0;
    if (!trained || known(validatedWith) == 0) {
      throw new InputException(
          where
              + " learns from labels, and none of the "
              + (trained ? "validation" : "training")
              + " examples has one");
    }
    checkSquares(training, "training");
    checkSquares(validatedWith.labels(), "validation");
    if (training instanceof Labels.Numbers numbers && numbers.variance() < Float.MIN_NORMAL) {
      throw new InputException(
          where + " learns numbers, and all labels of the training examples are equal");
    }
    Labels.Classes classes = classes(training);
    if (rows.classes() == 1 && classes != null) {
      long[] known =
          LongStream.of(classes.values()).filter(l -> l != Labels.Classes.NO_LABEL).toArray();
      if (LongStream.of(known).allMatch(label -> label == known[0])) {
        throw new InputException(
            where
                + (rows.perExample() == 1 ? " is one logit" : " is one logit a label")
                + ", and all labels of the training examples are "
                + known[0]
                + "; examples of both classes are needed");
      }
    }
  }
}
