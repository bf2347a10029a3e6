package org.espalier.op;

import static org.espalier.op.OptimizerSubject.assertBits;
import static org.espalier.op.OptimizerSubject.bytes;
import static org.espalier.op.OptimizerSubject.firstIndex;
import static org.espalier.op.OptimizerSubject.toDouble;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.InputException;
import org.espalier.backend.Isa;
import org.espalier.device.CudaStream;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.device.TestDevice;
import org.espalier.op.FusedSgd.Options;
import org.espalier.op.FusedSgd.Parameter;
import org.espalier.op.OptimizerSubject.Copy;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;

@Tag("loops")
class FusedSgdTest extends FusedStepTests<FusedSgdTest.Subject, Options> {
  private static final Options PLAIN = Options.of(0.05);
  private static final Options MOMENTUM = PLAIN.withMomentum(0.9);

  /** Every option by itself, those that interact together. */
  private static final List<Options> OPTIONS =
      List.of(
          PLAIN,
          PLAIN.withWeightDecay(0.01),
          MOMENTUM,
          MOMENTUM.withWeightDecay(1e-4).withDampening(0.3),
          MOMENTUM.withWeightDecay(0.1).withNesterov(true),
          MOMENTUM.withWeightDecay(0.1).withMaximize(true),
          MOMENTUM.withMaxNorm(3),
          MOMENTUM.withMaxNorm(1e9).withSkipNonFinite(true),
          MOMENTUM.withWeightDecay(0.1).withMaximize(true).withMaxNorm(0.5).withNesterov(true));

