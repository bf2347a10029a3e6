package org.espalier.train;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.LongStream;

/**
 * The order of the examples: each epoch is a fresh shuffle, cut into batches of like length, so that few
 * texts are padded, in random order. The batch of a step depends on the seed and the step's number alone;
 * a resumed run goes on with the same batches.
 */
final class Batches {
  private final Examples examples;
  private final int size;
  private final long seed;
  private long epoch = -1;
  private List<int[]> order = List.of();

  /**
   * Batches of at most {@code size} examples.
   *
   * @param seed of the plan and the stage
   */
  Batches(Examples examples, int size, long seed) {
    this.examples = examples;
    this.size = size;
    this.seed = seed;
  }

  /** The examples of a step, counted from 0. */
  int[] step(long step) {
    int perEpoch = (examples.size() + size - 1) / size;
    long wanted = step / perEpoch;
    if (wanted != epoch) {
      order = shuffled(new Random(seed * 1_000_003 + wanted));
      epoch = wanted;
    }
    return order.get((int) (step % perEpoch));
  }

  /** The examples of the first steps, each once, ascending. */
  int[] used(long steps) {
    int perEpoch = (examples.size() + size - 1) / size;
    return LongStream.range(0, Math.min(steps, perEpoch))
        .mapToObj(this::step)
        .flatMapToInt(Arrays::stream)
        .sorted()
        .toArray();
  }

  /** All examples once, in batches of like length, always in the same order. */
  static List<int[]> inOrder(Examples examples, int size) {
    return inOrder(examples, IntStream.range(0, examples.size()).toArray(), size);
  }

  /** The same of some examples. */
  static List<int[]> inOrder(Examples examples, int[] some, int size) {
    List<Integer> all = new ArrayList<>(Arrays.stream(some).boxed().toList());
    all.sort(Comparator.comparingInt(examples::length)); // stable
    return cut(all, size);
  }

  private List<int[]> shuffled(Random random) {
    List<int[]> batches = cut(sorted(examples, random), size);
    Collections.shuffle(batches, random);
    return batches;
  }

  /** Examples by length, those of one length in random order. */
  private static List<Integer> sorted(Examples examples, Random random) {
    List<Integer> all = new ArrayList<>(examples.size());
    for (int i = 0; i < examples.size(); i++) {
      all.add(i);
    }
    Collections.shuffle(all, random);
    all.sort(Comparator.comparingInt(examples::length)); // stable
    return all;
  }

  private static List<int[]> cut(List<Integer> all, int size) {
    int[] flat = all.stream().mapToInt(Integer::intValue).toArray();
    List<int[]> batches = new ArrayList<>();
    for (int from = 0; from < flat.length; from += size) {
      batches.add(Arrays.copyOfRange(flat, from, Math.min(flat.length, from + size)));
    }
    return batches;
  }
}
