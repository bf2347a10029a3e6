package org.espalier.cli;

import static org.espalier.cli.Client.post;
import static org.espalier.cli.Client.start;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Random;
import javax.imageio.ImageIO;
import org.espalier.compress.Progress;
import org.espalier.format.onnx.SmallModels;
import org.espalier.image.ImageInput;
import org.espalier.image.ImageProcessor;
import org.espalier.image.ImageTensors;
import org.espalier.image.Images;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A fixed encoder of images in front of what learns. */
class OnlineImagesTest {
  private static final int SIDE = 8;

  @TempDir Path folder;
  private Path store;
  private Path recipe;
  private Path encoder;

  @BeforeEach
  void write() throws IOException {
    store = folder.resolve("store");
    recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\nlearning-rate: 1\nbatch: 4\nclasses: [dark, red]\nmodel:"
                + " {outputs: 2}\n");
    Files.writeString(
        folder.resolve("preprocessor_config.json"),
        "{\"size\": {\"height\": 8, \"width\": 8}, \"image_mean\": [0.4, 0.5, 0.6],"
            + " \"image_std\": 0.25}");
    Files.createDirectories(folder.resolve("in/photos"));
    encoder = encoder("maps", 17);
  }

  /**
   * pixels [n, 3, 8, 8], or with the channels last, → maps [n, 6, 4, 4] or [n, 4, 4, 6], tokens [n, 16, 6] or embeddings
   * [n, 6].
   */
  private Path encoder(String kind, int opset) throws IOException {
    Random random = new Random(2);
    boolean last = kind.equals("last");
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(
                last
                    ? SmallModels.value("pixels", DataType.FLOAT, -1, SIDE, SIDE, 3)
                    : SmallModels.value("pixels", DataType.FLOAT, -1, 3, SIDE, SIDE))
            .addInitializer(SmallModels.floats("filter", random, 0.4f, 6, 3, 2, 2));
    if (last) {
      g.addNode(
          SmallModels.line("first Transpose pixels", SmallModels.attribute("perm", 0, 3, 1, 2)));
    }
    g.addNode(
            SmallModels.line(
                "seen Conv " + (last ? "first" : "pixels") + " filter",
                SmallModels.attribute("strides", 2, 2)))
        .addNode(SmallModels.line("maps Relu seen"));
    switch (kind) {
      case "maps" -> g.addOutput(SmallModels.value("maps", DataType.FLOAT, -1, 6, 4, 4));
      case "counted" -> // what it gives first is no number of floats
          g.addNode(SmallModels.line("count Shape maps"))
              .addOutput(SmallModels.value("count", DataType.INT64, 4))
              .addOutput(SmallModels.value("maps", DataType.FLOAT, -1, 6, 4, 4));
      case "last" ->
          g.addNode(
                  SmallModels.line("out Transpose maps", SmallModels.attribute("perm", 0, 2, 3, 1)))
              .addOutput(SmallModels.value("out", DataType.FLOAT, -1, 4, 4, 6));
      case "tokens" ->
          g.addInitializer(SmallModels.int64s("rows", 0, 6, 16))
              .addNode(SmallModels.line("flat Reshape maps rows"))
              .addNode(
                  SmallModels.line("out Transpose flat", SmallModels.attribute("perm", 0, 2, 1)))
              .addOutput(SmallModels.value("out", DataType.FLOAT, -1, 16, 6));
      default ->
          g.addNode(SmallModels.line("pooled GlobalAveragePool maps"))
              .addNode(SmallModels.line("out Flatten pooled"))
              .addOutput(SmallModels.value("out", DataType.FLOAT, -1, 6));
    }
    return Files.write(folder.resolve("encoder.onnx"), SmallModels.model(opset, g).toByteArray());
  }

  /** An image that is red where the number is odd. */
  private Path image(int number) throws IOException {
    Random random = new Random(number);
    BufferedImage image = new BufferedImage(12, 10, BufferedImage.TYPE_INT_RGB);
    for (int p = 0; p < 120; p++) {
      int red = number % 2 * 120 << 16;
      image.setRGB(p % 12, p / 12, (random.nextInt(1 << 24) & 0x7F7F7F) + red);
    }
    Path file = folder.resolve("in/photos/" + number + ".png");
    ImageIO.write(image, "png", file.toFile());
    return file;
  }

  private Path lines(int n) throws IOException {
    List<String> lines = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      image(i);
      lines.add(
          "{\"image\": \"photos/"
              + i
              + ".png\", \"label\": \""
              + (i % 2 == 1 ? "red" : "dark")
              + "\"}");
    }
    return Files.write(folder.resolve("in/lines.jsonl"), lines);
  }

  private Run learn(Path input, Object... more) {
    List<Object> all = new ArrayList<>(List.of("--encoder", encoder));
    all.addAll(List.of(more));
    return Run.online(input, recipe, store, all.toArray());
  }

  private static String url(Path image) throws IOException {
    return "data:image/png;base64," + Base64.getEncoder().encodeToString(Files.readAllBytes(image));
  }

  private static Service service(Path store) {
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 5, true);
    return new Service(ModelStore.open(store), limits, null, null, null, null);
  }

  @ParameterizedTest
  @CsvSource({
    "maps,mean,17",
    "counted,mean,17",
    "last,mean,11",
    "tokens,mean,17",
    "tokens,cls,13",
    "pooled,mean,18"
  })
  void learnsImagesServesThemAndIsOneGraph(String kind, String pooling, int opset)
      throws Exception {
    encoder = encoder(kind, opset);
    JsonNode json = learn(lines(200), "--pooling", pooling, "--json").json();
    assertEquals(0, json.get("bad").asInt());
    double accuracy = json.get("metrics").get("accuracy_window").asDouble();
    assertTrue(accuracy > 0.8, "accuracy " + accuracy);
    Path whole = folder.resolve("whole.onnx");
    JsonNode written = Run.of("store", "export", "--store", store, "-o", whole, "--json").json();
    Path processor = folder.resolve("whole-preprocessor_config.json");
    assertEquals(processor.toString(), written.get("image_processor").asText());
    assertEquals(-1, Files.mismatch(folder.resolve("preprocessor_config.json"), processor));
    List<Path> images = List.of(image(1001), image(1002), image(1003));
    float[][] answers = answers(whole, processor, images, kind.equals("last"));
    try (Service service = service(store)) {
      int port = start(service);
      for (int i = 0; i < images.size(); i++) {
        JsonNode answer =
            post(
                port, "/predict", "{\"id\": " + i + ", \"image\": \"" + url(images.get(i)) + "\"}");
        assertEquals(answers[i][0], answer.get("outputs").get(0).asDouble(), 1e-4);
        assertEquals(answers[i][1], answer.get("outputs").get(1).asDouble(), 1e-4);
        assertTrue(List.of("dark", "red").contains(answer.get("class").asText()));
      }
      post(port, "/feedback", "{\"id\": 0, \"label\": \"red\"}");
    }
    assertEquals(2, ModelStore.open(store).current().getAsLong(), "it has learned");
    assertEquals(-1, Files.mismatch(encoder, store.resolve("versions/2/model/encoder.onnx")));
  }

  /** What the exported graph makes of a batch of images. */
  private static float[][] answers(Path model, Path processor, List<Path> files, boolean last)
      throws Exception {
    ImageInput input =
        ImageInput.of(
            List.of(
                last
                    ? SmallModels.value("pixels", DataType.FLOAT, -1, SIDE, SIDE, 3)
                    : SmallModels.value("pixels", DataType.FLOAT, -1, 3, SIDE, SIDE)));
    Images images =
        new Images(
            files, new ImageTensors(ImageProcessor.read(processor), input), 1, Progress.NONE);
    FloatBuffer pixels = FloatBuffer.allocate(files.size() * 3 * SIDE * SIDE);
    for (int i = 0; i < files.size(); i++) {
      pixels.put(ByteBuffer.wrap(images.tensor(i)).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer());
    }
    long n = files.size();
    long[] shape = last ? new long[] {n, SIDE, SIDE, 3} : new long[] {n, 3, SIDE, SIDE};
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession session = environment.createSession(model.toString());
        OnnxTensor fed = OnnxTensor.createTensor(environment, pixels.flip(), shape);
        OrtSession.Result result = session.run(Map.of("pixels", fed))) {
      return (float[][]) result.get(0).getValue();
    }
  }

  @Test
  void takesDataAsItIsWritten() throws Exception {
    learn(lines(8)).done();
    byte[] png = Files.readAllBytes(image(1001));
    String digits = Base64.getEncoder().encodeToString(png);
    String lines = Base64.getMimeEncoder().encodeToString(png).replace("\r\n", "\\r\\n");
    String forUrls = Base64.getUrlEncoder().withoutPadding().encodeToString(png);
    try (Service service = service(store)) {
      int port = start(service);
      String right = post(port, "/predict", "{\"image\": \"" + url(image(1001)) + "\"}").toString();
      for (String url :
          List.of(
              "data:;base64," + digits,
              "DATA:image/png;name=a;BASE64," + digits,
              "data:image/png;base64, " + lines,
              "data:image/png;base64," + forUrls)) {
        assertEquals(right, post(port, "/predict", "{\"image\": \"" + url + "\"}").toString(), url);
      }
      String error =
          post(400, port, "/predict", "{\"image\": \"data:;base64,%2B" + digits + "\"}")
              .get("error")
              .asText();
      assertTrue(error.startsWith("image has data that is not base64"), error);
    }
  }

  @Test
  void takesDataInLinesAndGoesOnWithoutTheEncoder() throws IOException {
    Path input = lines(40);
    List<String> all = new ArrayList<>(Files.readAllLines(input));
    all.set(3, "{\"image\": \"" + url(image(3)) + "\", \"label\": 1}");
    all.set(4, "{\"image\": \"" + image(4) + "\", \"label\": 0}"); // an absolute path
    Files.write(input, all);
    JsonNode json = learn(input, "--json").json();
    assertEquals(40, json.get("learned").asInt());
    assertEquals(0, json.get("bad").asInt());
    all.add("{\"image\": \"photos/1.png\", \"label\": 1}");
    Files.write(input, all);
    json = Run.resume(input, store, "--json").json();
    assertEquals(1, json.get("lines").asInt());
    assertEquals(List.of(), ModelStore.open(store).verify(2));
  }

  @Test
  void countsLinesThatCannotBeUsed() throws IOException {
    Path input = lines(4);
    List<String> all = new ArrayList<>(Files.readAllLines(input));
    all.add("{\"image\": \"photos/none.png\", \"label\": 1}");
    all.add("{\"image\": \"data:image/png;base64,%\", \"label\": 1}");
    all.add("{\"image\": \"data:image/png;base64,AAAA\", \"label\": 1}");
    all.add("{\"image\": \"data:image/png,abc\", \"label\": 1}");
    all.add("{\"image\": \"\\u0000\", \"label\": 1}");
    all.add("{\"image\": 7, \"label\": 1}");
    all.add("{\"text\": \"red\", \"label\": 1}");
    Files.write(input, all);
    Path quarantine = folder.resolve("bad.jsonl");
    JsonNode json = learn(input, "--json", "--max-bad", 7, "--quarantine", quarantine).json();
    assertEquals(7, json.get("bad").asInt());
    String told = Files.readString(quarantine);
    assertTrue(told.contains("there is no image"), told);
    assertTrue(told.contains("the image in the URL is none of JPEG"), told);
    assertTrue(told.contains("no data in base64"), told);
    assertTrue(told.contains("neither a path nor a URL"), told);
    assertTrue(told.contains("image is not a string"), told);
    assertTrue(told.contains("there is neither image nor features"), told);
  }

  /** A path in a request would show what lies on the server. */
  @Test
  void requestsNameNoFiles() throws Exception {
    learn(lines(8)).done();
    try (Service service = service(store)) {
      int port = start(service);
      JsonNode answer =
          post(400, port, "/predict", "{\"image\": \"" + image(1).toAbsolutePath() + "\"}");
      assertTrue(answer.toString().contains("image is not a URL with its data"), answer.toString());
    }
  }

  /** A classifier [n, 3, 8, 8] → [n, 2] that learns whole. */
  private Path classifier() throws IOException {
    Random random = new Random(2);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("classifier")
            .addInput(SmallModels.value("pixels", DataType.FLOAT, -1, 3, SIDE, SIDE))
            .addInitializer(SmallModels.floats("filter", random, 0.4f, 6, 3, 2, 2))
            .addInitializer(SmallModels.floats("head", random, 0.4f, 6, 2))
            .addNode(
                SmallModels.line("seen Conv pixels filter", SmallModels.attribute("strides", 2, 2)))
            .addNode(SmallModels.line("maps Relu seen"))
            .addNode(SmallModels.line("pooled GlobalAveragePool maps"))
            .addNode(SmallModels.line("flat Flatten pooled"))
            .addNode(SmallModels.line("logits MatMul flat head"))
            .addOutput(SmallModels.value("logits", DataType.FLOAT, -1, 2));
    return Files.write(folder.resolve("classifier.onnx"), SmallModels.model(17, g).toByteArray());
  }

  /** The same lines with the pixels of each image as features. */
  private Path pixels(Path lines) throws IOException {
    ImageInput input =
        ImageInput.of(List.of(SmallModels.value("pixels", DataType.FLOAT, -1, 3, SIDE, SIDE)));
    ImageTensors tensors =
        new ImageTensors(ImageProcessor.read(folder.resolve("preprocessor_config.json")), input);
    List<String> all = new ArrayList<>();
    for (String line : Files.readAllLines(lines)) {
      String image = line.replaceAll(".*\"image\": \"([^\"]*)\".*", "$1");
      FloatBuffer values =
          ByteBuffer.wrap(tensors.read(folder.resolve("in").resolve(image)).bytes())
              .order(ByteOrder.LITTLE_ENDIAN)
              .asFloatBuffer();
      float[] features = new float[values.remaining()];
      values.get(features);
      all.add(
          line.replace(
              "\"image\": \"" + image + "\"", "\"features\": " + Arrays.toString(features)));
    }
    return Files.write(folder.resolve("in/pixels.jsonl"), all);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void classifiersLearnWholeFromImagesAsFromTheirPixels(boolean int8) throws Exception {
    Path model = classifier();
    Path lines = lines(120);
    Path processor = folder.resolve("preprocessor_config.json");
    if (int8) {
      Path quantized = folder.resolve("int8.onnx");
      Run.of("quantize", model, "-o", quantized, "--to", "onnx-qdq", "--calibration", lines).done();
      model = quantized;
    }
    recipe =
        Files.writeString(
            recipe, "loss: cross-entropy\nlearning-rate: 0.3\nbatch: 4\nclasses: [dark, red]\n");
    Run.online(pixels(lines), recipe, store, "--model", model).done();
    byte[] whole = Files.readAllBytes(store.resolve("versions/1/model/learner.state"));
    store = folder.resolve("images");
    List<String> all = Files.readAllLines(lines);
    Files.write(lines, all.subList(0, 100));
    Run.online(lines, recipe, store, "--model", model, "--image-processor", processor).done();
    Files.write(lines, all);
    Run.resume(lines, store).done();
    byte[] resumed = Files.readAllBytes(store.resolve("versions/2/model/learner.state"));
    assertArrayEquals(whole, resumed);

    Path out = folder.resolve("out.onnx");
    Run.of("store", "export", "--store", store, "-o", out).done();
    Path written = folder.resolve("out-preprocessor_config.json");
    assertEquals(-1, Files.mismatch(processor, written));
    List<Path> images = List.of(image(2001), image(2002));
    float[][] answers = answers(out, written, images, false);
    try (Service service = service(store)) {
      int port = start(service);
      for (int i = 0; i < images.size(); i++) {
        JsonNode answer =
            post(
                port, "/predict", "{\"id\": " + i + ", \"image\": \"" + url(images.get(i)) + "\"}");
        assertEquals(answers[i][0], answer.get("outputs").get(0).asDouble(), 1e-4);
      }
      // A model that somebody publishes as it is has no word of images, and takes them all the
      // same.
      Run.of("store", "publish", model, "--store", store).done();
      for (int i = 0; i < 100 && service.storeVersion() != 3; i++) {
        Thread.sleep(50);
      }
      assertEquals(3, service.storeVersion());
      post(port, "/predict", "{\"image\": \"" + url(images.get(0)) + "\"}");
    }
  }

  @Test
  void otherPixelsAreRefused() throws IOException {
    Path model = classifier();
    Path lines = lines(8);
    recipe = Files.writeString(recipe, "loss: cross-entropy\nlearning-rate: 0.3\n");
    Path other = Files.writeString(folder.resolve("other.json"), "{\"size\": 9}");
    Run run = Run.online(lines, recipe, store, "--model", model, "--image-processor", other);
    assertEquals(2, run.code());
    assertTrue(run.err().contains("makes images of 9 x 9"), run.err());
    run = Run.online(lines, recipe, store, "--image-processor", other);
    assertEquals(2, run.code());
    assertTrue(run.err().contains("or of a --model that takes images"), run.err());
    Files.write(lines, List.of("{\"image\": \"photos/1.png\", \"label\": 1}"));
    Path processor = folder.resolve("preprocessor_config.json");
    Run.online(lines, recipe, store, "--model", model, "--image-processor", processor).done();
    Files.writeString(other, "{\"size\": 8}");
    run = Run.resume(lines, store, "--image-processor", other);
    assertEquals(2, run.code());
    assertTrue(run.err().contains("makes other values of images"), run.err());
    Run.resume(lines, store, "--image-processor", processor).done();
  }

  @Test
  void optionsOfTextsAreRefused() throws IOException {
    Path input = lines(2);
    Run run = learn(input, "--max-tokens", 10);
    assertEquals(2, run.code());
    assertTrue(run.err().contains("are of texts; the encoder has no input_ids"), run.err());
    run = Run.online(input, recipe, store, "--image-processor", recipe);
    assertEquals(2, run.code());
    assertTrue(
        run.err().contains("or of a --model that takes images; both are missing"), run.err());
    Files.delete(folder.resolve("preprocessor_config.json"));
    run = learn(input);
    assertEquals(2, run.code());
    assertTrue(run.err().contains("which says how images become tensors"), run.err());
  }

  @Test
  void saysWhatImagesNeed() throws IOException {
    Files.writeString(
        recipe,
        "loss: cross-entropy\n"
            + "learning-rate: 1\n"
            + "model: {features: 6, outputs: 2}\n"
            + "classes: [dark, red]\n");
    Run run = Run.online(lines(3), recipe, store);
    assertTrue(
        run.err().contains("line 1: features are missing; texts and images are for what has"),
        run.err());
  }
}
