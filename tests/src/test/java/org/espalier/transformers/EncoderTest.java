package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.DoubleUnaryOperator;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.transformers.TransformersModel.Part;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Text and image encoders of each kind give in ONNX Runtime and in libtorch what plain loops compute of the same weights. */
class EncoderTest {
  private static final int HIDDEN = SmallEncoder.HIDDEN;
  private static final int WORDS = SmallEncoder.WORDS;
  private static final int LABELS = SmallEncoder.LABELS;

  @TempDir private Path folder;

  private static SmallEncoder roberta() {
    SmallEncoder model = new SmallEncoder("xlm-roberta", "roberta.");
    model.parts = 1;
    model.settings = ", \"type_vocab_size\": 1, \"pad_token_id\": 1";
    model.padding = 1;
    model.firstPlace = 2;
    return model;
  }

  private static SmallEncoder distilbert() {
    SmallEncoder model = new SmallDistilBert();
    model.names = SmallEncoder.Layer.DISTIL;
    model.dtype = SafetensorsDtype.BF16;
    model.epsilon = 1e-12;
    model.parts = 0;
    return model;
  }

  /** A linear layer, what bends it, and another of the first token. */
  private static SmallEncoder classifying(
      SmallEncoder model, String architecture, String dense, String out, DoubleUnaryOperator bend) {
    return model.with(
        architecture,
        w -> {
          w.linear(dense, HIDDEN, HIDDEN, true);
          w.linear(out, HIDDEN, LABELS, true);
        },
        (w, x) -> {
          double[] bent = SmallCheckpoint.each(w.linear(dense, x[0]), bend);
          return new double[][] {w.linear(out, bent)};
        });
  }

  private static SmallEncoder tagging(SmallEncoder model, String architecture) {
    return model.with(
        architecture,
        w -> w.linear("classifier", HIDDEN, LABELS, true),
        (w, x) -> SmallEncoder.each(x, row -> w.linear("classifier", row)));
  }

  /** The table of words is the decoder's weight. */
  private static SmallEncoder filling(
      SmallEncoder model,
      String architecture,
      String dense,
      String norm,
      String bias,
      DoubleUnaryOperator bend) {
    Consumer<SmallCheckpoint> weights =
        w -> {
          w.linear(dense, HIDDEN, model.rowWidth(), true);
          w.norm(norm, model.rowWidth(), true);
          w.add(bias, 0, 0.3, WORDS);
        };
    return model.with(
        architecture,
        weights,
        (w, x) ->
            SmallEncoder.each(
                x,
                row -> {
                  double[] bent = SmallCheckpoint.each(w.linear(dense, row), bend);
                  double[] normed = w.layerNorm(norm, bent, model.epsilon);
                  float[] table = w.get(model.base + "embeddings.word_embeddings.weight");
                  double[] logits = ReferenceDecoder.byWords(table, normed);
                  for (int i = 0; i < logits.length; i++) {
                    logits[i] += w.get(bias)[i];
                  }
                  return logits;
                }));
  }

  @Test
  void bert() throws Exception {
    SmallEncoder model = new SmallEncoder("bert", "");
    model.headWeights = w -> w.linear("pooler.dense", HIDDEN, HIDDEN, true);
    model.unused = Set.of("pooler.dense.bias", "pooler.dense.weight");
    model.compare(folder);
  }

  @Test
  void bertThatClassifies() throws Exception {
    SmallEncoder model = new SmallEncoder("bert", "bert.");
    model.settings = ", \"hidden_act\": \"gelu_new\"";
    model.activation = SmallCheckpoint::geluNew;
    classifying(
            model, "BertForSequenceClassification", "bert.pooler.dense", "classifier", Math::tanh)
        .compare(folder);
  }

  @Test
  void bertThatFillsIn() throws Exception {
    String head = "cls.predictions.transform.";
    filling(
            new SmallEncoder("bert", "bert."),
            "BertForMaskedLM",
            head + "dense",
            head + "LayerNorm",
            "cls.predictions.bias",
            SmallCheckpoint::gelu)
        .compare(folder);
  }

  /** A checkpoint without the head that its configuration names gives states. */
  @Test
  void bertWithoutItsHead() throws Exception {
    SmallEncoder model = new SmallEncoder("bert", "");
    model.architecture = "BertForMaskedLM";
    model.compare(folder);
  }

