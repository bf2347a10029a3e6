package org.espalier.backend;

import org.bytedeco.javacpp.IntPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;

/**
 * Instruction set variants of the CPU kernels. All give the same bits. The best that the processor
 * can run is used unless the environment variable {@code ESPALIER_ISA} ({@code scalar}, {@code avx2},
 * {@code avx512}) or {@link #use} says otherwise.
 */
public enum Isa {
  SCALAR,
  AVX2,
  AVX512;

  /** The best variant that this machine can run. */
  public static Isa best() {
    return values()[espalier.esp_isa_best()];
  }

  /**
   * The variant in use.
   *
   * @throws UnsupportedOperationException where {@code ESPALIER_ISA} names an unknown or unavailable
   *     one
   */
  public static Isa current() {
    try (IntPointer isa = new IntPointer(1)) {
      Status.check(espalier.esp_isa_current(isa));
      return values()[isa.get()];
    }
  }

  /**
   * Uses this variant in the whole process from the next call on.
   *
   * @throws UnsupportedOperationException where the processor lacks it
   */
  public void use() {
    Status.check(espalier.esp_isa_set(ordinal()));
  }

  /** Whether this machine can run the variant. */
  public boolean isAvailable() {
    return ordinal() <= best().ordinal();
  }
}
