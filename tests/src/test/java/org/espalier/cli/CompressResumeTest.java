package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.format.onnx.SmallModels;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeRun;
import org.espalier.recipe.RunMonitor;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Runs that stop, break down or are killed, and go on. */
class CompressResumeTest extends SmallClassifierRuns {
  /** Asks for a stop after so many steps. */
  private record Impatient(int[] left) implements RunMonitor {
    @Override
    public void progress(String text, long done, long total) {
      left[0] -= text.contains(": loss ") ? 1 : 0;
    }

    @Override
    public boolean stopRequested() {
      return left[0] <= 0;
    }
  }

  /** The teacher is the original, or what a stage left; or the model is int8 already. */
  @ParameterizedTest
  @ValueSource(strings = {"float", "tuned", "int8"})
  void stoppedAndResumedItEndsWithTheSameBits(String kind) throws IOException {
    if (kind.equals("int8")) {
      makeInt8();
    }
    if (kind.equals("tuned")) {
      String first = "stages:\n  - {kind: fine-tune, steps: 12, batch: 16, learning-rate: 1e-2}\n";
      Files.writeString(recipe, RECIPE.replace("stages:\n", first));
    }
    Path whole = folder.resolve("whole");
    Run.of("compress", recipe, "-o", whole).done();
    Path pieces = folder.resolve("pieces");
    Recipe parsed = Recipe.read(recipe, List.of());
    int stops = 0;
    RecipeRun.Outcome outcome = RecipeRun.Outcome.STOPPED;
    while (outcome == RecipeRun.Outcome.STOPPED) {
      outcome = runImpatiently(parsed, pieces, 9 + stops, stops > 0);
      if (outcome == RecipeRun.Outcome.STOPPED) {
        assertTrue(++stops < 20, "it does not get on");
        assertTrue(Files.exists(pieces.resolve("run").resolve("checkpoint")));
      }
    }
    assertTrue(stops >= 3, "only " + stops + " stops");
    assertSameModels(whole, pieces);
    ObjectMapper json = new ObjectMapper();
    JsonNode a = json.readTree(whole.resolve("report.json").toFile());
    JsonNode b = json.readTree(pieces.resolve("report.json").toFile());
    for (int i = 0; i < a.path("stages").size(); i++) {
      assertEquals(a.path("stages").get(i).path("curve"), b.path("stages").get(i).path("curve"));
      assertEquals(a.path("stages").get(i).path("after"), b.path("stages").get(i).path("after"));
    }
    assertEquals(a.path("layers"), b.path("layers"));
  }

  /** Asks for a stop after so many steps. */
  private RecipeRun.Outcome runImpatiently(Recipe parsed, Path out, int steps, boolean resume) {
    RunMonitor impatient = new Impatient(new int[] {steps});
    return new RecipeRun(parsed, folder, out, impatient, TorchDevice.CPU).run(resume);
  }

  @Test
  void aCheckpointIsCheckedBeforeItIsUsed() throws IOException {
    Path out = folder.resolve("out");
    Recipe parsed = Recipe.read(recipe, List.of());
    runImpatiently(parsed, out, 9, false);
    Path checkpoint = out.resolve("run").resolve("checkpoint");
    byte[] good = Files.readAllBytes(checkpoint);
    Run.refused(folder, new String[] {"--resume"}, "compress", recipe, "-o", out);
    Run.refused(
        folder,
        new String[] {"another run"},
        "compress",
        recipe,
        "-o",
        out,
        "--resume",
        "--set",
        "seed=9");
    for (int at : new int[] {0, 20, 44, good.length / 2, good.length - 1}) {
      byte[] bad = good.clone();
      bad[at] ^= 0x10;
      Files.write(checkpoint, bad);
      Run.refused(
          folder,
          new String[] {"checkpoint", "damaged"},
          "compress",
          recipe,
          "-o",
          out,
          "--resume");
    }
    for (int length : new int[] {0, 10, 75, good.length - 1}) {
      Files.write(checkpoint, Arrays.copyOf(good, length));
      Run.refused(
          folder,
          new String[] {"checkpoint", "damaged"},
          "compress",
          recipe,
          "-o",
          out,
          "--resume");
    }
    Files.write(checkpoint, good);
    examples(6, 256, 8, 4);
    Run.refused(folder, new String[] {"another run"}, "compress", recipe, "-o", out, "--resume");
    examples(5, 256, 8, 4);
    Run.of("compress", recipe, "-o", out, "--resume").done();
  }