  static final class Subject extends OptimizerSubject<FusedSgdReference.State> {
    final Tensor momentum;
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
          new FusedSgdReference.State(),
          rows,
          cols,
          gradientType,
          copy,
          channel,
          seed,
          given,
          offset);
      momentum = unreadState();
      state.momentum = new double[rows * cols];
      parameter = new Parameter(weight, gradient, momentum, mask, gate, workingCopy, scale);
    }

    Parameter on(TestDevice there) {
      return new Parameter(
          there.of(weight),
          there.of(gradient),
          there.of(momentum),
          there(there, mask),
          there(there, gate),
          copyOn(there),
          scaleOn(there));
    }

    @Override
    void check(String what) {
      super.check(what);
      if (!state.first) {
        assertBits(state.momentum, Numbers.read(momentum), what + " momentum");
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
    return MOMENTUM;
  }

  @Override
  Options clipping(double maxNorm) {
    return MOMENTUM.withMaxNorm(maxNorm);
  }

  @Override
  FusedSgd optimizer(List<Subject> subjects, Options options) {
    return new FusedSgd(subjects.stream().map(s -> s.parameter).toList(), options);
  }

  @Override
  StepResult exact(List<Subject> subjects, Options options) {
    return FusedSgdReference.exact(subjects.stream().map(s -> s.state).toList(), options);
  }

  @Override
  Options skipping() {
    return MOMENTUM.withDampening(0.5).withSkipNonFinite(true);
  }

  @Override
  StepResult inDouble(List<Subject> subjects, Options options) {
    return FusedSgdReference.inDouble(subjects.stream().map(s -> s.state).toList(), options);
  }

  /** About a rounding a step, of weights that reach the largest magnitude. */
  @Override
  double tolerance(Options options, double largest) {
    return 20 * 0x1p-23 * largest;
  }

  @Override
  List<Tensor> states(Subject subject) {
    return List.of(subject.momentum);
  }

  @Override
  void assertSteps(int steps, FusedStep optimizer, int index, Options options) {
    assertEquals(steps == 0 || options.momentum() == 0, ((FusedSgd) optimizer).first(index));
  }

  /** Two steps, one that waits and one that is queued; the second with another learning rate. */
  @Test
  @Tag("device")
  void hasTheBitsOfTheReferenceOnADevice() {
    for (Options options :
        List.of(PLAIN, MOMENTUM.withWeightDecay(0.1), MOMENTUM.withMaxNorm(0.5))) {
      List<Subject> subjects = OptimizerSubject.small(Subject::new);
      try (TestDevice there = new TestDevice();
          CudaStream stream = CudaStream.create(there.device());
          FusedSgd sgd = new FusedSgd(subjects.stream().map(s -> s.on(there)).toList(), options)) {
        for (int step = 1; step <= 2; step++) {
          for (Subject subject : subjects) {
            subject.gradients(1000L * step + subjects.indexOf(subject));
          }
          there.push();
          StepResult actual;
          if (step == 1) {
            actual = sgd.step();
          } else {
            sgd.queue(stream);
            actual = sgd.result(stream);
          }
          there.pull();
          StepResult expected =
              FusedSgdReference.exact(subjects.stream().map(s -> s.state).toList(), options);
          assertEquals(expected.clipFactor(), actual.clipFactor(), 1e-12);
          assertEquals(expected.nonFinite(), actual.nonFinite());
          assertFalse(actual.skipped());
          for (int i = 0; i < subjects.size(); i++) {
            subjects.get(i).check(options + " step " + step + ", tensor " + i);
            assertEquals(options.momentum() == 0, sgd.first(i));
          }
        }
      } finally {
        subjects.forEach(Subject::close);
      }
    }
  }

  /** «first», skipped steps and refused ones live on the device too. */
  @Test
  @Tag("device")
  void skipsAndRefusesOnADevice() {
    try (TestDevice there = new TestDevice();
        Subject subject = new Subject(5, 33, DType.F32, Copy.F32, Channel.FIRST_AXIS, 4)) {
      float[] sick = new float[5 * 33];
      sick[firstIndex(subject.state.mask, true)] = Float.NaN;
      Parameter parameter = subject.on(there);
      try (FusedSgd skips = new FusedSgd(List.of(parameter), MOMENTUM.withSkipNonFinite(true));
          FusedSgd clips = new FusedSgd(List.of(parameter), MOMENTUM.withMaxNorm(1))) {
        subject.gradients(1);
        float[] healthy = subject.state.gradient;
        Numbers.write(subject.gradient, sick);
        there.push();
        StepResult result = skips.step();
        assertTrue(result.skipped());
        assertEquals(1, result.nonFinite());
        assertTrue(skips.first(0));
        InputException e = assertThrows(InputException.class, clips::step);
        assertTrue(e.getMessage().startsWith("1 gradient entries are NaN"), e.getMessage());
        there.pull();
        assertBits(subject.state.weight, Numbers.read(subject.weight), "weight");
        assertTrue(Float.isNaN(Numbers.read(subject.momentum)[0]));

        Numbers.write(subject.gradient, healthy);
        subject.state.first = false; // a buffer that was restored
        Arrays.fill(subject.state.momentum, 0.25);
        float[] restored = new float[healthy.length];
        Arrays.fill(restored, 0.25f);
        Numbers.write(subject.momentum, restored);
        there.push();
        skips.first(0, false);
        skips.learningRate(0.01);
        assertFalse(skips.step().skipped());
        there.pull();
        FusedSgdReference.exact(
            List.of(subject.state), Options.of(0.01).withMomentum(0.9).withSkipNonFinite(true));
        subject.check("restored");
        assertEquals(0.01, skips.learningRate());
        assertThrows(IndexOutOfBoundsException.class, () -> skips.first(1));
      }
      try (Subject host = new Subject(5, 33, DType.F32, Copy.NONE, null, 4)) {
        refused("is on cpu", () -> new FusedSgd(List.of(parameter, host.parameter), PLAIN));
        try (FusedSgd onCpu = new FusedSgd(List.of(host.parameter), PLAIN);
            CudaStream stream = CudaStream.create(there.device())) {
          refused("for tensors on cpu", () -> onCpu.queue(stream));
        }
      }
    }
  }

  /** Scales, copy, integers and gate are what FakeQuantize makes of the new weights. */
  @ParameterizedTest
  @EnumSource(Channel.class)
  void quantizesAsFakeQuantizeDoes(Channel channel) {
    FakeQuantize grid = FakeQuantize.symmetric(8);
    FakeQuantize operation =
        switch (channel) {
          case TENSOR -> grid;
          case FIRST_AXIS -> grid.perChannel(0);
          case LAST_AXIS -> grid.perChannel(-1);
        };
    for (Copy copy : List.of(Copy.F32, Copy.INT8)) {
      for (boolean given : new boolean[] {false, true}) {
        try (Subject subject = new Subject(37, 75, DType.F32, copy, channel, 4, given, 0);
            FusedSgd sgd = new FusedSgd(List.of(subject.parameter), MOMENTUM)) {
          subject.gradients(1);
          sgd.step();
          int n = 37 * 75;
          long channels = subject.scales.elements();
          try (OwnedTensor y = OwnedTensor.allocate(DType.F32, 37, 75);
              OwnedTensor scale = OwnedTensor.allocate(DType.F32, channels);
              BytePointer q = new BytePointer(n);
              BytePointer gate = new BytePointer(Bits.bytes(n))) {
            Numbers.write(scale, Numbers.read(subject.scales));
            (given ? operation.given() : operation)
                .run(
                    new FakeQuantize.Job(
                        subject.weight, y, q, gate, new FloatPointer(scale.pointer()), null, null));
            assertArrayEquals(Numbers.read(scale), Numbers.read(subject.scales));
            assertArrayEquals(bytes(gate, Bits.bytes(n)), bytes(subject.gate, Bits.bytes(n)));
            if (copy == Copy.F32) {
              assertBits(toDouble(Numbers.read(y)), Numbers.read(subject.floats), "copy");
            } else {
              assertArrayEquals(bytes(q, n), bytes(subject.integers, n));
            }
          }
        }
      }
    }
  }

  /** Momentum under the mask is +0, not a denormal on its way there, after 10,000 steps. */
  @Test
  void prunedMomentumStaysZero() {
    for (Isa isa : Variants.isas().toList()) {
      try (Subject subject = new Subject(8, 48, DType.F32, Copy.F32, Channel.FIRST_AXIS, 8);
          FusedSgd sgd = new FusedSgd(List.of(subject.parameter), MOMENTUM.withNesterov(true))) {
        subject.gradients(1);
        // Momentum from before the mask.
        float[] momentum = Numbers.floats(8 * 48, 9);
        Numbers.write(subject.momentum, momentum);
        sgd.first(0, false);
        Variants.with(
            isa,
            1,
            () -> {
              for (int step = 0; step < 10_000; step++) {
                sgd.step();
              }
            });
        float[] w = Numbers.read(subject.weight);
        float[] m = Numbers.read(subject.momentum);
        float[] copy = Numbers.read(subject.floats);
        int pruned = 0;
        for (int i = 0; i < w.length; i++) {
          if (!subject.state.mask[i]) {
            pruned++;
            assertEquals(0, Float.floatToRawIntBits(w[i]));
            assertEquals(0, Float.floatToRawIntBits(m[i]));
            assertEquals(0, Float.floatToRawIntBits(copy[i]));
          }
        }
        assertTrue(pruned > 100);
      }
    }
  }

  /** Kept momentum that decays without gradients goes through the denormals as IEEE says. */
  @Test
  void denormalsAreNotFlushed() {
    for (Isa isa : Variants.isas().toList()) {
      try (Subject subject = new Subject(1, 37, DType.F32, Copy.NONE, null, 9);
          FusedSgd sgd = new FusedSgd(List.of(subject.parameter), MOMENTUM)) {
        subject.gradients(1);
        boolean[] seen = {false};
        for (int step = 0; step < 900; step++) {
          FusedSgdReference.exact(List.of(subject.state), MOMENTUM);
          Variants.with(isa, 1, sgd::step);
          Arrays.fill(subject.state.gradient, 0);
          Numbers.write(subject.gradient, subject.state.gradient);
          for (double m : subject.state.momentum) {
            seen[0] |= m != 0 && Math.abs(m) < Float.MIN_NORMAL && step > 700;
          }
        }
        subject.check("after 900 steps");
        assertTrue(seen[0]);
      }
    }
  }

  /** A clipped weight gets no gradient, but decays; the scale stays as it was given. */
  @Test
  void aGatedWeightStillDecays() {
    Options options = Options.of(0.1).withWeightDecay(0.5);
    try (Subject subject = new Subject(1, 2, DType.F32, Copy.F32, Channel.TENSOR, 3, true, 0);
        FusedSgd sgd = new FusedSgd(List.of(subject.parameter), options)) {
      Numbers.write(subject.weight, new float[] {2f, 0.5f});
      Numbers.write(subject.scales, new float[] {0.01f});
      Numbers.write(subject.gradient, new float[] {0, 0});
      subject.gate.put((byte) 3);
      sgd.step();
      assertEquals(0b10, subject.gate.get()); // 1.9 is beyond 1.27
      assertArrayEquals(new float[] {1.27f, 0.48f}, Numbers.read(subject.floats), 1e-6f);
      Numbers.write(subject.gradient, new float[] {100, 1});
      sgd.step();
      assertEquals(1.9f * 0.95f, Numbers.read(subject.weight)[0], 1e-6f);
      assertEquals(0.475f * 0.95f - 0.1f, Numbers.read(subject.weight)[1], 1e-6f);
      assertEquals(0.01f, Numbers.read(subject.scales)[0]);
    }
  }

  @Test
  void channelsOfZerosAndOfTinyWeightsHaveScaleOne() {
    for (Isa isa : Variants.isas().toList()) {
      for (Channel channel : List.of(Channel.FIRST_AXIS, Channel.LAST_AXIS)) {
        try (Subject subject = new Subject(3, 3, DType.F32, Copy.F32, channel, 3);
            FusedSgd sgd = new FusedSgd(List.of(subject.parameter), PLAIN)) {
          float[] w = {0, 0, 0, 0, 1e-38f, 0, 0, 0, 127};
          Numbers.write(subject.weight, w);
          Variants.with(isa, 1, sgd::step);
          assertArrayEquals(new float[] {1, 1, 1}, Numbers.read(subject.scales));
          assertArrayEquals(
              new float[] {0, 0, 0, 0, 0, 0, 0, 0, 127}, Numbers.read(subject.floats));
        }
      }
    }
  }

  @Test
  void aNonFiniteWeightMakesItsChannelsScaleNaNAndIsCounted() {
    for (Isa isa : Variants.isas().toList()) {
      for (Channel channel : Channel.values()) {
        for (int cols : new int[] {32, 33, 70_000}) {
          try (Subject subject = new Subject(3, cols, DType.F32, Copy.INT8, channel, 4);
              FusedSgd sgd = new FusedSgd(List.of(subject.parameter), MOMENTUM)) {
            subject.gradients(1);
            for (int i : new int[] {1, cols + 2}) {
              subject.state.mask[i] = true;
              subject.state.gate[i] = true;
              subject.parameter.mask().put(i >> 3, (byte) 0xff);
              subject.gate.put(i >> 3, (byte) 0xff);
            }
            for (int i = 0; i < 16; i++) { // the same bytes in the reference
              for (int start : new int[] {0, cols + 2 >> 3 << 3}) {
                subject.state.mask[start + i % 8] = true;
                subject.state.gate[start + i % 8] = true;
              }
            }
            float[] w = Numbers.read(subject.weight);
            w[1] = Float.NaN;
            w[cols + 2] = Float.NEGATIVE_INFINITY;
            Numbers.write(subject.weight, w);
            subject.state.weight = toDouble(w);
            StepResult expected = FusedSgdReference.exact(List.of(subject.state), MOMENTUM);
            Variants.with(
                isa,
                2,
                () -> assertEquals(expected.nonFiniteChannels(), sgd.step().nonFiniteChannels()));
            assertEquals(channel == Channel.TENSOR ? 1 : 2, expected.nonFiniteChannels());
            subject.check(isa + " " + channel + " " + cols);
          }
        }
      }
    }
  }

  /** State that was saved and restored leads to the same bits as an uninterrupted run. */
  @Test
  void aRestoredRunContinuesWithTheSameBits() {
    Options options = MOMENTUM.withDampening(0.1);
    try (Subject a = new Subject(9, 40, DType.F32, Copy.F16, Channel.FIRST_AXIS, 13);
        Subject b = new Subject(9, 40, DType.F32, Copy.F16, Channel.FIRST_AXIS, 13);
        FusedSgd run = new FusedSgd(List.of(a.parameter), options);
        FusedSgd resumed = new FusedSgd(List.of(b.parameter), options)) {
      a.gradients(1);
      run.step();
      Numbers.write(b.weight, Numbers.read(a.weight));
      Numbers.write(b.momentum, Numbers.read(a.momentum));
      resumed.first(0, false);
      a.gradients(2);
      b.gradients(2);
      run.learningRate(0.01);
      resumed.learningRate(0.01);
      run.step();
      resumed.step();
      assertArrayEquals(Numbers.read(a.weight), Numbers.read(b.weight));
      assertArrayEquals(Numbers.read(a.floats), Numbers.read(b.floats));
      assertEquals(0.01, run.learningRate());
    }
  }

  /** Autograd leaves gradients now here, now there: a step, AdamW's too, and the norm read them there. */
  @Test
  void readsAGradientThatIsElsewhereNow() {
    try (OwnedTensor w = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor v = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor m = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor n = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor here = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor there = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor half = OwnedTensor.allocate(DType.BF16, 2);
        OwnedTensor few = OwnedTensor.allocate(DType.F32, 1);
        FusedSgd sgd = new FusedSgd(List.of(Parameter.of(w, here, null)), Options.of(1));
        FusedAdamW adam =
            new FusedAdamW(
                List.of(new FusedAdamW.Parameter(v, here, m, n, null, null, null, null)),
                FusedAdamW.Options.of(1).withWeightDecay(0));
        GradientNorm norm =
            new GradientNorm(List.of(new GradientNorm.Gradient(here, null, null)))) {
      new FloatPointer(there.pointer()).put(3f, -4f);
      sgd.gradient(0, there);
      adam.gradient(0, there);
      norm.gradient(0, there);
      sgd.step();
      adam.step();
      assertEquals(5, norm.compute().norm());
      assertArrayEquals(new float[] {-3, 4}, Numbers.read(w));
      assertArrayEquals(new float[] {-1, 1}, Numbers.read(v), 1e-6f);
      for (Tensor wrong : List.of(half, few)) {
        refused("it was F32[2]", () -> sgd.gradient(0, wrong));
        refused("it was F32[2]", () -> norm.gradient(0, wrong));
      }
      assertThrows(IndexOutOfBoundsException.class, () -> sgd.gradient(1, there));
    }
  }

  /** Rows of tables: what a step, AdamW's too, and the norm go over is as long as it is now. */
  @Test
  void aParameterBecomesAnotherOfAnotherSizeAndItsStepsGoOn() {
    try (OwnedTensor two = OwnedTensor.allocate(DType.F32, 2);
        OwnedTensor three = OwnedTensor.allocate(DType.F32, 3);
        OwnedTensor slope = OwnedTensor.allocate(DType.F32, 3);
        OwnedTensor first = OwnedTensor.allocate(DType.F32, 3);
        OwnedTensor second = OwnedTensor.allocate(DType.F32, 3);
        FusedSgd sgd =
            new FusedSgd(
                List.of(Parameter.of(two, two(slope), two(first))),
                Options.of(1).withMomentum(0.5));
        FusedAdamW adam =
            new FusedAdamW(
                List.of(FusedAdamW.Parameter.of(two, two(slope), two(first), two(second))),
                FusedAdamW.Options.of(1).withWeightDecay(0));
        GradientNorm norm =
            new GradientNorm(List.of(new GradientNorm.Gradient(two(slope), null, null)))) {
      new FloatPointer(slope.pointer()).put(2f, 3f, 6f);
      norm.gradient(0, new GradientNorm.Gradient(slope, null, null));
      assertEquals(7, norm.compute().norm());
      sgd.parameter(0, Parameter.of(three, slope, first));
      assertTrue(sgd.first(0));
      sgd.step();
      sgd.parameter(0, Parameter.of(three, slope, first));
      assertFalse(sgd.first(0));
      sgd.step(); // the buffer is the gradient, and then half of that more
      assertArrayEquals(new float[] {-5, -7.5f, -15}, Numbers.read(three));
      assertArrayEquals(new float[2], Numbers.read(two));
      adam.steps(0, 1);
      adam.parameter(0, FusedAdamW.Parameter.of(three, slope, second, first));
      assertEquals(1, adam.steps(0));
      adam.step();
      assertEquals(2, adam.steps(0));
      assertTrue(Numbers.read(three)[2] < -15);
      sgd.noise(new StepNoise(1, 1, 5, 0));
      sgd.step();
      assertEquals(2, sgd.noise().counter()); // blocks of two
      refused("no momentum buffer", () -> sgd.parameter(0, Parameter.of(three, slope, null)));
      assertThrows(
          IndexOutOfBoundsException.class,
          () -> sgd.parameter(1, Parameter.of(three, slope, first)));
    }
  }

  private static Tensor two(OwnedTensor tensor) {
    return Tensor.of(tensor.pointer(), DType.F32, 2);
  }

  @Test
  void whatIsWrongIsSaid() {
    try (OwnedTensor w = OwnedTensor.allocate(DType.F32, 4, 8);
        OwnedTensor half = OwnedTensor.allocate(DType.BF16, 4, 8);
        OwnedTensor few = OwnedTensor.allocate(DType.F32, 31);
        BytePointer bits = new BytePointer(3)) {
      refused("weight BF16[4, 8]: F32 is needed", () -> Parameter.of(half, w, null));
      refused("the sizes differ", () -> Parameter.of(w, few, null));
      refused("the sizes differ", () -> Parameter.of(w, w, few));
      refused("mask holds 3 bytes, 32 bits need 4", () -> Parameter.of(w, w, null).withMask(bits));
      refused(
          "31 scales for the 8 channels of F32[4, 8] (LAST_AXIS)",
          () ->
              Parameter.of(w, w, null)
                  .withWorkingCopy(null, new Scale(few, Channel.LAST_AXIS, false)));
      refused(
          "working copy F32[31]: the sizes differ",
          () -> Parameter.of(w, w, null).withWorkingCopy(WorkingCopy.of(few)));
      refused(
          "holds 3 bytes, F32[4, 8] needs 32",
          () -> Parameter.of(w, w, null).withWorkingCopy(WorkingCopy.int8(bits)));
      refused(
          "parameter 0 has no momentum buffer, and momentum is 0.9",
          () -> new FusedSgd(List.of(Parameter.of(w, w, null)), MOMENTUM));
      refused("learning rate NaN", () -> Options.of(Double.NaN));
      refused("weight decay -1.0", () -> PLAIN.withWeightDecay(-1));
      refused("Nesterov needs momentum above 0 (0.0)", () -> PLAIN.withNesterov(true));
      refused("axis 1 of 4; channels along the first or the last", () -> Channel.ofAxis(1, 4));
      assertEquals(Channel.LAST_AXIS, Channel.ofAxis(-1, 2));
      try (OwnedTensor scale = OwnedTensor.allocate(DType.F32, 1);
          FusedSgd sgd =
              new FusedSgd(
                  List.of(
                      Parameter.of(w, half, null)
                          .withWorkingCopy(null, new Scale(scale, Channel.TENSOR, true))),
                  PLAIN)) {
        refused("scale 0 of tensor 0 is 0; positive, with a finite reciprocal", sgd::step);
      }
    }
  }
}
