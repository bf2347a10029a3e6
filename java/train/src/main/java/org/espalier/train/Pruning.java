package org.espalier.train;

import java.util.Objects;
import java.util.function.Predicate;
import org.espalier.op.MagnitudePrune;

/**
 * How weights are pruned.
 *
 * @param sparsity the share of zeros among the chosen weights at the end of the stage, in [0, 1); not
 *     used where there is a pattern
 * @param scope whether the smallest weights are sought among all tensors or in each
 * @param pattern n:m along the axis that is summed over; null for none, else {@code ONE_SHOT}
 * @param schedule when
 * @param updateEvery steps between two prunings of a {@code CUBIC} schedule, at least 1
 * @param until the share of the stage's steps after which the mask is final, in (0, 1]; the rest
 *     recovers. {@code CUBIC} only
 * @param include which weights, by name; the weights of linear layers and convolutions are asked for
 * @param embeddings whether tables that are only looked up in are asked for too
 */
public record Pruning(
    double sparsity,
    Scope scope,
    Pattern pattern,
    Schedule schedule,
    int updateEvery,
    double until,
    Predicate<String> include,
    boolean embeddings,
    boolean refit) {
  /** Among what the smallest weights are sought. */
  public enum Scope {
    /** All chosen tensors together. */
    GLOBAL,
    /** Each tensor by itself. */
    TENSOR
  }

  /** When weights are pruned. */
  public enum Schedule {
    /** All at the start of the stage. */
    ONE_SHOT,
    /**
     * Sparsity rises as {@code s + (s0 − s)·(1 − t)³} with t from 0 to 1, where s0 is the sparsity at
     * the start (Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878).
     */
    CUBIC
  }

  /**
   * Keeps the n weights of largest magnitude of each m consecutive ones.
   *
   * @param keep n, at least 1
   * @param of m, more than n
   */
  public record Pattern(int keep, int of) {
    public Pattern {
      if (keep < 1 || of <= keep) {
        throw new IllegalArgumentException(
            "pattern " + keep + ":" + of + "; n:m keeps n of each m, 1 <= n < m");
      }
    }
  }

  public Pruning {
    Objects.requireNonNull(scope, "scope");
    Objects.requireNonNull(schedule, "schedule");
    Objects.requireNonNull(include, "include");
    if (!(sparsity >= 0 && sparsity < 1)) {
      throw new IllegalArgumentException("sparsity " + sparsity + "; it is in [0, 1)");
    }
    if (pattern != null && schedule != Schedule.ONE_SHOT) {
      throw new IllegalArgumentException("an n:m pattern is pruned in one shot");
    }
    if (refit && schedule != Schedule.ONE_SHOT) {
      throw new IllegalArgumentException("weights are refitted where they are pruned in one shot");
    }
    if (updateEvery < 1) {
      throw new IllegalArgumentException("pruning every " + updateEvery + " steps; 1 or more");
    }
    if (!(until > 0 && until <= 1)) {
      throw new IllegalArgumentException("until " + until + "; it is in (0, 1]");
    }
  }

  /** The smallest weights of all tensors together, at once. */
  public static Pruning oneShot(double sparsity) {
    return new Pruning(
        sparsity, Scope.GLOBAL, null, Schedule.ONE_SHOT, 1, 1, name -> true, false, false);
  }

  /** The same on a cubic schedule over the first three quarters of the stage. */
  public static Pruning gradual(double sparsity, int updateEvery) {
    return new Pruning(
        sparsity,
        Scope.GLOBAL,
        null,
        Schedule.CUBIC,
        updateEvery,
        0.75,
        name -> true,
        false,
        false);
  }

  /**
   * What kernels are asked for.
   *
   * @param share of zeros that is wanted now; of no account where there is a pattern
   */
  MagnitudePrune.Rule rule(double share) {
    return pattern == null
        ? new MagnitudePrune.Sparsity(
            share,
            scope == Scope.GLOBAL ? MagnitudePrune.Scope.GLOBAL : MagnitudePrune.Scope.TENSOR)
        : new MagnitudePrune.Pattern(pattern.keep(), pattern.of());
  }

  /** The sparsity wanted after the share {@code t} of the schedule, in [0, 1], has passed. */
  public double sparsityAt(double start, double t) {
    double left = 1 - Math.min(1, Math.max(0, t));
    return sparsity + (start - sparsity) * left * left * left;
  }
}
