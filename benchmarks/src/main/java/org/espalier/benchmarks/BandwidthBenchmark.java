package org.espalier.benchmarks;

import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.backend.Bandwidth;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/** The machine's ceilings: memory traffic without arithmetic. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
public class BandwidthBenchmark extends Comparison {
  /** Bytes of each buffer: in the L2 cache, beyond every cache. */
  @Param({"256K", "256M"})
  public String size;

  private final OwnedTensor[] buffers = new OwnedTensor[4];
  private final FloatPointer[] p = new FloatPointer[4];
  private long n;

  @Setup
  public void allocate() {
    n = elements(size);
    for (int i = 0; i < 4; i++) {
      buffers[i] = OwnedTensor.allocate(DType.F32, n);
      p[i] = new FloatPointer(buffers[i].pointer());
      Bandwidth.UPDATE.run(p[i], null, null, null, n); // touch the pages
    }
  }

  @TearDown
  public void release() {
    for (OwnedTensor buffer : buffers) {
      buffer.close();
    }
  }

  private static long elements(String size) {
    return size.equals("256K") ? 65536 : 65536 * 1024;
  }

  @Override
  public double bytes(String method, String size) {
    return Bandwidth.valueOf(
            method.substring("ceiling".length()).toUpperCase(java.util.Locale.ROOT))
        .bytes(elements(size));
  }

  private void run(Bandwidth kind) {
    kind.run(p[0], p[1], p[2], p[3], n);
  }

  @Benchmark
  public void ceilingRead() {
    run(Bandwidth.READ);
  }

  @Benchmark
  public void ceilingCopy() {
    run(Bandwidth.COPY);
  }

  @Benchmark
  public void ceilingUpdate() {
    run(Bandwidth.UPDATE);
  }

  @Benchmark
  public void ceilingStep() {
    run(Bandwidth.STEP);
  }

  @Benchmark
  public void ceilingStep_copy() {
    run(Bandwidth.STEP_COPY);
  }
}
