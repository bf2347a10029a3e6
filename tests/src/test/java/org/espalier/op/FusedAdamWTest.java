package org.espalier.op;

import static org.espalier.op.OptimizerSubject.assertBits;
import static org.espalier.op.OptimizerSubject.toDouble;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.espalier.backend.Isa;
import org.espalier.device.CudaStream;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.device.TestDevice;
import org.espalier.op.FusedAdamW.Options;
import org.espalier.op.FusedAdamW.Parameter;
import org.espalier.op.OptimizerSubject.Copy;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.provider.Arguments;

@Tag("loops")
class FusedAdamWTest extends FusedStepTests<FusedAdamWTest.Subject, Options> {
  private static final Options PLAIN = Options.of(0.05);

  /** Every option by itself, those that interact together. */
  private static final List<Options> OPTIONS =
      List.of(
          PLAIN,
          PLAIN.withWeightDecay(0),
          PLAIN.withBetas(0, 0).withEpsilon(1e-3),
          PLAIN.withMaximize(true).withWeightDecay(0.5),
          PLAIN.withMaxNorm(3),
          PLAIN.withMaxNorm(1e9).withSkipNonFinite(true),
          PLAIN.withBetas(0.5, 0.9).withMaximize(true).withMaxNorm(0.5));

  static final class Subject extends OptimizerSubject<FusedAdamWReference.State> {
    final Tensor firstMoment;
    final Tensor secondMoment;
    final Parameter parameter;

    Subject(int rows, int cols, DType gradientType, Copy copy, Channel channel, long seed) {
      this(rows, cols, gradientType, copy, channel, seed, false, 0);
    }

    Subject(
        int rows,
        int cols,
        DType gradientType,
        Copy copy,
        Channel channel,
        long seed,
        boolean given,
        int offset) {
      super(
          new FusedAdamWReference.State(),
          rows,
          cols,
          gradientType,
          copy,
          channel,
          seed,
          given,
          offset);
      firstMoment = unreadState();
      secondMoment = unreadState();
      state.firstMoment = new double[rows * cols];
      state.secondMoment = new double[rows * cols];
      parameter =
          new Parameter(
              weight, gradient, firstMoment, secondMoment, mask, gate, workingCopy, scale);
    }

    Parameter on(TestDevice there) {
      return new Parameter(
          there.of(weight),
          there.of(gradient),
          there.of(firstMoment),
          there.of(secondMoment),
          there(there, mask),
          there(there, gate),
          copyOn(there),
          scaleOn(there));
    }

    @Override
    void check(String what) {
      super.check(what);
      if (state.steps > 0) {
        assertBits(state.firstMoment, Numbers.read(firstMoment), what + " first moment");
        assertBits(state.secondMoment, Numbers.read(secondMoment), what + " second moment");
      }
    }
  }

  static Stream<Arguments> optionsAndTypes() {
    return combined(OPTIONS);
  }

  @Override
  Subject subject(int rows, int cols, DType gradientType, Copy copy, Channel channel, long seed) {
    return new Subject(rows, cols, gradientType, copy, channel, seed);
  }

  @Override
  List<Subject> everything(DType gradientType) {
    return OptimizerSubject.everything(gradientType, Subject::new);
  }

  @Override
  Options usual() {
    return PLAIN;
  }

  @Override
  Options clipping(double maxNorm) {
    return PLAIN.withMaxNorm(maxNorm);
  }

  @Override
  FusedAdamW optimizer(List<Subject> subjects, Options options) {
    return new FusedAdamW(subjects.stream().map(s -> s.parameter).toList(), options);
  }

  @Override
  StepResult exact(List<Subject> subjects, Options options) {
    return FusedAdamWReference.exact(subjects.stream().map(s -> s.state).toList(), options);
  }

  @Override
  Options skipping() {
    return PLAIN.withSkipNonFinite(true);
  }

  @Override
  StepResult inDouble(List<Subject> subjects, Options options) {
    return FusedAdamWReference.inDouble(subjects.stream().map(s -> s.state).toList(), options);
  }

  /** Two roundings a step of weights that reach the largest magnitude, some of the update. */
  @Override
  double tolerance(Options options, double largest) {
    return 20 * (0x1p-23 * largest + 0x1p-20 * options.learningRate());
  }

  @Override
  List<Tensor> states(Subject subject) {
    return List.of(subject.firstMoment, subject.secondMoment);
  }

  @Override
  void assertSteps(int steps, FusedStep optimizer, int index, Options options) {
    assertEquals(steps, ((FusedAdamW) optimizer).steps(index));
  }

