package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import sun.misc.Signal;

class InterruptsTest {
  /** Were the second one taken for impatience, the JVM of the tests would end here. */
  @Test
  void aSignalThatComesTwiceAtOnceIsOne() throws Exception {
    InterruptSignal.assumeHeard();
    AtomicInteger asked = new AtomicInteger();
    CountDownLatch first = new CountDownLatch(1);
    try (Interrupts interrupts =
        new Interrupts(
            () -> {
              asked.incrementAndGet();
              first.countDown();
            })) {
      InterruptSignal.raise();
      assertTrue(first.await(10, TimeUnit.SECONDS));
      Signal.raise(new Signal("TERM"));
      Thread.sleep(300);
      assertTrue(interrupts.requested());
      assertEquals(130, interrupts.code());
      assertEquals(1, asked.get());
    }
  }
}
