package org.espalier.benchmarks;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.GenericList;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorList;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.backend.Bandwidth;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.Bits;
import org.espalier.op.Channel;
import org.espalier.op.Scale;
import org.espalier.op.WorkingCopy;

/**
 * The tensors of a model in training, one buffer a role on 2 MiB pages, seen by an optimizer of ours
 * and by libtorch. A subclass adds libtorch's optimizer.
 */
abstract class OptimizerModel implements AutoCloseable {
  static final double MAX_NORM = 1;

  private final List<long[]> shapes;
  private final boolean compressed;
  private final long total;
  private final OwnedTensor weights;
  private final OwnedTensor gradients;
  private final List<OwnedTensor> states = new ArrayList<>();
  private final OwnedTensor copies;
  private final List<AutoCloseable> owned = new ArrayList<>();
  private final List<BytePointer> masks = new ArrayList<>();
  private final List<BytePointer> gates = new ArrayList<>();
  private final List<OwnedTensor> scales = new ArrayList<>();

  final TensorVector w = new TensorVector();
  final TensorVector g = new TensorVector();

  /** The optimizer's states, each a list like w. */
  final List<TensorVector> torchStates = new ArrayList<>();

  private final List<Tensor> torchMasks = new ArrayList<>();
  private final List<Tensor> zeroPoints = new ArrayList<>();
  private final List<Tensor> results = new ArrayList<>();

  /** {@code stateCount} buffers of small values above 0 beside weights and gradients. */
  OptimizerModel(List<long[]> shapes, boolean compressed, int stateCount) {
    this.shapes = shapes;
    this.compressed = compressed;
    this.total = shapes.stream().mapToLong(s -> padded(elements(s))).sum();
    weights = own(OwnedTensor.allocate(DType.F32, total));
    gradients = own(OwnedTensor.allocate(DType.F32, total));
    copies = own(OwnedTensor.allocate(DType.F32, total));
    fill(weights, 0.02f, 1);
    fill(gradients, 0.001f, 2);
    fill(copies, 0, 4); // the pages exist
    for (int state = 0; state < stateCount; state++) {
      OwnedTensor buffer = own(OwnedTensor.allocate(DType.F32, total));
      fill(buffer, 0.001f, 5 + state);
      makePositive(buffer);
      states.add(buffer);
      torchStates.add(new TensorVector());
    }
    long start = 0;
    for (long[] shape : shapes) {
      long n = elements(shape);
      w.push_back(view(weights, start, shape));
      g.push_back(view(gradients, start, shape));
      for (int state = 0; state < stateCount; state++) {
        torchStates.get(state).push_back(view(states.get(state), start, shape));
      }
      boolean matrix = compressed && shape.length == 2;
      masks.add(matrix ? own(new BytePointer(Bits.bytes(n))) : null);
      gates.add(matrix ? own(new BytePointer(Bits.bytes(n))) : null);
      scales.add(matrix ? own(OwnedTensor.allocate(DType.F32, shape[0])) : null);
      torchMasks.add(matrix ? mask(masks.get(masks.size() - 1), shape) : null);
      zeroPoints.add(matrix ? torch.zeros(shape[0]).to(torch.ScalarType.Int) : null);
      results.add(null);
      if (matrix) {
        gates.get(gates.size() - 1).fill(0xff);
      }
      start += padded(n);
    }
    for (long i = 0; i < w.size(); i++) {
      w.get(i).set_requires_grad(true);
      w.get(i).mutable_grad().put(g.get(i));
    }
  }

  private <T extends AutoCloseable> T own(T resource) {
    owned.add(resource);
    return resource;
  }

  private static long padded(long n) {
    return (n + 15) / 16 * 16;
  }

  /** Normal deviates, repeated after 2^20. */
  private static void fill(OwnedTensor tensor, float deviation, long seed) {
    Random random = new Random(seed);
    float[] block = new float[1 << 20];
    for (int i = 0; i < block.length; i++) {
      block[i] = (float) random.nextGaussian() * deviation;
    }
    FloatPointer p = new FloatPointer(tensor.pointer());
    for (long i = 0; i < tensor.elements(); i += block.length) {
      p.position(i).put(block, 0, (int) Math.min(block.length, tensor.elements() - i));
    }
  }

  private static void makePositive(OwnedTensor tensor) {
    FloatPointer p = new FloatPointer(tensor.pointer());
    for (long i = 0; i < tensor.elements(); i++) {
      p.put(i, Math.abs(p.get(i)));
    }
  }

