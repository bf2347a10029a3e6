package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Pooling and linear layers behind it, as LaBSE, sentence-T5 and EmbeddingGemma have them, against plain loops. */
class SentenceEmbeddingTest {
  private static final int HIDDEN = SmallEncoder.HIDDEN;
  private static final int MIDDLE = 20;
  private static final int OUT = 12;
  private static final String PACKAGE = "sentence_transformers.models.";
  private static final String TANH = "torch.nn.modules.activation.Tanh";
  private static final String IDENTITY = "torch.nn.modules.linear.Identity";

  @TempDir private Path folder;
  private final SmallEncoder model = new SmallEncoder("bert", "");
  private SmallCheckpoint weights;
  private SmallCheckpoint wide;
  private SmallCheckpoint narrow;

  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  @BeforeEach
  void makeCheckpoint() throws IOException {
    weights = model.weights();
    weights.write(folder, model.config());
    modules("Transformer", "Pooling", "Dense", "Dense", "Normalize");
  }

  private void modules(String... kinds) throws IOException {
    List<String> all = new ArrayList<>();
    for (int i = 0; i < kinds.length; i++) {
      String path = i == 0 ? "" : i + "_" + kinds[i];
      all.add(
          "{\"idx\": %d, \"name\": \"%d\", \"path\": \"%s\", \"type\": \"%s\"}"
              .formatted(i, i, path, PACKAGE + kinds[i]));
    }
    Files.writeString(folder.resolve("modules.json"), all.toString());
  }

  private void pooling(String config) throws IOException {
    Files.createDirectories(folder.resolve("1_Pooling"));
    Files.writeString(folder.resolve("1_Pooling/config.json"), config);
  }

  private SmallCheckpoint dense(int place, int in, int out, boolean bias, String activation)
      throws IOException {
    SmallCheckpoint own = new SmallCheckpoint(place, SafetensorsDtype.F32);
    own.linear("linear", in, out, bias);
    own.write(
        folder.resolve(place + "_Dense"),
        "{\"in_features\": %d, \"out_features\": %d, \"bias\": %s, \"activation_function\": \"%s\"}"
            .formatted(in, out, bias, activation));
    return own;
  }

  private void layers(int pooled) throws IOException {
    wide = dense(2, pooled, MIDDLE, true, TANH);
    narrow = dense(3, MIDDLE, OUT, false, IDENTITY);
  }

  private static double[] pooled(String mode, double[][] x) {
    double[] sum = new double[HIDDEN];
    double weights = 0;
    for (int t = 0; t < x.length; t++) {
      double weight = mode.equals("weightedmean") ? t + 1 : 1;
      weights += weight;
      for (int i = 0; i < HIDDEN; i++) {
        sum[i] =
            mode.equals("max")
                ? t == 0 ? x[t][i] : Math.max(sum[i], x[t][i])
                : sum[i] + weight * x[t][i];
      }
    }
    double by =
        switch (mode) {
          case "max" -> 1;
          case "mean_sqrt_len_tokens" -> Math.sqrt(x.length);
          default -> weights;
        };
    return switch (mode) {
      case "cls" -> x[0];
      case "lasttoken" -> x[x.length - 1];
      default -> SmallCheckpoint.each(sum, v -> v / by);
    };
  }

  private double[] embedding(List<String> modes, int[] text) {
    double[][] states = model.states(weights, text);
    double[] x =
        modes.stream().flatMapToDouble(mode -> Arrays.stream(pooled(mode, states))).toArray();
    return behind(x);
  }

  /** What the linear layers make of a pooled state, scaled to length 1. */
  private double[] behind(double[] x) {
    double[] y =
        narrow.linear("linear", SmallCheckpoint.each(wide.linear("linear", x), Math::tanh));
    double length = Math.sqrt(SmallCheckpoint.dot(y, 0, y, 0, OUT));
    return SmallCheckpoint.each(y, v -> v / length);
  }

  private void compare(List<String> modes) throws Exception {
    List<String> notes = new ArrayList<>();
    OnnxModel read = TransformersModel.read(folder, notes::add);
    assertEquals(List.of(), notes);
    assertEquals(Set.of("sentence_embedding"), read.outputNames());
    assertEquals(3, read.files().size());
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(read.copy())) {
      Map<String, Tensor> inputs = model.inputs();
      Tensor trained = graph.forward(inputs).get("sentence_embedding");
      for (Tensor output :
          List.of(OnnxRuntime.run(read, inputs).get("sentence_embedding"), trained)) {
        for (int i = 0; i < SmallEncoder.TEXTS.length; i++) {
          double[] expected = embedding(modes, SmallEncoder.TEXTS[i]);
          Tensor row = output.select(0, i);
          assertEquals(OUT, row.numel());
          for (int k = 0; k < OUT; k++) {
            assertEquals(expected[k], row.select(0, k).item_double(), 1e-4, modes + " text " + i);
          }
        }
      }
      trained.sum().backward();
      Set<String> learning =
          graph.parameters().stream()
              .filter(p -> p.tensor().grad().abs().sum().item_double() > 0)
              .map(Parameter::name)
              .collect(Collectors.toSet());
      assertTrue(
          learning.containsAll(
              Set.of("2_Dense/linear.weight", "2_Dense/linear.bias", "3_Dense/linear.weight")),
          learning.toString());
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {"cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"})
  void eachPooling(String mode) throws Exception {
    pooling("{\"word_embedding_dimension\": 48, \"pooling_mode\": \"%s\"}".formatted(mode));
    layers(HIDDEN);
    compare(List.of(mode));
  }

