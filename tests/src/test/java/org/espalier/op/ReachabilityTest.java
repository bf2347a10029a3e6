package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.ref.WeakReference;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.binding.esp_executor;
import org.espalier.binding.esp_task;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * What a caller gives and has no other use for stays reachable as long as native code has its address. The garbage
 * collector runs amid each call, from an executor in place of the native pool; the memory is never freed.
 */
class ReachabilityTest {
  private static final int FEW = 1 << 8;
  private static final int MANY = 1 << 17; // which the kernels cut into tasks
  private static final MagnitudePrune.Amount HALF =
      new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL);

  /** So often that methods are compiled: the interpreter keeps all that a method was given. */
  private static final int WARM_UP = 1_000;

  private static final MagnitudePrune.Selection OF_FEW = selection(FEW);
  private static final MagnitudePrune.Selection OF_MANY = selection(MANY);

  private final Given given = new Given();
  private final Executor executor = new Executor();

  private enum Operation {
    ACTIVATION_FORWARD(g -> Activation.TANH.forward(g.tensor(), g.n)),
    ACTIVATION_BACKWARD(g -> Activation.TANH.backward(g.tensor(), g.tensor(), g.n)),
    BACKWARD(g -> FakeQuantize.backward(g.tensor(), g.bytes(), g.tensor())),
    DEQUANTIZE(
        g -> FakeQuantize.symmetric(8).dequantize(g.bytes(), g.tensor(), g.scale(), g.zeros())),
    APPLY(g -> g.selection().apply(List.of(g.weights()))),
    APPLY_PIECE(g -> g.selection().apply(0, 0, g.weights()));

    final Consumer<Given> call;

    Operation(Consumer<Given> call) {
      this.call = call;
    }
  }

  /** Makes what an operation takes, and has no hold of it. */
  private static final class Given {
    private static final int PLACES = 8;
    private final FloatPointer memory = new FloatPointer((long) PLACES * MANY);

    /** Elements of a tensor. */
    int n = FEW;

    final List<WeakReference<Pointer>> pointers = new ArrayList<>();

    Given() {
      memory.put(ones());
    }

    private static float[] ones() {
      float[] ones = new float[PLACES * MANY];
      Arrays.fill(ones, 1);
      return ones;
    }

    FloatPointer floats(long count) {
      long place = (long) pointers.size() % PLACES * MANY;
      FloatPointer view = new FloatPointer(memory.getPointer(place)).capacity(count);
      pointers.add(new WeakReference<>(view));
      return view;
    }

    Tensor tensor() {
      return Tensor.of(floats(n), DType.F32, n);
    }

    BytePointer bytes() {
      BytePointer view = new BytePointer(floats(1)).capacity(n);
      pointers.set(pointers.size() - 1, new WeakReference<>(view));
      return view;
    }

    FloatPointer scale() {
      return floats(1).put(1);
    }

    IntPointer zeros() {
      IntPointer view = new IntPointer(floats(1)).capacity(1).put(0);
      pointers.set(pointers.size() - 1, new WeakReference<>(view));
      return view;
    }

    MagnitudePrune.Selection selection() {
      return n == FEW ? OF_FEW : OF_MANY;
    }

    MagnitudePrune.Weights weights() {
      return MagnitudePrune.Weights.of("w", tensor()).to(tensor()).maskIn(bytes()).maskOut(bytes());
    }
  }

  /** Runs the garbage collector in place of the tasks: these operations write, and nothing depends on it. */
  private final class Executor extends esp_executor {
    int collections;
    int lost;

    @Override
    public void call(Pointer context, esp_task task, Pointer argument, long count) {
      System.gc();
      collections++;
      lost = (int) given.pointers.stream().filter(p -> p.refersTo(null)).count();
    }
  }

  private static MagnitudePrune.Selection selection(int n) {
    try (OwnedTensor weights = OwnedTensor.allocate(DType.F32, n)) {
      return MagnitudePrune.select(List.of(MagnitudePrune.Weights.of("w", weights)), HALF);
    }
  }

  @AfterEach
  void restorePool() {
    espalier.esp_executor_set(null, null);
    executor.close();
  }

  @ParameterizedTest
  @EnumSource(Operation.class)
  void whatIsGivenStaysReachable(Operation operation) {
    espalier.esp_executor_set(executor, null);
    for (int round = 0; round < 3; round++) {
      for (int i = 0; i < WARM_UP; i++) {
        given.pointers.clear();
        operation.call.accept(given);
      }
      given.pointers.clear();
      given.n = MANY;
      executor.collections = 0;
      operation.call.accept(given);
      given.n = FEW;
      assertEquals(1, executor.collections);
      assertEquals(0, executor.lost, "of " + given.pointers.size());
    }
  }

  /** Else the test above could not fail. */
  @Test
  void whatIsForgottenGoes() {
    given.tensor();
    System.gc();
    assertTrue(given.pointers.get(0).refersTo(null));
  }
}
