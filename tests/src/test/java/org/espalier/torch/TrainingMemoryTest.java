package org.espalier.torch;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.Test;

/** Steps in a {@link PointerScope} leave nothing behind, whatever the garbage collector does. */
class TrainingMemoryTest {
  /** {@code -Despalier.memory.steps=100000} for the long run. */
  private static final int STEPS = Integer.getInteger("espalier.memory.steps", 6000);

  /** Glibc's arenas and the JIT compiler grow a little after the first steps. */
  private static final long SLACK = 24L << 20;

  @Test
  void residentMemoryStaysFlat() {
    Libtorch.load();
    int threads = torch.get_num_threads();
    torch.set_num_threads(1);
    try (OnnxGraph graph = new OnnxGraph(OnnxModel.of(SmallModels.mlp(), "mlp"))) {
      graph.train(true);
      steps(graph, 2000);
      long before = resident();
      long pointers = Pointer.totalCount();
      steps(graph, STEPS);
      long growth = resident() - before;
      System.out.printf("%d steps: resident memory grew by %d KiB%n", STEPS, growth >> 10);
      assertTrue(growth < SLACK, "grew by " + growth + " bytes in " + STEPS + " steps");
      assertTrue(
          Pointer.totalCount() - pointers < 50,
          Pointer.totalCount() + " pointers after " + pointers);
    } finally {
      torch.set_num_threads(threads);
    }
  }

  /** Three batch sizes, so that what is kept for shapes is used too. */
  private static void steps(OnnxGraph graph, int count) {
    for (int i = 0; i < count; i++) {
      try (PointerScope scope = new PointerScope()) {
        Tensor x = torch.randn(4 + i % 3, 8);
        Tensor loss = graph.forward(Map.of("x", x)).get("y").square().mean();
        loss.backward();
        try (NoGradGuard guard = new NoGradGuard()) {
          for (Parameter p : graph.parameters()) {
            p.tensor().sub_(p.tensor().grad(), new Scalar(0.01));
            p.tensor().mutable_grad().zero_();
          }
        }
      }
    }
  }

  private static long resident() {
    try {
      for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
        if (line.startsWith("VmRSS:")) {
          return 1024 * Long.parseLong(line.replaceAll("\\D", ""));
        }
      }
      throw new IllegalStateException("no VmRSS");
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
