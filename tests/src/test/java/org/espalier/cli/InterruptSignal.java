package org.espalier.cli;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import sun.misc.Signal;

/** SIGINT to the process of the tests itself. */
final class InterruptSignal {
  private InterruptSignal() {}

  /** Skips a test where the process ignores the signal from its beginning, as what a shell starts in the background does. */
  static void assumeHeard() throws IOException {
    for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
      if (line.startsWith("SigIgn:")) {
        long ignored = Long.parseUnsignedLong(line.substring(line.indexOf(':') + 1).strip(), 16);
        long bit = 1L << (new Signal("INT").getNumber() - 1);
        assumeTrue((ignored & bit) == 0, "SIGINT is ignored here");
      }
    }
  }

  static void raise() {
    Signal.raise(new Signal("INT"));
  }
}
