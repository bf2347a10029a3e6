package org.espalier.cli;

import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.UnknownHostException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import org.espalier.InputException;
import org.espalier.format.InputFile;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.Quarantine;
import org.espalier.source.ModelSource;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Answers over HTTP and learns from what it is told. */
@Command(
    name = "serve",
    description = {
      "Serves the current version of a store: predictions over HTTP, learning from feedback, new"
          + " versions published as it goes. What another process makes current, by a rollback or a"
          + " publication, is served within a second; where no learner made it, learning goes on"
          + " from its weights with a fresh optimizer. Nothing is published over it.",
      "",
      "  POST /predict   {\"features\": [...]}, or {\"inputs\": {\"user\": 17, ...}} with",
      "                  all inputs by name, or {\"text\": \"...\"}, with \"text_pair\" for",
      "                  two, or {\"image\": \"data:image/jpeg;base64,...\"} where the",
      "                  version has an encoder; with an \"id\" where feedback will come",
      "                  answers {\"outputs\": [...], \"label\": 1, \"probability\": 0.97,",
      "                  \"version\": 7, \"store_version\": 2}, and \"class\": \"spam\" where",
      "                  classes have names; of values only outputs and versions",
      "  POST /feedback  {\"id\": \"a\", \"label\": 1} or \"values\": [...]",
      "                  both take a list of 1000 such objects at most too, and answer with",
      "                  a list, in which {\"error\": ..., \"status\": 400} stands for what is",
      "                  refused",
      "  GET  /versions  what is served, and the versions of the store",
      "  GET  /health    200 while it works",
      "  GET  /metrics   for Prometheus",
      "",
      "An answer's version is the learner's own count, which goes up with each change of the"
          + " weights; store_version is the version of the store that has these weights or that"
          + " learning went on from.",
      "",
      "A prediction whose answer was lost can be asked for again: the same id with the same"
          + " features gets the same answer as long as it waits for feedback; with other features"
          + " it is refused with 409. Feedback is taken once: 404 says that no prediction of that"
          + " id waits, for instance because the feedback is a repetition.",
      "",
      "It binds to the loopback interface. Elsewhere it wants --token, and clients send"
          + " Authorization: Bearer TOKEN for all but /health. There is no TLS: put a proxy in"
          + " front. A client has 10 seconds to send a request and 10 to take the answer."
    },
    footer = {
      "",
      "Examples:",
      "  espalier serve --store models/ --port 8080",
      "  espalier serve --store models/ --port 8080 --no-learn --json",
      "  espalier store publish net.onnx --store models/",
      "  espalier serve --store models/ --port 8080 --recipe online.yaml",
      "  espalier serve --store models/ --host 0.0.0.0 --port 80 --token token.txt",
      "  curl -d '{\"id\": \"a\", \"features\": [1, 2]}' localhost:8080/predict",
    })
final class Serve implements Callable<Integer> {
  private static final int MIN_TOKEN = 16;
  private static final int MOST_TOKEN_BYTES = 10_000;

  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;
  @Mixin private LearnerOptions learning = new LearnerOptions(1000);

  @Option(
      names = "--port",
      paramLabel = "N",
      required = true,
      description = "The port; 0 for any free one.")
  private int port;

  @Option(
      names = "--host",
      paramLabel = "ADDRESS",
      description = "The interface to bind to. Default: 127.0.0.1.")
  private String host = "127.0.0.1";

  @Option(
      names = "--token",
      paramLabel = "FILE",
      description = "A file with the token that clients must send, 16 characters or more.")
  private String tokenFile;

  @Option(
      names = "--max-bytes",
      paramLabel = "N",
      description = "Refuse larger requests. Default: 1000000.")
  private int maxBytes = 1_000_000;

  @Option(
      names = "--max-rate",
      paramLabel = "N",
      description = "Refuse more requests a second than this. Default: 10000.")
  private double maxRate = 10_000;

  @Option(
      names = "--pending",
      paramLabel = "N",
      description = "Remember so many predictions whose outcome is not known. Default: 100000.")
  private int pending = 100_000;

  @Option(
      names = "--recipe",
      paramLabel = "FILE",
      description =
          "How to learn, for a version that no learner made: a linear model, an ONNX or a"
              + " TorchScript one. Where an ONNX graph leaves its sizes open, and for TorchScript,"
              + " the recipe says model: {features: …, outputs: …}, of several inputs inputs:"
              + " {user: …, dense: …} for features.")
  private String recipeFile;

  @Option(names = "--no-learn", description = "Refuse feedback.")
  private boolean noLearn;

  @Override
  public Integer call() {
    if (port < 0 || port > 65_535) {
      throw new InputException("--port " + port + "; 0 to 65535 is right");
    }
    if (maxBytes < 1 || !(maxRate > 0) || pending < 1) {
      throw new InputException("--max-bytes, --max-rate and --pending are above 0");
    }
    InetAddress address;
    try {
      address = InetAddress.getByName(host);
    } catch (UnknownHostException e) {
      throw new InputException("--host " + host + " is no address of this machine", e);
    }
    String token = tokenFile == null ? null : token(ModelSource.path(tokenFile));
    if (token == null && !address.isLoopbackAddress()) {
      throw new InputException(
          "--host "
              + host
              + " can be reached from elsewhere: --token names a file with the token"
              + " that clients must send");
    }
    SigningKey signing = noLearn ? null : learning.signingKey(options);
    OnlineRecipe recipe =
        recipeFile == null ? null : OnlineRecipe.read(ModelSource.path(recipeFile));
    ModelStore store = options.open();
    Service.Limits limits =
        new Service.Limits(maxBytes, maxRate, pending, learning.publishEvery(), !noLearn);
    CountDownLatch stopped = new CountDownLatch(1);
    try (Quarantine quarantine = learning.quarantine();
        Service service = new Service(store, limits, token, recipe, signing, quarantine);
        Interrupts interrupts = new Interrupts(stopped::countDown)) {
      int bound = service.start(new InetSocketAddress(address, port));
      if (common.json()) {
        common.print(
            com.fasterxml.jackson.databind.node.JsonNodeFactory.instance
                .objectNode()
                .put("host", address.getHostAddress())
                .put("port", bound));
      } else {
        common
            .out()
            .println(
                "serving version "
                    + service.storeVersion()
                    + " of "
                    + store.folder()
                    + " at http://"
                    + address.getHostAddress()
                    + ":"
                    + bound);
      }
      common.out().flush();
      stopped.await();
      return interrupts.code();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
    return 0;
  }

  private static String token(Path file) {
    try {
      String token =
          new String(InputFile.bytes(file, MOST_TOKEN_BYTES), StandardCharsets.UTF_8).strip();
      if (token.length() < MIN_TOKEN || !token.matches("[!-~]+")) {
        throw new InputException(
            file
                + " holds no token: one line of "
                + MIN_TOKEN
                + " characters or more without spaces; 'openssl rand -hex 32' makes one");
      }
      return token;
    } catch (IOException e) {
      throw InputException.of("cannot read the token " + file, e);
    }
  }
}
