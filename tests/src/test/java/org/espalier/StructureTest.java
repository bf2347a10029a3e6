package org.espalier;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** The tree is the architecture: one operation has one name in every place, and modules stay apart. */
class StructureTest {
  private static final Path ROOT = Path.of(System.getProperty("espalier.root"));

  /** Their results are exact but for the order of sums, which no other library fixes. */
  private static final Set<String> WITHOUT_GOLDEN_FILES =
      Set.of("activation", "dp_accumulate", "gradient_norm", "linear");

  /** Operations whose name in Java is not the words of it. */
  private static final Map<String, String> SPELLED = Map.of("fused_adamw", "FusedAdamW");

  private static final List<String> MODULES =
      List.of("kernels", "models", "evaluate", "train", "recipe", "cli");

  /** The name of a class with its package, which is the group. */
  private static final Pattern QUALIFIED =
      Pattern.compile("\\b(org\\.espalier(?:\\.[a-z]\\w*)*)\\.[A-Z]");

  @Test
  void everyOperationHasItsFiles() throws IOException {
    List<String> operations = operations();
    assertFalse(operations.isEmpty());
    List<String> missing = new ArrayList<>();
    String presets =
        Files.readString(
            ROOT.resolve("java/kernels/src/main/java/org/espalier/binding/presets/espalier.java"));
    for (String name : operations) {
      String type =
          SPELLED.getOrDefault(
              name,
              Stream.of(name.split("_"))
                  .map(word -> Character.toUpperCase(word.charAt(0)) + word.substring(1))
                  .collect(Collectors.joining()));
      List<String> files =
          new ArrayList<>(
              List.of(
                  "native/include/espalier/" + name + ".h",
                  "native/src/" + name + ".cpp",
                  "native/src/" + name + "_kernel.h",
                  "native/src/" + name + "_kernel.cpp",
                  "java/kernels/src/main/java/org/espalier/op/" + type + ".java",
                  "tests/src/test/java/org/espalier/op/" + type + "Reference.java",
                  "tests/src/test/java/org/espalier/op/" + type + "Test.java",
                  "benchmarks/src/main/java/org/espalier/benchmarks/" + type + "Benchmark.java"));
      if (!WITHOUT_GOLDEN_FILES.contains(name)) {
        files.add("tests/src/test/java/org/espalier/op/" + type + "GoldenTest.java");
      }
      files.stream().filter(file -> !Files.exists(ROOT.resolve(file))).forEach(missing::add);
      if (!presets.contains("\"espalier/" + name + ".h\"")) {
        missing.add("espalier/" + name + ".h in the include list of presets/espalier.java");
      }
    }
    for (String name : names("ESP_CUDA_OPERATIONS")) {
      Stream.of(
              "cuda/include/espalier/cuda/" + name + ".h",
              "cuda/src/" + name + ".cpp",
              "cuda/kernels/" + name + ".h",
              "cuda/kernels/" + name + ".cu",
              "tests/cuda/" + name + "_test.cpp")
          .filter(file -> !Files.exists(ROOT.resolve(file)))
          .forEach(missing::add);
    }
    assertEquals(List.of(), missing);
  }

  /** A module boundary is a dependency that a user can avoid. */
  @Test
  void modulesImportOnlyWhatTheyMay() {
    assertEquals(List.of(), importsOf("java/kernels", "org.bytedeco.pytorch", "ai.onnx"));
    assertEquals(
        List.of(), importsOf("java/models", "org.bytedeco.pytorch", "ai.onnxruntime", "ai.djl"));
    assertEquals(List.of(), importsOf("java/evaluate", "org.bytedeco.pytorch"));
    assertEquals(List.of(), importsOf("java/cli", "org.bytedeco.pytorch"));
    assertEquals(List.of(), importsOf("java/train", "ai.onnxruntime", "ai.djl"));
    // Generated bindings stay behind org.espalier.{op,device,backend}.
    for (String module :
        List.of("java/models", "java/evaluate", "java/train", "java/recipe", "java/cli")) {
      assertEquals(
          List.of(), importsOf(module, "org.espalier.binding.global", "org.espalier.binding.esp_"));
    }
  }

