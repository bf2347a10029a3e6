package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.nio.file.attribute.PosixFilePermissions;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The launcher in a tree of its own, with tools that only say that they were called, so that nothing
 * is built, installed or downloaded.
 */
class LauncherTest {
  private static final Path LAUNCHER = Path.of(System.getProperty("espalier.root"), "espalier");

  @TempDir Path folder;
  private Path root;
  private Path bin;
  private Path javaHome;
  private Path calls;

  /** A run of the launcher. */
  private record Launch(int code, String out, String err) {}

  @BeforeEach
  void tree() throws IOException {
    root = Files.createDirectory(folder.resolve("a tree"));
    Files.copy(LAUNCHER, root.resolve("espalier"));
    executable(root.resolve("espalier"));
    for (String source : List.of("java/cli/src", "native", "cuda", "cmake")) {
      Files.createDirectories(root.resolve(source));
    }
    Files.createFile(root.resolve("pom.xml"));
    Files.createFile(root.resolve("java/cli/src/A.java"));
    calls = folder.resolve("calls");
    bin = Files.createDirectory(folder.resolve("bin"));
    for (String tool :
        List.of(
            "bash",
            "readlink",
            "dirname",
            "find",
            "flock",
            "grep",
            "awk",
            "head",
            "mkdir",
            "cp",
            "mv",
            "rm",
            "tee",
            "sed",
            "cat",
            "touch",
            "env",
            "stat",
            "cksum",
            "sleep")) {
      Path real = Path.of("/usr/bin", tool);
      Files.createSymbolicLink(
          bin.resolve(tool), Files.exists(real) ? real : Path.of("/bin", tool));
    }
    javaHome = folder.resolve("jdk");
    Files.createDirectories(javaHome.resolve("bin"));
    Files.writeString(javaHome.resolve("release"), "JAVA_VERSION=\"17.0.1\"\n");
    script(javaHome.resolve("bin/java"), "echo \"java $*\"; exit 7");
    script(javaHome.resolve("bin/javac"), "true");
    fake(
        "mvn",
        "cuda=AUTO; [[ $* == *cuda=OFF* ]] && cuda=OFF; mkdir -p java/kernels/target/cmake; "
            + "echo \"ESP_CUDA:STRING=$cuda\" >java/kernels/target/cmake/CMakeCache.txt; "
            + "mkdir -p java/cli/target; cd java/cli/target; "
            + "touch espalier-cli-1.jar other.jar; echo \"$PWD/other.jar\" >classpath");
    fake("cmake", "echo cmake version 3.25.1");
    fake("ninja", "true");
    fake("g++", "true");
    fake("getconf", "echo glibc 2.36");
    fake("id", "echo 1000");
    fake("apt-get", "true");
    fake("apt-cache", "[[ $2 == openjdk-21-jdk-headless ]]");
  }

  /** A tool that notes its call and then runs {@code body}, Maven in the tree. */
  private void fake(String tool, String body) throws IOException {
    script(
        bin.resolve(tool),
        "echo \"" + tool + " $*\" >>'" + calls + "'\ncd '" + root + "'\n" + body);
  }

  private static void script(Path file, String body) throws IOException {
    Files.writeString(file, "#!/bin/bash\n" + body + "\n");
    executable(file);
  }

  private static void executable(Path file) throws IOException {
    Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rwxr-xr-x"));
  }

  private Launch launch(Path command, String... args) throws IOException, InterruptedException {
    return launchWith("", command, args);
  }

  private Launch launchWith(String buildArguments, Path command, String... args)
      throws IOException, InterruptedException {
    List<String> line = new ArrayList<>(List.of(command.toString()));
    line.addAll(List.of(args));
    ProcessBuilder builder = new ProcessBuilder(line).directory(folder.toFile());
    builder.environment().put("PATH", bin.toString());
    builder.environment().put("JAVA_HOME", javaHome.toString());
    builder.environment().remove("CXX");
    builder.environment().remove("ESPALIER_NO_INSTALL");
    builder.environment().put("ESPALIER_BUILD", buildArguments);
    Path out = folder.resolve("out");
    Path err = folder.resolve("err");
    Process process = builder.redirectOutput(out.toFile()).redirectError(err.toFile()).start();
    assertTrue(process.waitFor(60, TimeUnit.SECONDS), "the launcher hangs");
    return new Launch(process.exitValue(), Files.readString(out), Files.readString(err));
  }

