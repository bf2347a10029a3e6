package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.bytedeco.javacpp.LongPointer;
import org.junit.jupiter.api.Test;

class VersionsTest {
  private static final int WORDS = 512;

  /** Native memory that is overwritten when it is freed. */
  private static final class Words implements AutoCloseable {
    private final LongPointer memory = new LongPointer(WORDS);

    void fill(long value) {
      for (int i = 0; i < WORDS; i++) {
        memory.put(i, value);
      }
    }

    /** The one number that fills the memory, or −1 where there are several: a torn version. */
    long read() {
      long first = memory.get(0);
      for (int i = 1; i < WORDS; i++) {
        if (memory.get(i) != first) {
          return -1;
        }
      }
      return first;
    }

    @Override
    public void close() {
      fill(-2);
      memory.close();
    }
  }

  @Test
  void aVersionThatIsReadIsNotWritten() {
    try (Versions<Words> versions = new Versions<>(Words::new)) {
      publish(versions, 1);
      int stripe = Versions.stripe();
      Versions.Slot<Words> first = versions.enter(stripe);
      publish(versions, 2);
      assertNotSame(first, versions.free());
      publish(versions, 3);
      publish(versions, 4);
      assertEquals(1, first.content().read());
      assertEquals(1, first.number());
      assertEquals(3, versions.slots()); // one is read, two take turns
      versions.leave(first, stripe);
      publish(versions, 5);
      publish(versions, 6);
      assertEquals(3, versions.slots());
      Versions.Slot<Words> newest = versions.enter(stripe);
      assertEquals(6, newest.content().read());
      assertSame(newest, versions.enter(stripe));
      versions.leave(newest, stripe);
      versions.leave(newest, stripe);
    }
  }

  /** Memory that is read is not freed, and who comes later is told. */
  @Test
  void closingWaitsForWhoReads() throws Exception {
    Versions<Words> versions = new Versions<>(Words::new);
    publish(versions, 1);
    int stripe = Versions.stripe();
    Versions.Slot<Words> slot = versions.enter(stripe);
    Thread closer = new Thread(versions::close);
    closer.start();
    long deadline = System.nanoTime() + 30_000_000_000L;
    boolean refused = false;
    while (!refused && System.nanoTime() < deadline) {
      try {
        versions.leave(versions.enter(stripe), stripe);
      } catch (IllegalStateException e) {
        refused = true;
      }
    }
    assertTrue(refused);
    assertTrue(closer.isAlive(), "it did not wait");
    assertEquals(1, slot.content().read());
    versions.leave(slot, stripe);
    closer.join(30_000);
    assertFalse(closer.isAlive());
  }

  /** Readers check every word of every version while they are published as fast as possible. */
  @Test
  void manyReadersNeverSeeATornVersion() throws Exception {
    try (Versions<Words> versions = new Versions<>(Words::new)) {
      publish(versions, 1);
      AtomicBoolean stop = new AtomicBoolean();
      int threads = 6;
      ExecutorService pool = Executors.newFixedThreadPool(threads);
      List<Future<long[]>> results = new ArrayList<>();
      for (int t = 0; t < threads; t++) {
        results.add(
            pool.submit(
                () -> {
                  int stripe = Versions.stripe();
                  long reads = 0;
                  long torn = 0;
                  long newest = 0;
                  while (!stop.get()) {
                    Versions.Slot<Words> slot = versions.enter(stripe);
                    long number = slot.number();
                    torn += slot.content().read() != number || number < newest ? 1 : 0;
                    newest = number;
                    versions.leave(slot, stripe);
                    reads++;
                  }
                  return new long[] {reads, torn};
                }));
      }
      long number = 1;
      long end = System.nanoTime() + 1_500_000_000L;
      while (System.nanoTime() < end) {
        publish(versions, ++number);
      }
      stop.set(true);
      long reads = 0;
      for (Future<long[]> result : results) {
        long[] counts = result.get(30, TimeUnit.SECONDS);
        reads += counts[0];
        assertEquals(0, counts[1], "torn versions");
      }
      pool.shutdown();
      assertTrue(reads > 1000 && number > 1000, reads + " reads of " + number + " versions");
      assertTrue(versions.slots() <= threads + 2, versions.slots() + " slots");
    }
  }

  private static void publish(Versions<Words> versions, long number) {
    Versions.Slot<Words> slot = versions.free();
    slot.content().fill(number);
    versions.publish(slot, number);
  }
}