  /** Of a head that is not known states come out, and that is told. */
  @Test
  void bertOfAnotherHead() throws Exception {
    SmallEncoder model = new SmallEncoder("bert", "bert.");
    model.architecture = "BertForMultipleChoice";
    model.headWeights = w -> w.linear("classifier", HIDDEN, 1, true);
    model.weights().write(folder, model.config());
    List<String> notes = new ArrayList<>();
    OnnxModel read = TransformersModel.read(folder, notes::add);
    assertEquals("last_hidden_state", read.outputs().get(0).getName());
    assertEquals(
        "the head that BertForMultipleChoice has is not made here: states come out", notes.get(0));
    assertTrue(notes.get(1).contains("classifier.weight"), notes.get(1));
  }

  /** Positions begin behind that of the padding, and padding has its own. */
  @Test
  void robertaThatClassifies() throws Exception {
    classifying(
            roberta(),
            "XLMRobertaForSequenceClassification",
            "classifier.dense",
            "classifier.out_proj",
            Math::tanh)
        .compare(folder);
  }

  @Test
  void robertaThatFillsIn() throws Exception {
    filling(
            roberta(),
            "XLMRobertaForMaskedLM",
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.bias",
            SmallCheckpoint::gelu)
        .compare(folder);
  }

  @Test
  void distilbertThatTags() throws Exception {
    tagging(distilbert(), "DistilBertForTokenClassification").compare(folder);
  }

  @Test
  void distilbertThatFillsIn() throws Exception {
    filling(
            distilbert(),
            "DistilBertForMaskedLM",
            "vocab_transform",
            "vocab_layer_norm",
            "vocab_projector.bias",
            SmallCheckpoint::gelu)
        .compare(folder);
  }

  @Test
  void electraThatClassifies() throws Exception {
    classifying(
            new SmallElectra(),
            "ElectraForSequenceClassification",
            "classifier.dense",
            "classifier.out_proj",
            SmallCheckpoint::gelu)
        .compare(folder);
  }

  @Test
  void electraThatFillsIn() throws Exception {
    filling(
            new SmallElectra(),
            "ElectraForMaskedLM",
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
            SmallCheckpoint::gelu)
        .compare(folder);
  }

  /** Of each token two numbers: that an answer begins there, and that it ends there. */
  private static SmallEncoder answering(SmallEncoder model, String architecture) {
    return model.with(
        architecture,
        w -> w.linear("qa_outputs", HIDDEN, 2, true),
        (w, x) -> SmallEncoder.each(x, row -> w.linear("qa_outputs", row)));
  }

  @Test
  void robertaThatAnswers() throws Exception {
    answering(roberta(), "XLMRobertaForQuestionAnswering").compare(folder);
  }

  @Test
  void distilbertThatAnswers() throws Exception {
    answering(distilbert(), "DistilBertForQuestionAnswering").compare(folder);
  }

  @Test
  void modernbertThatAnswers() throws Exception {
    SmallModernBert model = new SmallModernBert("model.", "");
    model
        .with(
            "ModernBertForQuestionAnswering",
            w -> {
              model.addHead(w);
              w.linear("classifier", HIDDEN, 2, true);
            },
            (w, x) -> SmallEncoder.each(x, row -> w.linear("classifier", model.headOf(w, row))))
        .compare(folder);
  }

  @Test
  void mpnet() throws Exception {
    new SmallMpNet("").compare(folder);
  }

  @Test
  void mpnetThatClassifies() throws Exception {
    classifying(
            new SmallMpNet("mpnet."),
            "MPNetForSequenceClassification",
            "classifier.dense",
            "classifier.out_proj",
            Math::tanh)
        .compare(folder);
  }

  @Test
  void debertaThatClassifies() throws Exception {
    classifying(
            new SmallDeberta(true, 8),
            "DebertaV2ForSequenceClassification",
            "pooler.dense",
            "classifier",
            SmallCheckpoint::gelu)
        .compare(folder);
  }

  /** With projections of distances of their own, and all distances told apart. */
  @Test
  void debertaThatTags() throws Exception {
    tagging(new SmallDeberta(false, -1), "DebertaV2ForTokenClassification").compare(folder);
  }

  @Test
  void modernbert() throws Exception {
    new SmallModernBert("", "").compare(folder);
  }

