package org.espalier.op;

import java.util.List;
import java.util.stream.IntStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/** Memory that comes twice in a list, as that of tied weights does: each would be written twice, by two threads at once. */
final class Overlap {
  private Overlap() {}

  /**
   * Looks for tensors that have memory in common, if only in part.
   *
   * @param tensors of one device; null: none
   * @return the indices of two, the lower first; null where there are none
   */
  static int[] among(List<Tensor> tensors, Device device) {
    long[] starts =
        tensors.stream().mapToLong(t -> t == null ? 0 : t.pointerOn(device).address()).toArray();
    int[] byAddress =
        IntStream.range(0, starts.length)
            .filter(i -> tensors.get(i) != null && tensors.get(i).elements() > 0)
            .boxed()
            .sorted((a, b) -> Long.compareUnsigned(starts[a], starts[b]))
            .mapToInt(Integer::intValue)
            .toArray();
    for (int k = 1; k < byAddress.length; k++) {
      int below = byAddress[k - 1];
      int above = byAddress[k];
      if (starts[above] - starts[below] < tensors.get(below).bytes()) {
        return new int[] {Math.min(below, above), Math.max(below, above)};
      }
    }
    return null;
  }
}
