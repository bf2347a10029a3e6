package org.espalier.cli;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.micrometer.core.instrument.Counter;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.Timer;
import io.micrometer.prometheusmetrics.PrometheusConfig;
import io.micrometer.prometheusmetrics.PrometheusMeterRegistry;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.Semaphore;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.espalier.InputException;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.Learnable;
import org.espalier.online.LearnerFiles;
import org.espalier.online.LearnerMetrics;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineStream;
import org.espalier.online.PendingLabels;
import org.espalier.online.Prediction;
import org.espalier.online.Quarantine;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The HTTP service of {@link Serve}. */
final class Service implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(Service.class);

  /** Requests that are read and answered at once: those of slow clients take a thread and no more. */
  private static final int THREADS = 256;

  /** Predictions that are computed at once. */
  private static final int PREDICTIONS = 8;

  /** How long a client may take to send a request, and to take the answer. */
  private static final int REQUEST_SECONDS = 10;

  private static final Duration PATIENCE = Duration.ofSeconds(10);

  /** How long it waits for answers that are on their way when it ends. */
  private static final long LAST_ANSWERS_NANOS = 5_000_000_000L;

  private static final int QUEUE = 10_000;

  private static final ObjectMapper JSON =
      new ObjectMapper(
              JsonFactory.builder()
                  .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                  .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(8).build())
                  .build())
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  static {
    // Otherwise an answer waits 40 ms for the acknowledgement of its header.
    System.setProperty("sun.net.httpserver.nodelay", "true");
    // Otherwise a client that sends nothing keeps its thread for ever.
    System.setProperty("sun.net.httpserver.maxReqTime", Integer.toString(REQUEST_SECONDS));
    System.setProperty("sun.net.httpserver.maxRspTime", Integer.toString(REQUEST_SECONDS));
  }

  /**
   * @param bytes of a request
   * @param rate requests a second
   * @param pending predictions whose outcome is waited for
   * @param publishEvery examples between two versions of the store
   * @param learn whether feedback is learned
   */
  record Limits(int bytes, double rate, int pending, long publishEvery, boolean learn) {}

  /** A refusal with its status. */
  private static final class Refusal extends Exception {
    private static final long serialVersionUID = 1L;
    final int status;

    Refusal(int status, String message) {
      super(message);
      this.status = status;
    }
  }

  /** Of a model that nobody learned and nobody will: its outputs are what it says. */
  private static final OnlineRecipe FROZEN =
      OnlineRecipe.parse("loss: squared\nlearning-rate: 0.1\nbatch: 1", "serve --no-learn");

  private final ModelStore store;
  private final Limits limits;
  private final byte[] token;
  private final OnlineRecipe recipe;
  private final Learnable model;
  private final OnlineLearner learner;
  private final LearnerVersions versions;
  private final OnlineStream stream;
  private final ExampleLines parser;
  private final PendingLabels pending;
  private final PrometheusMeterRegistry registry =
      new PrometheusMeterRegistry(PrometheusConfig.DEFAULT);
  private final Timer predictions;
  private final Counter refusals;
  private final ThreadPoolExecutor pool =
      new ThreadPoolExecutor(
          THREADS,
          THREADS,
          60,
          TimeUnit.SECONDS,
          new LinkedBlockingQueue<>(),
          task -> daemon(task, "espalier-http"));
  private final Semaphore computing = new Semaphore(PREDICTIONS);
  private final AtomicInteger underWay = new AtomicInteger();
  private volatile boolean ending;
  private final ScheduledExecutorService clock =
      Executors.newSingleThreadScheduledExecutor(task -> daemon(task, "espalier-store"));
  private HttpServer server;
  private long publishedAt;

  /** Before this nothing is done with the store, which could not be used the last time. */
  private long nextTry = System.nanoTime();

  private double allowance;
  private long lastRequest = System.nanoTime();

  /**
   * @param given how to learn, where no learner made the version; may be null where one did
   * @param quarantine where examples go that the guard takes out, or null; the caller closes it
   */
  Service(
      ModelStore store,
      Limits limits,
      String token,
      OnlineRecipe given,
      SigningKey signing,
      Quarantine quarantine) {
    this.store = store;
    this.limits = limits;
    this.token = token == null ? null : token.getBytes(StandardCharsets.UTF_8);
    this.allowance = Math.max(1, limits.rate());
    pool.allowCoreThreadTimeOut(true);
    try (ModelStore.Held held = store.holdCurrent()) {
      boolean learned = LearnerFiles.isLearned(held);
      if (!learned && given == null && limits.learn()) {
        throw new InputException(
            "no learner made version "
                + held.version().id()
                + " of "
                + store.folder()
                + ": --recipe says how it is to learn, --no-learn that it is not");
      }
      recipe = learned ? LearnerFiles.recipe(held) : given != null ? given : FROZEN;
      model = LearnerFiles.readModel(held, recipe);
      try {
        learner = new OnlineLearner(model, recipe.settings());
      } catch (IllegalArgumentException e) {
        throw new InputException("the recipe does not fit the model: " + e.getMessage(), e);
      }
      if (learned) {
        LearnerFiles.load(learner, held);
      }
      versions =
          new LearnerVersions(store, learner, recipe, signing, held.version().id(), LOG::info);
    }
    if (limits.learn()) {
      versions.account();
      learner.checkBudget();
    }
    publishedAt = learner.seen();
    learner.quarantine(quarantine);
    parser = new ExampleLines(learner);
    int most = PendingLabels.capacity(limits.pending(), learner.features());
    if (most < limits.pending()) {
      LOG.warn("{} predictions wait for their outcome at most: more would fill the memory", most);
    }
    pending = new PendingLabels(most);
    stream =
        limits.learn()
            ? new OnlineStream(
                learner,
                PendingLabels.capacity(QUEUE, learner.features()),
                OnlineStream.WhenFull.REJECT,
                Duration.ofMillis(20))
            : null;
    new LearnerMetrics(learner).bindTo(registry);
    predictions =
        Timer.builder("espalier.predict")
            .description("Time of a prediction request")
            .publishPercentiles(0.5, 0.99, 0.999)
            .register(registry);
    refusals =
        Counter.builder("espalier.refused").description("Refused requests").register(registry);
    Gauge.builder("espalier.pending", pending, PendingLabels::waiting).register(registry);
    Gauge.builder("espalier.store.version", this, Service::storeVersion).register(registry);
  }

  private static Thread daemon(Runnable task, String name) {
    Thread thread = new Thread(task, name);
    thread.setDaemon(true);
    return thread;
  }

  long storeVersion() {
    return versions.current();
  }

  /** Starts to listen and returns the port. */
  int start(InetSocketAddress address) {
    try {
      server = HttpServer.create(address, 0);
    } catch (IOException e) {
      throw InputException.of(
          "cannot listen at " + address.getHostString() + ":" + address.getPort(), e);
    }
    server.setExecutor(pool);
    server.createContext("/", this::handle);
    server.start();
    clock.scheduleWithFixedDelay(this::tend, 500, 500, TimeUnit.MILLISECONDS);
    return server.getAddress().getPort();
  }

  private void handle(HttpExchange exchange) throws IOException {
    underWay.incrementAndGet();
    try (exchange) {
      int status = 200;
      String type = "application/json";
      byte[] body;
      try {
        String path = exchange.getRequestURI().getPath();
        admit(exchange, path);
        if (path.equals("/metrics")) {
          method(exchange, "GET");
          type = "text/plain; version=0.0.4; charset=utf-8";
          body = registry.scrape().getBytes(StandardCharsets.UTF_8);
        } else {
          body = JSON.writeValueAsBytes(answer(exchange, path));
        }
      } catch (Refusal e) {
        refusals.increment();
        status = e.status;
        body = error(e.getMessage());
      } catch (InputException e) {
        refusals.increment();
        status = 400;
        body = error(e.getMessage());
      } catch (RuntimeException e) {
        LOG.error("a request failed", e);
        status = 500;
        body = error("this is an error of the service; its log says more");
      }
      exchange.getResponseHeaders().set("Content-Type", type);
      switch (status) {
        case 401 -> exchange.getResponseHeaders().set("WWW-Authenticate", "Bearer");
        case 429, 503 -> exchange.getResponseHeaders().set("Retry-After", "1");
        default -> {}
      }
      if (exchange.getRequestMethod().equals("HEAD")) {
        exchange.sendResponseHeaders(status, -1);
      } else {
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
      }
    } finally {
      underWay.decrementAndGet();
    }
  }

  private static byte[] error(String message) throws JsonProcessingException {
    return JSON.writeValueAsBytes(JsonNodeFactory.instance.objectNode().put("error", message));
  }

  private void admit(HttpExchange exchange, String path) throws Refusal {
    boolean health = path.equals("/health");
    if (token != null && !health) {
      String given = exchange.getRequestHeaders().getFirst("Authorization");
      boolean bearer = given != null && given.regionMatches(true, 0, "Bearer ", 0, 7);
      byte[] bytes = (bearer ? given.substring(7).strip() : "").getBytes(StandardCharsets.UTF_8);
      if (!MessageDigest.isEqual(token, bytes)) { // takes as long wherever they differ
        throw new Refusal(401, "a bearer token is needed");
      }
    }
    if (ending) {
      throw new Refusal(503, "the service is ending");
    }
    synchronized (this) {
      long now = System.nanoTime();
      double most = Math.max(1, limits.rate());
      allowance = Math.min(most, allowance + (now - lastRequest) * 1e-9 * limits.rate());
      lastRequest = now;
      if (allowance < 1 && !health) { // who watches must not take it for dead
        throw new Refusal(429, "more than " + limits.rate() + " requests a second");
      }
      allowance = Math.max(0, allowance - 1);
    }
  }

  private static void method(HttpExchange exchange, String method) throws Refusal {
    String given = exchange.getRequestMethod();
    if (!given.equals(method) && !(given.equals("HEAD") && method.equals("GET"))) {
      exchange.getResponseHeaders().set("Allow", method.equals("GET") ? "GET, HEAD" : method);
      throw new Refusal(405, method + " is right here");
    }
  }

  private ObjectNode answer(HttpExchange exchange, String path) throws Refusal, IOException {
    switch (path) {
      case "/predict":
        method(exchange, "POST");
        return predict(body(exchange));
      case "/feedback":
        method(exchange, "POST");
        return feedback(body(exchange));
      case "/versions":
        method(exchange, "GET");
        return versions();
      case "/health":
        method(exchange, "GET");
        if (stream != null && stream.isFailed()) {
          throw new Refusal(503, "learning has failed; the log says why");
        }
        return JsonNodeFactory.instance.objectNode().put("status", "ok");
      default:
        throw new Refusal(404, "there are /predict, /feedback, /versions, /health and /metrics");
    }
  }

  private String body(HttpExchange exchange) throws Refusal {
    byte[] bytes;
    try {
      bytes = exchange.getRequestBody().readNBytes(limits.bytes() + 1);
    } catch (IOException e) {
      throw new Refusal(400, "the request ended early, took too long or is malformed");
    }
    if (bytes.length > limits.bytes()) {
      throw new Refusal(413, "the request has more than " + limits.bytes() + " bytes");
    }
    try {
      return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    } catch (CharacterCodingException e) {
      throw new InputException("the request is not UTF-8", e);
    }
  }

  private ObjectNode predict(String text) {
    long begin = System.nanoTime();
    ExampleLines.Parsed parsed = parser.json(text);
    computing.acquireUninterruptibly();
    Prediction prediction;
    try {
      prediction = learner.predict(parsed.features());
    } finally {
      computing.release();
    }
    if (parsed.id() != null && limits.learn()) {
      pending.remember(parsed.id(), parsed.features(), prediction.version());
    }
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    ArrayNode outputs = json.putArray("outputs");
    boolean known = true;
    for (float value : prediction.outputs()) {
      if (Float.isFinite(value)) {
        outputs.add(value);
      } else {
        outputs.addNull();
        known = false;
      }
    }
    if (known && recipe.settings().loss().isForClasses()) {
      json.put("label", prediction.label());
    }
    json.put("version", prediction.version());
    predictions.record(System.nanoTime() - begin, TimeUnit.NANOSECONDS);
    return json;
  }

  private ObjectNode feedback(String text) throws Refusal {
    if (!limits.learn()) {
      throw new Refusal(403, "this service does not learn");
    }
    JsonNode json;
    try {
      json = JSON.readTree(text);
    } catch (JsonProcessingException e) {
      throw new InputException("it is not JSON: " + e.getOriginalMessage(), e);
    }
    JsonNode id = json == null ? null : json.get("id");
    if (id == null || !id.isTextual() && !id.isIntegralNumber()) {
      throw new InputException("id is missing: that of the prediction");
    }
    JsonNode label = present(json, "label");
    JsonNode values = present(json, "values");
    if ((label == null) == (values == null)) {
      throw new InputException("either label or values is right");
    }
    PendingLabels.Case found;
    float[] outcome = null;
    int number = -1;
    if (label != null) {
      if (!label.isIntegralNumber() || !label.canConvertToInt() || label.asInt() < 0) {
        throw new InputException("label is not a class, an integer from 0 on");
      }
      number = label.asInt();
    } else {
      if (!values.isArray() || values.size() != learner.outputs()) {
        throw new InputException("values is not a list of " + learner.outputs() + " numbers");
      }
      outcome = new float[values.size()];
      for (int i = 0; i < outcome.length; i++) {
        if (!values.get(i).isNumber()) {
          throw new InputException("values holds something that is no number");
        }
        outcome[i] = values.get(i).floatValue();
      }
    }
    // Checked before the case is taken out, so that a wrong label can be sent again rightly.
    learner.check(new Example(null, new float[learner.features()], number, outcome));
    try {
      found = pending.join(id.asText());
    } catch (InputException e) {
      throw new Refusal(404, e.getMessage());
    }
    Example example = new Example(id.asText(), found.features(), number, outcome);
    if (!stream.submit(example)) {
      pending.putBack(id.asText(), found);
      throw new Refusal(503, "the queue is full; send it again later");
    }
    return JsonNodeFactory.instance
        .objectNode()
        .put("accepted", true)
        .put("predicted_by", found.version());
  }

  private static JsonNode present(JsonNode json, String key) {
    JsonNode value = json.get(key);
    return value == null || value.isNull() ? null : value;
  }

  private ObjectNode versions() {
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("version", learner.version()).put("store_version", storeVersion());
    json.put("seen", learner.seen()).put("learned", learner.learned());
    ArrayNode list = json.putArray("store_versions");
    store.ids().forEach(list::add);
    return json;
  }

  /** Publishes when it is time, and follows what others make current. */
  private void tend() {
    if (System.nanoTime() < nextTry) {
      return;
    }
    try {
      if (versions.follow()) {
        publishedAt = learner.seen();
      } else if (!versions.isRefused() && learner.seen() - publishedAt >= limits.publishEvery()) {
        publish();
      }
    } catch (InputException e) {
      LOG.warn("the store is not to be used now, which is tried again: {}", e.getMessage());
      nextTry = System.nanoTime() + PATIENCE.toNanos();
    } catch (RuntimeException e) {
      LOG.error("the store could not be read or written; the service goes on", e);
      nextTry = System.nanoTime() + PATIENCE.toNanos();
    }
  }

  private void publish() {
    long seen = learner.seen();
    versions.publish(
        Lineage.NONE
            .withSource("serve")
            .withData(new Lineage.DataWindow("feedback", Math.min(publishedAt, seen), seen)),
        () -> store.writer(PATIENCE));
    publishedAt = seen;
  }

  @Override
  public void close() {
    ending = true;
    if (server != null) {
      awaitAnswers();
      server.stop(0);
    }
    clock.shutdown(); // without an interrupt, which would break off a publication
    pool.shutdownNow();
    try {
      pool.awaitTermination(5, TimeUnit.SECONDS);
      clock.awaitTermination(15, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    if (stream != null) {
      stream.close();
      if (learner.seen() > publishedAt) {
        publish();
      }
    }
    learner.close();
    model.close();
  }

  private void awaitAnswers() {
    long deadline = System.nanoTime() + LAST_ANSWERS_NANOS;
    try {
      while (underWay.get() > 0 && System.nanoTime() < deadline) {
        Thread.sleep(5);
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }
}
