package org.espalier.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.espalier.InputException;
import org.espalier.online.Quarantine;
import org.espalier.source.ModelSource;
import org.espalier.store.SigningKey;
import picocli.CommandLine.Option;

/** How often what learns publishes, who signs it, and where what it did not learn goes. */
final class LearnerOptions {
  private static final long QUARANTINE_BYTES = 1L << 30;

  @Option(
      names = "--publish",
      paramLabel = "N",
      description =
          "Publish to the store every N examples, and at the end. Default: ${DEFAULT-VALUE}.")
  private long publishEvery;

  @Option(
      names = "--quarantine",
      paramLabel = "FILE",
      description = "Write what was not learned to this file, one JSON object a line.")
  private String quarantine;

  @Option(
      names = "--key",
      paramLabel = "FILE",
      description = "Sign versions with this private Ed25519 key, a PEM file.")
  private String key;

  /**
   * @param publishEvery the default
   */
  LearnerOptions(long publishEvery) {
    this.publishEvery = publishEvery;
  }

  long publishEvery() {
    if (publishEvery < 1) {
      throw new InputException("--publish " + publishEvery + "; 1 or more is right");
    }
    return publishEvery;
  }

  /**
   * The quarantine, or null.
   *
   * @param inputs files that it must not be
   */
  Quarantine quarantine(Path... inputs) {
    if (quarantine == null) {
      return null;
    }
    Path file = ModelSource.path(quarantine);
    for (Path input : inputs) {
      try {
        if (Files.exists(file) && Files.exists(input) && Files.isSameFile(file, input)) {
          throw new InputException(
              "--quarantine " + file + " is the input " + input + "; name another file");
        }
      } catch (IOException e) {
        throw InputException.of("cannot look at " + file, e);
      }
    }
    return Quarantine.open(file, QUARANTINE_BYTES);
  }

  /** Whether the quarantine is this file. */
  boolean quarantines(Path file) {
    return quarantine != null
        && ModelSource.path(quarantine).toAbsolutePath().normalize().equals(file);
  }

  /**
   * The key, or null.
   *
   * @param store where it publishes
   */
  SigningKey signingKey(StoreOptions store) {
    return store.signingKey(key);
  }
}
