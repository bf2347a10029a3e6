package org.espalier.cli;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.OptionalInt;
import java.util.concurrent.Callable;
import org.espalier.InputException;
import org.espalier.evaluate.Measure;
import org.espalier.evaluate.Requirement;
import org.espalier.format.Quantity;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeRun;
import org.espalier.source.ModelSource;
import org.espalier.torch.TorchDevice;
import org.espalier.train.NonFiniteLossException;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** Carries a recipe out. */
@Command(
    name = "compress",
    description = {
      "Does what RECIPE says to a model: prunes it, quantizes it, trains it to follow the original,"
          + " and writes the result with a report into DIR.",
      "",
      "  DIR/model-int8.onnx  for ONNX Runtime (model-int4.onnx with form: int4, model.onnx where"
          + " no stage quantizes and the model is not int8 already)",
      "  DIR/report.html      what was done and what came of it, for a browser",
      "  DIR/report.json      the same for programs",
      "",
      "Ctrl-C stops at a checkpoint, and --resume goes on from it to the very result that an"
          + " uninterrupted run has. The same recipe gives the same bytes on the same machine."
    },
    footer = {
      "",
      "Examples:",
      "  espalier compress examples/minilm/recipe.yaml -o minilm",
      "  espalier compress recipe.yaml -o out --set quantize.steps=50 --set seed=2",
      "  espalier compress recipe.yaml -o out --resume",
      "",
      "'espalier recipe --help' is about writing recipes.",
      "Exit codes: 0 done, 1 training broke down (NaN) or espalier failed, 2 bad input, 3 done but"
          + " a requirement of report.require is missed, 130 stopped.",
    })
final class Compress implements Callable<Integer> {
  @Mixin private CommonOptions common;

  @Parameters(paramLabel = "RECIPE", description = "The recipe, a YAML file.")
  private String file;

  @Option(
      names = {"-o", "--output"},
      paramLabel = "DIR",
      required = true,
      description = "The folder to write; new or empty.")
  private String output;

  @Option(
      names = "--set",
      paramLabel = "KEY=VALUE",
      description = "Change a key of the recipe, as stage.key=value or section.key=value.")
  private List<String> set = new ArrayList<>();

  @Option(names = "--resume", description = "Go on with a run that stopped.")
  private boolean resume;

  @Option(
      names = "--device",
      paramLabel = "auto|cpu|cuda[:N]",
      defaultValue = "auto",
      description =
          "What trains; cuda needs a build with -Pgpu. Results are the same bytes only on the same"
              + " device. Default: ${DEFAULT-VALUE}, a GPU where libtorch and Espalier can use"
              + " one.")
  private String device;

  @Option(
      names = "--threads",
      paramLabel = "N",
      description =
          "Threads that training uses. Results are the same bytes only with the same number."
              + " Default: all processors.")
  private Integer threads;

  @Override
  public Integer call() {
    Machine.useThreads(threads);
    Machine.isa();
    Path path = ModelSource.path(file);
    Path folder = ModelSource.path(output);
    Recipe recipe = Recipe.read(path, set);
    TorchDevice trainsOn = trainingDevice();
    RecipeRun.Outcome outcome;
    CommandMonitor monitor = new CommandMonitor(common::note);
    try (Interrupts interrupts =
        new Interrupts(
            () -> {
              monitor.stop();
              common.note("stopping at a checkpoint; Ctrl-C again ends at once");
            })) {
      try (Progress progress = new Progress(common.err(), "reading")) {
        monitor.showOn(progress);
        Path base = path.toAbsolutePath().getParent();
        outcome = new RecipeRun(recipe, base, folder, monitor, trainsOn).run(resume);
      } catch (NonFiniteLossException e) {
        common.err().println("espalier: " + e.getMessage());
        common.note(
            (hasCheckpoint(folder)
                    ? "the last good checkpoint is in " + folder.resolve("run")
                    : "there was no checkpoint yet")
                + "; a lower learning-rate or a max-norm helps most often, in a new folder");
        return 1;
      }
      if (outcome == RecipeRun.Outcome.STOPPED) {
        common.note(
            hasCheckpoint(folder)
                ? "stopped; the same command with --resume goes on"
                : "stopped before the first checkpoint; the same command begins anew");
        return interrupts.code();
      }
    }
    if (outcome == RecipeRun.Outcome.WAS_COMPLETE) {
      common.note(folder + " holds the complete run already");
    }
    return show(folder);
  }

  private TorchDevice trainingDevice() {
    OptionalInt cuda = DeviceOption.cuda(device);
    if (cuda.isEmpty()) {
      return device.equals("auto") ? TorchDevice.best() : TorchDevice.CPU;
    }
    try {
      return TorchDevice.cuda(cuda.getAsInt());
    } catch (UnsupportedOperationException | IllegalArgumentException e) {
      throw new InputException("--device " + device + ": " + e.getMessage(), e);
    }
  }

  private static boolean hasCheckpoint(Path folder) {
    return Files.exists(folder.resolve("run").resolve("checkpoint"));
  }

  /** Prints the report; the exit code follows from what it says of requirements. */
  private int show(Path folder) {
    JsonNode report;
    try {
      report =
          new ObjectMapper().readTree(Files.readAllBytes(folder.resolve(RecipeRun.REPORT_JSON)));
    } catch (JsonProcessingException e) {
      throw new InputException(folder.resolve(RecipeRun.REPORT_JSON) + " is damaged", e);
    } catch (IOException e) {
      throw new InputException("cannot read the report: " + e.getMessage(), e);
    }
    for (JsonNode warning : report.path("warnings")) {
      common.note("warning: " + warning.asText());
    }
    List<String> missed = new ArrayList<>();
    for (JsonNode given : report.path("requirements")) {
      Requirement.Verdict verdict =
          new Requirement.Verdict(
              Requirement.of(given.path("requirement").asText()),
              null,
              given.path("measured").asDouble(Double.NaN),
              given.path("bound").asDouble(Double.NaN));
      if (!verdict.isMet()) {
        missed.add(verdict.toString());
      }
    }
    if (common.json()) {
      common.print(report);
      return common.exitCode(missed);
    }
    JsonNode fidelity = report.path("fidelity");
    Table table = new Table("", "");
    for (JsonNode made : report.path("outputs")) {
      table.add(
          "wrote",
          folder.resolve(made.path("file").asText())
              + "  "
              + Quantity.bytes(made.path("bytes").asDouble()));
    }
    table.add(
        "size",
        number(fidelity, "size_ratio", "%.3f of the original")
            + (report.path("model").has("weights")
                ? ", which is " + report.path("model").path("weights").asText() + " too"
                : ""));
    table.add("speed", number(fidelity, "speedup", "%.2fx the original, one thread"));
    for (Measure measure : Measure.values()) {
      JsonNode number = fidelity.path(measure.key());
      if (number.isNumber() && !Measure.OF_SAVINGS.contains(measure)) {
        JsonNode original = fidelity.path(measure.referenceKey());
        table.add(
            "answers",
            measure.heading()
                + " "
                + measure.format(number.asDouble())
                + (original.isNumber()
                    ? ", the original " + measure.format(original.asDouble())
                    : ""));
      }
    }
    table.add("report", folder.resolve(RecipeRun.REPORT_HTML).toString());
    table.add("time", Quantity.seconds(report.path("seconds").asDouble()));
    table.print(common.out());
    return common.exitCode(missed);
  }

  private static String number(JsonNode from, String key, String format) {
    return String.format(Locale.ROOT, format, from.path(key).asDouble());
  }
}
