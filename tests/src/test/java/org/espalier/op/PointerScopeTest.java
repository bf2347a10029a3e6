package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.junit.jupiter.api.Test;

/** What is made in a PointerScope works after it, until it is closed. */
class PointerScopeTest {
  private final FloatPointer memory = new FloatPointer(1, 2, 3, 4);
  private final FloatPointer other = new FloatPointer(4, 3, 2, 1);
  private final Tensor tensor = Tensor.of(memory, DType.F32, 2, 2);
  private final Tensor gradient = Tensor.of(other, DType.F32, 2, 2);

  @Test
  void anOptimizer() {
    FusedSgd sgd;
    FusedAdamW adamW;
    try (PointerScope scope = new PointerScope()) {
      sgd =
          new FusedSgd(
              List.of(FusedSgd.Parameter.of(tensor, gradient, null)), FusedSgd.Options.of(0.5));
      FusedAdamW.Options options = FusedAdamW.Options.of(0.5);
      Tensor first = Tensor.of(new FloatPointer(4), DType.F32, 4);
      adamW =
          new FusedAdamW(List.of(FusedAdamW.Parameter.of(tensor, gradient, first, first)), options);
    }
    sgd.step();
    assertEquals(-1, memory.get(0));
    sgd.learningRate(0.25);
    assertEquals(0.25, sgd.learningRate());
    assertEquals(0.5, adamW.learningRate());
    sgd.close();
    adamW.close();
  }

  @Test
  void aBatchToQuantize() {
    FloatPointer scale = new FloatPointer(1);
    FakeQuantize.Batch batch;
    try (PointerScope scope = new PointerScope()) {
      batch =
          FakeQuantize.symmetric(8).batch(List.of(FakeQuantize.Job.observe(tensor, scale, null)));
    }
    batch.run();
    assertEquals(4 / 127f, scale.get());
    batch.replace(List.of(FakeQuantize.Job.observe(gradient.slice(1, 3), scale, null)));
    batch.run();
    assertEquals(3 / 127f, scale.get());
    batch.close();
  }

  @Test
  void aBatchToPrune() {
    MagnitudePrune.Batch batch;
    try (PointerScope scope = new PointerScope()) {
      batch =
          MagnitudePrune.batch(
              List.of(MagnitudePrune.Weights.of("w", tensor).inPlace()),
              new MagnitudePrune.Amount(0.25, MagnitudePrune.Scope.GLOBAL));
      batch.rule(new MagnitudePrune.Amount(0.5, MagnitudePrune.Scope.GLOBAL));
    }
    assertEquals(2, batch.run().pruned());
    assertEquals(0, memory.get(1));
    batch.close();
  }

  @Test
  void aLossAndANorm() {
    KdSoftmaxLoss loss;
    GradientNorm norm;
    try (PointerScope scope = new PointerScope()) {
      loss =
          new KdSoftmaxLoss(
              KdSoftmaxLoss.Settings.of(0, 1),
              new KdSoftmaxLoss.Batch(
                  KdSoftmaxLoss.Logits.of(tensor),
                  KdSoftmaxLoss.Logits.of(tensor),
                  null,
                  null,
                  null,
                  KdSoftmaxLoss.Logits.of(gradient)));
      norm = new GradientNorm(List.of(new GradientNorm.Gradient(tensor, null, null)));
    }
    assertEquals(0, loss.compute().loss(), 1e-12);
    assertEquals(0, other.get(0), 1e-6);
    assertEquals(Math.sqrt(30), norm.compute().norm(), 1e-12);
    loss.close();
    norm.close();
  }
}
