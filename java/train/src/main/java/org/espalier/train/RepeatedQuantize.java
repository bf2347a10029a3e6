package org.espalier.train;

import java.util.List;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.TorchDevice;

/**
 * Quantizes tensors again and again, other ones at each call. On a GPU the plan of the first call serves the later
 * ones, as long as none needs more room.
 */
final class RepeatedQuantize implements AutoCloseable {
  private final FakeQuantize options;
  private final TorchDevice device;

  /** Null before the first call. */
  private FakeQuantize.Batch batch;

  RepeatedQuantize(FakeQuantize options, TorchDevice device) {
    this.options = options;
    this.device = device;
  }

  /** Quantizes one tensor, behind the work that made it. */
  void run(FakeQuantize.Job job) {
    List<FakeQuantize.Job> jobs = List.of(job);
    if (batch == null) {
      batch = options.batch(jobs);
    } else {
      batch.replace(jobs);
    }
    device.run(batch);
  }

  @Override
  public void close() {
    if (batch != null) {
      batch.close();
    }
  }
}
