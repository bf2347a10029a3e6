package org.espalier.online;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.espalier.InputException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A bounded queue in front of an {@link OnlineLearner}, and the thread that learns from it. Any number
 * of threads submit. Plain calls, or {@link Flow}.
 */
public final class OnlineStream implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(OnlineStream.class);

  /** What {@link #submit} does when the queue is full. */
  public enum WhenFull {
    /** It waits. */
    BLOCK,
    /** The oldest example in the queue is dropped and counted. */
    DROP_OLDEST,
    /** The new example is refused and counted. */
    REJECT
  }

  private final OnlineLearner learner;
  private final WhenFull whenFull;
  private final BlockingQueue<Example> queue;
  private final long lingerNanos;
  private final Thread thread;
  private final AtomicLong dropped = new AtomicLong();
  private final AtomicLong rejected = new AtomicLong();
  private final AtomicLong accepted = new AtomicLong();
  private volatile boolean closing;

  /** Whether the thread looks into the queue for the last time. */
  private volatile boolean ending;

  private volatile Throwable failure;

  /**
   * Starts the learning thread.
   *
   * @param capacity of the queue, at least 1
   * @param linger how long the first example of a batch waits for others
   */
  public OnlineStream(OnlineLearner learner, int capacity, WhenFull whenFull, Duration linger) {
    if (capacity < 1) {
      throw new IllegalArgumentException("capacity " + capacity + "; at least 1 is right");
    }
    this.learner = Objects.requireNonNull(learner, "learner");
    this.whenFull = Objects.requireNonNull(whenFull, "whenFull");
    this.queue = new ArrayBlockingQueue<>(capacity);
    this.lingerNanos = linger.toNanos();
    this.thread = new Thread(this::run, "espalier-learner");
    thread.setDaemon(true);
    thread.start();
  }

  /**
   * Queues an example.
   *
   * @return false where it was refused because the queue is full
   * @throws InputException if it does not fit the model
   * @throws IllegalStateException if the stream is closed, or learning has failed
   */
  public boolean submit(Example example) {
    learner.check(example);
    boolean done = false;
    while (!done) {
      if (failure != null) {
        throw new IllegalStateException("learning has failed", failure);
      }
      if (closing) {
        throw new IllegalStateException("the stream is closed");
      }
      done = queue.offer(example);
      if (done) {
        break;
      }
      switch (whenFull) {
        case REJECT -> {
          rejected.incrementAndGet();
          return false;
        }
        case DROP_OLDEST -> {
          if (queue.poll() != null) {
            dropped.incrementAndGet();
          }
        }
        case BLOCK -> {
          try {
            // In pieces, so that a failure of the learner is noticed.
            done = queue.offer(example, 50, TimeUnit.MILLISECONDS);
          } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted while the queue was full", e);
          }
        }
      }
    }
    // The thread may have ended between the look at closing and the offer.
    if (ending && queue.remove(example)) {
      throw new IllegalStateException("the stream is closed");
    }
    accepted.incrementAndGet();
    return true;
  }

  /** Whether learning has failed: nothing is learned any more, and {@link #submit} throws. */
  public boolean isFailed() {
    return failure != null;
  }

  /**
   * A subscriber that submits what it gets and asks for more when it has. Examples that do not fit the
   * model are refused and counted.
   */
  public Flow.Subscriber<Example> subscriber() {
    return new Flow.Subscriber<>() {
      private Flow.Subscription subscription;

      @Override
      public void onSubscribe(Flow.Subscription given) {
        if (subscription != null) {
          given.cancel(); // rule 2.5 of Reactive Streams
          return;
        }
        subscription = given;
        subscription.request(Math.max(1, queue.remainingCapacity()));
      }

      @Override
      public void onNext(Example example) {
        try {
          submit(example);
        } catch (InputException e) {
          rejected.incrementAndGet();
        } catch (IllegalStateException e) {
          subscription.cancel();
          return;
        }
        subscription.request(1);
      }

      @Override
      public void onError(Throwable error) {
        LOG.warn("the publisher of examples has failed; no more come from it", error);
      }

      @Override
      public void onComplete() {}
    };
  }

  private void run() {
    try {
      List<Example> batch = new ArrayList<>();
      int size = learner.settings().batch();
      while (true) {
        Example first = ending ? queue.poll() : queue.poll(20, TimeUnit.MILLISECONDS);
        if (first == null) {
          if (ending) {
            return;
          }
          ending = closing;
          continue;
        }
        batch.add(first);
        queue.drainTo(batch, size - 1);
        long deadline = System.nanoTime() + lingerNanos;
        while (batch.size() < size && !closing) {
          Example next = queue.poll(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
          if (next == null) {
            break;
          }
          batch.add(next);
          queue.drainTo(batch, size - batch.size());
        }
        learner.learn(batch);
        batch.clear();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } catch (Throwable e) {
      failure = e;
      LOG.error("learning has failed", e);
    }
  }

  /** Examples that wait. */
  public int waiting() {
    return queue.size();
  }

  /** Examples that were queued. */
  public long accepted() {
    return accepted.get();
  }

  /** Examples that left the queue unlearned because newer ones came. */
  public long dropped() {
    return dropped.get();
  }

  /** Examples that were refused. */
  public long rejected() {
    return rejected.get();
  }

  /**
   * Refuses new examples, learns those that wait, and ends the thread.
   *
   * @throws IllegalStateException if learning has failed, or in a listener of the learner's events: the thread
   *     cannot wait for its own end
   */
  @Override
  public void close() {
    if (Thread.currentThread() == thread) {
      throw new IllegalStateException(
          "the thread that learns cannot close its stream: a listener has another thread do it");
    }
    closing = true;
    boolean interrupted = false;
    while (thread.isAlive()) {
      try {
        thread.join();
      } catch (InterruptedException e) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    if (failure != null) {
      throw new IllegalStateException("learning has failed", failure);
    }
  }
}