  /** What was killed while it wrote its results is finished in the same folder. */
  @Test
  void leftoversOfAKilledRunAreReplaced() throws IOException {
    Files.writeString(folder.resolve("config.json"), "{\"model_type\": \"bert\"}");
    List<String> set =
        List.of(
            "model.config=config.json",
            "quantize.fit=false",
            "export.formats=[compressed-tensors]");
    Path out = folder.resolve("out");
    Recipe parsed = Recipe.read(recipe, set);
    runImpatiently(parsed, out, 9, false);
    Files.createDirectory(out.resolve("compressed-tensors"));
    Files.writeString(out.resolve("compressed-tensors").resolve("config.json"), "{}");
    Files.writeString(out.resolve(".espalier-0123456789abcdef.tmp"), "half");
    RecipeRun run = new RecipeRun(parsed, folder, out, RunMonitor.NONE, TorchDevice.CPU);
    assertEquals(RecipeRun.Outcome.COMPLETE, run.run(true));
    assertTrue(
        Files.readString(out.resolve("compressed-tensors").resolve("config.json"))
            .contains("int-quantized"));
    assertFalse(Files.exists(out.resolve(".espalier-0123456789abcdef.tmp")));
  }

  /** Nothing of a format of ours ends a name or a plan. */
  @Test
  void longNamesEmptyWeightsAndManyStagesAreCompressed() throws IOException {
    String name = "w".repeat(70_000);
    ModelProto.Builder model = SmallModels.mlp().toBuilder();
    model.getGraphBuilder().getInitializerBuilder(0).setName(name);
    model.getGraphBuilder().getNodeBuilder(0).setInput(1, name);
    model
        .getGraphBuilder()
        .addInitializer(SmallModels.floats("none", new Random(1), 1, 8, 0))
        .addNode(SmallModels.node("MatMul", "", List.of("x", "none"), "z"))
        .addOutput(SmallModels.value("z", DataType.FLOAT, -1, 0));
    Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    StringBuilder stages =
        new StringBuilder(RECIPE.substring(0, RECIPE.indexOf("  - kind: prune")));
    for (int i = 0; i < 200; i++) {
      stages.append("  - {kind: distil, name: s").append(i).append(", steps: 1, batch: 2}\n");
    }
    Files.writeString(recipe, stages + "report: {each-stage: false}\n");
    Path out = folder.resolve("out");
    Recipe parsed = Recipe.read(recipe, List.of());
    runImpatiently(parsed, out, 150, false);
    JsonNode report = Run.of("compress", recipe, "-o", out, "--resume", "--json").json();
    assertEquals(200, report.path("stages").size());
    assertEquals(name, report.at("/layers/0/name").asText());
  }

  /** The first stage breaks down, before any checkpoint. */
  @Test
  void aBreakdownWithoutACheckpointPromisesNone() throws IOException {
    Run run =
        Run.of(
            "compress",
            recipe,
            "-o",
            folder.resolve("out"),
            "--set",
            "checkpoint.every-seconds=600",
            "--set",
            "prune.optimizer=sgd",
            "--set",
            "prune.learning-rate=100",
            "--set",
            "prune.steps=400",
            "--set",
            "prune.loss={output: 1}",
            "--set",
            "distil.loss={output: 1}",
            "--set",
            "quantize.loss={output: 1}");
    assertEquals(1, run.code(), run.err());
    assertTrue(run.err().contains("there was no checkpoint yet"), run.err());
  }