  private List<String> callsOf(String tool) throws IOException {
    return Files.exists(calls)
        ? Files.readAllLines(calls).stream().filter(c -> c.startsWith(tool + " ")).toList()
        : List.of();
  }

  @Test
  void buildsOnceAndAgainWhenASourceIsNewer() throws IOException, InterruptedException {
    Path launcher = root.resolve("espalier");
    Launch first = launch(launcher, "inspect", "a b");
    assertEquals(7, first.code(), first.err()); // that of the JVM
    assertTrue(first.out().contains("org.espalier.cli.Espalier inspect a b\n"), first.out());
    assertTrue(first.out().contains("espalier-cli-1.jar:"), first.out());
    assertEquals(1, callsOf("mvn").size());
    assertTrue(callsOf("mvn").get(0).contains("package -DskipTests"), callsOf("mvn").toString());

    // From elsewhere and through a link, without Maven, with nothing of its own on either stream.
    Path link = Files.createSymbolicLink(folder.resolve("link"), launcher);
    Launch second = launch(link, "doctor");
    assertEquals(7, second.code());
    assertEquals("", second.err());
    assertEquals(1, callsOf("mvn").size());

    FileTime later = FileTime.from(Instant.now().plusSeconds(5));
    Files.createDirectories(root.resolve("native/target"));
    Files.createFile(root.resolve("native/target/built.o"));
    Files.setLastModifiedTime(root.resolve("native/target/built.o"), later);
    launch(launcher, "doctor");
    assertEquals(1, callsOf("mvn").size(), "what a build writes is no source");

    Files.createFile(root.resolve("native/new.cpp"));
    launch(launcher, "doctor");
    assertEquals(2, callsOf("mvn").size(), "a new file");
    Files.delete(root.resolve("java/cli/src/A.java"));
    launch(launcher, "doctor");
    assertEquals(3, callsOf("mvn").size(), "a deleted file");
    Files.delete(root.resolve("java/cli/target/other.jar"));
    launch(launcher, "doctor");
    assertEquals(3, callsOf("mvn").size(), "what runs is a copy");
    Files.delete(jarFolders().get(0).resolve("other.jar"));
    launch(launcher, "doctor");
    assertEquals(4, callsOf("mvn").size(), "a library that is gone");
  }

  private List<Path> jarFolders() throws IOException {
    try (Stream<Path> files = Files.list(root.resolve(".espalier"))) {
      return files.filter(Files::isDirectory).sorted().toList();
    }
  }

  @Test
  void aBuildTakesNothingFromAProcessThatRuns() throws IOException, InterruptedException {
    Path launcher = root.resolve("espalier");
    Path running = folder.resolve("running");
    Path go = folder.resolve("go");
    String wait =
        "[[ $* == *' serve' ]] || exit 7\n"
            + "touch '%s'\n"
            + "until [[ -f '%s' ]]; do sleep 0.05; done\n"
            + "while [[ $1 != -cp ]]; do shift; done\n"
            + "IFS=: read -r first _ <<<\"$2\"; cat \"$first\"";
    script(javaHome.resolve("bin/java"), wait.formatted(running, go));
    fake(
        "mvn",
        "mkdir -p java/cli/target; cd java/cli/target; echo \"$PWD/other.jar\" >classpath\n"
            + "grep -c '^mvn ' '"
            + calls
            + "' | tee espalier-cli-1.jar other.jar >/dev/null");
    Path both = folder.resolve("both");
    script(
        both,
        "'%1$s' serve & first=$!\nuntil [[ -f '%2$s' ]]; do sleep 0.05; done\n"
                .formatted(launcher, running)
            + "touch '%1$s/native/new.cpp'\n'%2$s' doctor\ntouch '%3$s'\nwait $first"
                .formatted(root, launcher, go));
    Launch launch = launch(both);
    assertEquals(0, launch.code(), launch.err());
    assertEquals(2, callsOf("mvn").size(), launch.err());
    assertEquals("1", launch.out().strip(), "the jar of the first build");
    assertEquals(2, jarFolders().size());
    Files.createFile(root.resolve("native/newer.cpp"));
    launch(launcher, "doctor");
    assertEquals(1, jarFolders().size(), "what nobody runs any more goes");
  }

