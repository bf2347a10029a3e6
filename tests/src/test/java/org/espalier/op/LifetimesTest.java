package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Memory that is closed, null or read-only is refused by name; native code would read or write what is another's. */
class LifetimesTest {
  private static final int N = 8;

  private final List<Given> given = new ArrayList<>();

  @AfterEach
  void close() {
    given.forEach(g -> List.of(g.tensors).forEach(OwnedTensor::close));
  }

  private Given given() {
    Given g = new Given();
    given.add(g);
    return g;
  }

  /** What an operation is made of: tensors [N, N] and pointers, all of which are closed in turn. */
  private static final class Given {
    final OwnedTensor[] tensors = new OwnedTensor[4];
    final BytePointer[] bits = {new BytePointer(N * N), new BytePointer(N * N)};
    final FloatPointer scale = new FloatPointer(N).fill(1);
    final FloatPointer gradScale = new FloatPointer(N);
    final IntPointer zeroPoint = new IntPointer(N);
    final LongPointer labels = new LongPointer(N);

    Given() {
      for (int i = 0; i < tensors.length; i++) {
        tensors[i] = OwnedTensor.allocate(DType.F32, N, N);
      }
      labels.fill(0);
      zeroPoint.fill(0);
    }

    KdSoftmaxLoss.Logits logits(int i) {
      return KdSoftmaxLoss.Logits.of(tensors[i]);
    }
  }

  /** Something that was made, and what it does with its memory. */
  private record Made(AutoCloseable operation, Executable call) {}

  private enum Operation {
    FUSED_SGD(4, 2, List.of(), Operation::sgd),
    FUSED_ADAMW(4, 2, List.of(), Operation::adamW),
    KD_SOFTMAX_LOSS(4, 1, List.of("labels"), Operation::loss),
    MAGNITUDE_PRUNE(2, 2, List.of(), Operation::prune),
    FAKE_QUANTIZE(2, 2, List.of("scale", "zeroPoint"), Operation::quantize),
    SCALE_GRADIENTS(3, 0, List.of("scale", "zeroPoint", "gradScale"), Operation::gradients),
    GRADIENT_NORM(1, 2, List.of(), Operation::norm),
    DP_ACCUMULATE(2, 0, List.of(), Operation::accumulate),
    LINEAR(3, 0, List.of(), Operation::linear);

    final int tensors;
    final int bits;
    final List<String> pointers;
    final Function<Given, Made> make;

    Operation(int tensors, int bits, List<String> pointers, Function<Given, Made> make) {
      this.tensors = tensors;
      this.bits = bits;
      this.pointers = pointers;
      this.make = make;
    }

    private static Made sgd(Given g) {
      FusedSgd.Parameter parameter =
          FusedSgd.Parameter.of(g.tensors[0], g.tensors[1], g.tensors[2])
              .withMask(g.bits[0])
              .withWorkingCopy(WorkingCopy.of(g.tensors[3]))
              .withGate(g.bits[1]);
      FusedSgd sgd = new FusedSgd(List.of(parameter), FusedSgd.Options.of(0.1).withMomentum(0.5));
      return new Made(sgd, sgd::step);
    }

    private static Made adamW(Given g) {
      FusedAdamW.Parameter parameter =
          FusedAdamW.Parameter.of(g.tensors[0], g.tensors[1], g.tensors[2], g.tensors[3])
              .withMask(g.bits[0])
              .withGate(g.bits[1]);
      FusedAdamW adamW = new FusedAdamW(List.of(parameter), FusedAdamW.Options.of(0.1));
      return new Made(adamW, adamW::step);
    }

    private static Made loss(Given g) {
      KdSoftmaxLoss loss =
          new KdSoftmaxLoss(
              new KdSoftmaxLoss.Settings(0.5, 2, 1, KdSoftmaxLoss.NO_LABEL),
              new KdSoftmaxLoss.Batch(
                  g.logits(0), g.logits(1), g.labels, g.logits(2), g.bits[0], g.logits(3)));
      return new Made(loss, loss::compute);
    }

    private static Made prune(Given g) {
      MagnitudePrune.Weights weights =
          MagnitudePrune.Weights.of("w", g.tensors[0])
              .to(g.tensors[1])
              .maskIn(g.bits[0])
              .maskOut(g.bits[1]);
      MagnitudePrune.Batch batch =
          MagnitudePrune.batch(
              List.of(weights), new MagnitudePrune.Sparsity(0.5, MagnitudePrune.Scope.GLOBAL));
      return new Made(batch, batch::run);
    }

