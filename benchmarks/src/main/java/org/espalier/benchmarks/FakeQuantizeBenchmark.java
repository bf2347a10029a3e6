package org.espalier.benchmarks;

import java.util.List;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.espalier.backend.Bandwidth;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.Bits;
import org.espalier.op.FakeQuantize;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * fake_quantize on [rows, columns] weights, grid -128 .. 127: one scale a row, one a column, each
 * found by a symmetric observer in the same call; the former with gate and backward; one given scale
 * for the tensor. The peer composes libtorch's operators as its users do, results in new tensors.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class FakeQuantizeBenchmark extends Comparison {
  /** Rows x columns, and what is done. */
  @Param({
    "3072x768-rows",
    "3072x768-columns",
    "65536x1024-rows",
    "65536x1024-columns",
    "65536x1024-backward",
    "65536x1024-tensor"
  })
  public String size;

  private static final float TENSOR_SCALE = 0.02f * 4 / 127;

  private String work;
  private long rows;
  private long columns;
  private long n;
  private OwnedTensor x;
  private OwnedTensor y;
  private OwnedTensor gradY;
  private OwnedTensor gradX;
  private BytePointer gate;
  private FloatPointer scale;
  private FakeQuantize.Batch batch;
  private Tensor torchX;
  private Tensor torchGradY;

  @Setup
  public void prepare() {
    work = size.substring(size.indexOf('-') + 1);
    rows = rows(size);
    columns = elements(size) / rows;
    n = elements(size);
    x = OwnedTensor.allocate(DType.F32, rows, columns);
    y = OwnedTensor.allocate(DType.F32, rows, columns);
    scale = new FloatPointer(Math.max(rows, columns));
    torchX = view(x);
    if (backward()) {
      gradY = OwnedTensor.allocate(DType.F32, rows, columns);
      gradX = OwnedTensor.allocate(DType.F32, rows, columns);
      gate = new BytePointer(Bits.bytes(n));
      torchGradY = view(gradY);
    }
    FakeQuantize options = FakeQuantize.symmetricFull(8);
    switch (work) {
      case "rows", "backward" -> options = options.perChannel(0);
      case "columns" -> options = options.perChannel(1);
      case "tensor" -> options = options.given();
      default -> throw new IllegalArgumentException(size);
    }
    try (PointerScope scope = new PointerScope()) {
      torch.manual_seed(3);
      torchX.copy_(torch.randn(rows, columns).mul_(new Scalar(0.02f)));
      if (backward()) {
        torchGradY.copy_(torch.randn(rows, columns));
      }
    }
    scale.put(0, TENSOR_SCALE);
    batch = options.batch(List.of(FakeQuantize.Job.fake(x, y, gate, scale, null)));
    check();
  }

  private Tensor view(OwnedTensor tensor) {
    return torch.from_blob(
        tensor.pointer(), new long[] {rows, columns}, new TensorOptions(torch.ScalarType.Float));
  }

  private boolean backward() {
    return work.equals("backward");
  }

  /** Both must give the same bits before either is timed. */
  private void check() {
    espalier();
    try (PointerScope scope = new PointerScope()) {
      Tensor[] expected = torchResult();
      require("y", torch.equal(expected[0], view(y)));
      if (backward()) {
        require("grad_x", torch.equal(expected[1], view(gradX)));
      }
    }
  }

  private void require(String what, boolean same) {
    if (!same) {
      throw new IllegalStateException(size + ": " + what + " differs from libtorch's");
    }
  }

  @TearDown
  public void release() {
    batch.close();
    torchX.close();
    x.close();
    y.close();
    if (backward()) {
      torchGradY.close();
      gate.close();
      gradY.close();
      gradX.close();
    }
  }

  private static long rows(String size) {
    return Long.parseLong(size.substring(0, size.indexOf('x')));
  }

  private static long elements(String size) {
    return rows(size) * Long.parseLong(size.substring(size.indexOf('x') + 1, size.indexOf('-')));
  }

  /** x in and y out; with backward also the gate out and in, and a gradient in and out. */
  @Override
  public double bytes(String method, String size) {
    double bytes = 8.0 * elements(size);
    return size.endsWith("backward") ? 2 * bytes + elements(size) / 4.0 : bytes;
  }

  @Benchmark
  public void espalier() {
    batch.run();
    if (backward()) {
      FakeQuantize.backward(gradY, gate, gradX);
    }
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope()) {
      torchResult();
    }
  }

  private Tensor[] torchResult() {
    if (work.equals("tensor")) {
      return new Tensor[] {
        torch.fake_quantize_per_tensor_affine(torchX, TENSOR_SCALE, 0, -128, 127)
      };
    }
    long axis = work.equals("columns") ? 1 : 0;
    T_TensorTensor_T range = torch.aminmax(torchX, new LongOptional(1 - axis), false);
    Tensor low = range.get0().clamp_max(new Scalar(0f));
    Tensor high = range.get1().clamp_min(new Scalar(0f));
    Tensor scales =
        torch
            .maximum(low.neg(), high)
            .div(new Scalar(127.5f))
            .clamp_min(new Scalar(1.1920929e-07f));
    Tensor zeroPoints = torch.zeros(scales.size(0)).to(torch.ScalarType.Int);
    if (!backward()) {
      return new Tensor[] {
        torch.fake_quantize_per_channel_affine(torchX, scales, zeroPoints, axis, -128, 127)
      };
    }
    T_TensorTensor_T result =
        torch.fake_quantize_per_channel_affine_cachemask(
            torchX, scales, zeroPoints, axis, -128, 127);
    return new Tensor[] {
      result.get0(),
      torch.fake_quantize_per_channel_affine_cachemask_backward(torchGradY, result.get1())
    };
  }

  /** The same buffers copied. */
  @Benchmark
  public void ceilingCopy() {
    Bandwidth.COPY.run(floats(x), floats(y), null, null, n);
    if (backward()) {
      Bandwidth.COPY.run(floats(gradY), floats(gradX), null, null, n);
    }
  }

  private static FloatPointer floats(OwnedTensor tensor) {
    return new FloatPointer(tensor.pointer());
  }
}
