package org.espalier.train;

import java.util.ArrayList;
import java.util.List;

/** Keeps the losses of all steps, and the quality at the first look at the validation examples. */
final class Losses implements TrainingListener {
  private final List<Double> ofSteps = new ArrayList<>();
  private double firstQuality = Double.NaN;

  @Override
  public boolean step(StepReport report) {
    ofSteps.add(report.loss());
    return true;
  }

  @Override
  public void validated(Stage stage, Validation validation) {
    firstQuality = Double.isNaN(firstQuality) ? validation.quality() : firstQuality;
  }

  List<Double> ofSteps() {
    return ofSteps;
  }

  double firstQuality() {
    return firstQuality;
  }
}