    private static Made quantize(Given g) {
      FakeQuantize.Batch batch =
          FakeQuantize.affine(8)
              .perChannel(0)
              .batch(
                  List.of(
                      new FakeQuantize.Job(
                          g.tensors[0],
                          g.tensors[1],
                          g.bits[0],
                          g.bits[1],
                          g.scale,
                          g.zeroPoint,
                          null)));
      return new Made(batch, batch::run);
    }

    private static Made gradients(Given g) {
      ScaleGradients gradients =
          FakeQuantize.affine(8)
              .perChannel(0)
              .scaleGradients(
                  List.of(
                      new ScaleGradients.Job(
                          g.tensors[0],
                          g.tensors[1],
                          g.tensors[2],
                          g.scale,
                          g.zeroPoint,
                          g.gradScale,
                          null,
                          1)));
      return new Made(gradients, gradients::run);
    }

    private static Made norm(Given g) {
      GradientNorm norm =
          new GradientNorm(List.of(new GradientNorm.Gradient(g.tensors[0], g.bits[0], g.bits[1])));
      return new Made(norm, norm::compute);
    }

    private static Made accumulate(Given g) {
      DpAccumulate accumulate =
          new DpAccumulate(List.of(new DpAccumulate.Parameter(g.tensors[0], g.tensors[1])));
      return new Made(accumulate, () -> accumulate.accumulate(1));
    }

    private static Made linear(Given g) {
      Tensor bias = g.tensors[0].slice(0, N);
      Linear linear = new Linear(g.tensors[0], bias, g.tensors[1], g.tensors[2]);
      return new Made(linear, () -> linear.forward(N));
    }

    Pointer pointer(Given g, String name) {
      return switch (name) {
        case "scale" -> g.scale;
        case "zeroPoint" -> g.zeroPoint;
        case "gradScale" -> g.gradScale;
        default -> g.labels;
      };
    }
  }

  private static String refused(Class<? extends RuntimeException> type, Executable call) {
    return assertThrows(type, call).getMessage();
  }

  @ParameterizedTest
  @EnumSource(Operation.class)
  void memoryThatIsClosedLaterIsRefused(Operation operation) throws Throwable {
    for (int i = 0; i < operation.tensors; i++) {
      Given g = given();
      Made made = operation.make.apply(g);
      made.call().execute();
      g.tensors[i].close();
      assertEquals(
          "a tensor of 256 bytes is closed", refused(IllegalStateException.class, made.call()));
      made.operation().close();
    }
    for (int i = 0; i < operation.bits; i++) {
      Given g = given();
      Made made = operation.make.apply(g);
      made.call().execute();
      g.bits[i].close();
      String message = refused(IllegalStateException.class, made.call());
      assertTrue(message.endsWith(" is closed"), message);
      made.operation().close();
    }
    for (String name : operation.pointers) {
      Given g = given();
      Made made = operation.make.apply(g);
      made.call().execute();
      operation.pointer(g, name).close();
      assertEquals(
          "the memory of " + name + " is closed",
          refused(IllegalStateException.class, made.call()));
      made.operation().close();
    }
  }

  /** Native code takes a null pointer for a mask, labels or zero points that are not there. */
  @ParameterizedTest
  @EnumSource(Operation.class)
  void aClosedPointerIsNoAbsentOne(Operation operation) {
    for (int i = 0; i < operation.bits; i++) {
      Given g = given();
      g.bits[i].close();
      String message =
          refused(IllegalArgumentException.class, () -> operation.make.apply(g).call().execute());
      assertTrue(message.contains(" is a null pointer, closed or never allocated"), message);
    }
    for (String name : operation.pointers) {
      Given g = given();
      operation.pointer(g, name).close();
      String message =
          refused(IllegalArgumentException.class, () -> operation.make.apply(g).call().execute());
      assertTrue(message.startsWith(name + " is a null pointer"), message);
    }
  }

  @ParameterizedTest
  @EnumSource(Operation.class)
  void aClosedOperationSaysSo(Operation operation) throws Exception {
    Made made = operation.make.apply(given());
    made.operation().close();
    made.operation().close();
    String message = refused(IllegalStateException.class, made.call());
    assertTrue(message.matches("the .* (is|are) closed"), message);
  }

  /** What frees an operation's memory has its monitor, as {@code close} does. */
  @ParameterizedTest
  @EnumSource(Operation.class)
  void callsWaitForWhoCloses(Operation operation) throws Exception {
    Given g = given();
    Made made = operation.make.apply(g);
    assertWaits(made.operation(), made.call());
    if (made.operation() instanceof Linear linear) {
      assertWaits(linear, () -> linear.backward(N));
      assertWaits(linear, () -> linear.backwardRows(N));
      assertWaits(linear, () -> linear.addSquares(N, new double[N]));
      assertWaits(linear, () -> linear.descend(0.1));
    }
    made.operation().close();
  }

