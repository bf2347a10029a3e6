package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.locks.LockSupport;
import org.espalier.online.model.LinearHead;
import org.junit.jupiter.api.Test;

/**
 * Learns for long while eight threads predict at a fixed rate, in a JVM whose heap is resident from the
 * beginning: {@code -Despalier.online.steps=16000000} for the long run. Every answer must be that of the
 * version that it names, and memory must not grow. Latencies are counted from when a prediction was due,
 * and printed.
 */
class OnlineEnduranceTest {
  private static final int STEPS = Integer.getInteger("espalier.online.steps", 100_000);
  private static final int READERS = 8;
  private static final int FEATURES = 64;

  /** Predictions a second of each thread. */
  private static final int RATE = Integer.getInteger("espalier.online.rate", 500);

  /**
   * kB. The JIT compiler and glibc's arenas grow after the first steps, by 10 to 17 MB where the machine is so fast that they
   * are over while it compiles. Were one version a step not freed, it would be 48 MB.
   */
  private static final long SLACK = 32_000;

  @Test
  void answersAreThoseOfTheirVersionsAndMemoryIsFlat() throws Exception {
    Process process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xms512m",
                "-Xmx512m",
                "-XX:+AlwaysPreTouch",
                "-Despalier.online.steps=" + STEPS,
                "-Despalier.online.rate=" + RATE,
                "-cp",
                System.getProperty("java.class.path"),
                OnlineEnduranceTest.class.getName())
            .redirectErrorStream(true)
            .start();
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    System.out.print(output);
    assertEquals(0, process.waitFor(), output);
  }

  public static void main(String[] arguments) throws Exception {
    List<Example> stream = Streams.plane(4096, FEATURES, 0.05, 1, 9);
    float[] x = stream.get(0).features();
    // What each version answers, as bits.
    AtomicIntegerArray expected = new AtomicIntegerArray(STEPS + 2);
    OnlineSettings settings = Streams.crossEntropy(0.05).batch(1).window(100).build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      long[] frozen = read(learner, x, expected, () -> Thread.sleep(Math.min(3000, STEPS / 20)));
      long[] before = {0};
      long[] learning =
          read(
              learner,
              x,
              expected,
              () -> {
                for (int step = 0; step < STEPS; step++) {
                  learner.learn(stream.subList(step % 4096, step % 4096 + 1));
                  float out = learner.predict(x).outputs()[0];
                  expected.set(step + 2, Float.floatToRawIntBits(out));
                  if (step == STEPS / 5) {
                    before[0] = resident();
                  }
                }
              });
      long grown = resident() - before[0];
      System.out.printf(
          "%d steps; predict frozen: p50 %.1f us, p99 %.1f us, p99.9 %.1f us; learning: p50 %.1f"
              + " us, p99 %.1f us, p99.9 %.1f us; %d answers checked; %d slots; memory %+d kB%n",
          STEPS,
          at(frozen, 0.5),
          at(frozen, 0.99),
          at(frozen, 0.999),
          at(learning, 0.5),
          at(learning, 0.99),
          at(learning, 0.999),
          learning.length,
          learner.slots(),
          grown);
      assertTrue(learner.slots() <= READERS + 3, learner.slots() + " slots");
      assertEquals(STEPS, learner.steps());
      assertTrue(grown < SLACK, grown + " kB more");
    }
  }

  private interface Work {
    void run() throws Exception;
  }

  /** Latencies in ns, sorted, of the predictions that eight threads made meanwhile. */
  private static long[] read(
      OnlineLearner learner, float[] x, AtomicIntegerArray expected, Work work) throws Exception {
    AtomicBoolean stop = new AtomicBoolean();
    ExecutorService pool = Executors.newFixedThreadPool(READERS);
    List<Future<List<long[]>>> readers = new ArrayList<>();
    for (int t = 0; t < READERS; t++) {
      readers.add(
          pool.submit(
              () -> {
                List<long[]> answers = new ArrayList<>();
                long due = System.nanoTime();
                while (!stop.get()) {
                  due += 1_000_000_000L / RATE;
                  LockSupport.parkNanos(due - System.nanoTime());
                  Prediction p = learner.predict(x);
                  long bits = Float.floatToRawIntBits(p.outputs()[0]);
                  answers.add(new long[] {System.nanoTime() - due, p.version(), bits});
                }
                return answers;
              }));
    }
    work.run();
    stop.set(true);
    List<Long> latencies = new ArrayList<>();
    for (Future<List<long[]>> reader : readers) {
      for (long[] answer : reader.get(60, TimeUnit.SECONDS)) {
        latencies.add(answer[0]);
        if (answer[1] > 1) { // version 1 is all zeros
          assertEquals(
              expected.get((int) answer[1]), (int) answer[2], "version " + answer[1] + " is torn");
        }
      }
    }
    pool.shutdown();
    long[] sorted = latencies.stream().mapToLong(Long::longValue).toArray();
    Arrays.sort(sorted);
    return sorted;
  }

  private static double at(long[] sorted, double share) {
    return sorted.length == 0 ? 0 : sorted[(int) (share * (sorted.length - 1))] * 1e-3;
  }

  /** Resident memory in kB. */
  private static long resident() throws IOException {
    return Files.readAllLines(Path.of("/proc/self/status")).stream()
        .filter(line -> line.startsWith("VmRSS:"))
        .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")))
        .findFirst()
        .orElseThrow();
  }
}
