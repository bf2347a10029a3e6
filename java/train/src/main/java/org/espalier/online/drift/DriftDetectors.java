package org.espalier.online.drift;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.List;
import java.util.function.Consumer;

/** ADWIN and the test of Page and Hinkley on one stream of errors, or no detector at all. Not for several threads. */
public final class DriftDetectors {
  private final List<DriftDetector> all;

  private DriftDetectors(List<DriftDetector> all) {
    this.all = all;
  }

  /** Detects nothing. */
  public static DriftDetectors none() {
    return new DriftDetectors(List.of());
  }

  /**
   * Both.
   *
   * @param delta ADWIN's chance of a false alarm, in (0, 1)
   * @param slack of Page and Hinkley, at least 0: rises below it do not count
   * @param threshold of Page and Hinkley, above 0: how far the sum rises before it alarms
   * @throws IllegalArgumentException where one is beyond these
   */
  public static DriftDetectors of(double delta, double slack, double threshold) {
    return new DriftDetectors(List.of(new Adwin(delta), new PageHinkley(slack, threshold)));
  }

  /**
   * Adds errors.
   *
   * @param errors in [0, 1]
   * @param told hears the evidence of each that has risen, at once
   * @return whether any has
   */
  public boolean add(double[] errors, Consumer<String> told) {
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

  /** Writes what {@link #load} reads. */
  public void save(DataOutput out) throws IOException {
    for (DriftDetector detector : all) {
      detector.save(out);
    }
  }

  /**
   * Goes on where detectors with the same numbers were saved.
   *
   * @throws org.espalier.InputException if what was saved is damaged
   */
  public void load(DataInput in) throws IOException {
    for (DriftDetector detector : all) {
      detector.load(in);
    }
  }
}
