package org.espalier.benchmarks;

import org.bytedeco.javacpp.Loader;
import org.bytedeco.pytorch.global.torch;

/** libtorch as users of the bytedeco presets run it, in this JVM. */
final class Peer {
  private Peer() {}

  /** Loads libtorch once and gives it as many threads as our kernels have. */
  static void use(int threads) {
    Loaded.touch();
    torch.set_num_threads(threads);
  }

  private static final class Loaded {
    static {
      // On an empty JavaCPP cache a system-wide libtorch would be found first and crash the JVM.
      for (String library : new String[] {"libc10.so", "libtorch_cpu.so", "libtorch.so"}) {
        String resource = "/org/bytedeco/pytorch/linux-x86_64/" + library;
        try {
          Loader.cacheResource(torch.class, resource);
        } catch (java.io.IOException e) {
          throw new java.io.UncheckedIOException(e);
        }
      }
      Loader.load(torch.class);
    }

    static void touch() {}
  }
}