  /** Two steps, one that waits and one that is queued; tensors of different age. */
  @Test
  @Tag("device")
  void hasTheBitsOfTheReferenceOnADevice() {
    for (Options options : List.of(PLAIN, PLAIN.withMaxNorm(0.5).withMaximize(true))) {
      List<Subject> subjects = OptimizerSubject.small(Subject::new);
      try (TestDevice there = new TestDevice();
          CudaStream stream = CudaStream.create(there.device());
          FusedAdamW adamw =
              new FusedAdamW(subjects.stream().map(s -> s.on(there)).toList(), options)) {
        for (int step = 1; step <= 2; step++) {
          for (Subject subject : subjects) {
            subject.gradients(1000L * step + subjects.indexOf(subject));
          }
          there.push();
          StepResult actual;
          if (step == 1) {
            actual = adamw.step();
            adamw.steps(2, 0); // its moments are forgotten
          } else {
            adamw.queue(stream);
            actual = adamw.result(stream);
          }
          there.pull();
          StepResult expected =
              FusedAdamWReference.exact(subjects.stream().map(s -> s.state).toList(), options);
          assertEquals(expected.clipFactor(), actual.clipFactor(), 1e-12);
          assertFalse(actual.skipped());
          for (int i = 0; i < subjects.size(); i++) {
            subjects.get(i).check(options + " step " + step + ", tensor " + i);
            assertEquals(step == 1 && i == 2 ? 0 : i == 2 ? 1 : step, adamw.steps(i));
          }
          if (step == 1) {
            subjects.get(2).state.steps = 0;
          }
        }
      } finally {
        subjects.forEach(Subject::close);
      }
    }
  }

  /** Tensors with moments of different age in one list: t is each one's own. */
  @Test
  void everyTensorCountsItsOwnSteps() {
    try (Subject a = new Subject(9, 40, DType.F32, Copy.F16, Channel.FIRST_AXIS, 13);
        Subject b = new Subject(9, 40, DType.F32, Copy.F16, Channel.FIRST_AXIS, 13);
        FusedAdamW run = new FusedAdamW(List.of(a.parameter), PLAIN);
        FusedAdamW resumed = new FusedAdamW(List.of(b.parameter), PLAIN)) {
      for (int step = 1; step <= 3; step++) {
        a.gradients(step);
        run.step();
      }
      Numbers.write(b.weight, Numbers.read(a.weight));
      Numbers.write(b.firstMoment, Numbers.read(a.firstMoment));
      Numbers.write(b.secondMoment, Numbers.read(a.secondMoment));
      resumed.steps(0, run.steps(0));
      a.gradients(4);
      b.gradients(4);
      run.learningRate(0.01);
      resumed.learningRate(0.01);
      run.step();
      resumed.step();
      assertArrayEquals(Numbers.read(a.weight), Numbers.read(b.weight));
      assertArrayEquals(Numbers.read(a.floats), Numbers.read(b.floats));
      assertEquals(4, resumed.steps(0));
      assertEquals(0.01, run.learningRate());

      try (Subject fresh = new Subject(9, 40, DType.F32, Copy.F16, Channel.FIRST_AXIS, 14);
          FusedAdamW both = new FusedAdamW(List.of(a.parameter, fresh.parameter), PLAIN)) {
        both.steps(0, 4);
        a.gradients(5);
        a.state.steps = 4;
        a.state.weight = toDouble(Numbers.read(a.weight));
        a.state.firstMoment = toDouble(Numbers.read(a.firstMoment));
        a.state.secondMoment = toDouble(Numbers.read(a.secondMoment));
        fresh.gradients(6);
        FusedAdamWReference.exact(List.of(a.state, fresh.state), PLAIN);
        both.step();
        a.check("old");
        fresh.check("fresh");
      }
    }
  }

  /** Under the mask weight and moments are +0, also where they were something before it. */
  @Test
  void prunedWeightsAndMomentsStayZero() {
    for (Isa isa : Variants.isas().toList()) {
      try (Subject subject = new Subject(8, 48, DType.F32, Copy.F32, Channel.FIRST_AXIS, 8);
          FusedAdamW adamw = new FusedAdamW(List.of(subject.parameter), PLAIN)) {
        subject.gradients(1);
        Numbers.write(subject.firstMoment, Numbers.floats(8 * 48, 9));
        float[] squares = Numbers.floats(8 * 48, 10);
        for (int i = 0; i < squares.length; i++) {
          squares[i] *= squares[i];
        }
        Numbers.write(subject.secondMoment, squares);
        adamw.steps(0, 1);
        Variants.with(
            isa,
            1,
            () -> {
              for (int step = 0; step < 2_000; step++) {
                adamw.step();
              }
            });
        float[] w = Numbers.read(subject.weight);
        float[] m = Numbers.read(subject.firstMoment);
        float[] v = Numbers.read(subject.secondMoment);
        float[] copy = Numbers.read(subject.floats);
        int pruned = 0;
        for (int i = 0; i < w.length; i++) {
          if (!subject.state.mask[i]) {
            pruned++;
            assertEquals(0, Float.floatToRawIntBits(w[i]));
            assertEquals(0, Float.floatToRawIntBits(m[i]));
            assertEquals(0, Float.floatToRawIntBits(v[i]));
            assertEquals(0, Float.floatToRawIntBits(copy[i]));
          }
        }
        assertTrue(pruned > 100);
      }
    }
  }

