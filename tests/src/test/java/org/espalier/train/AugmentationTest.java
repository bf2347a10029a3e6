package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.value;
import static org.espalier.train.StoppedRuns.bytes;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.CounterRandom;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.ImageLayout;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.train.Augmentation.Flip;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Images of training batches change at random, and nothing else does. */
class AugmentationTest {
  private static final TrainingListener SILENT = new TrainingListener() {};
  private static final int SIDE = 8;
  private static final long[] FIRST = {0, 1, 2, 3};
  private static final long[] LAST = {0, 3, 1, 2};
  private static final Augmentation ALL = new Augmentation(Flip.BOTH, 0.15, 0.3, 25, 0.4, 0.3);

  private final int threads = CpuThreads.get();

  @AfterEach
  void restoreThreads() {
    CpuThreads.set(threads);
  }

  private static Tensor random(long seed, long... shape) {
    Random random = new Random(seed);
    float[] values = new float[(int) Arrays.stream(shape).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return AbstractTensor.create(values, shape);
  }

  private static float[] values(Tensor t) {
    Tensor floats = t.to(ScalarType.Float).contiguous();
    float[] values = new float[(int) floats.numel()];
    floats.data_ptr_float().get(values);
    return values;
  }

  private static int[] upTo(long n) {
    return IntStream.range(0, (int) n).toArray();
  }

  private static Tensor changed(Augmentation how, Tensor images, long seed, long step) {
    Tensor changed = images.clone();
    new Augmenter(how, ImageLayout.CHANNELS_FIRST)
        .change(changed, upTo(images.size(0)), seed, step);
    return changed;
  }

  /** The eight random numbers of an image. */
  private static double[] draw(long seed, long step, int example) {
    double[] uniform = new double[8];
    int[] block = new int[4];
    for (int i = 0; i < 8; i++) {
      CounterRandom.philox(seed, step, 2L * example + i / 4, block);
      uniform[i] = Integer.toUnsignedLong(block[i % 4]) / 4294967296.0;
    }
    return uniform;
  }

  /** A plane of an image, which goes on as its mirror image. */
  private record Plane(double[][] pixels) {
    double at(double row, double column) {
      int top = (int) Math.floor(row);
      int left = (int) Math.floor(column);
      double down = row - top;
      double right = column - left;
      return (1 - down) * ((1 - right) * at(top, left) + right * at(top, left + 1))
          + down * ((1 - right) * at(top + 1, left) + right * at(top + 1, left + 1));
    }

    double at(int row, int column) {
      return pixels[inside(row, pixels.length)][inside(column, pixels[0].length)];
    }

    private static int inside(int place, int size) {
      while (place < 0 || place >= size) {
        place = place < 0 ? -1 - place : 2 * size - 1 - place;
      }
      return place;
    }
  }

  /** What the documentation says, in the plainest way. */
  private static double[] expected(
      Augmentation how, float[] image, int channels, int high, int wide, double[] u) {
    boolean mirrored = how.flip().isHorizontal() && u[0] < 0.5;
    boolean turned = how.flip().isVertical() && u[1] < 0.5;
    long right = shift(how.shift() * wide, u[2]);
    long down = shift(how.shift() * high, u[3]);
    double size = Math.pow(1 + how.zoom(), 2 * u[4] - 1);
    double angle = Math.toRadians(how.rotate() * (2 * u[5] - 1));
    double[] result = new double[image.length];
    double mean = 0;
    for (int c = 0; c < channels; c++) {
      double[][] whole = new double[high][wide];
      for (int i = 0; i < high * wide; i++) {
        int row = turned ? high - 1 - i / wide : i / wide;
        int column = mirrored ? wide - 1 - i % wide : i % wide;
        whole[row][column] = image[c * high * wide + i];
      }
      Plane flipped = new Plane(whole);
      double[][] moved = new double[high][wide];
      for (int i = 0; i < high * wide; i++) {
        moved[i / wide][i % wide] = flipped.at((int) (i / wide - down), (int) (i % wide - right));
      }
      Plane shifted = new Plane(moved);
      for (int i = 0; i < high * wide; i++) {
        double y = i / wide - (high - 1) / 2.0;
        double x = i % wide - (wide - 1) / 2.0;
        double row = (Math.cos(angle) * y - Math.sin(angle) * x) / size + (high - 1) / 2.0;
        double column = (Math.cos(angle) * x + Math.sin(angle) * y) / size + (wide - 1) / 2.0;
        result[c * high * wide + i] = shifted.at(row, column);
        mean += result[c * high * wide + i] / image.length;
      }
    }
    double variance = 0;
    for (double value : result) {
      variance += (value - mean) * (value - mean) / image.length;
    }
    double brightness = how.brightness() * (2 * u[6] - 1) * Math.sqrt(variance);
    double contrast = 1 + how.contrast() * (2 * u[7] - 1);
    for (int i = 0; i < result.length; i++) {
      result[i] = mean + contrast * (result[i] - mean) + brightness;
    }
    return result;
  }

  private static long shift(double most, double u) {
    long whole = Math.round(most);
    return (long) Math.floor(u * (2 * whole + 1)) - whole;
  }

  /** Sides that differ, one pixel, large turns: each image is what is documented, to what float32 resolves. */
  @ParameterizedTest
  @CsvSource({
    "NONE, 0, 0, 0, 0.5, 0, 3, 6, 9",
    "NONE, 0, 0, 0, 0, 1, 1, 6, 9",
    "NONE, 0, 0.5, 0, 0, 0, 1, 7, 4",
    "NONE, 0, 0, 180, 0, 0, 1, 5, 11",
    "HORIZONTAL, 0.9, 1, 90, 1, 1, 3, 12, 5",
    "BOTH, 0.15, 0.3, 25, 0.4, 0.3, 3, 9, 8",
    "VERTICAL, 0.5, 0.3, 25, 0.4, 0.3, 1, 1, 7",
    "BOTH, 0.9, 1, 180, 1, 1, 1, 1, 1",
  })
  void anImageBecomesWhatIsDocumented(
      Flip flip,
      double shift,
      double zoom,
      double rotate,
      double brightness,
      double contrast,
      int channels,
      int high,
      int wide) {
    Augmentation how = new Augmentation(flip, shift, zoom, rotate, brightness, contrast);
    int n = 24;
    int each = channels * high * wide;
    try (PointerScope scope = new PointerScope()) {
      Tensor images = random(3, n, channels, high, wide);
      float[] before = values(images);
      float[] after = values(changed(how, images, 11, 5));
      assertFalse(each > 1 && Arrays.equals(before, after));
      for (int i = 0; i < n; i++) {
        float[] image = Arrays.copyOfRange(before, i * each, (i + 1) * each);
        double[] right = expected(how, image, channels, high, wide, draw(11, 5, i));
        for (int k = 0; k < each; k++) {
          // Places of pixels are float32, and neighbours differ by several units.
          assertEquals(right[k], after[i * each + k], 2e-5, "image " + i + ", value " + k);
        }
      }
    }
  }

  /** No value becomes another one, in any type and layout, and each place is as frequent as others. */
  @ParameterizedTest
  @EnumSource(
      value = ScalarType.class,
      names = {"Float", "Half", "BFloat16", "Byte"})
  void flipsAndShiftsMovePixelsExactly(ScalarType type) {
    Augmentation how = new Augmentation(Flip.HORIZONTAL, 0.25, 0, 0, 0, 0);
    int n = 2400;
    try (PointerScope scope = new PointerScope()) {
      // 0 to 11 in each image: the first value says where it was shifted from, its neighbour which
      // way it runs.
      Tensor one = torch.arange(new Scalar(12)).to(type).reshape(1, 1, 3, 4);
      Tensor images = one.repeat(n, 1, 1, 1);
      Tensor last = images.permute(0, 2, 3, 1).clone();
      Augmenter lastly = new Augmenter(how, ImageLayout.CHANNELS_LAST);
      lastly.change(last, upTo(n), 1, 0);
      float[] after = values(changed(how, images, 1, 0));
      assertArrayEquals(after, values(last));
      Map<List<Float>, Integer> counts = new HashMap<>();
      for (int i = 0; i < n; i++) {
        List<Float> found = new ArrayList<>();
        for (int k = 0; k < 12; k++) {
          found.add(after[i * 12 + k]);
        }
        counts.merge(found, 1, Integer::sum);
      }
      assertEquals(2 * 3 * 3, counts.size());
      // 2400 / 18 = 133 of each; the deviation of a count is 11.
      counts.forEach((image, count) -> assertTrue(count > 80 && count < 190, image + " " + count));
      assertTrue(counts.containsKey(List.of(4f, 4f, 5f, 6f, 8f, 8f, 9f, 10f, 8f, 8f, 9f, 10f)));
      assertTrue(counts.containsKey(List.of(3f, 2f, 1f, 0f, 7f, 6f, 5f, 4f, 11f, 10f, 9f, 8f)));
    }
  }

  @Test
  void wholeNumbersStayWholeAndInTheirRange() {
    try (PointerScope scope = new PointerScope()) {
      Tensor images = random(2, 16, 3, 6, 6).mul(new Scalar(90)).abs().to(ScalarType.Byte);
      Augmentation strong = new Augmentation(Flip.NONE, 0, 0, 0, 1, 1);
      float[] floats = values(changed(strong, images.to(ScalarType.Float), 3, 0));
      float[] whole = values(changed(strong, images, 3, 0));
      boolean below = false;
      for (int i = 0; i < floats.length; i++) {
        below |= floats[i] < 0;
        assertEquals(Math.min(255, Math.max(0, Math.rint(floats[i]))), whole[i]);
      }
      assertTrue(below);
    }
  }

  /** Images that are alike stay so whatever their values were scaled by, and flat ones stay what they are. */
  @Test
  void howValuesAreScaledDoesNotMatter() {
    try (PointerScope scope = new PointerScope()) {
      Tensor images = random(2, 8, 3, 6, 6);
      Scalar factor = new Scalar(4);
      Scalar summand = new Scalar(-2);
      float[] scaledAfter = values(changed(ALL, images, 3, 0).mul(factor).add(summand));
      float[] scaledBefore = values(changed(ALL, images.mul(factor).add(summand), 3, 0));
      assertArrayEquals(scaledAfter, scaledBefore, 1e-4f);
      Tensor flat = torch.full(new long[] {4, 1, 5, 5}, new Scalar(0.75));
      assertArrayEquals(values(flat), values(changed(ALL, flat, 3, 0)), 1e-6f);
    }
  }

  /** Neither its neighbours nor threads change a bit of an image; seed and step do. */
  @Test
  void anImageFollowsFromSeedStepAndItselfAlone() {
    int before = torch.get_num_threads();
    try (PointerScope scope = new PointerScope()) {
      Tensor images = random(2, 5, 3, 150, 130);
      torch.set_num_threads(1);
      float[] alone = values(changed(ALL, images, 3, 9));
      Augmenter augmenter = new Augmenter(ALL, ImageLayout.CHANNELS_FIRST);
      int each = alone.length / 5;
      for (int n : new int[] {2, 4, 7}) {
        torch.set_num_threads(n);
        assertArrayEquals(alone, values(changed(ALL, images, 3, 9)));
        for (int i = 4; i >= 0; i--) {
          Tensor one = images.narrow(0, i, 1).clone();
          augmenter.change(one, new int[] {i}, 3, 9);
          float[] own = Arrays.copyOfRange(alone, i * each, (i + 1) * each);
          assertArrayEquals(own, values(one), n + " threads, image " + i);
        }
      }
      assertFalse(Arrays.equals(alone, values(changed(ALL, images, 4, 9))));
      assertFalse(Arrays.equals(alone, values(changed(ALL, images, 3, 10))));
    } finally {
      torch.set_num_threads(before);
    }
  }

  private static Training training(long steps, int batch, Objective objective) {
    return new Training(
        steps, 0, batch, Optimizer.AdamW.of(5e-3), Training.Schedule.constant(), objective, 7);
  }

  /** The student stays what it is. */
  private static Training still(long steps, Objective objective) {
    return new Training(
        steps, 0, 10, Optimizer.Sgd.of(0), Training.Schedule.constant(), objective, 7);
  }

  private static Compression.Job job(OnnxModel model, OnnxModel teacher, Augmentation how) {
    return new Compression.Job(
        model,
        teacher,
        StaticTrainingTest.images(60, 1),
        StaticTrainingTest.images(24, 2),
        Pooling.MEAN,
        null,
        null,
        how);
  }

  private static CompressionPlan taught(Objective objective) {
    return new CompressionPlan(List.of(new Stage.Train("follow", still(9, objective))), 7);
  }

  /** An image of the same size, or four logits behind a Softmax, whose input is called so. */
  private static OnnxModel model(boolean probabilities, String input, long... batchAndChannels) {
    Random random = new Random(8);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("images")
            .addInput(value(input, DataType.FLOAT, batchAndChannels))
            .addInitializer(floats("filter", random, 0.4f, 4, 1, 3, 3))
            .addNode(
                line("seen Conv " + input + " filter", SmallModels.attribute("pads", 1, 1, 1, 1)));
    if (probabilities) {
      g.addNode(line("pooled GlobalAveragePool seen"))
          .addNode(line("flat Flatten pooled"))
          .addNode(line("y Softmax flat"))
          .addOutput(value("y", DataType.FLOAT, -1, 4));
    } else {
      g.addNode(line("y Relu seen")).addOutput(value("y", DataType.FLOAT, -1, 4, SIDE, SIDE));
    }
    return OnnxModel.of(SmallModels.model(17, g), "images");
  }

  private static double[] losses(CompressionPlan plan, Compression.Job job) {
    Losses losses = new Losses();
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(losses));
    }
    return losses.ofSteps().stream().mapToDouble(Double::doubleValue).toArray();
  }

  /** A student that is its teacher has nothing to learn whatever both are shown, also where their inputs have two names. */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void theTeacherSeesWhatTheStudentSees(boolean probabilities) {
    Objective objective = probabilities ? Objective.ofLogits(0, 2) : Objective.ofOutput();
    OnnxModel student = model(probabilities, "x", -1, 1, SIDE, SIDE);
    OnnxModel teacher = model(probabilities, "photo", -1, 1, SIDE, SIDE);
    for (OnnxModel by : new OnnxModel[] {null, teacher}) {
      for (double loss : losses(taught(objective), job(student, by, ALL))) {
        assertEquals(0, loss, 1e-9);
      }
    }
  }

  /** What a stage left is asked of each batch too. */
  @Test
  void whatAStageLeftTeachesWithTheSameImages() {
    Training learning = training(8, 10, Objective.ofLabels());
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train("tune", learning, true),
                new Stage.Train("follow", still(5, Objective.ofLogits(0, 2)))),
            7);
    double[] losses = losses(plan, job(StaticTrainingTest.cnn(), null, ALL));
    for (int i = 8; i < 13; i++) {
      assertEquals(0, losses[i], 1e-9);
    }
  }

  /** The best state is chosen by the examples as they are. */
  @Test
  void validationSeesImagesAsTheyAre() {
    List<Double> seen = new ArrayList<>();
    TrainingListener listener =
        new TrainingListener() {
          @Override
          public void validated(Stage stage, Validation validation) {
            seen.add(validation.loss());
          }
        };
    Training still = still(14, Objective.ofLabels()); // so each look must be the same
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("still", still)), 7);
    for (Augmentation how : new Augmentation[] {Augmentation.NONE, ALL}) {
      try (OnnxCompression c =
          new OnnxCompression(plan, job(StaticTrainingTest.cnn(), null, how))) {
        assertTrue(c.run(listener));
      }
    }
    assertEquals(6, seen.size());
    assertEquals(1, seen.stream().distinct().count(), seen.toString());
  }

  private static byte[] exported(CompressionPlan plan, Compression.Job job) {
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      return bytes(c.export());
    }
  }

  /** In the middle of an epoch, in stages of which the later ones have a teacher and static int8; and the int8 model by itself. */
  @Test
  void aStoppedRunContinuesToTheSameBitsOnAnyNumberOfThreads() throws Exception {
    Stage.Train tune = new Stage.Train("tune", training(10, 9, Objective.ofLabels()), true);
    Stage.Quantize quantize =
        new Stage.Quantize(
            "quantize", Quantization.fixed(), training(12, 9, Objective.ofLogits(0.5, 2)));
    CompressionPlan plan = new CompressionPlan(List.of(tune, quantize), 7);
    Stage.Train follow = new Stage.Train("follow", training(6, 9, Objective.ofLogits(0.5, 2)));
    CompressionPlan int8 = new CompressionPlan(List.of(tune, follow), 7);
    List<Map<String, OnnxTensor>> calibration = new ArrayList<>();
    for (float[] x : OnnxCompressionTest.values(StaticTrainingTest.images(16, 9))) {
      calibration.add(
          Map.of(
              "x",
              OnnxTensor.createTensor(
                  OrtEnvironment.getEnvironment(),
                  FloatBuffer.wrap(x),
                  new long[] {1, 1, SIDE, SIDE})));
    }
    try {
      Compression.Job plain = job(StaticTrainingTest.cnn(), null, Augmentation.NONE);
      Compression.Job job =
          new Compression.Job(
              plain.model(),
              null,
              plain.training(),
              plain.validation(),
              Pooling.MEAN,
              new TensorActivations(calibration, 1),
              null,
              ALL);
      CpuThreads.set(2);
      byte[] whole = exported(plan, job);
      assertArrayEquals(whole, StoppedRuns.exported(plan, job, tune, 4));
      assertArrayEquals(whole, StoppedRuns.exported(plan, job, quantize, 5));
      Compression.Job again = job(OnnxModel.read(ByteBuffer.wrap(whole), "int8"), null, ALL);
      byte[] learned = exported(int8, again);
      assertFalse(Arrays.equals(whole, learned));
      assertArrayEquals(learned, StoppedRuns.exported(int8, again, follow, 3));
      CpuThreads.set(1);
      assertArrayEquals(whole, exported(plan, job));
      assertArrayEquals(learned, exported(int8, again));
    } finally {
      calibration.forEach(m -> m.values().forEach(OnnxTensor::close));
    }
  }

  /** A run goes on with the images that it began with only. */
  @Test
  void aSavedRunIsOfItsAugmentation() throws IOException {
    Stage.Train tune = new Stage.Train("tune", training(10, 9, Objective.ofLabels()), true);
    CompressionPlan plan = new CompressionPlan(List.of(tune), 7);
    OnnxModel model = StaticTrainingTest.cnn();
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan, job(model, null, ALL))) {
      assertFalse(c.run(StoppedRuns.until(tune, 3)));
      c.save(saved);
    }
    try (OnnxCompression c = new OnnxCompression(plan, job(model, null, Augmentation.NONE))) {
      var in = new ByteArrayInputStream(saved.toByteArray());
      assertThrows(InputException.class, () -> c.restore(in));
    }
  }

  /** A model of pixels of a type and a layout, and examples for it that are the same in each layout. */
  private static Compression.Job job(SafetensorsDtype type, boolean first, Augmentation how) {
    Random random = new Random(8);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("typed")
            .addInput(
                value("x", Examples.Input.TYPES.get(type), 1, first ? 3 : 5, 5, first ? 5 : 3))
            .addInitializer(floats("filter", random, 0.4f, 4, 3, 3, 3))
            .addNode(line("wide Cast x", SmallModels.attribute("to", 1)))
            .addNode(line("seen Transpose wide", SmallModels.list("perm", first ? FIRST : LAST)))
            .addNode(line("folded Conv seen filter"))
            .addNode(line("pooled GlobalMaxPool folded"))
            .addNode(line("y Flatten pooled"))
            .addOutput(value("y", DataType.FLOAT, 1, 4));
    long[] labels = new long[30];
    List<byte[]> rows = new ArrayList<>();
    int size = (int) type.bytes(1);
    for (int i = 0; i < labels.length; i++) {
      labels[i] = random.nextInt(4);
      byte[] row = new byte[75 * size];
      for (int k = 0; k < 75; k++) {
        int pixel = random.nextInt(100);
        int at = size * (first ? k : k % 25 * 3 + k / 25);
        ByteBuffer out = ByteBuffer.wrap(row).order(ByteOrder.LITTLE_ENDIAN);
        switch (type) {
          case U8 -> out.put(at, (byte) pixel);
          case F16 -> out.putShort(at, (short) (0x3C00 + pixel)); // from 1 on
          case BF16 -> out.putShort(at, (short) (0x3F80 + pixel));
          default -> out.putFloat(at, pixel / 50f);
        }
      }
      rows.add(row);
    }
    List<Long> shape = first ? List.of(3L, 5L, 5L) : List.of(5L, 5L, 3L);
    Examples.Labelled examples =
        new Examples.Labelled(
            List.of(new Examples.Input("x", type, shape, rows)), new Labels.Classes(labels));
    OnnxModel model = OnnxModel.of(SmallModels.model(17, g), "typed");
    return new Compression.Job(model, null, examples, examples, Pooling.MEAN, null, null, how);
  }

  @ParameterizedTest
  @EnumSource(
      value = SafetensorsDtype.class,
      names = {"F32", "F16", "BF16", "U8"})
  void modelsOfAnyTypeAndLayoutOfPixelsTrainAlike(SafetensorsDtype type) {
    // Batches of one too.
    Stage.Train last = new Stage.Train("last", training(3, 1, Objective.ofLogits(0.5, 2)));
    Stage.Train tune = new Stage.Train("tune", training(10, 7, Objective.ofLabels()), true);
    CompressionPlan plan = new CompressionPlan(List.of(tune, last), 7);
    float[] alike = null;
    for (boolean first : new boolean[] {true, false}) {
      try (OnnxCompression c = new OnnxCompression(plan, job(type, first, ALL));
          OnnxCompression plain = new OnnxCompression(plan, job(type, first, Augmentation.NONE))) {
        assertTrue(c.run(SILENT) && plain.run(SILENT));
        float[] filter = SmallModels.values(c.floatModel(), "filter");
        assertFalse(Arrays.equals(SmallModels.values(plain.floatModel(), "filter"), filter));
        alike = first ? filter : alike;
        assertArrayEquals(
            alike, filter, 1e-4f); // a Conv sums in another order where channels are last
      }
    }
  }

  private static Augmentation.Refused refused(
      OnnxModel model, Examples.Labelled examples, Objective objective, Augmentation how) {
    Compression.Job job =
        new Compression.Job(model, null, examples, examples, Pooling.MEAN, null, null, how);
    return assertThrows(
        Augmentation.Refused.class, () -> new OnnxCompression(taught(objective), job).close());
  }

  @Test
  void whatIsNoImageIsRefused() {
    Examples.Labelled points = OnnxCompressionTest.points(8, 2);
    String message =
        refused(OnnxCompressionTest.classifier(), points, Objective.ofLabels(), ALL).getMessage();
    assertTrue(message.contains("is fed F32 [") && message.contains("3 channels or 1"), message);
    Examples.Labelled two =
        new Examples.Labelled(
            List.of(
                new Examples.Input("x", SafetensorsDtype.F32, List.of(1L, 1L, 1L), rows(4)),
                new Examples.Input("z", SafetensorsDtype.F32, List.of(1L, 1L, 1L), rows(4))),
            null);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("two")
            .addInput(value("x", DataType.FLOAT, -1, 1, 1, 1))
            .addInput(value("z", DataType.FLOAT, -1, 1, 1, 1))
            .addInitializer(floats("w", new float[] {1}, 1, 1))
            .addNode(line("p MatMul x w"))
            .addNode(line("y Add p z"))
            .addOutput(value("y", DataType.FLOAT, -1, 1, 1, 1));
    message =
        refused(OnnxModel.of(SmallModels.model(17, g), "two"), two, Objective.ofOutput(), ALL)
            .getMessage();
    assertTrue(message.contains("two has [x, z]"), message);
  }

  private static List<byte[]> rows(int bytes) {
    return List.of(new byte[bytes], new byte[bytes]);
  }

  /** Labels of pixels would have to move with them; values may change, and places of a sequence are no pixels. */
  @Test
  void labelsOfPixelsRefuseWhatMovesThem() {
    Examples.Labelled images = StaticTrainingTest.images(6, 1);
    long[] labels = new long[6 * SIDE * SIDE];
    labels[3] = 1;
    Examples.Labelled segmented =
        new Examples.Labelled(images.inputs(), new Labels.Classes(labels, SIDE * SIDE));
    OnnxModel model = model(false, "x", -1, 1, SIDE, SIDE);
    for (Augmentation how :
        List.of(
            new Augmentation(Flip.VERTICAL, 0, 0, 0, 0, 0),
            new Augmentation(Flip.NONE, 0.1, 0, 0, 0, 0),
            new Augmentation(Flip.NONE, 0, 0.1, 0, 0.2, 0),
            new Augmentation(Flip.NONE, 0, 0, 1, 0, 0))) {
      String message = refused(model, segmented, Objective.ofLabels(), how).getMessage();
      assertTrue(message.contains("labels of pixels"), message);
    }
    Augmentation values = new Augmentation(Flip.NONE, 0, 0, 0, 0.2, 0.2);
    Compression.Job job =
        new Compression.Job(model, null, segmented, segmented, Pooling.MEAN, null, null, values);
    assertEquals(9, losses(taught(Objective.ofLabels()), job).length);
    Compression.Job following =
        new Compression.Job(model, null, segmented, segmented, Pooling.MEAN, null, null, ALL);
    assertEquals(9, losses(taught(Objective.ofOutput()), following).length);
  }

  @ParameterizedTest
  @CsvSource({"-0.1, 0", "1, 0", "NaN, 0", "0, 180.5", "0, NaN", "0, -1"})
  void settingsOutOfTheirRangeAreRefused(double shift, double rotate) {
    assertThrows(
        IllegalArgumentException.class, () -> new Augmentation(Flip.NONE, shift, 0, rotate, 0, 0));
  }
}
