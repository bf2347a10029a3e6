package org.espalier.op;

import static org.espalier.op.OptimizerSubject.assertBits;
import static org.espalier.op.OptimizerSubject.firstIndex;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.backend.Isa;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.espalier.op.OptimizerSubject.Copy;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * What is asked of every optimizer. A subclass has the static method {@code optionsAndTypes}, which is {@link
 * #combined} of its options.
 *
 * @param <S> a tensor of the optimizer
 * @param <O> its options
 */
abstract class FusedStepTests<S extends OptimizerSubject<?>, O> {
  /** A tensor whose scales are found, without an offset. */
  abstract S subject(int rows, int cols, DType gradientType, Copy copy, Channel channel, long seed);

  /** As {@link OptimizerSubject#everything} makes them. */
  abstract List<S> everything(DType gradientType);

  /** The options where a test asks for nothing special. */
  abstract O usual();

  /** The same with clipping by a norm. */
  abstract O clipping(double maxNorm);

  abstract FusedStep optimizer(List<S> subjects, O options);

  /** The options where a gradient that is not finite skips a step. */
  abstract O skipping();

  /** A step of the reference. */
  abstract StepResult exact(List<S> subjects, O options);

  /** The same without rounding. */
  abstract StepResult inDouble(List<S> subjects, O options);

  /**
   * How far twenty steps may be from those without rounding.
   *
   * @param largest the largest magnitude of a weight
   */
  abstract double tolerance(O options, double largest);

  /** Momentum, or moments. */
  abstract List<Tensor> states(S subject);

  /** What an optimizer remembers of so many steps of a tensor. */
  abstract void assertSteps(int steps, FusedStep optimizer, int index, O options);

  /** Options on all instruction sets, with gradients of one type or another. */
  static Stream<Arguments> combined(List<?> options) {
    return options.stream()
        .flatMap(
            o ->
                Variants.isas()
                    .map(
                        isa ->
                            Arguments.of(
                                o, DType.values()[(options.indexOf(o) + isa.ordinal()) % 3], isa)));
  }

  /** Three steps of everything, with one, two and three threads. */
  @ParameterizedTest
  @MethodSource("optionsAndTypes")
  void hasTheBitsOfTheReferenceEverywhere(O options, DType gradientType, Isa isa) {
    List<S> subjects = everything(gradientType);
    try (FusedStep optimizer = optimizer(subjects, options)) {
      for (int step = 1; step <= 3; step++) {
        for (S subject : subjects) {
          subject.gradients(1000L * step + subjects.indexOf(subject));
        }
        StepResult expected = exact(subjects, options);
        StepResult[] actual = new StepResult[1];
        Variants.with(isa, step, () -> actual[0] = optimizer.step());
        for (int i = 0; i < subjects.size(); i++) {
          subjects.get(i).check("step " + step + ", tensor " + i);
          assertSteps(step, optimizer, i, options);
        }
        if (Double.isNaN(expected.norm())) { // not asked for
          assertTrue(Double.isNaN(actual[0].norm()));
        } else {
          assertEquals(expected.norm(), actual[0].norm(), 1e-12 * expected.norm());
        }
        assertEquals(expected.clipFactor(), actual[0].clipFactor(), 1e-12);
        assertEquals(0, actual[0].nonFinite());
        assertEquals(0, actual[0].nonFiniteChannels());
        assertFalse(actual[0].skipped());
      }
    } finally {
      subjects.forEach(OptimizerSubject::close);
    }
  }

  /** The rounded formula is the right formula: twenty steps stay near those in double. */
  @ParameterizedTest
  @MethodSource("optionsAndTypes")
  void staysNearDoublePrecision(O options, DType gradientType, Isa isa) {
    try (S subject = subject(33, 48, gradientType, Copy.NONE, null, 7);
        FusedStep optimizer = optimizer(List.of(subject), options)) {
      for (int step = 1; step <= 20; step++) {
        subject.gradients(step);
        inDouble(List.of(subject), options);
        Variants.with(isa, 2, optimizer::step);
      }
      float[] actual = Numbers.read(subject.weight);
      double largest = Arrays.stream(subject.state.weight).map(Math::abs).max().orElseThrow();
      for (int i = 0; i < actual.length; i++) {
        assertEquals(
            subject.state.weight[i], actual[i], tolerance(options, largest), "weight " + i);
      }
    }
  }

  @Test
  void aStepWithANonFiniteGradientIsSkippedAndLeavesEveryStateAsItWas() {
    O options = skipping();
    for (Isa isa : Variants.isas().toList()) {
      try (S healthy = subject(5, 33, DType.F32, Copy.F32, Channel.FIRST_AXIS, 4);
          S sick = subject(1, 100, DType.F32, Copy.NONE, null, 5);
          FusedStep optimizer = optimizer(List.of(healthy, sick), options)) {
        for (int good = 0; good <= 1; good++) { // before the first step and after it
          healthy.gradients(1);
          sick.gradients(2);
          float[] g = sick.state.gradient.clone();
          int kept = firstIndex(sick.state.mask, true);
          int pruned = firstIndex(sick.state.mask, false);
          g[kept] = Float.NaN;
          Numbers.write(sick.gradient, g);
          float[] scalesBefore = Numbers.read(healthy.scales);
          List<float[]> statesBefore = states(healthy).stream().map(Numbers::read).toList();
          Variants.with(
              isa,
              2,
              () -> {
                StepResult result = optimizer.step();
                assertTrue(result.skipped());
                assertEquals(1, result.nonFinite());
              });
          assertSteps(good, optimizer, 0, options);
          assertSteps(good, optimizer, 1, options);
          assertArrayEquals(scalesBefore, Numbers.read(healthy.scales));
          for (int i = 0; i < statesBefore.size(); i++) {
            assertArrayEquals(statesBefore.get(i), Numbers.read(states(healthy).get(i)));
          }
          assertBits(healthy.state.weight, Numbers.read(healthy.weight), "weight");

          // A pruned weight's gradient is not looked at, and the step is the one that was skipped.
          g[kept] = sick.state.gradient[kept];
          g[pruned] = Float.POSITIVE_INFINITY;
          Numbers.write(sick.gradient, g);
          exact(List.of(healthy, sick), options);
          Variants.with(isa, 2, () -> assertFalse(optimizer.step().skipped()));
          healthy.check("healthy");
          sick.check("sick");
          assertSteps(good + 1, optimizer, 0, options);
        }
      }
    }
  }

  @Test
  void clippingByANormThatIsNotFiniteIsRefusedAndNothingIsWritten() {
    O options = clipping(1);
    try (S subject = subject(4, 32, DType.BF16, Copy.BF16, Channel.TENSOR, 6);
        FusedStep optimizer = optimizer(List.of(subject), options)) {
      float[] g = new float[128];
      g[127] = Float.NEGATIVE_INFINITY;
      Numbers.write(subject.gradient, g);
      InputException e = assertThrows(InputException.class, optimizer::step);
      assertTrue(e.getMessage().contains("1 gradient entries are NaN or infinite"), e.getMessage());
      assertBits(subject.state.weight, Numbers.read(subject.weight), "weight");
      assertSteps(0, optimizer, 0, options);
    }
  }

  @Test
  void eightCallersAtOnceGetWhatOneGets() throws InterruptedException {
    List<S> subjects = new ArrayList<>();
    List<Thread> callers = new ArrayList<>();
    List<Throwable> failures = new ArrayList<>();
    for (int c = 0; c < 8; c++) {
      S subject = subject(64, 1000, DType.F32, Copy.F32, Channel.LAST_AXIS, 20 + c);
      subject.gradients(c);
      subjects.add(subject);
      callers.add(
          new Thread(
              () -> {
                try (FusedStep optimizer = optimizer(List.of(subject), usual())) {
                  for (int step = 0; step < 20; step++) {
                    optimizer.step();
                  }
                }
              }));
    }
    callers.forEach(t -> t.setUncaughtExceptionHandler((thread, e) -> failures.add(e)));
    callers.forEach(Thread::start);
    for (Thread caller : callers) {
      caller.join();
    }
    assertEquals(List.of(), failures);
    for (S subject : subjects) {
      for (int step = 0; step < 20; step++) {
        exact(List.of(subject), usual());
      }
      subject.check("concurrent");
      subject.close();
    }
  }

  @Test
  void anEmptyListIsAStep() {
    try (FusedStep optimizer = optimizer(List.of(), clipping(1))) {
      assertEquals(new StepResult(0, 1, false, 0, 0), optimizer.step());
    }
  }

  @Test
  void aClosedOneDoesNoStep() {
    FusedStep closed = optimizer(List.of(), usual());
    closed.close();
    assertThrows(IllegalStateException.class, closed::step);
  }

  static void refused(String message, Executable call) {
    IllegalArgumentException e = assertThrows(IllegalArgumentException.class, call);
    assertTrue(e.getMessage().contains(message), e.getMessage());
  }
}
