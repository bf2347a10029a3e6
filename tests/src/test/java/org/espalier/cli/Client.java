package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Who asks a service of this machine. */
final class Client {
  private Client() {}

  /** Starts a service at any free port, which is given back. */
  static int start(Service service) {
    return service.start(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
  }

  /** What is answered with status 200. */
  static JsonNode post(int port, String path, String body)
      throws IOException, InterruptedException {
    return post(200, port, path, body);
  }

  static JsonNode post(int status, int port, String path, String body)
      throws IOException, InterruptedException {
    HttpRequest request =
        HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + path))
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    HttpResponse<String> answer =
        HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
    assertEquals(status, answer.statusCode(), answer.body());
    return new ObjectMapper().readTree(answer.body());
  }
}