  /** For hosts on the module path: names that stay, and no package in two modules. */
  @Test
  void modulesHaveNamesAndPackagesOfTheirOwn() throws IOException {
    Map<String, String> homes = new HashMap<>();
    for (String module : MODULES) {
      String pom = Files.readString(ROOT.resolve("java/" + module + "/pom.xml"));
      String name = "<Automatic-Module-Name>org.espalier." + module + "</Automatic-Module-Name>";
      assertTrue(pom.contains(name), module + " has no " + name);
      sources(module)
          .forEach(
              (file, place) ->
                  assertEquals(module, homes.computeIfAbsent(place, p -> module), place));
    }
  }

  /** A package is built on others, and none of these on it. */
  @Test
  void packagesBuildOnEachOtherInOneDirection() throws IOException {
    Map<String, Set<String>> uses = new TreeMap<>();
    for (String module : MODULES) {
      for (Map.Entry<Path, String> source : sources(module).entrySet()) {
        uses.computeIfAbsent(source.getValue(), place -> new TreeSet<>())
            .addAll(packagesIn(source.getKey()));
      }
    }
    uses.values().forEach(used -> used.retainAll(uses.keySet()));
    Map<String, Set<String>> reached = new TreeMap<>();
    for (String place : uses.keySet()) {
      reached.put(place, new TreeSet<>());
      reach(place, uses, reached.get(place));
    }
    List<Set<String>> layers = new ArrayList<>();
    reached.forEach(
        (place, below) -> {
          Set<String> layer = new TreeSet<>(below);
          layer.removeIf(other -> !reached.get(other).contains(place));
          if (layer.size() > 1 && !layers.contains(layer)) {
            layers.add(layer);
          }
        });
    assertEquals(List.of(), layers, "packages that know each other");
  }

  /** Adds a package and all that it is built on. */
  private static void reach(String place, Map<String, Set<String>> uses, Set<String> reached) {
    if (reached.add(place)) {
      uses.get(place).forEach(used -> reach(used, uses, reached));
    }
  }

  /** The packages of classes that a file names in full, comments left out. */
  private static Set<String> packagesIn(Path file) throws IOException {
    Set<String> packages = new TreeSet<>();
    for (String line : Files.readAllLines(file)) {
      if (!line.strip().startsWith("*") && !line.strip().startsWith("/")) {
        QUALIFIED.matcher(line).results().map(found -> found.group(1)).forEach(packages::add);
      }
    }
    return packages;
  }

  /** The Java files of a module, with their packages. */
  private static Map<Path, String> sources(String module) throws IOException {
    Path sources = ROOT.resolve("java/" + module + "/src/main/java");
    try (Stream<Path> files = Files.walk(sources)) {
      return files
          .filter(file -> file.toString().endsWith(".java"))
          .collect(
              Collectors.toMap(
                  file -> file,
                  file -> sources.relativize(file).getParent().toString().replace('/', '.')));
    }
  }

  private static List<String> operations() throws IOException {
    return names("ESP_OPERATIONS");
  }

  private static List<String> names(String variable) throws IOException {
    Matcher list =
        Pattern.compile("set\\(" + variable + "([^)]*)\\)")
            .matcher(Files.readString(ROOT.resolve("cmake/Operations.cmake")));
    assertEquals(true, list.find());
    return Stream.of(list.group(1).split("\\s+")).filter(name -> !name.isBlank()).toList();
  }

  private static List<String> importsOf(String module, String... packages) {
    try (Stream<Path> files = Files.walk(ROOT.resolve(module + "/src/main"))) {
      return files
          .filter(file -> file.toString().endsWith(".java"))
          .flatMap(
              file -> {
                try {
                  return Files.readAllLines(file).stream()
                      .filter(line -> line.matches("import (static )?.*"))
                      .filter(
                          line ->
                              Stream.of(packages)
                                  .anyMatch(
                                      p -> line.replace("static ", "").startsWith("import " + p)))
                      .map(line -> ROOT.relativize(file) + ": " + line);
                } catch (IOException e) {
                  throw new UncheckedIOException(e);
                }
              })
          .toList();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
