package org.espalier.online;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.espalier.InputException;

/** What the model, and the teacher where it learns from one, answer to a batch of examples. Not for several threads. */
final class BatchOutputs implements AutoCloseable {
  /** Is told of examples that were taken out. */
  interface Removed {
    void tell(Event.Kind kind, String evidence, List<Example> examples);
  }

  private final Learnable model;
  private final Removed removed;
  private final boolean isForClasses;

  /** As many examples as the learner has at once are judged at once. */
  private final int batch;

  /** Null where the model learns from none. */
  private final Predictor teacher;

  private final float[] outputs;
  private final float[] taught;

  /** Whether features that are not finite make outputs that are not. */
  private final boolean outputsTell;

  /** Whether NaN in features is a value that is missing. */
  private final boolean knowsMissing;

  /**
   * @param rows examples of a batch at the most
   */
  BatchOutputs(Learnable model, OnlineSettings settings, int rows, Removed removed) {
    this.model = model;
    this.removed = removed;
    isForClasses = settings.loss().isForClasses();
    batch = settings.batch();
    outputsTell = model instanceof OuterProduct product && product.outputsTell();
    knowsMissing = model.knowsMissing();
    outputs = new float[rows * model.outputs()];
    boolean distils = settings.loss() instanceof Loss.Distillation;
    taught = distils ? new float[outputs.length] : null;
    teacher = distils ? model.predictor() : null;
  }

  boolean hasTeacher() {
    return teacher != null;
  }

  /** Has the teacher, if there is one, be the model with these weights. */
  void teach(List<Weight> weights) {
    if (teacher != null) {
      teacher.load(weights);
    }
  }

  /** What the model gave for the last batch, row by row. */
  float[] outputs() {
    return outputs;
  }

  /** What the teacher gave; null where there is none. */
  float[] taught() {
    return taught;
  }

  /** Runs a batch. */
  void forward(List<Example> examples) {
    float[][] rows = new float[examples.size()][];
    for (int i = 0; i < rows.length; i++) {
      rows[i] = examples.get(i).features();
    }
    model.forward(rows, rows.length, outputs);
    if (teacher != null) {
      teacher.predict(rows, rows.length, taught);
    }
  }

  /**
   * Runs a batch and takes examples out that the model refuses, or of which features, outputs or outcomes are not finite.
   *
   * @return those that are left, to which {@link #outputs} belongs
   */
  List<Example> finite(List<Example> examples) {
    List<Example> left = examples;
    while (!left.isEmpty()) {
      List<Example> taken = taken(left);
      if (taken.size() < left.size()) {
        left = taken;
        continue;
      }
      List<Example> ok = new ArrayList<>(left.size());
      List<Example> bad = new ArrayList<>();
      for (int i = 0; i < left.size(); i++) {
        (isFinite(left.get(i), i) ? ok : bad).add(left.get(i));
      }
      if (ok.size() == left.size()) {
        return left;
      }
      removed.tell(
          Event.Kind.NON_FINITE,
          bad.size()
              + " of "
              + left.size()
              + " examples have features, outputs or outcomes that are not"
              + " finite",
          bad);
      left = ok;
    }
    return left;
  }

  /** Runs a batch; gives those that are left where the model refuses some, which are run one by one then. */
  private List<Example> taken(List<Example> examples) {
    try {
      forward(examples);
      return examples;
    } catch (InputException e) {
      List<Example> ok = new ArrayList<>();
      List<Example> bad = new ArrayList<>();
      String reason = "";
      for (Example example : examples) {
        try {
          forward(List.of(example));
          ok.add(example);
        } catch (InputException refusal) {
          bad.add(example);
          reason = refusal.getMessage();
        }
      }
      if (bad.isEmpty()) {
        throw e;
      }
      removed.tell(
          Event.Kind.REFUSED, bad.size() + " of " + examples.size() + " examples: " + reason, bad);
      return ok;
    }
  }

  private boolean isFinite(Example example, int row) {
    int columns = model.outputs();
    boolean isFinite = outputsTell || areUsable(example.features());
    for (int c = 0; c < columns; c++) {
      isFinite &= Float.isFinite(outputs[row * columns + c]);
      isFinite &= example.values() == null || Float.isFinite(example.values()[c]);
    }
    return isFinite;
  }

  private boolean areUsable(float[] features) {
    for (float value : features) {
      if (!Float.isFinite(value) && !(knowsMissing && Float.isNaN(value))) {
        return false;
      }
    }
    return true;
  }

  /** The share of wrong classes, or m / (1 + m) of the mean absolute error m, of examples. */
  double error(List<Example> all) {
    int columns = model.outputs();
    double sum = 0;
    for (int at = 0; at < all.size(); at += batch) {
      List<Example> part = all.subList(at, Math.min(all.size(), at + batch));
      forward(part);
      for (int i = 0; i < part.size(); i++) {
        Example example = part.get(i);
        if (isForClasses) {
          float[] own = Arrays.copyOfRange(outputs, i * columns, (i + 1) * columns);
          sum += new Prediction(own, 0).label() == example.label() ? 0 : 1;
        } else {
          for (int c = 0; c < columns; c++) {
            sum += Math.abs(outputs[i * columns + c] - example.values()[c]) / columns;
          }
        }
      }
    }
    double mean = sum / all.size();
    return isForClasses ? mean : Double.isFinite(mean) ? mean / (1 + mean) : 1;
  }

  @Override
  public void close() {
    if (teacher != null) {
      teacher.close();
    }
  }
}
