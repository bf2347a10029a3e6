package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.LayerPruner.Removed;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Stacks of x + Tanh(x · w) · u whose weights say how much each is missed. */
class LayerPrunerTest {
  private static final int WIDTH = 8;

  private final Random random = new Random(5);

  /** x [n, 8] → layers that change it by as much as they are large → y, and beside it 2 · y. */
  private ModelProto stack(double... sizes) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("stack")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, WIDTH))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, WIDTH));
    String x = "first";
    g.addNode(SmallModels.line("first Sin x"));
    for (int i = 0; i < sizes.length; i++) {
      String y = i == sizes.length - 1 ? "y" : "x" + i;
      g.addInitializer(SmallModels.floats("w" + i, random, 0.5f, WIDTH, WIDTH))
          .addInitializer(SmallModels.floats("u" + i, random, (float) sizes[i], WIDTH, WIDTH))
          .addNode(SmallModels.line("h" + i + " MatMul " + x + " w" + i))
          .addNode(SmallModels.line("t" + i + " Tanh h" + i))
          .addNode(SmallModels.line("d" + i + " MatMul t" + i + " u" + i))
          .addNode(SmallModels.line(y + " Add " + x + " d" + i));
      x = y;
    }
    return SmallModels.model(17, g);
  }

  private ActivationSource examples() throws OrtException {
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int e = 0; e < 8; e++) {
      examples.add(Map.of("x", RuntimeRuns.normal(random, 16, WIDTH)));
    }
    return new TensorActivations(examples, 1);
  }

  private Removed prune(ModelProto proto, double share) throws OrtException {
    OnnxModel model = OnnxModel.of(proto, "stack");
    Removed removed = new LayerPruner(model, share).prune(examples(), Progress.NONE);
    Map<String, OnnxTensor> inputs = Map.of("x", RuntimeRuns.normal(random, 3, WIDTH));
    OnnxModel by = OnnxModel.of(without(proto, removed.gone()), "by hand");
    assertArrayEquals(RuntimeRuns.first(by, inputs), RuntimeRuns.first(model, inputs));
    assertEquals(by.initializers().size(), model.initializers().size());
    return removed;
  }

  /** The model whose layers of these numbers give what they take. */
  private static ModelProto without(ModelProto proto, List<Integer> gone) {
    OnnxModel model = OnnxModel.of(proto, "by hand");
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      boolean isGone = gone.stream().anyMatch(i -> n.getInputList().contains("d" + i));
      nodes.add(isGone ? SmallModels.line(n.getOutput(0) + " Identity " + n.getInput(0)) : n);
    }
    model.setNodes(OnnxModel.needed(nodes, model.outputNames()));
    model.removeUnusedInitializers();
    return model.toProto();
  }

  @ParameterizedTest
  @CsvSource({"0.2, '3'", "0.4, '1,3'", "0.5, '1,3'", "0.7, '0,1,3,4'", "0.8, '0,1,3,4'"})
  void thoseGoThatAreMissedLeast(double share, String gone) throws OrtException {
    Removed removed = prune(stack(0.2, 0.02, 0.5, 0.01, 0.1), share);
    // rint: 2.5 is 2, 3.5 is 4.
    assertEquals(List.of(gone.split(",")), removed.gone().stream().map(String::valueOf).toList());
    assertEquals(5, removed.layers());
    assertTrue(removed.error() > 0 && removed.error() < 1, removed.toString());
    assertTrue(
        removed.summary().startsWith(5 - removed.gone().size() + " of 5 layers (without "),
        removed.summary());
  }

  /** Of 40 layers all are tried once, and those that were missed least again. */
  @Test
  void manyAreNotTriedEachTime() throws OrtException {
    double[] sizes = new double[40];
    for (int i = 0; i < sizes.length; i++) {
      sizes[i] = i % 4 == 0 ? 0.001 * (i + 1) : 0.3;
    }
    OnnxModel model = OnnxModel.of(stack(sizes), "stack");
    int[] runs = new int[1];
    ActivationSource source = examples();
    ActivationSource counting =
        (m, activations, receiver) -> {
          runs[0]++;
          source.run(m, activations, receiver);
        };
    Removed removed = new LayerPruner(model, 0.25).prune(counting, Progress.NONE);
    assertEquals(List.of(0, 4, 8, 12, 16, 20, 24, 28, 32, 36), removed.gone());
    assertEquals(2 + 40 + 9 * 4, runs[0]);
  }

  @ParameterizedTest
  @ValueSource(strings = {"FLOAT16", "BFLOAT16"})
  void modelsOf16BitsStayOf16Bits(DataType type) throws OrtException {
    OnnxModel model = OnnxModel.of(HalfModels.inside(stack(0.2, 0.01, 0.3), type), "stack");
    Removed removed = new LayerPruner(model, 0.3).prune(examples(), Progress.NONE);
    assertEquals(List.of(1), removed.gone());
    assertEquals(type, model.initializer("w0").type());
  }

  /** Between layers of fixed ranges lie integers, each of a scale of its own. */
  @Test
  void int8ModelsLoseLayersToo() throws OrtException {
    ModelProto proto = stack(0.2, 0.01, 0.3, 0.4);
    List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
    for (int e = 0; e < 8; e++) {
      inputs.add(Map.of("x", RuntimeRuns.normal(random, 16, WIDTH)));
    }
    OnnxModel model = RuntimeRuns.fixed(proto, RuntimeRuns.exactStatic(), inputs);
    ActivationSource source = new TensorActivations(inputs, 1);
    assertEquals(List.of(1), new LayerPruner(model, 0.25).prune(source, Progress.NONE).gone());
    double error = new OutputError(OnnxModel.of(proto, "stack"), source).of(model);
    assertTrue(error < 0.05, "error " + error);
  }

  /** Each convolution halves its image, so that none can go. */
  @Test
  void layersThatChangeShapesStay() throws OrtException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("halving")
            .addInput(SmallModels.value("x", DataType.FLOAT, 1, 2, 16, 16))
            .addOutput(SmallModels.value("y", DataType.FLOAT));
    String x = "x";
    for (int i = 0; i < 3; i++) {
      for (String branch : List.of("a", "b")) {
        g.addInitializer(SmallModels.floats(branch + i, random, 0.3f, 2, 2, 1, 1))
            .addNode(
                SmallModels.line(
                    "%s%d_out Conv %s %s%d".formatted(branch, i, x, branch, i),
                    SmallModels.list("strides", 2, 2)));
      }
      String y = i == 2 ? "y" : "y" + i;
      g.addNode(SmallModels.line("%s Add a%d_out b%d_out".formatted(y, i, i)));
      x = y;
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(17, g), "halving");
    LayerPruner pruner = new LayerPruner(model, 0.4);
    ActivationSource images =
        new TensorActivations(List.of(Map.of("x", RuntimeRuns.normal(random, 1, 2, 16, 16))), 1);
    InputException e =
        assertThrows(InputException.class, () -> pruner.prune(images, Progress.NONE));
    assertTrue(e.getMessage().contains("1 of 3 layers are to go, of which 0 can"), e.getMessage());
  }

  @Test
  void whatCannotBeIsRefused() throws OrtException {
    OnnxModel model = OnnxModel.of(stack(0.1, 0.2, 0.3), "stack");
    for (double share : new double[] {0, 1, -0.5, Double.NaN}) {
      refused(model, share, "above 0 and below 1 is right");
    }
    refused(model, 0.1, "of 3 layers is none");
    refused(model, 0.9, "3 of 3 layers are to go, of which 2 can; of each stack one stays");
    refused(OnnxModel.of(SmallModels.mlp(), "mlp"), 0.5, "mlp has no layers");
    LayerPruner pruner = new LayerPruner(model, 0.3);
    pruner.prune(examples(), Progress.NONE);
    assertThrows(IllegalStateException.class, () -> pruner.prune(examples(), Progress.NONE));
  }

  private static void refused(OnnxModel model, double share, String why) {
    InputException e = assertThrows(InputException.class, () -> new LayerPruner(model, share));
    assertTrue(e.getMessage().contains(why), e.getMessage());
  }

  /** What an output tells that nobody asks for does not count, but it stays. */
  @Test
  void theOutputsThatCountCanBeNamed() throws OrtException {
    ModelProto.Builder proto = stack(0.05, 0.3).toBuilder();
    proto
        .getGraphBuilder()
        .addNode(SmallModels.line("other MatMul h0 u0"))
        .addOutput(SmallModels.value("other", DataType.FLOAT, -1, WIDTH));
    // The answers are both outputs, so that nothing goes through one value.
    refused(OnnxModel.of(proto.build(), "two"), 0.5, "no layers");
    OnnxModel model = OnnxModel.of(proto.build(), "two");
    LayerPruner pruner = new LayerPruner(model, 0.5, Set.of("y"));
    // The first is missed less, but another output shows what is in it.
    assertEquals(List.of(1), pruner.prune(examples(), Progress.NONE).gone());
    assertEquals(Set.of("y", "other"), model.outputNames());
  }
}
