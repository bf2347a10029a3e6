package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.OutputStream;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The command line as a process of its own: exit codes, environment and Ctrl-C. */
class ProcessTest {
  @TempDir Path folder;

  private Process start(String... args) throws IOException {
    return start(Map.of(), args);
  }

  private Process start(Map<String, String> environment, String... args) throws IOException {
    return start(List.of(), environment, args);
  }

  private Process start(List<String> prefix, Map<String, String> environment, String... args)
      throws IOException {
    List<String> line = new ArrayList<>(prefix);
    line.addAll(
        Stream.concat(
                Stream.of(
                    "env", // a shell may have started these tests with the signal ignored
                    "--default-signal=INT",
                    Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0",
                    "-cp",
                    System.getProperty("java.class.path"),
                    "org.espalier.cli.Espalier"),
                Stream.of(args))
            .toList());
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
        ("{\"a.weight\":{\"dtype\":\"F32\",\"shape\":["
                + elements / 1000
                + ",1000],"
                + "\"data_offsets\":[0,"
                + 4 * elements
                + "]}} ")
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
            "prune",
            model.toString(),
            "-o",
            outputs.resolve("out.safetensors").toString(),
            "--amount",
            "0.5");
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (count(outputs) == 0 && process.isAlive() && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
    assertEquals(1, count(outputs), "the temporary file never appeared: " + stderr());
    signal(process, "INT");
    assertEquals(130, codeOf(process), stderr());
    assertEquals(0, count(outputs));
  }

  @Test
  void interruptedALearnerKeepsWhatItLearned() throws IOException, InterruptedException {
    Path stream = folder.resolve("stream.jsonl");
    StringBuilder lines = new StringBuilder();
    for (int i = 0; i < 70; i++) {
      lines
          .append("{\"features\": [")
          .append(i % 2)
          .append(", 1], \"label\": ")
          .append(i % 2)
          .append("}\n");
    }
    Files.writeString(stream, lines);
    Path recipe = folder.resolve("online.yaml");
    Files.writeString(
        recipe,
        "loss: cross-entropy\nlearning-rate: 0.1\nbatch: 32\nmodel: {features: 2, outputs: 2}\n");
    Path store = folder.resolve("store");
    Process learner =
        start(
            "online",
            "--input",
            stream.toString(),
            "--recipe",
            recipe.toString(),
            "--store",
            store.toString(),
            "--publish",
            "64",
            "--follow",
            "--json");
    awaitFile(store.resolve("versions").resolve("1"), learner);
    signal(learner, "INT");
    assertEquals(130, codeOf(learner), stderr());
    JsonNode said = new ObjectMapper().readTree(Files.readString(folder.resolve("stdout")));
    int seen = said.get("seen").asInt();
    assertTrue(seen >= 64, said.toString());
    assertEquals(seen, said.get("lines").asInt(), "a line that was read is not learned");
    int last = said.get("versions").get(said.get("versions").size() - 1).asInt();
    JsonNode version =
        Run.of("store", "show", Integer.toString(last), "--store", store, "--json").json();
    assertEquals(seen, version.get("data").get("to").asInt(), version.toString());
    Process server = start("serve", "--store", store.toString(), "--port", "0", "--json");
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (Files.size(folder.resolve("stdout")) == 0
        && server.isAlive()
        && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
    signal(server, "TERM");
    assertEquals(143, codeOf(server), stderr());
  }

  private static String example(int i) {
    return "{\"features\": [" + i % 2 + ", 1], \"label\": " + i % 2 + "}\n";
  }

  private Path recipe() throws IOException {
    return Files.writeString(
        folder.resolve("online.yaml"),
        "loss: cross-entropy\nlearning-rate: 0.1\nbatch: 4\nmodel: {features: 2, outputs: 2}\n");
  }

  /** A pipe that says nothing does not keep it from ending, nor from publishing. */
  @Test
  void interruptedWhileItWaitsForInputItKeepsWhatItLearned()
      throws IOException, InterruptedException {
    Path store = folder.resolve("store");
    Process learner =
        start(
            "online",
            "--input",
            "-",
            "--recipe",
            recipe().toString(),
            "--store",
            store.toString(),
            "--publish",
            "4",
            "--json");
    OutputStream input = learner.getOutputStream();
    for (int i = 0; i < 6; i++) {
      input.write(example(i).getBytes(StandardCharsets.UTF_8));
    }
    input.flush();
    awaitFile(store.resolve("versions").resolve("1"), learner);
    signal(learner, "TERM");
    assertEquals(143, codeOf(learner), stderr());
    JsonNode said = new ObjectMapper().readTree(Files.readString(folder.resolve("stdout")));
    int seen = said.get("seen").asInt();
    assertTrue(seen == 5 || seen == 6, said.toString()); // it was somewhere behind the fourth
    assertEquals("[1,2]", said.get("versions").toString());
    JsonNode last = Run.of("store", "show", "--store", store, "--json").json();
    assertEquals(seen, last.get("data").get("to").asInt(), last.toString());
  }

  /** Logs are renamed and begun anew, or emptied: no line is lost and none is read twice. */
  @Test
  void aFollowedFileMayBeReplaced() throws IOException, InterruptedException {
    Path stream = Files.writeString(folder.resolve("stream.jsonl"), example(1));
    Path store = folder.resolve("store");
    Process learner =
        start(
            "online",
            "--input",
            stream.toString(),
            "--recipe",
            recipe().toString(),
            "--store",
            store.toString(),
            "--publish",
            "1",
            "--follow",
            "--json");
    Path versions = store.resolve("versions");
    awaitFile(versions.resolve("1"), learner);
    Files.writeString(stream, example(0) + example(1), StandardOpenOption.APPEND);
    Files.move(stream, folder.resolve("stream.jsonl.1"));
    Files.writeString(stream, example(1));
    awaitFile(versions.resolve("3"), learner);
    Files.writeString(stream, "");
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (stderr().split("is another file now", -1).length < 3 && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
    Files.writeString(stream, example(0), StandardOpenOption.APPEND);
    awaitFile(versions.resolve("4"), learner);
    signal(learner, "INT");
    assertEquals(130, codeOf(learner), stderr());
    JsonNode said = new ObjectMapper().readTree(Files.readString(folder.resolve("stdout")));
    assertEquals(5, said.get("seen").asInt(), said + stderr());
    assertEquals(5, said.get("lines").asInt(), said + stderr());
    JsonNode last = Run.of("store", "show", "--store", store, "--json").json();
    assertEquals(1, last.get("data").get("to").asInt(), last.toString());
  }

  private static void signal(Process process, String name)
      throws IOException, InterruptedException {
    new ProcessBuilder("kill", "-" + name, Long.toString(process.pid())).start().waitFor();
  }

  private void awaitFile(Path path, Process process) throws IOException, InterruptedException {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (!Files.exists(path) && process.isAlive() && System.nanoTime() < deadline) {
      Thread.sleep(5);
    }
    assertTrue(Files.exists(path), stderr());
  }

  private String stderr() throws IOException {
    return Files.readString(folder.resolve("stderr"));
  }

  private static long count(Path folder) throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.count();
    }
  }

