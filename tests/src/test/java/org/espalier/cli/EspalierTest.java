package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.online.model.OnnxModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class EspalierTest {
  @TempDir Path folder;

  @Test
  void theVersionIsAResult() {
    Run run = Run.of("--version").done();
    assertTrue(run.out().matches("espalier \\S+(, commit \\S+)?\n"), run.out());
    assertEquals("", run.err());
    assertTrue(Run.of("--version", "--json").json().get("version").isTextual());
  }

  @Test
  void jsonMayBeAskedForBeforeTheCommand() {
    assertTrue(Run.of("--json", "doctor").json().get("isa").isTextual());
    assertTrue(Run.of("--json", "recipe", "schema").json().isObject());
    assertTrue(Run.of("recipe", "--json", "schema").json().isObject());
  }

  @Test
  void withoutACommandItSaysSo() {
    Run run = Run.of();
    assertEquals(2, run.code());
    assertTrue(run.err().contains("a command is missing"), run.err());
  }

  @Test
  void anUnknownCommandIsAnsweredWithANearOne() {
    Run run = Run.of("inspec", "x.onnx");
    assertEquals(2, run.code());
    assertTrue(run.err().contains("espalier inspect"), run.err());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {"doctor", "inspect", "prune", "quantize", "evaluate", "store", "online", "serve"})
  void everyCommandTeachesWithExamples(String command) {
    Run run = Run.of(command, "--help").done();
    assertTrue(run.out().contains("Examples:"), run.out());
    assertTrue(run.out().contains("--json"), run.out());
    assertTrue(run.out().lines().allMatch(line -> line.length() <= 80), run.out());
  }

  @ParameterizedTest
  @ValueSource(strings = {"doctor", "inspect"})
  void everyCommandRefusesAnUnknownOption(String command) {
    Run run = Run.of(command, "--no-such-option", "model.onnx");
    assertEquals(2, run.code());
    assertTrue(run.err().contains("--no-such-option"), run.err());
    assertTrue(run.err().contains("espalier " + command + " --help"), run.err());
  }

  @Test
  void doctorSaysWhatTheKernelsRunOn() {
    JsonNode json = Run.of("doctor", "--json").json();
    assertTrue(List.of("scalar", "avx2", "avx512").contains(json.get("isa").asText()));
    assertTrue(json.get("threads").asInt() >= 1);
    assertTrue(json.get("copy_bytes_per_second").asDouble() > 1e8);
    assertEquals(json.get("gpus").isEmpty(), json.get("no_gpu_because").isTextual());
    assertTrue(json.get("native_library").asText().endsWith(".so"));
    Run text = Run.of("doctor").done();
    for (String line : List.of("isa ", "threads ", "gpu ", "copy ", "java ", "natives ")) {
      assertTrue(text.out().contains("\n" + line), text.out());
    }
  }

  /** A limit of the shell on the size of files, in KiB, stands for a full disk: JavaCPP fits, our library does not. */
  @ParameterizedTest
  @CsvSource({
    "prune, 'the native libraries cannot be loaded'",
    "online, 'libtorch cannot be unpacked'"
  })
  void nativesThatCannotBeUnpackedAreNoFailureOfOurs(String command, String told) throws Exception {
    Path model = folder.resolve("model.onnx");
    OnnxModels.imputing(8, 4, 1).write(model); // which asks libtorch
    Path recipe =
        Files.writeString(
            folder.resolve("online.yaml"), "loss: binary\nlearning-rate: 0.1\nbatch: 1\n");
    List<String> line =
        new ArrayList<>(
            List.of(
                "bash",
                "-c",
                "ulimit -f 200 && exec \"$@\"",
                "bash",
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
                "-Dorg.bytedeco.javacpp.cachedir=" + Files.createDirectory(folder.resolve("cache")),
                "-cp",
                System.getProperty("java.class.path"),
                Espalier.class.getName(),
                command));
    line.addAll(
        command.equals("prune")
            ? List.of(model.toString(), "--amount", "0.5", "-o", folder.resolve("out") + ".onnx")
            : List.of(
                "--model",
                model.toString(),
                "--input",
                recipe.toString(),
                "--recipe",
                recipe.toString(),
                "--store",
                folder.resolve("store").toString()));
    Path said = folder.resolve("said");
    Process process =
        new ProcessBuilder(line).redirectErrorStream(true).redirectOutput(said.toFile()).start();
    int code = process.waitFor();
    String text = Files.readString(said);
    assertEquals(2, code, text);
    assertTrue(text.contains(told), text);
    assertTrue(text.contains("File too large"), text);
    assertTrue(text.contains("org.bytedeco.javacpp.cachedir"), text);
  }
}
