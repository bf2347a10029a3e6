package org.espalier.compress;

/**
 * Where the time of a run went, in seconds.
 *
 * @param read opening and checking the input
 * @param select finding the weights to prune; 0 for a run that does not select
 * @param apply computing the output
 * @param write giving the output to the system, making it durable and giving it its name
 */
public record Seconds(double read, double select, double apply, double write) {
  /** All phases. */
  public double total() {
    return read + select + apply + write;
  }
}
