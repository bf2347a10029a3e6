package org.espalier.benchmarks;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.backend.Bandwidth;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.op.Bits;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.MagnitudePrune.Amount;
import org.espalier.op.MagnitudePrune.Scope;
import org.espalier.op.MagnitudePrune.Weights;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * Half of a whole model's weights pruned, in place, in all its tensors at once. The floor is one
 * pass that reads the weights and one that reads and writes them.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class MagnitudePruneBenchmark extends Comparison {
  /** BERT-base: 110 M weights in 199 tensors. MiniLM-L6: 22.7 M in 103. */
  @Param({"minilm", "bert-base"})
  public String size;

  private final List<OwnedTensor> tensors = new ArrayList<>();
  private final List<Weights> inPlace = new ArrayList<>();
  private final List<Weights> withMask = new ArrayList<>();
  private final List<Weights> maskOnly = new ArrayList<>();
  private final List<BytePointer> masks = new ArrayList<>();
  private org.bytedeco.pytorch.Tensor[] peers;
  private OwnedTensor fresh;
  private long n;

  @Setup
  public void fillAndCheck() {
    List<long[]> shapes = shapes(size);
    n = weights(size);
    fresh = OwnedTensor.allocate(DType.F32, (n + 15) / 16 * 16);
    peers = new org.bytedeco.pytorch.Tensor[shapes.size()];
    torch.manual_seed(1);
    long start = 0;
    for (int t = 0; t < peers.length; t++) {
      long[] shape = shapes.get(t);
      OwnedTensor tensor = OwnedTensor.allocate(DType.F32, shape);
      tensors.add(tensor);
      masks.add(new BytePointer(Bits.bytes(tensor.elements())));
      Weights weights = Weights.of("w" + t, tensor);
      inPlace.add(weights.inPlace());
      withMask.add(weights.inPlace().maskOut(masks.get(t)));
      maskOnly.add(weights.maskOut(masks.get(t)));
      peers[t] = torch.from_blob(tensor.pointer(), shape);
      Tensor slice = fresh.slice(start, tensor.elements());
      torch.from_blob(slice.pointer(), shape).normal_(0, 0.02, null);
      start += tensor.elements();
    }
    restore();
    check();
  }

  /** The threshold is libtorch's, and exactly k weights, none of them above it, became zero. */
  private void check() {
    long k = n / 2;
    float threshold;
    try (PointerScope scope = new PointerScope()) {
      threshold = torch.kthvalue(magnitudes(), k).get0().item_float();
    }
    MagnitudePrune.Result result = MagnitudePrune.prune(withMask, new Amount(0.5, Scope.GLOBAL));
    long zeros = 0;
    long above = 0;
    try (PointerScope scope = new PointerScope()) {
      for (org.bytedeco.pytorch.Tensor peer : peers) {
        zeros += peer.eq(new Scalar(0f)).sum().item_long();
        // All that lie above the threshold are still there.
        above += peer.abs().gt(new Scalar(threshold)).sum().item_long();
      }
    }
    long aboveBefore;
    restore();
    try (PointerScope scope = new PointerScope()) {
      aboveBefore = magnitudes().gt(new Scalar(threshold)).sum().item_long();
    }
    if (result.threshold() != threshold
        || result.pruned() != k
        || zeros != k
        || above != aboveBefore) {
      throw new IllegalStateException(
          "threshold "
              + result.threshold()
              + ", libtorch's "
              + threshold
              + "; pruned "
              + result.pruned()
              + ", zeros "
              + zeros
              + ", k "
              + k
              + "; above "
              + above
              + " of "
              + aboveBefore);
    }
  }

  @Setup(Level.Invocation)
  public void restore() {
    long start = 0;
    for (OwnedTensor tensor : tensors) {
      Pointer.memcpy(
          tensor.pointer(), fresh.slice(start, tensor.elements()).pointer(), tensor.bytes());
      start += tensor.elements();
    }
  }

  @TearDown
  public void release() {
    for (org.bytedeco.pytorch.Tensor peer : peers) {
      peer.close();
    }
    tensors.forEach(OwnedTensor::close);
    masks.forEach(BytePointer::close);
    fresh.close();
    tensors.clear();
    masks.clear();
    inPlace.clear();
    withMask.clear();
    maskOnly.clear();
  }

  @Override
  public double bytes(String method, String size) {
    return (method.equals("espalierMaskOnly") ? 8.0 : 12.0) * weights(size);
  }

  @Benchmark
  public MagnitudePrune.Result espalierPrune() {
    return MagnitudePrune.prune(inPlace, new Amount(0.5, Scope.GLOBAL));
  }

  @Benchmark
  public MagnitudePrune.Result espalierPruneWithMask() {
    return MagnitudePrune.prune(withMask, new Amount(0.5, Scope.GLOBAL));
  }

  @Benchmark
  public MagnitudePrune.Result espalierMaskOnly() {
    return MagnitudePrune.prune(maskOnly, new Amount(0.5, Scope.GLOBAL));
  }

  /** What {@code torch.nn.utils.prune.global_unstructured} does with L1Unstructured. */
  @Benchmark
  public void torchTopkRecipe() {
    try (PointerScope scope = new PointerScope()) {
      org.bytedeco.pytorch.Tensor importance = magnitudes();
      org.bytedeco.pytorch.Tensor smallest = torch.topk(importance, n / 2, 0, false, true).get1();
      org.bytedeco.pytorch.Tensor mask = torch.ones_like(importance);
      mask.index_fill_(0, smallest, new Scalar(0));
      long start = 0;
      for (int t = 0; t < peers.length; t++) {
        long count = tensors.get(t).elements();
        peers[t].mul(mask.narrow(0, start, count).view_as(peers[t]));
        start += count;
      }
    }
  }

  /** The fastest way that libtorch's operators allow: a threshold by selection, then masks. */
  @Benchmark
  public void torchKthvalue() {
    try (PointerScope scope = new PointerScope()) {
      Scalar threshold = new Scalar(torch.kthvalue(magnitudes(), n / 2).get0().item_float());
      for (org.bytedeco.pytorch.Tensor peer : peers) {
        peer.mul_(peer.abs().gt(threshold));
      }
    }
  }

  /** One read pass and one read-modify-write pass over as many floats, without arithmetic. */
  @Benchmark
  public void ceilingReadAndUpdate() {
    FloatPointer all = new FloatPointer(fresh.pointer());
    Bandwidth.READ.run(all, null, null, null, fresh.elements());
    Bandwidth.UPDATE.run(all, null, null, null, fresh.elements());
  }

  @Benchmark
  public void ceilingRead() {
    Bandwidth.READ.run(new FloatPointer(fresh.pointer()), null, null, null, fresh.elements());
  }

  private org.bytedeco.pytorch.Tensor magnitudes() {
    org.bytedeco.pytorch.Tensor[] flat = new org.bytedeco.pytorch.Tensor[peers.length];
    for (int t = 0; t < flat.length; t++) {
      flat[t] = peers[t].view(-1);
    }
    return torch.cat(new TensorVector(flat)).abs();
  }

  private static long weights(String size) {
    long sum = 0;
    for (long[] shape : shapes(size)) {
      long product = 1;
      for (long dimension : shape) {
        product *= dimension;
      }
      sum += product;
    }
    return sum;
  }

  /** The parameters of a BERT encoder with its pooler. */
  private static List<long[]> shapes(String size) {
    boolean base = size.equals("bert-base");
    int layers = base ? 12 : 6;
    long hidden = base ? 768 : 384;
    long inner = 4 * hidden;
    List<long[]> shapes = new ArrayList<>();
    shapes.add(new long[] {30522, hidden});
    shapes.add(new long[] {512, hidden});
    shapes.add(new long[] {2, hidden});
    addPair(shapes, hidden);
    for (int layer = 0; layer < layers; layer++) {
      for (int projection = 0; projection < 4; projection++) {
        addLinear(shapes, hidden, hidden);
      }
      addPair(shapes, hidden);
      addLinear(shapes, inner, hidden);
      addLinear(shapes, hidden, inner);
      addPair(shapes, hidden);
    }
    addLinear(shapes, hidden, hidden);
    return shapes;
  }

  private static void addLinear(List<long[]> shapes, long out, long in) {
    shapes.add(new long[] {out, in});
    shapes.add(new long[] {out});
  }

  private static void addPair(List<long[]> shapes, long hidden) {
    shapes.add(new long[] {hidden});
    shapes.add(new long[] {hidden});
  }
}
