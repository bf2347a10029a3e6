package org.espalier.cli;

import static org.espalier.cli.SmallLanguage.VOCABULARY;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import javax.imageio.ImageIO;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.transformers.PublishedLayouts;
import org.espalier.transformers.SmallCheckpoint;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Folders of safetensors with a configuration, as ONNX and back. */
class ExportTest {
  @TempDir private Path folder;
  private Path checkpoint;
  private Path texts;

  @BeforeEach
  void makeCheckpoint() throws IOException {
    Libtorch.load();
    checkpoint = Files.createDirectory(folder.resolve("checkpoint"));
    SmallLanguage.write(checkpoint);
    texts = Files.write(folder.resolve("texts.txt"), SmallLanguage.texts(60, 8));
    SmallCheckpoint.writeLanguageModel(checkpoint, VOCABULARY);
  }

  private Path export(Path from, String name) {
    Path onnx = folder.resolve(name);
    Run.of("export", from, "-o", onnx).done();
    return onnx;
  }

  private double divergence(Path reference, Path candidate) {
    JsonNode json = Run.of("evaluate", reference, candidate, "--texts", texts, "--json").json();
    assertTrue(json.path("kl").isNumber(), json.toString());
    return json.path("kl").asDouble();
  }

  @Test
  void aFolderBecomesOnnxWithItsTokenizer() throws IOException {
    Path onnx = folder.resolve("model.onnx");
    JsonNode json = Run.of("export", checkpoint, "-o", onnx, "--json").json();
    assertEquals(onnx.toString(), json.path("output").asText());
    assertEquals(Files.size(onnx), json.path("bytes").asLong());
    Path tokenizer = folder.resolve("model-tokenizer.json");
    assertEquals(tokenizer.toString(), json.path("tokenizer").asText());
    assertEquals(-1, Files.mismatch(tokenizer, checkpoint.resolve("tokenizer.json")));
    assertTrue(divergence(onnx, onnx) < 1e-6);
  }

  @Test
  void aFolderIsQuantizedAndPrunedAsItIs() {
    Path onnx = export(checkpoint, "model.onnx");
    for (String form : new String[] {"onnx-dynamic", "onnx-int4", "onnx-float16"}) {
      Path out = folder.resolve(form + ".onnx");
      JsonNode json =
          Run.of("quantize", checkpoint, "-o", out, "--to", form, "--calibration", texts, "--json")
              .json();
      assertTrue(json.path("speedup").asDouble() > 0, json.toString());
      double divergence = divergence(onnx, out);
      assertTrue(divergence > 0 && divergence < 0.1, form + ": " + divergence);
    }
    for (String[] how :
        new String[][] {
          {"--amount", "0.2", "--refit"}, {"--channels", "0.2"}, {"--layers", "0.5"}
        }) {
      Path out = folder.resolve(how[0] + ".onnx");
      Object[] args = {"prune", checkpoint, "-o", out, "--calibration", texts, "--json"};
      Object[] all = Arrays.copyOf(args, args.length + how.length);
      System.arraycopy(how, 0, all, args.length, how.length);
      Run.of(all).done();
      double divergence = divergence(onnx, out);
      assertTrue(divergence > 0 && divergence < 1, how[0] + ": " + divergence);
    }
  }

  private static final String[][] WAYS = {
    {"quantize", "--to=onnx-int4"},
    {"quantize", "--to=onnx-dynamic"},
    {"quantize", "--to=onnx-float16"},
    {"prune", "--channels=0.2"}
  };

  /** What one of the {@link #WAYS} makes, with products that are exact on this machine. */
  private Path made(String[] way, Path from, Path calibration) {
    Path out = folder.resolve(way[1] + ".onnx");
    List<Object> args =
        new ArrayList<>(List.of(way[0], from, "-o", out, way[1], "--calibration", calibration));
    if (List.of("--to=onnx-dynamic", "--to=onnx-qdq").contains(way[1])
        && !ExactProducts.areHere()) {
      args.add("--unsigned-weights");
    }
    Run.of(args.toArray()).done();
    return out;
  }