  /** A limit on the size of files stands for a full disk. The second is room for our libraries alone. */
  @ParameterizedTest
  @CsvSource({"10, 'the native libraries cannot be loaded'", "6000, 'ONNX Runtime cannot be'"})
  void librariesThatCannotBeUnpackedAreTold(int kibibytes, String told) throws Exception {
    Path cache = folder.resolve("cache");
    Path model = folder.resolve("model.onnx");
    Files.write(model, SmallModels.mlp().toByteArray());
    Path examples = examples();
    List<String> limit =
        List.of("bash", "-c", "trap '' XFSZ; ulimit -f " + kibibytes + "; exec \"$@\"", "bash");
    Map<String, String> environment =
        Map.of("JDK_JAVA_OPTIONS", "-Dorg.bytedeco.javacpp.cachedir=" + cache);
    Process process =
        start(
            limit,
            environment,
            "quantize",
            model.toString(),
            "-o",
            folder.resolve("int8.onnx").toString(),
            "--to",
            "onnx-qdq",
            "--calibration",
            examples.toString());
    assertEquals(2, codeOf(process));
    String err = Files.readString(folder.resolve("stderr"));
    assertTrue(err.contains(told) && err.contains(cache + ","), err);
    assertFalse(err.contains("\tat "), err);
  }

  /** Two examples of zeros for {@link SmallModels#mlp}. */
  private Path examples() throws IOException {
    Path examples = folder.resolve("examples.safetensors");
    TensorSpec x = new TensorSpec("x", SafetensorsDtype.F32, List.of(2L, 8L));
    try (AtomicFile file = AtomicFile.create(examples)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, List.of(x), Map.of());
      writer.append("x", ByteBuffer.allocate(64));
      writer.finish();
      file.commit();
    }
    return examples;
  }

  /** ONNX Runtime warns of constants that nothing uses, in each part of a model that it runs. */
  @Test
  void warningsOfTheRuntimeAreNotShown() throws Exception {
    Path model = folder.resolve("model.onnx");
    ModelProto.Builder unused = SmallModels.mlp().toBuilder();
    unused.getGraphBuilder().addInitializer(SmallModels.int64s("unused", 1));
    Files.write(model, unused.build().toByteArray());
    String[] command = {
      "quantize", model.toString(), "-o", folder.resolve("int8.onnx").toString(), "--to", "onnx-qdq"
    };
    Process process =
        start(
            Map.of(),
            Stream.concat(Stream.of(command), Stream.of("--calibration", examples().toString()))
                .toArray(String[]::new));
    String err = codeOf(process) + stderr();
    assertTrue(err.startsWith("0"), err);
    assertFalse(err.contains("onnxruntime"), err);
  }
}
