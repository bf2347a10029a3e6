package org.espalier.backend;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.JarURLConnection;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import org.bytedeco.javacpp.Loader;
import org.espalier.binding.global.espalier;
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

  /** JavaCPP takes what it unpacked before where name, size and time are the same, whatever the content is. */
  @Test
  void aLibraryHasTheTimeAtWhichItWasMade() throws IOException {
    URL url =
        espalier.class.getResource(
            "/org/espalier/binding/" + Loader.getPlatform() + "/libespalier.so");
    JarURLConnection jar = assertInstanceOf(JarURLConnection.class, url.openConnection());
    Path made =
        Path.of(System.getProperty("espalier.root"), "java/kernels/target/classes")
            .resolve(jar.getEntryName());
    // A jar counts in steps of two seconds.
    assertEquals(Files.getLastModifiedTime(made).toMillis(), jar.getJarEntry().getTime(), 2000.0);
  }
}
