package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.espalier.cli.SmallLanguage;
import org.espalier.compress.LinearFitting.Fitted;
import org.espalier.compress.LinearForm;
import org.espalier.compress.Progress;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleFile;
import org.espalier.evaluate.TextActivations;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.transformers.SmallCheckpoint;
import org.espalier.transformers.TransformersModel;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models run segment by segment, and their weights are fitted as they are where the whole model runs at once. */
class CalibratedLinearsTest {
  @TempDir private Path folder;

  private OnnxModel model(String type) throws IOException {
    switch (type) {
      case "llama" -> SmallCheckpoint.writeLanguageModel(folder, SmallLanguage.VOCABULARY);
      case "gpt2", "phi3", "gemma3_text", "mixtral", "qwen2_moe" ->
          SmallCheckpoint.writeLanguageModel(folder, type);
      case "vit" -> SmallCheckpoint.writeImageModel(folder, type);
      default -> SmallCheckpoint.writeTextEncoder(folder, type);
    }
    return TransformersModel.read(folder, note -> {});
  }

  private ActivationSource examples(String type, OnnxModel model) {
    Random random = new Random(3);
    if (type.equals("vit")) {
      ByteBuffer pixels = ByteBuffer.allocate(4 * 10 * 3 * 25 * 25).order(ByteOrder.LITTLE_ENDIAN);
      while (pixels.hasRemaining()) {
        pixels.putFloat((float) random.nextGaussian());
      }
      Path file = folder.resolve("pixels.safetensors");
      TensorSpec spec =
          new TensorSpec("pixel_values", SafetensorsDtype.F32, List.of(10L, 3L, 25L, 25L));
      RawSafetensors.write(file, Map.of(), Map.of(spec, pixels.array()));
      return new ExampleActivations(ExampleFile.read(file, model, 10), 1);
    }
    List<Tokens> texts = new ArrayList<>();
    for (int i = 0; i < 40; i++) {
      int n = 4 + random.nextInt(12);
      long[] mask = new long[n];
      Arrays.fill(mask, 1);
      long[] ids = random.longs(n, 0, SmallLanguage.VOCABULARY).toArray();
      texts.add(new Tokens(ids, mask, new long[n], new int[n]));
    }
    return new TextActivations(1, texts);
  }

  private static Set<String> linears(OnnxModel model) {
    return OnnxWeights.of(model).stream()
        .filter(
            w ->
                w.uses().stream().anyMatch(u -> u.kind() == OnnxWeight.Kind.MATMUL)
                    && !w.name().startsWith("lm_head"))
        .map(OnnxWeight::name)
        .collect(Collectors.toSet());
  }