  @ParameterizedTest
  @ValueSource(strings = {"gpt2", "phi3", "gemma3_text", "mixtral", "qwen2_moe"})
  void languageModelsAreQuantizedAndPruned(String type) throws IOException {
    SmallCheckpoint.writeLanguageModel(checkpoint, type);
    Path onnx = export(checkpoint, "model.onnx");
    for (String[] way : WAYS) {
      Path out = made(way, checkpoint, texts);
      double divergence = divergence(onnx, out);
      assertTrue(divergence > 0 && divergence < 0.1, way[1] + ": " + divergence);
    }
    Path half = folder.resolve("--to=onnx-float16.onnx");
    JsonNode rounded =
        Run.of("evaluate", onnx, half, "--texts", texts, "--round-float16", "--json").json();
    double lost = rounded.path("kl").asDouble(-1);
    assertTrue(lost > 0 && lost < 0.01, rounded.toString());
    if (!type.equals("gpt2")) {
      double divergence = divergence(onnx, inIntegers());
      assertTrue(divergence > 0 && divergence < 0.01, "int8: " + divergence);
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"deberta-v2", "modernbert", "mpnet"})
  void encodersAreQuantizedAndPruned(String type) throws IOException {
    SmallCheckpoint.writeTextEncoder(checkpoint, type);
    Path onnx = export(checkpoint, "model.onnx");
    for (String[] way : WAYS) {
      Path out = made(way, checkpoint, texts);
      double cosine = cosine(onnx, out);
      assertTrue(cosine > 0.95 && cosine < 1, way[1] + ": " + cosine);
    }
    Path int8 = inIntegers();
    if (type.equals("deberta-v2")) {
      // Each layer's own six, and those of queries and keys once more, for distances.
      assertEquals(
          2 * 8,
          OnnxModel.read(int8).nodes().stream()
              .filter(n -> n.getOpType().equals("MatMulNBits"))
              .count());
    }
    double cosine = cosine(onnx, int8);
    assertTrue(cosine > 0.99 && cosine < 1, "int8: " + cosine);
  }

  private Path inIntegers() {
    Path out = folder.resolve("int8");
    Run.of("quantize", checkpoint, "-o", out, "--to=compressed-tensors").done();
    return export(out, "int8.onnx");
  }

  private double cosine(Path reference, Path candidate) {
    JsonNode json = Run.of("evaluate", reference, candidate, "--texts", texts, "--json").json();
    assertTrue(json.path("cosine_mean").isNumber(), json.toString());
    return json.path("cosine_mean").asDouble();
  }

  private static final String OF_25 = "{\"size\": {\"height\": 25, \"width\": 25}}";

  /** As CLIP's and DINOv2's processors have it. */
  private static final String CROPPED =
      """
      {"do_resize": true, "size": {"shortest_edge": 24}, "resample": 3, "do_center_crop": true,
       "crop_size": {"height": 20, "width": 20}, "do_rescale": true, "do_normalize": true,
       "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
      """;

  private Path imageModel(String type, String processor) throws IOException {
    Path images = Files.createDirectory(folder.resolve("images"));
    SmallCheckpoint.writeImageModel(images, type);
    Files.writeString(images.resolve("preprocessor_config.json"), processor);
    return images;
  }

  /** An image encoder takes the file beside it along that says how images become pixels. */
  @Test
  void processorsOfImagesAreTaken() throws IOException {
    Path images = imageModel("vit", OF_25);
    Path onnx = folder.resolve("images.onnx");
    String said = Run.of("export", images, "-o", onnx).done().out();
    Path beside = folder.resolve("images-preprocessor_config.json");
    assertTrue(said.contains("its image processor as " + beside), said);
    assertEquals(-1, Files.mismatch(beside, images.resolve("preprocessor_config.json")));
    JsonNode json = Run.of("export", images, "-o", onnx, "--json").json();
    assertEquals(beside.toString(), json.path("image_processor").asText());
    assertTrue(json.path("tokenizer").isMissingNode(), json.toString());
  }

  @ParameterizedTest
  @ValueSource(strings = {"vit", "dinov2", "dinov2_with_registers"})
  void imageEncodersAreQuantizedAndPruned(String type) throws IOException {
    Path images = imageModel(type, type.equals("vit") ? OF_25 : CROPPED);
    Path onnx = export(images, "images.onnx");
    Path pictures = pictures();
    List<String[]> ways = new ArrayList<>(List.of(WAYS));
    ways.add(new String[] {"quantize", "--to=onnx-qdq"});
    for (String[] way : ways) {
      Path out = made(way, images, pictures);
      double error = error(onnx, out, pictures);
      assertTrue(error > 0 && error < largest(way), way[1] + ": " + error);
    }
  }

