package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertFalse;

import java.nio.file.Path;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.DoubleUnaryOperator;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

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
