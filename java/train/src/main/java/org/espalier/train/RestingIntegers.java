package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.torch.TorchDevice;

/**
 * The integers of a weight on a grid of blocks, which stay as they are while their scales are trained (the second phase of
 * EfficientQAT, Chen et al. 2024, arXiv 2407.11062):
 *
 * <pre>  w = scale · q,  dL/dscale = Σ dL/dw · q over the block</pre>
 *
 * <p>No weight moves, so none can swing between two integers, and each scale answers for all that its block adds to the loss.
 * The optimizer moves scale / (8 · scale at first), which starts at 1/8 for all blocks: one learning rate suits weights of any size.
 */
final class RestingIntegers implements QuantizedWeight {
  /** What the optimizer moves at first. */
  private static final float FIRST = 0.125f;

  /** The least of it: a scale keeps its sign. */
  private static final float LEAST = 0x1p-20f;

  private final WeightGrid grid;

  /** What forward reads. */
  private final Tensor weight;

  /** int8, in the layout of the weight. */
  private final Tensor integers;

  /** One a block. */
  private final Tensor scales;

  /** What the optimizer's values are multiplied with, one a block. */
  private final Tensor units;

  private final Tensor moved;
  private final Tensor gradients;
  private final TorchDevice device;
  private final List<Piece> pieces = new ArrayList<>();

  /**
   * Blocks of one length.
   *
   * @param from their first weight
   * @param shape [blocks, length, inner], where blocks of columns have several columns
   * @param scale their first scale
   */
  private record Piece(long from, long[] shape, long scale) {
    long elements() {
      return shape[0] * shape[1] * shape[2];
    }

    /** Their weights of a tensor in the weight's layout. */
    Tensor of(Tensor all) {
      return all.view(-1).narrow(0, from, elements()).view(shape);
    }

    /** A value for each of their scales. */
    Tensor ofScales(Tensor all) {
      return all.narrow(0, scale, shape[0] * shape[2]).view(shape[0], 1, shape[2]);
    }
  }

  /**
   * Takes integers and scales.
   *
   * @param grid of blocks along the first axis, or along the last and then of whole ones
   * @param weight what forward reads
   */
  RestingIntegers(
      WeightGrid grid, Tensor weight, byte[] integers, float[] scales, TorchDevice device) {
    this.grid = grid;
    this.weight = weight;
    this.device = device;
    long[] shape = weight.shape();
    long length = shape[grid.axis()];
    long inner = LongStream.of(shape).skip(grid.axis() + 1L).reduce(1, (a, b) -> a * b);
    long outer = integers.length / (length * inner);
    long whole = length / grid.block();
    long rest = length % grid.block();
    pieces.add(new Piece(0, new long[] {outer * whole, grid.block(), inner}, 0));
    if (rest > 0) {
      long from = whole * grid.block() * inner;
      pieces.add(new Piece(from, new long[] {1, rest, inner}, whole * inner));
    }
    try (PointerScope scope = new PointerScope()) {
      // Retained: the scope of a step must not free them either.
      this.integers = zeros(ScalarType.Char, integers.length).retainReference();
      this.scales = zeros(ScalarType.Float, scales.length).retainReference();
      this.units = zeros(ScalarType.Float, scales.length).retainReference();
      this.moved = zeros(ScalarType.Float, scales.length).retainReference();
      this.gradients = zeros(ScalarType.Float, scales.length).retainReference();
    }
    place(integers);
    scales().set(scales);
    try (PointerScope scope = new PointerScope()) {
      units.copy_(this.scales.div(new Scalar(FIRST)));
      moved.fill_(new Scalar(FIRST));
    }
  }

  private Tensor zeros(ScalarType type, long elements) {
    return new Tensor(device.place(torch.zeros(new long[] {elements}, new TensorOptions(type))));
  }

  private void place(byte[] values) {
    try (PointerScope scope = new PointerScope()) {
      Tensor host = torch.zeros(new long[] {values.length}, new TensorOptions(ScalarType.Char));
      Pointer.memcpy(host.data_ptr(), new BytePointer(values), values.length);
      integers.copy_(host);
    }
  }

  @Override
  public WeightGrid grid() {
    return grid;
  }

  @Override
  public TrainingBuffer latent() {
    return null;
  }

  @Override
  public BytePointer gateBits() {
    return null;
  }

  @Override
  public void write(DataOutputStream out) throws IOException {
    out.write(integers());
    for (Tensor t : new Tensor[] {units, scales, moved}) {
      TrainingBuffer.of(device, t).write(out);
    }
  }

  @Override
  public void read(DataInputStream in) throws IOException {
    byte[] values = new byte[Math.toIntExact(integers.numel())];
    in.readFully(values);
    place(values);
    for (Tensor t : new Tensor[] {units, scales, moved}) {
      TrainingBuffer.of(device, t).read(in);
    }
  }

  @Override
  public byte[] integers() {
    try (PointerScope scope = new PointerScope()) {
      Tensor host = TorchDevice.CPU.place(integers);
      byte[] values = new byte[Math.toIntExact(host.numel())];
      new BytePointer(host.data_ptr()).capacity(values.length).get(values);
      return values;
    }
  }

  /** One a block. */
  @Override
  public TrainingBuffer scales() {
    return TrainingBuffer.of(device, scales);
  }

  @Override
  public float[] gridScales() {
    return scales().values();
  }

  @Override
  public TrainingBuffer ends() {
    return TrainingBuffer.of(device, moved);
  }

  @Override
  public void follow(float least) {
    try (PointerScope scope = new PointerScope()) {
      Tensor floor = scales.div(units).mul(new Scalar(least)).clamp_min(new Scalar(LEAST));
      moved.copy_(torch.maximum(moved, floor));
      scales.copy_(units.mul(moved));
    }
  }

  @Override
  public TrainingBuffer endGradients() {
    return TrainingBuffer.of(device, gradients);
  }

  @Override
  public EndGradients learningEnds(Tensor gradient) {
    return new EndGradients(() -> sumUp(gradient), () -> {});
  }

  @Override
  public void renew() {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      for (Piece p : pieces) {
        p.of(weight.detach()).copy_(p.of(integers).mul(p.ofScales(scales)));
      }
    }
  }

  private void sumUp(Tensor gradient) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      for (Piece p : pieces) {
        Tensor sums = p.of(gradient).mul(p.of(integers)).sum(1).unsqueeze(1);
        p.ofScales(gradients).copy_(sums.mul(p.ofScales(units)));
      }
    }
  }

  @Override
  public void close() {
    integers.close();
    scales.close();
    units.close();
    moved.close();
    gradients.close();
  }
}