  /** JavaCPP writes what it unpacks over that of a jar with the same name, which may be loaded. */
  @Test
  void nativesOfOtherContentHaveAnotherName() throws IOException, InterruptedException {
    List<String> names = new ArrayList<>();
    for (String content : List.of("one", "two", "two")) {
      script(
          bin.resolve("mvn"),
          "mkdir -p '%1$s'; cd '%1$s'; touch espalier-cli-1.jar; echo %2$s >k-linux-x86_64.jar; "
                  .formatted(root.resolve("java/cli/target"), content)
              + "echo \"$PWD/k-linux-x86_64.jar\" >classpath");
      Files.createFile(root.resolve("native/" + names.size()));
      String line = launch(root.resolve("espalier"), "doctor").out();
      names.add(line.replaceFirst("(?s).*/(k-linux-x86_64-[^/ ]+[.]jar) .*", "$1"));
    }
    assertTrue(names.get(0).matches("k-linux-x86_64-[0-9]+[.]jar"), names.toString());
    assertNotEquals(names.get(0), names.get(1));
    assertEquals(names.get(1), names.get(2));
  }

  @Test
  void buildsAnewWithOtherArguments() throws IOException, InterruptedException {
    Path launcher = root.resolve("espalier");
    launch(launcher, "doctor");
    launchWith("-Pgpu  -Da=b", launcher, "doctor");
    launchWith("-Pgpu -Da=b", launcher, "doctor");
    assertEquals(2, callsOf("mvn").size(), callsOf("mvn").toString());
    assertTrue(callsOf("mvn").get(1).endsWith("-am -Pgpu -Da=b"), callsOf("mvn").toString());
    launch(launcher, "doctor");
    assertEquals(3, callsOf("mvn").size(), callsOf("mvn").toString());
  }

  @Test
  void withoutAGpuTheCudaLibraryIsLeftOut() throws IOException, InterruptedException {
    Path launcher = root.resolve("espalier");
    Path gpu = folder.resolve("gpu");
    String script = Files.readString(launcher);
    Files.writeString(
        launcher, script.replace("gpus=(/dev/nvidiactl /dev/dxg)", "gpus=('" + gpu + "')"));
    assertNotEquals(script, Files.readString(launcher));
    String leftOut = " -Despalier.cuda=OFF";
    launch(launcher, "inspect");
    launch(launcher, "inspect");
    assertEquals(1, callsOf("mvn").size());
    assertTrue(callsOf("mvn").get(0).contains(leftOut), callsOf("mvn").get(0));

    Files.createFile(gpu);
    launch(launcher, "inspect");
    assertEquals(2, callsOf("mvn").size(), "a GPU that was added is built for");
    assertFalse(callsOf("mvn").get(1).contains(leftOut), callsOf("mvn").get(1));
    Files.delete(gpu);
    launch(launcher, "inspect");
    assertEquals(2, callsOf("mvn").size(), "what is built is kept");

    Path cache = root.resolve("java/kernels/target/cmake/CMakeCache.txt");
    for (String asked : List.of("-Despalier.cuda=ON", "-T1 -Pgpu")) {
      Files.delete(cache);
      launchWith(asked, launcher, "inspect");
      String last = callsOf("mvn").get(callsOf("mvn").size() - 1);
      assertTrue(last.contains(asked) && !last.contains(leftOut), last);
    }
    Files.delete(cache);
    int builds = callsOf("mvn").size();
    launch(launcher, "package");
    Files.delete(cache);
    launch(launcher, "test", "-Dtest=A");
    assertEquals(builds + 2, callsOf("mvn").size());
    for (String call : callsOf("mvn").subList(builds, builds + 2)) {
      assertFalse(call.contains(leftOut), call);
    }
  }

  @Test
  void anUnpackedArchiveRunsItsJarsAndBuildsNothing() throws IOException, InterruptedException {
    Path archive = Files.createDirectory(folder.resolve("an archive"));
    Path launcher = Files.copy(LAUNCHER, archive.resolve("espalier"));
    executable(launcher);
    Files.createDirectory(archive.resolve("lib"));
    Launch launch = launch(launcher, "inspect", "a b");
    assertEquals(7, launch.code(), launch.err());
    assertTrue(
        launch.out().contains(" -cp " + archive + "/lib/* org.espalier.cli.Espalier inspect a b\n"),
        launch.out());
    for (String command : List.of("test", "package")) {
      launch = launch(launcher, command);
      assertEquals(2, launch.code());
      assertTrue(launch.err().contains(command + " is for the source tree"), launch.err());
    }
    fake("getconf", "echo glibc 2.31");
    launch = launch(launcher, "doctor");
    assertEquals(2, launch.code());
    assertTrue(launch.err().contains("need glibc 2.34 or newer"), launch.err());
    assertEquals(List.of(), callsOf("mvn"));
  }

