package org.espalier.benchmarks;

import org.espalier.backend.CpuThreads;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;

/**
 * What the benchmarks of all operations share. A subclass has a {@code @Param String size}, checks
 * its result against the peer in its own {@code @Setup}, and names its methods by who works:
 * {@code espalier…}, {@code torch…} and {@code ceiling…} (the same traffic without arithmetic).
 */
@State(Scope.Benchmark)
public abstract class Comparison {
  /** Threads of our kernels and of libtorch. */
  @Param({"2"})
  public int threads;

  /** Bytes that the named method must move for this size, each input read and output written once. */
  public abstract double bytes(String method, String size);

  @Setup(Level.Trial)
  public void setThreads() {
    CpuThreads.set(threads);
    Peer.use(threads);
  }
}
