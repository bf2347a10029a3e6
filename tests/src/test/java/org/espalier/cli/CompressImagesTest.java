package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;
import javax.imageio.ImageIO;
import org.espalier.format.AtomicFile;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeRun;
import org.espalier.recipe.RunMonitor;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Images in folders or lines are the same as the tensors that they become. */
class CompressImagesTest {
  private static final int N = 240;
  private static final int SIDE = 8;
  private static final String[] NAMES = {"blue", "green", "red"};

  private static final String RECIPE =
      """
      model: {file: model.onnx}
      data: {examples: FILE, validation: 40, evaluation: 40, calibration: 32}
      stages:
        - {kind: fine-tune, steps: 150, batch: 32, learning-rate: 3e-2}
        - {kind: quantize, form: static, steps: 10, batch: 32, learning-rate: 1e-3}
      report: {each-stage: false}
      """;

  @TempDir Path folder;

  @BeforeEach
  void write() throws IOException {
    Random random = new Random(5);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("colours")
            .addInput(SmallModels.value("pixels", DataType.FLOAT, -1, 3, SIDE, SIDE))
            .addInitializer(SmallModels.floats("filter", random, 0.3f, 4, 3, 3, 3))
            .addInitializer(SmallModels.floats("head", random, 0.5f, 4, 3))
            .addNode(SmallModels.line("seen Conv pixels filter"))
            .addNode(SmallModels.line("bent Relu seen"))
            .addNode(SmallModels.line("pooled GlobalAveragePool bent"))
            .addNode(SmallModels.line("flat Flatten pooled"))
            .addNode(SmallModels.line("logits MatMul flat head"))
            .addOutput(SmallModels.value("logits", DataType.FLOAT, -1, 3));
    Files.write(folder.resolve("model.onnx"), SmallModels.model(17, g).toByteArray());
    Files.writeString(
        folder.resolve("preprocessor_config.json"),
        "{\"image_mean\": [0.5, 0.25, 0.5], \"image_std\": [0.5, 0.5, 0.25]}");
    images(random);
  }

  /** Writes the images into folders, lines that name them in the folders' order, and tensors in the same. */
  private void images(Random random) throws IOException {
    float[] mean = {0.5f, 0.25f, 0.5f};
    float[] deviation = {0.5f, 0.5f, 0.25f};
    ByteBuffer inputs = ByteBuffer.allocate(N * 3 * SIDE * SIDE * 4).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer labels = ByteBuffer.allocate(N * 8).order(ByteOrder.LITTLE_ENDIAN);
    List<String> lines = new ArrayList<>();
    for (int label = 0; label < 3; label++) {
      Files.createDirectories(folder.resolve("train/" + NAMES[label]));
      for (int i = 0; i < N / 3; i++) {
        BufferedImage image = new BufferedImage(SIDE, SIDE, BufferedImage.TYPE_INT_RGB);
        for (int p = 0; p < SIDE * SIDE; p++) {
          int noise = random.nextInt(1 << 24) & 0x7F7F7F;
          image.setRGB(p % SIDE, p / SIDE, noise + (random.nextInt(120) << 8 * label));
        }
        String name = String.format("%s/%03d.png", NAMES[label], i);
        ImageIO.write(image, "png", folder.resolve("train/" + name).toFile());
        for (int c = 0; c < 3; c++) {
          for (int p = 0; p < SIDE * SIDE; p++) {
            int value = image.getRGB(p % SIDE, p / SIDE) >> 16 - 8 * c & 255;
            inputs.putFloat(((float) (value * (1 / 255.0)) - mean[c]) / deviation[c]);
          }
        }
        labels.putLong(label);
        lines.add("{\"image\": \"train/" + name + "\", \"label\": \"" + NAMES[label] + "\"}");
      }
    }
    Files.write(folder.resolve("lines.jsonl"), lines);
    long n = N;
    long side = SIDE;
    List<TensorSpec> specs =
        List.of(
            new TensorSpec("pixels", SafetensorsDtype.F32, List.of(n, 3L, side, side)),
            new TensorSpec("labels", SafetensorsDtype.I64, List.of(n)));
    try (AtomicFile file = AtomicFile.create(folder.resolve("tensors.safetensors"))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      writer.append("pixels", inputs.flip());
      writer.append("labels", labels.flip());
      writer.finish();
      file.commit();
    }
  }

