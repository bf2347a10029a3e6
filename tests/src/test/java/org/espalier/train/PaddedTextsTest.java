package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.TaggerModel;
import org.espalier.format.onnx.TextClassifierModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Texts with labels that are padded in batches. The model leaves padding out by its attention mask. */
class PaddedTextsTest {
  private static final int WIDTH = 8;
  private static final int VOCABULARY = 20;
  private static final int CLASSES = 3;

  // One mean in float32 of eight losses, and one of eight gradients, against those of the texts in
  // float64.
  private static final double ROUNDING = 2e-6;

  private static OnnxModel model() {
    return OnnxModel.of(TextClassifierModel.of(3, VOCABULARY, WIDTH, CLASSES), "classifier");
  }

  /** Texts of 1 to 15 tokens. */
  private static Examples.Labelled texts(Labels labels) {
    Random random = new Random(7);
    List<byte[]> ids = new ArrayList<>();
    List<byte[]> masks = new ArrayList<>();
    for (int i = 0; i < labels.size(); i++) {
      int length = 1 + 2 * i;
      ids.add(row(random.longs(length, 1, VOCABULARY).toArray()));
      masks.add(row(random.longs(length, 1, 2).toArray()));
    }
    return new Examples.Labelled(
        List.of(input("input_ids", ids), input("attention_mask", masks)), labels);
  }

  private static Examples.Input input(String name, List<byte[]> rows) {
    return new Examples.Input(name, SafetensorsDtype.I64, List.of(Examples.Input.OPEN), rows);
  }

  private static byte[] row(long... values) {
    ByteBuffer row = ByteBuffer.allocate(Long.BYTES * values.length).order(ByteOrder.LITTLE_ENDIAN);
    row.asLongBuffer().put(values);
    return row.array();
  }

  private static Examples.Labelled one(Examples.Labelled all, int index) {
    return new Examples.Labelled(
        all.inputs().stream()
            .map(input -> input(input.name(), input.rows().subList(index, index + 1)))
            .toList(),
        all.labels().of(new int[] {index}));
  }

  private static Training training(int batch, Objective objective) {
    return new Training(
        1,
        0,
        batch,
        new Optimizer.Sgd(0.05, 0, 0, false, 0),
        Training.Schedule.constant(),
        objective,
        0,
        Training.Embeddings.ALWAYS);
  }

  /** The loss of one step over examples, and the weights after it. */
  private record Step(double loss, Map<String, float[]> weights) {}

  private static Step step(OnnxModel model, Examples.Labelled examples, Objective objective) {
    return step(model, null, examples, objective);
  }