  @Test
  void whatItDoesItselfHasHelp() throws IOException, InterruptedException {
    for (String command : List.of("test", "package")) {
      Launch launch = launch(root.resolve("espalier"), command, "--help");
      assertEquals(0, launch.code(), launch.err());
      assertTrue(launch.out().contains("espalier " + command + " ["), launch.out());
      assertFalse(launch.out().contains("set -e"), launch.out());
      assertEquals(List.of(), callsOf("mvn"));
    }
  }

  @Test
  void packsAnArchive() throws IOException, InterruptedException {
    Path launcher = root.resolve("espalier");
    script(
        bin.resolve("mvn"),
        Files.readString(bin.resolve("mvn")) + "echo archive >espalier-2-linux-x86_64.tar.gz");
    Path old = root.resolve("java/cli/target/espalier-1-linux-x86_64.tar.gz");
    Files.createDirectories(old.getParent());
    Files.createFile(old);
    Path file = folder.resolve("my archive");
    Launch launch = launch(launcher, "package", file.toString());
    assertEquals(0, launch.code(), launch.err());
    assertEquals("archive\n", Files.readString(file));
    assertTrue(callsOf("mvn").get(0).endsWith(" -Ppackage"), callsOf("mvn").toString());
    launch = launch(launcher, "package");
    assertEquals(0, launch.code(), launch.err());
    assertTrue(launch.err().contains("/espalier-2-linux-x86_64.tar.gz (0 MiB)"), launch.err());
    launch(launcher, "doctor");
    assertEquals(2, callsOf("mvn").size(), "what was packed is built");
    for (String bad : List.of("-Pgpu", folder.toString(), folder + "/none/archive")) {
      launch = launch(launcher, "package", bad);
      assertEquals(2, launch.code(), bad);
      assertEquals(2, callsOf("mvn").size(), bad);
    }
    fake("mvn", "exit 1");
    assertEquals(1, launch(launcher, "package", file.toString()).code());
    assertEquals("archive\n", Files.readString(file), "stays where packing fails");
  }

  @Test
  void aBuildThatFailsSaysWhyAndIsRepeated() throws IOException, InterruptedException {
    fake("mvn", "echo '[ERROR] A.java: not Java'; exit 1");
    for (int i = 1; i <= 2; i++) {
      Launch launch = launch(root.resolve("espalier"), "doctor");
      assertEquals(1, launch.code());
      assertTrue(launch.err().contains("not Java"), launch.err());
      assertTrue(launch.err().contains("build.log"), launch.err());
      assertEquals("", launch.out());
      assertEquals(i, callsOf("mvn").size());
    }
  }

  @Test
  void whatMavenCannotGetIsQuoted() throws IOException, InterruptedException {
    fake(
        "mvn",
        "printf '[ERROR] %s\\n"
            + "' 'Failed to execute goal on project a: no a:b:1: Unknown host -> [Help 1]' ''"
            + " '[Help 1] its page'; exit 1");
    Launch launch = launch(root.resolve("espalier"), "doctor");
    assertTrue(launch.err().contains("no a:b:1: Unknown host"), launch.err());
    assertFalse(launch.err().contains("its page"), launch.err());
  }

  @Test
  void whatCMakeSaysBelowItsMarkIsQuoted() throws IOException, InterruptedException {
    fake(
        "mvn",
        "printf '%s\\n"
            + "' '-- Found it' 'CMake Error at CMakeLists.txt:17 (message):' '  GCC 10 is too old'"
            + " '' '' '-- Configuring incomplete' '  more of it' '[ERROR] ' '[ERROR] failed'; exit"
            + " 1");
    Launch launch = launch(root.resolve("espalier"), "doctor");
    assertTrue(
        launch
            .err()
            .contains(
                "\n"
                    + "CMake Error at CMakeLists.txt:17 (message):\n"
                    + "  GCC 10 is too old\n"
                    + "[ERROR] failed\n"),
        launch.err());
  }

