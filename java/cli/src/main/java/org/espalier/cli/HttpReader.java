package org.espalier.cli;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;

/**
 * Puts one request of HTTP/1.0 or 1.1 (RFC 9112) together from bytes as they come. It holds what came and no
 * more, whatever a request says of its size, and refuses what two readers could take for different requests.
 */
final class HttpReader {
  private static final int MOST_HEAD = 16 << 10;
  private static final int FIRST_BODY = 4 << 10;
  private static final byte[] NONE = {};

  /** How far it is. */
  enum Progress {
    /** More bytes are needed. */
    MORE,
    /** The headers have just become whole, the body is next. */
    HEAD,
    /** The request is whole. */
    WHOLE
  }

  private enum Part {
    HEAD,
    BODY,
    CHUNK_SIZE,
    CHUNK,
    CHUNK_END,
    TRAILER,
    WHOLE
  }

  private final int mostBody;
  private Part part = Part.HEAD;
  private byte[] line = new byte[256];
  private int lineLength;

  /** Of request line, headers and trailers, or of a chunk's line. */
  private int headBytes;

  private String method;
  private String path;
  private boolean keepsAlive;
  private final Map<String, String> headers = new HashMap<>();
  private byte[] body = NONE;
  private int bodyLength;

  /** What is missing of the body, or of the chunk. */
  private long missing;

  HttpReader(int mostBody) {
    this.mostBody = mostBody;
  }

  /** The request as far as it is there; null before its headers are. */
  HttpRequest request() {
    return part == Part.HEAD
        ? null
        : new HttpRequest(
            method,
            path,
            headers,
            keepsAlive,
            part != Part.WHOLE
                ? NONE
                : bodyLength == body.length ? body : Arrays.copyOf(body, bodyLength));
  }

  /** Bytes of memory that it holds, roughly. */
  long held() {
    return (long) line.length + 2 * headBytes + body.length;
  }

  /** Takes bytes as long as they belong to the request. */
  Progress take(ByteBuffer in) throws HttpRefusal {
    while (part != Part.WHOLE && in.hasRemaining()) {
      switch (part) {
        case BODY, CHUNK -> takeBody(in);
        default -> {
          if (takeLine(in) && endOfLine()) {
            return Progress.HEAD;
          }
        }
      }
    }
    return part == Part.WHOLE ? Progress.WHOLE : Progress.MORE;
  }

  private void takeBody(ByteBuffer in) {
    int n = (int) Math.min(missing, in.remaining());
    if (bodyLength + n > body.length) {
      long most = part == Part.BODY ? bodyLength + missing : mostBody;
      long size = Math.max(bodyLength + n, Math.max(FIRST_BODY, 2L * body.length));
      body = Arrays.copyOf(body, (int) Math.min(most, size));
    }
    in.get(body, bodyLength, n);
    bodyLength += n;
    missing -= n;
    if (missing == 0) {
      part = part == Part.BODY ? Part.WHOLE : Part.CHUNK_END;
    }
  }

  /** Whether a line is whole. */
  private boolean takeLine(ByteBuffer in) throws HttpRefusal {
    while (in.hasRemaining()) {
      byte next = in.get();
      if (++headBytes > MOST_HEAD) {
        throw new HttpRefusal(431, "the headers have more than " + MOST_HEAD + " bytes");
      }
      if (next == '\n') {
        if (lineLength > 0 && line[lineLength - 1] == '\r') {
          lineLength--;
        }
        return true;
      }
      if (lineLength == line.length) {
        line = Arrays.copyOf(line, 2 * lineLength);
      }
      line[lineLength++] = next;
    }
    return false;
  }

  /** Whether the headers have become whole. */
  private boolean endOfLine() throws HttpRefusal {
    String text = new String(line, 0, lineLength, StandardCharsets.ISO_8859_1);
    lineLength = 0;
    switch (part) {
      case HEAD -> {
        if (method == null) {
          if (!text.isEmpty()) { // an empty line before a request is left out
            requestLine(text);
          }
        } else if (text.isEmpty()) {
          findBody();
          return true;
        } else {
          header(text);
        }
      }
      case CHUNK_SIZE -> chunk(text);
      case CHUNK_END -> {
        if (!text.isEmpty()) {
          throw malformed("a chunk is longer than it says");
        }
        part = Part.CHUNK_SIZE;
      }
      case TRAILER -> part = text.isEmpty() ? Part.WHOLE : Part.TRAILER;
      default -> throw new IllegalStateException("no line is read here");
    }
    return false;
  }