  private static void assertWaits(AutoCloseable operation, Executable call) throws Exception {
    FutureTask<Void> calling =
        new FutureTask<>(
            () -> {
              try {
                call.execute();
                return null;
              } catch (Throwable e) {
                throw new AssertionError(e);
              }
            });
    Thread thread = new Thread(calling);
    synchronized (operation) {
      thread.start();
      while (thread.getState() != Thread.State.BLOCKED && thread.isAlive()) {
        Thread.onSpinWait();
      }
      assertFalse(calling.isDone());
    }
    calling.get();
  }

  /** Whoever closes waits for the call that is under way. */
  @ParameterizedTest
  @EnumSource(Operation.class)
  void closingEndsTheCallsOfOtherThreads(Operation operation) throws Exception {
    Made made = operation.make.apply(given());
    ExecutorService pool = Executors.newFixedThreadPool(2);
    CountDownLatch calling = new CountDownLatch(2);
    List<Future<String>> ends = new ArrayList<>();
    for (int t = 0; t < 2; t++) {
      ends.add(
          pool.submit(
              () -> {
                try {
                  for (int call = 0; ; call++) {
                    made.call().execute();
                    if (call == 100) {
                      calling.countDown();
                    }
                  }
                } catch (IllegalStateException e) {
                  return e.getMessage();
                } catch (Throwable e) {
                  throw new AssertionError(e);
                }
              }));
    }
    assertTrue(calling.await(30, TimeUnit.SECONDS));
    made.operation().close();
    for (Future<String> end : ends) {
      String message = end.get(30, TimeUnit.SECONDS);
      assertTrue(message.matches("the .* (is|are) closed"), message);
    }
    pool.shutdown();
  }

  @Test
  void batchesThatAreClosedTakeNothingNew() {
    Given g = given();
    MagnitudePrune.Sparsity half = new MagnitudePrune.Sparsity(0.5, MagnitudePrune.Scope.GLOBAL);
    MagnitudePrune.Batch pruned =
        MagnitudePrune.batch(List.of(MagnitudePrune.Weights.of("w", g.tensors[0])), half);
    pruned.close();
    assertEquals(
        "the batch is closed", refused(IllegalStateException.class, () -> pruned.rule(half)));
    List<FakeQuantize.Job> jobs = List.of(FakeQuantize.Job.observe(g.tensors[0], g.scale, null));
    FakeQuantize.Batch quantized = FakeQuantize.symmetric(8).batch(jobs);
    quantized.close();
    assertEquals(
        "the batch is closed", refused(IllegalStateException.class, () -> quantized.replace(jobs)));
  }

  private static Tensor readOnly() {
    return Tensor.of(
        ByteBuffer.allocateDirect(4 * N * N).order(ByteOrder.nativeOrder()).asReadOnlyBuffer(),
        DType.F32,
        N,
        N);
  }

  /** Such memory may be read; a write to a mapped file would end the process. */
  @Test
  void whatIsReadOnlyIsNotWritten() {
    Given g = given();
    Tensor fixed = readOnly();
    Tensor free = g.tensors[0];
    KdSoftmaxLoss.Logits fixedLogits = KdSoftmaxLoss.Logits.of(fixed);
    Linear linear = new Linear(fixed, fixed.slice(0, N), fixed, free);
    Linear intoFixed = new Linear(free, free.slice(0, N), free, fixed);
    List<Executable> writes =
        List.of(
            () -> MagnitudePrune.Weights.of("w", fixed).inPlace(),
            () -> FakeQuantize.Job.fake(free, fixed, null, g.scale, null),
            () -> FakeQuantize.backward(free, g.bits[0], fixed),
            () -> FakeQuantize.symmetric(8).dequantize(g.bits[0], fixed, g.scale, null),
            () -> new ScaleGradients.Job(free, free, fixed, g.scale, null, g.gradScale, null, 1),
            () -> FusedSgd.Parameter.of(fixed, free, null),
            () -> FusedSgd.Parameter.of(free, free, fixed),
            () -> FusedSgd.Parameter.of(free, free, null).withWorkingCopy(WorkingCopy.of(fixed)),
            () ->
                FusedSgd.Parameter.of(free, free, null)
                    .withWorkingCopy(null, new Scale(fixed.slice(0, N), Channel.FIRST_AXIS, false)),
            () -> FusedAdamW.Parameter.of(free, free, free, fixed),
            () -> new KdSoftmaxLoss.Batch(fixedLogits, fixedLogits, null, null, null, fixedLogits),
            () -> new DpAccumulate.Parameter(free, fixed),
            () -> linear.backward(1),
            () -> new Linear(free, free.slice(0, N), fixed, free).backwardRows(1),
            () -> linear.descend(0.1),
            () -> intoFixed.forward(1));
    for (Executable write : writes) {
      String message = refused(IllegalArgumentException.class, write);
      assertTrue(message.contains("is read-only memory"), message);
    }
    linear.forward(N);
    FakeQuantize.symmetric(8).run(FakeQuantize.Job.fake(fixed, g.tensors[1], null, g.scale, null));
    new FusedSgd(List.of(FusedSgd.Parameter.of(free, fixed, null)), FusedSgd.Options.of(0.1))
        .step();
  }

