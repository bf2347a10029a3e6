package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.choice;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.function.DoubleUnaryOperator;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.evaluate.TensorActivations;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.MergedDecoder;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Products in branches are fitted to what the examples show of them, for all branches that have their weights. */
class InnerProductsTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();
  private static final int VOCABULARY = 120;
  private static final int WIDTH = 64;
  private static final int HEADS = 2;

  /** Directions that the vectors of words lie along, nearly. */
  private static final int DIRECTIONS = 8;

  /** A decoder whose channels go together, and of which two are large. */
  private static ModelProto decoder() {
    ModelProto proto = SmallDecoder.withPast(3, VOCABULARY, WIDTH, 2);
    Random random = new Random(9);
    GraphProto.Builder g = proto.getGraph().toBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      OnnxInitializer t = OnnxInitializer.ofMessage(g.getInitializer(i));
      if (!t.isFloat()) {
        continue;
      }
      float[] values = new float[(int) t.elements()];
      t.floats().get(values);
      if (t.name().equals("wte")) {
        values = words(random);
      } else if (t.name().contains("ln_") && t.name().endsWith("weight")) {
        values[3] = 8;
        values[11] = 6;
      } else if (t.name().endsWith("bias")) {
        for (int k = 0; k < values.length; k++) {
          values[k] = 0.2f * (float) random.nextGaussian();
        }
      }
      g.setInitializer(i, OnnxInitializer.floats(t.name(), t.dims(), values).message());
    }
    return proto.toBuilder().setGraph(g).build();
  }

  private static float[] words(Random random) {
    double[] directions = random.doubles(DIRECTIONS * WIDTH, -1, 1).toArray();
    float[] words = new float[VOCABULARY * WIDTH];
    for (int v = 0; v < VOCABULARY; v++) {
      double[] along = random.doubles(DIRECTIONS, -1, 1).toArray();
      for (int k = 0; k < WIDTH; k++) {
        double sum = 0.1 * random.nextGaussian();
        for (int d = 0; d < DIRECTIONS; d++) {
          sum += along[d] * directions[d * WIDTH + k];
        }
        words[v * WIDTH + k] = (float) sum;
      }
    }
    return words;
  }

  private static List<Tokens> texts(long seed, int count) {
    Random random = new Random(seed);
    List<Tokens> texts = new ArrayList<>();
    for (int i = 0; i < count; i++) {
      int n = 8 + random.nextInt(16);
      long[] mask = new long[n];
      Arrays.fill(mask, 1);
      texts.add(
          new Tokens(random.longs(n, 0, VOCABULARY).toArray(), mask, new long[n], new int[n]));
    }
    return texts;
  }

  /** What a merged decoder takes of the words of a text from one to another. */
  private static Map<String, OnnxTensor> words(long[] ids, int from, int to, boolean goesOn)
      throws OrtException {
    long[] mask = new long[to];
    Arrays.fill(mask, 1);
    long[] places = new long[to - from];
    Arrays.setAll(places, i -> from + i);
    Map<String, OnnxTensor> inputs = new HashMap<>();
    inputs.put("input_ids", longs(Arrays.copyOfRange(ids, from, to)));
    inputs.put("attention_mask", longs(mask));
    inputs.put("position_ids", longs(places));
    inputs.put(PastInput.BRANCH, OnnxTensor.createTensor(ENVIRONMENT, new boolean[] {goesOn}));
    return inputs;
  }

  private static OnnxTensor longs(long... values) throws OrtException {
    long[] shape = {1, values.length};
    return OnnxTensor.createTensor(ENVIRONMENT, LongBuffer.wrap(values), shape);
  }

  /** The second halves of texts, after their first halves. */
  private static List<Map<String, OnnxTensor>> goingOn(ModelProto merged, List<Tokens> texts)
      throws OrtException {
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    try (OrtSession session = ENVIRONMENT.createSession(merged.toByteArray())) {
      for (Tokens text : texts) {
        long[] ids = text.ids();
        Map<String, OnnxTensor> first = words(ids, 0, ids.length / 2, false);
        long[] nothing = {1, HEADS, 0, WIDTH / HEADS};
        for (String input : session.getInputNames()) {
          if (PastInput.isOne(input)) {
            FloatBuffer none = FloatBuffer.allocate(0);
            first.put(input, OnnxTensor.createTensor(ENVIRONMENT, none, nothing));
          }
        }
        Map<String, OnnxTensor> second = words(ids, ids.length / 2, ids.length, true);
        for (Map.Entry<String, OnnxValue> e : session.run(first)) {
          if (e.getKey().startsWith("present")) {
            String input = e.getKey().replace("present", "past_key_values");
            second.put(input, (OnnxTensor) e.getValue());
          }
        }
        examples.add(second);
      }
    }
    return examples;
  }

  private static WeightQuantizer quantizer(String form, OnnxModel model) {
    return form.equals("onnx-dynamic")
        ? new DynamicQuantizer(model, RuntimeRuns.exactDynamic())
        : new BlockQuantizer(model, BlockQuantizer.Options.of(form.equals("onnx-int4") ? 4 : 8));
  }

  private static OnnxModel quantized(String form, ModelProto proto, ActivationSource calibration) {
    OnnxModel model = OnnxModel.of(proto, "model");
    WeightQuantizer quantizer = quantizer(form, model);
    if (calibration != null) {
      quantizer.calibrate(calibration);
      assertEquals(Map.of(), quantizer.unseen());
    }
    quantizer.apply();
    return model;
  }

  private static long matrices(OnnxModel model) {
    return model.initializers().stream()
        .filter(i -> i.type() == DataType.INT8 || i.type() == DataType.UINT8)
        .filter(i -> i.dims().length > 1)
        .count();
  }

  /**
   * Texts take the branch for those that begin. Products of the other one are as exact afterwards, and those of a decoder without
   * branches are no better. Less what equalization puts into graphs the file does not grow.
   *
   * @param share of the error without calibration that is left
   * @param more bytes that calibration takes
   */
  @ParameterizedTest
  @CsvSource({"onnx-dynamic, 0.6, 12000", "onnx-int8, 0.97, 300", "onnx-int4, 0.5, 300"})
  void bothBranchesOfADecoderAreFitted(String form, double share, int more) throws OrtException {
    ModelProto plain = decoder();
    ModelProto merged = MergedDecoder.of(plain);
    ActivationSource calibration = new TextActivations(1, texts(1, 60));
    List<Tokens> others = texts(2, 10);
    List<String> logits = List.of("logits");
    ActivationSource begins = new TextActivations(1, others);
    ActivationSource goesOn = new TensorActivations(goingOn(merged, others), 1);
    OnnxModel original = OnnxModel.of(merged, "merged");
    OutputError atFirst = new OutputError(original, logits, begins);
    OutputError later = new OutputError(original, logits, goesOn);
    OnnxModel nearest = quantized(form, merged, null);
    OnnxModel fitted = OnnxModel.of(merged, "merged");
    WeightQuantizer quantizer = quantizer(form, fitted);
    quantizer.calibrate(calibration);
    // Until weights are rounded nothing changes.
    assertEquals(0, atFirst.of(fitted), 1e-5);
    assertEquals(0, later.of(fitted), 1e-5);
    quantizer.apply();
    assertTrue(atFirst.of(fitted) < share * atFirst.of(nearest), "at first " + atFirst.of(fitted));
    assertTrue(later.of(fitted) < share * later.of(nearest), "later " + later.of(fitted));
    double alone = atFirst.of(quantized(form, plain, calibration));
    assertEquals(alone, atFirst.of(fitted), 0.05 * alone);
    assertEquals(matrices(nearest), matrices(fitted));
    assertTrue(fitted.inlineSize() < nearest.inlineSize() + more, "" + fitted.inlineSize());
    // Branches that have the same matrices each are fitted and stored alike.
    OnnxModel copied = quantized(form, MergedDecoder.ofCopies(plain), calibration);
    assertEquals(atFirst.of(fitted), atFirst.of(copied), 1e-6);
    assertEquals(later.of(fitted), later.of(copied), 1e-6);
    assertEquals(fitted.inlineSize(), copied.inlineSize(), 1000);
  }

  /** Branches look up in the integers of the head that they share. */
  @ParameterizedTest
  @ValueSource(strings = {"onnx-dynamic", "onnx-int8", "onnx-int4"})
  void aHeadThatIsTheTableIsStoredOnce(String form) {
    ModelProto decoder = SmallDecoder.tied(3, 1100, WIDTH, 1);
    ActivationSource some = new TextActivations(1, texts(1, 20));
    OutputError error = new OutputError(OnnxModel.of(decoder, "decoder"), some);
    OnnxModel plain = quantized(form, decoder, some);
    for (ModelProto merged : List.of(MergedDecoder.of(decoder), MergedDecoder.ofCopies(decoder))) {
      OnnxModel nearest = quantized(form, merged, null);
      OnnxModel fitted = quantized(form, merged, some);
      assertEquals(matrices(plain), matrices(fitted));
      assertEquals(plain.initializerBytes(), fitted.initializerBytes(), 1000);
      assertTrue(fitted.inlineSize() < plain.inlineSize() + 10_000, "" + fitted.inlineSize());
      assertTrue(error.of(fitted) < error.of(nearest), error.of(fitted) + ", " + error.of(nearest));
      assertEquals(error.of(plain), error.of(fitted), 0.05 * error.of(plain));
      WeightQuantizer trained = quantizer(form, OnnxModel.of(merged, "merged"));
      trained.calibrate(some);
      trained.prepareTraining();
      assertTrue(error.of(trained.quantizedCopy(same -> {})) < 1.05 * error.of(fitted));
    }
  }

  /** Weights have more bits in both branches or in none, once in the file. */
  @Test
  void weightsOfMoreBitsAreSharedToo() {
    OnnxModel model = OnnxModel.of(MergedDecoder.of(decoder()), "merged");
    ActivationSource calibration = new TextActivations(1, texts(1, 20));
    BlockQuantizer quantizer = new BlockQuantizer(model, BlockQuantizer.Options.of(4));
    quantizer.calibrate(calibration);
    long least = quantizer.requireRoom(Long.MAX_VALUE);
    long most = least + 2 * WIDTH * WIDTH;
    List<String> wide = quantizer.widen(calibration, List.of("logits"), most);
    assertEquals(wide.size(), new HashSet<>(wide).size());
    quantizer.apply();
    assertTrue(model.inlineSize() <= most, model.inlineSize() + " of " + most);
    assertTrue(model.inlineSize() > least + WIDTH * WIDTH / 2, wide.toString());
    assertEquals(9, matrices(model));
  }

  /**
   * Branches share a matrix that they multiply with different values, and have equal ones; the first gives what a product reads,
   * reads a value of the main graph and holds branches of its own. Each has a matrix that the other has not.
   */
  private static ModelProto choosing() {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("choosing")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInput(value("e", DataType.FLOAT, -1, WIDTH))
            .addInput(value("yes", DataType.BOOL, 1))
            .addNode(line("h Tanh x"));
    for (String name : List.of("shared", "cross", "deep", "last", "first_own", "other_own")) {
      g.addInitializer(floats(name, random, 0.2f, WIDTH, WIDTH));
    }
    GraphProto.Builder within =
        GraphProto.newBuilder()
            .setName("within")
            .addNode(line("d MatMul s deep"))
            .addNode(line("dd MatMul d shared"))
            .addOutput(value("dd", DataType.FLOAT, -1, WIDTH));
    GraphProto.Builder first =
        GraphProto.newBuilder()
            .setName("first")
            .addInitializer(floats("same", new Random(5), 0.2f, WIDTH, WIDTH))
            .addNode(line("a Relu h"))
            .addNode(line("p MatMul a shared"))
            .addNode(line("q MatMul e cross"))
            .addNode(line("s Add p q"))
            .addNode(choice("/within", "yes", "w", within))
            .addNode(line("k MatMul w same"))
            .addNode(line("z MatMul k first_own"))
            .addOutput(value("z", DataType.FLOAT, -1, WIDTH))
            .addOutput(value("a", DataType.FLOAT, -1, WIDTH));
    GraphProto.Builder other =
        GraphProto.newBuilder()
            .setName("other")
            .addInitializer(floats("same", new Random(5), 0.2f, WIDTH, WIDTH))
            .addNode(line("b Sigmoid h"))
            .addNode(line("p MatMul b shared"))
            .addNode(line("k MatMul p same"))
            .addNode(line("z MatMul k other_own"))
            .addOutput(value("z", DataType.FLOAT, -1, WIDTH))
            .addOutput(value("p", DataType.FLOAT, -1, WIDTH));
    NodeProto.Builder choice = line("chosen If yes").toBuilder().addOutput("beside");
    choice.addAttribute(branch("then_branch", first)).addAttribute(branch("else_branch", other));
    g.addNode(choice)
        .addNode(line("both Add chosen beside"))
        .addNode(line("y MatMul both last"))
        .addOutput(value("y", DataType.FLOAT, -1, WIDTH));
    return SmallModels.model(13, g);
  }

  private static AttributeProto branch(String name, GraphProto.Builder g) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.GRAPH)
        .setG(g)
        .build();
  }

  private static float[] values(int example) {
    Random random = new Random(example);
    float[] values = new float[(2 + example) * WIDTH];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return values;
  }

  /**
   * Examples of {@link #choosing}.
   *
   * @param yes which branch each takes
   */
  private static ActivationSource examples(boolean... yes) throws OrtException {
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int i = 0; i < yes.length; i++) {
      OnnxTensor x = RuntimeRuns.tensor(values(i), 2 + i, WIDTH);
      OnnxTensor branch = OnnxTensor.createTensor(ENVIRONMENT, new boolean[] {yes[i]});
      examples.add(Map.of("x", x, "e", x, "yes", branch));
    }
    return new TensorActivations(examples, 1);
  }

  /** The mean of what a channel becomes in examples. */
  private static double mean(int channel, Map<Integer, DoubleUnaryOperator> becomes) {
    double sum = 0;
    int rows = 0;
    for (Map.Entry<Integer, DoubleUnaryOperator> e : becomes.entrySet()) {
      float[] values = values(e.getKey());
      for (int i = channel; i < values.length; i += WIDTH) {
        sum += e.getValue().applyAsDouble(values[i]);
        rows++;
      }
    }
    return sum / rows;
  }

  /** What calibration sees of the products, by the name of the first weight. */
  private static Map<String, ActivationStatistics> seen(boolean... yes) throws OrtException {
    OnnxModel model = OnnxModel.of(choosing(), "choosing");
    List<ProductSite> sites = ProductSite.find(model, w -> true, new HashMap<>());
    Map<String, ActivationStatistics> byWeight = new HashMap<>();
    new ToldActivations(examples(yes), Progress.NONE)
        .statistics(model, sites.stream().filter(ProductSite::isSeen).toList(), 8)
        .forEach((site, x) -> site.products.forEach(p -> byWeight.put(p.name, x)));
    return byWeight;
  }

  @Test
  void whatAProductReadsIsSeenInEachBranchThatIsTaken() throws OrtException {
    DoubleUnaryOperator relu = x -> Math.max(0, Math.tanh(x));
    DoubleUnaryOperator sigmoid = x -> 1 / (1 + Math.exp(-Math.tanh(x)));
    Map<String, ActivationStatistics> both = seen(true, false);
    assertEquals(2, both.get("shared").examples());
    assertEquals(1, both.get("cross").examples());
    assertEquals(2, both.get("same").examples());
    assertEquals(1, both.get("first_own").examples());
    assertEquals(1, both.get("other_own").examples());
    for (int c = 0; c < WIDTH; c++) {
      assertEquals(mean(c, Map.of(0, relu, 1, sigmoid)), both.get("shared").mean(c), 1e-5);
      assertEquals(mean(c, Map.of(0, x -> x)), both.get("cross").mean(c), 1e-5);
    }
    Map<String, ActivationStatistics> one = seen(false);
    assertEquals(Set.of("shared", "same", "other_own", "last"), one.keySet());
    assertEquals(mean(0, Map.of(0, sigmoid)), one.get("shared").mean(0), 1e-5);
  }

  /** What is not seen is rounded to the nearest, and all compute as before. */
  @ParameterizedTest
  @ValueSource(strings = {"onnx-dynamic", "onnx-int8"})
  void weightsThatExamplesDoNotShowAreTold(String form) throws OrtException {
    OnnxModel original = OnnxModel.of(choosing(), "choosing");
    OnnxModel model = OnnxModel.of(choosing(), "choosing");
    WeightQuantizer quantizer = quantizer(form, model);
    quantizer.calibrate(examples(false, false));
    String elsewhere = "in a branch that no example takes";
    String within = "in the body of a loop, or in a branch within another";
    assertEquals(
        Map.of("cross", elsewhere, "first_own", elsewhere, "deep", within), quantizer.unseen());
    assertEquals(
        Set.of("shared", "cross", "deep", "last", "first_own", "other_own", "same", "same_1"),
        Set.copyOf(quantizer.quantized()));
    quantizer.apply();
    assertThrows(IllegalStateException.class, quantizer::unseen);
    assertEquals(7, matrices(model));
    double error = new OutputError(original, examples(true, false, true)).of(model);
    assertTrue(error < 0.03, "error " + error);
  }

  /** Training moves what the main graph multiplies; the rest is written as it was fitted. */
  @ParameterizedTest
  @ValueSource(strings = {"onnx-dynamic", "onnx-int8"})
  void whatTrainingStartsFromHasFittedBranches(String form) throws OrtException {
    OnnxModel original = OnnxModel.of(choosing(), "choosing");
    OnnxModel model = OnnxModel.of(choosing(), "choosing");
    WeightQuantizer quantizer = quantizer(form, model);
    quantizer.calibrate(examples(true, false));
    quantizer.prepareTraining();
    assertEquals(
        List.of("last"), quantizer.products().stream().map(QuantizedProduct::name).toList());
    OutputError error = new OutputError(original, examples(true, false, true));
    OnnxModel copy = quantizer.quantizedCopy(same -> {});
    assertEquals(7, matrices(copy));
    assertTrue(error.of(copy) < 0.05, "error " + error.of(copy));
    OnnxModel applied = OnnxModel.of(choosing(), "choosing");
    WeightQuantizer again = quantizer(form, applied);
    again.calibrate(examples(true, false));
    again.apply();
    assertEquals(error.of(applied), error.of(copy), 1e-6);
  }

  /** Tables that are looked up in by branches alone are tables of the model. */
  @Test
  void tablesOfBranchesAreTables() {
    ModelProto plain = SmallDecoder.withPast(3, 1100, WIDTH, 1);
    BlockQuantizer quantizer =
        new BlockQuantizer(
            OnnxModel.of(MergedDecoder.of(plain), "merged"), BlockQuantizer.Options.of(4));
    assertEquals(List.of("wte"), quantizer.tables().stream().map(QuantizedTable::name).toList());
    OnnxModel copy = quantizer.quantizedCopy(same -> {});
    assertEquals(
        2, copy.allNodes().stream().filter(n -> n.getOpType().contains("Quantized")).count());
  }

  /** A weight that is not chosen stays, and its equal is quantized. */
  @Test
  void equalsAreChosenEachByItself() {
    OnnxModel model = OnnxModel.of(choosing(), "choosing");
    List<ProductSite> sites =
        ProductSite.find(model, w -> !w.name().equals("same"), new HashMap<>());
    List<Product> products = sites.stream().flatMap(s -> s.products.stream()).toList();
    assertEquals(
        List.of(Set.of("same_1")),
        products.stream().filter(p -> p.name.startsWith("same")).map(p -> p.names).toList());
  }

  @Test
  void calibrationWithoutExamplesIsRefused() {
    OnnxModel model = OnnxModel.of(MergedDecoder.of(decoder()), "merged");
    BlockQuantizer quantizer = new BlockQuantizer(model, BlockQuantizer.Options.of(4));
    InputException e =
        assertThrows(
            InputException.class, () -> quantizer.calibrate((given, activations, receiver) -> {}));
    assertTrue(e.getMessage().contains("needs at least one example"), e.getMessage());
  }
}
