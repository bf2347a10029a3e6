package org.espalier.torch.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

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
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueVector;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.Test;

/**
 * The node cases of the ONNX backend tests, written in TorchScript: what a module gives is what the graph
 * gives, except in the cases that {@code script-exceptions.txt} lists with a reason.
 */
class GraphScriptConformanceTest {
  /** Both make the same calls of libtorch; where they differ, it is in the order of a few operations. */
  private static final double RELATIVE = 1e-6;

  @Test
  void everyCaseGivesWhatTheGraphGives() throws IOException {
    Libtorch.load();
    ConformanceExceptions exceptions = new ConformanceExceptions("script-exceptions.txt");
    Set<String> proven = new TreeSet<>();
    List<String> problems = new ArrayList<>();
    int passed = 0;
    int same = 0;
    for (Path folder : OnnxConformanceTest.folders()) {
      String name = folder.getFileName().toString();
      OnnxModel model = OnnxModel.read(folder.resolve("model.onnx"));
      Set<String> used = new TreeSet<>();
      model.nodes().forEach(n -> OnnxConformanceTest.collect(n, used));
      if (!GraphScript.operators().containsAll(used)) {
        continue;
      }
      double[] worst = new double[1];
      String problem = run(model, folder, worst);
      String reason = exceptions.reason(name);
      if (problem == null) {
        passed++;
        same += worst[0] == 0 ? 1 : 0;
        proven.addAll(used);
      }
      if (problem != null && reason == null) {
        problems.add(name + ": " + problem);
      } else if (problem == null && reason != null && !exceptions.mayPass(name)) {
        problems.add(name + " passes but is listed as an exception: " + reason);
      }
    }
    problems.addAll(exceptions.unused(OnnxConformanceTest.names()));
    Set<String> unproven = GraphScript.operators();
    unproven.removeAll(proven);
    System.out.printf(
        "ONNX node cases in TorchScript: %d passed, %d of them with the same bits, %d operators,"
            + " without a case %s%n",
        passed, same, proven.size(), unproven);
    problems.forEach(System.out::println);
    assertEquals(List.of(), problems);
    assertTrue(passed > 690, "only " + passed + " cases");
  }

  private static String run(OnnxModel model, Path folder, double[] worst) {
    try (PointerScope scope = new PointerScope();
        Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
      JitModule module = GraphScript.module(model);
      Path set = folder.resolve("test_data_set_0");
      Map<String, Tensor> inputs = new LinkedHashMap<>();
      for (int i = 0; Files.exists(set.resolve("input_" + i + ".pb")); i++) {
        inputs.put(
            program.inputNames().get(i),
            OnnxConformanceTest.tensor(set.resolve("input_" + i + ".pb")));
      }
      torch.manual_seed(5);
      Map<String, Tensor> expected = program.run(inputs, false);
      // From the second run on libtorch has rewritten the module for what it saw.
      for (int round = 0; round < 3; round++) {
        torch.manual_seed(5);
        List<Tensor> actual = run(module, inputs.values(), expected.size());
        for (int i = 0; i < actual.size(); i++) {
          String output = program.outputNames().get(i);
          String problem = difference(actual.get(i), expected.get(output), worst);
          if (problem != null) {
            return "round " + round + ", output " + output + ": " + problem;
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

  static List<Tensor> run(JitModule module, Iterable<Tensor> inputs, int outputs) {
    IValueVector arguments = new IValueVector();
    inputs.forEach(t -> arguments.push_back(new IValue(t)));
    IValue result = module.forward(arguments);
    if (outputs == 1) {
      return List.of(result.toTensor());
    }
    List<Tensor> all = new ArrayList<>();
    for (int i = 0; i < outputs; i++) {
      all.add(result.toTuple().elements().get(i).toTensor());
    }
    return all;
  }

  /** Null where both are equal; the largest difference relative to the largest value is kept. */
  static String difference(Tensor actual, Tensor expected, double[] worst) {
    if (ElementTypes.of(actual) != ElementTypes.of(expected)) {
      return ElementTypes.of(actual) + " instead of " + ElementTypes.of(expected);
    }
    if (!Arrays.equals(actual.shape(), expected.shape())) {
      return Arrays.toString(actual.shape()) + " instead of " + Arrays.toString(expected.shape());
    }
    Tensor a = actual.detach().to(ScalarType.Double);
    Tensor e = expected.detach().to(ScalarType.Double);
    if (a.numel() == 0 || torch.allclose(a, e, 0, 0, true)) {
      return null;
    }
    double difference = a.sub(e).abs().max().item_double() / e.abs().max().item_double();
    worst[0] = Math.max(worst[0], difference);
    return difference <= RELATIVE ? null : "differs by " + difference + " of the largest value";
  }
}
