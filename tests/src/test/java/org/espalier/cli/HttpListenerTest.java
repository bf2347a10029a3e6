package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketException;
import java.net.SocketTimeoutException;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.eclipse.jetty.server.Request;
import org.junit.jupiter.api.Test;

class HttpListenerTest {
  private static final int BODY = 100_000;
  private static final Duration PATIENCE = Duration.ofSeconds(60);
  private static final HttpListener.Limits LIMITS =
      new HttpListener.Limits(BODY, 1000, 10L * BODY, 4, PATIENCE);

  /** Says what it was asked. */
  private static class Echo implements HttpListener.Responder {
    @Override
    public void admit(Request head) throws HttpRefusal {
      if (head.getHeaders().contains("forbidden")) {
        throw new HttpRefusal(403, "no");
      }
    }

    @Override
    public HttpListener.Answer answer(Request request, byte[] body) {
      String path = request.getMethod() + " " + Request.getPathInContext(request) + " ";
      String all = path + new String(body, StandardCharsets.ISO_8859_1);
      return new HttpListener.Answer(
          200, "text/plain", Map.of(), all.getBytes(StandardCharsets.ISO_8859_1));
    }

    @Override
    public HttpListener.Answer refuse(HttpRefusal e) {
      return new HttpListener.Answer(e.status, "text/plain", e.headers, e.getMessage().getBytes());
    }
  }

