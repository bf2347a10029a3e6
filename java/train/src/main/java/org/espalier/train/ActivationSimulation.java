package org.espalier.train;

import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.function.UnaryOperator;
import org.bytedeco.pytorch.Tensor;
import org.espalier.torch.InputTransforms;

/** Puts activations on the 8-bit grid that the runtime will use, where the runtime will do it. */
final class ActivationSimulation implements InputTransforms, AutoCloseable {
  /** How a form of quantization finds the grid of an activation. */
  interface Grid extends AutoCloseable {
    /**
     * The values of {@code x} on the grid, in a new tensor; the gradient passes where nothing was clipped.
     *
     * @param activation its name
     * @param batch what the model runs on
     */
    Tensor quantize(String activation, Tensor x, Batch batch);

    /** The same grid for another thread. */
    Grid sibling();

    @Override
    void close();
  }

  /** The activation that each node reads in front of its weight, by the node's name. */
  private final Map<String, String> activations;

  /** The activations that all their readers see quantized. */
  private final Set<String> results;

  private final Grid grid;
  private final Map<String, Site> sites = new HashMap<>();
  private Batch batch;
  private long nanoseconds;

  ActivationSimulation(Map<String, String> activations, Set<String> results, Grid grid) {
    this.activations = Map.copyOf(activations);
    this.results = Set.copyOf(results);
    this.grid = grid;
  }

  @Override
  public UnaryOperator<Tensor> transform(String node, int input) {
    String activation = activations.get(node);
    return activation == null || input != 0 || results.contains(activation)
        ? null
        : sites.computeIfAbsent(activation, Site::new);
  }

  @Override
  public UnaryOperator<Tensor> result(String output) {
    return results.contains(output) ? x -> quantize(output, x) : null;
  }

  /** The same for another thread, which runs the same nodes on other batches. */
  ActivationSimulation sibling() {
    return new ActivationSimulation(activations, results, grid.sibling());
  }

  /** What the next forward pass runs on. */
  void begin(Batch next) {
    batch = next;
    nanoseconds = 0;
    sites.values().forEach(Site::forget);
  }

  /** Time in this class since {@link #begin}. */
  long nanoseconds() {
    return nanoseconds;
  }

  private Tensor quantize(String activation, Tensor x) {
    long start = System.nanoTime();
    Tensor y = grid.quantize(activation, x, batch);
    nanoseconds += System.nanoTime() - start;
    return y;
  }

  /** One activation, which may have several readers. Each gets a handle that it may close. */
  private final class Site implements UnaryOperator<Tensor> {
    private final String activation;
    private Tensor seen;
    private Tensor result;

    Site(String activation) {
      this.activation = activation;
    }

    void forget() {
      if (seen != null) {
        seen.close();
        result.close();
        seen = null;
      }
    }

    @Override
    public Tensor apply(Tensor x) {
      if (seen == null || !seen.is_same(x)) {
        forget();
        // Retained: the graph frees what a node made before the next node runs.
        result = quantize(activation, x).retainReference();
        seen = new Tensor(x).retainReference();
      }
      return new Tensor(result);
    }
  }

  @Override
  public void close() {
    sites.values().forEach(Site::forget);
    grid.close();
  }
}