  private static HttpRefusal malformed(String what) {
    return new HttpRefusal(400, "the request is malformed: " + what);
  }

  private void requestLine(String text) throws HttpRefusal {
    String[] words = text.split(" ", -1);
    if (words.length != 3 || !isToken(words[0]) || words[1].isEmpty()) {
      throw malformed("it begins with no line 'METHOD /path HTTP/1.1'");
    }
    if (!words[2].equals("HTTP/1.1") && !words[2].equals("HTTP/1.0")) {
      throw words[2].startsWith("HTTP/")
          ? new HttpRefusal(505, "HTTP/1.1 is right here")
          : malformed("it begins with no line 'METHOD /path HTTP/1.1'");
    }
    method = words[0];
    keepsAlive = words[2].equals("HTTP/1.1");
    String target = words[1];
    int authority = target.startsWith("/") ? -1 : target.indexOf("://");
    if (authority >= 0) { // as proxies ask
      int from = target.indexOf('/', authority + 3);
      target = from < 0 ? "/" : target.substring(from);
    }
    int query = target.indexOf('?');
    path = query < 0 ? target : target.substring(0, query);
  }

  private void header(String text) throws HttpRefusal {
    int colon = text.indexOf(':');
    if (colon < 0 || !isToken(text.substring(0, colon))) {
      throw malformed("a header is no 'Name: value'");
    }
    String value = text.substring(colon + 1).strip();
    for (int i = 0; i < value.length(); i++) {
      if (value.charAt(i) < ' ' && value.charAt(i) != '\t') {
        throw malformed("a header holds a control character");
      }
    }
    headers.merge(text.substring(0, colon).toLowerCase(Locale.ROOT), value, (a, b) -> a + ", " + b);
  }

  /** The characters that RFC 9110 allows in names. */
  private static boolean isToken(String text) {
    return !text.isEmpty()
        && text.chars()
            .allMatch(
                c ->
                    c >= 'a' && c <= 'z'
                        || c >= 'A' && c <= 'Z'
                        || c >= '0' && c <= '9'
                        || "!#$%&'*+-.^_`|~".indexOf(c) >= 0);
  }

  private void findBody() throws HttpRefusal {
    String connection = headers.getOrDefault("connection", "").toLowerCase(Locale.ROOT);
    for (String option : connection.split(",")) {
      keepsAlive &= !option.strip().equals("close");
      keepsAlive |= option.strip().equals("keep-alive") && !connection.contains("close");
    }
    String encoding = headers.get("transfer-encoding");
    String length = headers.get("content-length");
    if (encoding != null) {
      if (length != null) {
        throw malformed("it has both Content-Length and Transfer-Encoding");
      }
      if (!encoding.equalsIgnoreCase("chunked")) {
        throw new HttpRefusal(501, "of transfer encodings there is chunked only");
      }
      headBytes = 0;
      part = Part.CHUNK_SIZE;
      return;
    }
    if (length != null) {
      if (length.isEmpty() || !length.chars().allMatch(c -> c >= '0' && c <= '9')) {
        throw malformed("Content-Length is no number");
      }
      if (length.length() > 10 || Long.parseLong(length) > mostBody) {
        throw tooLarge();
      }
      missing = Long.parseLong(length);
    }
    part = missing == 0 ? Part.WHOLE : Part.BODY;
  }

  private HttpRefusal tooLarge() {
    return new HttpRefusal(413, "the request has more than " + mostBody + " bytes");
  }

  private void chunk(String text) throws HttpRefusal {
    int extension = text.indexOf(';');
    String size = (extension < 0 ? text : text.substring(0, extension)).strip();
    if (size.isEmpty() || !size.chars().allMatch(c -> c < 128 && Character.digit(c, 16) >= 0)) {
      throw malformed("a chunk has no size");
    }
    if (size.length() > 8 || bodyLength + Long.parseLong(size, 16) > mostBody) {
      throw tooLarge();
    }
    missing = Long.parseLong(size, 16);
    headBytes = 0; // chunks may be many
    part = missing == 0 ? Part.TRAILER : Part.CHUNK;
  }
}
