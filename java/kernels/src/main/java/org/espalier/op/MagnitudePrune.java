package org.espalier.op;

import java.lang.ref.Reference;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.InputException;
import org.espalier.binding.Status;
import org.espalier.binding.esp_prune_cut;
import org.espalier.binding.esp_prune_result;
import org.espalier.binding.esp_prune_rule;
import org.espalier.binding.esp_prune_tensor;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.Device;
import org.espalier.device.Tensor;

/**
 * Keeps or zeroes each weight of a list of tensors by its magnitude.
 *
 * <p>Ties go to the lowest flat index in list order; a NaN is larger than every number and equal to
 * every other NaN. A pruned weight becomes +0 and its mask bit 0, every other weight keeps its bits.
 * With an earlier mask, only what it keeps takes part, and what it prunes stays pruned.
 *
 * <p>Nothing is concatenated or copied: scratch memory is at most 1 MiB plus 2 % of the weights'
 * bytes. Thread safe; the weights must not change meanwhile. The result is the same on every
 * instruction set, for every number of threads and on CUDA devices.
 *
 * <p>Runs where the first tensor is; all else of a list lies there too. {@link #select} runs on the CPU
 * only.
 */
public final class MagnitudePrune {
  /** Largest {@code m} of a pattern n:m. */
  public static final int MAX_GROUP = espalier.ESP_PRUNE_GROUP_MAX;

  /** So many tensors that a pattern does not divide are named. */
  private static final int MOST_MISFITS = 20;

  private MagnitudePrune() {}

  /** Whether an amount, count or sparsity is of the whole list or of each tensor. */
  public enum Scope {
    GLOBAL,
    TENSOR
  }

  /** Which weights are pruned. Immutable. */
  public sealed interface Rule permits Threshold, Amount, Count, Sparsity, Pattern {}

  /**
   * Those with {@code |w| < threshold}.
   */
  public record Threshold(float threshold) implements Rule {
    /**
     * @throws InputException where the threshold is negative or NaN
     */
    public Threshold {
      if (!(threshold >= 0)) {
        throw new InputException("threshold " + threshold + "; a number from 0 on is needed");
      }
    }
  }

  /**
   * The smallest {@code fraction} of the weights that an earlier mask keeps, their number rounded
   * half to even.
   */
  public record Amount(double fraction, Scope scope) implements Rule {
    /**
     * @throws InputException where the fraction is outside 0 to 1
     */
    public Amount {
      checkFraction("amount", fraction);
      Objects.requireNonNull(scope);
    }
  }

  /**
   * The {@code count} smallest weights that an earlier mask keeps.
   */
  public record Count(long count, Scope scope) implements Rule {
    /**
     * @throws InputException where the count is negative
     */
    public Count {
      if (count < 0) {
        throw new InputException("count " + count + "; 0 or more is needed");
      }
      Objects.requireNonNull(scope);
    }
  }

  /**
   * So many more that {@code fraction} of all weights is pruned, those of an earlier mask included;
   * none where there are more already. Schedules use it.
   */
  public record Sparsity(double fraction, Scope scope) implements Rule {
    /**
     * @throws InputException where the fraction is outside 0 to 1
     */
    public Sparsity {
      checkFraction("sparsity", fraction);
      Objects.requireNonNull(scope);
    }
  }

  /**
   * All but the {@code keep} largest of each {@code group} consecutive weights along the reduction
   * axis ({@link Weights#axis}); those that an earlier mask prunes count as smallest.
   *
   * @param keep n of n:m, 1 to {@code group}
   * @param group m of n:m, 1 to {@link #MAX_GROUP}
   */
  public record Pattern(int keep, int group) implements Rule {
    /**
     * @throws InputException where keep or group is outside its range
     */
    public Pattern {
      if (group < 1 || group > MAX_GROUP || keep < 1 || keep > group) {
        throw new InputException(
            "pattern "
                + keep
                + ":"
                + group
                + "; n:m with 1 <= n <= m <= "
                + MAX_GROUP
                + " is needed");
      }
    }