  private Path compress(String examples, String more) throws IOException {
    Path recipe =
        Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FILE", examples + more));
    Path out = folder.resolve("out-" + examples);
    Run.of("compress", recipe, "-o", out).done();
    return out;
  }

  @Test
  void foldersLinesAndTensorsTrainAlike() throws IOException {
    Path tensors = compress("tensors.safetensors", "");
    Path folders = compress("train", "");
    Path lines = compress("lines.jsonl", ", classes: [blue, green, red]");
    byte[] expected = Files.readAllBytes(tensors.resolve("model-int8.onnx"));
    assertArrayEquals(expected, Files.readAllBytes(folders.resolve("model-int8.onnx")));
    assertArrayEquals(expected, Files.readAllBytes(lines.resolve("model-int8.onnx")));
    assertFalse(Files.exists(tensors.resolve("preprocessor_config.json")));
    assertEquals(
        Files.readString(folder.resolve("preprocessor_config.json")),
        Files.readString(folders.resolve("preprocessor_config.json")));
    // The report shows the images whose answers changed most.
    JsonNode changed =
        new ObjectMapper()
            .readTree(folders.resolve("report.json").toFile())
            .path("fidelity")
            .path("changed_answers");
    assertEquals(12, changed.size());
    String page = Files.readString(folders.resolve("report.html"));
    for (JsonNode answer : changed) {
      assertTrue(Files.exists(Path.of(answer.path("image").asText())));
      assertTrue(answer.path("image").asText().contains(answer.path("label_name").asText()));
      assertTrue(answer.path("thumbnail").asText().startsWith("data:image/png;base64,"));
      assertTrue(page.contains(answer.path("thumbnail").asText()));
    }
    // What was written takes the same images.
    JsonNode measured =
        Run.of(
                "evaluate",
                folders.resolve("model-int8.onnx"),
                folders.resolve("model-int8.onnx"),
                "--examples",
                folder.resolve("train"),
                "--json")
            .json();
    assertEquals(N, measured.path("examples").intValue());
    assertTrue(measured.path("labels").path("accuracy").doubleValue() > 0.6, measured.toString());
  }

  /** Files and tensors are augmented alike, and differ from those that are not. */
  @Test
  void augmentedImagesTrainAlikeFromFilesAndTensors() throws IOException {
    String augment = ", augment: {flip: both, shift: 0.2, rotate: 20, contrast: 0.3}";
    byte[] plain =
        Files.readAllBytes(compress("tensors.safetensors", "").resolve("model-int8.onnx"));
    FileTree.delete(folder.resolve("out-tensors.safetensors"));
    Path tensors = compress("tensors.safetensors", augment);
    byte[] expected = Files.readAllBytes(tensors.resolve("model-int8.onnx"));
    assertFalse(Arrays.equals(plain, expected));
    Path folders = compress("train", augment);
    assertArrayEquals(expected, Files.readAllBytes(folders.resolve("model-int8.onnx")));
  }

