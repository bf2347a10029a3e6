package org.espalier.online;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.List;
import java.util.function.Consumer;

/** All detectors that settings ask for. Not for several threads. */
final class DriftDetectors {
  private final List<DriftDetector> all;

  /**
   * @param drift null where nothing is detected
   */
  DriftDetectors(OnlineSettings.Drift drift) {
    all =
        drift == null
            ? List.of()
            : List.of(new Adwin(drift.delta()), new PageHinkley(drift.slack(), drift.threshold()));
  }

  /**
   * Adds errors.
   *
   * @param told hears the evidence of each that has risen, at once
   * @return whether any has
   */
  boolean add(double[] errors, Consumer<String> told) {
    boolean drifted = false;
    for (double error : errors) {
      for (DriftDetector detector : all) {
        if (detector.add(error)) {
          drifted = true;
          told.accept(detector.evidence());
        }
      }
    }
    return drifted;
  }

  void save(DataOutput out) throws IOException {
    for (DriftDetector detector : all) {
      detector.save(out);
    }
  }

  void load(DataInput in) throws IOException {
    for (DriftDetector detector : all) {
      detector.load(in);
    }
  }
}
