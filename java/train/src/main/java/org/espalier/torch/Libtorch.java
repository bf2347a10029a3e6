package org.espalier.torch;

import java.io.IOException;
import java.io.UncheckedIOException;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.openblas.global.openblas_full;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.backend.NativeLibraries;

/**
 * Loads libtorch. Every class of this package that calls it first calls {@link #load()}.
 *
 * <p>A host that ends the JVM should end the threads first that compute here: the end of the process runs
 * libtorch's destructors, and what still computes may then crash it.
 */
public final class Libtorch {
  private static final String[] LIBRARIES = {
    "libc10.so", "libc10_cuda.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so"
  };

  private Libtorch() {}

  /**
   * Loads libtorch once; later calls cost nothing. Where its convolutions by oneDNN are wrong on this machine, it computes
   * them without oneDNN from then on, in the whole process.
   *
   * @throws InputException where the cache directory of JavaCPP cannot be written
   * @throws IllegalStateException where the class path has libtorch for the CPU and for GPUs
   * @throws InputException where a library of the system is missing that libtorch needs: one for GPUs needs those
   *     of CUDA
   */
  public static void load() {
    if (Loaded.FAILURE != null) {
      throw Loaded.FAILURE;
    }
  }

  /**
   * Sets how many threads the matrix products of libtorch use, for the whole process; its other operations
   * use one. {@link #load()} leaves both at one, unless {@code OMP_NUM_THREADS} or {@code
   * OPENBLAS_NUM_THREADS} say otherwise.
   *
   * <p>Products run on OpenBLAS's threads, everything else on OpenMP's. Two pools that wait by spinning keep
   * each other from the processors: on two cores a training step took 1.41 s with two threads for both,
   * 0.63 s with one, 0.38 s with two for the products alone (ARCHITECTURE.md).
   *
   * <p>Results have the same bits only with the same number of threads. Not to be called while another
   * thread computes.
   *
   * @param threads at least 1; OpenBLAS stops at the number that it was built for
   */
  public static void useThreads(int threads) {
    if (threads < 1) {
      throw new IllegalArgumentException(threads + " threads; 1 or more");
    }
    load();
    setThreads(threads);
  }

  /** The version of libtorch and, behind a dash, of the presets that bind it. */
  public static String version() {
    try {
      return Loader.getVersion("org.bytedeco", "pytorch");
    } catch (IOException e) {
      throw new UncheckedIOException("the presets of libtorch have no version", e);
    }
  }

  /** What libtorch says of a failure, without the trace of its own calls that follows. */
  public static String firstLine(RuntimeException e) {
    String message = String.valueOf(e.getMessage()).strip();
    int end = message.indexOf('\n');
    return end < 0 ? message : message.substring(0, end);
  }

  private static void setThreads(int threads) {
    torch.set_num_threads(1);
    openblas_full.openblas_set_num_threads(threads);
  }

  private static final class Loaded {
    /** Why libtorch could not be loaded, thrown each time it is needed; null where it was loaded. */
    static final RuntimeException FAILURE = failure();

    private static RuntimeException failure() {
      try {
        load();
        return null;
      } catch (RuntimeException e) {
        return e;
      }
    }

    private static void load() {
      String cpu = "/org/bytedeco/pytorch/" + Loader.getPlatform() + "/";
      String gpu = "/org/bytedeco/pytorch/" + Loader.getPlatform() + "-gpu/";
      boolean hasGpu = has(gpu + "libtorch.so");
      if (hasGpu && has(cpu + "libtorch.so")) {
        throw new IllegalStateException(
            "the class path has libtorch for the CPU and for GPUs, which crash each other; leave"
                + " one out: build with or without -Pgpu, from clean");
      }
      if (!hasGpu) {
        // The presets would search for the libraries of CUDA with each of their classes, and load
        // what they find: a second of processor time.
        Loader.loadProperties().putIfAbsent("platform.extension", "");
      }
      // The loader resolves each library by itself. With an empty cache it would find a libtorch
      // of the system for the ones that are not extracted yet, and two versions crash the JVM.
      for (String library : LIBRARIES) {
        String resource = (hasGpu ? gpu : cpu) + library;
        if (has(resource)) {
          try {
            Loader.cacheResource(torch.class, resource);
          } catch (IOException e) {
            String told = InputException.of("libtorch cannot be unpacked", e).getMessage();
            throw new InputException(told + "; it is " + NativeLibraries.unpacked("room"), e);
          }
        }
      }
      try {
        Loader.load(torch.class);
      } catch (UnsatisfiedLinkError e) {
        throw new InputException(
            "libtorch cannot be loaded: "
                + (e.getCause() == null ? e : e.getCause()).getMessage()
                + (hasGpu
                    ? "; it is one for GPUs, which needs the libraries of CUDA 13 where the system"
                        + " looks for libraries (LD_LIBRARY_PATH); a build without -Pgpu needs none"
                    : ""),
            e);
      }
      if (System.getenv("OMP_NUM_THREADS") == null
          && System.getenv("OPENBLAS_NUM_THREADS") == null) {
        setThreads(1);
      }
      OneDnn.leaveOutWhereWrong();
    }

    private static boolean has(String resource) {
      return torch.class.getResource(resource) != null;
    }
  }
}
