package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.text;
import static org.espalier.format.onnx.SmallModels.value;
import static org.espalier.format.onnx.SmallModels.values;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallModels;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.MagnitudePrune.Amount;
import org.espalier.op.MagnitudePrune.Pattern;
import org.espalier.op.MagnitudePrune.Scope;
import org.espalier.op.MagnitudePrune.Sparsity;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Sums over inputs that all occur twice, the weights of the even ones half as large: these can go, and their twins take over.
 */
class RefittingPrunerTest {
  private static final int INPUTS = 8;
  private static final int OUTPUTS = 4;

  /** What damping leaves of what is exact, as a share of the norm of the outputs. */
  private static final double EXACT = 0.02;

  private static final Amount HALF = new Amount(0.5, Scope.TENSOR);

  private final Random random = new Random(11);

  /** Weights of which those of even places along an axis are about half as large as the others, of one sign a pair. */
  private float[] pairs(int axis, int... dims) {
    int inner = 1;
    for (int i = axis + 1; i < dims.length; i++) {
      inner *= dims[i];
    }
    float[] w = new float[Arrays.stream(dims).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < w.length; i++) {
      int at = i / inner % dims[axis];
      boolean negative = (i / inner / dims[axis] + at / 2 + i % inner) % 3 == 0;
      float size = (at % 2 == 0 ? 0.4f : 1) * (1 + 0.4f * random.nextFloat());
      w[i] = negative ? -size : size;
    }
    return w;
  }