  @Test
  void anOldCLibraryIsToldBeforeAnythingIsInstalled() throws IOException, InterruptedException {
    fake("id", "echo 0");
    Files.delete(bin.resolve("mvn"));
    for (String other : List.of("echo glibc 2.31", "exit 1")) { // the second as musl has it
      fake("getconf", other);
      Launch launch = launch(root.resolve("espalier"), "doctor");
      assertEquals(2, launch.code());
      assertTrue(launch.err().contains("need glibc 2.34 or newer"), launch.err());
      assertTrue(
          launch.err().contains(other.equals("exit 1") ? "another C library" : "has glibc 2.31"),
          launch.err());
      assertEquals(List.of(), callsOf("apt-get"));
    }
  }

  @Test
  void aMavenThatEndsBeforeItBuildsIsQuoted() throws IOException, InterruptedException {
    fake("mvn", "echo 'Exception in thread \"main\": no room'; echo '  at M.main'; exit 1");
    Launch launch = launch(root.resolve("espalier"), "doctor");
    assertEquals(1, launch.code());
    assertTrue(launch.err().contains("\"main\": no room\n"), launch.err());
  }

  @Test
  void pathsWithOtherLettersAreOpenedInALocaleOfAsciiToo()
      throws IOException, InterruptedException {
    script(javaHome.resolve("bin/java"), "echo \"${LC_ALL-unset}\"");
    fake("locale", "[[ $1 == charmap ]] && echo ANSI_X3.4-1968");
    assertEquals("C.UTF-8\n", launch(root.resolve("espalier"), "doctor").out());
    fake("locale", "[[ $1 == charmap ]] && echo ISO-8859-1");
    Path shell = folder.resolve("latin");
    script(
        shell, "export LC_ALL=latin; exec '" + root.resolve("espalier") + "' doctor 2>/dev/null");
    assertEquals("latin\n", launch(shell).out());
  }

  @Test
  void theHomeOfAUserInNoPasswdFileIsTold() throws IOException, InterruptedException {
    script(javaHome.resolve("bin/java"), "echo \"$*\"");
    Path shell = folder.resolve("home");
    script(shell, "HOME=/some/home exec '" + root.resolve("espalier") + "' doctor");
    fake("mvn", Files.readString(bin.resolve("mvn")) + "echo \"$MAVEN_OPTS\" >>'" + calls + "'");
    fake("getent", "exit 0");
    assertFalse(launch(shell).out().contains("user.home"));
    fake("getent", "exit 2");
    Files.createFile(root.resolve("native/new.cpp"));
    Launch launch = launch(shell);
    assertTrue(launch.out().contains("-Duser.home=/some/home "), launch.out());
    Object uid = Files.getAttribute(folder, "unix:uid");
    assertTrue(callsOf("getent").contains("getent passwd " + uid), callsOf("getent").toString());
    assertTrue(Files.readString(calls).contains("-Duser.home=/some/home\n"), "Maven's too");
    for (String none : List.of("-u HOME", "HOME=", "'HOME=/a b'")) {
      script(shell, "exec env " + none + " '" + root.resolve("espalier") + "' doctor");
      launch = launch(shell);
      assertEquals(2, launch.code(), launch.err());
      assertTrue(launch.err().contains("HOME must name a folder"), launch.err());
    }
  }

  @Test
  void withoutToolsItSaysWhatInstallsThem() throws IOException, InterruptedException {
    for (String tool : List.of("mvn", "ninja", "g++")) {
      Files.delete(bin.resolve(tool));
    }
    fake("cmake", "echo cmake version 3.18.4");
    Files.delete(javaHome.resolve("bin/javac"));
    Launch launch = launch(root.resolve("espalier"), "doctor");
    assertEquals(2, launch.code());
    for (String word :
        List.of(
            "Maven",
            "CMake of version 3.22",
            "3.18.4",
            "Ninja",
            "g++",
            "javac",
            "sudo apt-get update && sudo apt-get install -y --no-install-recommends"
                + " openjdk-21-jdk-headless maven cmake ninja-build g++\n")) {
      assertTrue(launch.err().contains(word), launch.err());
    }
    assertEquals(List.of(), callsOf("apt-get"), "nothing is installed without root");

    fake("id", "echo 0");
    Path shell = folder.resolve("no-install");
    script(shell, "ESPALIER_NO_INSTALL=1 exec '" + root.resolve("espalier") + "' doctor");
    launch = launch(shell);
    assertEquals(2, launch.code());
    assertTrue(launch.err().contains("ESPALIER_NO_INSTALL"), launch.err());
    assertEquals(List.of(), callsOf("apt-get"), "nothing is installed against the user's word");
  }

