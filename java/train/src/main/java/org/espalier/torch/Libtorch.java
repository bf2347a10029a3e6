package org.espalier.torch;

import java.io.IOException;
import java.io.UncheckedIOException;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.pytorch.global.torch;

/** Loads libtorch. Every class of this package that calls it first calls {@link #load()}. */
public final class Libtorch {
  private static final String[] LIBRARIES = {
    "libc10.so", "libc10_cuda.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so"
  };

  private Libtorch() {}

  /**
   * Loads libtorch once; later calls cost nothing.
   *
   * @throws UncheckedIOException where the cache directory of JavaCPP cannot be written
   * @throws IllegalStateException where the class path has libtorch for the CPU and for GPUs
   */
  public static void load() {
    Loaded.touch();
  }

  /**
   * Sets how many threads an operation of libtorch uses. Its own default is all processors of the machine,
   * whatever share of them a container may use, and threads that wait for each other on too few
   * processors are many times slower than one.
   *
   * @param threads at least 1
   */
  public static void useThreads(int threads) {
    if (threads < 1) {
      throw new IllegalArgumentException(threads + " threads; 1 or more");
    }
    load();
    torch.set_num_threads(threads);
  }

  private static final class Loaded {
    static {
      String cpu = "/org/bytedeco/pytorch/" + Loader.getPlatform() + "/";
      String gpu = "/org/bytedeco/pytorch/" + Loader.getPlatform() + "-gpu/";
      boolean hasGpu = has(gpu + "libtorch.so");
      if (hasGpu && has(cpu + "libtorch.so")) {
        throw new IllegalStateException(
            "the class path has libtorch for the CPU and for GPUs, which crash each other; leave one"
                + " out: build with or without -Pgpu, from clean");
      }
      // The loader resolves each library by itself. With an empty cache it would find a libtorch
      // of the system for the ones that are not extracted yet, and two versions crash the JVM.
      for (String library : LIBRARIES) {
        String resource = (hasGpu ? gpu : cpu) + library;
        if (has(resource)) {
          try {
            Loader.cacheResource(torch.class, resource);
          } catch (IOException e) {
            throw new UncheckedIOException(e);
          }
        }
      }
      Loader.load(torch.class);
    }

    private static boolean has(String resource) {
      return torch.class.getResource(resource) != null;
    }

    static void touch() {}
  }
}