    /** Reads {@code n:m}, such as {@code 2:4}. */
    public static Pattern parse(String text) {
      String[] parts = text.split(":", -1);
      if (parts.length == 2) {
        try {
          return new Pattern(Integer.parseInt(parts[0].trim()), Integer.parseInt(parts[1].trim()));
        } catch (NumberFormatException e) {
          // reported below
        }
      }
      throw new InputException("pattern \"" + text + "\"; n:m is needed, such as 2:4");
    }
  }

  /**
   * One tensor with what is read and written beside it. Start with {@link #of} and say what is
   * written: {@link #inPlace}, {@link #to}, {@link #maskOut}.
   *
   * @param name for messages
   * @param weights F32, BF16 or F16
   * @param out null: the weights are not written; else of the same type and shape, either the weights
   *     themselves or memory that does not overlap them
   * @param maskIn the earlier mask, one bit a weight (1 = kept), or null: all kept
   * @param maskOut receives the new mask, or null: not wanted; may be {@code maskIn}
   * @param axis the reduction axis, for patterns; negative axes count from the last
   */
  public record Weights(
      String name, Tensor weights, Tensor out, BytePointer maskIn, BytePointer maskOut, int axis) {
    public Weights {
      Objects.requireNonNull(name);
      if (out != null && (out.dtype() != weights.dtype() || out.elements() != weights.elements())) {
        throw new IllegalArgumentException(
            name + ": the output is " + out + ", the weights are " + weights);
      }
      if (out != null) {
        out.requireWritable(name + ": the output");
      }
      Bits.check(name + ": maskIn", maskIn, weights.elements());
      Bits.check(name + ": maskOut", maskOut, weights.elements());
    }

    /**
     * @throws IllegalStateException where memory of it was closed
     */
    private void requireOpen() {
      weights.requireOpen();
      Lifetimes.requireOpen(out);
      Lifetimes.requireOpen(name + ": maskIn", maskIn, weights.elements());
      Lifetimes.requireOpen(name + ": maskOut", maskOut, weights.elements());
    }

    /** How many of the weights an earlier mask keeps. */
    long kept() {
      return maskIn == null ? weights.elements() : Bits.count(maskIn, weights.elements());
    }

    /** Weights along whose last axis patterns run, all kept so far, nothing written. */
    public static Weights of(String name, Tensor weights) {
      return new Weights(name, weights, null, null, null, -1);
    }

    /** Pruned weights are zeroed where they are. */
    public Weights inPlace() {
      return to(weights);
    }

    /** Survivors and zeros go to other memory. */
    public Weights to(Tensor out) {
      return new Weights(name, weights, out, maskIn, maskOut, axis);
    }

    public Weights maskIn(BytePointer bits) {
      return new Weights(name, weights, out, bits, maskOut, axis);
    }

    public Weights maskOut(BytePointer bits) {
      return new Weights(name, weights, out, maskIn, bits, axis);
    }

    public Weights axis(int axis) {
      return new Weights(name, weights, out, maskIn, maskOut, axis);
    }
  }

  /**
   * @param name the tensor's
   * @param total its weights
   * @param pruned of them, those of an earlier mask included
   */
  public record TensorResult(String name, long total, long pruned) {}

  /**
   * @param total weights of the list
   * @param pruned of them, those of an earlier mask included
   * @param threshold what {@link Threshold} says; else the k-th smallest magnitude, so that no pruned
   *     weight lies above it: 0 where nothing more was to be pruned, NaN where a NaN had to be, and
   *     where there is no one threshold ({@link Scope#TENSOR}, {@link Pattern})
   * @param tensors in list order
   */
  public record Result(long total, long pruned, float threshold, List<TensorResult> tensors) {
    public Result {
      tensors = List.copyOf(tensors);
    }
  }

  /**
   * Prunes in one call; {@link #batch} is cheaper for what is pruned again and again.
   *
   * @throws InputException where the count is more than what remains, or the pattern does not divide
   *     an axis
   */
  public static Result prune(List<Weights> list, Rule rule) {
    try (Batch batch = batch(list, rule)) {
      return batch.run();
    }
  }

