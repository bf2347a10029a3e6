package org.espalier.benchmarks;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AdamW;
import org.bytedeco.pytorch.AdamWOptions;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorArrayRefOptional;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.train.Compression;
import org.espalier.train.CompressionPlan;
import org.espalier.train.Examples;
import org.espalier.train.Objective;
import org.espalier.train.OnnxCompression;
import org.espalier.train.Optimizer;
import org.espalier.train.Pooling;
import org.espalier.train.Quantization;
import org.espalier.train.Stage;
import org.espalier.train.Training;
import org.espalier.train.TrainingListener;

/**
 * What compression adds to a training step of a sentence encoder at 32 texts of 32 tokens: optimizer with
 * mask, gate and working copies, and fake-quantized activations; and what the same costs when it is
 * composed from libtorch's operations, in the same JVM.
 *
 * <pre>  java … org.espalier.benchmarks.TrainingStepCost model.onnx</pre>
 */
public final class TrainingStepCost {
  private static final int TEXTS = 32;
  private static final int TOKENS = 32;
  private static final int WARM = 8;
  private static final int STEPS = 24;

  private TrainingStepCost() {}

  /** Prints medians in milliseconds, and two ratios, as JSON. */
  public static void main(String[] arguments) throws Exception {
    Path file = Path.of(arguments[0]);
    OnnxModel model = OnnxModel.read(file);
    List<Double> steps = new ArrayList<>();
    List<Double> added = new ArrayList<>();
    train(model, steps, added);
    double compression = median(added);
    double plain = median(steps) - compression;
    double composed = composed(model);
    System.out.printf(
        Locale.ROOT,
        "{\"texts\": %d, \"tokens\": %d, \"threads\": %d, \"forward_backward_ms\": %.2f,"
            + " \"added_ms\": %.2f, \"added_share\": %.4f, \"composed_ms\": %.2f,"
            + " \"composed_over_added\": %.2f}%n",
        TEXTS,
        TOKENS,
        torch.get_num_threads(),
        plain,
        compression,
        compression / plain,
        composed,
        composed / compression);
  }

  private static void train(OnnxModel model, List<Double> steps, List<Double> added) {
    Random random = new Random(1);
    List<long[]> ids = new ArrayList<>();
    for (int i = 0; i < 8 * TEXTS; i++) {
      ids.add(random.longs(TOKENS, 1000, 20_000).toArray());
    }
    Quantization unfitted = Quantization.dynamic().withFit(false);
    Training training =
        new Training(
            WARM + STEPS,
            0,
            TEXTS,
            Optimizer.AdamW.of(1e-5),
            Training.Schedule.constant(),
            Objective.ofEmbeddings(1, 0, 1),
            0);
    CompressionPlan plan =
        new CompressionPlan(List.of(new Stage.Quantize("quantize", unfitted, training)), 1);
    Compression.Job job =
        new Compression.Job(
            model,
            null,
            new Examples.Texts(ids),
            new Examples.Texts(ids.subList(0, 4)),
            Pooling.MEAN,
            null,
            null);
    try (OnnxCompression compression = new OnnxCompression(plan, job)) {
      compression.run(
          new TrainingListener() {
            @Override
            public boolean step(StepReport report) {
              if (report.step() > WARM) {
                steps.add(1e3 * report.seconds());
                added.add(1e3 * report.addedSeconds());
              }
              return true;
            }
          });
    }
  }

  /** AdamW::step, new scales and working copies of all matrices; every activation there and back. */
  private static double composed(OnnxModel model) {
    try (OnnxGraph graph = new OnnxGraph(model);
        PointerScope scope = new PointerScope()) {
      TensorVector trained = new TensorVector();
      List<Tensor> latent = new ArrayList<>();
      List<Tensor> working = new ArrayList<>();
      List<Tensor> activations = new ArrayList<>();
      for (Parameter p : graph.parameters()) {
        if (p.kind() == Parameter.Kind.EMBEDDING) {
          continue;
        }
        Tensor w = p.tensor().detach().clone().requires_grad_(true);
        w.mutable_grad().put(torch.randn_like(w).mul(new Scalar(1e-3)));
        trained.push_back(w);
        if (p.isWeight()) {
          latent.add(w);
          working.add(p.tensor().detach().clone());
          long width = w.size(p.reductionAxis());
          activations.add(torch.randn(TEXTS, TOKENS, width).requires_grad_(true));
        }
      }
      // Query, key and value read one activation: of each layer's six products four are quantized.
      List<Tensor> sites = new ArrayList<>();
      for (int i = 0; i < activations.size(); i++) {
        if (i % 6 != 1 && i % 6 != 2) {
          sites.add(activations.get(i));
        }
      }
      AdamWOptions options = new AdamWOptions(1e-5);
      options.weight_decay().put(0);
      AdamW adam = new AdamW(trained, options);
      List<Double> times = new ArrayList<>();
      for (int step = 0; step < WARM + STEPS; step++) {
        long start = System.nanoTime();
        adam.step();
        for (int i = 0; i < latent.size(); i++) {
          renew(latent.get(i), working.get(i));
        }
        for (Tensor x : sites) {
          activation(x);
        }
        if (step >= WARM) {
          times.add((System.nanoTime() - start) * 1e-6);
        }
      }
      return median(times);
    }
  }

  private static void renew(Tensor latent, Tensor working) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Tensor scale = latent.abs().amax(new long[] {0}, false).div(new Scalar(127.0));
      Tensor zero = torch.zeros_like(scale).to(torch.ScalarType.Int);
      working.copy_(torch.fake_quantize_per_channel_affine(latent, scale, zero, 1, -127, 127));
    }
  }

  private static void activation(Tensor x) {
    try (PointerScope scope = new PointerScope()) {
      Tensor y;
      Tensor scale;
      Tensor zero;
      try (NoGradGuard noGrad = new NoGradGuard()) {
        Tensor low = x.amin(new long[] {1, 2}, false).clamp_max(new Scalar(0.0));
        Tensor high = x.amax(new long[] {1, 2}, false).clamp_min(new Scalar(0.0));
        scale = high.sub(low).div(new Scalar(255.0));
        zero = low.neg().div(scale).round().to(torch.ScalarType.Int);
      }
      y = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, 0, 255);
      y.backward(y.detach(), new BoolOptional(), false, new TensorArrayRefOptional());
      x.mutable_grad().put(new Tensor());
    }
  }

  private static double median(List<Double> values) {
    double[] sorted = values.stream().mapToDouble(Double::doubleValue).toArray();
    Arrays.sort(sorted);
    return sorted[sorted.length / 2];
  }
}
