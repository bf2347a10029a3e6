package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.DoubleUnaryOperator;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Text encoders of each kind give in ONNX Runtime what plain loops compute of the same weights. */
class EncoderTest {
  private static final int HIDDEN = 24;
  private static final int INNER = 40;
  private static final int WORDS = 30;
  private static final int LAYERS = 2;
  private static final int HEADS = 3;
  private static final int PLACES = 20;
  private static final int LABELS = 3;

  /** 1 is RoBERTa's padding. */
  private static final int[][] TEXTS = {{3, 17, 2, 29, 8, 8, 21}, {5, 6, 7}, {28, 2, 19, 12, 10}};

  @TempDir private Path folder;

  /** The names of a layer's modules. */
  private record Layer(
      String path,
      String q,
      String k,
      String v,
      String out,
      String norm,
      String in,
      String down,
      String end) {
    static Layer bert(String base, int n) {
      String path = base + "encoder.layer." + n;
      String self = path + ".attention.self.";
      return new Layer(
          path,
          self + "query",
          self + "key",
          self + "value",
          path + ".attention.output.dense",
          path + ".attention.output.LayerNorm",
          path + ".intermediate.dense",
          path + ".output.dense",
          path + ".output.LayerNorm");
    }

    static Layer distil(String base, int n) {
      String path = base + "transformer.layer." + n;
      return new Layer(
          path,
          path + ".attention.q_lin",
          path + ".attention.k_lin",
          path + ".attention.v_lin",
          path + ".attention.out_lin",
          path + ".sa_layer_norm",
          path + ".ffn.lin1",
          path + ".ffn.lin2",
          path + ".output_layer_norm");
    }

    void add(SmallCheckpoint w) {
      for (String name : List.of(q, k, v, out)) {
        w.linear(name, HIDDEN, HIDDEN, true);
      }
      w.norm(norm, HIDDEN, true);
      w.linear(in, HIDDEN, INNER, true);
      w.linear(down, INNER, HIDDEN, true);
      w.norm(end, HIDDEN, true);
    }

    double[][] compute(
        SmallCheckpoint w, double[][] x, DoubleUnaryOperator activation, double epsilon) {
      int n = x.length;
      double[][] keys = new double[n][];
      double[][] values = new double[n][];
      for (int t = 0; t < n; t++) {
        keys[t] = w.linear(k, x[t]);
        values[t] = w.linear(v, x[t]);
      }
      double[][] y = new double[n][];
      int width = HIDDEN / HEADS;
      for (int t = 0; t < n; t++) {
        double[] seen = new double[HIDDEN];
        double[] query = w.linear(q, x[t]);
        for (int head = 0; head < HEADS; head++) {
          int at = head * width;
          SmallCheckpoint.attend(
              key -> SmallCheckpoint.dot(query, at, keys[key], at, width) / Math.sqrt(width),
              values,
              0,
              n,
              at,
              at,
              width,
              seen);
        }
        double[] first =
            w.layerNorm(norm, SmallCheckpoint.plus(x[t], w.linear(out, seen)), epsilon);
        double[] inner = w.linear(in, first);
        for (int i = 0; i < INNER; i++) {
          inner[i] = activation.applyAsDouble(inner[i]);
        }
        y[t] = w.layerNorm(end, SmallCheckpoint.plus(first, w.linear(down, inner)), epsilon);
      }
      return y;
    }
  }

