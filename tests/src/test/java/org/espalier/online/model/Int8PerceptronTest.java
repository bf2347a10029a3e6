package org.espalier.online.model;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnxruntime.OrtException;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Consumer;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.Example;
import org.espalier.online.ExampleInput;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineSettings;
import org.espalier.online.Streams;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.online.privacy.Privacy;
import org.espalier.online.store.ModelFiles;
import org.espalier.torch.Libtorch;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** int8 perceptrons without libtorch, beside the same with it. */
class Int8PerceptronTest {
  private static final int OUTPUTS = Int8Perceptrons.OUTPUTS;
  private static final int MODELS = 40;

  @BeforeEach
  void load() {
    Libtorch.load();
  }

  private static Perceptron ours(OnnxModel model) {
    return Perceptron.of(Int8Model.of(model)).orElseThrow(() -> new AssertionError(model.name()));
  }

  private static TorchLearnable theirs(OnnxModel model, int features) {
    return TorchLearnable.of(
        Int8Model.of(model), List.of(ExampleInput.floats("x", features)), OUTPUTS);
  }

  private static float[][] rows(int n, int features, long seed) {
    Random random = new Random(seed);
    float[][] rows = new float[n][features];
    for (float[] row : rows) {
      for (int j = 0; j < features; j++) {
        row[j] = (float) random.nextGaussian();
      }
    }
    return rows;
  }

  /**
   * Sums have another order than libtorch's, so nearly all answers and gradients differ by 1e-5. An activation between two integers
   * may fall on the other side: a step of 0.02, or of a 255th of a range, times some weights, and what follows from it.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void givesWhatLibtorchGives(boolean isDynamic) {
    List<Float> differences = new ArrayList<>();
    for (int seed = 1; seed <= MODELS; seed++) {
      OnnxModel model = Int8Perceptrons.drawn(seed, isDynamic);
      int features = Int8Perceptrons.features(seed);
      try (Perceptron ours = ours(model);
          TorchLearnable theirs = theirs(model, features)) {
        assertEquals(theirs.identity(), ours.identity());
        assertEquals(told(theirs), told(ours));
        assertEquals(theirs.mixesExamples(), ours.mixesExamples());
        for (int count : new int[] {33, 1, 2}) {
          float[][] x = rows(count, features, seed);
          float[] slope = rows(1, count * OUTPUTS, 5)[0];
          forward(differences, theirs, ours, x, count);
          theirs.backward(slope, count);
          ours.backward(slope, count);
          addGradients(differences, theirs, ours);
          if (ours.mixesExamples() && count > 1) {
            continue; // which no private learner asks for
          }
          for (double bound : new double[] {1e6, 0.5}) {
            forward(differences, theirs, ours, x, count);
            int clipped = theirs.backwardClipped(slope, count, bound);
            assertEquals(clipped, ours.backwardClipped(slope, count, bound));
            assertEquals(bound < 1, clipped > 0);
            addGradients(differences, theirs, ours);
          }
        }
      }
    }
    differences.sort(null);
    assertTrue(differences.get((int) (0.995 * differences.size())) < 1e-5);
    float largest = differences.get(differences.size() - 1);
    assertTrue(largest < 0.2, largest + " apart");
  }

  private static void forward(
      List<Float> differences, Learnable theirs, Learnable ours, float[][] x, int count) {
    float[] expected = new float[count * OUTPUTS];
    theirs.forward(x, count, expected);
    float[] actual = new float[count * OUTPUTS];
    ours.forward(x, count, actual);
    add(differences, expected, actual);
  }

  private static List<String> told(Learnable model) {
    return model.weights().stream().map(Int8PerceptronTest::told).toList();
  }

  private static String told(Weight w) {
    return w.name()
        + " "
        + w.latent()
        + " "
        + w.isMatrix()
        + " "
        + w.scaleAxis()
        + " "
        + Arrays.toString(w.grid());
  }

  private static void add(List<Float> differences, float[] expected, float[] actual) {
    for (int i = 0; i < expected.length; i++) {
      differences.add(Math.abs(expected[i] - actual[i]));
    }
  }

  /** As parts of the largest entry of the weight. */
  private static void addGradients(List<Float> differences, Learnable theirs, Learnable ours) {
    for (int k = 0; k < theirs.weights().size(); k++) {
      float[] expected = Floats.copy(theirs.weights().get(k).gradient());
      float[] actual = Floats.copy(ours.weights().get(k).gradient());
      float largest = 1;
      for (float v : expected) {
        largest = Math.max(largest, Math.abs(v));
      }
      for (int i = 0; i < expected.length; i++) {
        differences.add(Math.abs(expected[i] - actual[i]) / largest);
      }
    }
  }