  /** As tied weights are, where a list names them twice: they would be stepped twice, by two threads at once. */
  @Test
  void memoryThatComesTwiceIsRefused() {
    Given g = given();
    List<FusedSgd.Parameter> twice =
        List.of(
            FusedSgd.Parameter.of(g.tensors[0], g.tensors[1], null),
            FusedSgd.Parameter.of(g.tensors[0], g.tensors[2], null));
    assertEquals(
        "parameter 1, F32[8, 8], is memory that parameter 0 is too",
        refused(
            IllegalArgumentException.class, () -> new FusedSgd(twice, FusedSgd.Options.of(0.1))));
    MagnitudePrune.Weights w = MagnitudePrune.Weights.of("table", g.tensors[0]);
    MagnitudePrune.Amount half = new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL);
    List<MagnitudePrune.Weights> both =
        List.of(w.inPlace(), MagnitudePrune.Weights.of("head", g.tensors[0]).inPlace());
    assertEquals(
        "head is written to the memory of table; each memory can come once",
        refused(IllegalArgumentException.class, () -> MagnitudePrune.prune(both, half)));
    MagnitudePrune.prune(List.of(w, w), half); // which writes nothing
  }

  /** Slices of one tensor that begin elsewhere, in any order and beside others. */
  @Test
  void memoryThatOverlapsIsRefused() {
    Tensor whole = given().tensors[0];
    Tensor other = given().tensors[0];
    Tensor[] parts = {whole.slice(32, 32), other, whole.slice(0, 33), whole.slice(0, 0)};
    MagnitudePrune.Amount half = new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL);
    List<MagnitudePrune.Weights> list = new ArrayList<>();
    for (int i = 0; i < parts.length; i++) {
      list.add(MagnitudePrune.Weights.of("part " + i, parts[i]).inPlace());
    }
    MagnitudePrune.Selection selection = MagnitudePrune.select(list, half);
    for (Executable call :
        List.<Executable>of(() -> MagnitudePrune.prune(list, half), () -> selection.apply(list))) {
      assertEquals(
          "part 2 is written to the memory of part 0; each memory can come once",
          refused(IllegalArgumentException.class, call));
    }
    List<FusedSgd.Parameter> parameters = new ArrayList<>();
    for (Tensor part : parts) {
      Tensor gradient = given().tensors[1].slice(0, part.elements());
      parameters.add(FusedSgd.Parameter.of(part, gradient, null));
    }
    FusedSgd.Options options = FusedSgd.Options.of(0.1);
    assertEquals(
        "parameter 2, F32[33], is memory that parameter 0 is too",
        refused(IllegalArgumentException.class, () -> new FusedSgd(parameters, options)));
    List<MagnitudePrune.Weights> apart =
        List.of(
            MagnitudePrune.Weights.of("high", whole.slice(32, 32)).inPlace(),
            MagnitudePrune.Weights.of("low", whole.slice(0, 32)).inPlace());
    assertEquals(32, MagnitudePrune.prune(apart, half).pruned());
  }

  /** As a batch does: native code would take the mask for none. */
  @Test
  void aSelectionRefusesMasksThatWereClosed() {
    MagnitudePrune.Amount half = new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL);
    Given g = given();
    MagnitudePrune.Weights in = MagnitudePrune.Weights.of("in", g.tensors[0]).maskIn(g.bits[0]);
    MagnitudePrune.Weights out = MagnitudePrune.Weights.of("out", g.tensors[1]).maskOut(g.bits[1]);
    MagnitudePrune.Selection selection = MagnitudePrune.select(List.of(in), half);
    selection.apply(List.of(in));
    g.bits[0].close();
    g.bits[1].close();
    for (Executable call :
        List.<Executable>of(
            () -> MagnitudePrune.select(List.of(in), half),
            () -> selection.apply(List.of(in)),
            () -> selection.apply(0, 0, in))) {
      assertEquals(
          "the memory of in: maskIn is closed", refused(IllegalStateException.class, call));
    }
    for (Executable call :
        List.<Executable>of(
            () -> selection.apply(List.of(out)), () -> selection.apply(0, 0, out))) {
      assertEquals(
          "the memory of out: maskOut is closed", refused(IllegalStateException.class, call));
    }
  }
}
