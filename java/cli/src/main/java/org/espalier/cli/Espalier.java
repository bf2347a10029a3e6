package org.espalier.cli;

import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.espalier.InputException;
import org.espalier.backend.NativeLibraries;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * The {@code espalier} command.
 *
 * <p>Exit codes: 0 done, 1 a failure of ours, 2 usage or bad input, 3 done but a requirement is missed, 130 interrupted.
 */
@Command(
    name = "espalier",
    description = "Makes neural networks smaller and faster, inside the JVM.",
    synopsisSubcommandLabel = "COMMAND",
    subcommands = {
      Doctor.class,
      Inspect.class,
      Prune.class,
      Quantize.class,
      Export.class,
      Evaluate.class,
      Compress.class,
      RecipeCommand.class,
      Store.class,
      Online.class,
      Serve.class
    },
    footer = {
      "",
      "MODEL is an .onnx file, a .safetensors file, a folder with model.safetensors or with shards"
          + " and their index, or maven:GROUP:ARTIFACT:VERSION!/ENTRY, a file inside an artefact"
          + " that your own Maven resolves.",
      "",
      "Exit codes: 0 done, 1 a failure of espalier, 2 usage or bad input, 3 done but a requirement"
          + " is missed, 130 interrupted.",
      "ESPALIER_ISA=scalar|avx2|avx512 and ESPALIER_THREADS=N choose what the kernels run on; the"
          + " results do not depend on them.",
      "",
      "@|bold espalier COMMAND --help|@ explains a command with examples. In the source tree"
          + " @|bold espalier package|@ packs an archive that runs without it, and"
          + " @|bold espalier test|@ builds everything and runs the tests.",
    })
public final class Espalier implements Runnable {
  /** The environment variable that, where set, asks for stack traces as {@code --verbose} does. */
  private static final String DEBUG = "ESPALIER_DEBUG";

  @Spec private CommandSpec spec;
  @Mixin private CommonOptions common;

  @Option(
      names = {"-V", "--version"},
      description = "Print the version and the commit.")
  private boolean version;

  public static void main(String[] args) {
    Interrupts.endAtOnce();
    System.exit(
        run(
            new PrintWriter(System.out, true, StandardCharsets.UTF_8),
            new PrintWriter(System.err, true, StandardCharsets.UTF_8),
            args));
  }

  /**
   * Runs one command line.
   *
   * @param out where results go
   * @param err where everything else goes
   * @return the exit code
   */
  static int run(PrintWriter out, PrintWriter err, String... args) {
    boolean verbose = List.of(args).contains("--verbose") || System.getenv(DEBUG) != null;
    if (verbose) { // before anything logs, because the logger reads it once
      System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "debug");
    }
    CommandLine line =
        new CommandLine(new Espalier())
            .setOut(out)
            .setErr(err)
            .setUsageHelpAutoWidth(true)
            .setCaseInsensitiveEnumValuesAllowed(true)
            .setParameterExceptionHandler((e, given) -> usageError(e))
            .setExecutionExceptionHandler((e, command, parsed) -> failure(e, err, verbose));
    try {
      return line.execute(args);
    } catch (Error e) { // the handler above is for exceptions
      return failure(e, err, verbose);
    } finally {
      out.flush();
      err.flush();
    }
  }

  private static int usageError(ParameterException e) {
    CommandLine command = e.getCommandLine();
    PrintWriter err = command.getErr();
    err.println("espalier: " + e.getMessage());
    UnmatchedArgumentException.printSuggestions(e, err);
    err.println(command.getCommandSpec().qualifiedName() + " --help explains it");
    return 2;
  }

  private static int failure(Throwable e, PrintWriter err, boolean verbose) {
    String natives = NativeLibraries.problem(e);
    boolean bad = e instanceof InputException || natives != null;
    if (natives != null && !(e instanceof InputException)) {
      err.println("espalier: " + natives);
    } else if (bad) {
      err.println("espalier: " + e.getMessage());
    } else if (e instanceof OutOfMemoryError) {
      err.println(
          "espalier: out of memory ("
              + e.getMessage()
              + "); JDK_JAVA_OPTIONS=-Xmx… gives the JVM more");
    } else {
      err.println(
          "espalier: failed: "
              + (e.getMessage() == null ? e.getClass().getName() : e.getMessage()));
    }
    if (verbose) {
      e.printStackTrace(err);
    } else if (!bad) {
      err.println("espalier: this is an error of espalier; --verbose shows where it happened");
    }
    return bad ? 2 : 1;
  }

  @Override
  public void run() {
    if (!version) {
      throw new ParameterException(spec.commandLine(), "a command is missing");
    }
    Build build = Build.current();
    if (common.json()) {
      common.print(build.toJson());
    } else {
      common.out().println(build.describe());
    }
  }
}
