package org.espalier.device;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import org.espalier.op.FusedSgd;

/**
 * What a call from Java that launches costs the calling thread: the guarded step over 200 tensors of
 * 1,024 elements, which benchmarks/gpu times from C as well. The main method prints microseconds.
 */
public final class LaunchCost {
  private LaunchCost() {}

  /**
   * Microseconds a call; what lies in the memory does not matter, the guard looks at it on the device.
   * The median of {@code rounds} rounds of {@code calls} calls.
   */
  static double microseconds(Device device, int rounds, int calls) {
    int count = 200;
    int n = 1024;
    List<CudaTensor> memory = new ArrayList<>();
    List<FusedSgd.Parameter> parameters = new ArrayList<>();
    CudaStream stream = CudaStream.create(device);
    try {
      for (int i = 0; i < count; i++) {
        CudaTensor[] three = new CudaTensor[3];
        for (int k = 0; k < three.length; k++) {
          three[k] = CudaTensor.allocate(device, DType.F32, n);
          memory.add(three[k]);
        }
        parameters.add(FusedSgd.Parameter.of(three[0], three[1], three[2]));
      }
      FusedSgd.Options options =
          FusedSgd.Options.of(0.01).withMomentum(0.9).withMaxNorm(1).withSkipNonFinite(true);
      double[] times = new double[rounds];
      try (FusedSgd sgd = new FusedSgd(parameters, options)) {
        // The first rounds compile what is measured.
        for (int round = -rounds; round < rounds; round++) {
          long begin = System.nanoTime();
          for (int i = 0; i < calls; i++) {
            sgd.queue(stream);
          }
          if (round >= 0) {
            times[round] = (System.nanoTime() - begin) / 1e3 / calls;
          }
          stream.synchronize();
        }
      }
      Arrays.sort(times);
      return times[rounds / 2];
    } finally {
      stream.close();
      memory.forEach(CudaTensor::close);
    }
  }

  /** Arguments: rounds, and calls a round. */
  public static void main(String[] arguments) {
    double microseconds =
        microseconds(
            Device.cuda(0), Integer.parseInt(arguments[0]), Integer.parseInt(arguments[1]));
    System.out.printf(Locale.ROOT, "%.3f%n", microseconds);
  }
}