  private static HttpListener listen(HttpListener.Limits limits, HttpListener.Responder handler)
      throws IOException {
    return new HttpListener(
        new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), limits, handler);
  }

  private static void send(Socket socket, String text) throws IOException {
    socket.getOutputStream().write(text.getBytes(StandardCharsets.ISO_8859_1));
  }

  /** Status and body of an answer. */
  private static String answer(Socket socket) throws IOException {
    socket.setSoTimeout(20_000);
    InputStream in = socket.getInputStream();
    ByteArrayOutputStream head = new ByteArrayOutputStream();
    while (!head.toString(StandardCharsets.ISO_8859_1).endsWith("\r\n\r\n")) {
      int next = in.read();
      if (next < 0) {
        return "ended after '" + head + "'";
      }
      head.write(next);
    }
    String text = head.toString(StandardCharsets.ISO_8859_1);
    if (text.startsWith("HTTP/1.1 100")) {
      return "100";
    }
    int at = text.indexOf("Content-Length: ") + 16;
    int length = Integer.parseInt(text.substring(at, text.indexOf('\r', at)));
    byte[] body = in.readNBytes(length);
    return text.substring(9, 12) + " " + new String(body, StandardCharsets.ISO_8859_1);
  }

  private static void exchange(HttpListener listener, String request, String... answers)
      throws IOException {
    try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), listener.port())) {
      send(socket, request);
      for (String expected : answers) {
        String given = answer(socket);
        assertTrue(given.startsWith(expected), given + " to " + request);
      }
    }
  }

  @Test
  void readsWhatHttpAllows() throws Exception {
    try (HttpListener listener = listen(LIMITS, new Echo())) {
      exchange(listener, "GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET /a ");
      exchange(listener, "\r\nGET http://x/a HTTP/1.0\n\n", "200 GET /a ");
      exchange(
          listener,
          "POST / HTTP/1.1\r\nHost: x\r\ncontent-length:  3 \r\n\r\nabc",
          "200 POST / abc");
      // Several behind each other, one of them in chunks with an extension and a trailer.
      exchange(
          listener,
          "POST /1 HTTP/1.1\r\nHost: x\r\n"
              + "Transfer-Encoding: chunked\r\n\r\n"
              + "3;x=y\r\n"
              + "abc\r\n"
              + "A\r\n"
              + "0123456789\r\n"
              + "0\r\n"
              + "Trailer: x\r\n\r\n"
              + "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n"
              + "POST /3 HTTP/1.1\r\nHost: x\r\n"
              + "Content-Length: 1\r\n\r\n"
              + "z",
          "200 POST /1 abc0123456789",
          "200 GET /2 ",
          "200 POST /3 z");
      exchange(
          listener,
          "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
          "200 GET",
          "ended after ''");
      exchange(listener, "GET / HTTP/1.0\r\n\r\n", "200 GET", "ended after ''");
      // What is refused before its body ends the connection, where the body is not here.
      exchange(
          listener,
          "POST / HTTP/1.1\r\n"
              + "Host: x\r\n"
              + "Forbidden: 1\r\n"
              + "Content-Length: 2\r\n\r\n"
              + "abGET / HTTP/1.1\r\n"
              + "Host: x\r\n\r\n",
          "403 no",
          "200 GET");
      exchange(
          listener,
          "POST / HTTP/1.1\r\nHost: x\r\nForbidden: 1\r\nContent-Length: 20\r\n\r\nab",
          "403 no",
          "ended after ''");
      try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), listener.port())) {
        send(
            socket,
            "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        assertEquals("100", answer(socket));
        send(socket, "ab");
        assertEquals("200 POST / ab", answer(socket));
        // Byte by byte.
        for (char c : "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nyz".toCharArray()) {
          send(socket, String.valueOf(c));
        }
        assertEquals("200 POST / yz", answer(socket));
      }
    }
  }

  @Test
  void refusesWhatItDoesNotAllow() throws Exception {
    try (HttpListener listener = listen(LIMITS, new Echo())) {
      String post = "POST / HTTP/1.1\r\nHost: x\r\n";
      String chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
      for (String[] wrong :
          new String[][] {
            {"nonsense\r\n\r\n", "400"},
            {"GET / HTTP/1.1\r\n\r\n", "400"},
            {"GET / HTTP/2.0\r\n\r\n", "505"},
            {"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", "400"},
            {"GET / HTTP/1.1\r\nHost: x\r\nName : x\r\n\r\n", "400"},
            {"GET / HTTP/1.1\r\nHost: x\r\nA: x\r\n folded\r\n\r\n", "400"},
            {"GET / HTTP/1.1\r\nHost: x\r\nA: x\0y\r\n\r\n", "400"},
            {"GET / HTTP/1.1\r\nHost: x\r\nA: " + "x".repeat(20_000) + "\r\n\r\n", "431"},
            {"GET / HTTP/1.1\r\nHost: x\r\n" + "A: x\r\n".repeat(5_000) + "\r\n", "431"},
            {post + "Content-Length: -1\r\n\r\n", "400"},
            {post + "Content-Length: +1\r\n\r\n", "400"},
            {post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"},
            {post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
            {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"},
            {
              post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
              "400"
            },
            {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400"},
            {"GET /%2e%2e/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400"},
            {"GET /" + "a".repeat(20_000) + " HTTP/1.1\r\nHost: x\r\n\r\n", "414"},
            {chunked + "x\r\n", "400"},
            {chunked + "1\r\nab\r\n0\r\n\r\n", "400"},
            {post + "Content-Length: 100001\r\n\r\n", "413"},
            {post + "Content-Length: 99999999999999999999\r\n\r\n", "400"},
            {chunked + "186A1\r\n" + "x".repeat(BODY + 1), "413"},
            {chunked + "1\r\na\r\n186A0\r\n" + "x".repeat(BODY), "413"},
          }) {
        exchange(listener, wrong[0], wrong[1], "ended after ''");
      }
      exchange(listener, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200");
    }
  }

  /** Many clients that send a byte now and then: all others are answered meanwhile, and they too. */
  @Test
  void slowClientsCostTheOthersNothing() throws Exception {
    int slow = 300;
    String head = "POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n";
    String whole = head + "x".repeat(40);
    List<SocketChannel> clients = new ArrayList<>();
    try (HttpListener listener = listen(LIMITS, new Echo())) {
      InetSocketAddress address =
          new InetSocketAddress(InetAddress.getLoopbackAddress(), listener.port());
      for (int i = 0; i < slow; i++) {
        SocketChannel client = SocketChannel.open(address);
        clients.add(client);
        // One half is in the headers, the other in the body.
        trickle(client, whole, 0, i % 2 == 0 ? 10 : head.length() + 1);
      }
      int answered = 0;
      try (Socket quick = new Socket(InetAddress.getLoopbackAddress(), listener.port())) {
        for (int round = 0; round < 8; round++) {
          for (int i = 0; i < slow; i++) {
            int at = (i % 2 == 0 ? 10 : head.length() + 1) + round;
            trickle(clients.get(i), whole, at, at + 1);
          }
          send(quick, "POST /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n" + round);
          answered += answer(quick).equals("200 POST /quick " + round) ? 1 : 0;
        }
      }
      assertEquals(8, answered);
      // None of them was sent away or is ready: the quick ones were answered while all were waited
      // for.
      ByteBuffer any = ByteBuffer.allocate(1);
      for (SocketChannel client : clients) {
        client.configureBlocking(false);
        assertEquals(0, client.read(any));
        client.configureBlocking(true);
      }
      answered = 0;
      for (int i = 0; i < slow; i++) {
        int at = (i % 2 == 0 ? 10 : head.length() + 1) + 8;
        trickle(clients.get(i), whole, at, whole.length());
        answered +=
            answer(clients.get(i).socket()).equals("200 POST /slow " + "x".repeat(40)) ? 1 : 0;
      }
      assertEquals(slow, answered);
    } finally {
      for (SocketChannel client : clients) {
        client.close();
      }
    }
  }

  private static void trickle(SocketChannel client, String text, int from, int to)
      throws IOException {
    client.write(ByteBuffer.wrap(text.substring(from, to).getBytes(StandardCharsets.US_ASCII)));
  }

  /** Where there are too many connections or bytes, those that wait for longest go, and nobody else. */
  @Test
  void theSlowestGoWhereThereIsNoRoom() throws Exception {
    HttpListener.Limits few = new HttpListener.Limits(BODY, 20, 4L * BODY, 4, PATIENCE);
    try (HttpListener listener = listen(few, new Echo())) {
      List<Socket> idle = new ArrayList<>();
      for (int i = 0; i < 60; i++) {
        idle.add(new Socket(InetAddress.getLoopbackAddress(), listener.port()));
        send(idle.get(i), "GET /");
        exchange(listener, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200");
      }
      assertTrue(hasEnded(idle.get(0)));
      send(idle.get(59), " HTTP/1.1\r\nHost: x\r\n\r\n");
      assertEquals("200 GET / ", answer(idle.get(59)));
      for (Socket socket : idle) {
        socket.close();
      }

      // Eight large ones that lack their last byte: there is room for less than four.
      List<Socket> large = new ArrayList<>();
      String begin = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + BODY + "\r\n\r\n";
      for (int i = 0; i < 8; i++) {
        large.add(new Socket(InetAddress.getLoopbackAddress(), listener.port()));
        send(large.get(i), begin + "x".repeat(BODY - 1));
        exchange(listener, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200");
      }
      int answered = 0;
      for (int i = 0; i < 8; i++) {
        try {
          send(large.get(i), "x");
          answered += answer(large.get(i)).startsWith("200") ? 1 : 0;
        } catch (SocketException e) {
          assertTrue(i < 5, "the newest ones stay");
        }
        large.get(i).close();
      }
      assertTrue(answered >= 3 && answered <= 4, answered + " of 8");
    }
  }

  /** No byte now and then keeps a request alive, neither in the headers nor in the body. */
  @Test
  void aRequestThatTricklesEnds() throws Exception {
    HttpListener.Limits hasty =
        new HttpListener.Limits(BODY, 1000, 10L * BODY, 4, Duration.ofMillis(500));
    String head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n";
    try (HttpListener listener = listen(hasty, new Echo())) {
      for (String begin : List.of("GET / HTTP/1.1\r\nA: ", head)) {
        try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), listener.port())) {
          send(socket, begin);
          int sent = 0;
          while (sent < 2_000 && !hasEnded(socket, 10)) {
            send(socket, "x");
            sent++;
          }
          assertTrue(sent < 2_000, "it went on for " + sent + " bytes");
        } catch (SocketException e) {
          // It ended while a byte was sent.
        }
      }
      exchange(listener, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET / ");
    }
  }

  private static boolean hasEnded(Socket socket) throws IOException {
    return hasEnded(socket, 20_000);
  }

  /** Whether it ends within some milliseconds. */
  private static boolean hasEnded(Socket socket, int millis) throws IOException {
    socket.setSoTimeout(millis);
    try {
      return socket.getInputStream().read() < 0;
    } catch (SocketTimeoutException e) {
      return false;
    } catch (SocketException e) {
      return true;
    }
  }

  /** Clients that do not take their answers take no thread either. */
  @Test
  void answersThatNobodyTakesBlockNobody() throws Exception {
    byte[] much = new byte[16 << 20];
    HttpListener.Responder generous =
        new Echo() {
          @Override
          public HttpListener.Answer answer(Request request, byte[] body) {
            return Request.getPathInContext(request).equals("/much")
                ? new HttpListener.Answer(200, "text/plain", Map.of(), much)
                : super.answer(request, body);
          }
        };
    try (HttpListener listener = listen(LIMITS, generous)) {
      List<Socket> clients = new ArrayList<>();
      for (int i = 0; i < 8; i++) { // and there are 4 threads
        clients.add(new Socket(InetAddress.getLoopbackAddress(), listener.port()));
        send(clients.get(i), "GET /much HTTP/1.1\r\nHost: x\r\n\r\n");
      }
      exchange(listener, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET / ");
      assertEquals(4 + much.length, answer(clients.get(7)).length());
      for (Socket client : clients) {
        client.close();
      }
    }
  }

  @Test
  void whatFailsFailsAlone() throws Exception {
    HttpListener.Responder failing =
        new Echo() {
          @Override
          public HttpListener.Answer answer(Request request, byte[] body) {
            if (Request.getPathInContext(request).equals("/fails")) {
              throw new AssertionError("it fails, as the test wants");
            }
            return super.answer(request, body);
          }
        };
    try (HttpListener listener = listen(LIMITS, failing)) {
      for (int i = 0; i < 8; i++) { // and there are 4 threads
        exchange(listener, "GET /fails HTTP/1.1\r\nHost: x\r\n\r\n", "500 this is an error");
      }
      exchange(listener, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200 GET / ");
    }
  }

  @Test
  void givesTheAnswersThatAreUnderWayWhenItEnds() throws Exception {
    CountDownLatch asked = new CountDownLatch(1);
    CountDownLatch go = new CountDownLatch(1);
    HttpListener.Responder slow =
        new Echo() {
          @Override
          public HttpListener.Answer answer(Request request, byte[] body) {
            asked.countDown();
            try {
              go.await();
            } catch (InterruptedException e) {
              throw new IllegalStateException(e);
            }
            return super.answer(request, body);
          }
        };
    HttpListener listener = listen(LIMITS, slow);
    try (Socket socket = new Socket(InetAddress.getLoopbackAddress(), listener.port())) {
      send(socket, "GET /late HTTP/1.1\r\nHost: x\r\n\r\n");
      asked.await();
      Thread closing = new Thread(listener::close);
      closing.start();
      assertTrue(closing.isAlive());
      go.countDown();
      assertEquals("200 GET /late ", answer(socket));
      closing.join(20_000);
      assertFalse(closing.isAlive());
    }
  }
}