  @Test
  void modernbertThatClassifies() throws Exception {
    SmallModernBert model = new SmallModernBert("model.", ", \"classifier_pooling\": \"mean\"");
    model
        .with(
            "ModernBertForSequenceClassification",
            w -> {
              model.addHead(w);
              w.linear("classifier", HIDDEN, LABELS, true);
            },
            (w, x) -> {
              double[] mean = new double[HIDDEN];
              for (double[] row : x) {
                mean = SmallCheckpoint.plus(mean, SmallCheckpoint.each(row, v -> v / x.length));
              }
              return new double[][] {w.linear("classifier", model.headOf(w, mean))};
            })
        .compare(folder);
  }

  @Test
  void modernbertThatTags() throws Exception {
    SmallModernBert model = new SmallModernBert("model.", "");
    model
        .with(
            "ModernBertForTokenClassification",
            w -> {
              model.addHead(w);
              w.linear("classifier", HIDDEN, LABELS, true);
            },
            (w, x) -> SmallEncoder.each(x, row -> w.linear("classifier", model.headOf(w, row))))
        .compare(folder);
  }

  @Test
  void modernbertThatFillsIn() throws Exception {
    SmallModernBert model = new SmallModernBert("model.", "");
    model
        .with(
            "ModernBertForMaskedLM",
            w -> {
              model.addHead(w);
              w.add("decoder.bias", 0, 0.3, WORDS);
            },
            (w, x) ->
                SmallEncoder.each(
                    x,
                    row -> {
                      float[] table = w.get("model.embeddings.tok_embeddings.weight");
                      double[] logits = ReferenceDecoder.byWords(table, model.headOf(w, row));
                      for (int i = 0; i < logits.length; i++) {
                        logits[i] += w.get("decoder.bias")[i];
                      }
                      return logits;
                    }))
        .compare(folder);
  }

  @Test
  void vit() throws Exception {
    new SmallVision("", false).compare(folder);
  }

  @Test
  void vitThatClassifies() throws Exception {
    new SmallVision("vit.", true).compare(folder);
  }

  private static SmallVision deit(boolean classifies) {
    SmallVision model = new SmallVision("deit", classifies ? "deit." : "", classifies);
    model.learned = List.of("cls_token", "distillation_token");
    model.architecture = classifies ? "DeiTForImageClassification" : "DeiTModel";
    return model;
  }

  @Test
  void deit() throws Exception {
    deit(false).compare(folder);
  }

  @Test
  void deitThatClassifies() throws Exception {
    deit(true).compare(folder);
  }

  /** The mean of what the two heads give. */
  @Test
  void deitThatFollowsATeacher() throws Exception {
    SmallVision model =
        new SmallVision("deit", "deit.", true) {
          @Override
          void addHead(SmallCheckpoint w) {
            w.linear("cls_classifier", HIDDEN, LABELS, true);
            w.linear("distillation_classifier", HIDDEN, LABELS, true);
          }

          @Override
          double[] logits(SmallCheckpoint w, double[][] x) {
            double[] sum =
                SmallCheckpoint.plus(
                    w.linear("cls_classifier", x[0]), w.linear("distillation_classifier", x[1]));
            return SmallCheckpoint.each(sum, v -> v / 2);
          }
        };
    model.learned = deit(true).learned;
    model.architecture = "DeiTForImageClassificationWithTeacher";
    model.compare(folder);
  }

  @Test
  void dinov2() throws Exception {
    new SmallDinov2(0, false, false).compare(folder);
  }

  @Test
  void dinov2ThatIsGatedAndClassifies() throws Exception {
    new SmallDinov2(0, true, true).compare(folder);
  }

  /** Positions follow the size that images are made in, each side for itself. */
  @ParameterizedTest
  @CsvSource({"17, 33", "40, 40", "12, 9", "25, 24"})
  void dinov2OfAnotherSize(int height, int width) throws Exception {
    new SmallDinov2(0, false, true).of(folder, height, width).compare(folder);
    HostileConfigs.areRefusedOrRead(folder, "preprocessor_config.json", null);
    List<String> notes = new ArrayList<>();
    TransformersModel.read(folder, notes::add);
    assertEquals(2, notes.size(), "of what is not used, and of positions that are resampled");
  }

  @Test
  void dinov2WithRegisters() throws Exception {
    new SmallDinov2(3, false, false).compare(folder);
  }

  @ParameterizedTest
  @CsvSource({"17, 33", "40, 40", "12, 9", "24, 25"})
  void dinov2WithRegistersOfAnotherSize(int height, int width) throws Exception {
    new SmallDinov2(3, true, true).of(folder, height, width).compare(folder);
  }

  @ParameterizedTest
  @ValueSource(strings = {"Model", "ModelWithProjection"})
  void imagesOfClip(String end) throws Exception {
    new SmallClipImage(end).compare(folder);
  }

