package org.espalier.online;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;
import org.espalier.op.FusedAdamW;
import org.espalier.op.FusedSgd;
import org.espalier.op.GradientNorm;

/**
 * A table that is learned by rows. The rows that a batch has read are taken out, with their momentum or moments, stepped
 * as a tensor of their own, and put back. A row that it has not read stays as it is, and so do its momentum, its moments
 * and what weight decay would take: what the field calls a lazy optimizer (torch.optim.SparseAdam of PyTorch, LazyAdam of
 * TensorFlow Addons). As there, the steps that Adam corrects its moments by are the table's, not the row's. Plain
 * descent leaves the bits of a step on the whole table.
 */
final class TableRows implements AutoCloseable {
  private final String name;
  private final RowLookUps model;
  private final int width;

  /** The table, and its momentum or its moments: all that a row has. */
  private final List<Tensor> whole = new ArrayList<>();

  /** Room for rows: their gradient first, and then of each of {@link #whole}. */
  private List<OwnedTensor> rooms = List.of();

  private long room;

  /** The rows of this step. */
  private long[] rows = {};

  private final List<Tensor> taken = new ArrayList<>();

  /**
   * @param table a weight of the model that is learned by rows
   */
  TableRows(Weight table, RowLookUps model) {
    this.name = table.name();
    this.model = model;
    this.width = Floats.rowLength(table.latent());
    whole.add(table.latent());
    reserve(1);
    take(1);
  }

  /** Adds the momentum or a moment of each element, zeros now. */
  void withMoment(Tensor moment) {
    whole.add(moment);
    room = 0;
    reserve(1);
    take(1);
  }

  private void reserve(long count) {
    if (count <= room) {
      return;
    }
    close();
    room = Math.max(count, Math.min(2 * room, whole.get(0).dimension(0)));
    rooms = new ArrayList<>();
    for (int i = 0; i <= whole.size(); i++) {
      rooms.add(OwnedTensor.allocate(DType.F32, room, width));
    }
  }

  /** Tensors of so many rows at the beginning of each room. */
  private void take(long count) {
    taken.clear();
    for (OwnedTensor r : rooms) {
      taken.add(Tensor.of(r.pointer(), DType.F32, count, width));
    }
  }

  /** Takes the gradient that the last backward has left. */
  void takeGradient() {
    RowGradient now = model.rowGradient(name);
    rows = now.rows();
    reserve(rows.length);
    take(rows.length);
    Floats.of(rooms.get(0)).put(0, now.values());
  }

  /** The gradient of this step's rows. */
  Tensor gradient() {
    return taken.get(0);
  }

  /** This step's rows for descent, with momentum where there is one. */
  FusedSgd.Parameter forSgd() {
    return FusedSgd.Parameter.of(
        taken.get(1), taken.get(0), taken.size() > 2 ? taken.get(2) : null);
  }

  /** This step's rows for AdamW. */
  FusedAdamW.Parameter forAdamW() {
    return FusedAdamW.Parameter.of(taken.get(1), taken.get(0), taken.get(2), taken.get(3));
  }

  GradientNorm.Gradient forNorm() {
    return new GradientNorm.Gradient(taken.get(0), null, null);
  }

  /** Takes this step's rows out of the table, for the step. */
  void takeOut() {
    for (int i = 0; i < whole.size(); i++) {
      FloatBuffer table = Floats.of(whole.get(i));
      FloatBuffer own = Floats.of(rooms.get(1 + i));
      for (int k = 0; k < rows.length; k++) {
        own.put(k * width, table, (int) rows[k] * width, width);
      }
    }
  }

  /** Puts them back as the step has left them. */
  void putBack() {
    for (int i = 0; i < whole.size(); i++) {
      FloatBuffer table = Floats.of(whole.get(i));
      FloatBuffer own = Floats.of(rooms.get(1 + i));
      for (int k = 0; k < rows.length; k++) {
        table.put((int) rows[k] * width, own, k * width, width);
      }
    }
    model.changed(name, rows);
  }

  /** The momentum or the moments of all rows are those of the beginning: a first step reads those of no row but its own. */
  void forgetMomentum() {
    whole.stream().skip(1).forEach(m -> Pointer.memset(m.pointer(), 0, m.bytes()));
  }

  @Override
  public void close() {
    rooms.forEach(OwnedTensor::close);
  }
}
