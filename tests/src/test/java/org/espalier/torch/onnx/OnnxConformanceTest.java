package org.espalier.torch.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.Test;

/**
 * The node cases of the ONNX backend tests, as Debian packages them: up to operator set 17 in Debian 12, 22 in Debian 13, 25 in
 * testing. Every case whose operators are all covered passes, except those that {@code
 * conformance-exceptions.txt} lists with a reason; a listed case that passes is an error of the
 * list.
 */
class OnnxConformanceTest {
  /** The tolerances of the ONNX backend test runner. */
  private static final double RELATIVE = 1e-3;

  private static final double ABSOLUTE = 1e-7;

  private static final Path CASES =
      Path.of(
          System.getProperty("espalier.onnx.testdata", "/usr/share/libonnx-testdata/data"), "node");

  @Test
  void everyCoveredCasePasses() throws IOException {
    assertTrue(
        Files.isDirectory(CASES),
        CASES
            + " is missing; this installs the cases: sudo apt-get install -y libonnx-testdata"
            + " (or unpack that package and set -Despalier.onnx.testdata to its data folder)");
    Libtorch.load();
    ConformanceExceptions exceptions = new ConformanceExceptions("conformance-exceptions.txt");
    List<String> problems = new ArrayList<>();
    int passed = 0;
    int failed = 0;
    int uncovered = 0;
    for (Path folder : folders()) {
      String name = folder.getFileName().toString();
      OnnxModel model = OnnxModel.read(folder.resolve("model.onnx"));
      if (!isCovered(model)) {
        uncovered++;
        continue;
      }
      String problem = run(model, folder);
      String reason = exceptions.reason(name);
      if (problem == null) {
        passed++;
      } else {
        failed++;
      }
      if (problem != null && reason == null) {
        problems.add(name + ": " + problem);
      } else if (problem == null && reason != null && !exceptions.mayPass(name)) {
        problems.add(name + " passes but is listed as an exception: " + reason);
      }
    }
    problems.addAll(exceptions.unused(names()));
    System.out.printf(
        "ONNX node cases: %d passed, %d listed exceptions, %d of operators not covered%n",
        passed, failed, uncovered);
    assertEquals(List.of(), problems);
    assertTrue(passed > 700, "only " + passed + " cases");
  }

  @Test
  void atLeastNinetyOperatorsAreCovered() {
    assertTrue(Program.operators().size() >= 90, Program.operators().toString());
  }

  static List<Path> folders() throws IOException {
    try (Stream<Path> list = Files.list(CASES)) {
      return list.filter(f -> Files.exists(f.resolve("model.onnx"))).sorted().toList();
    }
  }

  static List<String> names() throws IOException {
    return folders().stream().map(f -> f.getFileName().toString()).toList();
  }

  private static boolean isCovered(OnnxModel model) {
    Set<String> used = new TreeSet<>();
    model.nodes().forEach(n -> collect(n, used));
    return Program.operators().containsAll(used);
  }

  static void collect(NodeProto n, Set<String> used) {
    used.add(n.getDomain().isEmpty() ? n.getOpType() : n.getDomain() + "." + n.getOpType());
    for (AttributeProto a : n.getAttributeList()) {
      if (a.hasG()) {
        a.getG().getNodeList().forEach(inner -> collect(inner, used));
      }
    }
  }

  /** Runs a case twice, the second time with what was kept for its shapes; null where it passes. */
  private static String run(OnnxModel model, Path folder) {
    try (PointerScope scope = new PointerScope();
        Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      List<Path> sets;
      try (Stream<Path> list = Files.list(folder)) {
        sets = list.filter(Files::isDirectory).sorted().toList();
      }
      for (Path set : sets) {
        Map<String, Tensor> inputs = new LinkedHashMap<>();
        for (int i = 0; Files.exists(set.resolve("input_" + i + ".pb")); i++) {
          inputs.put(program.inputNames().get(i), tensor(set.resolve("input_" + i + ".pb")));
        }
        for (int round = 0; round < 2; round++) {
          Map<String, Tensor> outputs = program.run(inputs, false);
          for (int i = 0; i < outputs.size(); i++) {
            String name = program.outputNames().get(i);
            String problem =
                difference(outputs.get(name), tensor(set.resolve("output_" + i + ".pb")));
            if (problem != null) {
              return "round " + round + ", output " + name + ": " + problem;
            }
          }
        }
      }
      return null;
    } catch (RuntimeException e) {
      return String.valueOf(e.getMessage());
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static Tensor tensor(Path file) throws IOException {
    TensorProto proto = TensorProto.parseFrom(Files.readAllBytes(file));
    return ElementTypes.tensor(OnnxInitializer.ofMessage(proto), file.toString());
  }

  static String difference(Tensor actual, Tensor expected) {
    if (ElementTypes.of(actual) != ElementTypes.of(expected)) {
      return ElementTypes.of(actual) + " instead of " + ElementTypes.of(expected);
    }
    if (!Arrays.equals(actual.shape(), expected.shape())) {
      return Arrays.toString(actual.shape()) + " instead of " + Arrays.toString(expected.shape());
    }
    Tensor a = actual.detach().to(ScalarType.Double);
    Tensor e = expected.to(ScalarType.Double);
    if (torch.allclose(a, e, RELATIVE, ABSOLUTE, true)) {
      return null;
    }
    return "differs by " + a.sub(e).abs().max().item_double();
  }
}