  @Test
  void aFolderThatAnotherRunIsAtWorkInIsRefused() throws IOException {
    Path out = folder.resolve("out");
    Path lock = Files.createDirectories(out.resolve("run")).resolve("lock");
    try (FileChannel channel =
            FileChannel.open(lock, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        FileLock held = channel.lock()) {
      Run.refused(
          folder, new String[] {"another run is at work in", "out"}, "compress", recipe, "-o", out);
      assertTrue(held.isValid());
    }
    Run.of("compress", recipe, "-o", out, "--json").json();
    assertFalse(Files.exists(out.resolve("run")));
  }

  @Test
  void aLossThatIsNotFiniteEndsTheRunAndKeepsTheCheckpoint() throws IOException {
    Path out = folder.resolve("out");
    Run run =
        Run.of(
            "compress",
            recipe,
            "-o",
            out,
            "--set",
            "distil.optimizer=sgd",
            "--set",
            "distil.learning-rate=100",
            "--set",
            "distil.steps=400",
            "--set",
            "distil.momentum=0.99",
            "--set",
            "distil.loss.bound=1000");
    assertEquals(1, run.code(), run.err());
    assertTrue(run.err().contains("distil") && run.err().contains("step"), run.err());
    assertTrue(run.err().contains("checkpoint"), run.err());
    assertFalse(run.err().contains("\tat "), run.err());
    assertTrue(Files.size(out.resolve("run").resolve("checkpoint")) > 0);
    assertFalse(Files.exists(out.resolve("model-int8.onnx")));
  }

  private Process start(Path out, String prefix, String... args) throws IOException {
    String line =
        prefix
            + "exec '"
            + Path.of(System.getProperty("java.home"), "bin", "java")
            + "' -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dorg.bytedeco.javacpp.maxPhysicalBytes=0"
            // Its own cache could be empty, and what fills it under a limit fails.
            + System.getProperties().stringPropertyNames().stream()
                .filter("org.bytedeco.javacpp.cachedir"::equals)
                .map(name -> " '-D" + name + "=" + System.getProperty(name) + "'")
                .collect(Collectors.joining())
            // Where other checkouts are tested too, what the cache has of this one's may be theirs
            // by now.
            + " -Dorg.bytedeco.javacpp.pathsfirst=true '-Djava.library.path="
            + Path.of(
                System.getProperty("espalier.root"),
                "java/kernels/target/classes/org/espalier/binding/linux-x86_64")
            + "' -cp \"$CP\""
            + " org.espalier.cli.Espalier compress '"
            + recipe
            + "' -o '"
            + out
            + "' "
            + String.join(" ", args);
    ProcessBuilder builder =
        new ProcessBuilder("env", "--default-signal=INT", "bash", "-c", line)
            .redirectOutput(folder.resolve("stdout").toFile())
            .redirectError(folder.resolve("stderr").toFile());
    builder.environment().put("CP", System.getProperty("java.class.path"));
    return builder.start();
  }

  private void waitFor(Path path, Process process) throws IOException, InterruptedException {
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (!Files.exists(path) && process.isAlive() && System.nanoTime() < deadline) {
      Thread.sleep(10);
    }
    assertTrue(Files.exists(path), Files.readString(folder.resolve("stderr")));
  }

  @Test
  void killedItLosesNoCheckpointAndCtrlCStopsAtOne() throws Exception {
    String longer = "--set distil.steps=150";
    Path out = folder.resolve("out");
    Path checkpoint = out.resolve("run").resolve("checkpoint");
    Process killed = start(out, "", longer);
    waitFor(checkpoint, killed);
    killed.destroyForcibly().waitFor();
    assertTrue(Files.size(checkpoint) > 0);
    Process stopped = start(out, "", longer, "--resume");
    Thread.sleep(50);
    while (!Files.readString(folder.resolve("stderr")).contains("going on") && stopped.isAlive()) {
      Thread.sleep(10);
    }
    new ProcessBuilder("kill", "-INT", Long.toString(stopped.pid())).start().waitFor();
    assertTrue(stopped.waitFor(60, TimeUnit.SECONDS), "it hangs");
    String err = Files.readString(folder.resolve("stderr"));
    assertEquals(130, stopped.exitValue(), err);
    assertTrue(err.contains("--resume goes on"), err);
    String[] set = {"--set", "distil.steps=150"};
    Run.of("compress", recipe, "-o", out, "--resume", set[0], set[1]).done();
    Path whole = folder.resolve("whole");
    Run.of("compress", recipe, "-o", whole, set[0], set[1]).done();
    assertSameModels(whole, out);
  }

  /** A limit on the size of files stands for a full disk: the same call fails in the same way. */
  @Test
  void aFullDiskEndsTheRunAndKeepsTheCheckpoint() throws Exception {
    Path out = folder.resolve("out");
    Recipe parsed = Recipe.read(recipe, List.of());
    runImpatiently(parsed, out, 9, false);
    Path checkpoint = out.resolve("run").resolve("checkpoint");
    byte[] good = Files.readAllBytes(checkpoint);
    int limit = 3; // KiB: room for standard error, where newer JVMs warn, and none for a checkpoint
    assertTrue(good.length > limit << 10, good.length + " bytes");
    Process process = start(out, "trap '' XFSZ; ulimit -f " + limit + "; ", "--resume");
    assertTrue(process.waitFor(60, TimeUnit.SECONDS), "it hangs");
    String err = Files.readString(folder.resolve("stderr"));
    assertEquals(2, process.exitValue(), err);
    assertTrue(err.contains("cannot write") && err.contains("checkpoint"), err);
    assertArrayEquals(good, Files.readAllBytes(checkpoint));
    try (Stream<Path> files = Files.list(out.resolve("run"))) {
      List<String> left = new ArrayList<>();
      files.forEach(f -> left.add(f.getFileName().toString()));
      assertTrue(left.stream().noneMatch(f -> f.endsWith(".tmp")), left.toString());
    }
    Run.of("compress", recipe, "-o", out, "--resume").done();
  }
}
