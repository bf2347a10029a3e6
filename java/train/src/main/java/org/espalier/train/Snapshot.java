package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.espalier.torch.TorchDevice;

/**
 * A copy of all that training moves, in the host's memory and outside of Java's heap, which a model need not fit. It is
 * taken anew in the same memory. Not safe for several threads.
 */
final class Snapshot implements AutoCloseable {
  private final List<TrainedWeight> weights;
  private final List<TrainingBuffer> copies = new ArrayList<>();

  /** Null where no range is fixed. */
  private final StaticGrid grid;

  private float[] ranges;

  /**
   * Takes the first copy.
   *
   * @param weights to be closed after this
   * @param grid what fixes ranges of activations, or null
   */
  Snapshot(List<TrainedWeight> weights, StaticGrid grid) {
    this.weights = List.copyOf(weights);
    this.grid = grid;
    try {
      for (TrainingBuffer moved : moved()) {
        copies.add(TrainingBuffer.zeros(TorchDevice.CPU, moved.elements()));
      }
      take();
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  private List<TrainingBuffer> moved() {
    List<TrainingBuffer> moved = new ArrayList<>();
    for (TrainedWeight w : weights) {
      if (!w.rests()) {
        moved.add(w.latent());
      }
      if (w.ends() != null) {
        moved.add(w.ends());
      }
    }
    return moved;
  }

  /** Takes the present state in place of the one before. */
  void take() {
    List<TrainingBuffer> moved = moved();
    for (int i = 0; i < moved.size(); i++) {
      copies.get(i).copyFrom(moved.get(i));
    }
    if (grid != null) {
      ranges = grid.values();
    }
  }

  /** Gives the weights and ranges back what was taken. */
  void restore() {
    List<TrainingBuffer> moved = moved();
    for (int i = 0; i < moved.size(); i++) {
      moved.get(i).copyFrom(copies.get(i));
    }
    for (TrainedWeight w : weights) {
      if (w.ends() != null) {
        w.takeEnds();
      }
      w.renew();
    }
    if (grid != null) {
      grid.values(ranges);
    }
  }

  /** Writes what {@link #read} reads. */
  void write(DataOutputStream out) throws IOException {
    for (TrainingBuffer copy : copies) {
      copy.write(out);
    }
    if (grid != null) {
      for (float end : ranges) {
        out.writeFloat(end);
      }
    }
  }

  /** Takes what was written of weights and ranges of the same sizes. */
  void read(DataInputStream in) throws IOException {
    for (TrainingBuffer copy : copies) {
      copy.read(in);
    }
    if (grid != null) {
      for (int i = 0; i < ranges.length; i++) {
        ranges[i] = in.readFloat();
      }
    }
  }

  @Override
  public void close() {
    copies.forEach(TrainingBuffer::close);
  }
}
