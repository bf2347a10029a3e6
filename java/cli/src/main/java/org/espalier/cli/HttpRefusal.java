package org.espalier.cli;

import java.util.Map;

/** A request that is not done as it was asked, with the status that says so. */
final class HttpRefusal extends Exception {
  private static final long serialVersionUID = 1L;
  final int status;
  final transient Map<String, String> headers;

  HttpRefusal(int status, String message) {
    this(status, message, Map.of());
  }

  /**
   * @param headers that the answer has
   */
  HttpRefusal(int status, String message, Map<String, String> headers) {
    super(message);
    this.status = status;
    this.headers = headers;
  }
}
