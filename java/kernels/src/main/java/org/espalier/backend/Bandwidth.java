package org.espalier.backend;

import java.util.Arrays;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;

/** The machine's memory ceilings, measured with the loops of the kernels less their arithmetic. */
public enum Bandwidth {
  /** Reads one buffer. */
  READ(espalier.ESP_TRAFFIC_READ, 1),
  /** Reads one buffer and writes another, past the cache where it is large. */
  COPY(espalier.ESP_TRAFFIC_COPY, 2),
  /** Reads and writes one buffer. */
  UPDATE(espalier.ESP_TRAFFIC_UPDATE, 2),
  /** Reads three buffers and writes two of them: the traffic of SGD with momentum. */
  STEP(espalier.ESP_TRAFFIC_STEP, 5),
  /** The same and a fourth buffer written: SGD with a working copy. */
  STEP_COPY(espalier.ESP_TRAFFIC_STEP_COPY, 6);

  private final int kind;
  private final int passes;

  Bandwidth(int kind, int passes) {
    this.kind = kind;
    this.passes = passes;
  }

  /** Bytes moved by one run over buffers of {@code elements} floats. */
  public long bytes(long elements) {
    return 4L * passes * elements;
  }

  /**
   * Moves the traffic once. Buffers that the kind does not use may be null.
   *
   * @param elements floats in each buffer, a multiple of 16
   */
  public void run(FloatPointer a, FloatPointer b, FloatPointer c, FloatPointer d, long elements) {
    Status.check(espalier.esp_traffic(kind, a, b, c, d, elements));
  }

  /**
   * The median over {@code runs} runs, in bytes a second, on fresh buffers of {@code bytes} bytes
   * each (2 MiB pages).
   */
  public double measure(long bytes, int runs) {
    long n = bytes / 64 * 16;
    int buffers = this == READ || this == UPDATE ? 1 : this == COPY ? 2 : this == STEP ? 3 : 4;
    OwnedTensor[] memory = new OwnedTensor[buffers];
    try {
      FloatPointer[] p = new FloatPointer[4];
      for (int i = 0; i < buffers; i++) {
        memory[i] = OwnedTensor.allocate(DType.F32, n);
        p[i] = new FloatPointer(memory[i].pointer());
        // Pages that nobody wrote are all one page of zeros, which is read from a cache.
        UPDATE.run(p[i], null, null, null, n);
      }
      double[] seconds = new double[runs];
      for (int run = -2; run < runs; run++) { // two runs to wake the workers
        long start = System.nanoTime();
        run(p[0], p[1], p[2], p[3], n);
        if (run >= 0) {
          seconds[run] = (System.nanoTime() - start) * 1e-9;
        }
      }
      Arrays.sort(seconds);
      return bytes(n) / seconds[runs / 2];
    } finally {
      for (OwnedTensor tensor : memory) {
        if (tensor != null) {
          tensor.close();
        }
      }
    }
  }
}
