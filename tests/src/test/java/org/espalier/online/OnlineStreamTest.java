package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.SubmissionPublisher;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicReference;
import org.espalier.InputException;
import org.espalier.online.OnlineStream.WhenFull;
import org.espalier.online.model.LinearHead;
import org.junit.jupiter.api.Test;

class OnlineStreamTest {
  private static final int FEATURES = 5;
  private static final Duration LINGER = Duration.ofMillis(1);

  @Test
  void aQueueOfNoRoomIsRefused() {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.3).build())) {
      assertEquals(
          "capacity 0; at least 1 is right",
          assertThrows(
                  IllegalArgumentException.class,
                  () -> new OnlineStream(learner, 0, WhenFull.BLOCK, LINGER))
              .getMessage());
    }
  }

  @Test
  void everythingThatWasSubmittedIsLearnedBeforeItCloses() throws Exception {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.3).build())) {
      List<Example> stream = Streams.plane(3000, FEATURES, 0, 1, 9);
      ExecutorService pool = Executors.newFixedThreadPool(3);
      AtomicBoolean stop = new AtomicBoolean();
      try (OnlineStream online = new OnlineStream(learner, 64, WhenFull.BLOCK, LINGER)) {
        // Readers go on meanwhile, and never see a version go back.
        Future<Long> reader =
            pool.submit(
                () -> {
                  long newest = 0;
                  while (!stop.get()) {
                    long version = learner.predict(stream.get(0).features()).version();
                    assertTrue(version >= newest);
                    newest = version;
                  }
                  return newest;
                });
        List<Future<?>> writers = new ArrayList<>();
        for (int t = 0; t < 2; t++) {
          int from = 1500 * t;
          writers.add(pool.submit(() -> stream.subList(from, from + 1500).forEach(online::submit)));
        }
        for (Future<?> writer : writers) {
          writer.get(30, TimeUnit.SECONDS);
        }
        online.close();
        stop.set(true);
        assertTrue(reader.get(30, TimeUnit.SECONDS) > 1);
        assertEquals(3000, learner.seen());
        assertEquals(3000, online.accepted());
        assertThrows(IllegalStateException.class, () -> online.submit(stream.get(0)));
      }
      pool.shutdown();
      assertTrue(learner.metrics().get("accuracy_window") > 0.9);
    }
  }

  /** The learner is kept busy by a listener, so that the queue fills. */
  @Test
  void aFullQueueDoesWhatTheCallerChose() throws Exception {
    for (WhenFull whenFull : WhenFull.values()) {
      CountDownLatch busy = new CountDownLatch(1);
      CountDownLatch go = new CountDownLatch(1);
      try (LinearHead head = new LinearHead(FEATURES, 2);
          OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
        learner.onEvent(
            e -> {
              busy.countDown();
              try {
                go.await(30, TimeUnit.SECONDS);
              } catch (InterruptedException x) {
                Thread.currentThread().interrupt();
              }
            });
        Example stopper = Example.of(new float[] {Float.NaN, 0, 0, 0, 0}, 0);
        List<Example> stream = Streams.plane(20, FEATURES, 0, 1, 9);
        OnlineStream online = new OnlineStream(learner, 4, whenFull, Duration.ZERO);
        online.submit(stopper);
        assertTrue(busy.await(30, TimeUnit.SECONDS));
        int refused = 0;
        if (whenFull == WhenFull.BLOCK) {
          stream.subList(0, 4).forEach(online::submit);
          Thread waiting = new Thread(() -> online.submit(stream.get(4)));
          waiting.start();
          Thread.sleep(60);
          assertTrue(waiting.isAlive(), "it did not wait");
          go.countDown();
          waiting.join(30_000);
          assertFalse(waiting.isAlive());
        } else {
          for (Example e : stream) {
            refused += online.submit(e) ? 0 : 1;
          }
          go.countDown();
        }
        online.close();
        assertEquals(whenFull == WhenFull.REJECT ? 16 : 0, refused);
        assertEquals(refused, online.rejected());
        assertEquals(whenFull == WhenFull.DROP_OLDEST ? 16 : 0, online.dropped());
        assertEquals(whenFull == WhenFull.BLOCK ? 6 : 5, learner.seen());
      }
    }
  }

  /** What was accepted is learned, also where others close the stream meanwhile. */
  @Test
  void closingLosesNothingThatWasAccepted() throws Exception {
    List<Example> stream = Streams.plane(100, FEATURES, 0, 1, 9);
    for (int round = 0; round < 20; round++) {
      try (LinearHead head = new LinearHead(FEATURES, 2);
          OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
        OnlineStream online = new OnlineStream(learner, 10_000, WhenFull.REJECT, Duration.ZERO);
        List<Thread> writers = new ArrayList<>();
        for (int t = 0; t < 3; t++) {
          Thread writer =
              new Thread(
                  () -> {
                    try {
                      for (int i = 0; ; i++) {
                        online.submit(stream.get(i % stream.size()));
                      }
                    } catch (IllegalStateException closed) {
                      return;
                    }
                  });
          writer.start();
          writers.add(writer);
        }
        Thread.sleep(5);
        online.close();
        for (Thread writer : writers) {
          writer.join(30_000);
        }
        assertEquals(online.accepted(), learner.seen());
      }
    }
  }

  /** It would wait for its own end. */
  @Test
  void theThreadThatLearnsCannotCloseItsStream() throws Exception {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
      AtomicReference<OnlineStream> online = new AtomicReference<>();
      CompletableFuture<Throwable> said = new CompletableFuture<>();
      learner.onEvent(
          e -> {
            try {
              online.get().close();
            } catch (IllegalStateException closing) {
              said.complete(closing);
            }
          });
      online.set(new OnlineStream(learner, 4, WhenFull.BLOCK, Duration.ZERO));
      online.get().submit(Example.of(new float[] {Float.NaN, 0, 0, 0, 0}, 0));
      String message = said.get(30, TimeUnit.SECONDS).getMessage();
      assertTrue(message.contains("cannot close its stream"), message);
      Streams.plane(20, FEATURES, 0, 1, 9).forEach(online.get()::submit);
      online.get().close();
      assertEquals(21, learner.seen());
    }
  }

  @Test
  void aFailureOfTheLearnerIsSeen() throws Exception {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
      learner.onEvent(
          e -> {
            throw new IllegalArgumentException("a listener that fails");
          });
      OnlineStream online = new OnlineStream(learner, 4, WhenFull.BLOCK, Duration.ZERO);
      assertFalse(online.isFailed());
      online.submit(Example.of(new float[] {Float.NaN, 0, 0, 0, 0}, 0));
      long deadline = System.nanoTime() + 30_000_000_000L;
      while (!online.isFailed() && System.nanoTime() < deadline) {
        Thread.onSpinWait();
      }
      assertTrue(online.isFailed());
      Example good = Streams.plane(1, FEATURES, 0, 1, 9).get(0);
      assertThrows(IllegalStateException.class, () -> online.submit(good));
      assertThrows(IllegalStateException.class, online::close);
    }
  }

  @Test
  void aFlowIsLearned() {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.3).build());
        OnlineStream online = new OnlineStream(learner, 16, WhenFull.BLOCK, LINGER);
        SubmissionPublisher<Example> publisher = new SubmissionPublisher<>()) {
      publisher.subscribe(online.subscriber());
      Streams.plane(500, FEATURES, 0, 1, 9).forEach(publisher::submit);
      publisher.submit(Example.of(new float[1], 0)); // does not fit
      publisher.submit(Streams.plane(1, FEATURES, 0, 1, 9).get(0));
      long deadline = System.nanoTime() + 30_000_000_000L;
      while (online.accepted() < 501 && System.nanoTime() < deadline) {
        Thread.onSpinWait();
      }
      online.close();
      assertEquals(501, learner.seen());
      assertEquals(1, online.rejected());
    }
  }

  @Test
  void anExampleThatDoesNotFitIsRefusedAtTheDoor() {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.3).build());
        OnlineStream online = new OnlineStream(learner, 16, WhenFull.BLOCK, LINGER)) {
      assertThrows(InputException.class, () -> online.submit(Example.of(new float[2], 0)));
    }
  }

  @Test
  void delayedOutcomesAreJoinedById() {
    PendingLabels pending = new PendingLabels(2);
    pending.remember("a", new float[] {1}, 7);
    InputException twice =
        assertThrows(InputException.class, () -> pending.remember("a", new float[1], 7));
    assertTrue(twice.getMessage().contains("waits for its outcome already"));
    pending.remember("b", new float[] {2}, 8);
    pending.remember("c", new float[] {3}, 9); // pushes a out
    InputException gone = assertThrows(InputException.class, () -> pending.join("a"));
    assertTrue(gone.getMessage().contains("'a'"), gone.getMessage());
    PendingLabels.Case c = pending.join("c");
    assertEquals(3, c.features()[0]);
    assertEquals(9, c.version());
    assertThrows(InputException.class, () -> pending.join("c"));
    pending.putBack("c", c);
    assertEquals(0, pending.joined());
    assertEquals(c, pending.join("c"));
    assertThrows(InputException.class, () -> pending.remember("", new float[1], 1));
    assertThrows(InputException.class, () -> pending.remember("x".repeat(1001), new float[1], 1));
    assertEquals(1, pending.waiting());
    assertEquals(1, pending.joined());
    assertEquals(1, pending.expired());
    assertEquals(2, pending.unknown());
  }
}