  @Test
  void asRootItInstallsWhatIsMissingAndBuilds() throws IOException, InterruptedException {
    Path mvn = bin.resolve("mvn");
    Path kept = Files.move(mvn, folder.resolve("mvn"));
    fake("id", "echo 0");
    fake("apt-get", "echo Unpacking maven; [[ $1 != install ]] || mv '" + kept + "' '" + mvn + "'");
    Launch launch = launch(root.resolve("espalier"), "doctor");
    assertEquals(7, launch.code(), launch.err());
    assertEquals(2, callsOf("apt-get").size()); // update, install
    assertTrue(callsOf("apt-get").get(1).endsWith(" maven"), callsOf("apt-get").toString());
    assertTrue(launch.err().contains("install -y --no-install-recommends maven"), launch.err());
    assertEquals("Unpacking maven\n", Files.readString(root.resolve(".espalier/install.log")));
    assertEquals(1, callsOf("mvn").size());
  }

  @Test
  void refusesAnOldJava() throws IOException, InterruptedException {
    Files.writeString(javaHome.resolve("release"), "JAVA_VERSION=\"11.0.1\"\n");
    Launch launch = launch(root.resolve("espalier"), "doctor");
    assertEquals(2, launch.code());
    assertTrue(launch.err().contains("is version 11"), launch.err());
    assertTrue(launch.err().contains("JAVA_HOME"), launch.err());
    assertEquals(List.of(), callsOf("mvn"));
  }

  @Test
  void testRunsMavenAndAddsUp() throws IOException, InterruptedException {
    fake(
        "mvn",
        "echo '100% tests passed, 0 tests failed out of 3'\n"
            + "echo '[INFO] Tests run: 4, Failures: 0, Errors: 0, Skipped: 1, Time elapsed: 1 s'\n"
            + "echo '[INFO] Tests run: 4, Failures: 0, Errors: 0, Skipped: 1'\n"
            + "echo '[WARNING] Tests run: 6, Failures: 2, Errors: 1, Skipped: 0'\nexit 3");
    Launch launch = launch(root.resolve("espalier"), "test", "-Dtest=A B");
    assertEquals(3, launch.code(), launch.err());
    assertTrue(launch.err().contains("10 run, 2 failed, 1 in error, 1 skipped"), launch.err());
    assertTrue(launch.err().contains("native programs: 3 run, 0 failed"), launch.err());
    assertTrue(callsOf("mvn").get(0).endsWith("verify -Dtest=A B"), callsOf("mvn").toString());
  }

  @Test
  void theTestsNeedTheCasesOfOnnx() throws IOException, InterruptedException {
    Path cases = folder.resolve("cases");
    String option = "-Despalier.onnx.testdata=" + cases;
    Launch launch = launch(root.resolve("espalier"), "test", option);
    assertEquals(2, launch.code());
    assertTrue(
        launch.err().contains("install -y --no-install-recommends libonnx-testdata"), launch.err());
    assertEquals(List.of(), callsOf("mvn"));
    Files.createDirectories(cases.resolve("node"));
    assertEquals(0, launch(root.resolve("espalier"), "test", option).code());
  }

  @Test
  void twoLaunchersBuildOnce() throws IOException, InterruptedException {
    fake(
        "mvn",
        "sleep 1; mkdir -p java/cli/target; cd java/cli/target; "
            + "touch espalier-cli-1.jar other.jar; echo \"$PWD/other.jar\" >classpath");
    Path both = folder.resolve("both");
    String one = "'" + root.resolve("espalier") + "' doctor";
    script(both, one + " & first=$!\n" + one + "\na=$?; wait $first; [[ $a == 7 && $? == 7 ]]");
    Launch launch = launch(both);
    assertEquals(0, launch.code(), launch.err());
    assertEquals(1, callsOf("mvn").size(), launch.err());
    assertFalse(launch.err().contains("failed"), launch.err());
  }
}
