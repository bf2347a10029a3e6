package org.espalier.op;

import java.util.Arrays;
import java.util.function.BiConsumer;
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

  /** Runs under every instruction set, with each of these numbers of threads. */
  public static void each(int[] threads, BiConsumer<Isa, Integer> test) {
    isas()
        .forEach(
            isa -> {
              for (int number : threads) {
                with(isa, number, () -> test.accept(isa, number));
              }
            });
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
