package org.espalier.online.privacy;

import org.espalier.InputException;

/** Learning more in private would tell more than was allowed. */
public final class PrivacyBudgetException extends InputException {
  private static final long serialVersionUID = 1L;

  PrivacyBudgetException(String message) {
    super(message);
  }
}
