package org.espalier;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.InputStream;
import java.io.StringWriter;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.espalier.format.onnx.OnnxModel;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** The programs of the examples fit the product as it is. */
class ExamplesTest {
  private static final Path EXAMPLES = Path.of(System.getProperty("espalier.root"), "examples");

  @TempDir Path folder;

  static List<Path> programs() throws IOException {
    try (Stream<Path> files = Files.walk(EXAMPLES)) {
      return files.filter(f -> f.toString().endsWith(".java")).sorted().toList();
    }
  }

  private void compile(Path program) throws IOException {
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    StringWriter said = new StringWriter();
    try (StandardJavaFileManager files = compiler.getStandardFileManager(null, null, null)) {
      List<String> options =
          List.of("-d", folder.toString(), "-classpath", System.getProperty("java.class.path"));
      boolean compiled =
          compiler
              .getTask(said, files, null, options, null, files.getJavaFileObjects(program))
              .call();
      assertTrue(compiled, said.toString());
    }
  }

  @ParameterizedTest
  @MethodSource("programs")
  void compiles(Path program) throws IOException {
    compile(program);
  }

  private void run(String program, Object... arguments) throws Exception {
    compile(EXAMPLES.resolve("host/src/main/java/" + program + ".java"));
    String[] texts = Stream.of(arguments).map(Object::toString).toArray(String[]::new);
    try (URLClassLoader loader = new URLClassLoader(new URL[] {folder.toUri().toURL()})) {
      loader.loadClass(program).getMethod("main", String[].class).invoke(null, (Object) texts);
    }
  }

  @Test
  void theHostApplicationScores() throws Exception {
    Path exported = folder.resolve("scoring.onnx");
    run("Scoring", exported);
    assertEquals(2, OnnxModel.read(exported).outputs().size()); // outputs and probability
  }

  @Test
  void theHostApplicationCompresses() throws Exception {
    Path model = resource("all-minilm-l6-v2.onnx");
    List<String> lines =
        IntStream.range(0, 48).mapToObj(i -> "This is the " + i + "th of some sentences.").toList();
    Path texts = Files.write(folder.resolve("texts.txt"), lines);
    Path out = folder.resolve("out");
    run("Compressing", model, resource("all-minilm-l6-v2-tokenizer.json"), texts, out, 2);
    for (String int8 : List.of("calibrated.onnx", "trained/model-int8.onnx")) {
      assertTrue(Files.size(out.resolve(int8)) < 0.3 * Files.size(model), int8);
    }
    assertTrue(Files.exists(out.resolve("trained/report.html")));
  }

  private Path resource(String name) throws IOException {
    Path file = folder.resolve(name);
    try (InputStream in = getClass().getResourceAsStream("/" + name)) {
      Files.copy(in, file);
    }
    return file;
  }
}