  /**
   * A list of tensors that is planned once and can be pruned often. Close it.
   *
   * @throws InputException where the pattern does not divide an axis
   * @throws IllegalArgumentException where the tensors are not all on one device, or two of them are written to memory
   *     that overlaps
   */
  public static Batch batch(List<Weights> list, Rule rule) {
    return new Batch(list, rule);
  }

  /**
   * A list of tensors in native form. The memory must stay alive until close; where it is known to be closed, a call throws
   * an {@link IllegalStateException}, as after close. Several threads wait for each other.
   */
  public static final class Batch implements AutoCloseable {
    private final List<Weights> list; // keeps the memory reachable
    private final Device device;
    private final esp_prune_tensor tensors;
    private final esp_prune_result result = Natives.keep(new esp_prune_result());
    private final LongPointer pruned;
    private Rule rule;
    private esp_prune_rule nativeRule;
    private final DevicePlan plan; // null on the CPU, as are the next two
    private final CudaMemory found;
    private final CudaMemory foundPruned;

    private Batch(List<Weights> list, Rule rule) {
      this.list = List.copyOf(list);
      Objects.requireNonNull(rule, "rule");
      this.device = list.isEmpty() ? Device.cpu() : list.get(0).weights().device();
      if (rule instanceof Pattern pattern) {
        checkPattern(list, pattern);
      }
      checkOutputs(list, device);
      int count = list.size();
      this.tensors = Natives.keep(PruneNatives.tensors(list, device));
      this.pruned = Natives.keep(new LongPointer(Math.max(1, count)));
      this.rule = rule;
      this.nativeRule = Natives.keep(PruneNatives.rule(rule));
      if (!device.isCuda()) {
        plan = null;
        found = null;
        foundPruned = null;
        return;
      }
      plan =
          new DevicePlan(
              device,
              (plan, table) ->
                  espalier_cuda.esp_cuda_magnitude_prune_plan(
                      tensors, count, nativeRule, plan, table));
      found = CudaMemory.allocate(device, result.sizeof());
      foundPruned = CudaMemory.allocate(device, (long) Long.BYTES * count);
    }

    /**
     * What to prune from now on: another fraction, count, threshold or number to keep.
     *
     * @throws IllegalArgumentException where the kind of rule, its scope or its group is another
     */
    public synchronized void rule(Rule next) {
      requireOpen();
      if (next.getClass() != rule.getClass()
          || PruneNatives.scope(next) != PruneNatives.scope(rule)
          || next instanceof Pattern pattern && pattern.group() != ((Pattern) rule).group()) {
        throw new IllegalArgumentException(
            next + " for a batch that was made for " + rule + "; kind, scope and group must stay");
      }
      nativeRule.close();
      nativeRule = Natives.keep(PruneNatives.rule(next));
      rule = next;
    }

    /**
     * Prunes what the tensors hold now.
     *
     * @throws InputException where the count is more than what remains
     */
    public synchronized Result run() {
      if (device.isCuda()) {
        CudaStream stream = CudaStream.defaultOf(device);
        queue(stream);
        return result(stream);
      }
      requireOpen();
      PruneNatives.check(
          espalier.esp_magnitude_prune(tensors, list.size(), nativeRule, result, pruned),
          list,
          rule);
      return found();
    }

    /**
     * Queues the work on a stream, for tensors on its device, and returns.
     *
     * @throws IllegalArgumentException where the tensors are elsewhere
     */
    public synchronized void queue(CudaStream stream) {
      requireOpen();
      DevicePlan.requireOn(device, stream);
      device.makeCurrent();
      Status.checkCuda(
          espalier_cuda.esp_cuda_magnitude_prune(
              plan.plan(),
              plan.table(),
              plan.workspace(),
              nativeRule,
              new esp_prune_result(found.pointer()),
              list.isEmpty() ? null : foundPruned.asLongs(),
              stream.handle()));
    }