  private ModelProto model(String node, long[] input, AttributeProto... attributes) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("sums")
            .addInput(value("x", DataType.FLOAT, input))
            .addOutput(
                value(
                    "y",
                    DataType.FLOAT,
                    IntStream.range(0, input.length).mapToLong(i -> -1 - i).toArray()))
            .addInitializer(floats("w", pairs(0, INPUTS, OUTPUTS), INPUTS, OUTPUTS))
            .addInitializer(floats("wt", pairs(1, OUTPUTS, INPUTS), OUTPUTS, INPUTS))
            .addInitializer(floats("conv", pairs(1, OUTPUTS, INPUTS, 3, 3), OUTPUTS, INPUTS, 3, 3))
            .addInitializer(floats("line", pairs(1, OUTPUTS, INPUTS, 3), OUTPUTS, INPUTS, 3))
            .addInitializer(
                floats("grouped", pairs(1, OUTPUTS, INPUTS / 2, 2, 3), OUTPUTS, INPUTS / 2, 2, 3))
            .addInitializer(floats("b", random, 1, OUTPUTS));
    for (String l : node.split("; ")) {
      g.addNode(line(l, attributes));
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(16, g), "model");
    model.removeUnusedInitializers();
    return model.toProto();
  }

  /** Channels in equal pairs, on the second axis of images and the last of all else, and not around 0. */
  private TensorActivations examples(int count, long... shape) throws OrtException {
    int axis = shape.length > 3 || shape[0] == 1 ? 1 : shape.length - 1;
    int inner = 1;
    for (int i = axis + 1; i < shape.length; i++) {
      inner *= (int) shape[i];
    }
    int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int e = 0; e < count; e++) {
      float[] x = new float[n];
      for (int i = 0; i < n; i++) {
        boolean odd = i / inner % INPUTS % 2 == 1;
        x[i] = odd ? x[i - inner] : (float) random.nextGaussian() + 0.7f;
      }
      examples.add(
          Map.of(
              "x",
              OnnxTensor.createTensor(
                  OrtEnvironment.getEnvironment(), FloatBuffer.wrap(x), shape)));
    }
    return new TensorActivations(examples, 1);
  }

  private static List<BitSet> everything(OnnxModel model, List<OnnxWeight> weights) {
    List<BitSet> kept = new ArrayList<>();
    for (OnnxWeight weight : weights) {
      BitSet bits = new BitSet();
      bits.set(0, (int) model.constant(weight.value()).elements());
      kept.add(bits);
    }
    return kept;
  }

  /** Half goes; the answers to other examples stay, where zeros alone move them. */
  private void halfOf(ModelProto proto, long... shape) throws OrtException {
    OnnxModel model = OnnxModel.of(proto, "model");
    List<OnnxWeight> weights = OnnxWeights.of(model);
    assertEquals(1, weights.size());
    List<BitSet> kept = everything(model, weights);
    RefittingPruner pruner = new RefittingPruner(model, weights, List.of(HALF));
    assertEquals(List.of(), RefittingPruner.unseen(model, weights));
    pruner.prune(kept, examples(40, shape), done -> {});
    float[] before = values(OnnxModel.of(proto, "original"), weights.get(0).value());
    float[] after = values(model, weights.get(0).value());
    assertEquals(before.length / 2, kept.get(0).cardinality());
    OutputError error = new OutputError(OnnxModel.of(proto, "original"), examples(5, shape));
    double refitted = error.of(model);
    assertTrue(refitted < EXACT, "error " + refitted);
    float[] zeroed = new float[before.length];
    for (int i = 0; i < zeroed.length; i++) {
      assertEquals(kept.get(0).get(i), after[i] != 0);
      zeroed[i] = kept.get(0).get(i) ? before[i] : 0;
    }
    OnnxModel plain = OnnxModel.of(proto, "zeroed");
    String value = weights.get(0).value();
    plain.replaceConstant(OnnxInitializer.floats(value, plain.constant(value).dims(), zeroed));
    double without = error.of(plain);
    assertTrue(without > 5 * EXACT, "error " + without);
  }

  @Test
  void products() throws OrtException {
    halfOf(model("y MatMul x w", new long[] {-1, INPUTS}), 16, INPUTS);
    halfOf(model("y MatMul x w", new long[] {2, -1, INPUTS}), 2, 8, INPUTS);
    halfOf(model("p MatMul x w; y Add p b", new long[] {-1, INPUTS}), 16, INPUTS);
    halfOf(model("t Transpose wt; y MatMul x t", new long[] {-1, INPUTS}), 16, INPUTS);
    halfOf(model("y Gemm x w b", new long[] {-1, INPUTS}), 16, INPUTS);
    halfOf(model("y Gemm x wt b", new long[] {-1, INPUTS}, attribute("transB", 1)), 16, INPUTS);
    halfOf(
        model("y Gemm x w b", new long[] {-1, INPUTS}, SmallModels.real("beta", 0.5f)), 16, INPUTS);
  }

  @Test
  void convolutions() throws OrtException {
    long[] image = {1, INPUTS, 9, 7};
    halfOf(model("y Conv x conv", image), image);
    halfOf(model("y Conv x conv b", image, attribute("pads", 1, 0, 2, 1)), image);
    halfOf(
        model("y Conv x conv b", image, attribute("strides", 2, 1), attribute("dilations", 1, 2)),
        image);
    halfOf(model("y Conv x conv b", image, text("auto_pad", "SAME_LOWER")), image);
    halfOf(
        model("y Conv x conv", image, text("auto_pad", "SAME_UPPER"), attribute("strides", 3, 2)),
        image);
    halfOf(model("y Conv x grouped b", image, attribute("group", 2)), image);
    long[] line = {1, INPUTS, 30};
    halfOf(model("y Conv x line b", line, attribute("pads", 1, 1)), line);
    long[] two = {2, INPUTS, 9, 7};
    halfOf(model("y Conv x conv b", two), two);
  }

  /** Of each output as many as the rule says, whatever was pruned before. */
  @ParameterizedTest
  @ValueSource(strings = {"amount", "sparsity", "2:4", "3:8"})
  void countsOfEachOutput(String kind) throws OrtException {
    MagnitudePrune.Rule rule =
        switch (kind) {
          case "amount" -> new Amount(0.4, Scope.TENSOR);
          case "sparsity" -> new Sparsity(0.4, Scope.TENSOR);
          default -> Pattern.parse(kind);
        };
    ModelProto proto = model("y Conv x conv b", new long[] {1, INPUTS, 9, 7});
    OnnxModel model = OnnxModel.of(proto, "model");
    List<OnnxWeight> weights = OnnxWeights.of(model);
    List<BitSet> kept = everything(model, weights);
    BitSet bits = kept.get(0);
    bits.clear(0, 27); // of the first output the first three channels
    new RefittingPruner(model, weights, List.of(rule))
        .prune(kept, examples(10, 1, INPUTS, 9, 7), done -> {});
    assertEquals(0, bits.get(0, 27).cardinality());
    float[] after = values(model, "conv");
    for (int o = 0; o < OUTPUTS; o++) {
      int pruned = INPUTS * 9 - bits.get(o * INPUTS * 9, (o + 1) * INPUTS * 9).cardinality();
      switch (kind) {
        // 72 weights, 45 of the first output
        case "amount" -> assertEquals(o == 0 ? 27 + 18 : 29, pruned);
        case "sparsity" -> assertEquals(29, pruned);
        default -> {
          Pattern pattern = (Pattern) rule;
          for (int g = 0; g < INPUTS / pattern.group(); g++) {
            for (int p = 0; p < 9; p++) {
              int left = 0;
              for (int c = g * pattern.group(); c < (g + 1) * pattern.group(); c++) {
                left += after[(o * INPUTS + c) * 9 + p] != 0 ? 1 : 0;
              }
              int most = o == 0 && g == 0 ? pattern.group() - 3 : pattern.group();
              assertEquals(Math.min(pattern.keep(), most), left, o + " " + g + " " + p);
            }
          }
        }
      }
    }
  }

  /** Once more prunes of what is left, as a pruner of its own does. */
  @ParameterizedTest
  @ValueSource(strings = {"y Add p b", "q Add p b; y Add q b"})
  void prunesAgain(String nodes) throws OrtException {
    ModelProto proto = model("p MatMul x w; " + nodes, new long[] {-1, INPUTS});
    TensorActivations examples = examples(40, 16, INPUTS);
    List<ByteBuffer> results = new ArrayList<>();
    for (boolean same : new boolean[] {true, false}) {
      OnnxModel model = OnnxModel.of(proto, "model");
      List<OnnxWeight> weights = OnnxWeights.of(model);
      List<BitSet> kept = everything(model, weights);
      RefittingPruner pruner = new RefittingPruner(model, weights, List.of(HALF));
      pruner.prune(kept, examples, done -> {});
      int left = kept.get(0).cardinality();
      if (!same) {
        pruner = new RefittingPruner(model, OnnxWeights.of(model), List.of(HALF));
      }
      pruner.prune(kept, examples, done -> {});
      assertEquals(left / 2, kept.get(0).cardinality());
      results.add(model.toBuffer());
    }
    assertEquals(results.get(1), results.get(0));
  }

  /**
   * The bias takes up the mean of what is lost: outputs keep theirs, which zeros alone would move. One that another node
   * reads too stays what it is there.
   */
  @ParameterizedTest
  @ValueSource(strings = {"y Add p b", "q Add p b; y Add q b", "y Add p b; z Identity b"})
  void biasesKeepTheMean(String nodes) throws OrtException {
    ModelProto proto = model("p MatMul x w; " + nodes, new long[] {-1, INPUTS});
    OnnxModel model = OnnxModel.of(proto, "model");
    List<OnnxWeight> weights = OnnxWeights.of(model);
    List<BitSet> kept = everything(model, weights);
    new RefittingPruner(model, weights, List.of(new Amount(1, Scope.TENSOR)))
        .prune(kept, examples(40, 16, INPUTS), done -> {});
    assertTrue(kept.get(0).isEmpty());
    float[] before = values(OnnxModel.of(proto, "original"), "w");
    float[] old = values(OnnxModel.of(proto, "original"), "b");
    boolean alone = nodes.equals("y Add p b");
    float[] bias = values(model, alone ? "b" : "b_fitted");
    if (!alone) {
      assertArrayEquals(old, values(model, "b"));
    }
    for (int n = 0; n < OUTPUTS; n++) {
      double mean = old[n];
      for (int k = 0; k < INPUTS; k++) {
        mean += 0.7 * before[k * OUTPUTS + n];
      }
      assertEquals(mean, bias[n], 0.6);
    }
  }

  /** Where the bias may not change, the weights that stay take up the mean as far as they can. */
  @ParameterizedTest
  @ValueSource(strings = {"p MatMul x w; y Add p b", "y Gemm x w b"})
  void biasesThatMayNotChangeStay(String nodes) throws OrtException {
    ModelProto proto = model(nodes, new long[] {-1, INPUTS});
    OnnxModel model = OnnxModel.of(proto, "model");
    List<OnnxWeight> weights = OnnxWeights.of(model);
    new RefittingPruner(model, weights, List.of(HALF), vector -> !vector.equals("b"))
        .prune(everything(model, weights), examples(40, 16, INPUTS), done -> {});
    assertArrayEquals(values(OnnxModel.of(proto, "original"), "b"), values(model, "b"));
    double error =
        new OutputError(OnnxModel.of(proto, "original"), examples(5, 16, INPUTS)).of(model);
    assertTrue(error < EXACT, "error " + error);
  }

  /** What calibration does not see goes by magnitude, and the others keep their bits. */
  @Test
  void recurrentAndSharedWeightsGoByMagnitude() throws OrtException {
    ModelProto proto = model("p MatMul x w; q MatMul x w; y Add p q", new long[] {-1, INPUTS});
    OnnxModel model = OnnxModel.of(proto, "model");
    List<OnnxWeight> weights = OnnxWeights.of(model);
    List<BitSet> kept = everything(model, weights);
    RefittingPruner pruner = new RefittingPruner(model, weights, List.of(HALF));
    assertEquals(
        List.of("1 weight goes by magnitude alone: several nodes read it ('w')"),
        RefittingPruner.unseen(model, weights));
    pruner.prune(
        kept,
        (m, activations, receiver) -> {
          throw new AssertionError("ran for " + activations);
        },
        done -> {});
    float[] before = values(OnnxModel.of(proto, "original"), "w");
    float[] after = values(model, "w");
    for (int i = 0; i < before.length; i++) {
      assertEquals(i / OUTPUTS % 2 == 0 ? 0 : before[i], after[i], "weight " + i);
    }
    OnnxModel recurrent = OnnxModel.of(SmallModels.recurrent(), "recurrent");
    List<OnnxWeight> layers = OnnxWeights.of(recurrent);
    List<String> unseen = RefittingPruner.unseen(recurrent, layers);
    assertTrue(
        unseen.stream().anyMatch(why -> why.contains("sums over is not seen (")),
        unseen.toString());
  }

  @Test
  void otherRulesAndBadNumbersAreRefused() throws OrtException {
    ModelProto proto = model("y MatMul x w", new long[] {-1, INPUTS});
    OnnxModel model = OnnxModel.of(proto, "model");
    List<OnnxWeight> weights = OnnxWeights.of(model);
    for (MagnitudePrune.Rule rule :
        List.of(
            new Amount(0.5, Scope.GLOBAL),
            new Sparsity(0.5, Scope.GLOBAL),
            new MagnitudePrune.Count(3, Scope.TENSOR),
            new MagnitudePrune.Threshold(0.5f))) {
      assertThrows(InputException.class, () -> new RefittingPruner(model, weights, List.of(rule)));
    }
    float[] w = values(model, "w");
    w[5] = Float.NaN;
    model.replaceConstant(OnnxInitializer.floats("w", new long[] {INPUTS, OUTPUTS}, w));
    TensorActivations examples = examples(2, 4, INPUTS);
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                new RefittingPruner(model, weights, List.of(HALF))
                    .prune(everything(model, weights), examples, done -> {}));
    assertTrue(e.getMessage().contains("the weights w hold NaN"), e.getMessage());
    OnnxModel whole = OnnxModel.of(proto, "model");
    e =
        assertThrows(
            InputException.class,
            () ->
                new RefittingPruner(whole, OnnxWeights.of(whole), List.of(HALF))
                    .prune(everything(model, weights), (m, a, r) -> {}, done -> {}));
    assertTrue(e.getMessage().contains("at least one example"), e.getMessage());
  }
}
