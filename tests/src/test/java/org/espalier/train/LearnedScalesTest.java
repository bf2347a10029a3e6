package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.Test;

/** Scales of weights as parameters (LSQ). */
class LearnedScalesTest {
  private static final int ROWS = 16;
  private static final int COLUMNS = 6;
  private static final int QMAX = 127;

  /** y = x·w with a random matrix. */
  static OnnxGraph product(int rows, int columns) {
    Random random = new Random(8);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("product")
            .addInput(value("x", DataType.FLOAT, -1, rows))
            .addInitializer(floats("w", random, 0.5f, rows, columns))
            .addNode(node("MatMul", "m", List.of("x", "w"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, columns));
    return new OnnxGraph(OnnxModel.of(SmallModels.model(13, g), "product"));
  }

  /** Puts the weight on grids that end at a quarter of each column's largest magnitude. */
  private static void quantize(TrainedWeight w, boolean learn) {
    FloatBuffer values = TrainingBuffer.buffer(w.latent().tensor());
    float[] scales = new float[COLUMNS];
    for (int i = 0; i < w.elements; i++) {
      int c = i % COLUMNS;
      scales[c] = Math.max(scales[c], Math.abs(values.get(i)) / 4 / QMAX);
    }
    byte[] integers = new byte[(int) w.elements];
    for (int i = 0; i < integers.length; i++) {
      double q = Math.rint(values.get(i) / scales[i % COLUMNS]);
      integers[i] = (byte) Math.max(-QMAX, Math.min(QMAX, q));
    }
    w.quantize(new WeightGrid(-QMAX, QMAX, 1, 0), integers, scales, learn);
  }

  @Test
  void theGradientFollowsTheFormula() {
    try (OnnxGraph graph = product(ROWS, COLUMNS);
        TrainedWeight w = new TrainedWeight(graph.parameters().get(0), TorchDevice.CPU);
        Tensor gradient = torch.zeros(ROWS, COLUMNS)) {
      quantize(w, true);
      Random random = new Random(3);
      FloatBuffer latent = TrainingBuffer.buffer(w.latent().tensor());
      FloatBuffer g = TrainingBuffer.buffer(TorchDevice.CPU.view(gradient));
      for (int i = 0; i < w.elements; i++) {
        // Inside the grid, between its integers, and beyond both ends.
        latent.put(i, latent.get(i) * (0.3f + 2 * random.nextFloat()));
        g.put(i, (float) random.nextGaussian());
      }
      try (QuantizedWeight.EndGradients gradients = w.learningEnds(gradient)) {
        gradients.run();
      }
      FloatBuffer scales = TrainingBuffer.buffer(w.scales().tensor());
      FloatBuffer found = TrainingBuffer.buffer(w.endGradients().tensor());
      double[] expected = new double[COLUMNS];
      double[] magnitude = new double[COLUMNS];
      int clipped = 0;
      for (int i = 0; i < w.elements; i++) {
        double v = (double) latent.get(i) / scales.get(i % COLUMNS);
        boolean inside = Math.abs(Math.rint(v)) <= QMAX;
        double d = inside ? Math.rint(v) - v : Math.signum(v) * QMAX;
        expected[i % COLUMNS] += g.get(i) * d;
        magnitude[i % COLUMNS] += Math.abs(g.get(i) * d);
        clipped += inside ? 0 : 1;
      }
      assertTrue(clipped > 5 && clipped < w.elements - 5, clipped + " clipped");
      double factor = QMAX / Math.sqrt((double) ROWS * QMAX);
      for (int c = 0; c < COLUMNS; c++) {
        // v has a relative error of 2^-23 and is at most 2 * 127 where it is subtracted.
        assertEquals(
            factor * expected[c], found.get(c), factor * (1e-6 * magnitude[c] + 1e-3), "" + c);
      }
    }
  }

  /** Grids that end too early cannot be left by weights alone; with their scales they can. */
  @Test
  void learnedScalesReachWhatFixedOnesCannot() {
    double[] fixed = train(false, Optimizer.AdamW.of(2e-2));
    double[] learned = train(true, Optimizer.AdamW.of(2e-2));
    assertEquals(fixed[0], learned[0], 1e-4 * fixed[0]);
    assertTrue(learned[1] < 0.02 * fixed[1], learned[1] + " against " + fixed[1]);
    double[] sgd = train(true, Optimizer.Sgd.of(0.1));
    assertTrue(sgd[1] < 0.5 * fixed[1], sgd[1] + " against " + fixed[1]);
  }

  /** The squared error to the float product before and after training. */
  private static double[] train(boolean learn, Optimizer optimizer) {
    Random random = new Random(6);
    double[] losses = new double[2];
    try (OnnxGraph graph = product(ROWS, COLUMNS);
        OnnxGraph teacher = product(ROWS, COLUMNS);
        TrainedWeight w = new TrainedWeight(graph.parameters().get(0), TorchDevice.CPU)) {
      quantize(w, learn);
      try (Update update = new Update(List.of(w), null, optimizer, TorchDevice.CPU)) {
        for (int step = 0; step < 400; step++) {
          float[] x = new float[32 * ROWS];
          for (int i = 0; i < x.length; i++) {
            x[i] = (float) random.nextGaussian();
          }
          try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> inputs = Map.of("x", AbstractTensor.create(x, 32, ROWS));
            Tensor target = teacher.forward(inputs).get("y").detach();
            Tensor loss = torch.mse_loss(graph.forward(inputs).get("y"), target);
            losses[step == 0 ? 0 : 1] = loss.item_float();
            loss.backward();
            update.step(optimizer.learningRate());
            update.zeroGradients();
          }
        }
      }
    }
    return losses;
  }
}