  @Test
  void whatCannotBeAugmentedIsRefusedWithItsLine() throws IOException {
    String augment = ",\n  augment: {flip: horizontal}";
    Files.writeString(
        folder.resolve("numbers.jsonl"),
        ("{\"inputs\": {\"user\": 1, \"dense\": [0.5]}, \"label\": 1}\n"
                + "{\"inputs\": {\"user\": 2, \"dense\": [1]}, \"label\": 0}\n")
            .repeat(60));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("numbers")
            .addInput(SmallModels.value("user", DataType.INT64, -1))
            .addInput(SmallModels.value("dense", DataType.FLOAT, -1, 1))
            .addInitializer(SmallModels.floats("users", new Random(1), 1, 5, 1))
            .addInitializer(SmallModels.floats("w", new Random(1), 1, 1, 1))
            .addNode(SmallModels.line("known Gather users user"))
            .addNode(SmallModels.line("seen MatMul dense w"))
            .addNode(SmallModels.line("logit Add known seen"))
            .addOutput(SmallModels.value("logit", DataType.FLOAT, -1, 1));
    Files.write(folder.resolve("model.onnx"), SmallModels.model(17, g).toByteArray());
    String refused = refused("examples: numbers.jsonl" + augment);
    assertTrue(refused.contains("recipe.yaml:3: data.augment: models of one input"), refused);
  }

