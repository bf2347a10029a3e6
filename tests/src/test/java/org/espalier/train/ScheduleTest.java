package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.stream.LongStream;
import org.espalier.train.Training.Schedule;
import org.junit.jupiter.api.Test;

class ScheduleTest {
  /** Four steps of rise and sixteen of half a cosine, whose end, 0.1, is one step after the last. */
  @Test
  void theCourseEndsOneStepAfterTheLast() {
    Schedule schedule = new Schedule(Schedule.Shape.COSINE, 0.2, 0.1);
    double[] rates = LongStream.range(0, 21).mapToDouble(s -> schedule.factor(s, 20)).toArray();
    for (int step = 0; step <= 20; step++) {
      double right =
          step < 3
              ? (step + 1) / 4.0
              : 0.55 + 0.45 * Math.cos(Math.PI * Math.max(0, step - 4) / 16);
      assertEquals(right, rates[step], 1e-12, "step " + step);
    }
    assertEquals(0.10865, rates[19], 1e-5);
    assertEquals(0.1, rates[20], 1e-12);
  }
}