  /** A moment that decays without gradients ends as +0 instead of a denormal; a NaN stays. */
  @Test
  void momentsDecayToZero() {
    Options options = PLAIN.withBetas(0.5, 0.6);
    for (Isa isa : Variants.isas().toList()) {
      try (Subject subject = new Subject(1, 37, DType.F32, Copy.NONE, null, 9);
          FusedAdamW adamw = new FusedAdamW(List.of(subject.parameter), options)) {
        subject.gradients(1);
        subject.state.mask = null;
        Arrays.fill(subject.state.gradient, 1);
        subject.state.gradient[36] = Float.NaN;
        Numbers.write(subject.gradient, subject.state.gradient);
        try (FusedAdamW unmasked =
            new FusedAdamW(
                List.of(
                    Parameter.of(
                        subject.weight,
                        subject.gradient,
                        subject.firstMoment,
                        subject.secondMoment)),
                options)) {
          for (int step = 0; step < 300; step++) {
            FusedAdamWReference.exact(List.of(subject.state), options);
            Variants.with(isa, 1, unmasked::step);
            if (step % 25 == 0) {
              subject.check("step " + step);
            }
            Arrays.fill(subject.state.gradient, 0);
            Numbers.write(subject.gradient, subject.state.gradient);
          }
        }
        float[] m = Numbers.read(subject.firstMoment);
        float[] v = Numbers.read(subject.secondMoment);
        for (int i = 0; i < 36; i++) {
          assertEquals(0, Float.floatToRawIntBits(m[i]));
          assertEquals(0, Float.floatToRawIntBits(v[i]));
        }
        assertTrue(Float.isNaN(m[36]) && Float.isNaN(v[36]));
      }
    }
  }

  /** A clipped weight gets no gradient, but decays, and so do its moments. */
  @Test
  void aGatedWeightStillDecays() {
    Options options = Options.of(0.1).withWeightDecay(0.5).withBetas(0.5, 0.5);
    try (Subject subject = new Subject(1, 2, DType.F32, Copy.F32, Channel.TENSOR, 3, true, 0);
        FusedAdamW adamw = new FusedAdamW(List.of(subject.parameter), options)) {
      Numbers.write(subject.weight, new float[] {2f, 0.5f});
      Numbers.write(subject.scales, new float[] {0.01f});
      Numbers.write(subject.gradient, new float[] {0, 0});
      subject.gate.put((byte) 3);
      adamw.step();
      assertEquals(0b10, subject.gate.get()); // 1.9 is beyond 1.27
      assertArrayEquals(new float[] {1.27f, 0.48f}, Numbers.read(subject.floats), 1e-6f);
      Numbers.write(subject.gradient, new float[] {100, 1});
      adamw.step();
      assertEquals(1.9f * 0.95f, Numbers.read(subject.weight)[0], 1e-6f);
      // m̂ = (0.5 · 1) / (1 − 0.25), v̂ = the same, and the step is 0.1 · m̂ / √v̂.
      assertEquals(0.475 * 0.95 - 0.1 * Math.sqrt(2.0 / 3), Numbers.read(subject.weight)[1], 1e-6);
      assertEquals(0f, Numbers.read(subject.firstMoment)[0]);
      assertEquals(0.5f, Numbers.read(subject.firstMoment)[1]);
      assertEquals(0.01f, Numbers.read(subject.scales)[0]);
    }
  }

  @Test
  void whatIsWrongIsSaid() {
    try (OwnedTensor w = OwnedTensor.allocate(DType.F32, 4, 8);
        OwnedTensor half = OwnedTensor.allocate(DType.BF16, 4, 8);
        OwnedTensor few = OwnedTensor.allocate(DType.F32, 31)) {
      refused("weight BF16[4, 8]: F32 is needed", () -> Parameter.of(half, w, w, w));
      refused("second moment BF16[4, 8]: F32 is needed", () -> Parameter.of(w, w, w, half));
      refused(
          "weight F32[4, 8], first moment F32[31]: the sizes differ",
          () -> Parameter.of(w, w, few, w));
      refused("learning rate NaN", () -> Options.of(Double.NaN));
      refused("beta1 1.0; 0 or more and below 1", () -> PLAIN.withBetas(1, 0.9));
      refused("beta2 0.9999999999; 0 or more", () -> PLAIN.withBetas(0.9, 0.9999999999));
      refused("epsilon 0.0; finite and above 0", () -> PLAIN.withEpsilon(0));
      refused("weight decay -1.0", () -> PLAIN.withWeightDecay(-1));
      try (OwnedTensor scale = OwnedTensor.allocate(DType.F32, 1);
          FusedAdamW adamw =
              new FusedAdamW(
                  List.of(
                      Parameter.of(w, half, w, w)
                          .withWorkingCopy(null, new Scale(scale, Channel.TENSOR, true))),
                  PLAIN)) {
        refused("scale 0 of tensor 0 is 0; positive, with a finite reciprocal", adamw::step);
        refused("-1 steps", () -> adamw.steps(0, -1));
        assertThrows(IndexOutOfBoundsException.class, () -> adamw.steps(1));
      }
    }
  }
}
