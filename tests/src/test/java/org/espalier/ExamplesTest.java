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
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.onnx.OnnxRuntime;
import org.espalier.transformers.SmallCheckpoint;
import org.espalier.transformers.TransformersModel;
import org.espalier.transformers.TransformersModel.Part;
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

  /** By caches as by all tokens anew. */
  @Test
  void theHostApplicationTranslates() throws Exception {
    Libtorch.load();
    compile(EXAMPLES.resolve("host/src/main/java/Translating.java"));
    Set<Long> written = new HashSet<>();
    for (String kind : List.of("marian", "t5")) {
      Path checkpoint = folder.resolve(kind);
      if (kind.equals("t5")) {
        SmallCheckpoint.writePairOfAHead(checkpoint);
      } else {
        SmallCheckpoint.writePair(checkpoint, kind);
      }
      List<String> files = new ArrayList<>();
      List<OnnxModel> models = new ArrayList<>();
      for (Part part : List.of(Part.ENCODER, Part.DECODER)) {
        models.add(TransformersModel.read(checkpoint, part, note -> {}));
        files.add(checkpoint.resolve(part + ".onnx").toString());
        models.get(models.size() - 1).write(checkpoint.resolve(part + ".onnx"));
      }
      for (long[] text : new long[][] {{7, 30, 2, 2, 19}, {1}, {39, 38, 4}}) {
        List<Long> expected = answer(models.get(0), models.get(1), text);
        assertEquals(expected, translated(files, text), kind);
        written.addAll(expected);
      }
    }
    assertTrue(written.size() > 4, written.toString());
  }

  private static final int MOST = 9;
  private static final long START = 40;

  private List<?> translated(List<String> files, long[] text) throws Exception {
    try (URLClassLoader loader = new URLClassLoader(new URL[] {folder.toUri().toURL()})) {
      Class<?> type = loader.loadClass("Translating");
      Object model =
          type.getConstructor(String.class, String.class).newInstance(files.get(0), files.get(1));
      try (AutoCloseable closed = (AutoCloseable) model) {
        Class<?>[] parameters = {long[].class, long.class, long.class, long.class, int.class};
        return (List<?>)
            type.getMethod("answer", parameters).invoke(closed, text, START, 0L, START, MOST);
      }
    }
  }

  /** The most probable tokens, where each time all are read again. */
  private static List<Long> answer(OnnxModel encoder, OnnxModel decoder, long[] text)
      throws Exception {
    Tensor mask = torch.ones(1, text.length).to(ScalarType.Long);
    Tensor ids = torch.tensor(text).reshape(1, text.length);
    Map<String, Tensor> inputs = new HashMap<>(Map.of("encoder_attention_mask", mask));
    OnnxRuntime.run(encoder, Map.of("input_ids", ids, "attention_mask", mask))
        .forEach(
            (name, value) -> {
              if (name.startsWith("present.")) {
                String past = name.replace("present.", "past_key_values.");
                inputs.put(past, value);
                inputs.put(past.replace(".encoder.", ".decoder."), value.narrow(2, 0, 0));
              }
            });
    long[] tokens = {START};
    while (tokens.length <= MOST) {
      inputs.put("input_ids", torch.tensor(tokens).reshape(1, tokens.length));
      Tensor logits = OnnxRuntime.run(decoder, inputs).get("logits").select(0, 0);
      long next = logits.select(0, tokens.length - 1).narrow(0, 0, START).argmax().item_long();
      if (next == 0) {
        break;
      }
      tokens = Arrays.copyOf(tokens, tokens.length + 1);
      tokens[tokens.length - 1] = next;
    }
    return Arrays.stream(tokens).skip(1).boxed().toList();
  }

  private Path resource(String name) throws IOException {
    Path file = folder.resolve(name);
    try (InputStream in = getClass().getResourceAsStream("/" + name)) {
      Files.copy(in, file);
    }
    return file;
  }
}
