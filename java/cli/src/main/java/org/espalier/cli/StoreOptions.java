package org.espalier.cli;

import java.nio.file.Path;
import java.security.PublicKey;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.OptionalLong;
import org.espalier.InputException;
import org.espalier.source.ModelSource;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.espalier.store.StoreWriter;
import picocli.CommandLine.Option;

/** Which store, and whom it trusts. */
final class StoreOptions {
  @Option(
      names = "--store",
      paramLabel = "DIR",
      required = true,
      description = "The folder of the store.")
  private String folder;

  @Option(
      names = "--trust",
      paramLabel = "FILE",
      description =
          "A PEM file with a public Ed25519 key; versions that no trusted key signed are refused."
              + " May be given several times.")
  private List<String> trust = new ArrayList<>();

  Path folder() {
    return ModelSource.path(folder);
  }

  ModelStore open() {
    return trusting(ModelStore.open(folder()));
  }

  /** The store, made where there is none. */
  ModelStore create() {
    return trusting(ModelStore.create(folder()));
  }

  private ModelStore trusting(ModelStore store) {
    return store.trusting(trusted());
  }

  private List<PublicKey> trusted() {
    return trust.stream().map(file -> SigningKey.readPublic(ModelSource.path(file))).toList();
  }

  /**
   * The key that signs what is published, or null. A store that trusts keys gets nothing that none of them signed.
   *
   * @param file of the key; null where none is given
   */
  SigningKey signingKey(String file) {
    if (file == null && !trust.isEmpty()) {
      throw new InputException(
          "--trust refuses versions without a signature: --key signs what is published");
    }
    SigningKey key = file == null ? null : SigningKey.read(ModelSource.path(file));
    if (!trust.isEmpty() && !key.isOneOf(trusted())) {
      throw new InputException(
          "--trust refuses what --key "
              + file
              + " signs: its public key is none of "
              + String.join(", ", trust));
    }
    return key;
  }

  /** A version that the user wrote: a number, or {@code current}. */
  static long version(ModelStore store, String given) {
    if (given.equals("current")) {
      OptionalLong current = store.current();
      return current.orElseThrow(
          () -> new InputException(store.folder() + " has no current version yet"));
    }
    try {
      return Long.parseLong(given);
    } catch (NumberFormatException e) {
      throw new InputException(
          "'" + given + "' is no version; a number of 'espalier store list', or 'current'", e);
    }
  }

  /** How long a command waits for another writer. */
  static final class Wait {
    @Option(
        names = "--wait",
        paramLabel = "SECONDS",
        description = "Wait so long for another process that writes. Default: 10.")
    private double seconds = 10;

    StoreWriter writer(ModelStore store) {
      if (!(seconds >= 0 && seconds <= 1e6)) {
        throw new InputException("--wait " + seconds + "; 0 to 1000000 seconds are right");
      }
      return store.writer(Duration.ofNanos((long) (seconds * 1e9)));
    }
  }
}
