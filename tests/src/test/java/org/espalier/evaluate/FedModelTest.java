package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnxruntime.OnnxJavaType;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import org.espalier.compress.Progress;
import org.espalier.format.ComputedList;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Examples that are made when they are asked for: how many stay, and that none is made while models are timed. */
class FedModelTest {
  @TempDir Path folder;

  private Path model() throws IOException {
    return Files.write(folder.resolve("mlp.onnx"), SmallModels.mlp().toByteArray());
  }

  private static int made(Path model, int rows, int... order) {
    ByteBuffer values = ByteBuffer.allocateDirect(32 * rows).order(ByteOrder.nativeOrder());
    AtomicInteger made = new AtomicInteger();
    ExampleTensors examples =
        new ExampleTensors(
            new ComputedList<>(
                3,
                i -> {
                  made.incrementAndGet();
                  return Map.of(
                      ExampleTensors.ONLY_INPUT,
                      new ExampleTensors.Value(values, new long[] {rows, 8}, OnnxJavaType.FLOAT));
                }));
    try (FedModel fed = new FedModel(new RuntimeModel(MeasuredModel.of(model)), examples)) {
      for (int example : order) {
        fed.open(example);
      }
    }
    return made.get();
  }

  @Test
  void thoseThatFitStayOpen() throws IOException {
    assertEquals(3, made(model(), 1, 0, 1, 2, 1, 0));
    int half = (int) (Runtime.getRuntime().maxMemory() / 16 / 32 * 0.6);
    assertEquals(1, made(model(), half, 0, 0));
    assertEquals(5, made(model(), half, 0, 1, 2, 1, 0), "two are more than a sixteenth of memory");
  }

  @Test
  void whatIsPreparedIsNotTimed() throws IOException {
    AtomicInteger prepared = new AtomicInteger();
    Savings savings =
        Savings.measure(
            MeasuredModel.of(model()),
            MeasuredModel.of(model()),
            2,
            i -> {
              prepared.incrementAndGet();
              try {
                Thread.sleep(50);
              } catch (InterruptedException e) {
                throw new IllegalStateException(e);
              }
            },
            i -> {},
            i -> {},
            Progress.NONE);
    assertTrue(prepared.get() >= 6, prepared.toString());
    assertTrue(savings.referenceMillis() < 25 && savings.millis() < 25, savings.toString());
  }
}
