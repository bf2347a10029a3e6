package org.espalier.benchmarks;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Dispatcher;
import org.bytedeco.pytorch.GenericList;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueVector;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.OperatorHandle;
import org.bytedeco.pytorch.SGD;
import org.bytedeco.pytorch.SGDOptions;
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
import org.espalier.op.FusedSgd;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * SGD with momentum and weight decay over a whole model, by itself and with what compression adds:
 * matrices keep a mask and renew scales a row, a fake-quantized copy and a gate. Guarded: clipped by
 * the norm of all gradients, which must be finite.
 *
 * <p>The peer composes it from libtorch's operations, with {@code SGD::step} (torch) or with its
 * fused kernel (torchFused). Both work on the same memory, on 2 MiB pages.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class FusedSgdBenchmark extends Comparison {
  private static final double RATE = 1e-4;
  private static final double MOMENTUM = 0.9;
  private static final double DECAY = 1e-4;
  private static final double MAX_NORM = 1;

  /** What is done, and to which model: a perceptron 784-256-128-10, or BERT-base. */
  @Param({
    "step-mlp", "compressed-mlp", "step-110M", "compressed-110M", "guarded-110M", "int8-110M"
  })
  public String size;

  private static boolean checked;

  private Model model;
  private FusedSgd ours;

  @Setup(Level.Trial)
  public void prepare() {
    check();
    model = new Model(shapes(size), !size.startsWith("step"));
    ours = new FusedSgd(model.parameters(size.startsWith("int8")), options(size));
  }

  @TearDown
  public void release() {
    ours.close();
    model.close();
  }

  private static FusedSgd.Options options(String size) {
    FusedSgd.Options options =
        FusedSgd.Options.of(RATE).withMomentum(MOMENTUM).withWeightDecay(DECAY);
    return size.startsWith("guarded")
        ? options.withMaxNorm(MAX_NORM).withSkipNonFinite(true)
        : options;
  }

  /** Weights, gradient and momentum read; weights and momentum written, and the copy. */
  @Override
  public double bytes(String method, String size) {
    double bytes = 0;
    for (long[] shape : shapes(size)) {
      boolean compressed = shape.length == 2 && !size.startsWith("step");
      double copy = !compressed ? 0 : size.startsWith("int8") ? 1 : 4;
      double norm = size.startsWith("guarded") ? 4 : 0;
      bytes += (20 + copy + norm) * elements(shape);
    }
    return bytes;
  }

  @Benchmark
  public Object espalier() {
    return ours.step();
  }

  @Benchmark
  public void torch() {
    model.torch(size, false);
  }

  @Benchmark
  public void torchFused() {
    model.torch(size, true);
  }

  @Benchmark
  public void ceiling() {
    model.traffic(size);
  }

  private static List<long[]> shapes(String size) {
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

  private static List<long[]> layer(int width) {
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

  private static long elements(long[] shape) {
    return shape.length == 2 ? shape[0] * shape[1] : shape[0];
  }

  /** Two steps of each kind on one encoder layer: ours has the bits of the composed peer. */
  private static void check() {
    if (checked) {
      return;
    }
    for (String kind : new String[] {"step", "compressed", "guarded"}) {
      try (Model a = new Model(layer(768), !kind.equals("step"));
          Model b = new Model(layer(768), !kind.equals("step"));
          FusedSgd sgd = new FusedSgd(a.parameters(false), options(kind))) {
        for (int step = 1; step <= 2; step++) {
          sgd.step();
          b.torch(kind, false);
        }
        // Only clipping rounds otherwise: libtorch's norm is a float.
        double tolerance = kind.equals("guarded") ? 1e-7 : 0;
        a.mustEqual(b, tolerance);
      }
    }
    checked = true;
  }

  /** The tensors of a model, one buffer a role, seen by us and by libtorch. */
  private static final class Model implements AutoCloseable {
    private final List<long[]> shapes;
    private final boolean compressed;
    private final long total;
    private final OwnedTensor weights;
    private final OwnedTensor gradients;
    private final OwnedTensor momenta;
    private final OwnedTensor copies;
    private final List<AutoCloseable> owned = new ArrayList<>();
    private final List<BytePointer> masks = new ArrayList<>();
    private final List<BytePointer> gates = new ArrayList<>();
    private final List<OwnedTensor> scales = new ArrayList<>();

    private final TensorVector w = new TensorVector();
    private final TensorVector g = new TensorVector();
    private final TensorVector m = new TensorVector();
    private final List<Tensor> torchMasks = new ArrayList<>();
    private final List<Tensor> zeroPoints = new ArrayList<>();
    private final List<Tensor> results = new ArrayList<>();
    private final SGD sgd;
    private final OperatorHandle fused =
        Dispatcher.singleton().findSchemaOrThrow("aten::_fused_sgd_", "");

    Model(List<long[]> shapes, boolean compressed) {
      this.shapes = shapes;
      this.compressed = compressed;
      this.total = shapes.stream().mapToLong(s -> padded(elements(s))).sum();
      weights = own(OwnedTensor.allocate(DType.F32, total));
      gradients = own(OwnedTensor.allocate(DType.F32, total));
      momenta = own(OwnedTensor.allocate(DType.F32, total));
      copies = own(OwnedTensor.allocate(DType.F32, total));
      fill(weights, 0.02f, 1);
      fill(gradients, 0.001f, 2);
      fill(momenta, 0.001f, 3);
      fill(copies, 0, 4); // the pages exist
      long start = 0;
      for (long[] shape : shapes) {
        long n = elements(shape);
        w.push_back(view(weights, start, shape));
        g.push_back(view(gradients, start, shape));
        m.push_back(view(momenta, start, shape));
        boolean matrix = compressed && shape.length == 2;
        masks.add(matrix ? own(new BytePointer(Bits.bytes(n))) : null);
        gates.add(matrix ? own(new BytePointer(Bits.bytes(n))) : null);
        scales.add(matrix ? own(OwnedTensor.allocate(DType.F32, shape[0])) : null);
        torchMasks.add(matrix ? mask(masks.get(masks.size() - 1), shape) : null);
        zeroPoints.add(
            matrix ? torch.zeros(shape[0]).to(torch.ScalarType.Int) : null);
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
      SGDOptions options = new SGDOptions(RATE);
      options.momentum().put(MOMENTUM);
      options.weight_decay().put(DECAY);
      sgd = new SGD(w, options);
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
        Tensor blob =
            torch.from_blob(
                p,
                shape,
                new TensorOptions(
                    torch.ScalarType.Byte));
        return blob.to(torch.ScalarType.Bool);
      }
    }

    List<FusedSgd.Parameter> parameters(boolean int8) {
      List<FusedSgd.Parameter> parameters = new ArrayList<>();
      long start = 0;
      for (int i = 0; i < shapes.size(); i++) {
        long n = elements(shapes.get(i));
        FusedSgd.Parameter p =
            FusedSgd.Parameter.of(
                shaped(weights, start, i), shaped(gradients, start, i), shaped(momenta, start, i));
        if (compressed && shapes.get(i).length == 2) {
          org.espalier.device.Tensor copy = shaped(copies, start, i);
          p =
              p.withMask(masks.get(i))
                  .withGate(gates.get(i))
                  .withWorkingCopy(
                      int8
                          ? FusedSgd.WorkingCopy.int8(new BytePointer(copy.pointer()))
                          : FusedSgd.WorkingCopy.of(copy),
                      new FusedSgd.Scale(scales.get(i), FusedSgd.Channel.FIRST_AXIS, false));
        }
        parameters.add(p);
        start += padded(n);
      }
      return parameters;
    }

    private org.espalier.device.Tensor shaped(OwnedTensor buffer, long start, int i) {
      org.espalier.device.Tensor flat = buffer.slice(start, elements(shapes.get(i)));
      return org.espalier.device.Tensor.of(flat.pointer(), DType.F32, shapes.get(i));
    }

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
        if (fusedStep) {
          IValueVector arguments = new IValueVector();
          for (TensorVector list : List.of(w, g, m)) {
            arguments.push_back(new IValue(new GenericList((Pointer) new TensorList(list))));
          }
          arguments.push_back(new IValue(DECAY));
          arguments.push_back(new IValue(MOMENTUM));
          arguments.push_back(new IValue(RATE));
          arguments.push_back(new IValue(0.0)); // dampening
          arguments.push_back(new IValue(false)); // nesterov
          arguments.push_back(new IValue(false)); // maximize
          arguments.push_back(new IValue(false)); // first step
          arguments.push_back(new IValue());
          arguments.push_back(new IValue());
          fused.callBoxed(arguments);
        } else {
          sgd.step();
        }
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

    void traffic(String kind) {
      FloatPointer a = new FloatPointer(weights.pointer());
      FloatPointer b = new FloatPointer(momenta.pointer());
      FloatPointer c = new FloatPointer(gradients.pointer());
      FloatPointer d = new FloatPointer(copies.pointer());
      if (kind.startsWith("guarded")) {
        Bandwidth.READ.run(c, null, null, null, total);
      }
      Bandwidth traffic =
          kind.startsWith("step") || kind.startsWith("int8")
              ? Bandwidth.STEP
              : Bandwidth.STEP_COPY;
      traffic.run(a, b, c, d, total);
    }

    void mustEqual(Model peer, double tolerance) {
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
          what, new FloatPointer(a.pointer()), new FloatPointer(b.pointer()), a.elements(), tolerance);
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
  }
}
