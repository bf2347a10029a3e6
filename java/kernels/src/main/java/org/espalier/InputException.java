package org.espalier;

/**
 * Something given from outside (a file, an option, a tensor) is unusable. The message says what was
 * wrong, where, and what would be right; the command line prints it and exits with code 2.
 */
public class InputException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  public InputException(String message) {
    super(message);
  }

  public InputException(String message, Throwable cause) {
    super(message, cause);
  }
}
