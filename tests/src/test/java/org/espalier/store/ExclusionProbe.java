package org.espalier.store;

import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.espalier.InputException;

/** A second process that writes to a store. */
final class ExclusionProbe {
  private ExclusionProbe() {}

  /** Says «writing» and keeps the store. */
  static Process start(Path store) throws IOException {
    return java("", "hold", store);
  }

  /** Publishes more than its limit on the size of a file allows. */
  static Process startFilling(Path store) throws IOException {
    return java("ulimit -f 256; ", "fill", store);
  }

  /** Whether another process is kept from writing. */
  static boolean isLocked(Path store) {
    try {
      Process process = java("", "try", store);
      String line;
      try (var out = process.inputReader()) {
        line = out.readLine();
      }
      return process.waitFor(30, TimeUnit.SECONDS) && line.contains("is being written by process");
    } catch (IOException | InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  private static Process java(String prefix, String mode, Path store) throws IOException {
    List<String> command = new ArrayList<>(List.of("bash", "-c", prefix + "exec \"$0\" \"$@\""));
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of("-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"));
    command.addAll(List.of("-cp", System.getProperty("java.class.path")));
    command.addAll(List.of(ExclusionProbe.class.getName(), mode, store.toString()));
    ProcessBuilder builder = new ProcessBuilder(command).redirectErrorStream(true);
    // A JVM says what it picked up there, before anything else.
    builder.environment().keySet().removeAll(List.of("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"));
    return builder.start();
  }

  public static void main(String[] args) throws Exception {
    ModelStore store = ModelStore.open(Path.of(args[1]));
    try (StoreWriter writer = store.writer(Duration.ZERO)) {
      if (args[0].equals("fill")) {
        writer.publish(ModelStoreTest.content("x".repeat(1 << 19)), "model", Lineage.NONE, null);
      } else if (args[0].equals("hold")) {
        System.out.println("writing");
        Thread.sleep(60_000);
      }
      System.out.println("done");
    } catch (InputException e) {
      System.out.println("InputException: " + e.getMessage());
    }
  }
}