    /**
     * Waits for what was queued on a stream.
     *
     * @throws InputException where the count was more than what remains; nothing was written then
     */
    public synchronized Result result(CudaStream stream) {
      requireOpen();
      DevicePlan.requireOn(device, stream);
      found.copyTo(result, found.bytes(), stream);
      foundPruned.copyTo(pruned, foundPruned.bytes(), stream);
      stream.synchronize();
      if (result.pruned() < 0) {
        String message = "magnitude_prune: " + rule + " is more than what remains";
        throw new InputException(
            rule instanceof Count count ? PruneNatives.message(list, count, message) : message);
      }
      return found();
    }

    private void requireOpen() {
      if (tensors.isNull()) {
        throw new IllegalStateException("the batch is closed");
      }
      list.forEach(Weights::requireOpen);
    }

    private Result found() {
      return new Result(
          result.total(),
          result.pruned(),
          result.threshold(),
          PruneNatives.tensorResults(list, pruned));
    }

    @Override
    public synchronized void close() {
      if (plan != null) {
        plan.close();
        found.close();
        foundPruned.close();
      }
      tensors.close();
      nativeRule.close();
      result.close();
      pruned.close();
    }
  }

  /**
   * Finds what to prune and writes nothing, for weights that are not written where they are read.
   * Outputs of the list are ignored.
   *
   * @throws InputException where the count is more than what remains
   * @throws IllegalArgumentException for a {@link Pattern}, which looks at each group alone: prune
   *     piece by piece
   * @throws IllegalStateException where memory of the list was closed
   */
  public static Selection select(List<Weights> list, Rule rule) {
    int count = list.size();
    if (rule instanceof Pattern) {
      throw new IllegalArgumentException("a pattern needs no selection");
    }
    list.forEach(Weights::requireOpen);
    try (esp_prune_tensor tensors = PruneNatives.tensors(list, Device.cpu());
        esp_prune_rule nativeRule = PruneNatives.rule(rule);
        esp_prune_result result = new esp_prune_result();
        esp_prune_cut cuts = new esp_prune_cut(Math.max(1, count))) {
      PruneNatives.check(
          espalier.esp_magnitude_prune_select(tensors, count, nativeRule, cuts, result),
          list,
          rule);
      int[] keys = new int[count];
      long[] ties = new long[count];
      long[] elements = new long[count];
      for (int t = 0; t < count; t++) {
        esp_prune_cut cut = cuts.getPointer(t);
        keys[t] = cut.key();
        ties[t] = cut.ties();
        elements[t] = list.get(t).weights().elements();
      }
      Reference.reachabilityFence(list);
      return new Selection(result.total(), result.threshold(), keys, ties, elements);
    }
  }

  /** What {@link #select} found. Immutable and thread safe; holds no native memory. */
  public static final class Selection {
    private final long total;
    private final float threshold;
    private final int[] keys;
    private final long[] ties;
    private final long[] elements;

    private Selection(long total, float threshold, int[] keys, long[] ties, long[] elements) {
      this.total = total;
      this.threshold = threshold;
      this.keys = keys;
      this.ties = ties;
      this.elements = elements;
    }

    /** Weights of the list. */
    public long total() {
      return total;
    }

    /** As {@link Result#threshold}. */
    public float threshold() {
      return threshold;
    }

    /**
     * Writes outputs and masks of the whole list, in the order in which it was selected.
     *
     * @throws IllegalStateException where memory of the list was closed
     * @throws IllegalArgumentException where the list is another one, or two are written to memory that overlaps
     */
    public Result apply(List<Weights> list) {
      if (list.size() != keys.length) {
        throw new IllegalArgumentException(
            list.size() + " tensors; the selection was made of " + keys.length);
      }
      checkOutputs(list, Device.cpu());
      long[] starts = new long[keys.length];
      int[] tensors = new int[keys.length];
      Arrays.setAll(tensors, t -> t);
      for (int t = 0; t < keys.length; t++) {
        if (list.get(t).weights().elements() != elements[t]) {
          throw new IllegalArgumentException(
              list.get(t).name()
                  + " is "
                  + list.get(t).weights()
                  + "; the selection saw "
                  + elements[t]
                  + " elements");
        }
      }
      try (LongPointer pruned = new LongPointer(Math.max(1, keys.length))) {
        apply(list, tensors, starts, pruned);
        List<TensorResult> results = PruneNatives.tensorResults(list, pruned);
        long sum = results.stream().mapToLong(TensorResult::pruned).sum();
        return new Result(total, sum, threshold, results);
      }
    }