  /** They lie in one order, whatever order names them. */
  @Test
  void severalPoolings() throws Exception {
    pooling(
        "{\"pooling_mode\": [\"lasttoken\", \"weightedmean\", \"mean_sqrt_len_tokens\","
            + " \"mean\", \"max\"]}");
    layers(5 * HIDDEN);
    compare(List.of("max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"));
  }

  /** What is behind the states does not depend on what made them: sentence-T5 and EmbeddingGemma. */
  @ParameterizedTest
  @ValueSource(strings = {"t5", "gemma3_text"})
  void behindOtherModels(String kind) throws Exception {
    Map<String, Tensor> inputs = model.inputs();
    inputs.remove("token_type_ids");
    if (kind.equals("t5")) {
      SmallT5 t5 = new SmallT5("relu");
      String config = t5.config().replace("T5ForConditionalGeneration", "T5EncoderModel");
      t5.weights().write(folder, config);
    } else {
      SmallGemma gemma = SmallGemma.gemma3(", \"use_bidirectional_attention\": true");
      gemma.weights().write(folder, gemma.config());
    }
    Files.move(folder.resolve("modules.json"), folder.resolve("none.json"));
    if (!kind.equals("t5")) {
      Path config = folder.resolve("config.json");
      Files.writeString(config, Files.readString(config).replace("ForCausalLM", "Model"));
    }
    Tensor states =
        OnnxRuntime.run(TransformersModel.read(folder, note -> {}), inputs)
            .get("last_hidden_state");
    Files.move(folder.resolve("none.json"), folder.resolve("modules.json"));
    pooling("{\"pooling_mode\": \"mean\"}");
    int width = (int) states.size(2);
    layers(width);
    OnnxModel read = TransformersModel.read(folder, note -> {});
    Tensor output = OnnxRuntime.run(read, inputs).get("sentence_embedding");
    for (int i = 0; i < SmallEncoder.TEXTS.length; i++) {
      double[] mean = new double[width];
      for (int t = 0; t < SmallEncoder.TEXTS[i].length; t++) {
        for (int k = 0; k < width; k++) {
          mean[k] +=
              states.select(0, i).select(0, t).select(0, k).item_double()
                  / SmallEncoder.TEXTS[i].length;
        }
      }
      double[] expected = behind(mean);
      for (int k = 0; k < OUT; k++) {
        assertEquals(expected[k], output.select(0, i).select(0, k).item_double(), 1e-4);
      }
    }
  }

  private void refused(String... words) {
    InputException e =
        assertThrows(InputException.class, () -> TransformersModel.read(folder, note -> {}));
    Stream.of(words).forEach(word -> assertTrue(e.getMessage().contains(word), e.getMessage()));
  }

  @Test
  void whatDoesNotFitIsRefused() throws IOException {
    pooling("{\"pooling_mode_mean_tokens\": true}");
    layers(HIDDEN + 1);
    refused("2_Dense", "in_features is 49", "48");
    dense(2, HIDDEN, MIDDLE, true, "torch.nn.modules.activation.Mish");
    refused("activation_function", "Mish", "Tanh");
    layers(HIDDEN);
    Files.delete(folder.resolve("3_Dense/model.safetensors"));
    refused("3_Dense", "model.safetensors");
    layers(HIDDEN);
    Files.writeString(
        folder.resolve("3_Dense/config.json"),
        "{\"in_features\": 20, \"out_features\": 13, \"bias\": false}");
    refused("3_Dense", "linear.weight", "[13, 20]");
  }

  /** Other modules are not computed: states come out, as of a model without any, and pooling is a matter of who reads them. */
  @Test
  void otherModulesLeaveTheStates() throws IOException {
    pooling("{\"pooling_mode_mean_tokens\": true}");
    layers(HIDDEN);
    modules("Transformer", "Pooling", "Dense", "LayerNorm");
    assertEquals(
        Set.of("last_hidden_state"), TransformersModel.read(folder, note -> {}).outputNames());
    modules("Transformer", "Dense", "Pooling");
    assertEquals(
        Set.of("last_hidden_state"), TransformersModel.read(folder, note -> {}).outputNames());
  }
}