  /** Folders may be of other classes than an output that is followed as it is. */
  @Test
  void labelsThatNothingLearnsFromAreNotMeasured() throws IOException {
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: model.onnx}
            data: {examples: train, validation: 40, evaluation: 40, calibration: 32}
            stages: [{kind: quantize, form: static, steps: 2, batch: 8, loss: {output: 1}}]
            """);
    Run.of("compress", recipe, "-o", folder.resolve("followed")).done();
    JsonNode fidelity =
        new ObjectMapper()
            .readTree(folder.resolve("followed/report.json").toFile())
            .path("fidelity");
    assertTrue(fidelity.has("relative_error"), fidelity.toString());
    assertFalse(fidelity.has("accuracy"), fidelity.toString());
  }

  @Test
  void calibratesOnImagesAsOnTensors() throws IOException {
    List<byte[]> made = new ArrayList<>();
    for (String examples : List.of("tensors.safetensors", "train", "lines.jsonl")) {
      Path out = folder.resolve(examples + ".onnx");
      Run.of(
              "quantize",
              folder.resolve("model.onnx"),
              "-o",
              out,
              "--to",
              "onnx-qdq",
              "--calibration",
              folder.resolve(examples))
          .done();
      made.add(Files.readAllBytes(out));
    }
    assertArrayEquals(made.get(0), made.get(1));
    assertArrayEquals(made.get(0), made.get(2));
  }

  private Run evaluate(Object examples, Object... more) {
    List<Object> all =
        new ArrayList<>(
            List.of(
                "evaluate",
                folder.resolve("model.onnx"),
                folder.resolve("model.onnx"),
                "--examples",
                examples,
                "--json"));
    all.addAll(List.of(more));
    return Run.of(all.toArray());
  }

  private String failure(Object examples, Object... more) {
    Run run = evaluate(examples, more);
    assertEquals(2, run.code(), run.err());
    return run.err();
  }

  @Test
  void foldersSayTheClasses() throws IOException {
    Path train = folder.resolve("train");
    double right = loss(train);
    // In the order that the user gives; numbers are the classes themselves.
    assertEquals(right, loss(train, "--classes", "blue,green,red"));
    assertTrue(failure(train, "--classes", "blue,green").contains("the label 'red' is none of"));
    Files.move(train.resolve("blue"), train.resolve("0"));
    Files.move(train.resolve("red"), train.resolve("2"));
    Files.move(train.resolve("green"), train.resolve("01"));
    Files.createDirectories(train.resolve(".cache"));
    Files.writeString(train.resolve("README.md"), "not an image");
    Files.writeString(train.resolve("2/notes.txt"), "not an image");
    assertEquals(right, loss(train));
  }

  /** Which labels are right shows in the loss, though not in how often a model is right that was not trained. */
  private double loss(Object examples, Object... more) {
    return evaluate(examples, more).json().path("labels").path("log_loss").doubleValue();
  }

  @Test
  void theModelsOwnNamesSayTheOrder() throws IOException {
    Path train = folder.resolve("train");
    Path lines = folder.resolve("lines.jsonl");
    assertTrue(failure(lines).contains("id2label"), "words without any order");
    double rotated = loss(train, "--classes", "green,red,blue");
    double alphabetical = loss(train);
    assertTrue(rotated != alphabetical);
    Path config = folder.resolve("config.json");
    Files.writeString(
        config, "{\"id2label\": {\"2\": \"blue\", \"0\": \"green\", \"1\": \"red\"}}");
    assertEquals(rotated, loss(train));
    assertEquals(rotated, loss(lines));
    assertEquals(alphabetical, loss(lines, "--classes", "blue,green,red"));
    assertTrue(
        evaluate(train)
            .err()
            .contains("in the order of the model's config.json: 'green', 'red', 'blue'"));
    // Names of other things, and such that two classes have.
    Files.writeString(config, "{\"id2label\": {\"0\": \"LABEL_0\", \"1\": \"LABEL_1\"}}");
    assertEquals(alphabetical, loss(train));
    assertTrue(failure(lines).contains("none of the classes 'LABEL_0', 'LABEL_1'"), failure(lines));
    Files.writeString(config, "{\"id2label\": {\"0\": \"red\", \"1\": \"red\", \"2\": \"blue\"}}");
    assertEquals(alphabetical, loss(train));
    assertTrue(failure(lines).contains("id2label"));
    Files.writeString(config, "{");
    assertTrue(failure(train).contains("config.json is not JSON"));
    assertEquals(alphabetical, loss(train, "--classes", "blue,green,red"));
  }

  @Test
  void saysWhatIsWrong() throws IOException {
    Path train = folder.resolve("train");
    Path odd = Files.copy(train.resolve("red/000.png"), train.resolve("odd.png"));
    assertTrue(failure(train).contains("has images beside folders, which are classes: odd.png"));
    Files.delete(odd);
    Files.writeString(train.resolve("red/x.webp"), "");
    assertTrue(failure(train).contains("is of a kind that is not read; JPEG and PNG are"));
    Files.delete(train.resolve("red/x.webp"));
    assertTrue(failure(Files.createDirectory(folder.resolve("empty"))).contains("holds no image"));
    Path lines = Files.writeString(folder.resolve("a.jsonl"), "{\"image\": \"train/none.png\"}\n");
    assertTrue(failure(lines).contains("a.jsonl: example 1: there is no image"));
    Files.writeString(lines, "{\"image\": \"train/red/000.png\"}\n{\"features\": [1]}\n");
    assertTrue(
        failure(lines).contains("example 2: it has numbers, and earlier ones have an image"),
        failure(lines));
    Files.writeString(lines, "{\"image\": \"\\u0000\"}\n");
    assertTrue(failure(lines).contains("is not a path"));
    Files.writeString(lines, "{\"image\": \"train/red/000.png\", \"text\": \"red\"}\n");
    assertTrue(
        failure(lines).contains("there are several of text, tokens, image, features and inputs"));
    Files.delete(folder.resolve("preprocessor_config.json"));
    assertTrue(
        failure(train)
            .contains("nor preprocessor_config.json, which says how images become tensors"));
    Path own = Files.writeString(folder.resolve("own.json"), "{\"size\": 4}");
    assertTrue(failure(train, "--image-processor", own).contains("4 x 4"));
    Files.writeString(own, "{}");
    evaluate(train, "--image-processor", own).done();
  }

  private static double accuracy(JsonNode measured) {
    return measured.path("labels").path("accuracy").doubleValue();
  }

  private String refused(String data) throws IOException {
    Path recipe =
        Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("examples: FILE", data));
    Run run = Run.of("compress", recipe, "-o", folder.resolve("out"));
    assertEquals(2, run.code(), run.err());
    assertFalse(Files.exists(folder.resolve("out")));
    return run.err();
  }

  @Test
  void foldersOfOtherClassesThanTheModelsSayNoLabels() throws IOException {
    Path two = folder.resolve("two");
    Files.createDirectories(two);
    Files.move(folder.resolve("train/green"), two.resolve("green"));
    Files.move(folder.resolve("train/red"), two.resolve("red"));
    Run run = evaluate(two);
    assertTrue(run.json().path("labels").isMissingNode(), run.out());
    assertTrue(
        run.err().contains("for 2 classes, 'green', 'red'; the model tells 3 apart"), run.err());
    assertTrue(failure(two, "--task", "classification").contains("--classes"));
    double known = accuracy(evaluate(two, "--classes", "blue,green,red").json());
    Files.move(two.resolve("green"), two.resolve("1"));
    Files.move(two.resolve("red"), two.resolve("2"));
    assertEquals(known, accuracy(evaluate(two).json()));
    Files.move(two.resolve("1"), two.resolve("green"));
    Files.move(two.resolve("2"), two.resolve("red"));
    assertTrue(refused("examples: two").contains("the model tells 3 apart"));
    String message = refused("examples: tensors.safetensors, evaluation-examples: two");
    assertTrue(message.contains("folders for the classes 'green', 'red'"), message);
  }

  @Test
  void classesMayBeCalledNumbers() throws IOException {
    Path train = folder.resolve("train");
    double right = accuracy(evaluate(train).json());
    Files.move(train.resolve("blue"), train.resolve("7"));
    Files.move(train.resolve("green"), train.resolve("1"));
    Files.move(train.resolve("red"), train.resolve("0"));
    assertEquals(right, accuracy(evaluate(train, "--classes", "7,1,0").json()));
  }

  @Test
  void linesTellWhichImageIsNotThere() throws IOException {
    Path lines = folder.resolve("lines.jsonl");
    List<String> all = new ArrayList<>(Files.readAllLines(lines));
    all.set(7, "{\"image\": \"train/none.png\", \"label\": \"red\"}");
    Files.write(lines, all);
    String message = refused("examples: lines.jsonl, classes: [blue, green, red]");
    assertTrue(message.contains("lines.jsonl: example 8: there is no image"), message);
  }

  @Test
  void aLinkThatLeadsNowhereIsTold() throws IOException {
    Path link = folder.resolve("train/red/link.png");
    Files.createSymbolicLink(link, folder.resolve("none.png"));
    assertTrue(failure(folder.resolve("train")).contains("there is no image " + link));
  }

  @Test
  void stopsWhileImagesAreRead() throws IOException {
    Path written =
        Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FILE", "train"));
    Recipe recipe = Recipe.read(written, List.of());
    Path out = folder.resolve("out");
    AtomicLong read = new AtomicLong();
    RunMonitor impatient =
        new RunMonitor() {
          @Override
          public void progress(String text, long done, long total) {
            read.accumulateAndGet(done, Math::max);
          }

          @Override
          public boolean stopRequested() {
            return read.get() >= 10;
          }
        };
    assertEquals(
        RecipeRun.Outcome.STOPPED,
        new RecipeRun(recipe, folder, out, impatient, TorchDevice.CPU).run(false));
    assertTrue(read.get() < N, read.toString());
    assertFalse(Files.exists(out));
  }

  @Test
  void aPictureThatIsThereTwiceIsTakenOnce() throws IOException {
    Path train = folder.resolve("train");
    Path test = Files.createDirectories(folder.resolve("test/red")).getParent();
    Files.createDirectories(test.resolve("blue"));
    Files.createDirectories(test.resolve("green"));
    Files.copy(train.resolve("red/000.png"), train.resolve("red/again.png"));
    Files.copy(train.resolve("green/001.png"), test.resolve("green/other.png"));
    Files.copy(train.resolve("blue/001.png"), test.resolve("blue/other.png"));
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            RECIPE.replace("FILE", "train, evaluation-examples: test").replace("150", "1"));
    Run run = Run.of("compress", recipe, "-o", folder.resolve("out"));
    run.done();
    assertTrue(
        run.err()
            .contains(
                "3 images of "
                    + train
                    + " are left out, for they occur more than once, or in "
                    + test),
        run.err());
  }
}