  /** The error that is too much for a model of random weights: of rounding, and of channels that are not there. */
  private static double largest(String[] way) {
    return way[0].equals("prune") ? 0.2 : way[1].endsWith("int4") ? 0.15 : 0.05;
  }

  private static double error(Path reference, Path candidate, Path pictures) {
    return Run.of("evaluate", reference, candidate, "--examples", pictures, "--json")
        .json()
        .path("outputs")
        .path(0)
        .path("relative_error")
        .asDouble();
  }

  private Path pictures() throws IOException {
    Path pictures = folder.resolve("pictures");
    Random random = new Random(4);
    for (int i = 0; i < 12; i++) {
      BufferedImage picture = new BufferedImage(40, 30, BufferedImage.TYPE_INT_RGB);
      for (int at = 0; at < 40 * 30; at++) {
        picture.setRGB(at % 40, at / 40, random.nextInt(1 << 24));
      }
      Path of = Files.createDirectories(pictures.resolve("class" + i % 3));
      ImageIO.write(picture, "png", of.resolve(i + ".png").toFile());
    }
    return pictures;
  }

  /** Each of two encoders becomes a model of its own, which is quantized and pruned; the whole is none. */
  @ParameterizedTest
  @ValueSource(strings = {"clip", "siglip"})
  void aModelOfTwoIsExportedInParts(String type) throws IOException {
    Path both = folder.resolve("both");
    SmallCheckpoint.writeModelOfTwo(both, type);
    SmallLanguage.write(both);
    Files.writeString(
        both.resolve("preprocessor_config.json"), CROPPED.replace("20", "25").replace("24", "25"));
    Path out = folder.resolve("out.onnx");
    refused("by --part text or --part image", both, "-o", out);
    refused("has no parts; --part is for bart, clip", checkpoint, "-o", out, "--part", "text");
    refused("--part", both, "-o", out, "--part", "sound");
    Run.refused(
        folder,
        new String[] {"by --part text or --part image"},
        "quantize",
        both,
        "-o",
        out,
        "--to=onnx-int8");
    Path text = folder.resolve("text.onnx");
    Path image = folder.resolve("image.onnx");
    Run.of("export", both, "-o", text, "--part", "text").done();
    Run.of("export", both, "-o", image, "--part", "image").done();
    Path pictures = pictures();
    List<String[]> ways = new ArrayList<>(List.of(WAYS));
    for (String[] way : ways) {
      double cosine = cosine(text, made(way, text, texts));
      assertTrue(cosine > 0.95 && cosine < 1, way[1] + ": " + cosine);
    }
    learnsBehind(text);
    ways.add(new String[] {"quantize", "--to=onnx-qdq"});
    for (String[] way : ways) {
      double error = error(image, made(way, image, pictures), pictures);
      assertTrue(error > 0 && error < largest(way), way[1] + ": " + error);
    }
  }

  /** Texts are learned from by an encoder that gives one vector each. */
  private void learnsBehind(Path encoder) throws IOException {
    Path recipe = folder.resolve("online.yaml");
    Files.writeString(
        recipe, "loss: cross-entropy\nlearning-rate: 0.1\nbatch: 1\nmodel: {outputs: 2}\n");
    Path lines =
        Files.writeString(
            folder.resolve("lines.jsonl"),
            "{\"text\": \"w1 w2\", \"label\": 1}\n{\"text\": \"w3\", \"label\": 0}\n");
    Path store = folder.resolve("store");
    Run.online(lines, recipe, store, "--encoder", encoder, "--max-tokens", 40).done();
    Path whole = folder.resolve("whole.onnx");
    Run.of("store", "export", "--store", store, "-o", whole).done();
    assertTrue(OnnxModel.read(whole).nodes().size() > OnnxModel.read(encoder).nodes().size());
  }