  private static List<Example> examples(int n, int features, long seed) {
    List<Example> list = new ArrayList<>();
    for (float[] x : rows(n, features, seed)) {
      list.add(Example.of(x, x[0] * x[1] > 0 ? 0 : x[2] > 0 ? 1 : 2));
    }
    return list;
  }

  private static OnlineSettings.Builder settings() {
    return Streams.crossEntropy(0.05).batch(8);
  }

  /** Whose steps are the same, but where a sum lies between two integers. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void learnsAsLibtorchDoes(boolean isDynamic) {
    List<Consumer<OnlineSettings.Builder>> ways =
        List.of(
            s -> {},
            s -> s.batch(1),
            s -> s.momentum(0.9).weightDecay(1e-3),
            s -> s.adamW(OnlineSettings.AdamW.DEFAULTS),
            s -> s.keepZeros(true),
            s -> s.replay(new OnlineSettings.Replay(50, 4)));
    int all = 0;
    int moved = 0;
    int different = 0;
    for (int seed = 1; seed <= 8; seed++) {
      OnnxModel model = Int8Perceptrons.drawn(seed, isDynamic);
      int features = Int8Perceptrons.features(seed);
      List<Example> stream = examples(200, features, seed);
      for (Consumer<OnlineSettings.Builder> way : ways) {
        OnlineSettings.Builder settings = settings();
        way.accept(settings);
        try (Perceptron ours = ours(model);
            TorchLearnable theirs = theirs(model, features);
            OnlineLearner mine = new OnlineLearner(ours, settings.build());
            OnlineLearner other = new OnlineLearner(theirs, settings.build())) {
          mine.learn(stream);
          other.learn(stream);
          assertEquals(other.metrics().get("accuracy"), mine.metrics().get("accuracy"), 0.02);
          for (OnnxInitializer before : weights(model)) {
            ByteBuffer expected = other.toOnnx().constant(before.name()).data();
            ByteBuffer actual = mine.toOnnx().constant(before.name()).data();
            all += expected.remaining();
            for (int i = 0; i < expected.remaining(); i++) {
              moved += expected.get(i) != before.data().get(i) ? 1 : 0;
              different += expected.get(i) != actual.get(i) ? 1 : 0;
              assertTrue(Math.abs((byte) (expected.get(i) - actual.get(i))) < 5, before.name());
            }
          }
        }
      }
    }
    assertTrue(moved > all / 2, moved + " of " + all + " have changed");
    assertTrue(different < all / 100, different + " of " + all + " are different");
  }

  /** The integers of weights. */
  private static List<OnnxInitializer> weights(OnnxModel model) {
    return model.initializers().stream()
        .filter(i -> i.name().endsWith(".weight_quantized"))
        .toList();
  }

  /**
   * What a learner predicts is what ONNX Runtime makes of its version. Biases are rounded to steps of 1e-4, of which a value
   * meets up to four, and one in 200 activations falls on the other side of two integers by it: one in ten answers may have
   * met one. 0.2 as above.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void predictsWhatThePublishedFileAnswers(boolean isDynamic) throws OrtException {
    List<Float> alone = new ArrayList<>();
    List<Float> together = new ArrayList<>();
    for (int seed = 1; seed <= MODELS; seed++) {
      int features = Int8Perceptrons.features(seed);
      try (Perceptron model = ours(Int8Perceptrons.exact(seed, isDynamic));
          OnlineLearner learner = new OnlineLearner(model, settings().build())) {
        learner.learn(examples(200, features, seed));
        OnnxModel published = learner.toOnnx();
        for (int count : new int[] {20, 1}) {
          float[][] x = rows(count, features, count);
          float[] predicted = new float[count * OUTPUTS];
          learner.predict(x, count, predicted);
          add(count == 1 ? alone : together, Int8LearningTest.run(published, x), predicted);
        }
      }
    }
    for (List<Float> differences : List.of(alone, together)) {
      differences.sort(null);
      assertTrue(differences.get((int) (0.9 * differences.size())) < 4e-4);
      float largest = differences.get(differences.size() - 1);
      assertTrue(largest < 0.2, largest + " apart");
    }
  }

  /** Of ranges that have no scale with a reciprocal, of zeros, and of what is not finite. */
  @Test
  void oddRangesAreRoundedAsLibtorchDoes() {
    OnnxModel model = Int8Perceptrons.drawn(1, true);
    int features = Int8Perceptrons.features(1);
    try (Perceptron ours = ours(model);
        TorchLearnable theirs = theirs(model, features)) {
      for (float v :
          new float[] {
            0, 1e-38f, Float.MIN_VALUE, 3e38f, Float.NaN, Float.POSITIVE_INFINITY, -1e-40f
          }) {
        float[][] x = {new float[features], new float[features]};
        x[0][1] = v;
        x[1][0] = -v;
        float[] expected = new float[2 * OUTPUTS];
        theirs.forward(x, 2, expected);
        float[] actual = new float[2 * OUTPUTS];
        ours.forward(x, 2, actual);
        assertArrayEquals(expected, actual, 1e-5f, v + "");
      }
    }
  }

