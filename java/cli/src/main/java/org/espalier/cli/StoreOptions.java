package org.espalier.cli;

import java.nio.file.Path;
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

  /** Whether only signed versions are taken. */
  boolean isTrusting() {
    return !trust.isEmpty();
  }

  ModelStore open() {
    return trusting(ModelStore.open(folder()));
  }

  /** The store, made where there is none. */
  ModelStore create() {
    return trusting(ModelStore.create(folder()));
  }

  private ModelStore trusting(ModelStore store) {
    return store.trusting(
        trust.stream().map(file -> SigningKey.readPublic(ModelSource.path(file))).toList());
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
