package org.espalier.cli;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.ZoneOffset;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.Map;

/**
 * An answer.
 *
 * @param type of the body
 * @param headers beside those that every answer has
 */
record HttpAnswer(int status, String type, Map<String, String> headers, byte[] body) {
  private static final Map<Integer, String> REASONS =
      Map.ofEntries(
          Map.entry(200, "OK"),
          Map.entry(400, "Bad Request"),
          Map.entry(401, "Unauthorized"),
          Map.entry(403, "Forbidden"),
          Map.entry(404, "Not Found"),
          Map.entry(405, "Method Not Allowed"),
          Map.entry(408, "Request Timeout"),
          Map.entry(409, "Conflict"),
          Map.entry(413, "Content Too Large"),
          Map.entry(429, "Too Many Requests"),
          Map.entry(431, "Request Header Fields Too Large"),
          Map.entry(500, "Internal Server Error"),
          Map.entry(501, "Not Implemented"),
          Map.entry(503, "Service Unavailable"),
          Map.entry(505, "HTTP Version Not Supported"));

  /**
   * As it is sent.
   *
   * @param head without the body: the answer to HEAD
   * @param close whether the connection ends with it
   */
  ByteBuffer encode(boolean head, boolean close) {
    StringBuilder text = new StringBuilder(256);
    text.append("HTTP/1.1 ").append(status).append(' ').append(REASONS.get(status)).append("\r\n");
    text.append("Date: ")
        .append(DateTimeFormatter.RFC_1123_DATE_TIME.format(ZonedDateTime.now(ZoneOffset.UTC)))
        .append("\r\n");
    headers.forEach((name, value) -> text.append(name).append(": ").append(value).append("\r\n"));
    text.append("Content-Type: ").append(type).append("\r\n");
    text.append("Content-Length: ").append(body.length).append("\r\n");
    if (close) {
      text.append("Connection: close\r\n");
    }
    byte[] begin = text.append("\r\n").toString().getBytes(StandardCharsets.ISO_8859_1);
    ByteBuffer all = ByteBuffer.allocate(begin.length + (head ? 0 : body.length));
    all.put(begin);
    if (!head) {
      all.put(body);
    }
    return all.flip();
  }
}
