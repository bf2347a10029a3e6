package org.espalier.train;

import static org.espalier.train.StoppedRuns.bytes;
import static org.espalier.train.StoppedRuns.exported;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.Libtorch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Matrices of low rank that are trained while the weights themselves rest. */
class LowRankTrainingTest {
  private static final TrainingListener SILENT = new TrainingListener() {};
  private static final int WORDS = 50;
  private static final int RANK = 3;

  private static Training training(long steps) {
    return new Training(
        steps,
        0,
        16,
        Optimizer.AdamW.of(1e-2),
        Training.Schedule.constant(),
        Objective.ofLabels(),
        5);
  }

  private static Stage.Train lowRank(String name, long steps) {
    return new Stage.Train(name, training(steps), true, RANK);
  }

  private static OnnxModel decoder() {
    return OnnxModel.of(SmallDecoder.of(1, WORDS, 16, 1), "decoder");
  }

  private static Compression.Job job(OnnxModel model) {
    return new Compression.Job(
        model,
        null,
        CausalTrainingTest.counting(64, 1),
        CausalTrainingTest.counting(16, 2),
        Pooling.MEAN,
        null,
        null);
  }

  /** How many singular values of the difference of two matrices are above rounding. */
  private static long rank(OnnxInitializer one, OnnxInitializer other) {
    float[] difference = new float[(int) one.elements()];
    for (int i = 0; i < difference.length; i++) {
      difference[i] = one.floats().get(i) - other.floats().get(i);
    }
    Libtorch.load();
    try (PointerScope scope = new PointerScope()) {
      Tensor values =
          torch.linalg_svdvals(AbstractTensor.create(difference, one.dims())).contiguous();
      long above = 0;
      for (int i = 0; i < values.numel(); i++) {
        above += values.data_ptr_float().get(i) > 1e-5 ? 1 : 0;
      }
      return above;
    }
  }

