package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.torch.Libtorch;
import org.espalier.torch.onnx.OnnxRuntime;
import org.espalier.transformers.SmallCheckpoint;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Folders of an encoder and a decoder, as two models that are measured, quantized and pruned. */
class ExportPairsTest {
  private static final int EXAMPLES = 24;
  private static final int READ = 8;
  private static final int ANSWERED = 6;

  private static final List<String> FORMS = List.of("onnx-dynamic", "onnx-int8", "onnx-int4");

  @TempDir private Path folder;
  private Path checkpoint;
  private Path texts;

  @BeforeEach
  void makeFolder() throws IOException {
    Libtorch.load();
    checkpoint = Files.createDirectory(folder.resolve("checkpoint"));
    SmallLanguage.write(checkpoint);
    texts = Files.write(folder.resolve("texts.txt"), SmallLanguage.texts(40, 8));
  }

  private Path export(String part) {
    Path onnx = folder.resolve(part + ".onnx");
    Run.of("export", checkpoint, "-o", onnx, "--part", part).done();
    return onnx;
  }

  @Test
  void partsAreNamed() throws IOException {
    SmallCheckpoint.writePair(checkpoint, "marian");
    Path out = folder.resolve("out.onnx");
    String[] said = {
      "is of an encoder and a decoder (model_type marian)", "by --part encoder or --part decoder"
    };
    Run.refused(folder, said, "export", checkpoint, "-o", out);
    Run.refused(folder, said, "export", checkpoint, "-o", out, "--part", "text");
    Run.refused(folder, said, "quantize", checkpoint, "-o", out, "--to", "onnx-int8");
    Run.refused(folder, said, "evaluate", checkpoint, checkpoint, "--texts", texts);
    JsonNode json = Run.of("export", checkpoint, "-o", out, "--part", "encoder", "--json").json();
    assertEquals(folder.resolve("out-tokenizer.json").toString(), json.path("tokenizer").asText());
  }

  /** Recipes train an encoder to follow itself on texts, and a decoder on tensors. */
  @Test
  void partsAreTrained() throws Exception {
    SmallCheckpoint.writePair(checkpoint, "marian");
    Path encoder = export("encoder");
    Path decoder = export("decoder");
    examples(OnnxModel.read(encoder), 2);
    Map<String, String> data =
        Map.of(
            "encoder", "texts: checkpoint/texts.txt, train: 100, validation: 8, evaluation: 16",
            "decoder", "examples: examples.safetensors, validation: 4, evaluation: 8");
    for (String part : data.keySet()) {
      Path recipe = folder.resolve(part + ".yaml");
      Files.writeString(
          recipe,
          """
          model: {file: %s.onnx}
          data: {%s}
          stages:
            - {kind: quantize, steps: 3, batch: 4}
          export: {formats: [onnx]}
          """
              .formatted(part, data.get(part)));
      Path out = folder.resolve(part);
      Run.of("compress", recipe, "-o", out).done();
      Path int8 = out.resolve("model-int8.onnx");
      if (part.equals("encoder")) {
        close("trained", cosine(encoder, int8));
      } else {
        double error = error("logits", decoder, int8, folder.resolve("examples.safetensors"));
        assertTrue(error > 0 && error < 0.1, "trained: " + error);
      }
    }
  }

  /** What hears and writes needs tensors, of which an encoder takes one. */
  @Test
  void whisperTakesFeatures() throws IOException {
    SmallCheckpoint.writePair(checkpoint, "whisper");
    Path encoder = export("encoder");
    long[] features = {EXAMPLES, 5, 14};
    FloatBuffer values = FloatBuffer.allocate(EXAMPLES * 5 * 14);
    Random random = new Random(3);
    while (values.hasRemaining()) {
      values.put((float) random.nextGaussian());
    }
    Tensor tensor = torch.tensor(values.array()).reshape(features);
    Path examples = folder.resolve("features.safetensors");
    RawSafetensors.write(examples, Map.of(), Map.of(spec("input_features", tensor), bytes(tensor)));
    for (String form : FORMS) {
      Path fitted = quantized(encoder, form, "--calibration", examples);
      double error = error("last_hidden_state", encoder, fitted, examples);
      assertTrue(error > 0 && error < (form.endsWith("int4") ? 0.2 : 0.05), form + ": " + error);
    }
    Path decoder = export("decoder");
    Run.refused(
        folder,
        new String[] {"past_key_values.", ".encoder.", "holds what an encoder read"},
        "evaluate",
        decoder,
        decoder,
        "--texts",
        texts,
        "--tokenizer",
        checkpoint.resolve("tokenizer.json"));
    quantized(decoder, "onnx-int8", "--calibration", "none");
  }

  @ParameterizedTest
  @ValueSource(strings = {"marian", "bart", "t5"})
  void encodersAreQuantizedAndPruned(String type) throws IOException {
    SmallCheckpoint.writePair(checkpoint, type);
    Path encoder = export("encoder");
    for (String form : FORMS) {
      close(form, cosine(encoder, quantized(encoder, form, "--calibration", texts)));
      close(form + " alone", cosine(encoder, quantized(encoder, form, "--calibration", "none")));
    }
    Path pruned = folder.resolve("pruned.onnx");
    Run.of("prune", encoder, "-o", pruned, "--channels", "0.2", "--calibration", texts).done();
    close("prune", cosine(encoder, pruned));
  }

