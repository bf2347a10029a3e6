package org.espalier.benchmarks;

import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.backend.Bandwidth;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.KdSoftmaxLoss;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/** Loss and gradient beside cross_entropy plus kl_div under libtorch's autograd. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class KdSoftmaxLossBenchmark extends Comparison {
  private static final double ALPHA = 0.3;
  private static final int KL_SUM = 2;

  /** Rows x classes: a vocabulary, ImageNet, many small rows, one small batch. */
  @Param({"128x30522", "256x1000", "4096x32", "64x10"})
  public String size;

  /** At 4 the two temperatures share an exponential, at 3 they do not. */
  @Param({"4"})
  public double temperature;

  private OwnedTensor student;
  private OwnedTensor teacher;
  private OwnedTensor gradient;
  private LongPointer labels;
  private KdSoftmaxLoss ours;
  private Tensor studentView;
  private Tensor teacherView;
  private Tensor labelView;

  @Setup(Level.Trial)
  public void prepare() {
    long rows = rows(size);
    long classes = elements(size) / rows;
    student = OwnedTensor.allocate(DType.F32, rows, classes);
    teacher = OwnedTensor.allocate(DType.F32, rows, classes);
    gradient = OwnedTensor.allocate(DType.F32, rows, classes);
    Random random = new Random(5);
    fill(student, random, 3);
    fill(teacher, random, 4);
    labels = new LongPointer(random.longs(rows, 0, classes).toArray());
    ours =
        new KdSoftmaxLoss(
            KdSoftmaxLoss.Settings.of(ALPHA, temperature),
            new KdSoftmaxLoss.Batch(
                KdSoftmaxLoss.Logits.of(student),
                KdSoftmaxLoss.Logits.of(teacher),
                labels,
                null,
                null,
                KdSoftmaxLoss.Logits.of(gradient)));
    studentView = torch.from_blob(student.pointer(), rows, classes);
    teacherView = torch.from_blob(teacher.pointer(), rows, classes);
    labelView = AbstractTensor.create(labelsOf(labels, (int) rows));
    check();
  }

  private void check() {
    double loss = ours.compute().loss();
    try (PointerScope scope = new PointerScope()) {
      Tensor s = studentView.detach().set_requires_grad(true);
      Tensor expected = loss(s);
      expected.backward();
      Tensor view = torch.from_blob(gradient.pointer(), studentView.size(0), studentView.size(1));
      double difference = s.grad().sub(view).abs().max().item_float();
      double largest = s.grad().abs().max().item_float();
      if (!(Math.abs(expected.item_float() - loss) <= 1e-4 * loss)
          || !(difference <= 1e-5 * largest)) {
        throw new IllegalStateException(
            "loss "
                + loss
                + ", the peer has "
                + expected.item_float()
                + "; gradients differ by "
                + difference);
      }
    }
  }

  private static long[] labelsOf(LongPointer labels, int rows) {
    long[] values = new long[rows];
    labels.get(values, 0, rows);
    return values;
  }

  private static void fill(OwnedTensor tensor, Random random, float scale) {
    float[] values = new float[(int) tensor.elements()];
    for (int i = 0; i < values.length; i++) {
      values[i] = scale * (float) random.nextGaussian();
    }
    new FloatPointer(tensor.pointer()).put(values, 0, values.length);
  }

  private static long rows(String size) {
    return Long.parseLong(size.substring(0, size.indexOf('x')));
  }

  private static long elements(String size) {
    return rows(size) * Long.parseLong(size.substring(size.indexOf('x') + 1));
  }

  @TearDown
  public void release() {
    ours.close();
    studentView.close();
    teacherView.close();
    labelView.close();
    labels.close();
    student.close();
    teacher.close();
    gradient.close();
  }

  @Override
  public double bytes(String method, String size) {
    // The kernel reads two matrices and writes one; the ceiling is a copy of one.
    return (method.equals("ceiling") ? 8.0 : 12.0) * elements(size);
  }

  private Tensor loss(Tensor s) {
    Scalar t = new Scalar(temperature);
    Tensor ce = torch.cross_entropy(s, labelView);
    Tensor log = torch.log_softmax(s.div(t), 1);
    Tensor target = torch.softmax(teacherView.div(t), 1);
    Tensor kl = torch.kl_div(log, target, KL_SUM, false).div(new Scalar((double) rows(size)));
    return ce.mul(new Scalar(ALPHA))
        .add(kl.mul(new Scalar((1 - ALPHA) * temperature * temperature)));
  }

  @Benchmark
  public Object espalier() {
    return ours.compute();
  }

  @Benchmark
  public void torch() {
    try (PointerScope scope = new PointerScope()) {
      Tensor s = studentView.detach().set_requires_grad(true);
      loss(s).backward();
      s.grad();
    }
  }

  @Benchmark
  public void ceiling() {
    Bandwidth.COPY.run(
        new FloatPointer(gradient.pointer()),
        new FloatPointer(student.pointer()),
        null,
        null,
        gradient.elements());
  }
}