  /** What a recipe trains goes back into the checkpoint's layout: safetensors beside the same configuration. */
  @Test
  void whatIsTrainedGoesBack() throws IOException {
    Path onnx = export(checkpoint, "model.onnx");
    Path recipe = folder.resolve("recipe.yaml");
    Files.writeString(
        recipe,
        """
        model: {file: model.onnx}
        data: {texts: checkpoint/texts.txt, task: causal-lm, validation: 32, evaluation: 32}
        stages:
          - {kind: fine-tune, steps: 12, batch: 16, learning-rate: 1e-2}
        export: {formats: [onnx, safetensors]}
        """);
    Path out = folder.resolve("out");
    Run.of("compress", recipe, "-o", out).done();
    assertTrue(divergence(onnx, out.resolve("model.onnx")) > 0.1, "nothing was learned");
    Path back = Files.createDirectory(folder.resolve("back"));
    for (String file : new String[] {"config.json", "tokenizer.json"}) {
      Files.copy(checkpoint.resolve(file), back.resolve(file));
    }
    Files.copy(out.resolve("model.safetensors"), back.resolve("model.safetensors"));
    assertTrue(divergence(out.resolve("model.onnx"), export(back, "back.onnx")) < 1e-6);
  }

  /** Experts learn in a recipe, in integers too, and go back into the checkpoint's layout where no activation is scaled. */
  @ParameterizedTest
  @CsvSource({"mixtral, dynamic", "qwen2_moe, int4"})
  void expertsLearn(String type, String form) throws IOException {
    SmallCheckpoint.writeLanguageModel(checkpoint, type);
    Path recipe = folder.resolve("recipe.yaml");
    Files.writeString(
        recipe,
        """
        model: {file: checkpoint}
        data: {texts: checkpoint/texts.txt, task: causal-lm, validation: 32, evaluation: 32,
               calibration: 2}
        stages:
          - {kind: fine-tune, steps: 30, batch: 16, learning-rate: 1e-2}
          - {kind: quantize, form: FORM, steps: 2, batch: 16, learning-rate: 1e-3}
        export: {formats: [onnx, onnx-float, safetensors]}
        """
            .replace("FORM", form));
    Path out = folder.resolve("out");
    Run.of("compress", recipe, "-o", out).done();
    JsonNode fidelity =
        new ObjectMapper().readTree(out.resolve("report.json").toFile()).path("fidelity");
    assertTrue(
        fidelity.path("perplexity").asDouble()
            < 0.2 * fidelity.path("reference_perplexity").asDouble(),
        fidelity.toString());
    Path back = Files.createDirectory(folder.resolve("back"));
    for (String file : new String[] {"config.json", "tokenizer.json"}) {
      Files.copy(checkpoint.resolve(file), back.resolve(file));
    }
    Files.copy(out.resolve("model.safetensors"), back.resolve("model.safetensors"));
    Path exported = export(back, "back.onnx");
    if (form.equals("int4")) {
      double divergence = divergence(out.resolve("model-float.onnx"), exported);
      assertTrue(divergence < 1e-6, "" + divergence);
    }
  }

  /** Of an expert that no example chooses weights are rounded to the nearest, pruned by magnitude, and it has no range. */
  @Test
  void expertsThatNoExampleChooses() throws IOException {
    SmallCheckpoint.writeLanguageModel(checkpoint, "mixtral");
    Path onnx = export(checkpoint, "model.onnx");
    Path one = Files.writeString(folder.resolve("one.txt"), "w1 w2\n");
    for (String form :
        new String[] {
          "onnx-dynamic", "onnx-int4", "compressed-tensors", "compressed-tensors-float8"
        }) {
      Path out = folder.resolve(form + (form.startsWith("onnx") ? ".onnx" : ""));
      Run run =
          Run.of("quantize", checkpoint, "-o", out, "--to", form, "--calibration", one).done();
      boolean told =
          run.err().contains("rounded to the nearest") && run.err().contains(".experts.");
      assertTrue(told, run.err());
      double divergence = divergence(onnx, out);
      assertTrue(divergence > 0 && divergence < 0.1, form + ": " + divergence);
    }
    for (String[] how : new String[][] {{"--amount=0.2", "--refit"}, {"--channels=0.2"}}) {
      Path out = folder.resolve("pruned.onnx");
      List<Object> args =
          new ArrayList<>(List.of("prune", checkpoint, "-o", out, "--calibration", one));
      args.addAll(List.of(how));
      Run.of(args.toArray()).done();
      double divergence = divergence(onnx, out);
      assertTrue(divergence > 0 && divergence < 0.3, how[0] + ": " + divergence);
    }
    Path out = Files.createDirectory(folder.resolve("nothing"));
    Run.refused(
        out,
        new String[] {"an example that reaches it"},
        "quantize",
        checkpoint,
        "-o",
        out.resolve("qdq.onnx"),
        "--to=onnx-qdq",
        "--calibration",
        one);
  }