  private static Tensor view(OwnedTensor buffer, long start, long[] shape) {
    return torch.from_blob(buffer.slice(start, elements(shape)).pointer(), shape);
  }

  /** About half of the weights, in bits for us and in bools for libtorch. */
  private static Tensor mask(BytePointer bits, long[] shape) {
    Random random = new Random(5);
    byte[] bytes = new byte[(int) bits.limit()];
    random.nextBytes(bytes);
    bits.put(bytes, 0, bytes.length);
    byte[] bools = new byte[(int) elements(shape)];
    for (int i = 0; i < bools.length; i++) {
      bools[i] = (byte) (bytes[i >> 3] >> (i & 7) & 1);
    }
    try (BytePointer p = new BytePointer(bools)) {
      Tensor blob = torch.from_blob(p, shape, new TensorOptions(torch.ScalarType.Byte));
      return blob.to(torch.ScalarType.Bool);
    }
  }

  /** One tensor, as an optimizer's Parameter takes it; null for what it has not. */
  record Part(
      org.espalier.device.Tensor weight,
      org.espalier.device.Tensor gradient,
      List<org.espalier.device.Tensor> states,
      BytePointer mask,
      BytePointer gate,
      WorkingCopy workingCopy,
      Scale scale) {}

  List<Part> parts(boolean int8) {
    List<Part> parts = new ArrayList<>();
    long start = 0;
    for (int i = 0; i < shapes.size(); i++) {
      long[] shape = shapes.get(i);
      long from = start;
      boolean matrix = compressed && shape.length == 2;
      org.espalier.device.Tensor copy = shaped(copies, start, shape);
      parts.add(
          new Part(
              shaped(weights, start, shape),
              shaped(gradients, start, shape),
              states.stream().map(buffer -> shaped(buffer, from, shape)).toList(),
              masks.get(i),
              gates.get(i),
              !matrix
                  ? null
                  : int8 ? WorkingCopy.int8(new BytePointer(copy.pointer())) : WorkingCopy.of(copy),
              matrix ? new Scale(scales.get(i), Channel.FIRST_AXIS, false) : null));
      start += padded(elements(shape));
    }
    return parts;
  }

  private static org.espalier.device.Tensor shaped(OwnedTensor buffer, long start, long[] shape) {
    org.espalier.device.Tensor flat = buffer.slice(start, elements(shape));
    return org.espalier.device.Tensor.of(flat.pointer(), DType.F32, shape);
  }

  /** libtorch's step over w and g: its optimizer, or its fused kernel. */
  abstract void torchStep(boolean fused);

  static IValue list(TensorVector tensors) {
    return new IValue(new GenericList((Pointer) new TensorList(tensors)));
  }

  /** A step as libtorch composes it: masks, norm, step, masks, scales and copies. */
  void torch(String kind, boolean fusedStep) {
    try (PointerScope scope = new PointerScope();
        NoGradGuard guard = new NoGradGuard()) {
      for (int i = 0; compressed && i < shapes.size(); i++) {
        if (torchMasks.get(i) != null) {
          g.get(i).mul_(torchMasks.get(i));
        }
      }
      if (kind.startsWith("guarded")) {
        double norm = torch.clip_grad_norm_(w, MAX_NORM);
        if (!Double.isFinite(norm)) {
          return;
        }
      }
      torchStep(fusedStep);
      for (int i = 0; compressed && i < shapes.size(); i++) {
        if (torchMasks.get(i) != null) {
          w.get(i).mul_(torchMasks.get(i));
          Tensor scale = w.get(i).abs().amax(new long[] {1}, false).div_(new Scalar(127f));
          Tensor copy =
              torch.fake_quantize_per_channel_affine(
                  w.get(i), scale, zeroPoints.get(i), 0, -127, 127);
          keep(i, copy);
        }
      }
    }
  }

  /** As forward would: the last copy lives until the next. */
  private void keep(int i, Tensor copy) {
    if (results.get(i) != null) {
      results.get(i).close();
    }
    copy.retainReference();
    results.set(i, copy);
  }

