package org.espalier.online.drift;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Random;
import java.util.function.Supplier;
import org.junit.jupiter.api.Test;

/** Streams of errors whose mean changes at a known place. */
class DriftDetectorTest {
  private static final int CHANGE = 2000;

  /**
   * @param delay the mean delay of the alarms
   * @param missed streams without an alarm within 2000 numbers of the change
   * @param falseAlarms alarms before the change, in all streams
   */
  private record Outcome(double delay, int missed, int falseAlarms) {}

  private static Outcome run(Supplier<DriftDetector> detectors, double before, double after) {
    int streams = 40;
    long delays = 0;
    int missed = 0;
    int falseAlarms = 0;
    for (int s = 0; s < streams; s++) {
      DriftDetector detector = detectors.get();
      Random random = new Random(100 + s);
      int found = -1;
      for (int i = 0; i < 2 * CHANGE && found < 0; i++) {
        boolean error = random.nextDouble() < (i < CHANGE ? before : after);
        if (detector.add(error ? 1 : 0)) {
          if (i < CHANGE) {
            falseAlarms++;
          } else {
            found = i;
          }
        }
      }
      missed += found < 0 ? 1 : 0;
      delays += found < 0 ? 0 : found - CHANGE;
    }
    Outcome outcome =
        new Outcome((double) delays / Math.max(1, streams - missed), missed, falseAlarms);
    System.out.printf(
        "%s, error %.2f to %.2f: %s%n",
        detectors.get().getClass().getSimpleName(), before, after, outcome);
    return outcome;
  }

  @Test
  void adwinFindsAnAbruptAndASmallChange() {
    Outcome abrupt = run(() -> new Adwin(0.002), 0.1, 0.4);
    assertEquals(0, abrupt.missed());
    assertTrue(abrupt.delay() < 90, abrupt.toString());
    assertTrue(abrupt.falseAlarms() <= 3, abrupt.toString());
    Outcome small = run(() -> new Adwin(0.002), 0.2, 0.3);
    assertTrue(small.missed() <= 1 && small.delay() < 700, small.toString());
  }

  /** A model that learns errs less and less: the window follows, and nobody is alarmed, nor by what was dropped later. */
  @Test
  void adwinFollowsAFallAndAlarmsOfTheRiseAfterIt() {
    assertEquals(40, run(() -> new Adwin(0.002), 0.4, 0.1).missed());
    Adwin adwin = new Adwin(0.002);
    Random random = new Random(8);
    for (int i = 0; i < 2 * CHANGE; i++) {
      assertFalse(adwin.add(random.nextDouble() < (i < CHANGE ? 0.4 : 0.1) ? 1 : 0), "at " + i);
    }
    assertTrue(adwin.width() < 1.1 * CHANGE, "width " + adwin.width());
    assertEquals(0.1, adwin.mean(), 0.02);
    int found = 0;
    while (!adwin.add(random.nextDouble() < 0.4 ? 1 : 0)) {
      found++;
    }
    assertTrue(found < 90, "after " + found);
    assertTrue(adwin.evidence().startsWith("ADWIN: mean error 0.1"), adwin.evidence());
  }

  @Test
  void pageHinkleyFindsARiseAndNotAFall() {
    Outcome rise = run(() -> new PageHinkley(0.005, 50), 0.1, 0.4);
    assertEquals(0, rise.missed());
    assertTrue(rise.delay() < 260, rise.toString());
    assertEquals(0, rise.falseAlarms());
    assertEquals(40, run(() -> new PageHinkley(0.005, 50), 0.4, 0.1).missed());
  }

  @Test
  void withoutAChangeThereAreFewAlarms() {
    int alarms = 0;
    for (int s = 0; s < 20; s++) {
      Adwin adwin = new Adwin(0.002);
      Random random = new Random(s);
      for (int i = 0; i < 10_000; i++) {
        alarms += adwin.add(random.nextInt(5) == 0 ? 1 : 0) ? 1 : 0;
      }
      assertTrue(adwin.mean() > 0.15 && adwin.mean() < 0.25, "mean " + adwin.mean());
    }
    System.out.println("Adwin: " + alarms + " false alarms in 200000 errors");
    assertTrue(alarms <= 10, alarms + " alarms");
  }

  /** The window's sums are those of the numbers in it, whatever was merged and dropped. */
  @Test
  void adwinKeepsExactSums() {
    Adwin adwin = new Adwin(0.01);
    Random random = new Random(5);
    double[] all = new double[5000];
    for (int i = 0; i < all.length; i++) {
      all[i] = random.nextInt(1024) / 1024.0 * (i < 2500 ? 0.5 : 1);
      adwin.add(all[i]);
      double sum = 0;
      if (i % 500 == 499) {
        for (int k = i - (int) adwin.width() + 1; k <= i; k++) {
          sum += all[k];
        }
        assertEquals(sum / adwin.width(), adwin.mean(), 1e-12);
      }
    }
    assertTrue(adwin.width() < 2600, "width " + adwin.width());
  }

  @Test
  void refusesSenselessSettings() {
    assertThrows(IllegalArgumentException.class, () -> new Adwin(0));
    assertThrows(IllegalArgumentException.class, () -> new Adwin(1));
    assertThrows(IllegalArgumentException.class, () -> new PageHinkley(-1, 1));
    assertThrows(IllegalArgumentException.class, () -> new PageHinkley(0, Double.NaN));
  }
}