  /** Integers that examples chose are closer to the original than the nearest, in each form, and run as they lie. */
  @ParameterizedTest
  @CsvSource({
    "compressed-tensors, ''",
    "compressed-tensors-float8, ''",
    "compressed-tensors-int4, --block=32",
    "compressed-tensors-int4, --block=all",
    "compressed-tensors-int4, --block=32 --asymmetric",
    "compressed-tensors-int4, --block=all --asymmetric"
  })
  void integersOfACheckpointAreFittedAndRun(String form, String options) throws IOException {
    Path onnx = export(checkpoint, "model.onnx");
    double[] divergences = new double[2];
    for (int i = 0; i < 2; i++) {
      Path out = folder.resolve("quantized-" + i);
      List<Object> args = new ArrayList<>(List.of("quantize", checkpoint, "-o", out, "--to", form));
      args.addAll(options.isEmpty() ? List.of() : List.of(options.split(" ")));
      if (i == 1) {
        args.addAll(List.of("--calibration", checkpoint.resolve("texts.txt")));
      }
      Run run = Run.of(args.toArray()).done();
      assertFalse(run.err().contains("calibration saw nothing"), run.err());
      Path written = export(out, "quantized-" + i + ".onnx");
      assertEquals(
          !form.endsWith("float8"),
          OnnxModel.read(written).nodes().stream()
              .anyMatch(n -> n.getOpType().equals("MatMulNBits")));
      divergences[i] = divergence(onnx, written);
    }
    assertTrue(
        divergences[1] < (form.endsWith("int4") ? 0.7 : 1) * divergences[0],
        divergences[0] + " becomes " + divergences[1]);
    assertTrue(divergences[1] < 0.1, form + options + ": " + divergences[1]);
  }

  /** Biases of 16 bits, which are cast, part no channels from what reads them. */
  @ParameterizedTest
  @CsvSource({"mpnet, bfloat16", "mpnet, float16", "gpt2, bfloat16"})
  void checkpointsOf16BitsLoseAsManyChannels(String type, String form) throws IOException {
    if (type.equals("gpt2")) {
      SmallCheckpoint.writeLanguageModel(checkpoint, type);
    } else {
      SmallCheckpoint.writeTextEncoder(checkpoint, type);
    }
    Path half = folder.resolve("half");
    Run.of("quantize", checkpoint, "-o", half, "--to", form).done();
    JsonNode expected = narrowed(checkpoint);
    assertFalse(expected.isEmpty());
    assertEquals(expected, narrowed(half));
    Path narrow = folder.resolve("narrow-half.onnx");
    if (type.equals("gpt2")) {
      assertTrue(divergence(half, narrow) < 0.1);
    } else {
      assertTrue(cosine(half, narrow) > 0.95);
    }
  }

  private JsonNode narrowed(Path model) {
    Path out = folder.resolve("narrow-" + model.getFileName() + ".onnx");
    List<Object> args = new ArrayList<>(List.of("prune", model, "-o", out, "--channels", "0.25"));
    args.addAll(List.of("--allocation", "uniform", "--calibration", texts, "--json"));
    return Run.of(args.toArray()).json().path("channels");
  }

