package org.espalier.cli;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.SocketChannel;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicLong;
import org.eclipse.jetty.http.HttpException;
import org.eclipse.jetty.http.HttpHeader;
import org.eclipse.jetty.http.HttpStatus;
import org.eclipse.jetty.io.Content;
import org.eclipse.jetty.io.EndPoint;
import org.eclipse.jetty.io.EofException;
import org.eclipse.jetty.io.ManagedSelector;
import org.eclipse.jetty.io.SocketChannelEndPoint;
import org.eclipse.jetty.server.Handler;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Request;
import org.eclipse.jetty.server.Response;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.server.handler.ErrorHandler;
import org.eclipse.jetty.server.handler.GracefulHandler;
import org.eclipse.jetty.util.Callback;
import org.eclipse.jetty.util.thread.Invocable;
import org.eclipse.jetty.util.thread.QueuedThreadPool;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Jetty, set up so that slow clients cost next to nothing: a request takes one of the threads when it is whole,
 * until its answer is made. Jetty bounds neither the time of a request that trickles nor the memory of all
 * bodies together, so that is done here; where there is no more room, who has been slow for longest goes.
 */
final class HttpListener implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(HttpListener.class);
  private static final int MOST_HEAD = 16 << 10;
  private static final int BACKLOG = 1024;

  /** Pieces of a body that are read before others have their turn. */
  private static final int TURN = 16;

  private static final long TICK_MILLIS = 200;
  private static final Map<String, String> LAST = Map.of("Connection", "close");
  private static final Duration IDLE = Duration.ofSeconds(30);
  private static final Duration LINGER = Duration.ofSeconds(2);

  /** How long answers that are under way are waited for at the end. */
  private static final Duration LAST_ANSWERS = Duration.ofSeconds(5);

  /** Who makes the answers. */
  interface Responder {
    /** Looks at a request whose body is yet to come, in a thread that reads: it must not wait. */
    void admit(Request head) throws HttpRefusal;

    /** Answers a request, in one of several threads. */
    Answer answer(Request request, byte[] body) throws HttpRefusal;

    /** The answer to a request that was refused. */
    Answer refuse(HttpRefusal refusal);
  }

  /** An answer; {@code type} is that of the body. */
  record Answer(int status, String type, Map<String, String> headers, byte[] body) {}

  /**
   * @param body bytes of a request's body
   * @param connections at once
   * @param buffered bytes of bodies that are not answered, of all connections; at least twice {@code body}
   * @param threads that make answers
   * @param patience from the first byte of a request to its last, and as much until its answer is taken
   */
  record Limits(int body, int connections, long buffered, int threads, Duration patience) {}

  /** What a connection does. */
  private enum Phase {
    /** Nothing of a request has come. */
    IDLE,
    READING,
    /** The answer is being made. */
    ANSWERING,
    WRITING,
    /** A refusal is sent; what the client still sends is thrown away, so that it destroys no answer. */
    REFUSING
  }

  private final Limits limits;
  private final Responder responder;
  private final QueuedThreadPool pool;
  private final Server server;
  private final GracefulHandler graceful = new GracefulHandler(new Exchanges());
  private final ServerConnector connector;
  private final AtomicLong held = new AtomicLong();

  HttpListener(InetSocketAddress address, Limits limits, Responder responder) throws IOException {
    this.limits = limits;
    this.responder = responder;
    pool = new QueuedThreadPool(limits.threads() + 2, 2); // one accepts, one selects
    pool.setName("espalier-http");
    pool.setDaemon(true);
    pool.setReservedThreads(0);
    pool.setStopTimeout(LAST_ANSWERS.toMillis());
    server = new Server(pool);
    server.setDynamic(false); // so that Jetty may read for all clients in one thread
    server.setHandler(graceful);
    server.setErrorHandler(this::refuseForJetty);
    HttpConfiguration http = new HttpConfiguration();
    http.setSendServerVersion(false);
    http.setRequestHeaderSize(MOST_HEAD);
    connector = new Connector(new HttpConnectionFactory(http));
    connector.setHost(address.getAddress().getHostAddress());
    connector.setPort(address.getPort());
    connector.setAcceptQueueSize(BACKLOG);
    connector.setIdleTimeout(0); // any byte would prolong it, and expire() is stricter
    server.addConnector(connector);
    try {
      server.start();
    } catch (Exception e) {
      stop();
      throw e.getCause() instanceof IOException cause ? cause : new IOException(e.getMessage(), e);
    }
    expire();
  }

  int port() {
    return connector.getLocalPort();
  }

  /** Answers where Jetty refuses, which it does with what it cannot understand. */
  private boolean refuseForJetty(Request request, Response response, Callback callback) {
    Object cause = request.getAttribute(ErrorHandler.ERROR_EXCEPTION);
    if (cause instanceof EofException gone) {
      callback.failed(gone);
      return true;
    }
    HttpRefusal refusal =
        cause instanceof HttpException e
            ? refusal(e.getCode(), e.getReason())
            : refusal(response.getStatus(), null);
    write(response, responder.refuse(refusal), callback);
    return true;
  }

  private static HttpRefusal refusal(int status, String reason) {
    return switch (status) {
      case 426, 505 -> new HttpRefusal(505, "HTTP/1.1 is right here");
      case 431 -> new HttpRefusal(431, "the headers have more than " + MOST_HEAD + " bytes");
      case 500 -> new HttpRefusal(500, "this is an error of the service; its log says more");
      case 503 -> new HttpRefusal(503, "the service is ending", Map.of("Retry-After", "1"));
      default ->
          new HttpRefusal(
              status,
              "the request is malformed: "
                  + (reason == null ? HttpStatus.getMessage(status) : reason));
    };
  }

  private static void write(Response response, Answer answer, Callback callback) {
    response.setStatus(answer.status());
    answer.headers().forEach(response.getHeaders()::put);
    response.getHeaders().put(HttpHeader.CONTENT_TYPE, answer.type());
    response.write(true, ByteBuffer.wrap(answer.body()), callback);
  }

  private final class Connector extends ServerConnector {
    Connector(HttpConnectionFactory factory) {
      super(HttpListener.this.server, 1, 1, factory);
    }

    @Override
    protected SocketChannelEndPoint newEndPoint(
        SocketChannel channel, ManagedSelector selector, SelectionKey key) {
      return new Client(channel, selector, key);
    }

    @Override
    protected void onEndPointOpened(EndPoint client) {
      super.onEndPointOpened(client);
      if (getConnectedEndPoints().size() > limits.connections()) {
        dropSlowest(false);
      }
    }
  }

  /** A connection. */
  private final class Client extends SocketChannelEndPoint {
    private final AtomicLong holds = new AtomicLong();
    private volatile Phase phase = Phase.IDLE;

    /** When the phase began. */
    private volatile long since = System.nanoTime();

    Client(SocketChannel channel, ManagedSelector selector, SelectionKey key) {
      super(channel, selector, key, connector.getScheduler());
    }

    void enter(Phase next) {
      since = System.nanoTime();
      phase = next;
    }

    /** A request has begun. */
    void begin() {
      if (phase == Phase.IDLE) {
        enter(Phase.READING);
      }
    }

    @Override
    public int fill(ByteBuffer buffer) throws IOException {
      int filled = super.fill(buffer);
      if (filled > 0) {
        begin();
      }
      return filled;
    }

    /** Counts bytes of a body that is kept. */
    void hold(int bytes) {
      holds.addAndGet(bytes);
      held.addAndGet(bytes);
    }

    void release() {
      held.addAndGet(-holds.getAndSet(0));
    }

    @Override
    public void onClose(Throwable cause) {
      release();
      super.onClose(cause);
    }
  }

  private final class Exchanges extends Handler.Abstract.NonBlocking {
    @Override
    public boolean handle(Request request, Response response, Callback callback) {
      new Exchange(request, response, callback).begin();
      return true;
    }
  }

  /** A request and its answer. */
  private final class Exchange implements Invocable.Task {
    private final Request request;
    private final Response response;
    private final Callback callback;
    private final Client client;

    /** Null where what comes is thrown away. */
    private ByteArrayOutputStream body = new ByteArrayOutputStream();

    Exchange(Request request, Response response, Callback callback) {
      this.request = request;
      this.response = response;
      this.callback = callback;
      this.client = (Client) request.getConnectionMetaData().getConnection().getEndPoint();
    }

    void begin() {
      client.begin();
      try {
        responder.admit(request);
        String encoding = request.getHeaders().get(HttpHeader.TRANSFER_ENCODING);
        if (encoding != null && !encoding.equalsIgnoreCase("chunked")) {
          throw new HttpRefusal(501, "of transfer encodings there is chunked only", LAST);
        }
        checkSize(request.getLength());
      } catch (HttpRefusal e) {
        pool.execute(() -> refuse(e)); // who sends one after another takes turns with the others
        return;
      }
      run();
    }

    private void checkSize(long bytes) throws HttpRefusal {
      if (bytes > limits.body()) {
        throw new HttpRefusal(413, "the request has more than " + limits.body() + " bytes", LAST);
      }
    }

    @Override
    public InvocationType getInvocationType() {
      return InvocationType.NON_BLOCKING;
    }

    /** Reads what there is of the body, in turns with the others. */
    @Override
    public void run() {
      for (int i = 0; i < TURN; i++) {
        Content.Chunk chunk = request.read();
        if (chunk == null) {
          request.demand(this);
          return;
        }
        if (Content.Chunk.isFailure(chunk)) {
          fail(chunk.getFailure());
          return;
        }
        try {
          if (body != null) {
            keep(chunk.getByteBuffer());
          }
        } catch (HttpRefusal e) {
          refuse(e);
          return;
        } finally {
          chunk.release();
        }
        if (chunk.isLast()) {
          end();
          return;
        }
      }
      pool.execute(this);
    }

    /** Copies: Jetty's own buffers may be large for the few bytes that a slow client sends. */
    private void keep(ByteBuffer bytes) throws HttpRefusal {
      int size = bytes.remaining();
      checkSize((long) body.size() + size);
      byte[] copy = new byte[size];
      bytes.get(copy);
      body.write(copy, 0, size);
      client.hold(size);
      while (held.get() > limits.buffered() && dropSlowest(true)) {}
    }

    private void end() {
      if (body == null) {
        succeed();
      } else {
        client.enter(Phase.ANSWERING);
        pool.execute(this::answer);
      }
    }

    private void answer() {
      Answer answer;
      try {
        answer = responder.answer(request, body.toByteArray());
      } catch (HttpRefusal e) {
        answer = responder.refuse(e);
      } catch (RuntimeException | Error e) {
        LOG.error("a request failed", e);
        answer = responder.refuse(refusal(500, null));
      }
      body = null;
      client.release();
      client.enter(Phase.WRITING);
      write(response, answer, Callback.from(this::succeed, this::lose));
    }

    private void refuse(HttpRefusal e) {
      body = null;
      client.release();
      client.enter(Phase.REFUSING);
      // Who waits to be asked for the body will not send it.
      boolean sends = !request.getHeaders().contains(HttpHeader.EXPECT);
      write(response, responder.refuse(e), Callback.from(sends ? this : this::succeed, this::lose));
    }

    private void fail(Throwable failure) {
      client.release();
      if (body != null && failure instanceof HttpException e) {
        client.enter(Phase.REFUSING);
        Answer answer =
            responder.refuse(refusal(e.getCode(), "its body ends too early or is no chunks"));
        write(response, answer, Callback.from(() -> callback.failed(failure), this::lose));
      } else {
        lose(failure);
      }
    }

    /** The client is gone, which is no matter for the log. */
    private void lose(Throwable failure) {
      callback.failed(new EofException(failure));
    }

    private void succeed() {
      client.enter(Phase.IDLE);
      callback.succeeded();
    }
  }

  /** Closes connections whose clients took too long, and does so again later. */
  private void expire() {
    try {
      long now = System.nanoTime();
      for (EndPoint endPoint : connector.getConnectedEndPoints()) {
        Client client = (Client) endPoint;
        Duration most =
            switch (client.phase) {
              case IDLE -> IDLE;
              case READING, WRITING -> limits.patience();
              case REFUSING -> LINGER;
              case ANSWERING -> null; // it waits for us
            };
        if (most != null && now - client.since > most.toNanos()) {
          client.close();
        }
      }
    } finally {
      connector.getScheduler().schedule(this::expire, TICK_MILLIS, TimeUnit.MILLISECONDS);
    }
  }

  /**
   * Makes room.
   *
   * @param ofMemory of a connection that holds some
   * @return whether there was a connection to drop
   */
  private boolean dropSlowest(boolean ofMemory) {
    Client slowest = null;
    for (EndPoint endPoint : connector.getConnectedEndPoints()) {
      Client client = (Client) endPoint;
      if (client.isOpen()
          && client.phase != Phase.ANSWERING
          && (!ofMemory || client.holds.get() > 0)
          && (slowest == null || client.since - slowest.since < 0)) {
        slowest = client;
      }
    }
    if (slowest != null) {
      slowest.close();
    }
    return slowest != null;
  }

  /** Ends when the answers that are under way were given, but waits for them for five seconds at most. */
  @Override
  public void close() {
    try {
      graceful.shutdown().get(LAST_ANSWERS.toMillis(), TimeUnit.MILLISECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    } catch (ExecutionException | TimeoutException e) {
      LOG.warn("requests that took too long were not answered any more");
    }
    stop();
  }

  private void stop() {
    try {
      server.stop();
    } catch (Exception e) {
      LOG.warn("the service did not end as it should", e);
    }
  }
}