  private static Step step(
      OnnxModel model, OnnxModel teacher, Examples.Labelled examples, Objective objective) {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(new Stage.Train("fit", training(examples.size(), objective))), 7);
    Losses losses = new Losses();
    Compression.Job job =
        new Compression.Job(model, teacher, examples, examples, Pooling.MEAN, null, null);
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(losses));
      Map<String, float[]> weights = new TreeMap<>();
      OnnxModel made = c.floatModel();
      for (String name : List.of("words", "layer", "head", "bias")) {
        FloatBuffer values = made.constant(name).floats();
        float[] copy = new float[values.remaining()];
        values.get(copy);
        weights.put(name, copy);
      }
      return new Step(losses.ofSteps().get(0), weights);
    }
  }

  private static void assertMeanOfTexts(
      OnnxModel model, Examples.Labelled texts, Objective objective) {
    Step batch = step(model, texts, objective);
    double loss = 0;
    Map<String, double[]> means = new TreeMap<>();
    for (int i = 0; i < texts.size(); i++) {
      Step alone = step(model, one(texts, i), objective);
      double share = (double) texts.labels().of(i).known() / texts.labels().known();
      loss += alone.loss() * share;
      alone
          .weights()
          .forEach(
              (name, values) -> {
                double[] mean = means.computeIfAbsent(name, n -> new double[values.length]);
                for (int k = 0; k < values.length; k++) {
                  mean[k] += values[k] * share;
                }
              });
    }
    assertEquals(loss, batch.loss(), ROUNDING);
    double moved = 0;
    for (Map.Entry<String, double[]> weight : means.entrySet()) {
      float[] given = batch.weights().get(weight.getKey());
      float[] before = new float[given.length];
      model.constant(weight.getKey()).floats().get(before);
      for (int k = 0; k < given.length; k++) {
        assertEquals(weight.getValue()[k], given[k], ROUNDING, weight.getKey() + " " + k);
        moved = Math.max(moved, Math.abs(given[k] - before[k]));
      }
    }
    assertTrue(moved > 100 * ROUNDING, "the step moves weights: " + moved);
  }

  @ParameterizedTest
  @ValueSource(ints = {2, 7, 8}) // halves that are padded to other lengths
  void aStepOnClassesIsTheMeanOfTheTexts(int size) {
    long[] classes = new Random(5).longs(size, 0, CLASSES).toArray();
    assertMeanOfTexts(model(), texts(new Labels.Classes(classes)), Objective.ofLabels());
  }

  private static OnnxModel tagger(long seed) {
    return OnnxModel.of(TaggerModel.of(seed, VOCABULARY, WIDTH, CLASSES), "tagger");
  }

  /** Classes for two of three tokens; the first text has none. */
  private static Labels.TokenClasses tags(int size) {
    Random random = new Random(5);
    List<long[]> rows = new ArrayList<>();
    for (int i = 0; i < size; i++) {
      long[] row = random.longs(1 + 2 * i, 0, CLASSES).toArray();
      for (int t = 0; t < row.length; t += 3) {
        row[t] = Labels.Classes.NO_LABEL;
      }
      rows.add(row);
    }
    return new Labels.TokenClasses(rows);
  }

  /** The first text is left out, for nothing is learned from it alone. */
  @ParameterizedTest
  @ValueSource(ints = {2, 7, 8})
  void aStepOnClassesOfTokensIsTheMeanOfTheTokens(int size) {
    Examples.Labelled all = texts(tags(size + 1));
    int[] some = IntStream.rangeClosed(1, size).toArray();
    assertMeanOfTexts(
        tagger(3),
        new Examples.Labelled(
            all.inputs().stream()
                .map(input -> input(input.name(), input.rows().subList(1, size + 1)))
                .toList(),
            all.labels().of(some)),
        Objective.ofLabels());
  }

  /** Padded to the longest of all, with a mask, they are tensors of one shape. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void openTextsAreLearnedAsPaddedTensorsAre(boolean taught) {
    Examples.Labelled open = texts(tags(8));
    int longest = open.length(7);
    List<Examples.Input> padded = new ArrayList<>();
    for (Examples.Input input : open.inputs()) {
      List<byte[]> rows =
          input.rows().stream().map(row -> Arrays.copyOf(row, Long.BYTES * longest)).toList();
      padded.add(
          new Examples.Input(input.name(), SafetensorsDtype.I64, List.of((long) longest), rows));
    }
    Labels.Classes labels = ((Labels.TokenClasses) open.labels()).padded(longest);
    Objective objective = taught ? Objective.ofLogits(0.5, 2) : Objective.ofLabels();
    OnnxModel teacher = taught ? tagger(4) : null;
    Step ofOpen = step(tagger(3), teacher, open, objective);
    Step ofPadded = step(tagger(3), teacher, new Examples.Labelled(padded, labels), objective);
    assertEquals(ofPadded.loss(), ofOpen.loss(), ROUNDING);
    ofPadded
        .weights()
        .forEach(
            (name, values) ->
                assertArrayEquals(values, ofOpen.weights().get(name), (float) ROUNDING, name));
  }

  @Test
  void labelsAreOfTheTokensThatThereAre() {
    Labels.TokenClasses tags = tags(3);
    Examples.Labelled ofTexts = texts(new Labels.Classes(0, 1, 0));
    CompressionPlan plan =
        new CompressionPlan(List.of(new Stage.Train("fit", training(3, Objective.ofLabels()))), 7);
    Compression.Job mixed =
        new Compression.Job(tagger(3), null, texts(tags), ofTexts, Pooling.MEAN, null, null);
    assertThrows(InputException.class, () -> new OnnxCompression(plan, mixed).close());
    assertThrows(InputException.class, () -> texts(tags.of(0, 2, 1)));
    Examples.Input fixed =
        new Examples.Input(
            "input_ids", SafetensorsDtype.I64, List.of(1L), List.of(row(1), row(1), row(1)));
    assertThrows(InputException.class, () -> new Examples.Labelled(List.of(fixed), tags));
  }

  @Test
  void aStepOnSeveralClassesIsTheMeanOfTheTexts() {
    long[] classes = new long[8 * CLASSES];
    for (int i = 0; i < classes.length; i++) {
      classes[i] = i % 2; // both in each text
    }
    assertMeanOfTexts(model(), texts(new Labels.Classes(classes, CLASSES)), Objective.ofLabels());
  }
}