  private static void close(String how, double cosine) {
    assertTrue(cosine > 0.95 && cosine < 1, how + ": " + cosine);
  }

  private double cosine(Path reference, Path candidate) {
    JsonNode json = Run.of("evaluate", reference, candidate, "--texts", texts, "--json").json();
    assertTrue(json.path("cosine_mean").isNumber(), json.toString());
    return json.path("cosine_mean").asDouble();
  }

  private Path quantized(Path model, String form, Object... more) {
    Path out = folder.resolve(form + ".onnx");
    List<Object> args = new ArrayList<>(List.of("quantize", model, "-o", out, "--to", form));
    args.addAll(List.of(more));
    if (!form.equals("onnx-dynamic")) {
      args.addAll(List.of("--block", 16));
    } else if (!ExactProducts.areHere()) {
      args.add("--unsigned-weights");
    }
    Run.of(args.toArray()).done();
    return out;
  }

  @ParameterizedTest
  @ValueSource(strings = {"marian", "bart", "t5"})
  void decodersAreQuantizedAndPruned(String type) throws Exception {
    SmallCheckpoint.writePair(checkpoint, type);
    Path decoder = export("decoder");
    Path examples = examples(OnnxModel.read(export("encoder")), 0);
    for (String form : FORMS) {
      Path fitted = quantized(decoder, form, "--calibration", examples);
      double error = error("logits", decoder, fitted, examples);
      assertTrue(error > 0 && error < (form.endsWith("int4") ? 0.2 : 0.05), form + ": " + error);
      error = error("logits", decoder, quantized(decoder, form, "--calibration", "none"), examples);
      assertTrue(error > 0 && error < (form.endsWith("int4") ? 0.3 : 0.1), form + ": " + error);
    }
    Path pruned = folder.resolve("pruned.onnx");
    for (String[] how : new String[][] {{"--channels", "0.3"}, {"--amount", "0.2"}}) {
      List<Object> args = new ArrayList<>(List.of("prune", decoder, "-o", pruned));
      args.addAll(List.of(how));
      if (how[0].equals("--channels")) {
        args.addAll(List.of("--calibration", examples));
      }
      Run.of(args.toArray()).done();
      double error = error("logits", decoder, pruned, examples);
      assertTrue(error > 0 && error < 0.7, how[0] + ": " + error);
    }
  }

  private static double error(String output, Path reference, Path candidate, Path examples) {
    JsonNode json =
        Run.of("evaluate", reference, candidate, "--examples", examples, "--json").json();
    assertEquals(output, json.path("outputs").path(0).path("name").asText(), json.toString());
    return json.path("outputs").path(0).path("relative_error").asDouble();
  }

  /**
   * What a decoder is fed of random texts and answers, with what the encoder gives.
   *
   * @param past how many tokens were read before, of keys and values that some have
   */
  private Path examples(OnnxModel encoder, int past) throws Exception {
    Tensor ids = tokens(READ, 1);
    Tensor mask = torch.ones(EXAMPLES, READ).to(ScalarType.Long);
    Map<String, Tensor> given =
        OnnxRuntime.run(encoder, Map.of("input_ids", ids, "attention_mask", mask));
    Map<String, Tensor> fed = new HashMap<>();
    fed.put("input_ids", tokens(ANSWERED, 2));
    fed.put("encoder_attention_mask", mask);
    given.forEach(
        (name, value) -> {
          if (name.startsWith("present.")) {
            String input = name.replace("present.", "past_key_values.");
            fed.put(input, value);
            fed.put(input.replace(".encoder.", ".decoder."), value.narrow(2, 0, past));
          }
        });
    Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
    fed.forEach((name, value) -> tensors.put(spec(name, value), bytes(value)));
    Path file = folder.resolve("examples.safetensors");
    RawSafetensors.write(file, Map.of(), tensors);
    return file;
  }

  private static Tensor tokens(int length, long seed) {
    Random random = new Random(seed);
    long[] ids = random.longs((long) EXAMPLES * length, 1, SmallLanguage.VOCABULARY).toArray();
    return torch.tensor(ids).reshape(EXAMPLES, length);
  }

  private static TensorSpec spec(String name, Tensor value) {
    List<Long> shape = new ArrayList<>();
    for (long i = 0; i < value.dim(); i++) {
      shape.add(value.size(i));
    }
    boolean whole = value.scalar_type().intern() == ScalarType.Long;
    return new TensorSpec(name, whole ? SafetensorsDtype.I64 : SafetensorsDtype.F32, shape);
  }

  private static byte[] bytes(Tensor value) {
    ByteBuffer bytes = ByteBuffer.allocate((int) value.nbytes()).order(ByteOrder.LITTLE_ENDIAN);
    if (value.scalar_type().intern() == ScalarType.Long) {
      long[] whole = new long[(int) value.numel()];
      new LongPointer(value.contiguous().data_ptr()).get(whole);
      bytes.asLongBuffer().put(whole);
    } else if (value.numel() > 0) {
      float[] floats = new float[(int) value.numel()];
      new FloatPointer(value.contiguous().data_ptr()).get(floats);
      bytes.asFloatBuffer().put(FloatBuffer.wrap(floats));
    }
    return bytes.array();
  }
}