  /** The traffic of a step: states beyond the first are read and written by themselves. */
  void traffic(String kind) {
    FloatPointer gradient = new FloatPointer(gradients.pointer());
    if (kind.startsWith("guarded")) {
      Bandwidth.READ.run(gradient, null, null, null, total);
    }
    Bandwidth traffic =
        kind.startsWith("step") || kind.startsWith("int8") ? Bandwidth.STEP : Bandwidth.STEP_COPY;
    traffic.run(
        new FloatPointer(weights.pointer()),
        new FloatPointer(states.get(0).pointer()),
        gradient,
        new FloatPointer(copies.pointer()),
        total);
    for (OwnedTensor state : states.subList(1, states.size())) {
      Bandwidth.UPDATE.run(new FloatPointer(state.pointer()), null, null, null, total);
    }
  }

  /** Bytes that a step moves; each state is 8 of them a weight. */
  static double bytes(String size, int stateCount) {
    double bytes = 0;
    for (long[] shape : shapes(size)) {
      boolean compressed = shape.length == 2 && !size.startsWith("step");
      double copy = !compressed ? 0 : size.startsWith("int8") ? 1 : 4;
      double norm = size.startsWith("guarded") ? 4 : 0;
      bytes += (12 + 8 * stateCount + copy + norm) * elements(shape);
    }
    return bytes;
  }

  void mustEqual(OptimizerModel peer, double tolerance) {
    compare("weight", weights, peer.weights, tolerance);
    for (int i = 0; i < shapes.size(); i++) {
      if (results.get(i) == null && peer.results.get(i) == null) {
        continue;
      }
      long start = 0;
      for (int j = 0; j < i; j++) {
        start += padded(elements(shapes.get(j)));
      }
      FloatPointer expected = new FloatPointer(peer.results.get(i).data_ptr());
      compare(
          "working copy " + i,
          new FloatPointer(copies.slice(start, elements(shapes.get(i))).pointer()),
          expected,
          elements(shapes.get(i)),
          tolerance == 0 ? 0 : 1e-3);
    }
  }

  private static void compare(String what, OwnedTensor a, OwnedTensor b, double tolerance) {
    compare(
        what,
        new FloatPointer(a.pointer()),
        new FloatPointer(b.pointer()),
        a.elements(),
        tolerance);
  }

  private static void compare(
      String what, FloatPointer actual, FloatPointer expected, long n, double tolerance) {
    for (long i = 0; i < n; i++) {
      if (!(Math.abs(actual.get(i) - expected.get(i)) <= tolerance)) {
        throw new IllegalStateException(
            what + "[" + i + "]: " + actual.get(i) + ", the peer has " + expected.get(i));
      }
    }
  }

  @Override
  public void close() {
    for (Tensor result : results) {
      if (result != null) {
        result.close();
      }
    }
    for (AutoCloseable resource : owned) {
      try {
        resource.close();
      } catch (Exception e) {
        throw new IllegalStateException(e);
      }
    }
  }

  /** Of a perceptron 784-256-128-10, or of BERT-base. */
  static List<long[]> shapes(String size) {
    return size.endsWith("mlp") ? perceptron() : bert();
  }

  private static List<long[]> perceptron() {
    return List.of(
        new long[] {256, 784},
        new long[] {256},
        new long[] {128, 256},
        new long[] {128},
        new long[] {10, 128},
        new long[] {10});
  }

  /** The 199 tensors of BERT-base. */
  private static List<long[]> bert() {
    int width = 768;
    List<long[]> shapes = new ArrayList<>();
    shapes.add(new long[] {30522, width});
    shapes.add(new long[] {512, width});
    shapes.add(new long[] {2, width});
    for (int norm = 0; norm < 2; norm++) {
      shapes.add(new long[] {width});
    }
    for (int layer = 0; layer < 12; layer++) {
      shapes.addAll(layer(width));
    }
    shapes.add(new long[] {width, width});
    shapes.add(new long[] {width});
    return shapes;
  }

  static List<long[]> layer(int width) {
    List<long[]> shapes = new ArrayList<>();
    for (int projection = 0; projection < 4; projection++) {
      shapes.add(new long[] {width, width});
      shapes.add(new long[] {width});
    }
    shapes.add(new long[] {width});
    shapes.add(new long[] {width});
    shapes.add(new long[] {4 * width, width});
    shapes.add(new long[] {4 * width});
    shapes.add(new long[] {width, 4 * width});
    for (int i = 0; i < 3; i++) {
      shapes.add(new long[] {width});
    }
    return shapes;
  }

  static long elements(long[] shape) {
    return shape.length == 2 ? shape[0] * shape[1] : shape[0];
  }
}