    /**
     * Writes outputs and masks of a piece of one tensor; pieces may come in any order.
     *
     * @param tensor its index in the list that was selected
     * @param start the piece's first element; a multiple of 8 where masks are given
     * @param piece the piece's weights, outputs and masks
     * @return the pruned weights of the piece, those of an earlier mask included
     * @throws IllegalStateException where memory of the piece was closed
     */
    public long apply(int tensor, long start, Weights piece) {
      Objects.checkIndex(tensor, keys.length);
      Objects.checkFromIndexSize(start, piece.weights().elements(), elements[tensor]);
      if (start % 8 != 0 && (piece.maskIn() != null || piece.maskOut() != null)) {
        throw new IllegalArgumentException(
            piece.name()
                + ": a piece from element "
                + start
                + " on; with masks it must start at a multiple of 8");
      }
      try (LongPointer pruned = new LongPointer(1)) {
        apply(List.of(piece), new int[] {tensor}, new long[] {start}, pruned);
        return pruned.get(0);
      }
    }

    private void apply(List<Weights> list, int[] tensors, long[] starts, LongPointer pruned) {
      list.forEach(Weights::requireOpen);
      int count = list.size();
      try (esp_prune_tensor nativeTensors = PruneNatives.tensors(list, Device.cpu());
          esp_prune_cut cuts = new esp_prune_cut(Math.max(1, count))) {
        for (int i = 0; i < count; i++) {
          cuts.getPointer(i).key(keys[tensors[i]]).ties(ties[tensors[i]] - starts[i]);
        }
        Status.check(espalier.esp_magnitude_prune_apply(nativeTensors, cuts, count, pruned));
        Reference.reachabilityFence(list);
      }
    }
  }

  /** Of memory that came twice, as tied weights do, some weights would count as pruned twice. */
  private static void checkOutputs(List<Weights> list, Device device) {
    List<Tensor> outputs = new ArrayList<>();
    list.forEach(w -> outputs.add(w.out()));
    int[] two = Overlap.among(outputs, device);
    if (two != null) {
      throw new IllegalArgumentException(
          list.get(two[1]).name()
              + " is written to the memory of "
              + list.get(two[0]).name()
              + "; each memory can come once");
    }
  }

  /**
   * Refuses tensors that a pattern does not divide.
   *
   * @throws InputException names them, their axes and what would be right
   */
  public static void checkPattern(List<Weights> list, Pattern pattern) {
    List<String> misfits = new ArrayList<>();
    for (Weights weights : list) {
      try {
        checkPattern(weights, pattern);
      } catch (InputException e) {
        misfits.add(e.getMessage());
      }
    }
    if (!misfits.isEmpty()) {
      int others = misfits.size() - MOST_MISFITS;
      throw new InputException(
          String.join("\n  ", misfits.subList(0, Math.min(MOST_MISFITS, misfits.size())))
              + (others > 0 ? "\n  and " + others + (others == 1 ? " other" : " others") : ""));
    }
  }

  private static void checkPattern(Weights weights, Pattern pattern) {
    Tensor tensor = weights.weights();
    int axis = weights.axis() < 0 ? weights.axis() + tensor.rank() : weights.axis();
    if (axis < 0 || axis >= tensor.rank()) {
      throw new InputException(
          weights.name() + ": " + tensor + " has no axis " + weights.axis() + " for a pattern");
    }
    if (tensor.dimension(axis) % pattern.group() != 0) {
      throw new InputException(
          weights.name()
              + ": axis "
              + axis
              + " of "
              + tensor
              + " is not a multiple of "
              + pattern.group()
              + ", as the pattern "
              + pattern.keep()
              + ":"
              + pattern.group()
              + " needs");
    }
  }

  private static void checkFraction(String what, double fraction) {
    if (!(fraction >= 0 && fraction <= 1)) {
      throw new InputException(what + " " + fraction + "; a fraction from 0 to 1 is needed");
    }
  }
}
