package org.espalier.cli;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.micrometer.core.instrument.Counter;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.Timer;
import io.micrometer.prometheusmetrics.PrometheusConfig;
import io.micrometer.prometheusmetrics.PrometheusMeterRegistry;
import java.io.File;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.eclipse.jetty.http.HttpHeader;
import org.eclipse.jetty.server.Request;
import org.espalier.InputException;
import org.espalier.encoder.Encoder;
import org.espalier.format.JsonReason;
import org.espalier.online.Example;
import org.espalier.online.ExampleLines;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineStream;
import org.espalier.online.PendingLabels;
import org.espalier.online.Prediction;
import org.espalier.online.Quarantine;
import org.espalier.online.report.LearnerMetrics;
import org.espalier.online.store.LearnerFiles;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The HTTP service of {@link Serve}. */
final class Service implements HttpListener.Responder, AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(Service.class);

  /** Requests that are answered at once. */
  private static final int THREADS = 64;

  private static final int CONNECTIONS = 1024;

  /** Predictions that are computed at once. */
  private static final int PREDICTIONS = 8;

  /** With the store. */
  private static final Duration PATIENCE = Duration.ofSeconds(10);

  private static final Duration PATIENCE_WITH_CLIENTS = Duration.ofSeconds(10);

  private static final int QUEUE = 10_000;

  /** Objects of a list: small ones would make a large answer. */
  private static final int LIST = 1000;

  private static final Map<String, String> LATER = Map.of("Retry-After", "1");

  /** For lists, whose objects are read later. */
  private static final JsonFactory LISTS =
      JsonFactory.builder()
          .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
          .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(9).build())
          .build();

  private static final ObjectMapper JSON =
      new ObjectMapper(
              JsonFactory.builder()
                  .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                  .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(8).build())
                  .build())
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  /**
   * @param bytes of a request
   * @param rate requests a second
   * @param pending predictions whose outcome is waited for
   * @param publishEvery examples between two versions of the store
   * @param learn whether feedback is learned
   */
  record Limits(int bytes, double rate, int pending, long publishEvery, boolean learn) {}

  /** Of a model that nobody learned and nobody will: its outputs are what it says. */
  private static final OnlineRecipe FROZEN =
      OnlineRecipe.parse("loss: squared\nlearning-rate: 0.1\nbatch: 1", "serve --no-learn");

  private final ModelStore store;
  private final Limits limits;
  private final byte[] token;
  private final OnlineRecipe recipe;
  private final Encoder encoder;
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
  private final Semaphore computing = new Semaphore(PREDICTIONS);
  private final ScheduledExecutorService clock =
      Executors.newSingleThreadScheduledExecutor(task -> daemon(task, "espalier-store"));
  private HttpListener listener;
  private volatile long publishedAt;

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
    Deque<Runnable> closing = new ArrayDeque<>(); // of what is open where a later step fails
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
      encoder = Encoder.of(store, held.version());
      if (encoder != null) {
        closing.push(encoder::close);
      }
      OnlineRecipe said = learned ? LearnerFiles.recipe(held) : given != null ? given : FROZEN;
      recipe = encoder == null || encoder.isOfPixels() ? said : said.withFeatures(encoder.width());
      model = LearnerFiles.readModel(held, recipe);
      closing.push(model::close);
      recipe.classes().requireFor(model.outputs());
      if (encoder != null) {
        encoder.requireFits(model);
      }
      try {
        learner = new OnlineLearner(model, recipe.settings());
      } catch (IllegalArgumentException e) {
        throw new InputException("the recipe does not fit the model: " + e.getMessage(), e);
      }
      closing.push(learner::close);
      if (learned) {
        LearnerFiles.load(learner, held);
      }
      versions =
          new LearnerVersions(
              store, learner, recipe, signing, encoder, held.version().id(), LOG::info);
      if (limits.learn()) {
        versions.account();
        learner.checkBudget();
      }
    } catch (RuntimeException e) {
      closing.forEach(Runnable::run);
      throw e;
    }
    publishedAt = learner.seen();
    learner.quarantine(quarantine);
    parser =
        new ExampleLines(learner, recipe.classes(), encoder == null ? null : encoder.encoded(null));
    int most = PendingLabels.capacity(limits.pending(), learner.features() + learner.outputs());
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
    addGauges();
  }

  private void addGauges() {
    Gauge.builder("espalier.pending", pending, PendingLabels::waiting)
        .description("Predictions whose outcome is not known yet")
        .register(registry);
    Gauge.builder("espalier.unpublished", this, s -> s.learner.seen() - s.publishedAt)
        .description("Examples that came since a version was published")
        .register(registry);
    Gauge.builder("espalier.store.version", this, Service::storeVersion)
        .description("The version of the store that is served or that learning went on from")
        .register(registry);
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
    long buffered = Math.max(4L * limits.bytes() + (1 << 20), Runtime.getRuntime().maxMemory() / 8);
    try {
      listener =
          new HttpListener(
              address,
              new HttpListener.Limits(
                  limits.bytes(), CONNECTIONS, buffered, THREADS, PATIENCE_WITH_CLIENTS),
              this);
    } catch (IOException e) {
      throw InputException.of(
          "cannot listen at " + address.getHostString() + ":" + address.getPort(), e);
    }
    clock.scheduleWithFixedDelay(this::tend, 500, 500, TimeUnit.MILLISECONDS);
    return listener.port();
  }

  @Override
  public HttpListener.Answer answer(Request request, byte[] body) throws HttpRefusal {
    try {
      if (Request.getPathInContext(request).equals("/metrics")) {
        method(request, "GET");
        return new HttpListener.Answer(
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            Map.of(),
            registry.scrape().getBytes(StandardCharsets.UTF_8));
      }
      return json(200, Map.of(), answerJson(request, body));
    } catch (InputException e) {
      throw refusal(e);
    }
  }

  /** Where the store lies is nothing to clients. */
  private HttpRefusal refusal(InputException e) {
    return new HttpRefusal(400, e.getMessage().replace(store.folder() + File.separator, ""));
  }

  @Override
  public HttpListener.Answer refuse(HttpRefusal e) {
    if (e.status != 500) {
      refusals.increment();
    }
    return json(
        e.status, e.headers, JsonNodeFactory.instance.objectNode().put("error", e.getMessage()));
  }

  private static HttpListener.Answer json(int status, Map<String, String> headers, JsonNode body) {
    try {
      return new HttpListener.Answer(
          status, "application/json", headers, JSON.writeValueAsBytes(body));
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("what was made here is JSON", e);
    }
  }

  @Override
  public void admit(Request request) throws HttpRefusal {
    boolean health = Request.getPathInContext(request).equals("/health");
    if (token != null && !health) {
      String given = request.getHeaders().get(HttpHeader.AUTHORIZATION);
      boolean bearer = given != null && given.regionMatches(true, 0, "Bearer ", 0, 7);
      byte[] bytes = (bearer ? given.substring(7).strip() : "").getBytes(StandardCharsets.UTF_8);
      if (!MessageDigest.isEqual(token, bytes)) { // takes as long wherever they differ
        throw new HttpRefusal(
            401, "a bearer token is needed", Map.of("WWW-Authenticate", "Bearer"));
      }
    }
    takeOne(health);
  }

  private void takeOne(boolean health) throws HttpRefusal {
    if (!take(health)) {
      throw new HttpRefusal(429, "more than " + limits.rate() + " requests a second", LATER);
    }
  }

  /**
   * Takes one of the requests that the rate allows.
   *
   * @param health is let through always: who watches must not take the service for dead
   */
  private synchronized boolean take(boolean health) {
    long now = System.nanoTime();
    double most = Math.max(1, limits.rate());
    allowance = Math.min(most, allowance + (now - lastRequest) * 1e-9 * limits.rate());
    lastRequest = now;
    if (allowance < 1 && !health) {
      return false;
    }
    allowance = Math.max(0, allowance - 1);
    return true;
  }

  private static void method(Request request, String method) throws HttpRefusal {
    String given = request.getMethod();
    if (!given.equals(method) && !(given.equals("HEAD") && method.equals("GET"))) {
      throw new HttpRefusal(
          405,
          method + " is right here",
          Map.of("Allow", method.equals("GET") ? "GET, HEAD" : method));
    }
  }

  private JsonNode answerJson(Request request, byte[] body) throws HttpRefusal {
    switch (Request.getPathInContext(request)) {
      case "/predict":
        method(request, "POST");
        return each(text(body), this::predict);
      case "/feedback":
        method(request, "POST");
        return each(text(body), this::feedback);
      case "/versions":
        method(request, "GET");
        return versions();
      case "/health":
        method(request, "GET");
        if (stream != null && stream.isFailed()) {
          throw new HttpRefusal(503, "learning has failed; the log says why", LATER);
        }
        return JsonNodeFactory.instance.objectNode().put("status", "ok");
      default:
        throw new HttpRefusal(
            404, "there are /predict, /feedback, /versions, /health and /metrics");
    }
  }

  private static String text(byte[] body) {
    try {
      return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(body)).toString();
    } catch (CharacterCodingException e) {
      throw new InputException("the request is not UTF-8", e);
    }
  }

  /** What is done with one object that a client sends. */
  @FunctionalInterface
  private interface Answering {
    ObjectNode answer(String object) throws HttpRefusal;
  }

  /** Answers an object, or each of a list, in which what is refused has its error and status in place of an answer. */
  private JsonNode each(String text, Answering answering) throws HttpRefusal {
    if (!text.stripLeading().startsWith("[")) {
      return answering.answer(text);
    }
    ArrayNode answers = JsonNodeFactory.instance.arrayNode();
    for (String object : objects(text)) {
      HttpRefusal refusal;
      try {
        if (!answers.isEmpty()) { // the first one was admitted with the request
          takeOne(false);
        }
        answers.add(answering.answer(object));
        continue;
      } catch (HttpRefusal e) {
        refusal = e;
      } catch (InputException e) {
        refusal = refusal(e);
      }
      refusals.increment();
      answers.addObject().put("error", refusal.getMessage()).put("status", refusal.status);
    }
    return answers;
  }

  /**
   * The objects of a list, as they are written.
   *
   * @throws InputException where it is no list of objects
   */
  private static List<String> objects(String list) {
    List<String> objects = new ArrayList<>();
    try (JsonParser parser = LISTS.createParser(list)) {
      parser.nextToken();
      while (parser.nextToken() == JsonToken.START_OBJECT) {
        int begin = (int) parser.currentTokenLocation().getCharOffset();
        parser.skipChildren();
        objects.add(list.substring(begin, (int) parser.currentLocation().getCharOffset()));
        if (objects.size() > LIST) {
          throw new InputException("a list of at most " + LIST + " objects is right");
        }
      }
      if (parser.currentToken() != JsonToken.END_ARRAY || parser.nextToken() != null) {
        throw new InputException("a list of JSON objects alone is right, or one object");
      }
    } catch (JsonProcessingException e) {
      throw new InputException("it is not JSON: " + JsonReason.of(e), e);
    } catch (IOException e) {
      throw new InputException("it cannot be read: " + e.getMessage(), e);
    }
    return objects;
  }

  private ObjectNode predict(String text) throws HttpRefusal {
    long begin = System.nanoTime();
    computing.acquireUninterruptibly();
    ExampleLines.Parsed parsed;
    Prediction prediction;
    try {
      parsed = parser.json(text); // which may run an encoder
      prediction = learner.predict(parsed.features());
    } finally {
      computing.release();
    }
    long storeVersion = versions.origin(prediction.version());
    if (parsed.id() != null && limits.learn()) {
      PendingLabels.Case waits =
          pending.rememberOnce(
              parsed.id(),
              new PendingLabels.Case(
                  parsed.features(), prediction.version(), prediction.outputs(), storeVersion));
      if (!Arrays.equals(waits.features(), parsed.features())) {
        throw new HttpRefusal(
            409, "the id '" + parsed.id() + "' waits for the outcome of other features");
      }
      // Of a request that comes again, because its answer was lost, the answer is the same.
      prediction = new Prediction(waits.outputs(), waits.version());
      storeVersion = waits.storeVersion();
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
      json.put("probability", prediction.probability());
      if (!recipe.classes().isEmpty()) {
        json.put("class", recipe.classes().names().get(prediction.label()));
      }
    }
    json.put("version", prediction.version()).put("store_version", storeVersion);
    predictions.record(System.nanoTime() - begin, TimeUnit.NANOSECONDS);
    return json;
  }

  private ObjectNode feedback(String text) throws HttpRefusal {
    if (!limits.learn()) {
      throw new HttpRefusal(403, "this service does not learn");
    }
    JsonNode json;
    try {
      json = JSON.readTree(text);
    } catch (JsonProcessingException e) {
      throw new InputException("it is not JSON: " + JsonReason.of(e), e);
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
      if (label.isTextual()) {
        number = recipe.classes().of(label.textValue());
      } else {
        number = label.isNumber() ? label.asInt() : -1;
        if (number < 0 || number != label.asDouble()) {
          throw new InputException("label is not a class, an integer from 0 on");
        }
      }
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
      throw new HttpRefusal(404, e.getMessage());
    }
    Example example = new Example(id.asText(), found.features(), number, outcome);
    if (!stream.submit(example)) {
      pending.putBack(id.asText(), found);
      throw new HttpRefusal(503, "the queue is full; send it again later", LATER);
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
    if (listener != null) {
      listener.close();
    }
    clock.shutdown(); // without an interrupt, which would break off a publication
    try {
      clock.awaitTermination(15, TimeUnit.SECONDS);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    try {
      if (stream != null) {
        stream.close();
        if (learner.seen() > publishedAt) {
          publish();
        }
      }
    } catch (InputException e) {
      throw new InputException("what was learned last is in no version: " + e.getMessage(), e);
    } finally {
      learner.close();
      model.close();
      if (encoder != null) {
        encoder.close();
      }
    }
  }
}
