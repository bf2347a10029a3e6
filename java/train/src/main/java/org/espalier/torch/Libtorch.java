package org.espalier.torch;

import java.io.IOException;
import java.io.UncheckedIOException;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.pytorch.global.torch;

/** Loads libtorch. Every class of this package that calls it first calls {@link #load()}. */
public final class Libtorch {
  private Libtorch() {}

  /**
   * Loads libtorch once; later calls cost nothing.
   *
   * @throws UncheckedIOException where the cache directory of JavaCPP cannot be written
   */
  public static void load() {
    Loaded.touch();
  }

  private static final class Loaded {
    static {
      // The loader resolves each library by itself. With an empty cache it would find a libtorch
      // of the system for the ones that are not extracted yet, and two versions crash the JVM.
      String folder = "/org/bytedeco/pytorch/" + Loader.getPlatform() + "/";
      for (String library : new String[] {"libc10.so", "libtorch_cpu.so", "libtorch.so"}) {
        try {
          Loader.cacheResource(torch.class, folder + library);
        } catch (IOException e) {
          throw new UncheckedIOException(e);
        }
      }
      Loader.load(torch.class);
    }

    static void touch() {}
  }
}
