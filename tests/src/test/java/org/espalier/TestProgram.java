package org.espalier;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** Classes of the tests with a {@code main} that run in a process of their own. */
public final class TestProgram {
  private TestProgram() {}

  /**
   * A process that starts fast, without its standard error.
   *
   * @param arguments as text
   */
  public static ProcessBuilder of(Class<?> program, Object... arguments) {
    return new ProcessBuilder(command(program, arguments))
        .redirectError(ProcessBuilder.Redirect.DISCARD);
  }

  /** The same in a shell that lets files grow to so many KiB; beyond, writing fails as on a full disk. */
  public static ProcessBuilder withFilesUpTo(int kib, Class<?> program, Object... arguments) {
    List<String> command =
        new ArrayList<>(List.of("bash", "-c", "ulimit -f " + kib + "; exec \"$0\" \"$@\""));
    command.addAll(command(program, arguments));
    return new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.DISCARD);
  }

  private static List<String> command(Class<?> program, Object... arguments) {
    List<String> command =
        new ArrayList<>(
            List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:-UsePerfData",
                "-XX:TieredStopAtLevel=1",
                "-Xshare:auto",
                "-cp",
                System.getProperty("java.class.path"),
                program.getName()));
    for (Object argument : arguments) {
      command.add(argument.toString());
    }
    return command;
  }

  /** The lines that a process prints. */
  public static BufferedReader output(Process process) {
    return new BufferedReader(
        new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
  }
}
