package org.espalier.backend;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class NativeLibrariesTest {
  private static String problem(String reason) {
    return NativeLibraries.problem(
        new ExceptionInInitializerError(new UnsatisfiedLinkError(reason)));
  }

  @Test
  void anOldCLibraryIsNoMatterOfTheFolder() {
    String old =
        problem("libc.so.6: version `GLIBC_2.34' not found (required by libjnijavacpp.so)");
    assertTrue(old.contains("`GLIBC_2.34'"), old);
    assertTrue(old.contains("C library is too old"), old);
    assertFalse(old.contains("unpacked"), old);
  }

  @Test
  void allElseTellsTheFolder() {
    String noexec = problem("failed to map segment from shared object");
    assertTrue(noexec.contains("failed to map segment"), noexec);
    assertTrue(noexec.contains("unpacked into"), noexec);
    assertNull(NativeLibraries.problem(new IllegalStateException("of something else")));
  }
}
