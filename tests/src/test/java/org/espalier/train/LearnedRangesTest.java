package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Ranges of activations as parameters (LSQ, LSQ+). */
class LearnedRangesTest {
  private static final int N = 512;

  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  private static float[] values(long seed) {
    Random random = new Random(seed);
    float[] x = new float[N];
    for (int i = 0; i < N; i++) {
      x[i] = 0.7f + (float) random.nextGaussian();
    }
    return x;
  }

  private static Batch batch(Tensor x) {
    return new Batch(Map.of("x", x), new int[N / 8], 1, null);
  }

  /** Whether the activation has a gradient of its own or is an input of the model. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theGradientFollowsTheFormula(boolean needsGradient) {
    ActivationRange range = new ActivationRange(-0.5f, 1.9f);
    float[] x = values(1);
    float[] g = values(2);
    try (StaticGrid grid = new StaticGrid(Map.of("a", range), TorchDevice.CPU);
        PointerScope scope = new PointerScope()) {
      grid.learn();
      Tensor input = AbstractTensor.create(x, N / 8, 8);
      input.requires_grad_(needsGradient);
      Tensor y = grid.quantize("a", input, batch(input));
      y.mul(AbstractTensor.create(g, N / 8, 8)).sum().backward();
      grid.learned().learn();

      double s = range.scale();
      int z = range.zeroPoint();
      double byScale = 0;
      double byZero = 0;
      int clipped = 0;
      for (int i = 0; i < N; i++) {
        double q = Math.rint(x[i] / s) + z;
        if (q < 0 || q > 255) {
          byScale += g[i] * ((q < 0 ? 0 : 255) - z);
          byZero -= g[i] * s;
          clipped++;
        } else {
          byScale += g[i] * (q - z - x[i] / s);
        }
      }
      assertTrue(clipped > 50 && clipped < N - 50, clipped + " clipped");
      double width = range.max() - range.min();
      double factor = 255 / Math.sqrt(N * 255.0) * 255 / unit(width);
      double max = byScale / 255 + byZero * 255 * range.min() / (width * width);
      double min = -byScale / 255 - byZero * 255 * range.max() / (width * width);
      float[] found = grid.learned().gradients().values();
      assertEquals(factor * min, found[0], 1e-4 * factor * Math.abs(byScale) / 255);
      assertEquals(factor * max, found[1], 1e-4 * factor * Math.abs(byScale) / 255);
      if (needsGradient) {
        FloatBuffer passed = TrainingBuffer.buffer(org.espalier.torch.TensorView.of(input.grad()));
        for (int i = 0; i < N; i++) {
          double q = Math.rint(x[i] / s) + z;
          assertEquals(q < 0 || q > 255 ? 0 : g[i], passed.get(i), "" + i);
        }
      }
    }
  }

  /** 16 times the power of two above a width. */
  private static double unit(double width) {
    return 16 * Math.pow(2, Math.floor(Math.log(width) / Math.log(2)) + 1);
  }

  /** Ranges that are far too wide and too narrow come to where the error is small. */
  @Test
  void rangesComeToWhereTheErrorIsSmall() {
    for (ActivationRange start :
        List.of(new ActivationRange(-20, 20), new ActivationRange(-0.05f, 0.2f))) {
      double[] errors = new double[2];
      try (StaticGrid grid = new StaticGrid(Map.of("a", start), TorchDevice.CPU)) {
        grid.learn();
        try (Update update =
            new Update(List.of(), grid, Optimizer.AdamW.of(1e-3), TorchDevice.CPU)) {
          for (int step = 0; step < 600; step++) {
            try (PointerScope scope = new PointerScope()) {
              Tensor input = AbstractTensor.create(values(step), N / 8, 8);
              Tensor error = torch.mse_loss(grid.quantize("a", input, batch(input)), input);
              errors[step == 0 ? 0 : 1] = error.item_float();
              error.backward();
              update.step(1e-3);
            }
          }
        }
        ActivationRange end = grid.ranges().get("a");
        assertTrue(end.min() < -1 && end.max() > 2 && end.max() - end.min() < 20, end.toString());
        assertTrue(errors[1] < 0.2 * errors[0], errors[1] + " from " + errors[0]);
      }
    }
  }

  /** An activation that was always 0 when it was calibrated, as behind a Relu that never opens. */
  @Test
  void aRangeOfNothingLearnsNothing() {
    try (StaticGrid grid =
            new StaticGrid(Map.of("dead", new ActivationRange(0, 0)), TorchDevice.CPU);
        PointerScope scope = new PointerScope()) {
      grid.learn();
      for (float[] x : List.of(new float[N], values(1))) {
        Tensor input = AbstractTensor.create(x, N / 8, 8);
        input.requires_grad_(true);
        grid.quantize("dead", input, batch(input)).sum().backward();
        grid.learned().learn();
        float[] found = grid.learned().gradients().values();
        assertEquals(0, found[0]);
        assertEquals(0, found[1]);
        grid.learned().follow();
        assertEquals(new ActivationRange(0, 0), grid.ranges().get("dead"));
      }
    }
  }

  @Test
  void nothingIsLearnedWhereNoGradientIsWanted() {
    try (StaticGrid grid =
            new StaticGrid(Map.of("a", new ActivationRange(-1, 1)), TorchDevice.CPU);
        PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      grid.learn();
      Tensor input = AbstractTensor.create(values(1), N / 8, 8);
      grid.quantize("a", input, batch(input));
      grid.learned().learn();
      assertEquals(0, grid.learned().gradients().values()[0]);
      try (StaticGrid sibling = grid.sibling()) {
        assertNull(sibling.learned());
      }
    }
  }

  @Test
  void unitsOfASavedRunAreCheckedAndTaken() throws IOException {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    ActivationRange range = new ActivationRange(-1, 2);
    try (StaticGrid grid = new StaticGrid(Map.of("a", range), TorchDevice.CPU)) {
      grid.learn();
      grid.learned().writeUnits(new DataOutputStream(bytes));
    }
    try (StaticGrid grid =
        new StaticGrid(Map.of("a", new ActivationRange(-100, 200)), TorchDevice.CPU)) {
      grid.learn();
      grid.values(new float[] {-1, 2});
      grid.learned().readUnits(new DataInputStream(new ByteArrayInputStream(bytes.toByteArray())));
      assertEquals(2 / 32f / 2, grid.learned().ends().values()[1]);
      DataInputStream zeros = new DataInputStream(new ByteArrayInputStream(new byte[4]));
      assertThrows(InputException.class, () -> grid.learned().readUnits(zeros));
    }
  }
}