  @Test
  void noPrivacyWhereExamplesShareARange() {
    OnlineSettings settings = settings().privacy(Privacy.forEpsilon(8, 1e-5, 0.5, 1)).build();
    OnnxModel shared = Int8Perceptrons.drawn(1, true);
    try (Perceptron ours = ours(shared);
        TorchLearnable theirs = theirs(shared, Int8Perceptrons.features(1))) {
      for (Learnable model : List.of(ours, theirs)) {
        String told =
            assertThrows(
                    IllegalArgumentException.class, () -> new OnlineLearner(model, settings, 7L))
                .getMessage();
        assertTrue(told.contains("the model finds ranges for a batch"), told);
      }
    }
    try (Perceptron model = ours(Int8Perceptrons.drawn(1, false));
        OnlineLearner learner = new OnlineLearner(model, settings, 7L)) {
      assertEquals(8, learner.learn(examples(8, Int8Perceptrons.features(1), 1)).learned());
    }
  }

  /** What libtorch has learned goes on without it, from the same integers. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void statesOfLibtorchGoOn(boolean isDynamic) throws IOException {
    OnnxModel model = Int8Perceptrons.drawn(3, isDynamic);
    int features = Int8Perceptrons.features(3);
    OnlineSettings settings = settings().momentum(0.9).build();
    try (Perceptron ours = ours(model);
        TorchLearnable theirs = theirs(model, features);
        OnlineLearner mine = new OnlineLearner(ours, settings);
        OnlineLearner other = new OnlineLearner(theirs, settings)) {
      other.learn(examples(80, features, 1));
      ByteArrayOutputStream state = new ByteArrayOutputStream();
      other.save(state);
      mine.load(new ByteArrayInputStream(state.toByteArray()));
      assertEquals(other.toOnnx().toBuffer(), mine.toOnnx().toBuffer());
      ByteArrayOutputStream again = new ByteArrayOutputStream();
      mine.save(again);
      assertArrayEquals(state.toByteArray(), again.toByteArray());
      List<Example> more = examples(80, features, 2);
      assertEquals(other.learn(more).loss(), mine.learn(more).loss(), 0.02);
    }
  }

  /** From a file, whose other int8 models are libtorch's. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void filesOfPerceptronsNeedNoLibtorch(boolean isDynamic, @TempDir Path folder) {
    OnlineRecipe recipe =
        OnlineRecipe.parse("loss: cross-entropy\nlearning-rate: 0.1\n", "online.yaml");
    Path file = folder.resolve("model.onnx");
    OnnxModel model = Int8Perceptrons.drawn(4, isDynamic);
    model.write(file);
    try (Learnable read = ModelFiles.read(file, recipe)) {
      assertInstanceOf(Perceptron.class, read);
      assertEquals(isDynamic, read.mixesExamples());
    }
    List<NodeProto> nodes = new ArrayList<>(model.nodes());
    NodeProto last = nodes.remove(nodes.size() - 1);
    nodes.add(SmallModels.line("y Softmax " + last.getInput(0)));
    model.setNodes(nodes);
    model.write(file);
    try (Learnable read = ModelFiles.read(file, recipe)) {
      assertInstanceOf(TorchLearnable.class, read);
    }
  }
}
