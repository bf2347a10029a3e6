package org.espalier.torch.onnx;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The rows that a run looked up in tables which have no gradient themselves. A table's gradient is as large as the
 * table and is zero but for the rows that were read. So what was read is a leaf of autograd in place of the table, and
 * backward leaves there a gradient for each look-up.
 */
public final class LookUps implements AutoCloseable {
  private final List<LookUp> found = new ArrayList<>();

  /**
   * What one node looked up.
   *
   * @param table the parameter's name
   * @param rows the numbers of the rows, from 0, one behind the other as they were read
   * @param values the rows, a leaf of autograd
   */
  public record LookUp(String table, long[] rows, Tensor values) {}

  /** Makes what a node looked up a leaf, where gradients are recorded at all. */
  void add(String table, Inputs in, Tensor values) {
    if (!GradMode.is_enabled()) {
      return;
    }
    Tensor index = in.get(1).to(ScalarType.Long).cpu().contiguous();
    long[] rows = new long[Math.toIntExact(index.numel())];
    new LongPointer(index.data_ptr()).get(rows);
    long size = in.get(0).size(0);
    for (int i = 0; i < rows.length; i++) {
      rows[i] += rows[i] < 0 ? size : 0;
    }
    values.requires_grad_(true);
    Tensor leaf = new Tensor(values);
    leaf.retainReference();
    found.add(new LookUp(table, rows, leaf));
  }

  /** The look-ups in the order in which they were made. */
  public List<LookUp> found() {
    return List.copyOf(found);
  }

  void clear() {
    found.forEach(l -> l.values().close());
    found.clear();
  }

  @Override
  public void close() {
    clear();
  }
}
