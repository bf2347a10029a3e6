package org.espalier.binding;

/** A call of the native library failed for a reason that is neither an argument nor memory. */
public class NativeException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  public NativeException(String message) {
    super(message);
  }
}