  /** What products read is the same in segments of one product each, whatever passes from one to the others. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "llama",
        "gpt2",
        "phi3",
        "gemma3_text",
        "mixtral",
        "qwen2_moe",
        "deberta-v2",
        "mpnet",
        "vit"
      })
  void segmentsComputeWhatTheModelDoes(String type) throws IOException {
    OnnxModel model = model(type);
    ActivationSource source = examples(type, model);
    Set<String> weights = linears(model);
    Map<String, List<float[]>> seen = new TreeMap<>();
    ActivationSource from = source;
    List<ValueInfoProto> inputs = model.inputs();
    for (ModelSegments.Segment s : ModelSegments.of(model, weights, 1)) {
      OnnxModel part = model.part(s.nodes(), inputs);
      part.check();
      Set<String> read = new TreeSet<>();
      for (NodeProto n : s.nodes()) {
        if (n.getOpType().equals("MatMul") && isLinear(part, n)) {
          read.add(n.getInput(0));
        }
      }
      read.removeAll(seen.keySet());
      ActivationSource.Held held = from.hold(part, read, into(seen), s.held());
      assertEquals(source.count(), held.count());
      inputs = s.held().isEmpty() ? List.of() : held.values();
      assertEquals(
          s.held(), inputs.stream().map(ValueInfoProto::getName).collect(Collectors.toSet()));
      from = held;
    }
    assertTrue(seen.size() >= 7, seen.keySet().toString());
    Map<String, List<float[]>> whole = new TreeMap<>();
    source.run(model, seen.keySet(), into(whole));
    assertEquals(whole.keySet(), seen.keySet());
    seen.forEach(
        (value, all) -> {
          assertEquals(source.count(), all.size());
          for (int i = 0; i < all.size(); i++) {
            assertArrayEquals(whole.get(value).get(i), all.get(i), 2e-5f, value);
          }
        });
  }

  private static boolean isLinear(OnnxModel part, NodeProto product) {
    NodeProto turned = part.producers().get(product.getInput(1));
    return part.initializer(product.getInput(1)) != null
        || turned != null && part.initializer(turned.getInput(0)) != null;
  }

  private static ActivationSource.Receiver into(Map<String, List<float[]>> all) {
    return (activation, shape, values) -> {
      float[] copy = new float[values.remaining()];
      values.get(copy);
      all.computeIfAbsent(activation, a -> new ArrayList<>()).add(copy);
    };
  }

  /** Rounding differs by what fused nodes round otherwise: here and there an integer is the next one. */
  @ParameterizedTest
  @CsvSource({"llama, 1", "phi3, 40000", "gemma3_text, 1", "deberta-v2, 40000", "vit, 1"})
  void weightsAreFittedAsInTheWholeModel(String type, long segment) throws IOException {
    OnnxModel model = model(type);
    ActivationSource source = examples(type, model);
    Map<String, SafetensorsDtype> weights =
        linears(model).stream().collect(Collectors.toMap(w -> w, w -> SafetensorsDtype.F32));
    Map<String, Fitted> whole = fitted(model, source, weights, Long.MAX_VALUE);
    assertEquals(weights.keySet(), whole.keySet());
    Map<String, Fitted> cut = fitted(model, source, weights, segment);
    assertEquals(whole.keySet(), cut.keySet());
    whole.forEach(
        (name, w) -> {
          assertArrayEquals(w.scales(), cut.get(name).scales(), 1e-6f, name);
          int different = 0;
          for (int i = 0; i < w.integers().length; i++) {
            int apart = Math.abs(w.integers()[i] - cut.get(name).integers()[i]);
            assertTrue(apart <= 1, name);
            different += apart;
          }
          assertTrue(different <= 2 + w.integers().length / 200, name + ": " + different);
        });
  }

  private static Map<String, Fitted> fitted(
      OnnxModel model,
      ActivationSource source,
      Map<String, SafetensorsDtype> weights,
      long segment) {
    Map<String, Fitted> all = new TreeMap<>();
    new CalibratedLinears(model, source, Progress.NONE, segment)
        .fit(LinearForm.int4(0, true), weights, w -> assertNull(all.put(w.name(), w)));
    return all;
  }

  /** The same of what stays in a graph. */
  @ParameterizedTest
  @ValueSource(strings = {"llama", "gpt2", "mixtral", "vit"})
  void blocksAreFittedAsInTheWholeModel(String type) throws IOException {
    OnnxModel whole = model(type);
    ActivationSource source = examples(type, whole);
    OnnxModel cut = whole.copy();
    quantize(whole, source, Long.MAX_VALUE);
    quantize(cut, source, 1);
    int integers = 0;
    int different = 0;
    for (OnnxInitializer i : whole.initializers()) {
      if (i.type() == DataType.UINT8) {
        ByteBuffer expected = i.data();
        ByteBuffer actual = cut.initializer(i.name()).data();
        for (int k = 0; k < expected.limit(); k++) {
          integers += 1;
          different += expected.get(k) == actual.get(k) ? 0 : 1;
        }
      }
    }
    assertTrue(integers > 1000, integers + " bytes");
    assertTrue(different <= integers / 100, different + " of " + integers);
  }

  private static void quantize(OnnxModel model, ActivationSource source, long segment) {
    BlockQuantizer.Options options = new BlockQuantizer.Options(4, 16, false, w -> true);
    BlockQuantizer quantizer = new BlockQuantizer(model, options, segment);
    quantizer.calibrate(source);
    quantizer.apply();
  }
}
