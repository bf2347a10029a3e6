package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import org.espalier.format.onnx.OnnxModel;

/** Runs that are stopped in the middle of a stage and continued, as by another process. */
final class StoppedRuns {
  private StoppedRuns() {}

  /** Stops a run after so many steps of a stage. */
  static TrainingListener until(Stage stage, long steps) {
    return new TrainingListener() {
      @Override
      public boolean step(StepReport report) {
        return !report.stage().equals(stage) || report.step() < steps;
      }
    };
  }

  /** What a run exports that was stopped after so many steps of a stage. */
  static byte[] exported(CompressionPlan plan, Compression.Job job, Stage stage, long steps)
      throws IOException {
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertFalse(c.run(until(stage, steps)));
      c.save(saved);
    }
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      c.restore(new ByteArrayInputStream(saved.toByteArray()));
      assertTrue(c.run(new TrainingListener() {}));
      return bytes(c.export());
    }
  }

  /** A model as it would be written. */
  static byte[] bytes(OnnxModel model) {
    ByteBuffer buffer = model.toBuffer();
    byte[] bytes = new byte[buffer.remaining()];
    buffer.get(bytes);
    return bytes;
  }
}