  /** Scales that are multiplied behind products count as much as those that weights have in them: as many of each tensor go. */
  @ParameterizedTest
  @ValueSource(strings = {"compressed-tensors-float8", "fp8"})
  void floatsOf8BitsArePrunedByWhatTheyStandFor(String layout) throws IOException {
    Path floats = checkpoint;
    Path out = folder.resolve("of-8-bits");
    if (layout.equals("fp8")) {
      floats = folder.resolve("floats");
      PublishedLayouts.writeLanguageModel(out, VOCABULARY, layout, floats);
    } else {
      Run.of("quantize", checkpoint, "-o", out, "--to", layout).done();
    }
    for (Path of : List.of(floats, out)) {
      Path tokenizer = of.resolve("tokenizer.json");
      if (!Files.exists(tokenizer)) {
        Files.copy(checkpoint.resolve("tokenizer.json"), tokenizer);
      }
    }
    Path written = export(out, "of-8-bits.onnx");
    Path whole = folder.resolve("whole.onnx");
    Run.of("prune", written, "-o", whole, "--amount", "0").done();
    assertTrue(divergence(written, whole) < 1e-6);
    Path half = folder.resolve("half.onnx");
    Run.of("quantize", written, "-o", half, "--to", "onnx-float16", "--calibration", texts).done();
    Path wholeHalf = folder.resolve("whole-half.onnx");
    Run.of("prune", half, "-o", wholeHalf, "--amount", "0").done();
    assertTrue(divergence(half, wholeHalf) < 1e-5);
    JsonNode expected = pruned(export(floats, "floats.onnx"));
    JsonNode pruned = pruned(written);
    assertEquals(expected.size(), pruned.size());
    for (int i = 0; i < expected.size(); i++) {
      long total = expected.path(i).path("total").asLong();
      long right = expected.path(i).path("pruned").asLong();
      long found = pruned.path(i).path("pruned").asLong();
      assertEquals(right, found, 0.05 * total, expected.path(i) + " becomes " + pruned.path(i));
    }
  }

  /** How many weights of each tensor go where 30 % of all do. */
  private JsonNode pruned(Path model) {
    Path out = folder.resolve("pruned-" + model.getFileName());
    return Run.of("prune", model, "-o", out, "--amount", "0.3", "--json").json().path("tensors");
  }

  /** Rows whose last block or word is not full. */
  @ParameterizedTest
  @CsvSource({
    "compressed-tensors, 20, ''",
    "compressed-tensors, 37, ''",
    "compressed-tensors-int4, 20, --block=all",
    "compressed-tensors-int4, 37, --block=all",
    "compressed-tensors-int4, 37, --block=all --asymmetric"
  })
  void layersOfOddWidthsAreExportedAsIntegers(String form, int width, String options)
      throws IOException {
    Path odd = Files.createDirectory(folder.resolve("odd"));
    SmallCheckpoint.writeBert(odd, width);
    Files.copy(checkpoint.resolve("tokenizer.json"), odd.resolve("tokenizer.json"));
    Path out = folder.resolve("integers");
    List<Object> args = new ArrayList<>(List.of("quantize", odd, "-o", out, "--to", form));
    args.addAll(options.isEmpty() ? List.of() : List.of(options.split(" ")));
    Run.of(args.toArray()).done();
    Path written = export(out, "integers.onnx");
    long integers =
        OnnxModel.read(written).nodes().stream()
            .filter(n -> n.getOpType().equals("MatMulNBits"))
            .count();
    assertEquals(12, integers);
    double close = cosine(odd, written);
    assertTrue(close > (form.endsWith("int4") ? 0.98 : 0.9999), form + ": " + close);
  }

  /** Layers of published layouts are exported, measured and quantized as those of floats. */
  @ParameterizedTest
  @ValueSource(strings = {"gptq", "awq", "fp8"})
  void publishedLayoutsAreTakenAsTheyAre(String method) throws IOException {
    Path floats = folder.resolve("floats");
    PublishedLayouts.writeLanguageModel(checkpoint, VOCABULARY, method, floats);
    Files.copy(checkpoint.resolve("tokenizer.json"), floats.resolve("tokenizer.json"));
    Path written = export(checkpoint, "model.onnx");
    boolean integers = !method.equals("fp8");
    assertTrue(divergence(floats, written) < (integers ? 1e-2 : 1e-5), method);
    assertTrue(divergence(checkpoint, written) < 1e-6, method);
    for (String form : new String[] {"onnx-int4", "onnx-dynamic", "onnx-float16"}) {
      Path out = folder.resolve(form + ".onnx");
      Run run =
          Run.of("quantize", checkpoint, "-o", out, "--to", form, "--calibration", texts).done();
      assertTrue(divergence(floats, out) < 0.1, form + run.err());
    }
  }

