package org.espalier.cli;

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A server of HTTP/1.1 that slow clients cost next to nothing. One thread reads and writes for all of them, as
 * much as there is at the moment; a request takes one of the working threads when it is whole, until its
 * answer is made. Connections and the memory of what they sent are bounded: where there is no more room,
 * who has been slow for longest goes.
 *
 * <p>A request has 10 seconds from its first byte to its last, an answer as many to be taken, and a connection
 * without a request 30.
 */
final class HttpListener implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(HttpListener.class);
  private static final long SECOND = 1_000_000_000L;
  private static final long REQUEST_NANOS = 10 * SECOND;
  private static final long IDLE_NANOS = 30 * SECOND;

  /** How long a connection that ends waits for its client, so that what that sends destroys no answer. */
  private static final long LINGER_NANOS = 2 * SECOND;

  /** How long answers that are under way are waited for at the end. */
  private static final long LAST_ANSWERS_NANOS = 5 * SECOND;

  private static final long TICK_MILLIS = 200;
  private static final int BACKLOG = 1024;
  private static final ByteBuffer CONTINUE =
      ByteBuffer.wrap("HTTP/1.1 100 Continue\r\n\r\n".getBytes(StandardCharsets.US_ASCII));

  /** Who makes the answers. */
  interface Handler {
    /** Looks at a request whose body is yet to come, in the one thread that reads: it must not wait. */
    void admit(HttpRequest head) throws HttpRefusal;

    /** Answers a request, in one of several threads; where it throws, the connection ends. */
    HttpAnswer answer(HttpRequest request);

    /** The answer to a request that was refused here. */
    HttpAnswer refuse(HttpRefusal refusal);
  }

  /**
   * @param body bytes of a request's body
   * @param connections at once
   * @param buffered bytes of requests that are not answered, of all connections; at least twice {@code body}
   * @param threads that make answers
   */
  record Limits(int body, int connections, long buffered, int threads) {}

  private enum State {
    /** Nothing of a request has come. */
    IDLE,
    READING,
    /** The answer is being made. */
    BUSY,
    WRITING,
    /** The last answer was sent; what the client still sends is thrown away. */
    LINGERING
  }

  /** A client. Touched by the reading thread alone, but for the answer that a working thread leaves. */
  private final class Connection {
    final SocketChannel channel;
    SelectionKey key;
    State state = State.IDLE;

    /** When the state began. */
    long since = System.nanoTime();

    HttpReader reader = new HttpReader(limits.body());
    boolean admitted;

    /** What came behind a request, or null. */
    ByteBuffer rest;

    ByteBuffer out;
    boolean last;
    long held;

    /** Written by a working thread before the connection is queued; null where there is none. */
    HttpAnswer answer;

    Connection(SocketChannel channel) {
      this.channel = channel;
    }

    void enter(State next, int interest) {
      state = next;
      since = System.nanoTime();
      key.interestOps(interest);
    }
  }

  private final Limits limits;
  private final Handler handler;
  private final ServerSocketChannel server;
  private final Selector selector;
  private final SelectionKey accepting;
  private final Thread thread;
  private final ThreadPoolExecutor pool;
  private final Set<Connection> connections = new LinkedHashSet<>();
  private final Queue<Connection> answered = new ConcurrentLinkedQueue<>();

  /** Connections with bytes of a further request. */
  private final Queue<Connection> further = new ConcurrentLinkedQueue<>();

  private final ByteBuffer input = ByteBuffer.allocateDirect(64 << 10);
  private long held;
  private long looked = System.nanoTime();
  private volatile boolean ending;
  private volatile long end;

  HttpListener(InetSocketAddress address, Limits limits, Handler handler) throws IOException {
    this.limits = limits;
    this.handler = handler;
    selector = Selector.open();
    try {
      server = ServerSocketChannel.open();
      try {
        server.bind(address, BACKLOG);
        server.configureBlocking(false);
        accepting = server.register(selector, SelectionKey.OP_ACCEPT);
      } catch (IOException | RuntimeException e) {
        server.close();
        throw e;
      }
    } catch (IOException | RuntimeException e) {
      selector.close();
      throw e;
    }
    pool =
        new ThreadPoolExecutor(
            limits.threads(),
            limits.threads(),
            60,
            TimeUnit.SECONDS,
            new LinkedBlockingQueue<>(), // one request of each connection at most
            task -> daemon(task, "espalier-answer"));
    pool.allowCoreThreadTimeOut(true);
    thread = daemon(this::run, "espalier-http");
    thread.start();
  }

  private static Thread daemon(Runnable task, String name) {
    Thread thread = new Thread(task, name);
    thread.setDaemon(true);
    return thread;
  }

  int port() {
    return server.socket().getLocalPort();
  }

  private void run() {
    try {
      while (!ending || System.nanoTime() < end && isUnderWay()) {
        selector.select(this::ready, ending ? 10 : TICK_MILLIS);
        // New ones of both queues wait for the next round, so that all connections have their turn.
        for (int n = answered.size(); n > 0; n--) {
          Connection connection = answered.remove();
          if (connection.answer == null) {
            drop(connection);
          } else {
            guarded(connection, () -> respond(connection, connection.answer, false));
          }
        }
        for (int n = further.size(); n > 0; n--) {
          Connection connection = further.remove();
          guarded(connection, () -> readFurther(connection));
        }
        if (!further.isEmpty()) {
          selector.wakeup();
        }
        expire();
      }
    } catch (IOException | RuntimeException e) {
      LOG.error("the service can listen no more", e);
    } finally {
      List.copyOf(connections).forEach(this::drop);
      try {
        selector.close();
        server.close();
      } catch (IOException e) {
        LOG.warn("a socket could not be closed", e);
      }
    }
  }

  /** Whether somebody was promised an answer. */
  private boolean isUnderWay() {
    for (Connection connection : connections) {
      boolean reading = connection.state == State.READING && connection.admitted;
      if (reading || connection.state == State.BUSY || connection.state == State.WRITING) {
        return true;
      }
    }
    return false;
  }

  private interface Step {
    void run() throws IOException;
  }

  /** What goes wrong with one connection is the end of that one only. */
  private void guarded(Connection connection, Step step) {
    try {
      if (connection.channel.isOpen()) {
        step.run();
      }
    } catch (IOException e) {
      drop(connection); // the client is gone
    } catch (RuntimeException e) {
      LOG.error("a connection failed", e);
      drop(connection);
    }
  }

  private void ready(SelectionKey key) {
    if (key == accepting) {
      accept();
      return;
    }
    Connection connection = (Connection) key.attachment();
    guarded(
        connection,
        () -> {
          if (key.isReadable()) {
            read(connection);
          }
          if (key.isValid() && key.isWritable()) {
            write(connection);
          }
        });
  }

  private void accept() {
    try {
      for (SocketChannel channel = server.accept(); channel != null; channel = server.accept()) {
        Connection connection = new Connection(channel);
        try {
          channel.configureBlocking(false);
          channel.setOption(StandardSocketOptions.TCP_NODELAY, true);
          connection.key = channel.register(selector, SelectionKey.OP_READ, connection);
        } catch (IOException e) {
          channel.close(); // the client is gone
          continue;
        }
        connections.add(connection);
        if (connections.size() > limits.connections()) {
          dropSlowest(false);
        }
      }
    } catch (IOException e) {
      // The process has no more files; a connection that ends gives one back.
      LOG.warn("a connection could not be accepted: {}", e.getMessage());
      dropSlowest(false);
      accepting.interestOps(0); // until the next look at all connections
    }
  }

  /**
   * Makes room.
   *
   * @param ofMemory of a connection that holds some
   * @return whether there was a connection to drop
   */
  private boolean dropSlowest(boolean ofMemory) {
    Connection slowest = null;
    for (Connection connection : connections) {
      if (connection.state != State.BUSY
          && (!ofMemory || connection.held > 0)
          && (slowest == null || connection.since - slowest.since < 0)) {
        slowest = connection;
      }
    }
    if (slowest != null) {
      drop(slowest);
    }
    return slowest != null;
  }

  private void drop(Connection connection) {
    connections.remove(connection);
    hold(connection, 0);
    try {
      connection.channel.close();
    } catch (IOException e) {
      LOG.debug("a connection could not be closed", e);
    }
  }

  private void hold(Connection connection, long bytes) {
    held += bytes - connection.held;
    connection.held = bytes;
  }

  private void read(Connection connection) throws IOException {
    input.clear();
    if (connection.channel.read(input) < 0) {
      drop(connection);
    } else if (connection.state != State.LINGERING) {
      take(connection, input.flip());
    }
  }

  private void readFurther(Connection connection) throws IOException {
    ByteBuffer rest = connection.rest;
    connection.rest = null;
    take(connection, rest);
  }

  private void take(Connection connection, ByteBuffer bytes) throws IOException {
    HttpReader reader = connection.reader;
    if (connection.state == State.IDLE) {
      connection.enter(State.READING, SelectionKey.OP_READ);
    }
    try {
      HttpReader.Progress progress = reader.take(bytes);
      if (progress == HttpReader.Progress.HEAD) {
        if (!admit(connection, bytes)) {
          return;
        }
        progress = reader.take(bytes);
      }
      boolean whole = progress == HttpReader.Progress.WHOLE;
      keepRest(connection, bytes);
      while (held > limits.buffered() && dropSlowest(true)) {
        if (!connection.channel.isOpen()) {
          return;
        }
      }
      if (whole) {
        answer(connection, reader.request());
      }
    } catch (HttpRefusal e) {
      respond(connection, handler.refuse(e), true);
    }
  }

  private void keepRest(Connection connection, ByteBuffer bytes) {
    if (bytes.hasRemaining()) {
      connection.rest = ByteBuffer.allocate(bytes.remaining()).put(bytes).flip();
    }
    hold(
        connection,
        connection.reader.held() + (connection.rest == null ? 0 : connection.rest.capacity()));
  }

  /** Whether the body is to be read. */
  private boolean admit(Connection connection, ByteBuffer bytes) throws IOException, HttpRefusal {
    HttpRequest head = connection.reader.request();
    try {
      handler.admit(head);
    } catch (HttpRefusal e) {
      // Where the body is here already it stands in nobody's way.
      boolean whole = connection.reader.take(bytes) == HttpReader.Progress.WHOLE;
      keepRest(connection, bytes);
      respond(connection, handler.refuse(e), !whole);
      return false;
    }
    connection.admitted = true;
    boolean waits = "100-continue".equalsIgnoreCase(head.headers().get("expect"));
    if (waits && !bytes.hasRemaining()) {
      connection.channel.write(CONTINUE.duplicate()); // an empty buffer has room for it
    }
    return true;
  }

  private void answer(Connection connection, HttpRequest request) {
    connection.enter(State.BUSY, 0);
    pool.execute(
        () -> {
          HttpAnswer answer = null;
          try {
            answer = handler.answer(request);
          } catch (RuntimeException | Error e) {
            LOG.error("a request failed", e);
          } finally {
            connection.answer = answer;
            answered.add(connection);
            selector.wakeup();
          }
        });
  }

  private void respond(Connection connection, HttpAnswer answer, boolean last) throws IOException {
    HttpRequest request = connection.reader.request();
    boolean head = request != null && request.method().equals("HEAD");
    connection.last = last || ending || request == null || !request.keepsAlive();
    connection.out = answer.encode(head, connection.last);
    connection.answer = null;
    connection.enter(State.WRITING, SelectionKey.OP_WRITE);
    write(connection);
  }

  private void write(Connection connection) throws IOException {
    connection.channel.write(connection.out);
    if (connection.out.hasRemaining()) {
      return;
    }
    connection.out = null;
    if (connection.last) {
      connection.rest = null;
      hold(connection, 0);
      connection.channel.shutdownOutput();
      connection.enter(State.LINGERING, SelectionKey.OP_READ);
      return;
    }
    connection.reader = new HttpReader(limits.body());
    connection.admitted = false;
    if (connection.rest == null) {
      hold(connection, 0);
      connection.enter(State.IDLE, SelectionKey.OP_READ);
    } else {
      connection.enter(State.IDLE, 0);
      further.add(connection);
    }
  }

  private void expire() {
    long now = System.nanoTime();
    if (now - looked < TICK_MILLIS * 1_000_000) {
      return;
    }
    looked = now;
    accepting.interestOps(SelectionKey.OP_ACCEPT);
    for (Connection connection : new ArrayList<>(connections)) {
      long age = now - connection.since;
      switch (connection.state) {
        case IDLE -> {
          if (age > IDLE_NANOS) {
            drop(connection);
          }
        }
        case READING -> {
          if (age > REQUEST_NANOS) {
            HttpRefusal late = new HttpRefusal(408, "the request took too long");
            guarded(connection, () -> respond(connection, handler.refuse(late), true));
          }
        }
        case WRITING -> {
          if (age > REQUEST_NANOS) {
            drop(connection);
          }
        }
        case LINGERING -> {
          if (age > LINGER_NANOS) {
            drop(connection);
          }
        }
        case BUSY -> {}
      }
    }
  }

  /** Ends when the answers that are under way were given, but waits for them for five seconds at most. */
  @Override
  public void close() {
    end = System.nanoTime() + LAST_ANSWERS_NANOS;
    ending = true;
    selector.wakeup();
    boolean interrupted = false;
    while (thread.isAlive()) {
      try {
        thread.join();
      } catch (InterruptedException e) {
        interrupted = true;
        end = System.nanoTime();
      }
    }
    pool.shutdownNow();
    try {
      pool.awaitTermination(5, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      interrupted = true;
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
  }
}