  private static double[][] embedded(
      SmallCheckpoint w, String base, int[] text, int firstPlace, boolean parts, double epsilon) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      double[] sum =
          SmallCheckpoint.plus(
              w.row(base + "embeddings.word_embeddings.weight", text[t], HIDDEN),
              w.row(base + "embeddings.position_embeddings.weight", firstPlace + t, HIDDEN));
      if (parts) {
        sum =
            SmallCheckpoint.plus(
                sum, w.row(base + "embeddings.token_type_embeddings.weight", 0, HIDDEN));
      }
      x[t] = w.layerNorm(base + "embeddings.LayerNorm", sum, epsilon);
    }
    return x;
  }

  private static SmallCheckpoint weights(String base, int types, boolean distil) {
    SmallCheckpoint w =
        new SmallCheckpoint(7, distil ? SafetensorsDtype.BF16 : SafetensorsDtype.F32);
    w.add(base + "embeddings.word_embeddings.weight", 0, 1, WORDS, HIDDEN);
    w.add(base + "embeddings.position_embeddings.weight", 0, 1, PLACES, HIDDEN);
    if (types > 0) {
      w.add(base + "embeddings.token_type_embeddings.weight", 0, 1, types, HIDDEN);
    }
    w.norm(base + "embeddings.LayerNorm", HIDDEN, true);
    for (int n = 0; n < LAYERS; n++) {
      layer(base, n, distil).add(w);
    }
    return w;
  }

  private static Layer layer(String base, int n, boolean distil) {
    return distil ? Layer.distil(base, n) : Layer.bert(base, n);
  }

  private static String config(String type, String architecture, String more) {
    return """
           {"model_type": "%s", "architectures": [%s], "hidden_size": %d, "intermediate_size": %d,
            "vocab_size": %d, "num_hidden_layers": %d, "num_attention_heads": %d,
            "max_position_embeddings": %d, "layer_norm_eps": 1e-5%s}
           """
        .formatted(
            type,
            architecture == null ? "" : '"' + architecture + '"',
            HIDDEN,
            INNER,
            WORDS,
            LAYERS,
            HEADS,
            PLACES,
            more);
  }

  @Test
  void bert() throws Exception {
    SmallCheckpoint w = weights("", 2, false);
    w.linear("pooler.dense", HIDDEN, HIDDEN, true);
    w.write(folder, config("bert", "BertModel", ", \"type_vocab_size\": 2"));
    List<String> notes = new ArrayList<>();
    float[][][] states = (float[][][]) run("last_hidden_state", 0, true, notes);
    assertTrue(notes.get(0).startsWith("2 tensors of "), notes.toString());
    assertTrue(notes.get(0).contains("'pooler.dense.bias'"), notes.toString());
    for (int i = 0; i < TEXTS.length; i++) {
      double[][] expected = states(w, "", TEXTS[i], 0, true, SmallCheckpoint::gelu);
      for (int t = 0; t < expected.length; t++) {
        close(expected[t], states[i][t], "text " + i + " token " + t);
      }
    }
  }

  @Test
  void bertThatClassifies() throws Exception {
    SmallCheckpoint w = weights("bert.", 2, false);
    w.linear("bert.pooler.dense", HIDDEN, HIDDEN, true);
    w.linear("classifier", HIDDEN, LABELS, true);
    w.write(
        folder,
        config(
            "bert",
            "BertForSequenceClassification",
            ", \"hidden_act\": \"gelu_new\", \"id2label\": {\"0\": \"a\", \"1\": \"b\", \"2\":"
                + " \"c\"}"));
    List<String> notes = new ArrayList<>();
    float[][] logits = (float[][]) run("logits", 0, true, notes);
    assertEquals(List.of(), notes);
    for (int i = 0; i < TEXTS.length; i++) {
      double[][] states = states(w, "bert.", TEXTS[i], 0, true, SmallCheckpoint::geluNew);
      double[] pooled = tanh(w.linear("bert.pooler.dense", states[0]));
      close(w.linear("classifier", pooled), logits[i], "text " + i);
    }
  }

  /** Positions begin behind that of the padding, and padding has its own. */
  @Test
  void robertaThatClassifies() throws Exception {
    SmallCheckpoint w = weights("roberta.", 1, false);
    w.linear("classifier.dense", HIDDEN, HIDDEN, true);
    w.linear("classifier.out_proj", HIDDEN, LABELS, true);
    w.write(
        folder,
        config(
            "xlm-roberta",
            "XLMRobertaForSequenceClassification",
            ", \"type_vocab_size\": 1, \"pad_token_id\": 1, \"num_labels\": 3"));
    float[][] logits = (float[][]) run("logits", 1, false, new ArrayList<>());
    for (int i = 0; i < TEXTS.length; i++) {
      double[][] states = states(w, "roberta.", TEXTS[i], 2, true, SmallCheckpoint::gelu);
      double[] pooled = tanh(w.linear("classifier.dense", states[0]));
      close(w.linear("classifier.out_proj", pooled), logits[i], "text " + i);
    }
  }

  @Test
  void distilbertThatTags() throws Exception {
    SmallCheckpoint w = weights("distilbert.", 0, true);
    w.linear("classifier", HIDDEN, LABELS, true);
    w.write(
        folder,
        """
        {"model_type": "distilbert", "architectures": ["DistilBertForTokenClassification"],
         "dim": %d, "hidden_dim": %d, "vocab_size": %d, "n_layers": %d, "n_heads": %d,
         "max_position_embeddings": %d, "activation": "gelu",
         "id2label": {"0": "a", "1": "b", "2": "c"}}
        """
            .formatted(HIDDEN, INNER, WORDS, LAYERS, HEADS, PLACES));
    float[][][] logits = (float[][][]) run("logits", 0, false, new ArrayList<>());
    for (int i = 0; i < TEXTS.length; i++) {
      double[][] x = embedded(w, "distilbert.", TEXTS[i], 0, false, 1e-12);
      for (int n = 0; n < LAYERS; n++) {
        x = Layer.distil("distilbert.", n).compute(w, x, SmallCheckpoint::gelu, 1e-12);
      }
      for (int t = 0; t < x.length; t++) {
        close(w.linear("classifier", x[t]), logits[i][t], "text " + i + " token " + t);
      }
    }
  }

  /** As TensorFlow called the parameters of norms. */
  @Test
  void oldNamesOfNorms() throws Exception {
    SmallCheckpoint w = weights("", 2, false);
    w.write(folder, config("bert", null, ""));
    float[][][] states = (float[][][]) run("last_hidden_state", 0, true, new ArrayList<>());
    SmallCheckpoint old = w.renamed("LayerNorm.weight", "LayerNorm.gamma");
    old = old.renamed("LayerNorm.bias", "LayerNorm.beta");
    old.write(folder, config("bert", null, ""));
    assertFalse(old.has("embeddings.LayerNorm.weight"));
    float[][][] same = (float[][][]) run("last_hidden_state", 0, true, new ArrayList<>());
    for (int t = 0; t < TEXTS[0].length; t++) {
      for (int i = 0; i < HIDDEN; i++) {
        assertEquals(states[0][t][i], same[0][t][i]);
      }
    }
  }

  private static double[][] states(
      SmallCheckpoint w,
      String base,
      int[] text,
      int firstPlace,
      boolean parts,
      DoubleUnaryOperator activation) {
    double[][] x = embedded(w, base, text, firstPlace, parts, 1e-5);
    for (int n = 0; n < LAYERS; n++) {
      x = Layer.bert(base, n).compute(w, x, activation, 1e-5);
    }
    return x;
  }

  private static double[] tanh(double[] x) {
    double[] y = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      y[i] = Math.tanh(x[i]);
    }
    return y;
  }

  private Object run(String output, int padding, boolean parts, List<String> notes)
      throws Exception {
    OnnxModel model = TransformersModel.read(folder, notes::add);
    int longest = TEXTS[0].length;
    long[][] ids = new long[TEXTS.length][longest];
    long[][] mask = new long[TEXTS.length][longest];
    for (int i = 0; i < TEXTS.length; i++) {
      for (int t = 0; t < longest; t++) {
        boolean inside = t < TEXTS[i].length;
        ids[i][t] = inside ? TEXTS[i][t] : padding;
        mask[i][t] = inside ? 1 : 0;
      }
    }
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    Map<String, OnnxTensor> inputs = new HashMap<>();
    inputs.put("input_ids", OnnxTensor.createTensor(environment, ids));
    inputs.put("attention_mask", OnnxTensor.createTensor(environment, mask));
    if (parts) {
      inputs.put(
          "token_type_ids", OnnxTensor.createTensor(environment, new long[TEXTS.length][longest]));
    }
    try (OrtSession session =
            environment.createSession(model.toBuffer(), new OrtSession.SessionOptions());
        OrtSession.Result result = session.run(inputs)) {
      assertEquals(1, session.getNumOutputs());
      return result.get(output).orElseThrow().getValue();
    }
  }

  private static void close(double[] expected, float[] actual, String where) {
    assertEquals(expected.length, actual.length);
    for (int i = 0; i < expected.length; i++) {
      assertEquals(expected[i], actual[i], 1e-4 * Math.max(1, Math.abs(expected[i])), where);
    }
  }
}