  /** Scales that were trained go to readers of checkpoints with the integers that they belong to, and nothing else changes. */
  @Test
  void fourBitsThatAreTrainedGoBack() throws IOException {
    export(checkpoint, "model.onnx");
    Path recipe = folder.resolve("recipe.yaml");
    Files.writeString(
        recipe,
        """
        model: {file: model.onnx, config: checkpoint/config.json}
        data: {texts: checkpoint/texts.txt, task: causal-lm, validation: 32, evaluation: 32}
        stages:
          - {kind: quantize, form: int4, embeddings: false, steps: 6, batch: 16}
        export: {formats: [onnx, compressed-tensors]}
        """);
    Path out = folder.resolve("out");
    Run.of("compress", recipe, "-o", out).done();
    Path back = out.resolve("compressed-tensors");
    Path written = export(back, "back.onnx");
    // Equal but for the head, which readers of the layout take as floats.
    double whole = divergence(folder.resolve("model.onnx"), written);
    double apart = divergence(out.resolve("model-int4.onnx"), written);
    assertTrue(whole > 0 && whole < 0.1, "" + whole);
    assertTrue(apart < 0.5 * whole, apart + " of " + whole);
    OnnxModel trained = OnnxModel.read(out.resolve("model-int4.onnx"));
    OnnxModel read = OnnxModel.read(written);
    for (int n = 0; n < 2; n++) {
      String module = "model.layers." + n + ".mlp.down_proj";
      assertArrayEquals(values(trained, module), values(read, module), module);
    }
  }

  /** What the integers of a product stand for, [out, in]. */
  private static float[] values(OnnxModel model, String module) {
    NodeProto product =
        model.nodes().stream()
            .filter(n -> n.getOpType().equals("MatMulNBits"))
            .filter(n -> n.getOutput(0).startsWith(module + "/"))
            .findFirst()
            .orElseThrow();
    ByteBuffer bytes = model.initializer(product.getInput(1)).data();
    FloatBuffer scales = model.initializer(product.getInput(2)).floats();
    ByteBuffer zeros =
        product.getInputCount() > 3 ? model.initializer(product.getInput(3)).data() : null;
    int blocks = (int) (model.initializer(product.getInput(1)).dims()[1]);
    int zeroBytes = (blocks + 1) / 2;
    float[] values = new float[2 * bytes.remaining()];
    int block = values.length / scales.remaining();
    for (int i = 0; i < values.length; i++) {
      int b = i / block;
      int row = b / blocks;
      int column = b % blocks;
      int zero =
          zeros == null ? 8 : zeros.get(row * zeroBytes + column / 2) >>> 4 * (column % 2) & 15;
      values[i] = 0f + scales.get(b) * ((bytes.get(i / 2) >>> 4 * (i % 2) & 15) - zero);
    }
    return values;
  }

  @Test
  void refusesWhatDoesNotFit() throws IOException {
    Path out = folder.resolve("out.onnx");
    Path onnx = export(checkpoint, "model.onnx");
    refused("is a file; 'export' takes a folder", onnx, "-o", out);
    refused("ends with .onnx is right", checkpoint, "-o", folder.resolve("out.safetensors"));
    refused("there is no file or folder", folder.resolve("none"), "-o", out);
    refused("the folder", checkpoint, "-o", folder.resolve("none").resolve("out.onnx"));
    Files.createDirectory(folder.resolve("out-tokenizer.json"));
    refused("out-tokenizer.json: it is a directory", checkpoint, "-o", out);
    Path int4 = folder.resolve("int4");
    Run.refused(
        folder,
        new String[] {"--tokenizer is for --calibration"},
        "quantize",
        checkpoint,
        "-o",
        int4,
        "--to=compressed-tensors",
        "--tokenizer=t.json");
    Run.refused(
        folder,
        new String[] {"--calibration is for integers"},
        "quantize",
        checkpoint,
        "-o",
        int4,
        "--to=bfloat16",
        "--calibration",
        texts);
    Files.delete(checkpoint.resolve("config.json"));
    refused("export is for .onnx models and folders", checkpoint, "-o", out);
  }

  private void refused(String word, Object... args) {
    Object[] all = new Object[args.length + 1];
    all[0] = "export";
    System.arraycopy(args, 0, all, 1, args.length);
    Run.refused(folder, new String[] {word}, all);
  }
}