  /** W [16, 48] and the like have more inputs and outputs than the rank; all other constants of layers are vectors. */
  @Test
  void weightsChangeByMatricesOfTheRank() {
    OnnxModel model = decoder();
    CompressionPlan plan = new CompressionPlan(List.of(lowRank("tune", 60)), 7);
    try (OnnxCompression c = new OnnxCompression(plan, job(model))) {
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < 0.7 * report.before().loss(), report.toString());
      OnnxModel after = c.export();
      assertEquals(model.nodes().size(), after.nodes().size());
      int products = 0;
      int tables = 0;
      for (OnnxWeight weight : OnnxWeights.of(model)) {
        OnnxInitializer now = after.constant(weight.value());
        if (weight.isEmbedding()) {
          assertEquals(model.constant(weight.value()).data(), now.data(), weight.name());
          tables++;
        } else {
          assertEquals(RANK, rank(now, model.constant(weight.value())), weight.name());
          products++;
        }
      }
      assertTrue(products >= 5 && tables > 0, products + " products, " + tables + " tables");
      assertEquals(products, c.layers().size());
      for (LayerReport layer : c.layers()) {
        assertTrue(layer.error() > 1e-3 && layer.bits() == 32, layer.toString());
      }
      long vectors =
          after.initializers().stream()
              .filter(i -> i.dims().length == 1 && i.type() == DataType.FLOAT)
              .filter(i -> !i.data().equals(model.constant(i.name()).data()))
              .count();
      assertTrue(vectors >= 5, vectors + " biases and norms have changed");
    }
  }

  /** What follows begins with what low-rank ended with, and a run that stops anywhere goes on to the same bytes. */
  @ParameterizedTest
  @ValueSource(strings = {"tune", "whole", "again", "prune", "quantize"})
  void stagesFollowOneAnother(String stopped) throws IOException {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                lowRank("tune", 8),
                new Stage.Train("whole", training(7)),
                lowRank("again", 9),
                new Stage.Prune("prune", Pruning.oneShot(0.5), training(6)),
                new Stage.Quantize("quantize", Quantization.dynamic().withFit(false), training(5))),
            7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job(decoder()))) {
      assertTrue(c.run(SILENT));
      for (int i = 1; i < 5; i++) {
        double left = c.stages().get(i - 1).after().loss();
        assertEquals(left, c.stages().get(i).before().loss(), 1e-4 * left, "stage " + i);
      }
      whole = bytes(c.export());
    }
    Stage stage =
        plan.stages().stream().filter(s -> s.name().equals(stopped)).findFirst().orElseThrow();
    assertArrayEquals(whole, exported(plan, job(decoder()), stage, 4));
  }

  /** A table that is the last product too would be two tables. */
  @Test
  void aTiedHeadRests() {
    OnnxModel tied = OnnxModel.of(SmallDecoder.tied(1, WORDS, 16, 1), "tied");
    CompressionPlan plan = new CompressionPlan(List.of(lowRank("tune", 10)), 7);
    try (OnnxCompression c = new OnnxCompression(plan, job(tied))) {
      assertTrue(c.run(SILENT));
      OnnxModel after = c.export();
      for (OnnxWeight weight : OnnxWeights.of(tied)) {
        boolean table =
            weight.uses().stream().anyMatch(use -> use.kind() == OnnxWeight.Kind.EMBEDDING);
        boolean same =
            after.constant(weight.value()).data().equals(tied.constant(weight.value()).data());
        assertEquals(table, same, weight.name());
      }
    }
    // Where it is asked for, tables are trained as ever.
    Stage all = new Stage.Train("all", training(10).with(Training.Embeddings.ALWAYS), true, RANK);
    try (OnnxCompression c =
        new OnnxCompression(new CompressionPlan(List.of(all), 7), job(decoder()))) {
      assertTrue(c.run(SILENT));
      OnnxModel before = decoder();
      for (OnnxWeight weight : OnnxWeights.of(before)) {
        assertNotEquals(
            before.constant(weight.value()).data(), c.export().constant(weight.value()).data());
      }
    }
  }

  @Test
  void sixteenBitsStay() {
    OnnxModel half =
        OnnxModel.of(HalfModels.of(SmallDecoder.of(1, WORDS, 16, 1), DataType.FLOAT16), "half");
    CompressionPlan plan = new CompressionPlan(List.of(lowRank("tune", 20), lowRank("more", 2)), 7);
    try (OnnxCompression c = new OnnxCompression(plan, job(half))) {
      assertTrue(c.run(SILENT));
      OnnxModel after = c.export();
      int changed = 0;
      for (OnnxInitializer i : half.initializers()) {
        OnnxInitializer now = after.constant(i.name());
        assertEquals(i.type(), now.type(), i.name());
        changed += i.data().equals(now.data()) ? 0 : 1;
      }
      assertTrue(changed > 8, changed + " constants have changed");
    }
  }

  /** A Gemm whose weight is stored as [outputs, inputs], and a last one with fewer outputs than the rank. */
  @Test
  void gemmsAreAdaptedAndSmallHeadsAreTrainedWhole() {
    Random random = new Random(3);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("gemms")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 12))
            .addInitializer(SmallModels.floats("w1", random, 0.3f, 20, 12))
            .addInitializer(SmallModels.floats("b1", random, 0.3f, 20))
            .addInitializer(SmallModels.floats("w2", random, 0.3f, 20, 2))
            .addInitializer(SmallModels.floats("b2", random, 0.3f, 2))
            .addNode(
                SmallModels.node(
                    "Gemm",
                    "g1",
                    List.of("x", "w1", "b1"),
                    "h",
                    SmallModels.attribute("transB", 1)))
            .addNode(SmallModels.node("Tanh", "t", List.of("h"), "a"))
            .addNode(SmallModels.node("Gemm", "g2", List.of("a", "w2", "b2"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, graph), "gemms");
    Compression.Job job = rows(model);
    CompressionPlan plan = new CompressionPlan(List.of(lowRank("tune", 200)), 7);
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      assertTrue(c.stages().get(0).after().quality() > 0.7, c.stages().toString());
      OnnxModel after = c.export();
      assertEquals(RANK, rank(after.constant("w1"), model.constant("w1")));
      assertTrue(rank(after.constant("w2"), model.constant("w2")) >= 1);
      assertEquals(List.of("w1", "w2"), c.layers().stream().map(LayerReport::name).toList());
      assertIsWhatWasTrained(c);
    }
  }

  private static Compression.Job rows(OnnxModel model) {
    Random random = new Random(3);
    List<float[]> x = new ArrayList<>();
    long[] classes = new long[200];
    for (int i = 0; i < classes.length; i++) {
      float[] row = new float[12];
      for (int k = 0; k < row.length; k++) {
        row[k] = (float) random.nextGaussian();
      }
      x.add(row);
      classes[i] = row[0] * row[1] > 0 ? 1 : 0;
    }
    Examples.Labelled rows = new Examples.Labelled(x, List.of(12L), new Labels.Classes(classes, 1));
    return new Compression.Job(model, null, rows, rows, Pooling.MEAN, null, null);
  }

  /** What is exported begins where training ended. */
  private static void assertIsWhatWasTrained(OnnxCompression ended) {
    CompressionPlan look = new CompressionPlan(List.of(new Stage.Train("look", training(1))), 7);
    try (OnnxCompression next = new OnnxCompression(look, rows(ended.export()))) {
      next.run(SILENT);
      double left = ended.stages().get(0).after().loss();
      assertEquals(left, next.stages().get(0).before().loss(), 1e-3 * left);
    }
  }

  /** Two products of a weight, one of which turns it; a weight behind a Transpose, and in a Constant node; a Gemm with a factor. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "12, 12 | a MatMul x w; t Tanh a; h Gemm t w turned",
        "12, 8  | a MatMul x w; t Tanh a; h Gemm t w turned",
        "12, 12 | v Transpose w; a MatMul x v; h Tanh a",
        "12, 12 | w Constant; a MatMul x w; h Tanh a",
        "12, 12 | a Gemm x w half; h Tanh a",
        "12, 8  | a Gemm x w half; t Tanh a; h Gemm t w turned half",
      })
  void whatIsWrittenIsWhatWasTrained(String dims, String nodes) {
    Random random = new Random(4);
    TensorProto w =
        SmallModels.floats(
            "w", random, 0.3f, Stream.of(dims.split(", ")).mapToLong(Long::parseLong).toArray());
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("graph")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 12))
            .addInitializer(SmallModels.floats("head", random, 0.3f, 12, 2))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2));
    if (nodes.contains("w Constant")) {
      AttributeProto value =
          AttributeProto.newBuilder()
              .setName("value")
              .setType(AttributeProto.AttributeType.TENSOR)
              .setT(w)
              .build();
      graph.addNode(SmallModels.node("Constant", "w", List.of(), "w", value));
    } else {
      graph.addInitializer(w);
    }
    for (String line : (nodes + "; y MatMul h head").split("; ")) {
      NodeProto.Builder node = SmallModels.line(line.replaceAll(" (turned|half)", "")).toBuilder();
      if (line.contains("turned")) {
        node.addAttribute(SmallModels.attribute("transB", 1));
      }
      if (line.contains("half")) {
        node.addAttribute(SmallModels.real("alpha", 0.5f));
      }
      if (!node.getOpType().equals("Constant")) {
        graph.addNode(node);
      }
    }
    for (ModelProto message :
        List.of(
            SmallModels.model(13, graph),
            HalfModels.inside(SmallModels.model(13, graph), DataType.FLOAT16))) {
      OnnxModel model = OnnxModel.of(message, "graph");
      CompressionPlan plan = new CompressionPlan(List.of(lowRank("tune", 40)), 7);
      try (OnnxCompression c = new OnnxCompression(plan, rows(model))) {
        assertTrue(c.run(SILENT));
        OnnxModel after = c.export();
        assertEquals(model.nodes().size(), after.nodes().size());
        assertNotEquals(model.constant("w").data(), after.constant("w").data());
        assertIsWhatWasTrained(c);
      }
    }
  }

  /** A matrix on the left of its product, a convolution and a weight that a branch reads too. */
  @Test
  void whatRestsIsTold() {
    Random random = new Random(4);
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(SmallModels.line("d MatMul c w"))
            .addOutput(SmallModels.value("d", DataType.FLOAT, -1, 12));
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("graph")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 12))
            .addInitializer(SmallModels.floats("w", random, 0.3f, 12, 12))
            .addInitializer(SmallModels.floats("u", random, 0.3f, 12, 12))
            .addInitializer(SmallModels.floats("left", random, 0.3f, 12, 12))
            .addInitializer(SmallModels.floats("head", random, 0.3f, 12, 2))
            .addInitializer(
                SmallModels.tensor("yes", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})))
            .addNode(SmallModels.line("a MatMul x w"))
            .addNode(SmallModels.line("b MatMul a u"))
            .addNode(SmallModels.line("t Transpose b"))
            .addNode(SmallModels.line("s MatMul left t"))
            .addNode(SmallModels.line("c Transpose s"))
            .addNode(SmallModels.choice("choice", "yes", "h", branch))
            .addNode(SmallModels.line("y MatMul h head"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, graph), "graph");
    CompressionPlan plan = new CompressionPlan(List.of(lowRank("tune", 1)), 7);
    try (OnnxCompression c = new OnnxCompression(plan, rows(model))) {
      assertEquals(List.of("stage tune: low-rank leaves as they are: 'left', 'w'"), c.resting());
    }
    try (OnnxCompression c = new OnnxCompression(plan, job(decoder()))) {
      assertEquals(List.of(), c.resting());
    }
    // What a stage before has trained is reported, whatever rests now.
    Stage whole = new Stage.Train("whole", training(2));
    try (OnnxCompression c =
        new OnnxCompression(
            new CompressionPlan(List.of(whole, lowRank("tune", 1)), 7), rows(model))) {
      assertTrue(c.run(SILENT));
      assertEquals(
          List.of("w", "u", "left", "head"), c.layers().stream().map(LayerReport::name).toList());
    }
  }

  @Test
  void whatCannotBeAdaptedIsRefused() {
    Stage prune = new Stage.Prune("prune", Pruning.oneShot(0.5), Training.none());
    IllegalArgumentException late =
        assertThrows(
            IllegalArgumentException.class,
            () -> new CompressionPlan(List.of(prune, lowRank("tune", 1)), 7));
    assertTrue(late.getMessage().startsWith("stage tune: low-rank is for stages before"));
    CompressionPlan wide =
        new CompressionPlan(List.of(new Stage.Train("tune", training(1), true, 64)), 7);
    InputException small =
        assertThrows(InputException.class, () -> new OnnxCompression(wide, job(decoder())));
    assertTrue(
        small.getMessage().startsWith("stage tune: decoder has no product with a weight of more"),
        small.getMessage());
  }
}
