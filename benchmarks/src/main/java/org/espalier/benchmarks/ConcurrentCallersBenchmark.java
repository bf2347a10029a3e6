package org.espalier.benchmarks;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.op.GradientNorm;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * The same 8 x {@value #CALLS} kernel calls by one Java thread and by eight at once: what the pool
 * loses or gains when it is shared.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class ConcurrentCallersBenchmark extends Comparison {
  private static final int CALLERS = 8;
  private static final int CALLS = 100;

  /** Elements of each caller's gradient: below and above the parallel threshold. */
  @Param({"16384", "262144", "4194304"})
  public String size;

  private final List<OwnedTensor> gradients = new ArrayList<>();
  private final List<GradientNorm> operations = new ArrayList<>();
  private final List<Callable<Double>> callers = new ArrayList<>();
  private ExecutorService executor;

  @Setup
  public void build() {
    executor = Executors.newFixedThreadPool(CALLERS);
    for (int i = 0; i < CALLERS; i++) {
      OwnedTensor gradient = OwnedTensor.allocate(DType.F32, Long.parseLong(size));
      FloatPointer values = new FloatPointer(gradient.pointer());
      for (long j = 0; j < gradient.elements(); j += 512) {
        values.put(j, 1f); // touch the pages: one zero page would stay in the cache
      }
      GradientNorm norm =
          new GradientNorm(List.of(new GradientNorm.Gradient(gradient, null, null)));
      gradients.add(gradient);
      operations.add(norm);
      callers.add(
          () -> {
            double sum = 0;
            for (int call = 0; call < CALLS; call++) {
              sum += norm.compute().norm();
            }
            return sum;
          });
    }
  }

  @TearDown
  public void release() {
    executor.shutdown();
    operations.forEach(GradientNorm::close);
    gradients.forEach(OwnedTensor::close);
  }

  @Override
  public double bytes(String method, String size) {
    return 4.0 * CALLERS * CALLS * Long.parseLong(size);
  }

  /** In turn over the gradients, so that the caches hold as little of them as with eight callers. */
  @Benchmark
  public double espalierOneCaller() {
    double sum = 0;
    for (int call = 0; call < CALLS; call++) {
      for (GradientNorm operation : operations) {
        sum += operation.compute().norm();
      }
    }
    return sum;
  }

  @Benchmark
  public Object espalierEightCallers() throws Exception {
    return executor.invokeAll(callers);
  }
}