  /** With and without a projection of the token that ends a text, or of the largest. */
  @ParameterizedTest
  @ValueSource(ints = {-1, 2, 7, 8})
  void textsOfClip(int end) throws Exception {
    new SmallClipText(end).compare(folder);
  }

  /** By a query that learned what to see; without it; or by the mean. */
  @ParameterizedTest
  @CsvSource({"false, true", "false, false", "true, false"})
  void imagesOfSiglip(boolean classifies, boolean pools) throws Exception {
    new SmallSiglipImage(classifies, pools).compare(folder);
  }

  /** Texts of each length are filled up to one, and the last token is the text's. */
  @ParameterizedTest
  @ValueSource(ints = {0, 1})
  void textsOfSiglip(int filling) throws Exception {
    new SmallSiglipText(filling).compare(folder);
  }

  /** What the tokenizer fills texts up with counts more than what the model's settings say. */
  @Test
  void tokenizerOfSiglip() throws Exception {
    SmallSiglipText model =
        new SmallSiglipText(4) {
          @Override
          String config() {
            return super.config().replace("\"pad_token_id\": 4", "\"pad_token_id\": 1");
          }
        };
    Files.writeString(
        folder.resolve("tokenizer_config.json"),
        """
        {"pad_token": {"content": "<fill>"}, "added_tokens_decoder":
         {"x": {"content": "<fill>"}, "3": {"content": "<end>"}, "4": {"content": "<fill>"}}}
        """);
    model.compare(folder);
    HostileConfigs.areRefusedOrRead(folder, "tokenizer_config.json", null);
  }

  @Test
  void partsOfSiglip() throws Exception {
    SmallClip.writeSiglip(folder.resolve("both"));
    SmallEncoder[] parts = {new SmallSiglipText(1), new SmallSiglipImage(false, true)};
    for (Part part : List.of(Part.TEXT, Part.IMAGE)) {
      SmallEncoder alone = parts[part.ordinal()];
      Path other = folder.resolve(part.name());
      alone.weights().write(other, alone.config());
      String output = part == Part.TEXT ? "text_embeds" : "image_embeds";
      partIs(TransformersModel.read(other, note -> {}), part, output);
    }
  }

  /** What of a model of two encoders is read is the same as the encoder alone. */
  @Test
  void partsOfClip() throws Exception {
    SmallClip.write(folder.resolve("both"));
    for (Part part : List.of(Part.TEXT, Part.IMAGE)) {
      boolean text = part == Part.TEXT;
      SmallEncoder alone = text ? new SmallClipText(7) : new SmallClipImage("ModelWithProjection");
      Path other = folder.resolve(part.name());
      alone.weights().write(other, alone.config());
      partIs(
          TransformersModel.read(other, note -> {}), part, text ? "text_embeds" : "image_embeds");
    }
  }

  private void partIs(OnnxModel alone, Part part, String output) throws IOException {
    List<String> notes = new ArrayList<>();
    OnnxModel read = TransformersModel.read(folder.resolve("both"), part, notes::add);
    assertEquals(alone.nodes(), read.nodes());
    for (OnnxInitializer tensor : alone.initializers()) {
      assertEquals(tensor.data(), read.initializer(tensor.name()).data(), tensor.name());
    }
    assertEquals(List.of(output), read.outputs().stream().map(ValueInfoProto::getName).toList());
    assertEquals(1, notes.size());
    String of = "the " + part.name().toLowerCase(Locale.ROOT) + " part of ";
    assertTrue(notes.get(0).contains(of), notes.get(0));
    HostileConfigs.areRefusedOrRead(folder.resolve("both"), "config.json", part);
  }

  @Test
  void clipThatClassifiesImages() throws Exception {
    new SmallClipImage("ForImageClassification").compare(folder);
  }

  /** As TensorFlow called the parameters of norms. */
  @Test
  void oldNamesOfNorms() throws Exception {
    SmallEncoder model =
        new SmallEncoder("bert", "") {
          @Override
          SmallCheckpoint stored(SmallCheckpoint weights) {
            SmallCheckpoint old =
                weights
                    .renamed("LayerNorm.weight", "LayerNorm.gamma")
                    .renamed("LayerNorm.bias", "LayerNorm.beta");
            assertFalse(old.has("embeddings.LayerNorm.weight"));
            return old;
          }
        };
    model.compare(folder);
  }
}
