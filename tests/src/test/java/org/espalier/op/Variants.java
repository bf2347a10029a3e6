package org.espalier.op;

import java.util.Arrays;
import java.util.stream.Stream;
import org.espalier.backend.CpuThreads;
import org.espalier.backend.Isa;

/** The instruction sets and thread counts that every operation test runs under. */
public final class Variants {
  private Variants() {}

  /** The instruction sets that this machine can run; scalar always, so never empty. */
  public static Stream<Isa> isas() {
    return Arrays.stream(Isa.values()).filter(Isa::isAvailable);
  }

  /** Runs under an instruction set and a number of threads, and restores both. */
  public static void with(Isa isa, int threads, Runnable test) {
    Isa isaBefore = Isa.current();
    int threadsBefore = CpuThreads.get();
    isa.use();
    CpuThreads.set(threads);
    try {
      test.run();
    } finally {
      isaBefore.use();
      CpuThreads.set(threadsBefore);
    }
  }
}
