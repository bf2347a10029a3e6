package org.espalier;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.espalier.backend.Isa;
import org.espalier.op.Variants;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class GoldenFilesTest {
  @Test
  void runsOneTestAFileAndInstructionSet() throws Throwable {
    List<String> seen = new ArrayList<>();
    List<DynamicTest> tests =
        GoldenFiles.tests(
                "sgd_*.safetensors",
                (file, isa) -> {
                  assertEquals(isa, Isa.current());
                  assertArrayEquals(new long[] {file.floats("p0").length}, file.shape("p0"));
                  assertTrue(file.doubleSetting("lr", 0) > 0, file.toString());
                  seen.add(file + " " + isa);
                })
            .toList();
    List<String> names = new ArrayList<>();
    for (DynamicTest test : tests) {
      names.add(test.getDisplayName());
      test.getExecutable().execute();
    }
    assertTrue(names.contains("sgd_plain.safetensors SCALAR"), names.toString());
    assertEquals(names, seen);
  }

  @Test
  void takesFilesOfOurOwnFromTheRepositoryWhereThereAreNone(@TempDir Path folder)
      throws IOException {
    GoldenFiles.Check none = (file, isa) -> {};
    Path repository = GoldenFiles.repository();
    assertEquals(
        names(GoldenFiles.testsOfOurOwn(repository, "adamw_*", none)),
        names(GoldenFiles.testsOfOurOwn(folder, "adamw_*", none)));
    Files.copy(
        repository.resolve("adamw_plain.safetensors"), folder.resolve("adamw_x.safetensors"));
    List<String> given = names(GoldenFiles.testsOfOurOwn(folder, "adamw_*", none));
    assertEquals(Variants.isas().count(), given.size());
    assertTrue(given.contains("adamw_x.safetensors SCALAR"), given.toString());
  }

  private static List<String> names(Stream<DynamicTest> tests) {
    return tests.map(DynamicTest::getDisplayName).toList();
  }

  @Test
  void failsWhereNothingMatchesOrIsMissing() {
    IllegalStateException nothing =
        assertThrows(
            IllegalStateException.class, () -> GoldenFiles.tests("nothing_*", (file, isa) -> {}));
    assertTrue(nothing.getMessage().startsWith("no file nothing_* in "), nothing.getMessage());
    DynamicTest test =
        GoldenFiles.tests("sgd_plain.safetensors", (file, isa) -> file.floats("q"))
            .findFirst()
            .orElseThrow();
    IllegalArgumentException missing =
        assertThrows(IllegalArgumentException.class, () -> test.getExecutable().execute());
    assertTrue(
        missing.getMessage().startsWith("sgd_plain.safetensors has no tensor q, only ["),
        missing.getMessage());
  }
}
