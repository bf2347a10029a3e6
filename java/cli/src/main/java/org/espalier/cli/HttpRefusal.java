package org.espalier.cli;

/** A request that is not done as it was asked, with the status that says so. */
final class HttpRefusal extends Exception {
  private static final long serialVersionUID = 1L;
  final int status;

  HttpRefusal(int status, String message) {
    super(message);
    this.status = status;
  }
}
