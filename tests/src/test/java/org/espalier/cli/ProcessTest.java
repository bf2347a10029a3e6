package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The command line as a process of its own: exit codes, environment and Ctrl-C. */
class ProcessTest {
  @TempDir Path folder;

  private Process start(String... args) throws IOException {
    return start(Map.of(), args);
  }

  private Process start(Map<String, String> environment, String... args) throws IOException {
    List<String> line =
        Stream.concat(
                Stream.of(
                    "env", // a shell may have started these tests with the signal ignored
                    "--default-signal=INT",
                    Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                    "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0",
                    "-cp",
                    System.getProperty("java.class.path"),
                    "org.espalier.cli.Espalier"),
                Stream.of(args))
            .toList();
    ProcessBuilder builder =
        new ProcessBuilder(line)
            .redirectOutput(folder.resolve("stdout").toFile())
            .redirectError(folder.resolve("stderr").toFile());
    // A JVM says what it picked up there, before anything else.
    builder.environment().keySet().removeAll(List.of("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"));
    builder.environment().putAll(environment);
    return builder.start();
  }

  private int codeOf(Process process) throws InterruptedException {
    assertTrue(process.waitFor(60, TimeUnit.SECONDS), "it hangs");
    return process.exitValue();
  }

  @Test
  void theExitCodeReachesTheShell() throws IOException, InterruptedException {
    assertEquals(0, codeOf(start("--version")));
    assertTrue(Files.readString(folder.resolve("stdout")).startsWith("espalier "));
    assertEquals(2, codeOf(start("inspect", folder.resolve("none.onnx").toString())));
    assertEquals("", Files.readString(folder.resolve("stdout")));
    String message = Files.readString(folder.resolve("stderr"));
    assertTrue(message.contains("none.onnx") && message.lines().count() == 1, message);
  }

  @Test
  void aWrongSettingOfTheEnvironmentIsRefused() throws IOException, InterruptedException {
    for (Map.Entry<String, String> setting :
        Map.of("ESPALIER_THREADS", "two", "ESPALIER_ISA", "sse2").entrySet()) {
      Process process = start(Map.of(setting.getKey(), setting.getValue()), "doctor", "--json");
      assertEquals(2, codeOf(process));
      String message = Files.readString(folder.resolve("stderr"));
      assertTrue(
          message.contains(setting.getKey() + " is \"" + setting.getValue() + "\"; it takes"),
          message);
    }
  }

  @Test
  void interruptedItLeavesNothingHalfWritten() throws IOException, InterruptedException {
    // Sparse, but the output is written in full: long enough to be met half-way.
    long elements = 400_000_000;
    byte[] header =
        ("{\"a.weight\":{\"dtype\":\"F32\",\"shape\":[" + elements / 1000 + ",1000],"
                + "\"data_offsets\":[0," + 4 * elements + "]}} ")
            .getBytes(StandardCharsets.UTF_8);
    Path model = folder.resolve("model.safetensors");
    try (RandomAccessFile file = new RandomAccessFile(model.toFile(), "rw")) {
      file.writeLong(Long.reverseBytes(header.length));
      file.write(header);
      file.setLength(8 + header.length + 4 * elements);
    }
    Path outputs = Files.createDirectory(folder.resolve("outputs"));
    Process process =
        start(
            "prune", model.toString(), "-o", outputs.resolve("out.safetensors").toString(),
            "--amount", "0.5");
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (count(outputs) == 0 && process.isAlive() && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
    assertEquals(1, count(outputs), "the temporary file never appeared: " + stderr());
    new ProcessBuilder("kill", "-INT", Long.toString(process.pid())).start().waitFor();
    assertEquals(130, codeOf(process), stderr());
    assertEquals(0, count(outputs));
  }

  private String stderr() throws IOException {
    return Files.readString(folder.resolve("stderr"));
  }

  private static long count(Path folder) throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.count();
    }
  }
}
